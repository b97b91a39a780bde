//! What may be answered instead of what a handler answers: each layer adds its own refusals to the operations behind it, and at the
//! end every refusal is put into the words of its dialect.
//!
//! Until then a refusal is a response without content, its description the codes that it is about, with blanks between.

use contract::ErrorCode;
use utoipa::ToSchema;
use utoipa::openapi::path::{Operation, PathItem, Paths};
use utoipa::openapi::{Content, Header, RefOr, Required, Response, Schema, SecurityRequirement};

use super::schema::{part, text, whole};
use super::task::Problem;
use crate::problem::Dialect;
use crate::{dashscope, oip, openai};

/// Where headers are described.
const HEADERS: &str = "#/components/headers/";
/// Of every answer.
const ALWAYS: [&str; 2] = ["X-Request-ID", "traceparent"];
/// Of every answer to a caller who is known.
const OF_CALLERS: [&str; 3] = ["RateLimit-Limit", "RateLimit-Remaining", "RateLimit-Reset"];

/// For what needs a caller that auth knows.
pub(crate) fn guarded(paths: &mut Paths) {
    each(paths, |_, operation| {
        let ways = operation.security.get_or_insert_default();
        let signed = |more: &[&str]| {
            let requirement = SecurityRequirement::new("appKey", NO_SCOPES)
                .add("timestamp", NO_SCOPES)
                .add("signature", NO_SCOPES);
            more.iter()
                .fold(requirement, |all, one| all.add(*one, NO_SCOPES))
        };
        ways.push(SecurityRequirement::new("bearer", NO_SCOPES));
        ways.push(signed(&[]));
        ways.push(signed(&["nonce", "contentSha256"]));
        let codes = [
            ErrorCode::Unauthenticated,
            ErrorCode::RateLimited,
            ErrorCode::Unavailable,
        ];
        refuse(operation, &codes);
    });
}

const NO_SCOPES: [&str; 0] = [];

/// For what needs room.
pub(crate) fn roomy(paths: &mut Paths) {
    each(paths, |_, operation| {
        refuse(operation, &[ErrorCode::Unavailable])
    });
}

/// For what has to answer at once.
pub(crate) fn quick(paths: &mut Paths) {
    each(paths, |_, operation| {
        refuse(operation, &[ErrorCode::DeadlineExceeded])
    });
}

/// For what takes JSON only.
pub(crate) fn json(paths: &mut Paths) {
    each(paths, |_, operation| {
        refuse(operation, &[ErrorCode::UnsupportedMediaType])
    });
}

/// For what a request says only where it wants to.
pub(crate) fn without_body(paths: &mut Paths) {
    each(paths, |_, operation| {
        if let Some(RefOr::T(body)) = &mut operation.request_body {
            body.required = Some(Required::False);
        }
    });
}

/// For every operation, from the outside: a head that can be read in two ways, a body that is too long, a panic; then headers, tags and words.
pub(super) fn finish(paths: &mut Paths) {
    each(paths, |path, operation| {
        if operation.request_body.is_some() {
            refuse(operation, &[ErrorCode::PayloadTooLarge]);
        }
        refuse(
            operation,
            &[ErrorCode::InvalidArgument, ErrorCode::Internal],
        );
        let known = operation.security.is_some();
        let dialect = Dialect::of_path(path);
        operation.tags = Some(vec![tag(path, dialect).to_owned()]);
        for (status, response) in &mut operation.responses.responses {
            if let RefOr::T(response) = response {
                complete(status, response, dialect, known);
            }
        }
    });
}

/// Says that an operation may be refused so.
fn refuse(operation: &mut Operation, codes: &[ErrorCode]) {
    for code in codes {
        let status = code.http().as_u16().to_string();
        let responses = &mut operation.responses.responses;
        let place = responses
            .entry(status)
            .or_insert_with(|| RefOr::T(Response::new("")));
        if let RefOr::T(response) = place
            && !response
                .description
                .split(' ')
                .any(|word| word == code.as_str())
        {
            let all = format!("{} {code}", response.description);
            response.description = all.trim().to_owned();
        }
    }
}

fn complete(status: &str, response: &mut Response, dialect: Dialect, known: bool) {
    let mut headers: Vec<&str> = ALWAYS.to_vec();
    if known && status != "401" {
        headers.extend(OF_CALLERS);
    }
    match status {
        "401" => headers.push("WWW-Authenticate"),
        "429" | "503" => headers.push("Retry-After"),
        _ => {}
    }
    for name in headers {
        let place = utoipa::openapi::Ref::new(format!("{HEADERS}{name}"));
        response.headers.insert(name.to_owned(), RefOr::Ref(place));
    }
    let refused = status.starts_with(['4', '5']) && response.content.is_empty();
    if refused {
        response.description = meaning(&response.description);
        let (kind, schema) = words(dialect);
        let content = Content::new(Some(schema));
        response.content.insert(kind.to_owned(), RefOr::T(content));
    }
}

