//! The life of a key: made, listed, revoked.

use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::rand;
use contract::id::InvalidId;
use contract::{AppKey, TenantId};
use jiff::Timestamp;
use messaging::{BrokerError, Bucket, Snapshot};
use secrecy::SecretString;
use tokio::sync::watch;

use crate::authenticate::Clock;
use crate::envelope::Envelope;
use crate::error::AuthError;
use crate::key_encryption::KeyEncryption;
use crate::policy::{self, PolicyRecord};
use crate::proof;
use crate::sealed::Key;
use crate::store::KeyRecord;
use crate::webhook;

/// Bytes of a key's name for people.
const MAX_NAME_BYTES: usize = 80;
/// Random characters of an app key, five bits each: names, not secrets.
const RANDOM_CHARS: usize = 10;
/// RFC 4648 base32, lower case.
const BASE32: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";
/// Attempts to find a name that is free, and to write a record that others write too.
const MAX_TRIES: usize = 8;
/// How long an answer waits for our own copy of the bucket to show the change.
const SETTLE: Duration = Duration::from_secs(1);

/// A key to make, with every field checked but the prefix, which depends on the policies of the moment.
#[derive(Debug)]
pub(crate) struct NewKey {
    pub(crate) prefix: String,
    pub(crate) tenant: TenantId,
    pub(crate) name: String,
    pub(crate) allow_signature_v1: bool,
}

/// A key just made, with what is shown once.
#[derive(Debug)]
pub(crate) struct Made {
    pub(crate) record: KeyRecord,
    pub(crate) secret: SecretString,
    pub(crate) bearer: SecretString,
}

/// Every key there is.
pub(crate) struct Keys {
    pub(crate) bucket: Bucket<KeyRecord>,
    pub(crate) copy: watch::Receiver<Snapshot<KeyRecord>>,
    pub(crate) policies: watch::Receiver<Snapshot<PolicyRecord>>,
    pub(crate) key_encryption: Arc<dyn KeyEncryption>,
    pub(crate) clock: Clock,
}

/// A tenant as a request names it.
pub(crate) fn tenant(text: &str) -> Result<TenantId, AuthError> {
    text.parse()
        .map_err(|error: InvalidId| invalid("tenant", error.problem()))
}

/// An app key as a request names it.
pub(crate) fn app_key(text: &str) -> Result<AppKey, AuthError> {
    text.parse()
        .map_err(|error: InvalidId| invalid("app_key", error.problem()))
}

/// A name for people as a request gives it.
pub(crate) fn name(text: String) -> Result<String, AuthError> {
    if text.len() > MAX_NAME_BYTES {
        let problem = format!("at most {MAX_NAME_BYTES} bytes, not {}", text.len());
        return Err(invalid("name", problem));
    }
    if text.chars().any(char::is_control) {
        return Err(invalid("name", "must hold no control characters"));
    }
    Ok(text)
}

fn invalid(field: &'static str, problem: impl ToString) -> AuthError {
    AuthError::Invalid {
        field,
        problem: problem.to_string(),
    }
}

impl Keys {
    /// Makes a key and stores it. When storing fails, a key that nobody holds may be left: it is listed, and can be
    /// revoked.
    pub(crate) async fn create(&self, new: &NewKey) -> Result<Made, AuthError> {
        check_prefix(&self.policies.borrow(), &new.prefix)?;
        for _ in 0..MAX_TRIES {
            let made = make(new, &*self.key_encryption, (self.clock)()).await?;
            let app_key = &made.record.app_key;
            match self.bucket.create(app_key.as_str(), &made.record).await {
                Ok(_) => {
                    tracing::info!(%app_key, tenant = %new.tenant, "key made");
                    self.settle(app_key, |_| true).await;
                    return Ok(made);
                }
                // The name is taken: another.
                Err(BrokerError::Conflict { .. }) => {}
                Err(source) => return Err(store("store the key")(source)),
            }
        }
        Err(AuthError::NoRandomness)
    }

