//! Authentication: proof → key → policy → rate limit. It reads only the followed copies of the buckets, so it needs no
//! round trip to the broker and goes on while the broker is down; but for signature v2, whose nonces all instances share.

use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use contract::auth::Caller;
use contract::{AppKey, TenantId};
use jiff::Timestamp;
use messaging::Snapshot;
use secrecy::SecretString;
use tokio::sync::watch;
use tokio::time::{Instant, timeout_at};

use crate::envelope::{Envelope, OpenEnvelope};
use crate::error::AuthError;
use crate::key_encryption::{KeyEncryption, KeyEncryptionError};
use crate::limit::{Allowance, Ask};
use crate::limiter::Limiter;
use crate::policy::{self, PolicyRecord};
use crate::proof::{self, Proof};
use crate::receipt::Receipt;
use crate::replay::{Nonces, Seen};
use crate::store::KeyRecord;
use crate::tokens::Tokens;
use crate::webhook::Message;

/// How long what auth itself depends on may take for one request, all of it together. Less than the gateway waits: what hangs behind
/// auth must be answered by auth, or it would count as a failure of auth's and close it off for everyone.
const PATIENCE: Duration = Duration::from_millis(if cfg!(test) { 300 } else { 3000 });

/// Gives the present. A plain function, so that tests can hold time still.
pub(crate) type Clock = fn() -> Timestamp;

/// Says who a caller is and what it may do. One for the whole service.
pub(crate) struct Authenticator {
    keys: watch::Receiver<Snapshot<KeyRecord>>,
    policies: watch::Receiver<Snapshot<PolicyRecord>>,
    key_encryption: Arc<dyn KeyEncryption>,
    /// A key that nobody holds: unknown callers are checked against it, so that they wait as long as known ones.
    decoy: KeyRecord,
    limiter: Arc<Limiter>,
    nonces: Nonces,
    tokens: Arc<Tokens>,
    clock: Clock,
}

/// A caller that was let in.
#[derive(Debug)]
pub(crate) struct Admitted {
    pub(crate) key: KeyRecord,
    /// The prefix that its policy is for, without the dash.
    pub(crate) policy_name: String,
    pub(crate) policy: PolicyRecord,
    pub(crate) allowance: Allowance,
}

impl Authenticator {
    pub(crate) async fn new(
        keys: watch::Receiver<Snapshot<KeyRecord>>,
        policies: watch::Receiver<Snapshot<PolicyRecord>>,
        key_encryption: Arc<dyn KeyEncryption>,
        limiter: Arc<Limiter>,
        nonces: Nonces,
        tokens: Arc<Tokens>,
        clock: Clock,
    ) -> Result<Self, KeyEncryptionError> {
        Ok(Self {
            decoy: decoy(&*key_encryption).await?,
            keys,
            policies,
            key_encryption,
            limiter,
            nonces,
            tokens,
            clock,
        })
    }

    /// Verifies a proof and charges one request to the key's rate limit. A caller that is not proven is charged nothing:
    /// otherwise anyone could use up a key's limit by naming it.
    pub(crate) async fn authenticate(&self, proof: &Proof) -> Result<Admitted, AuthError> {
        self.authenticate_as_of(proof, &Receipt::now(self.clock))
            .await
    }

    /// The same for a proof that the platform took some time ago.
    pub(crate) async fn authenticate_as_of(
        &self,
        proof: &Proof,
        receipt: &Receipt,
    ) -> Result<Admitted, AuthError> {
        receipt.check((self.clock)())?;
        let deadline = Instant::now() + PATIENCE;
        let key = self.prove(proof, receipt.at.as_second(), deadline).await?;
        // Before anything is charged: nobody's key pays for what goes by another's name.
        if receipt.tenant.as_ref().is_some_and(|of| *of != key.tenant) {
            return Err(AuthError::NotOfTenant);
        }
        let policies = self.policies.borrow().clone();
        let Some((name, policy)) = policy::choose(&policies, &key.app_key) else {
            return Err(AuthError::NoPolicy {
                app_key: key.app_key,
            });
        };
        // A replay charges nothing to the key that it was overheard from, …
        let mut seen = Seen::Never;
        if let Proof::SignatureV2(signature) = proof {
            let (app_key, nonce) = (&key.app_key, &signature.nonce);
            let used = self.nonces.refuse_used(app_key, nonce, &receipt.claim);
            seen = within(deadline, REPLAYS, used).await?;
        }
        let rate = policy.rate();
        let now = self.limiter.now();
        let charged = if receipt.charged {
            Ok(Allowance {
                remaining: 0,
                full_in: Duration::ZERO,
            })
        } else {
            self.limiter.charge(&key.app_key, now, rate, Ask::ONE)
        };
        let admitted = match charged {
            Ok(allowance) => Ok(Admitted {
                key,
                policy_name: name.to_owned(),
                policy: policy.clone(),
                allowance,
            }),
            Err(over) => Err(AuthError::RateLimited {
                app_key: key.app_key,
                rate,
                retry_after: over.retry_after,
            }),
        }?;
        // … and a key over its limit fills no cache that others need, nor does a tenant that must wait for minutes: it is charged for asking.
        if let Proof::SignatureV2(signature) = proof {
            let (key, nonce) = (&admitted.key, &signature.nonce);
            if seen == Seen::Never {
                self.nonces.admit(&key.tenant)?;
            }
            let taken = self.nonces.take(key, nonce, &receipt.claim);
            within(deadline, REPLAYS, taken).await?;
        }
        Ok(admitted)
    }