/// Codes as people read them.
fn meaning(codes: &str) -> String {
    let explained = codes
        .split(' ')
        .map(|text| match ErrorCode::from_text(text) {
            Some(code) => format!("`{code}`: {}", code.meaning()),
            None => text.to_owned(),
        });
    explained.collect::<Vec<_>>().join("\n\n")
}

/// How a dialect says no.
fn words(dialect: Dialect) -> (&'static str, RefOr<Schema>) {
    match dialect {
        Dialect::Own | Dialect::Grpc => ("application/problem+json", part::<Problem>()),
        Dialect::OpenAi => ("application/json", part::<openai::Error<'_>>()),
        Dialect::DashScope => ("application/json", part::<dashscope::Error<'_>>()),
        Dialect::Oip => ("application/json", part::<oip::Error<'_>>()),
    }
}

/// The components that [`words`] refer to.
pub(super) fn parts() -> Vec<(String, RefOr<Schema>)> {
    let mut parts = Vec::new();
    add::<Problem>(&mut parts);
    add::<openai::Error<'_>>(&mut parts);
    add::<dashscope::Error<'_>>(&mut parts);
    add::<oip::Error<'_>>(&mut parts);
    parts
}

fn add<T: ToSchema>(parts: &mut Vec<(String, RefOr<Schema>)>) {
    parts.push((T::name().into_owned(), T::schema()));
    T::schemas(parts);
}

/// The headers that answers refer to.
pub(super) fn headers() -> Vec<(&'static str, Header)> {
    let most = u64::from(u32::MAX);
    let header = |schema, means: &str| {
        let mut header = Header::new(schema);
        header.description = Some(means.to_owned());
        header
    };
    vec![
        (
            "X-Request-ID",
            header(
                text(),
                "The request's id: the caller's own if it is 1 to 128 of `A-Z a-z 0-9 . _ -`.",
            ),
        ),
        (
            "traceparent",
            header(
                text(),
                "The trace that the request is part of (W3C Trace Context).",
            ),
        ),
        (
            "RateLimit-Limit",
            header(
                whole(0, most),
                "Requests a second that the key may make; with 429 the limit that was reached, if it is that or the tenant's share.",
            ),
        ),
        (
            "RateLimit-Remaining",
            header(whole(0, most), "How many are left."),
        ),
        (
            "RateLimit-Reset",
            header(whole(0, most), "Seconds until all are."),
        ),
        (
            "Retry-After",
            header(whole(1, most), "Seconds after which a retry makes sense."),
        ),
        ("WWW-Authenticate", header(text(), "How to show who calls.")),
    ]
}

/// Under which heading an operation stands.
fn tag(path: &str, dialect: Dialect) -> &'static str {
    match dialect {
        Dialect::OpenAi if path.starts_with("/v1/models") => "Models",
        Dialect::OpenAi => "OpenAI Images",
        Dialect::DashScope => "DashScope",
        Dialect::Oip => "Open Inference Protocol",
        _ if path.starts_with("/v1/tasks") => "Tasks",
        _ if path == crate::tokens::PATH || path.starts_with("/.well-known/") => "Tokens",
        _ => "The server",
    }
}

/// The headings, in their order.
pub(super) const TAGS: &[(&str, &str)] = &[
    (
        "Tasks",
        "Our own dialect: everything that the platform can do.",
    ),
    ("Models", "The models that the key may use."),
    ("Tokens", "Short-lived tokens in exchange for a key."),
    ("OpenAI Images", "For clients of OpenAI's Images API."),
    ("DashScope", "For clients of DashScope's picture API."),
    (
        "Open Inference Protocol",
        "For clients of Triton and KServe.",
    ),
    ("The server", "Health and documentation; no credentials."),
];

fn each(paths: &mut Paths, mut change: impl FnMut(&str, &mut Operation)) {
    for (path, item) in &mut paths.paths {
        for operation in operations(item) {
            change(path, operation);
        }
    }
}

/// The operations of a path.
pub(super) fn operations(item: &mut PathItem) -> impl Iterator<Item = &mut Operation> {
    let all = [
        &mut item.get,
        &mut item.post,
        &mut item.put,
        &mut item.patch,
        &mut item.delete,
    ];
    all.into_iter().flatten()
}