    /// The keys of a tenant, or of all, in the order of their names.
    pub(crate) fn list(&self, tenant: Option<&TenantId>) -> Vec<KeyRecord> {
        let copy = self.copy.borrow().clone();
        let wanted = |key: &&KeyRecord| tenant.is_none_or(|t| *t == key.tenant);
        copy.values().filter(wanted).cloned().collect()
    }

    /// Revokes a key. One that was revoked stays as it was.
    pub(crate) async fn revoke(&self, app_key: &AppKey) -> Result<KeyRecord, AuthError> {
        for _ in 0..MAX_TRIES {
            let stored = self.bucket.get(app_key.as_str()).await;
            let Some(stored) = stored.map_err(store("read the key"))? else {
                return Err(AuthError::NoSuchKey {
                    app_key: app_key.clone(),
                });
            };
            let mut record = stored.value;
            if record.revoked_at.is_some() {
                return Ok(record);
            }
            record.revoked_at = Some((self.clock)());
            let (key, revision) = (app_key.as_str(), stored.revision);
            match self.bucket.update(key, &record, revision).await {
                Ok(_) => {
                    tracing::info!(%app_key, tenant = %record.tenant, "key revoked");
                    self.settle(app_key, |key| key.revoked_at.is_some()).await;
                    return Ok(record);
                }
                // Someone else wrote, or our own write is stored and its answer was lost: read again.
                Err(BrokerError::Conflict { .. }) => {}
                Err(source) => return Err(store("store the revocation")(source)),
            }
        }
        Err(AuthError::Contended {
            app_key: app_key.clone(),
        })
    }

    /// What a key's owner verifies its webhooks with.
    pub(crate) async fn webhook_secret(&self, app_key: &AppKey) -> Result<SecretString, AuthError> {
        let copy = self.copy.borrow().clone();
        let Some(record) = copy.get(app_key.as_str()) else {
            return Err(AuthError::NoSuchKey {
                app_key: app_key.clone(),
            });
        };
        let (envelope, tenant) = (&record.envelope, &record.tenant);
        let open = envelope.open(&*self.key_encryption, app_key, tenant).await;
        let open = open.map_err(|source| AuthError::Envelope {
            app_key: app_key.clone(),
            operation: "opened",
            source,
        })?;
        Ok(webhook::secret_text(&open.webhook_secret()))
    }

    /// Waits until our own copy shows the change, so that whoever hears our answer finds it true here. Other instances
    /// follow within milliseconds. When the broker is slow the answer is still right, only early.
    async fn settle(&self, app_key: &AppKey, shows: impl Fn(&KeyRecord) -> bool) {
        let mut copy = self.copy.clone();
        let shown = copy.wait_for(|all| all.get(app_key.as_str()).is_some_and(&shows));
        if tokio::time::timeout(SETTLE, shown).await.is_err() {
            tracing::warn!(%app_key, "the change is stored but not yet seen here");
        }
    }

    /// The policies of the moment.
    pub(crate) fn policies(&self) -> Snapshot<PolicyRecord> {
        self.policies.borrow().clone()
    }
}

fn store(operation: &'static str) -> impl FnOnce(BrokerError) -> AuthError {
    move |source| AuthError::Store { operation, source }
}

/// A prefix must be that of a policy, to the letter: a key must not fall under another policy than its maker meant.
fn check_prefix(policies: &Snapshot<PolicyRecord>, prefix: &str) -> Result<(), AuthError> {
    let named = prefix
        .strip_suffix('-')
        .is_some_and(|name| policies.contains_key(name));
    if named {
        return Ok(());
    }
    let known = policy::prefixes(policies);
    let given: String = prefix.chars().take(40).collect();
    let problem = format!("must be one that a policy names ({known}), not {given:?}");
    Err(invalid("prefix", problem))
}

