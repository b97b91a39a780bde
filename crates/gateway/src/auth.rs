//! Who calls: the proof out of the headers, auth's word on it, and the caller's rate limit in every answer.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, Uri, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use contract::auth::{Caller, RateLimit, SignatureV1, SignatureV2, authenticate_request::Proof};
use contract::{ErrorCode, Failure};

use crate::edge::Edge;
use crate::problem::{Refused, whole_seconds};
use crate::signed_body::{self, SignedBody};

const APP_KEY: HeaderName = HeaderName::from_static("x-app-key");
const TIMESTAMP: HeaderName = HeaderName::from_static("x-timestamp");
const NONCE: HeaderName = HeaderName::from_static("x-nonce");
const CONTENT_SHA256: HeaderName = HeaderName::from_static("x-content-sha256");
const SIGNATURE: HeaderName = HeaderName::from_static("x-signature");
const LIMIT: HeaderName = HeaderName::from_static("ratelimit-limit");
const REMAINING: HeaderName = HeaderName::from_static("ratelimit-remaining");
const RESET: HeaderName = HeaderName::from_static("ratelimit-reset");

/// Longer than any key or token that auth gives out; keeps nonsense away from it.
const MAX_PROOF_BYTES: usize = 4096;

/// Lets a request through once auth has vouched for its caller, and says in the answer what is left of the limit. A body
/// that was signed goes on only if it is the one that was signed.
pub(crate) async fn authenticate(
    State(edge): State<Arc<Edge>>,
    request: Request,
    next: Next,
) -> Response {
    let proof = match Proven::of(&request) {
        Ok(proof) => proof,
        Err(failure) => return refuse(failure),
    };
    let known = identify(&edge, proof.proof).await;
    let (caller, limit) = match known {
        Ok(known) => known,
        Err(failure) => return refuse(failure),
    };
    let mut response = match signed_body::check(&edge, request, proof.body).await {
        Ok(mut request) => {
            request.extensions_mut().insert(caller);
            next.run(request).await
        }
        Err(failure) => refuse(failure),
    };
    // Of a handler that charged more, what it was told last counts; and whoever was refused for the limit has nothing left.
    let later = response.extensions_mut().remove::<Option<RateLimit>>();
    let wait = response.extensions().get::<Refused>().and_then(over_limit);
    write_limit(response.headers_mut(), later.flatten().or(limit));
    write_wait(response.headers_mut(), wait);
    response
}

/// How long a caller over its limit has to wait.
fn over_limit(refused: &Refused) -> Option<Duration> {
    let Refused(failure) = refused;
    (failure.code == ErrorCode::RateLimited)
        .then(|| failure.retry_after.unwrap_or(Duration::from_secs(1)))
}

fn write_wait(headers: &mut HeaderMap, wait: Option<Duration>) {
    if let Some(wait) = wait {
        headers.insert(REMAINING, 0.into());
        headers.insert(RESET, whole_seconds(wait).max(1).into());
    }
}

/// Asks auth whose proof this is.
pub(crate) async fn identify(
    edge: &Edge,
    proof: Proof,
) -> Result<(Caller, Option<RateLimit>), Failure> {
    let answer = edge.platform.authenticate(Some(proof)).await?;
    match answer.caller {
        Some(caller) => Ok((caller, answer.rate_limit)),
        None => {
            tracing::error!("auth answered without a caller");
            let message = "a part of the platform gave an answer that makes no sense";
            Err(Failure::new(ErrorCode::Internal, message))
        }
    }
}

/// What a request's head shows of its caller.
#[derive(Debug, PartialEq)]
pub(crate) struct Proven {
    /// For auth to verify.
    pub(crate) proof: Proof,
    /// What the body must be, for us to verify: the digest that auth finds signed.
    pub(crate) body: Option<SignedBody>,
}

impl Proven {
    /// The proof that a request carries. The body is not touched.
    ///
    /// # Errors
    /// Unauthenticated, with the ways there are.
    pub(crate) fn of<B>(request: &axum::http::Request<B>) -> Result<Self, Failure> {
        Self::read(request.method(), request.uri(), request.headers())
    }

