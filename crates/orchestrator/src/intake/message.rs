//! A message of INTAKE, read: whose it is, what proves that, what it is known by, and what it asks for. Pure; nothing in it can make
//! more than a refusal.

use std::collections::HashMap;

use contract::auth::authenticate_request::Proof;
use contract::json::{Fields, Names, Submission, submission_with_key};
use contract::limits::MAX_IDEMPOTENCY_KEY_BYTES;
use contract::proof::{Proven, is_token};
use contract::v1::SubmitTask;
use contract::{ErrorCode, Failure, TaskId, TenantId, validate};
use http::{HeaderMap, HeaderName, HeaderValue};
use prost::Message as _;

/// Stands before the tenant in a subject.
pub(crate) const SUBJECT: &str = "inkstone.intake.";
/// What signature v2 signs as the method.
pub(crate) const METHOD: &str = "PUBLISH";
/// Headers that are looked at; more are nonsense.
const MAX_HEADERS: usize = 64;
const CONTENT_TYPE: &str = "content-type";
const IDEMPOTENCY_KEY: &str = "idempotency-key";
const MESSAGE_ID: &str = "nats-msg-id";
/// What a message may say only once, by the names that producers write. The broker's client keeps no order among spellings of a name,
/// so a message that comes again would be read in another way. What proves who sent it has a reader of its own ([`Proven`]).
const ONCE: [&str; 4] = [
    "Content-Type",
    "Idempotency-Key",
    "Nats-Msg-Id",
    "traceparent",
];

/// A message as the broker has it.
pub(crate) struct Raw<'a> {
    pub(crate) subject: &'a str,
    pub(crate) headers: Vec<(&'a str, &'a str)>,
    pub(crate) payload: &'a [u8],
    pub(crate) sequence: u64,
    /// When the broker took it, Unix nanoseconds.
    pub(crate) taken: u128,
}

/// A message, as far as it can be read.
#[derive(Debug)]
pub(crate) struct Message {
    /// Whose subject it came on.
    pub(crate) tenant: TenantId,
    /// What proves that it may.
    pub(crate) proof: Result<Proof, Failure>,
    /// The task that it makes, or would have made.
    pub(crate) task: TaskId,
    /// What its producer knows it by; may be empty.
    pub(crate) reference: String,
    /// Whether it came as JSON.
    pub(crate) json: bool,
    /// What it asks for, within the contract's limits.
    pub(crate) request: Result<SubmitTask, Failure>,
    /// By which names its producer wrote that.
    pub(crate) names: Names,
}

impl Message {
    /// Reads a message; `None` when not even the tenant can be told.
    pub(crate) fn read(raw: &Raw<'_>) -> Option<Self> {
        let tenant = raw.subject.strip_prefix(SUBJECT)?;
        let tenant: TenantId = tenant.parse().ok()?;
        let headers = headers(raw);
        let proven = headers.clone().and_then(|headers| {
            let proven = Proven::read([METHOD, raw.subject, ""], &headers)?;
            match &proven.body {
                Some(body) if !body.is(raw.payload) => Err(Failure {
                    field: Some("X-Content-SHA256".to_owned()),
                    ..Failure::new(
                        ErrorCode::Unauthenticated,
                        "the payload is not the one whose SHA-256 X-Content-SHA256 names",
                    )
                }),
                _ => Ok(proven.proof),
            }
        });
        let headers = headers.unwrap_or_default();
        let format = format(&headers);
        let written = format.clone().and_then(|json| decode(raw.payload, json));
        let names = written.as_ref().map(|written| written.names);
        let names = names.unwrap_or_default();
        let request = written.map(|written| written.task);
        let given = given_key(&headers, request.as_ref().ok());
        let fallback = || fallback_key(raw, proven.as_ref().ok());
        let (reference, key) = match &given {
            Ok(Some(given)) => (given.clone(), given.clone()),
            _ => (String::new(), fallback()),
        };
        let request = once(&headers).and(request).and_then(|mut request| {
            given?;
            request.idempotency_key.clone_from(&key);
            validate(&request).map_err(|failure| names.tell(failure))?;
            Ok(request)
        });
        Some(Self {
            task: TaskId::derived(&tenant, &key),
            tenant,
            proof: proven,
            reference,
            json: format.unwrap_or(false),
            request,
            names,
        })
    }
}

/// Refuses a key that is shown as it is: it lies in the stream until the message is answered, and on the broker's disk for longer.
///
/// # Errors
/// Unauthenticated, with what to show instead.
pub(crate) fn refuse_key(proof: &Proof) -> Result<(), Failure> {
    match proof {
        Proof::Bearer(bearer) if !is_token(bearer) => Err(Failure {
            field: Some("Authorization".to_owned()),
            ..Failure::new(
                ErrorCode::Unauthenticated,
                "this platform takes no keys over NATS, for the broker would store them: sign the message with v2, or exchange the \
                 key for a token (POST /v1/token) and send that as Authorization: Bearer",
            )
        }),
        _ => Ok(()),
    }
}