/// Makes a key; nothing is stored.
pub(crate) async fn make(
    new: &NewKey,
    key_encryption: &dyn KeyEncryption,
    now: Timestamp,
) -> Result<Made, AuthError> {
    let random = || Key::random().map_err(|_| AuthError::NoRandomness);
    let name = format!("{}{}", new.prefix, random_name()?);
    let app_key: AppKey = name.parse().map_err(|error| invalid("prefix", error))?;
    let secret = random()?.to_hex();
    let bearer = proof::bearer_text(&app_key, &random()?.to_base64url());
    let envelope = Envelope::seal(key_encryption, &app_key, &new.tenant, &secret, &bearer)
        .await
        .map_err(|source| AuthError::Envelope {
            app_key: app_key.clone(),
            operation: "sealed",
            source,
        })?;
    let record = KeyRecord {
        app_key,
        tenant: new.tenant.clone(),
        name: new.name.clone(),
        allow_signature_v1: new.allow_signature_v1,
        envelope,
        created_at: now,
        revoked_at: None,
    };
    Ok(Made {
        record,
        secret,
        bearer,
    })
}

fn random_name() -> Result<String, AuthError> {
    let mut bytes = [0; RANDOM_CHARS];
    rand::fill(&mut bytes).map_err(|_| AuthError::NoRandomness)?;
    let letter = |byte: u8| char::from(BASE32[usize::from(byte % 32)]);
    Ok(bytes.into_iter().map(letter).collect())
}

#[cfg(test)]
mod tests {
    use secrecy::ExposeSecret as _;

    use super::*;
    use crate::key_encryption::LocalKey;

    fn new(prefix: &str) -> NewKey {
        NewKey {
            prefix: prefix.to_owned(),
            tenant: "acme".parse().unwrap(),
            name: "a laptop".to_owned(),
            allow_signature_v1: true,
        }
    }

    #[tokio::test]
    async fn a_key_is_shaped_as_documented_and_shows_no_secret() {
        let kek = LocalKey::new(&Key::random().unwrap());
        let made = make(&new("prod-"), &kek, Timestamp::UNIX_EPOCH)
            .await
            .unwrap();
        let app_key = made.record.app_key.as_str();
        assert!(
            app_key.starts_with("prod-") && app_key.len() == 15,
            "{app_key}"
        );
        let (secret, bearer) = (made.secret.expose_secret(), made.bearer.expose_secret());
        assert!(secret.len() == 64 && secret.bytes().all(|b| b.is_ascii_hexdigit()));
        let random = bearer.strip_prefix(&format!("ink_{app_key}_")).unwrap();
        assert_eq!(random.len(), 43);
        let stored = serde_json::to_string(&made.record).unwrap();
        for text in [format!("{made:?}"), format!("{made:#?}"), stored] {
            assert!(!text.contains(secret), "{text}");
            assert!(!text.contains(random), "{text}");
        }
    }

    #[tokio::test]
    async fn a_prefix_that_makes_the_key_too_long_is_named() {
        let kek = LocalKey::new(&Key::random().unwrap());
        let long = format!("{}-", "p".repeat(60));
        let error = make(&new(&long), &kek, Timestamp::UNIX_EPOCH)
            .await
            .unwrap_err();
        assert!(
            matches!(
                error,
                AuthError::Invalid {
                    field: "prefix",
                    ..
                }
            ),
            "{error}"
        );
    }

    #[test]
    fn a_prefix_is_one_of_the_policies_to_the_letter() {
        let table = policy::defaults().map(|(name, policy)| (name.to_owned(), policy));
        let policies: Snapshot<PolicyRecord> = Arc::new(table.into());
        check_prefix(&policies, "prod-").unwrap();
        for prefix in ["prod", "prod-eu-", "", "-", "staging-", "PROD-", "prod--"] {
            let error = check_prefix(&policies, prefix).unwrap_err().to_string();
            assert!(
                error.contains("`dev-`, `prod-`, `test-`"),
                "{prefix}: {error}"
            );
        }
    }

    #[test]
    fn fields_that_are_wrong_are_named_with_their_limit() {
        let told = |error: AuthError| error.to_string();
        assert!(told(tenant("").unwrap_err()).starts_with("tenant: "));
        assert!(told(tenant("Acme Inc").unwrap_err()).contains("a-z"));
        assert!(told(app_key("a_b").unwrap_err()).starts_with("app_key: "));
        assert!(told(name("é".repeat(41)).unwrap_err()).contains("80 bytes, not 82"));
        assert!(told(name("a\nb".to_owned()).unwrap_err()).starts_with("name: "));
        assert_eq!(name("é".repeat(40)).unwrap().len(), 80);
    }
}
