//! What auth says of a caller to the services behind the gateway: a short-lived JWT that goes along with each call
//! (`docs/adr/0026-certificates-name-services.md`).
//!
//! It is signed with the keys of callers' tokens and is none: it is for another audience, and auth takes none for that.

use std::time::Duration;

use prost::Message as _;
use serde::{Deserialize, Serialize};

use crate::auth::{Caller, Policy};
use crate::id::{AppKey, TenantId};

/// The claim `aud`: services of one platform. No token may be for it.
pub const AUDIENCE: &str = "inkstone.internal";
/// How long one is good at most.
pub const LIFETIME: Duration = Duration::from_secs(300);
/// How far the clocks of two services may differ beside what is left of that, seconds.
pub const LEEWAY_SECONDS: i64 = 5;
/// Longer than any: a policy may name a hundred models.
pub const MAX_BYTES: usize = 64 * 1024;

/// What it says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claims {
    /// [`AUDIENCE`].
    pub aud: String,
    /// The app key that was proven.
    pub sub: AppKey,
    /// Whose it is.
    pub tenant: TenantId,
    /// What it may do: the message [`Policy`] in hexadecimal digits, so that nobody between auth and the orchestrator can give it more, and
    /// none of them needs to know its fields.
    pub policy: String,
    /// When it was made, Unix seconds.
    pub iat: i64,
    /// When it ends, likewise.
    pub exp: i64,
}

impl Claims {
    /// What is said of a caller at `now`, Unix seconds.
    pub fn new(
        app_key: AppKey,
        tenant: TenantId,
        policy: &Policy,
        now: i64,
        lifetime: Duration,
    ) -> Self {
        let lifetime = i64::try_from(lifetime.as_secs()).unwrap_or(i64::MAX);
        Self {
            aud: AUDIENCE.to_owned(),
            sub: app_key,
            tenant,
            policy: hex::encode(policy.encode_to_vec()),
            iat: now,
            exp: now.saturating_add(lifetime),
        }
    }

    /// From when on it is good for nothing, Unix seconds, whoever's clock that is by.
    pub fn ends(&self) -> i64 {
        self.exp.saturating_add(LEEWAY_SECONDS)
    }

    /// Of whom it is said; without an assertion, which is not part of itself. `None` if the policy cannot be read.
    pub fn caller(self) -> Option<Caller> {
        let policy = hex::decode(&self.policy).ok()?;
        Some(Caller {
            tenant: self.tenant.into(),
            app_key: self.sub.into(),
            policy: Some(Policy::decode(policy.as_slice()).ok()?),
            assertion: String::new(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claims(policy: &Policy) -> Claims {
        let (app_key, tenant) = ("prod-a".parse().unwrap(), "acme".parse().unwrap());
        Claims::new(app_key, tenant, policy, 1_700_000_000, LIFETIME)
    }

    #[test]
    fn a_caller_comes_out_as_it_went_in_with_all_that_it_may_do() {
        let policy = Policy {
            models: vec!["sdxl".to_owned(), "*".to_owned()],
            hd: true,
            tasks_waiting: Some(7),
            name: "prod".to_owned(),
            ..Policy::default()
        };
        let claims = claims(&policy);
        let text = serde_json::to_string(&claims).unwrap();
        let read: Claims = serde_json::from_str(&text).unwrap();
        assert_eq!(read, claims);
        let caller = read.caller().unwrap();
        assert_eq!(
            (caller.tenant.as_str(), caller.app_key.as_str()),
            ("acme", "prod-a")
        );
        assert_eq!(caller.policy, Some(policy));
        assert_eq!(caller.assertion, "");
    }

    #[test]
    fn it_ends_a_little_after_its_time_and_without_a_readable_policy_it_is_of_nobody() {
        let claims = claims(&Policy::default());
        assert_eq!(claims.ends(), 1_700_000_305);
        for broken in ["0", "no digits", "ff"] {
            let policy = broken.to_owned();
            let claims = Claims {
                policy,
                ..claims.clone()
            };
            assert_eq!(claims.caller(), None, "{broken}");
        }
    }

    #[test]
    fn the_longest_policy_fits() {
        let longest = Policy {
            models: vec!["m".repeat(crate::limits::MAX_MODEL_BYTES); 100],
            tier: "t".repeat(30),
            name: "n".repeat(40),
            ..Policy::default()
        };
        let text = serde_json::to_string(&claims(&longest)).unwrap();
        // Beside the claims in base64 there are a header and a signature.
        assert!(
            text.len().div_ceil(3) * 4 + 512 < MAX_BYTES,
            "{}",
            text.len()
        );
    }
}