    /// The same from the parts of a head.
    pub(crate) fn read(method: &Method, uri: &Uri, headers: &HeaderMap) -> Result<Self, Failure> {
        if let Some(value) = headers.get(header::AUTHORIZATION) {
            let proof = bearer(value)?;
            return Ok(Self { proof, body: None });
        }
        let all = [APP_KEY, TIMESTAMP, NONCE, CONTENT_SHA256, SIGNATURE];
        let given = all.clone().map(|name| headers.contains_key(name));
        match given {
            [false, false, false, false, false] => refused(
                "credentials are missing: send Authorization: Bearer with a key or a token, or X-App-Key, X-Timestamp, \
                 X-Nonce, X-Content-SHA256 and X-Signature",
            ),
            // Neither of what only v2 has.
            [_, _, false, false, _] => v1(headers).map(|proof| Self { proof, body: None }),
            _ => {
                let signature = v2(method, uri, headers)?;
                let body = SignedBody::new(&signature.content_sha256);
                let proof = Proof::SignatureV2(signature);
                Ok(Self { proof, body })
            }
        }
    }
}

/// The proof of a call whose head and body are no longer at hand as they were signed: a message of a stream, or one that was
/// decoded already.
///
/// # Errors
/// As [`Proven::of`]; and a signature over the whole request, which cannot be checked here.
pub(crate) fn proof_of_message(headers: &HeaderMap) -> Result<Proof, Failure> {
    match Proven::read(&Method::POST, &Uri::from_static("/"), headers)?.proof {
        Proof::SignatureV2(_) => refused(
            "signature v2 is not taken by this service over gRPC, whose messages may come in a stream: send a key or a token as \
             Authorization: Bearer",
        ),
        proof => Ok(proof),
    }
}

fn refused<T>(message: impl Into<String>) -> Result<T, Failure> {
    Err(Failure::new(ErrorCode::Unauthenticated, message))
}

fn bearer(value: &HeaderValue) -> Result<Proof, Failure> {
    let text = value
        .to_str()
        .ok()
        .filter(|text| text.len() <= MAX_PROOF_BYTES);
    let token = text
        .and_then(|text| text.split_once(' '))
        .and_then(|(scheme, token)| scheme.eq_ignore_ascii_case("bearer").then(|| token.trim()));
    match token {
        Some(token) if !token.is_empty() => Ok(Proof::Bearer(token.to_owned())),
        _ => refused("the Authorization header must be `Bearer` and a key or a token"),
    }
}

fn v1(headers: &HeaderMap) -> Result<Proof, Failure> {
    const NEEDS: &str = "a signature needs X-App-Key, X-Timestamp and X-Signature";
    Ok(Proof::SignatureV1(SignatureV1 {
        app_key: part(headers, &APP_KEY, "X-App-Key", NEEDS)?,
        timestamp: part(headers, &TIMESTAMP, "X-Timestamp", NEEDS)?,
        signature: part(headers, &SIGNATURE, "X-Signature", NEEDS)?,
    }))
}

fn v2(method: &Method, uri: &Uri, headers: &HeaderMap) -> Result<SignatureV2, Failure> {
    const NEEDS: &str =
        "signature v2 needs X-App-Key, X-Timestamp, X-Nonce, X-Content-SHA256 and X-Signature";
    Ok(SignatureV2 {
        app_key: part(headers, &APP_KEY, "X-App-Key", NEEDS)?,
        timestamp: part(headers, &TIMESTAMP, "X-Timestamp", NEEDS)?,
        nonce: part(headers, &NONCE, "X-Nonce", NEEDS)?,
        content_sha256: part(headers, &CONTENT_SHA256, "X-Content-SHA256", NEEDS)?,
        signature: part(headers, &SIGNATURE, "X-Signature", NEEDS)?,
        method: method.as_str().to_owned(),
        path: uri.path().to_owned(),
        query: uri.query().unwrap_or_default().to_owned(),
    })
}

/// A header that must be there once; `shown` is its name as people write it.
fn part(
    headers: &HeaderMap,
    name: &HeaderName,
    shown: &str,
    needs: &str,
) -> Result<String, Failure> {
    let at_fault = |message: String| {
        Err(Failure {
            field: Some(shown.to_owned()),
            ..Failure::new(ErrorCode::Unauthenticated, message)
        })
    };
    let mut values = headers.get_all(name).iter();
    let (Some(value), None) = (values.next(), values.next()) else {
        let problem = if headers.contains_key(name) {
            "is given more than once"
        } else {
            "is missing"
        };
        return at_fault(format!("{shown} {problem}: {needs}"));
    };
    match value.to_str() {
        Ok(text) if text.len() <= MAX_PROOF_BYTES => Ok(text.trim().to_owned()),
        _ => at_fault(format!(
            "{shown} must be plain text of at most {MAX_PROOF_BYTES} bytes"
        )),
    }
}

/// The refusal of a caller; over the limit, with what is left of it: nothing.
pub(crate) fn refuse(failure: Failure) -> Response {
    let refused = Refused(failure);
    let wait = over_limit(&refused);
    let mut response = refused.into_response();
    write_wait(response.headers_mut(), wait);
    response
}

