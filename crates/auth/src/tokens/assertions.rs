//! What auth says of callers that it has let in to the services which the gateway calls for them ([`contract::assertion`]). The gateway
//! asks with each request; the same is said again until half of its time is over, so that there is one signature for a key in minutes and
//! not one for a request.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};

use contract::assertion::{AUDIENCE, Claims, LIFETIME, MAX_BYTES};
use contract::auth::Policy;
use contract::{AppKey, TenantId};

use super::{Ring, Tokens};
use crate::error::AuthError;

/// What is kept of assertions, bytes: some twenty thousand keys. When there is more, all of it is signed anew.
const MOST_KEPT: usize = 16 << 20;
/// How long after its end one can be renewed, seconds: no request of a caller's goes on for longer.
const RENEWABLE_SECONDS: i64 = 24 * 3600;

/// Says who callers are.
pub(crate) struct Assertions {
    tokens: Arc<Tokens>,
    kept: Mutex<Kept>,
}

#[derive(Default)]
struct Kept {
    said: HashMap<AppKey, Said>,
    bytes: usize,
}

/// What was said of a key, and when it is said anew.
struct Said {
    tenant: TenantId,
    policy: Policy,
    kid: String,
    made: i64,
    until: i64,
    assertion: String,
}

impl Said {
    /// Whether it is still what there is to say, by a key that still signs. A clock that went back is no reason to trust it.
    fn holds(&self, tenant: &TenantId, policy: &Policy, kid: &str, now: i64) -> bool {
        let of_same = self.tenant == *tenant && self.policy == *policy;
        of_same && self.kid == kid && (self.made..self.until).contains(&now)
    }
}

impl Kept {
    fn keep(&mut self, app_key: AppKey, said: Said) {
        // The policy is about as large as what it makes of the assertion.
        let weight = |said: &Said| 2 * said.assertion.len();
        if self.bytes + weight(&said) > MOST_KEPT {
            self.said.clear();
            self.bytes = 0;
        }
        self.bytes += weight(&said);
        if let Some(before) = self.said.insert(app_key, said) {
            self.bytes -= weight(&before);
        }
    }
}

impl Assertions {
    /// Signed with the keys of callers' tokens.
    pub(crate) fn new(tokens: Arc<Tokens>) -> Self {
        Self {
            tokens,
            kept: Mutex::default(),
        }
    }

    /// What is said of a caller now.
    pub(crate) fn of(
        &self,
        app_key: &AppKey,
        tenant: &TenantId,
        policy: &Policy,
    ) -> Result<String, AuthError> {
        let now = (self.tokens.clock)();
        let ring = self.tokens.ring.borrow().clone();
        let key = ring.signer_in_any_case(now);
        let key = key.ok_or(AuthError::NoSigningKey)?;
        let now = now.as_second();
        let said = |kept: &Kept| {
            let said = kept.said.get(app_key)?;
            let holds = said.holds(tenant, policy, key.kid(), now);
            holds.then(|| said.assertion.clone())
        };
        if let Some(said) = said(&self.kept()) {
            return Ok(said);
        }
        // No longer than a key is published after it has signed.
        let lifetime = LIFETIME.min(self.tokens.lifetime);
        let claims = Claims::new(app_key.clone(), tenant.clone(), policy, now, lifetime);
        let assertion = super::sign(key, &claims)?;
        let said = Said {
            tenant: tenant.clone(),
            policy: policy.clone(),
            kid: key.kid().to_owned(),
            made: now,
            until: now.midpoint(claims.exp),
            assertion: assertion.clone(),
        };
        self.kept().keep(app_key.clone(), said);
        Ok(assertion)
    }

    /// Of whom an assertion is that auth has made, just now or some time ago. Why one is not taken is nobody's business but the log's.
    ///
    /// # Errors
    /// [`AuthError::NotValid`]; or [`AuthError::UnopenedKey`], which is not a word on whoever shows it.
    pub(crate) fn read(&self, assertion: &str) -> Result<Claims, AuthError> {
        let ring = self.tokens.ring.borrow().clone();
        self.check(&ring, assertion).map_err(|problem| {
            tracing::debug!(problem, "an assertion was refused");
            if assertion.len() <= MAX_BYTES && super::may_be_by_unopened(&ring, assertion) {
                return AuthError::UnopenedKey;
            }
            AuthError::NotValid {
                header: "Authorization",
            }
        })
    }

