//! Whether what is said of a caller is auth's word: by the keys that auth publishes. Nothing here waits for anybody.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, RwLock};

use aws_lc_rs::digest;
use contract::assertion::{AUDIENCE, Claims, MAX_BYTES};
use contract::auth::{Caller, TokenKey};
use jsonwebtoken::{Algorithm, DecodingKey, Validation};

use super::seen::{Digest, Known, Seen};

/// Keys that are held: auth publishes three at most.
const MOST_KEYS: usize = 16;

/// Why an assertion is not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum Problem {
    #[error("is missing")]
    Missing,
    #[error("is longer than any of auth's")]
    TooLong,
    #[error("cannot be read")]
    Unreadable,
    #[error("is signed by a key that auth does not publish")]
    UnknownKey,
    #[error("is not signed by auth for the services behind the gateway")]
    NotAuths,
    #[error("has expired")]
    Expired,
}

impl Problem {
    /// For metrics.
    pub(super) fn word(self) -> &'static str {
        match self {
            Self::Missing => "missing",
            Self::TooLong | Self::Unreadable => "unreadable",
            Self::UnknownKey => "unknown_key",
            Self::NotAuths => "not_auths",
            Self::Expired => "expired",
        }
    }
}

/// The published keys, and what they have verified.
pub(super) struct Verifier {
    keys: RwLock<HashMap<String, DecodingKey>>,
    seen: Mutex<Seen>,
    expected: Validation,
}

impl Verifier {
    /// Without a key.
    pub(super) fn new() -> Self {
        let mut expected = Validation::new(Algorithm::EdDSA);
        expected.set_audience(&[AUDIENCE]);
        expected.set_required_spec_claims(&["exp", "aud", "sub"]);
        // It is compared below, by the clock that is gone by here.
        expected.validate_exp = false;
        Self {
            keys: RwLock::default(),
            seen: Mutex::default(),
            expected,
        }
    }

    /// Holds these keys and no others: what those verified that are gone counts no more. Without a single one that can be read, nothing
    /// changes, and the answer is no.
    pub(super) fn learn(&self, published: &[TokenKey]) -> bool {
        let read = |key: &TokenKey| {
            let read = DecodingKey::from_ed_components(&key.x).ok()?;
            Some((key.kid.clone(), read))
        };
        let published = published.iter().filter_map(read).take(MOST_KEYS);
        let published: HashMap<_, _> = published.collect();
        if published.is_empty() {
            return false;
        }
        let mut keys = self.keys.write().unwrap_or_else(|e| e.into_inner());
        if keys.keys().any(|kid| !published.contains_key(kid)) {
            self.seen().clear();
        }
        *keys = published;
        true
    }

    /// Of whom an assertion is, if it is auth's and good at `now`, Unix seconds.
    pub(super) fn verify(&self, assertion: &str, now: i64) -> Result<Arc<Caller>, Problem> {
        match assertion.len() {
            0 => return Err(Problem::Missing),
            MAX_BYTES.. => return Err(Problem::TooLong),
            _ => {}
        }
        let digest = digest_of(assertion);
        let seen = self.seen().get(&digest);
        let known = match seen {
            Some(known) => known,
            None => self.check(digest, assertion)?,
        };
        match now < known.ends {
            true => Ok(known.caller),
            false => Err(Problem::Expired),
        }
    }

    fn check(&self, digest: Digest, assertion: &str) -> Result<Known, Problem> {
        let header = jsonwebtoken::decode_header(assertion).map_err(|_| Problem::Unreadable)?;
        let kid = header.kid.as_deref().ok_or(Problem::Unreadable)?;
        // Until it is noted: a key that goes meanwhile has verified nothing then.
        let keys = self.keys.read().unwrap_or_else(|e| e.into_inner());
        let key = keys.get(kid).ok_or(Problem::UnknownKey)?;
        let claims = jsonwebtoken::decode::<Claims>(assertion, key, &self.expected);
        let claims = claims.map_err(|_| Problem::NotAuths)?.claims;
        let ends = claims.ends();
        let caller = claims.caller().ok_or(Problem::Unreadable)?;
        let known = Known {
            caller: Arc::new(caller),
            ends,
            bytes: assertion.len(),
        };
        self.seen().put(digest, known.clone());
        Ok(known)
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        // Every change leaves it whole.
        self.seen.lock().unwrap_or_else(|e| e.into_inner())
    }
}

fn digest_of(assertion: &str) -> Digest {
    let digest = digest::digest(&digest::SHA256, assertion.as_bytes());
    let mut bytes = Digest::default();
    bytes.copy_from_slice(digest.as_ref());
    bytes
}