    /// Charges further requests of a caller that was let in, all or none.
    pub(crate) fn charge(
        &self,
        app_key: &AppKey,
        requests: NonZeroU32,
    ) -> Result<(PolicyRecord, Allowance), AuthError> {
        let policies = self.policies.borrow().clone();
        let Some((_, policy)) = policy::choose(&policies, app_key) else {
            let app_key = app_key.clone();
            return Err(AuthError::NoPolicy { app_key });
        };
        let rate = policy.rate();
        // One was charged when the caller was let in.
        if requests >= rate.burst {
            return Err(AuthError::Invalid {
                field: "tasks",
                problem: format!(
                    "so many are never let through at once for the key {app_key}: send at most {} together",
                    rate.burst
                ),
            });
        }
        let ask = Ask { requests, entry: 1 };
        match self.limiter.charge(app_key, self.limiter.now(), rate, ask) {
            Ok(allowance) => Ok((policy.clone(), allowance)),
            Err(over) => Err(AuthError::RateLimited {
                app_key: app_key.clone(),
                rate,
                retry_after: over.retry_after,
            }),
        }
    }

    /// `now` is in Unix seconds: when the proof came.
    async fn prove(
        &self,
        proof: &Proof,
        now: i64,
        deadline: Instant,
    ) -> Result<KeyRecord, AuthError> {
        if let Proof::Token(token) = proof {
            return self.prove_token(token, now);
        }
        let sent = match proof {
            Proof::SignatureV1(signature) => proof::check_clock(&signature.timestamp, now)?,
            Proof::SignatureV2(signature) => signature.check(now)?,
            Proof::Bearer(_) | Proof::Token(_) => now,
        };
        let keys = self.keys.borrow().clone();
        let known = proof
            .claims()
            .and_then(|claimed| keys.get(claimed).map(|record| (claimed, record)))
            // A record copied to another name in the bucket is not that name's.
            .filter(|(claimed, record)| record.app_key.as_str() == *claimed)
            .map(|(_, record)| record);
        let record = known.unwrap_or(&self.decoy);
        let holds = within(deadline, KEYS, self.holds(proof, record, sent)).await?;
        let good = known.is_some() && record.revoked_at.is_none();
        if !(holds & good) {
            return Err(AuthError::NotValid {
                header: proof.header(),
            });
        }
        // Said only to one that has shown that the key is its own.
        if matches!(proof, Proof::SignatureV1(_)) && !record.allow_signature_v1 {
            return Err(AuthError::SignatureV1Off {
                app_key: record.app_key.clone(),
            });
        }
        Ok(record.clone())
    }

    /// The key that a token stands for. Which of the ways it is not good is not told.
    fn prove_token(&self, token: &SecretString, now: i64) -> Result<KeyRecord, AuthError> {
        let keys = self.keys.borrow().clone();
        let claims = self.tokens.verify(token, now);
        let record = claims.and_then(|claims| {
            let record = keys.get(claims.sub.as_str())?;
            let same = record.app_key == claims.sub && record.tenant == claims.tenant;
            // Revoking a key ends its tokens.
            (same && record.revoked_at.is_none()).then(|| record.clone())
        });
        record.ok_or(AuthError::NotValid {
            header: "Authorization",
        })
    }