/// Says in an answer what is left of the caller's limit.
pub(crate) fn write_limit(headers: &mut HeaderMap, limit: Option<RateLimit>) {
    let Some(limit) = limit else { return };
    headers.insert(LIMIT, limit.limit.into());
    headers.insert(REMAINING, limit.remaining.into());
    let reset = whole_seconds(Duration::from_millis(limit.reset_ms));
    headers.insert(RESET, reset.into());
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        let pair = |(name, value): &(&'static str, &'static str)| {
            (
                HeaderName::from_static(name),
                HeaderValue::from_static(value),
            )
        };
        pairs.iter().map(pair).collect()
    }

    fn proof(headers: &HeaderMap) -> Result<Proof, Failure> {
        let uri = Uri::from_static("http://h/v1/tasks?limit=5");
        Proven::read(&Method::POST, &uri, headers).map(|proven| proven.proof)
    }

    const V2: [(&str, &str); 5] = [
        ("x-app-key", "a"),
        ("x-timestamp", "1"),
        ("x-nonce", "n"),
        ("x-content-sha256", "00"),
        ("x-signature", "ff"),
    ];

    #[test]
    fn a_bearer_key_and_both_signatures_are_proofs() {
        let bearer = proof(&headers(&[("authorization", "bearer  k-1 ")])).unwrap();
        assert_eq!(bearer, Proof::Bearer("k-1".to_owned()));
        let v1 = [V2[0], V2[1], V2[4]];
        let v1 = proof(&headers(&v1)).unwrap();
        assert!(matches!(v1, Proof::SignatureV1(_)), "{v1:?}");
        let Proof::SignatureV2(v2) = proof(&headers(&V2)).unwrap() else {
            panic!("not v2");
        };
        let target = (v2.method.as_str(), v2.path.as_str(), v2.query.as_str());
        assert_eq!(target, ("POST", "/v1/tasks", "limit=5"));
        assert_eq!((v2.nonce.as_str(), v2.content_sha256.as_str()), ("n", "00"));
    }

    #[test]
    fn without_a_proof_the_refusal_names_the_ways() {
        let message = proof(&HeaderMap::new()).unwrap_err().message;
        assert!(
            message.contains("Bearer") && message.contains("X-Signature"),
            "{message}"
        );
        for bad in ["Basic eDp5", "Bearer", "Bearer ", "k-1"] {
            let failure = proof(&headers(&[("authorization", bad)])).unwrap_err();
            assert_eq!(failure.code, ErrorCode::Unauthenticated);
        }
    }

    #[test]
    fn the_header_that_is_missing_or_given_twice_is_named() {
        let half = headers(&V2[..2]);
        let failure = proof(&half).unwrap_err();
        assert!(
            failure
                .message
                .starts_with("X-Signature is missing: a signature")
        );
        assert_eq!(failure.field.as_deref(), Some("X-Signature"));
        for left_out in 0..V2.len() {
            let mut rest = V2.to_vec();
            let (name, _) = rest.remove(left_out);
            // Without either of its own two headers it would be v1 with one too many: still v2, still refused.
            let failure = proof(&headers(&rest)).unwrap_err();
            let field = failure.field.unwrap();
            assert!(field.eq_ignore_ascii_case(name), "{name}: {field}");
            assert!(failure.message.contains("signature v2 needs"));
        }
        let mut twice = headers(&V2);
        twice.append("x-nonce", HeaderValue::from_static("m"));
        let failure = proof(&twice).unwrap_err();
        assert!(
            failure
                .message
                .starts_with("X-Nonce is given more than once")
        );
    }

    #[test]
    fn over_the_limit_the_answer_says_how_long() {
        let failure = Failure {
            retry_after: Some(Duration::from_millis(2500)),
            ..Failure::new(ErrorCode::RateLimited, "over 5 requests a second")
        };
        let response = refuse(failure);
        assert_eq!(response.headers()["ratelimit-remaining"], "0");
        assert_eq!(response.headers()["ratelimit-reset"], "3");
    }

    proptest! {
        #[test]
        fn no_header_makes_the_reader_panic(bytes in proptest::collection::vec(any::<u8>(), 0..60)) {
            if let Ok(value) = HeaderValue::from_bytes(&bytes) {
                for name in [header::AUTHORIZATION, APP_KEY, TIMESTAMP, NONCE, CONTENT_SHA256, SIGNATURE] {
                    let _ = proof(&HeaderMap::from_iter([(name, value.clone())]));
                }
            }
        }
    }
}
