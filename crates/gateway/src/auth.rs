//! Who calls: the proof out of the headers, auth's word on it, and the caller's rate limit in every answer.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderName, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use contract::auth::{Caller, RateLimit, SignatureV1, authenticate_request::Proof};
use contract::{ErrorCode, Failure};

use crate::edge::Edge;
use crate::problem::{Refused, whole_seconds};

const APP_KEY: HeaderName = HeaderName::from_static("x-app-key");
const TIMESTAMP: HeaderName = HeaderName::from_static("x-timestamp");
const SIGNATURE: HeaderName = HeaderName::from_static("x-signature");
const LIMIT: HeaderName = HeaderName::from_static("ratelimit-limit");
const REMAINING: HeaderName = HeaderName::from_static("ratelimit-remaining");
const RESET: HeaderName = HeaderName::from_static("ratelimit-reset");

/// Longer than any key or token that auth gives out; keeps nonsense away from it.
const MAX_PROOF_BYTES: usize = 4096;

/// Lets a request through once auth has vouched for its caller, and says in the answer what is left of the limit.
pub(crate) async fn authenticate(
    State(edge): State<Arc<Edge>>,
    mut request: Request,
    next: Next,
) -> Response {
    match identify(&edge, request.headers()).await {
        Ok((caller, limit)) => {
            request.extensions_mut().insert(caller);
            let mut response = next.run(request).await;
            write_limit(response.headers_mut(), limit);
            response
        }
        Err(failure) => refuse(failure),
    }
}

/// Asks auth who sent these headers.
pub(crate) async fn identify(
    edge: &Edge,
    headers: &HeaderMap,
) -> Result<(Caller, Option<RateLimit>), Failure> {
    let proof = proof(headers)?;
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

/// The proof that the headers carry.
///
/// # Errors
/// Unauthenticated, with the ways there are.
fn proof(headers: &HeaderMap) -> Result<Proof, Failure> {
    let refuse = |message: &str| Err(Failure::new(ErrorCode::Unauthenticated, message));
    if let Some(value) = headers.get(header::AUTHORIZATION) {
        let text = value
            .to_str()
            .ok()
            .filter(|text| text.len() <= MAX_PROOF_BYTES);
        let token = text
            .and_then(|text| text.split_once(' '))
            .and_then(|(scheme, token)| {
                scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
            });
        return match token {
            Some(token) if !token.is_empty() => Ok(Proof::Bearer(token.to_owned())),
            _ => refuse("the Authorization header must be `Bearer` and a key"),
        };
    }
    let given = [APP_KEY, TIMESTAMP, SIGNATURE].map(|name| headers.get(name));
    match given {
        [None, None, None] => refuse(
            "credentials are missing: send Authorization: Bearer with a key, or X-App-Key, X-Timestamp and X-Signature",
        ),
        [Some(app_key), Some(timestamp), Some(signature)] => {
            let text = |value: &axum::http::HeaderValue| {
                let text = value
                    .to_str()
                    .ok()
                    .filter(|text| text.len() <= MAX_PROOF_BYTES);
                text.map(|text| text.trim().to_owned())
            };
            match (text(app_key), text(timestamp), text(signature)) {
                (Some(app_key), Some(timestamp), Some(signature)) => {
                    Ok(Proof::SignatureV1(SignatureV1 {
                        app_key,
                        timestamp,
                        signature,
                    }))
                }
                _ => refuse("X-App-Key, X-Timestamp and X-Signature must be plain text"),
            }
        }
        [app_key, timestamp, _] => {
            let missing = match (app_key, timestamp) {
                (None, _) => "X-App-Key",
                (_, None) => "X-Timestamp",
                _ => "X-Signature",
            };
            refuse(&format!(
                "{missing} is missing: a signature needs X-App-Key, X-Timestamp and X-Signature"
            ))
        }
    }
}

/// The refusal of a caller; over the limit, with what is left of it: nothing.
pub(crate) fn refuse(failure: Failure) -> Response {
    let wait = (failure.code == ErrorCode::RateLimited)
        .then(|| failure.retry_after.unwrap_or(Duration::from_secs(1)));
    let mut response = Refused(failure).into_response();
    if let Some(wait) = wait {
        let headers = response.headers_mut();
        headers.insert(REMAINING, 0.into());
        headers.insert(RESET, whole_seconds(wait).max(1).into());
    }
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
    use axum::http::HeaderValue;
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

    #[test]
    fn a_bearer_key_and_a_signature_are_proofs() {
        let bearer = proof(&headers(&[("authorization", "bearer  k-1 ")])).unwrap();
        assert_eq!(bearer, Proof::Bearer("k-1".to_owned()));
        let signed = [
            ("x-app-key", "a"),
            ("x-timestamp", "1"),
            ("x-signature", "ff"),
        ];
        assert!(matches!(
            proof(&headers(&signed)).unwrap(),
            Proof::SignatureV1(_)
        ));
    }

    #[test]
    fn without_a_proof_the_refusal_names_the_ways() {
        let message = proof(&HeaderMap::new()).unwrap_err().message;
        assert!(
            message.contains("Bearer") && message.contains("X-Signature"),
            "{message}"
        );
        let half = [("x-app-key", "a"), ("x-timestamp", "1")];
        assert!(
            proof(&headers(&half))
                .unwrap_err()
                .message
                .starts_with("X-Signature is missing")
        );
        for bad in ["Basic eDp5", "Bearer", "Bearer ", "k-1"] {
            let failure = proof(&headers(&[("authorization", bad)])).unwrap_err();
            assert_eq!(failure.code, ErrorCode::Unauthenticated);
        }
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
                for name in [header::AUTHORIZATION, APP_KEY, TIMESTAMP, SIGNATURE] {
                    let _ = proof(&HeaderMap::from_iter([(name, value.clone())]));
                }
            }
        }
    }
}