    /// Whether the proof is the record's; `sent` is the time that it names.
    async fn holds(&self, proof: &Proof, record: &KeyRecord, sent: i64) -> Result<bool, AuthError> {
        let damaged = |source| AuthError::Envelope {
            app_key: record.app_key.clone(),
            operation: "opened",
            source,
        };
        let open = self.open(record).await.map_err(damaged)?;
        Ok(match proof {
            Proof::SignatureV1(signature) => {
                let secret = open.secret().map_err(|e| damaged(e.into()))?;
                signature.is_made_with(&secret)
            }
            Proof::SignatureV2(signature) => {
                let secret = open.secret().map_err(|e| damaged(e.into()))?;
                signature.is_made_with(&secret, sent)
            }
            Proof::Bearer(bearer) => open.is_bearer(bearer),
            // Opens no envelope: see `prove_token`.
            Proof::Token(_) => false,
        })
    }

    async fn open<'a>(
        &self,
        record: &'a KeyRecord,
    ) -> Result<OpenEnvelope<'a>, KeyEncryptionError> {
        let (app_key, tenant) = (&record.app_key, &record.tenant);
        let envelope = &record.envelope;
        envelope.open(&*self.key_encryption, app_key, tenant).await
    }

    /// Signs what one of a tenant's keys has asked to be told. A key that was revoked meanwhile signs too: its tasks still end, and
    /// whoever waits for that must be able to tell our word from another's.
    pub(crate) async fn sign_webhook(
        &self,
        app_key: &AppKey,
        tenant: &TenantId,
        message: &Message,
    ) -> Result<String, AuthError> {
        message.check()?;
        let keys = self.keys.borrow().clone();
        let record = keys.get(app_key.as_str());
        let own = |key: &&KeyRecord| key.app_key == *app_key && key.tenant == *tenant;
        let record = record.filter(own).ok_or_else(|| AuthError::NoSuchKey {
            app_key: app_key.clone(),
        })?;
        let open = async {
            let open = self.open(record).await;
            open.map_err(|source| AuthError::Envelope {
                app_key: app_key.clone(),
                operation: "opened",
                source,
            })
        };
        let open = within(Instant::now() + PATIENCE, KEYS, open).await?;
        Ok(message.sign(open.webhook_secret().expose()))
    }

    /// What one of a tenant's keys may do, if it is still good. Nothing is proven or charged.
    pub(crate) fn vouch(&self, app_key: AppKey, tenant: TenantId) -> Result<Caller, AuthError> {
        let keys = self.keys.borrow().clone();
        let own = |key: &&KeyRecord| key.app_key == app_key && key.tenant == tenant;
        let key = keys.get(app_key.as_str()).filter(own);
        if key.is_none_or(|key| key.revoked_at.is_some()) {
            return Err(AuthError::NoSuchKey { app_key });
        }
        let policies = self.policies.borrow().clone();
        let Some((name, policy)) = policy::choose(&policies, &app_key) else {
            return Err(AuthError::NoPolicy { app_key });
        };
        Ok(Caller {
            policy: Some(policy::encode(name, policy)),
            tenant: tenant.into(),
            app_key: app_key.into(),
            assertion: String::new(),
        })
    }

    /// Lets go of what idle keys no longer need. Call it now and then.
    pub(crate) fn forget_idle(&self) {
        self.limiter.forget_idle(self.limiter.now());
    }

    /// Looks at how full the cache of nonces is. Call it now and then.
    pub(crate) async fn look_at_nonces(&self) {
        self.nonces.look().await;
    }

    /// How many keys are accepted at present.
    pub(crate) fn active_keys(&self) -> usize {
        let keys = self.keys.borrow();
        keys.values().filter(|k| k.revoked_at.is_none()).count()
    }
}

const KEYS: &str = "keys cannot be opened";
const REPLAYS: &str = "signature v2 cannot be checked for replays";

/// What a dependency says until then.
async fn within<T>(
    deadline: Instant,
    what: &'static str,
    answer: impl Future<Output = Result<T, AuthError>>,
) -> Result<T, AuthError> {
    let answer = timeout_at(deadline, answer).await;
    answer.unwrap_or(Err(AuthError::Slow { what }))
}

async fn decoy(key_encryption: &dyn KeyEncryption) -> Result<KeyRecord, KeyEncryptionError> {
    // As long as real ones, so that no step on the way is shorter.
    let secret = "0".repeat(64).into();
    let (app_key, tenant) = ("nobody-0000000000", "nobody");
    let app_key = app_key.parse().expect("a literal of the right letters");
    let tenant = tenant.parse().expect("a literal of the right letters");
    Ok(KeyRecord {
        envelope: Envelope::seal(key_encryption, &app_key, &tenant, &secret, &secret).await?,
        app_key,
        tenant,
        name: String::new(),
        allow_signature_v1: true,
        created_at: Timestamp::UNIX_EPOCH,
        revoked_at: Some(Timestamp::UNIX_EPOCH),
    })
}

#[cfg(test)]
#[path = "authenticate_tests.rs"]
mod tests;