/// The headers as HTTP has them: names in any case.
fn headers(raw: &Raw<'_>) -> Result<HeaderMap, Failure> {
    if raw.headers.len() > MAX_HEADERS {
        let text = format!("a message must have at most {MAX_HEADERS} headers");
        return Err(Failure::new(ErrorCode::InvalidArgument, text));
    }
    let pair = |(name, value): &(&str, &str)| {
        let name = HeaderName::from_bytes(name.as_bytes()).ok()?;
        Some((name, HeaderValue::from_bytes(value.as_bytes()).ok()?))
    };
    let mut headers = HeaderMap::new();
    // What is no header over HTTP is none that we know.
    for (name, value) in raw.headers.iter().filter_map(pair) {
        headers.append(name, value);
    }
    Ok(headers)
}

/// Whether each header is there once that can mean one thing only; the same twice is refused too, as over HTTP.
fn once(headers: &HeaderMap) -> Result<(), Failure> {
    match ONCE.iter().find(|name| is_repeated(headers, name)) {
        Some(name) => {
            let message = format!(
                "{name} must be given once: the header is there more than once, in one spelling or in several"
            );
            Err(Failure::invalid(*name, message))
        }
        None => Ok(()),
    }
}

fn is_repeated(headers: &HeaderMap, name: &str) -> bool {
    headers.get_all(name).iter().nth(1).is_some()
}

/// A header's text: over NATS it is UTF-8, which HTTP knows nothing of. One that is there more than once says nothing, or it would be a
/// matter of luck what.
fn text<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    let value = headers.get(name).filter(|_| !is_repeated(headers, name))?;
    let text = std::str::from_utf8(value.as_bytes()).unwrap_or("");
    Some(text.trim())
}

/// Of a message's headers those that say what its payload is and what it is known by. What proves who sent it is kept nowhere. Of one that
/// is there more than once each value is a line, for [`as_sent`].
pub(crate) fn kept<'a>(
    headers: impl Iterator<Item = (&'a str, &'a str)>,
) -> HashMap<String, String> {
    let known = [CONTENT_TYPE, IDEMPOTENCY_KEY, MESSAGE_ID];
    let mut kept = HashMap::<String, String>::new();
    for (name, value) in headers {
        let name = name.to_ascii_lowercase();
        if !known.contains(&name.as_str()) {
            continue;
        }
        match kept.get_mut(&name) {
            Some(values) => {
                values.push('\n');
                values.push_str(value);
            }
            None => {
                kept.insert(name, value.to_owned());
            }
        }
    }
    kept
}

/// The headers that were [`kept`], as often as they were sent: what was refused for that is refused again.
pub(crate) fn as_sent(kept: &HashMap<String, String>) -> Vec<(&str, &str)> {
    let all = kept.iter().flat_map(|(name, values)| {
        let values = values.split('\n');
        values.map(move |value| (name.as_str(), value))
    });
    all.collect()
}

/// True for JSON.
fn format(headers: &HeaderMap) -> Result<bool, Failure> {
    let given = text(headers, CONTENT_TYPE).unwrap_or("application/protobuf");
    let essence = given.split(';').next().unwrap_or_default().trim();
    match essence.to_ascii_lowercase().as_str() {
        "application/json" => Ok(true),
        "application/protobuf" | "application/x-protobuf" => Ok(false),
        _ => {
            let shown = contract::json::shorten(given);
            let text = format!(
                "Content-Type must be application/json or application/protobuf, not {shown:?}"
            );
            Err(Failure::new(ErrorCode::UnsupportedMediaType, text))
        }
    }
}

fn decode(payload: &[u8], json: bool) -> Result<Submission, Failure> {
    if json {
        return submission_with_key(Fields::parse(payload)?);
    }
    SubmitTask::decode(payload).map(Submission::from).map_err(|error| {
        let text = format!(
            "the payload is no inkstone.v1.SubmitTask ({error}); send Content-Type: application/json with JSON"
        );
        Failure::new(ErrorCode::InvalidArgument, text)
    })
}

/// The key that the producer gave: a header, or the message's own field, or what the broker knows it by.
fn given_key(headers: &HeaderMap, request: Option<&SubmitTask>) -> Result<Option<String>, Failure> {
    let at_fault = |text: String| Err(Failure::invalid("idempotency_key", text));
    let header = text(headers, IDEMPOTENCY_KEY);
    let field = request.map(|request| request.idempotency_key.as_str());
    let field = field.filter(|key| !key.is_empty());
    if let (Some(header), Some(field)) = (header, field)
        && header != field
    {
        let text = "the Idempotency-Key header and the message's idempotency_key are not the same";
        return at_fault(text.to_owned());
    }
    let Some(key) = header.or(field).or_else(|| text(headers, MESSAGE_ID)) else {
        return Ok(None);
    };
    let visible = !key.is_empty() && key.chars().all(|c| !c.is_control());
    if !visible || key.len() > MAX_IDEMPOTENCY_KEY_BYTES {
        return at_fault(format!(
            "Idempotency-Key (or Nats-Msg-Id) must be 1 to {MAX_IDEMPOTENCY_KEY_BYTES} visible characters"
        ));
    }
    Ok(Some(key.to_owned()))
}

/// What a message without a key is known by: what was signed is the same however often it is published; else its place in the stream,
/// which is the same however often it is delivered.
fn fallback_key(raw: &Raw<'_>, proof: Option<&Proof>) -> String {
    match proof {
        Some(Proof::SignatureV2(signature)) => {
            format!("signed:{}:{}", signature.app_key, signature.nonce)
        }
        _ => format!("intake:{}:{}", raw.taken, raw.sequence),
    }
}

#[cfg(test)]
#[path = "message_tests.rs"]
mod tests;
