//! Tokens: for a key that was shown once, a short-lived JWT (RFC 7519) that can be handed to what should not have the key.
//!
//! Signed with Ed25519 (RFC 8037). A token says who it is for; what that one may do is looked up each time, so a revoked key
//! ends its tokens at once and a changed policy holds for them too.

mod assertions;
mod ring;
mod rotate;

use std::sync::Arc;
use std::time::Duration;

use contract::{AppKey, TenantId};
use jsonwebtoken::{Algorithm, Header, Validation};
use secrecy::{ExposeSecret as _, SecretString};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use crate::authenticate::Clock;
use crate::error::AuthError;
use crate::sealed::Key;

pub(crate) use assertions::Assertions;
pub(crate) use ring::{PublicKey, Ring};
pub(crate) use rotate::{LOOK, PUBLISHED_BEFORE, Schedule, start};

use ring::SigningKey;

/// Longer than any token that is given out.
const MAX_TOKEN_BYTES: usize = 1024;
/// How far the clocks of two instances may differ, seconds.
const LEEWAY_SECONDS: i64 = 5;
/// The shortest life that can be asked for.
pub(crate) const SHORTEST: Duration = Duration::from_secs(60);

/// What a token says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Claims {
    pub(crate) iss: String,
    pub(crate) aud: String,
    /// The app key that it stands for.
    pub(crate) sub: AppKey,
    pub(crate) tenant: TenantId,
    pub(crate) iat: i64,
    pub(crate) nbf: i64,
    pub(crate) exp: i64,
    /// Random, so that no two tokens are the same.
    pub(crate) jti: String,
}

/// A token just made.
#[derive(Debug)]
pub(crate) struct Issued {
    pub(crate) token: SecretString,
    pub(crate) lifetime: Duration,
}

/// Gives tokens out and takes them.
pub(crate) struct Tokens {
    pub(crate) ring: watch::Receiver<Arc<Ring>>,
    pub(crate) issuer: String,
    pub(crate) audience: String,
    pub(crate) lifetime: Duration,
    pub(crate) clock: Clock,
}

impl Tokens {
    /// Makes a token for a proven key; without `lifetime` it lives as long as any may.
    pub(crate) fn issue(
        &self,
        app_key: &AppKey,
        tenant: &TenantId,
        lifetime: Option<Duration>,
    ) -> Result<Issued, AuthError> {
        let lifetime = lifetime.unwrap_or(self.lifetime);
        if !(SHORTEST..=self.lifetime).contains(&lifetime) {
            return Err(AuthError::Lifetime {
                most: self.lifetime,
            });
        }
        let now = (self.clock)();
        let ring = self.ring.borrow().clone();
        let key = ring.signer(now).ok_or(AuthError::NoSigningKey)?;
        let random = Key::random().map_err(|_| AuthError::NoRandomness)?;
        let now = now.as_second();
        let claims = Claims {
            iss: self.issuer.clone(),
            aud: self.audience.clone(),
            sub: app_key.clone(),
            tenant: tenant.clone(),
            iat: now,
            nbf: now,
            exp: now + i64::try_from(lifetime.as_secs()).unwrap_or(0),
            jti: hex::encode(&random.expose()[..16]),
        };
        Ok(Issued {
            token: sign(key, &claims)?.into(),
            lifetime,
        })
    }

    /// What a token says, if it is one of ours and was good at `now` (Unix seconds). Why one is not is nobody's business but the log's.
    pub(crate) fn verify(&self, token: &SecretString, now: i64) -> Option<Claims> {
        let ring = self.ring.borrow().clone();
        match verify(
            &ring,
            token.expose_secret(),
            &self.issuer,
            &self.audience,
            now,
        ) {
            Ok(claims) => Some(claims),
            Err(problem) => {
                tracing::debug!(problem, "a token was refused");
                None
            }
        }
    }
}

/// A JWT of these claims.
fn sign(key: &SigningKey, claims: &impl Serialize) -> Result<String, AuthError> {
    let header = Header {
        kid: Some(key.kid().to_owned()),
        ..Header::new(Algorithm::EdDSA)
    };
    let token = jsonwebtoken::encode(&header, claims, key.signing());
    token.map_err(|_| AuthError::NoSigningKey)
}

/// What a JWT claims, if a key of the ring has signed it and it is what is `expected`. The algorithm is ours, whatever the token says: a
/// key of the ring verifies Ed25519 and nothing else.
fn read<C: DeserializeOwned>(
    ring: &Ring,
    token: &str,
    expected: &Validation,
) -> Result<C, &'static str> {
    let header = jsonwebtoken::decode_header(token).map_err(|_| "its header cannot be read")?;
    let kid = header.kid.as_deref().ok_or("it names no key")?;
    let key = ring
        .verifier(kid)
        .ok_or("it names a key that is not held")?;
    let read = jsonwebtoken::decode::<C>(token, key, expected);
    let read = read.map_err(|_| "signature, issuer, audience or claims are not ours")?;
    Ok(read.claims)
}

/// Whether a JWT names a key that may be one of those which are held and could not be opened here: then it cannot be told here whether it is ours.
fn may_be_by_unopened(ring: &Ring, token: &str) -> bool {
    if ring.unopened.is_empty() {
        return false;
    }
    let header = jsonwebtoken::decode_header(token);
    let kid = header.ok().and_then(|header| header.kid);
    kid.is_some_and(|kid| ring.verifier(&kid).is_none())
}

/// What every JWT of ours is checked for. Times are compared elsewhere, by the clock that everything here goes by.
fn checked_for(audience: &str, required: &[&str]) -> Validation {
    let mut expected = Validation::new(Algorithm::EdDSA);
    expected.set_audience(&[audience]);
    expected.set_required_spec_claims(required);
    expected.validate_exp = false;
    expected.validate_nbf = false;
    expected
}

/// Checks a token against the keys of the ring at `now` (Unix seconds).
fn verify(
    ring: &Ring,
    token: &str,
    issuer: &str,
    audience: &str,
    now: i64,
) -> Result<Claims, &'static str> {
    if token.len() > MAX_TOKEN_BYTES {
        return Err("it is longer than any of ours");
    }
    let mut expected = checked_for(audience, &["exp", "nbf", "iss", "aud", "sub"]);
    expected.set_issuer(&[issuer]);
    let claims: Claims = read(ring, token, &expected)?;
    if now >= claims.exp.saturating_add(LEEWAY_SECONDS) {
        return Err("it has expired");
    }
    if now < claims.nbf.saturating_sub(LEEWAY_SECONDS) {
        return Err("it is not good yet");
    }
    Ok(claims)
}

#[cfg(test)]
mod tests;
