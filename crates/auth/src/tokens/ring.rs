//! The keys that tokens are signed with: sealed in the bucket `SIGNING_KEYS`, opened when they come, wiped when they go.

use std::collections::BTreeMap;
use std::sync::Arc;

use aws_lc_rs::digest;
use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair as _};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use futures::FutureExt as _;
use futures::future::BoxFuture;
use jiff::Timestamp;
use jsonwebtoken::{DecodingKey, EncodingKey};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::key_encryption::{KekId, KeyEncryption, KeyEncryptionError, WrappedKey};
use crate::rewrap::Wrapped;
use crate::sealed::{KEY_BYTES, Key, Sealed, Unsealable};

/// PKCS #8 of an Ed25519 key (RFC 8410, 7) up to its 32 bytes.
const PKCS8_PREFIX: [u8; 16] = [
    0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20,
];

/// Counts signing keys; the bucket's key is its decimal digits.
pub(crate) type Generation = u64;

/// A signing key as it is stored. Its public half is not: it follows from the private one, so nobody who can write to the
/// bucket can have us trust a key of theirs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SigningKeyRecord {
    /// From when on it signs.
    pub(crate) signs_from: Timestamp,
    /// Wrapped by the key-encryption key.
    pub(crate) data_key: WrappedKey,
    /// The 32 bytes of the private key, AES-256-GCM.
    private: Sealed,
}

/// What a record is bound to: neither its place in the order nor its time can be changed.
pub(crate) fn context(generation: Generation, signs_from: Timestamp) -> Vec<u8> {
    format!(
        "inkstone signing key v1\0{generation}\0{}",
        signs_from.as_nanosecond()
    )
    .into_bytes()
}

impl SigningKeyRecord {
    /// A new random key.
    pub(crate) async fn random(
        key_encryption: &dyn KeyEncryption,
        generation: Generation,
        signs_from: Timestamp,
    ) -> Result<Self, KeyEncryptionError> {
        let context = context(generation, signs_from);
        let (data_key, private) = (Key::random()?, Key::random()?);
        Ok(Self {
            signs_from,
            private: data_key
                .derive("seal signing key")
                .seal(&context, private.expose())?,
            data_key: key_encryption.wrap(&data_key, &context).await?,
        })
    }

    /// The key itself.
    pub(crate) async fn open(
        &self,
        key_encryption: &dyn KeyEncryption,
        generation: Generation,
    ) -> Result<SigningKey, KeyEncryptionError> {
        let context = context(generation, self.signs_from);
        let data_key = key_encryption.unwrap_key(&self.data_key, &context).await?;
        let private = data_key
            .derive("seal signing key")
            .open(&context, &self.private)?;
        Ok(SigningKey::new(&private, self.signs_from)?)
    }
}

impl Wrapped for SigningKeyRecord {
    fn kek(&self) -> &KekId {
        &self.data_key.kek
    }

    fn rewrap<'a>(
        &'a mut self,
        name: &'a str,
        key_encryption: &'a dyn KeyEncryption,
    ) -> BoxFuture<'a, Result<(), KeyEncryptionError>> {
        async move {
            let generation = name.parse().map_err(|_| Unsealable)?;
            let context = context(generation, self.signs_from);
            let data_key = key_encryption.unwrap_key(&self.data_key, &context).await?;
            self.data_key = key_encryption.wrap(&data_key, &context).await?;
            Ok(())
        }
        .boxed()
    }
}

/// A key that signs and verifies.
pub(crate) struct SigningKey {
    signs_from: Timestamp,
    public: PublicKey,
    signing: EncodingKey,
    verifying: DecodingKey,
}

/// The public half, as a JWK (RFC 8037) shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PublicKey {
    /// Its thumbprint (RFC 7638): the same key has the same id everywhere.
    pub(crate) kid: String,
    /// The 32 bytes in base64url.
    pub(crate) x: String,
}

