//! Reads bodies, within their limits; what is in one, the contract's [`Fields`] tell.

use axum::body::Body;
use axum::http::{HeaderMap, HeaderValue, header};
use bytes::Bytes;
use contract::{ErrorCode, Failure};
use http_body_util::LengthLimitError;
use settings::ByteSize;

use crate::bodies;
use crate::settings::HttpSettings;

pub(crate) use contract::json::{Fields, cut, parse, shorten};

/// Reads a request's body as one JSON object. That it is announced as JSON is a layer's to check.
pub(crate) async fn read(body: Body, settings: &HttpSettings) -> Result<Fields, Failure> {
    Fields::parse(&read_bytes(body, settings).await?)
}

/// Reads a request's body, within the limits of size and time that every body has.
///
/// # Errors
/// One that is longer, breaks off, or takes longer than a request may.
pub(crate) async fn read_bytes(body: Body, settings: &HttpSettings) -> Result<Bytes, Failure> {
    read_at_most(body, settings.max_body, settings).await
}

/// The same with a limit of its own.
pub(crate) async fn read_at_most(
    body: Body,
    limit: ByteSize,
    settings: &HttpSettings,
) -> Result<Bytes, Failure> {
    let bytes = axum::body::to_bytes(body, usize::try_from(limit.bytes()).unwrap_or(usize::MAX));
    let patience = settings.request_timeout.duration();
    match tokio::time::timeout(patience, bytes).await {
        Ok(Ok(bytes)) => Ok(bytes),
        Ok(Err(error)) if is_length_limit(&error) => Err(too_large(limit)),
        Ok(Err(error)) => Err(bodies::failure_in(&error).unwrap_or_else(|| {
            let message = "the body ended before its announced length";
            Failure::new(ErrorCode::InvalidArgument, message)
        })),
        Err(_) => {
            let message = format!("the body did not arrive within {patience:?}");
            Err(Failure::new(ErrorCode::DeadlineExceeded, message))
        }
    }
}

/// The failure of a body over the limit.
pub(crate) fn too_large(limit: ByteSize) -> Failure {
    let message = format!("the body must be at most {limit}");
    Failure::new(ErrorCode::PayloadTooLarge, message)
}

fn is_length_limit(error: &axum::Error) -> bool {
    let mut cause: Option<&dyn std::error::Error> = Some(error);
    while let Some(error) = cause {
        if error.is::<LengthLimitError>() {
            return true;
        }
        cause = error.source();
    }
    false
}

/// Whether the headers announce a body that is not compressed.
pub(crate) fn check_coding(headers: &HeaderMap) -> Result<(), Failure> {
    let coding = headers.get(header::CONTENT_ENCODING);
    match coding.map(HeaderValue::as_bytes) {
        None | Some(b"identity") => Ok(()),
        Some(coding) => {
            let coding = shorten(&String::from_utf8_lossy(coding));
            let message = format!("the body must not be compressed; Content-Encoding is {coding}");
            Err(Failure::new(ErrorCode::UnsupportedMediaType, message))
        }
    }
}

/// Whether the headers announce a JSON body that is not compressed.
pub(crate) fn check_media_type(headers: &HeaderMap) -> Result<(), Failure> {
    check_coding(headers)?;
    let refuse = |message: String| Err(Failure::new(ErrorCode::UnsupportedMediaType, message));
    let text = |name| headers.get(name).and_then(|v| v.to_str().ok());
    let Some(given) = text(header::CONTENT_TYPE) else {
        return refuse("the body must be JSON: send Content-Type: application/json".to_owned());
    };
    let essence = given
        .split(';')
        .next()
        .unwrap_or_default()
        .trim()
        .to_ascii_lowercase();
    if essence == "application/json" || essence.ends_with("+json") {
        return Ok(());
    }
    let given = shorten(given);
    refuse(format!(
        "the body must be JSON: send Content-Type: application/json, not {given}"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_plain_json_is_taken() {
        let with = |value: &'static str| {
            let value = HeaderValue::from_static(value);
            check_media_type(&HeaderMap::from_iter([(header::CONTENT_TYPE, value)]))
        };
        assert!(with("application/json").is_ok());
        assert!(with("Application/JSON; charset=utf-8").is_ok());
        assert!(with("text/plain").is_err());
        let refused = check_media_type(&HeaderMap::new()).unwrap_err();
        assert_eq!(refused.code, ErrorCode::UnsupportedMediaType);
        // What cannot be read as a word is a coding all the same.
        for coding in [&b"gzip"[..], b"gz\xefp"] {
            let packed = [
                (
                    header::CONTENT_TYPE,
                    HeaderValue::from_static("application/json"),
                ),
                (
                    header::CONTENT_ENCODING,
                    HeaderValue::from_bytes(coding).unwrap(),
                ),
            ];
            assert!(check_media_type(&HeaderMap::from_iter(packed)).is_err());
        }
    }
}
