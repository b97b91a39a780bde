//! What operators do with policies: look, set, remove. A change is in force wherever the bucket is followed, within milliseconds.

use std::time::Duration;

use messaging::{BrokerError, Bucket, Snapshot};
use tokio::sync::watch;

use crate::error::AuthError;
use crate::policy::{self, PolicyRecord};
use crate::store::KeyRecord;

/// How long an answer waits for our own copy of the bucket to show the change.
const SETTLE: Duration = Duration::from_secs(1);

/// A policy as it is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Stored {
    /// Without the dash.
    pub(crate) name: String,
    pub(crate) policy: PolicyRecord,
    pub(crate) revision: u64,
    /// Keys that are good and fall under it.
    pub(crate) keys: usize,
}

/// Every policy there is.
pub(crate) struct Policies {
    pub(crate) bucket: Bucket<PolicyRecord>,
    pub(crate) copy: watch::Receiver<Snapshot<PolicyRecord>>,
    pub(crate) keys: watch::Receiver<Snapshot<KeyRecord>>,
}

fn store(operation: &'static str) -> impl FnOnce(BrokerError) -> AuthError {
    move |source| AuthError::Store { operation, source }
}

impl Policies {
    /// All of them, in the order of their names, as they are stored now.
    pub(crate) async fn list(&self) -> Result<Vec<Stored>, AuthError> {
        let names: Vec<String> = self.copy.borrow().keys().cloned().collect();
        let mut all = Vec::with_capacity(names.len());
        for name in names {
            let read = self.bucket.get(&name).await;
            if let Some(entry) = read.map_err(store("read the policies"))? {
                all.push(Stored {
                    keys: self.used_by(&name),
                    policy: entry.value,
                    revision: entry.revision,
                    name,
                });
            }
        }
        Ok(all)
    }

    /// Puts a policy in the place of the one that was read at `revision`; 0 where there was none.
    pub(crate) async fn set(
        &self,
        prefix: &str,
        policy: PolicyRecord,
        revision: u64,
    ) -> Result<Stored, AuthError> {
        let name = policy::name_of(prefix)?;
        let written = match revision {
            0 => self.bucket.create(name, &policy).await,
            revision => self.bucket.update(name, &policy, revision).await,
        };
        let revision = written.map_err(|error| match error {
            BrokerError::Conflict { .. } => AuthError::PolicyChanged {
                prefix: prefix.to_owned(),
            },
            error => store("store the policy")(error),
        })?;
        tracing::info!(prefix, ?policy, "policy set");
        self.settle(name, |shown| shown == Some(&policy)).await;
        Ok(Stored {
            name: name.to_owned(),
            keys: self.used_by(name),
            policy,
            revision,
        })
    }

    /// Removes a policy; one that good keys fall under only if `even_if_used`.
    pub(crate) async fn remove(
        &self,
        prefix: &str,
        even_if_used: bool,
    ) -> Result<Stored, AuthError> {
        let name = policy::name_of(prefix)?;
        let read = self.bucket.get(name).await;
        let entry = read.map_err(store("read the policy"))?;
        let entry = entry.ok_or_else(|| AuthError::NoSuchPolicy {
            prefix: prefix.to_owned(),
        })?;
        let keys = self.used_by(name);
        if keys > 0 && !even_if_used {
            return Err(AuthError::PolicyUsed {
                prefix: prefix.to_owned(),
                keys,
            });
        }
        let removed = self.bucket.delete(name).await;
        removed.map_err(store("remove the policy"))?;
        tracing::info!(prefix, keys, "policy removed");
        self.settle(name, |shown| shown.is_none()).await;
        Ok(Stored {
            name: name.to_owned(),
            policy: entry.value,
            revision: entry.revision,
            keys,
        })
    }

    /// How many good keys the policy is the one of.
    fn used_by(&self, name: &str) -> usize {
        let policies = self.copy.borrow().clone();
        let keys = self.keys.borrow().clone();
        let good = keys.values().filter(|key| key.revoked_at.is_none());
        let of = |key: &&KeyRecord| {
            let chosen = policy::choose(&policies, &key.app_key);
            chosen.is_some_and(|(chosen, _)| chosen == name)
        };
        good.filter(of).count()
    }

    /// Waits until our own copy shows the change, so that whoever hears our answer finds it true here.
    async fn settle(&self, name: &str, shows: impl Fn(Option<&PolicyRecord>) -> bool) {
        let mut copy = self.copy.clone();
        let shown = copy.wait_for(|all| shows(all.get(name)));
        if tokio::time::timeout(SETTLE, shown).await.is_err() {
            tracing::warn!(name, "the change is stored but not yet seen here");
        }
    }
}
