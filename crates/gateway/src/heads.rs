//! What a head may say only once, so that whoever reads it, a proxy in front of the gateway too, reads the same.
//!
//! Two headers are looked at elsewhere: lengths that differ end the connection in HTTP itself, and those that show who calls are
//! refused by their one reader ([`contract::proof`]). Lists that may come in several lines have no other reading and stay.

use axum::extract::Request;
use axum::http::HeaderMap;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use contract::Failure;

use crate::problem::Refused;

/// Whoever reads the first of two would be told another thing than whoever reads the last.
const ONCE: [&str; 9] = [
    "Host",
    "Content-Type",
    "Content-Encoding",
    "Idempotency-Key",
    "Last-Event-ID",
    "X-DashScope-Async",
    "Inference-Header-Content-Length",
    "grpc-encoding",
    "grpc-timeout",
];

/// Refuses a request whose head can be read in two ways, before anyone reads it.
pub(crate) async fn read_in_one_way(request: Request, next: Next) -> Response {
    match check(request.headers()) {
        Ok(()) => next.run(request).await,
        Err(failure) => Refused(failure).into_response(),
    }
}

/// Whether each header is there once that can mean one thing only; the same twice is refused too.
///
/// # Errors
/// An invalid argument that names the header.
pub(crate) fn check(headers: &HeaderMap) -> Result<(), Failure> {
    // Nearly every request has no name twice.
    if headers.len() == headers.keys_len() {
        return Ok(());
    }
    match ONCE.iter().find(|name| is_repeated(headers, name)) {
        Some(name) => {
            let message = format!("{name} must be given once: the header is there more than once");
            Err(Failure::invalid(*name, message))
        }
        None => Ok(()),
    }
}

/// Whether a header is there more than once.
pub(crate) fn is_repeated(headers: &HeaderMap, name: &str) -> bool {
    headers.get_all(name).iter().nth(1).is_some()
}

#[cfg(test)]
mod tests {
    use axum::http::{HeaderName, HeaderValue};

    use super::*;

    fn with(name: &str, values: &[&'static str]) -> HeaderMap {
        let name: HeaderName = name.parse().unwrap();
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(name.clone(), HeaderValue::from_static(value));
        }
        headers
    }

    #[test]
    fn what_could_be_read_in_two_ways_is_refused_by_its_name_and_lists_pass() {
        for name in ONCE {
            assert!(check(&with(name, &["a"])).is_ok(), "{name}");
            for values in [["a", "b"], ["a", "a"]] {
                let failure = check(&with(name, &values)).unwrap_err();
                assert_eq!(failure.field.as_deref(), Some(name));
                assert!(failure.message.starts_with(name), "{failure}");
            }
        }
        for list in ["accept", "cookie", "if-none-match", "x-forwarded-for"] {
            assert!(check(&with(list, &["a", "b"])).is_ok(), "{list}");
        }
    }
}