impl SigningKey {
    fn new(private: &[u8], signs_from: Timestamp) -> Result<Self, Unsealable> {
        let mut pkcs8 = Zeroizing::new([0; PKCS8_PREFIX.len() + KEY_BYTES]);
        if private.len() != KEY_BYTES {
            return Err(Unsealable);
        }
        pkcs8[..PKCS8_PREFIX.len()].copy_from_slice(&PKCS8_PREFIX);
        pkcs8[PKCS8_PREFIX.len()..].copy_from_slice(private);
        let pair = Ed25519KeyPair::from_pkcs8(&*pkcs8).map_err(|_| Unsealable)?;
        let public = pair.public_key().as_ref();
        let x = URL_SAFE_NO_PAD.encode(public);
        let members = format!(r#"{{"crv":"Ed25519","kty":"OKP","x":"{x}"}}"#);
        let kid = digest::digest(&digest::SHA256, members.as_bytes());
        Ok(Self {
            signs_from,
            public: PublicKey {
                kid: URL_SAFE_NO_PAD.encode(kid),
                x,
            },
            // Wipes its copy itself.
            signing: EncodingKey::from_ed_der(&*pkcs8),
            verifying: DecodingKey::from_ed_der(public),
        })
    }

    pub(crate) fn kid(&self) -> &str {
        &self.public.kid
    }

    pub(crate) fn signing(&self) -> &EncodingKey {
        &self.signing
    }
}

/// The keys that are held, by generation.
#[derive(Default)]
pub(crate) struct Ring {
    pub(crate) keys: BTreeMap<Generation, Arc<SigningKey>>,
    /// Those that are held too, and that nobody could open here yet. Without opening them their public halves are not known, or whoever can
    /// write to the bucket could name one.
    pub(crate) unopened: Vec<Generation>,
}

impl Ring {
    /// One new key that signs from `at` on, and that nothing keeps.
    pub(crate) async fn of_one(
        key_encryption: &dyn KeyEncryption,
        at: Timestamp,
    ) -> Result<Self, KeyEncryptionError> {
        let record = SigningKeyRecord::random(key_encryption, 1, at).await?;
        let key = record.open(key_encryption, 1).await?;
        Ok(Self {
            keys: BTreeMap::from([(1, Arc::new(key))]),
            unopened: Vec::new(),
        })
    }

    /// The key that signs now: the latest whose time has come.
    pub(crate) fn signer(&self, now: Timestamp) -> Option<&SigningKey> {
        let mut keys = self.keys.values().rev();
        keys.find(|key| key.signs_from <= now).map(|key| &**key)
    }

    /// The same for what is not verified by when it was made: where no key's time has come, because this instance's clock is behind that
    /// of the one which made the first, it is that one.
    pub(crate) fn signer_in_any_case(&self, now: Timestamp) -> Option<&SigningKey> {
        let first = || self.keys.values().next().map(|key| &**key);
        self.signer(now).or_else(first)
    }

    /// The key of this id.
    pub(crate) fn verifier(&self, kid: &str) -> Option<&DecodingKey> {
        let key = self.keys.values().find(|key| key.public.kid == kid);
        key.map(|key| &key.verifying)
    }

    /// What others verify with: all keys, those too whose time is still to come.
    pub(crate) fn public(&self) -> Vec<(Generation, PublicKey)> {
        let public =
            |(generation, key): (&Generation, &Arc<SigningKey>)| (*generation, key.public.clone());
        self.keys.iter().map(public).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::key_encryption::LocalKey;

    // RFC 8037, A.1 to A.3.
    const PRIVATE: &str = "9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60";
    const X: &str = "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo";
    const THUMBPRINT: &str = "kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k";

    #[test]
    fn the_public_half_and_its_id_are_those_of_rfc_8037() {
        let private = hex::decode(PRIVATE).unwrap();
        let key = SigningKey::new(&private, Timestamp::UNIX_EPOCH).unwrap();
        assert_eq!((key.public.x.as_str(), key.kid()), (X, THUMBPRINT));
    }

    #[tokio::test]
    async fn a_stored_key_opens_only_in_its_place_and_shows_nothing() {
        let kek = LocalKey::new(&Key::random().unwrap());
        let at = Timestamp::from_second(1_700_000_000).unwrap();
        let record = SigningKeyRecord::random(&kek, 3, at).await.unwrap();
        let key = record.open(&kek, 3).await.unwrap();
        let stored = serde_json::to_string(&record).unwrap();
        let read: SigningKeyRecord = serde_json::from_str(&stored).unwrap();
        assert_eq!(read.open(&kek, 3).await.unwrap().public, key.public);
        assert!(record.open(&kek, 4).await.is_err());
        let mut earlier = record.clone();
        earlier.signs_from = Timestamp::UNIX_EPOCH;
        assert!(earlier.open(&kek, 3).await.is_err());
        let other = LocalKey::new(&Key::random().unwrap());
        assert!(record.open(&other, 3).await.is_err());
        assert!(!stored.contains(&hex::encode(key.signing.as_bytes())));
    }
}
