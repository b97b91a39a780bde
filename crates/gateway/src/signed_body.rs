//! Whether a body is the one that was signed: read whole, hashed as it was received, and passed on as it is.
//!
//! Over HTTP that is the body after transfer coding, over gRPC the request's frames (five bytes of prefix and the message,
//! compressed if the caller compressed it): in both cases what a caller hands to the connection. A body that is signed is
//! held in memory, so it is bounded like every other.

use axum::body::Body;
use axum::extract::Request;
use contract::proof::SignedBody;
use contract::{ErrorCode, Failure};
use settings::ByteSize;

use crate::edge::Edge;
use crate::grpc::PREFIX_BYTES;
use crate::json;
use crate::openai;
use crate::problem::is_grpc;
use crate::settings::HttpSettings;
use crate::tokens;

/// The request of a tenant again, its body read and found to be the one that was signed; untouched where none was.
///
/// # Errors
/// A body that is another, is over the limit, or does not arrive.
pub(crate) async fn check(
    edge: &Edge,
    tenant: &str,
    request: Request,
    signed: Option<SignedBody>,
) -> Result<Request, Failure> {
    let Some(signed) = signed else {
        return Ok(request);
    };
    let mut request = request;
    let mut limit = edge.http.max_body;
    if request.uri().path() == tokens::PATH {
        limit = tokens::MAX_BODY;
    } else if request.uri().path() == openai::EDITS {
        // For as long as the pictures are in memory: whoever reads them on finds it.
        let upload = edge.open_upload(tenant)?;
        request.extensions_mut().insert(upload);
        limit = edge.http.max_upload;
    }
    compare(&edge.http, request, limit, signed).await
}

async fn compare(
    http: &HttpSettings,
    request: Request,
    limit: ByteSize,
    signed: SignedBody,
) -> Result<Request, Failure> {
    let (head, body) = request.into_parts();
    let prefix = if is_grpc(&head.headers) {
        PREFIX_BYTES
    } else {
        0
    };
    let bytes = json::read_at_most(body, limit.plus(prefix), http).await?;
    if !signed.is(&bytes) {
        let message = "the body is not the one whose SHA-256 X-Content-SHA256 names; the digest is that of the bytes as \
                       they are sent, over gRPC with the five bytes in front of the message";
        return Err(Failure {
            field: Some("X-Content-SHA256".to_owned()),
            ..Failure::new(ErrorCode::Unauthenticated, message)
        });
    }
    Ok(Request::from_parts(head, Body::from(bytes)))
}

#[cfg(test)]
mod tests {
    use aws_lc_rs::digest;

    use super::*;

    fn http(max_body: &str) -> HttpSettings {
        let max_body = [("http.max_body", max_body.to_owned())];
        settings::load::<crate::Settings>(None, &max_body)
            .unwrap()
            .http
    }

    fn digest_of(bytes: &[u8]) -> Option<SignedBody> {
        SignedBody::new(&hex::encode(digest::digest(&digest::SHA256, bytes)))
    }

    async fn checked(
        kind: &str,
        body: &'static str,
        signed: Option<SignedBody>,
    ) -> Result<(), Failure> {
        let request = axum::http::Request::post("/").header("content-type", kind);
        let request = request.body(Body::from(body)).unwrap();
        let http = http("8B");
        let request = match signed {
            Some(signed) => compare(&http, request, http.max_body, signed).await?,
            None => request,
        };
        let bytes = axum::body::to_bytes(request.into_body(), 100)
            .await
            .unwrap();
        assert_eq!(bytes, body);
        Ok(())
    }

    #[tokio::test]
    async fn only_the_body_that_was_signed_goes_on() {
        checked("x", "12345678", digest_of(b"12345678"))
            .await
            .unwrap();
        checked("x", "", digest_of(b"")).await.unwrap();
        checked("x", "anything at all", None).await.unwrap();
        for (body, signed) in [
            ("12345678", digest_of(b"12345679")),
            ("", digest_of(b"1")),
            ("1", digest_of(b"")),
            ("1", SignedBody::new("no digest")),
        ] {
            let refused = checked("x", body, signed).await.unwrap_err();
            assert_eq!(refused.code, ErrorCode::Unauthenticated);
            assert_eq!(refused.field.as_deref(), Some("X-Content-SHA256"));
        }
    }

    #[tokio::test]
    async fn a_signed_body_over_the_limit_is_refused_whoever_signed_it() {
        let long = "123456789";
        let refused = checked("x", long, digest_of(long.as_bytes()))
            .await
            .unwrap_err();
        assert_eq!(refused.code, ErrorCode::PayloadTooLarge);
        // Over gRPC the limit is the message's.
        let framed = "1234567890123";
        let kind = "application/grpc";
        checked(kind, framed, digest_of(framed.as_bytes()))
            .await
            .unwrap();
    }
}
