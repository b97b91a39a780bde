//! What auth keeps: one record a key, in the bucket `KEYS`.

use contract::{AppKey, TenantId};
use futures::FutureExt as _;
use futures::future::BoxFuture;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::envelope::Envelope;
use crate::key_encryption::{KekId, KeyEncryption, KeyEncryptionError};
use crate::rewrap::Wrapped;

/// The bucket of keys, by app key.
pub(crate) const KEYS: &str = "KEYS";
/// The bucket of policies, by prefix.
pub(crate) const POLICIES: &str = "POLICIES";
/// The bucket of the keys that tokens are signed with, by generation.
pub(crate) const SIGNING_KEYS: &str = "SIGNING_KEYS";

/// One key. It is never removed, so that its name stays taken and its history can be read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct KeyRecord {
    /// The public half.
    pub(crate) app_key: AppKey,
    /// Whose it is.
    pub(crate) tenant: TenantId,
    /// For people.
    pub(crate) name: String,
    /// Whether signature v1, which signs no body, is accepted.
    pub(crate) allow_signature_v1: bool,
    /// Its secrets.
    pub(crate) envelope: Envelope,
    /// When it was made.
    pub(crate) created_at: Timestamp,
    /// Since when it is not accepted.
    #[serde(default)]
    pub(crate) revoked_at: Option<Timestamp>,
}

impl Wrapped for KeyRecord {
    fn kek(&self) -> &KekId {
        &self.envelope.data_key.kek
    }

    fn rewrap<'a>(
        &'a mut self,
        _name: &'a str,
        key_encryption: &'a dyn KeyEncryption,
    ) -> BoxFuture<'a, Result<(), KeyEncryptionError>> {
        let (app_key, tenant) = (&self.app_key, &self.tenant);
        let envelope = &mut self.envelope;
        envelope.rewrap(key_encryption, app_key, tenant).boxed()
    }
}