    fn check(&self, ring: &Ring, assertion: &str) -> Result<Claims, &'static str> {
        if assertion.len() > MAX_BYTES {
            return Err("it is longer than any of ours");
        }
        let expected = super::checked_for(AUDIENCE, &["exp", "aud", "sub"]);
        let claims: Claims = super::read(ring, assertion, &expected)?;
        let now = (self.tokens.clock)().as_second();
        match now.saturating_sub(RENEWABLE_SECONDS) < claims.ends() {
            true => Ok(claims),
            false => Err("it has ended too long ago"),
        }
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        // Every change leaves it whole.
        self.kept.lock().unwrap_or_else(|e| e.into_inner())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicI64, Ordering};
    use std::time::Duration;

    use jiff::Timestamp;
    use secrecy::ExposeSecret as _;
    use tokio::sync::watch;

    use super::*;
    use crate::key_encryption::LocalKey;
    use crate::sealed::Key;

    const BEGIN: i64 = 1_700_000_000;

    thread_local! {
        static NOW: AtomicI64 = const { AtomicI64::new(BEGIN) };
    }

    // Each test has a thread of its own, and so a clock.
    fn clock() -> Timestamp {
        NOW.with(|now| Timestamp::from_second(now.load(Ordering::SeqCst)).unwrap())
    }

    fn set(seconds: i64) {
        NOW.with(|now| now.store(BEGIN + seconds, Ordering::SeqCst));
    }

    fn key() -> LocalKey {
        LocalKey::new(&Key::random().unwrap())
    }

    async fn assertions() -> Assertions {
        set(0);
        Assertions::new(Arc::new(Tokens::for_test(&key(), clock).await))
    }

    fn of(assertions: &Assertions, policy: &Policy) -> String {
        let (app_key, tenant) = ("prod-a".parse().unwrap(), "acme".parse().unwrap());
        assertions.of(&app_key, &tenant, policy).unwrap()
    }

    #[tokio::test]
    async fn the_same_is_said_until_half_of_its_time_is_over_or_the_policy_changes() {
        let assertions = assertions().await;
        let (policy, other) = (
            Policy::default(),
            Policy {
                hd: true,
                ..Policy::default()
            },
        );
        let first = of(&assertions, &policy);
        set(149);
        assert_eq!(of(&assertions, &policy), first);
        let changed = of(&assertions, &other);
        assert_ne!(changed, first);
        let said = assertions.read(&changed).unwrap().caller().unwrap();
        assert_eq!(said.policy, Some(other.clone()));
        assert_eq!(
            (said.tenant.as_str(), said.app_key.as_str()),
            ("acme", "prod-a")
        );
        set(149 + 150);
        let later = of(&assertions, &other);
        assert_ne!(later, changed);
        assert_eq!(
            assertions.read(&later).unwrap().exp,
            BEGIN + 149 + 150 + 300
        );
        // A clock that was ahead and is right again.
        set(0);
        assert_eq!(
            assertions.read(&of(&assertions, &other)).unwrap().iat,
            BEGIN
        );
    }

    #[tokio::test]
    async fn a_new_signing_key_signs_at_once_and_what_the_old_one_has_signed_is_read_while_that_is_held()
     {
        let at = |seconds| Timestamp::from_second(BEGIN + seconds).unwrap();
        let old = Ring::of_one(&key(), at(0))
            .await
            .unwrap()
            .keys
            .remove(&1)
            .unwrap();
        let new = Ring::of_one(&key(), at(60))
            .await
            .unwrap()
            .keys
            .remove(&1)
            .unwrap();
        let (both, ring) = watch::channel(Arc::new(Ring {
            keys: [(1, old), (2, new.clone())].into(),
            unopened: Vec::new(),
        }));
        let tokens = Tokens {
            ring,
            ..Tokens::for_test(&key(), clock).await
        };
        let assertions = Assertions::new(Arc::new(tokens));
        let policy = Policy::default();
        // Behind whoever made the first key.
        set(-30);
        let early = of(&assertions, &policy);
        assertions.read(&early).unwrap();
        set(59);
        let before = of(&assertions, &policy);
        set(60);
        let after = of(&assertions, &policy);
        assert_ne!(before, after);
        let kid = |token: &str| jsonwebtoken::decode_header(token).unwrap().kid;
        assert_eq!(kid(&after).as_deref(), Some(new.kid()));
        assert_ne!(kid(&before), kid(&after));
        assertions.read(&before).unwrap();
        both.send_replace(Arc::new(Ring {
            keys: [(2, new)].into(),
            unopened: Vec::new(),
        }));
        assertions.read(&before).unwrap_err();
        assertions.read(&after).unwrap();
    }

    #[tokio::test]
    async fn an_assertion_is_no_token_and_a_token_is_no_assertion() {
        let assertions = assertions().await;
        let assertion = of(&assertions, &Policy::default());
        let tokens: &Tokens = &assertions.tokens;
        assert!(tokens.verify(&assertion.clone().into(), BEGIN).is_none());
        // Nor where somebody has set the audience of tokens so.
        let same = Tokens {
            ring: tokens.ring.clone(),
            issuer: tokens.issuer.clone(),
            audience: AUDIENCE.to_owned(),
            ..Tokens::for_test(&key(), clock).await
        };
        assert!(same.verify(&assertion.into(), BEGIN).is_none());
        let (app_key, tenant) = ("prod-a".parse().unwrap(), "acme".parse().unwrap());
        for tokens in [tokens, &same] {
            let token = tokens.issue(&app_key, &tenant, None).unwrap().token;
            assertions.read(token.expose_secret()).unwrap_err();
        }
    }

    #[tokio::test]
    async fn one_can_be_renewed_for_a_day_and_never_what_was_changed() {
        let assertions = assertions().await;
        let assertion = of(&assertions, &Policy::default());
        set(300 + 24 * 3600);
        assertions.read(&assertion).unwrap();
        set(300 + 24 * 3600 + 5);
        assertions.read(&assertion).unwrap_err();
        set(0);
        let (message, signature) = assertion.rsplit_once('.').unwrap();
        assertions.read(message).unwrap_err();
        let other = if signature.starts_with('A') { 'B' } else { 'A' };
        let changed = format!("{message}.{other}{}", &signature[1..]);
        assertions.read(&changed).unwrap_err();
        assertions.read(&"a".repeat(MAX_BYTES + 1)).unwrap_err();
        let stranger = self::assertions().await;
        assertions
            .read(&of(&stranger, &Policy::default()))
            .unwrap_err();
    }

    #[tokio::test]
    async fn what_a_signing_key_may_have_signed_that_cannot_be_opened_is_not_called_false() {
        let theirs = of(&assertions().await, &Policy::default());
        let ring = Ring {
            unopened: vec![2],
            ..Ring::of_one(&key(), Timestamp::UNIX_EPOCH).await.unwrap()
        };
        let tokens = Tokens {
            ring: watch::channel(Arc::new(ring)).1,
            ..Tokens::for_test(&key(), clock).await
        };
        let assertions = Assertions::new(Arc::new(tokens));
        let refused = |assertion: &str| assertions.read(assertion).unwrap_err();
        assert!(matches!(refused(&theirs), AuthError::UnopenedKey));
        // What can be told is told as ever.
        let own = of(&assertions, &Policy::default());
        assertions.read(&own).unwrap();
        let (message, _) = own.rsplit_once('.').unwrap();
        let unsigned = format!("{message}.AAAA");
        for bad in ["", "x.y.z", &unsigned, &"a".repeat(MAX_BYTES + 1)] {
            assert!(matches!(refused(bad), AuthError::NotValid { .. }), "{bad}");
        }
    }

    #[tokio::test]
    async fn what_is_kept_has_an_end_and_what_was_forgotten_is_said_anew() {
        let assertions = assertions().await;
        let tenant: TenantId = "acme".parse().unwrap();
        let large = Policy {
            models: vec!["m".repeat(100); 100],
            ..Policy::default()
        };
        for number in 0..700 {
            let app_key: AppKey = format!("prod-{number}").parse().unwrap();
            assertions.of(&app_key, &tenant, &large).unwrap();
            assert!(assertions.kept().bytes <= MOST_KEPT);
        }
        let kept = assertions.kept().said.len();
        assert!((1..700).contains(&kept), "{kept}");
        let weighed: usize = assertions
            .kept()
            .said
            .values()
            .map(|said| 2 * said.assertion.len())
            .sum();
        assert_eq!(weighed, assertions.kept().bytes);
    }

    #[tokio::test]
    async fn where_tokens_live_shorter_so_do_assertions() {
        let tokens = Tokens {
            lifetime: Duration::from_secs(60),
            ..Tokens::for_test(&key(), clock).await
        };
        let assertions = Assertions::new(Arc::new(tokens));
        let said = assertions
            .read(&of(&assertions, &Policy::default()))
            .unwrap();
        assert_eq!(said.exp - said.iat, 60);
    }
}
