//! Short-lived tokens in exchange for a key, and the public keys that they are verified with.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::header;
use axum::response::{IntoResponse, Response};
use contract::Failure;
use contract::auth::TokenKey;
use contract::proof::Proven;
use serde::Serialize;
use settings::ByteSize;
use utoipa::ToSchema;

use crate::auth;
use crate::crowd::Network;
use crate::edge::Edge;
use crate::json::{self, Fields};
use crate::openapi::submission::TokenWish;
use crate::problem;
use crate::room::Class;
use crate::signed_body;

/// Where a token is asked for.
pub(crate) const PATH: &str = "/v1/token";
/// How large that body may be: it is read before auth has vouched for anybody, and before the request takes a place.
pub(crate) const MAX_BODY: ByteSize = ByteSize::of(1024);
/// Whose request it is, as long as auth has not said so.
const NOBODY: &str = "";
/// What the body may hold.
pub(crate) const LIFETIME: &str = "lifetime_seconds";
/// Five minutes: auth publishes a key an hour before it signs.
const KEYS_CACHE_CONTROL: &str = "public, max-age=300";

/// OAuth's names (RFC 6749, 5.1): clients know them.
#[derive(Debug, Serialize, ToSchema)]
struct Token<'a> {
    access_token: &'a str,
    /// `Bearer`.
    token_type: &'static str,
    /// Seconds.
    expires_in: u32,
}

/// `POST /v1/token`. It authenticates itself: the proof goes to auth with the wish for a token, so that the gateway cannot
/// have one made for a key that was not shown.
#[utoipa::path(
    post,
    path = "/v1/token",
    operation_id = "issueToken",
    summary = "Get a token for a key",
    description = "A token stands for the key until it expires or the key is revoked. The body may be left out.",
    request_body = TokenWish,
    responses(
        (status = 200, description = "The token.", body = Token, headers(("Cache-Control" = String, description = "`no-store`."))),
        (status = 400, description = "invalid_argument"),
        (status = 403, description = "permission_denied"),
        (status = 504, description = "deadline_exceeded")
    )
)]
pub(crate) async fn issue(State(edge): State<Arc<Edge>>, request: Request) -> Response {
    let from = request.extensions().get::<Network>().copied();
    let read = async {
        let Proven { proof, body } = auth::proven(&request)?;
        let request = signed_body::check(&edge, NOBODY, request, body).await?;
        let body = json::read_at_most(request.into_body(), MAX_BODY, &edge.http).await?;
        let share = edge.stranger(Class::Read, from)?;
        Ok((proof, lifetime(&body)?, share))
    };
    let issued = match read.await {
        Ok((proof, lifetime, _share)) => edge.platform.issue_token(proof, lifetime).await,
        Err(failure) => Err(failure),
    };
    let issued = match issued {
        Ok(issued) => issued,
        Err(failure) => return auth::refuse(failure),
    };
    let mut response = problem::json(&Token {
        access_token: &issued.token,
        token_type: "Bearer",
        expires_in: issued.lifetime_seconds,
    });
    let no_store = header::HeaderValue::from_static("no-store");
    response
        .headers_mut()
        .insert(header::CACHE_CONTROL, no_store);
    auth::write_limit(response.headers_mut(), issued.rate_limit);
    response
}

/// How long the token is to live, from a body that may be empty; 0 where it does not say.
fn lifetime(body: &[u8]) -> Result<u32, Failure> {
    if body.is_empty() {
        return Ok(0);
    }
    lifetime_of(Fields::parse(body)?)
}

/// The same, from a body that is there.
pub(crate) fn lifetime_of(mut fields: Fields) -> Result<u32, Failure> {
    let lifetime = fields.small(LIFETIME)?;
    fields.nothing_else(&[LIFETIME])?;
    // To auth 0 is the longest that there is, which nobody means who asks for none.
    if lifetime == Some(0) {
        let text = format!("{LIFETIME} must be 60 or more; left out, it is the longest");
        return Err(Failure::invalid(LIFETIME, text));
    }
    Ok(lifetime.unwrap_or(0))
}

#[derive(Debug, Serialize, ToSchema)]
struct KeySet {
    keys: Vec<Jwk>,
}

/// An Ed25519 public key (RFC 8037).
#[derive(Debug, Serialize, ToSchema)]
struct Jwk {
    kty: &'static str,
    crv: &'static str,
    alg: &'static str,
    r#use: &'static str,
    kid: String,
    x: String,
}

/// `GET /.well-known/jwks.json`: for everyone.
#[utoipa::path(
    get,
    path = "/.well-known/jwks.json",
    operation_id = "tokenKeys",
    summary = "The public keys of tokens",
    description = "A JWK set (RFC 7517), to be kept for five minutes.",
    responses((status = 200, description = "The keys.", body = KeySet, headers(("Cache-Control" = String))))
)]
pub(crate) async fn keys(State(edge): State<Arc<Edge>>) -> Response {
    let keys = match edge.platform.token_keys().await {
        Ok(keys) => keys,
        Err(failure) => return problem::Refused(failure).into_response(),
    };
    let jwk = |TokenKey { kid, x, .. }| Jwk {
        kty: "OKP",
        crv: "Ed25519",
        alg: "EdDSA",
        r#use: "sig",
        kid,
        x,
    };
    let keys = keys.into_iter().map(jwk).collect();
    let kept = [(header::CACHE_CONTROL, KEYS_CACHE_CONTROL)];
    (kept, problem::json(&KeySet { keys })).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lifetime_may_be_left_out_and_nothing_else_may_be_asked() {
        assert_eq!(lifetime(b"").unwrap(), 0);
        assert_eq!(lifetime(b"{}").unwrap(), 0);
        assert_eq!(lifetime(br#"{"lifetime_seconds": 60}"#).unwrap(), 60);
        for bad in [
            &br#"{"lifetime_seconds": -1}"#[..],
            br#"{"lifetime_seconds": 0}"#,
            br#"{"scope": "x"}"#,
            b"x",
        ] {
            lifetime(bad).unwrap_err();
        }
    }
}
