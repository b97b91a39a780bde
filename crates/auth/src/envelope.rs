//! What is stored of a key's two secrets: the signing secret sealed, the bearer text only as a keyed digest, both under
//! a data key that belongs to this key alone and is itself wrapped by the key-encryption key.
//!
//! Everything is bound to the app key and its tenant: a record copied to another key, or given to another tenant, opens
//! no more. The digest's key comes from the data key and not from the key-encryption key, so both the key-encryption key and
//! the place where it lives can change without anyone needing a new bearer key.

use aws_lc_rs::hmac;
use contract::{AppKey, TenantId};
use secrecy::{ExposeSecret as _, SecretString};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::key_encryption::{KeyEncryption, KeyEncryptionError, WrappedKey};
use crate::sealed::{Key, Sealed, Unsealable};
use crate::webhook;

/// A key's secrets as stored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Envelope {
    /// The data key.
    pub(crate) data_key: WrappedKey,
    /// The signing secret, AES-256-GCM.
    secret: Sealed,
    /// HMAC-SHA256 of the whole bearer text.
    bearer_digest: Sealed,
}

/// An envelope whose data key was unwrapped, for as long as one request needs it.
pub(crate) struct OpenEnvelope<'a> {
    envelope: &'a Envelope,
    context: Vec<u8>,
    data_key: Key,
}

/// What an envelope is bound to. The zero bytes cannot occur in either id.
fn context(app_key: &AppKey, tenant: &TenantId) -> Vec<u8> {
    format!("inkstone key v1\0{app_key}\0{tenant}").into_bytes()
}

fn digest_key(data_key: &Key) -> hmac::Key {
    hmac::Key::new(hmac::HMAC_SHA256, data_key.derive("bearer digest").expose())
}

impl Envelope {
    /// Seals a new key's secrets under a new data key.
    pub(crate) async fn seal(
        key_encryption: &dyn KeyEncryption,
        app_key: &AppKey,
        tenant: &TenantId,
        secret: &SecretString,
        bearer: &SecretString,
    ) -> Result<Self, KeyEncryptionError> {
        let context = context(app_key, tenant);
        let data_key = Key::random()?;
        let bearer = bearer.expose_secret().as_bytes();
        Ok(Self {
            secret: data_key
                .derive("seal secret")
                .seal(&context, secret.expose_secret().as_bytes())?,
            bearer_digest: Sealed(hmac::sign(&digest_key(&data_key), bearer).as_ref().to_vec()),
            data_key: key_encryption.wrap(&data_key, &context).await?,
        })
    }

    /// Wraps the data key by the key that wraps now, and changes nothing else.
    pub(crate) async fn rewrap(
        &mut self,
        key_encryption: &dyn KeyEncryption,
        app_key: &AppKey,
        tenant: &TenantId,
    ) -> Result<(), KeyEncryptionError> {
        let context = context(app_key, tenant);
        let data_key = key_encryption.unwrap_key(&self.data_key, &context).await?;
        self.data_key = key_encryption.wrap(&data_key, &context).await?;
        Ok(())
    }

    /// Unwraps the data key.
    pub(crate) async fn open(
        &self,
        key_encryption: &dyn KeyEncryption,
        app_key: &AppKey,
        tenant: &TenantId,
    ) -> Result<OpenEnvelope<'_>, KeyEncryptionError> {
        let context = context(app_key, tenant);
        let data_key = key_encryption.unwrap_key(&self.data_key, &context).await?;
        Ok(OpenEnvelope {
            envelope: self,
            context,
            data_key,
        })
    }
}

impl OpenEnvelope<'_> {
    /// The signing secret, wiped when dropped.
    pub(crate) fn secret(&self) -> Result<Zeroizing<Vec<u8>>, Unsealable> {
        let key = self.data_key.derive("seal secret");
        key.open(&self.context, &self.envelope.secret)
    }

    /// What the key's webhooks are signed with.
    pub(crate) fn webhook_secret(&self) -> Key {
        self.data_key.derive(webhook::PURPOSE)
    }

    /// Whether this is the bearer text, in constant time.
    pub(crate) fn is_bearer(&self, bearer: &SecretString) -> bool {
        let bearer = bearer.expose_secret().as_bytes();
        let stored = &self.envelope.bearer_digest.0;
        hmac::verify(&digest_key(&self.data_key), bearer, stored).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::key_encryption::LocalKey;

    struct Sample {
        kek: LocalKey,
        app_key: AppKey,
        tenant: TenantId,
        envelope: Envelope,
    }

    async fn sample() -> Sample {
        let kek = LocalKey::new(&Key::random().unwrap());
        let (app_key, tenant) = ("prod-a".parse().unwrap(), "acme".parse().unwrap());
        let (secret, bearer) = ("s3cr3t".into(), "ink_prod-a_b34r3r".into());
        let sealed = Envelope::seal(&kek, &app_key, &tenant, &secret, &bearer).await;
        Sample {
            envelope: sealed.unwrap(),
            kek,
            app_key,
            tenant,
        }
    }

    #[tokio::test]
    async fn an_envelope_survives_storage_and_opens_with_both_secrets() {
        let Sample {
            kek,
            app_key,
            tenant,
            envelope,
        } = sample().await;
        let stored = serde_json::to_string(&envelope).unwrap();
        let read: Envelope = serde_json::from_str(&stored).unwrap();
        let open = read.open(&kek, &app_key, &tenant).await.unwrap();
        assert_eq!(&**open.secret().unwrap(), b"s3cr3t");
        assert!(open.is_bearer(&"ink_prod-a_b34r3r".into()));
        assert!(!open.is_bearer(&"ink_prod-a_b34r3R".into()));
        assert!(!open.is_bearer(&"".into()));
    }

    #[tokio::test]
    async fn an_envelope_given_to_another_key_or_tenant_opens_no_more() {
        let Sample {
            kek,
            app_key,
            tenant,
            envelope,
        } = sample().await;
        let (other_key, other_tenant) = ("prod-b".parse().unwrap(), "bcme".parse().unwrap());
        assert!(envelope.open(&kek, &other_key, &tenant).await.is_err());
        assert!(envelope.open(&kek, &app_key, &other_tenant).await.is_err());
    }

    #[tokio::test]
    async fn a_tampered_record_is_refused() {
        let Sample {
            kek,
            app_key,
            tenant,
            envelope,
        } = sample().await;
        let mut changed = envelope.clone();
        changed.data_key.bytes.0[20] ^= 1;
        assert!(changed.open(&kek, &app_key, &tenant).await.is_err());
        let mut changed = envelope.clone();
        changed.secret.0[20] ^= 1;
        let open = changed.open(&kek, &app_key, &tenant).await.unwrap();
        assert_eq!(open.secret(), Err(Unsealable));
        let mut changed = envelope;
        changed.bearer_digest.0[20] ^= 1;
        let open = changed.open(&kek, &app_key, &tenant).await.unwrap();
        assert!(!open.is_bearer(&"ink_prod-a_b34r3r".into()));
    }

    #[tokio::test]
    async fn neither_secret_is_in_what_is_stored_or_shown() {
        let Sample { envelope, .. } = sample().await;
        let stored = serde_json::to_string(&envelope).unwrap();
        for text in [stored, format!("{envelope:?}")] {
            assert!(
                !text.contains("s3cr3t") && !text.contains("b34r3r"),
                "{text}"
            );
        }
    }
}
