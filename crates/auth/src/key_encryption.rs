//! The key-encryption key. Each stored key has a data key of its own, and only that is wrapped here, so changing the
//! key-encryption key re-wraps 32 bytes a record and touches no secret.

use std::fmt;
use std::io;
use std::path::Path;

use futures::FutureExt as _;
use futures::future::BoxFuture;
use serde::{Deserialize, Serialize};
use settings::SecretFile;
use zeroize::Zeroizing;

use crate::kms::KmsError;
use crate::sealed::{KEY_BYTES, Key, Sealed, Unsealable};
use crate::secret_file::{SecretFileError, read_or_make};

const EXPECTED: &str = "32 random bytes, raw or as 64 hexadecimal digits";

/// Names a key-encryption key in records and logs without saying anything about it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) struct KekId(String);

impl KekId {
    /// That of a key which a key management service holds.
    pub(crate) fn kms(key_id: &str) -> Self {
        Self(format!("kms-{key_id}"))
    }
}

impl fmt::Display for KekId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A data key as it is stored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct WrappedKey {
    /// What it is wrapped by.
    pub(crate) kek: KekId,
    /// The wrapped key, as the key-encryption key's own service writes it.
    pub(crate) bytes: Sealed,
}

/// A data key that cannot be wrapped or unwrapped.
#[derive(Debug, thiserror::Error)]
pub(crate) enum KeyEncryptionError {
    /// It was wrapped by a key that is not here.
    #[error("it is sealed under the key-encryption key {wanted}, and this instance holds {held}")]
    OtherKey { wanted: KekId, held: KekId },
    /// The service that holds it does not do its part.
    #[error("the key management service cannot be used")]
    Kms(#[from] KmsError),
    /// It does not open.
    #[error(transparent)]
    Unsealable(#[from] Unsealable),
}

/// What a key-encryption key is to this instance.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Standing {
    /// It wraps.
    Wraps,
    /// It took its turn before the one that wraps: what it has wrapped is to be wrapped anew.
    Old,
    /// It unwraps. Its turn may be yet to come: what it has wrapped is left alone, or two instances of which one knows more than the
    /// other would undo each other's work for ever.
    Other,
    /// It is not here.
    Unknown,
}

/// Something that holds a key-encryption key and never gives it away: a file beside the service ([`LocalKey`]), or a
/// key management service, for which the calls are asynchronous. An implementation whose calls leave the process keeps
/// a short and bounded cache of what it unwrapped; this trait's callers keep none.
pub(crate) trait KeyEncryption: Send + Sync {
    /// Which key wraps new data keys.
    fn id(&self) -> &KekId;

    /// What a key is here.
    fn standing(&self, id: &KekId) -> Standing {
        if id == self.id() {
            Standing::Wraps
        } else {
            Standing::Unknown
        }
    }

    /// Wraps a data key so that it unwraps only with the same `context`.
    fn wrap<'a>(
        &'a self,
        key: &'a Key,
        context: &'a [u8],
    ) -> BoxFuture<'a, Result<WrappedKey, KeyEncryptionError>>;

    /// The data key that [`wrap`](Self::wrap) was given with this `context`.
    fn unwrap_key<'a>(
        &'a self,
        wrapped: &'a WrappedKey,
        context: &'a [u8],
    ) -> BoxFuture<'a, Result<Key, KeyEncryptionError>>;
}

/// The key that wraps, and others that only unwrap: those that the platform comes from, or is going to.
pub(crate) struct KeyEncryptionKeys {
    wraps: Box<dyn KeyEncryption>,
    others: Vec<Other>,
}

/// A key that unwraps.
pub(crate) struct Other {
    pub(crate) key: Box<dyn KeyEncryption>,
    /// Whether its turn to wrap is over.
    pub(crate) old: bool,
}

impl KeyEncryptionKeys {
    pub(crate) fn new(wraps: Box<dyn KeyEncryption>, others: Vec<Other>) -> Self {
        Self { wraps, others }
    }

    /// Whether what this key wrapped can be unwrapped.
    pub(crate) fn holds(&self, id: &KekId) -> bool {
        self.holder(id).is_some()
    }

    fn holder(&self, id: &KekId) -> Option<&dyn KeyEncryption> {
        let others = self.others.iter().map(|other| &other.key);
        let all = std::iter::once(&self.wraps).chain(others);
        all.map(|key| &**key).find(|key| key.id() == id)
    }
}

impl KeyEncryption for KeyEncryptionKeys {
    fn id(&self) -> &KekId {
        self.wraps.id()
    }

    fn standing(&self, id: &KekId) -> Standing {
        if id == self.id() {
            return Standing::Wraps;
        }
        let mut others = self.others.iter();
        match others.find(|other| other.key.id() == id) {
            Some(other) if other.old => Standing::Old,
            Some(_) => Standing::Other,
            None => Standing::Unknown,
        }
    }

    fn wrap<'a>(
        &'a self,
        key: &'a Key,
        context: &'a [u8],
    ) -> BoxFuture<'a, Result<WrappedKey, KeyEncryptionError>> {
        self.wraps.wrap(key, context)
    }

    fn unwrap_key<'a>(
        &'a self,
        wrapped: &'a WrappedKey,
        context: &'a [u8],
    ) -> BoxFuture<'a, Result<Key, KeyEncryptionError>> {
        // Where none holds it, the one that wraps says so.
        let holder = self.holder(&wrapped.kek).unwrap_or(&*self.wraps);
        holder.unwrap_key(wrapped, context)
    }
}

/// A key-encryption key in a file of this machine.
pub(crate) struct LocalKey {
    id: KekId,
    wrapping: Key,
}

impl LocalKey {
    /// Reads the key, and makes one first where there is none and `create` is true.
    pub(crate) fn load(
        path: &Path,
        setting: &'static str,
        create: bool,
    ) -> Result<Self, SecretFileError> {
        let file = SecretFile { path, setting };
        let bytes = read_or_make(file, create, || {
            Ok(Key::random().map_err(io::Error::other)?.to_hex())
        })?;
        let key = parse(&bytes).ok_or_else(|| file.content(EXPECTED))?;
        Ok(Self::new(&key))
    }

    /// A key-encryption key made of this one.
    pub(crate) fn new(key: &Key) -> Self {
        let name = key.derive("key-encryption key id");
        Self {
            // Half of a derived value: enough to tell keys apart, and nothing to work back from.
            id: KekId(format!("local-{}", hex::encode(&name.expose()[..8]))),
            wrapping: key.derive("wrap data keys"),
        }
    }
}

fn parse(bytes: &[u8]) -> Option<Key> {
    // Raw first: 32 bytes may well end in something that looks like a newline.
    if bytes.len() == KEY_BYTES {
        return Key::from_slice(bytes);
    }
    let decoded = Zeroizing::new(hex::decode(bytes.trim_ascii()).ok()?);
    Key::from_slice(&decoded)
}

impl KeyEncryption for LocalKey {
    fn id(&self) -> &KekId {
        &self.id
    }

    fn wrap<'a>(
        &'a self,
        key: &'a Key,
        context: &'a [u8],
    ) -> BoxFuture<'a, Result<WrappedKey, KeyEncryptionError>> {
        let wrap = || {
            Ok(WrappedKey {
                kek: self.id.clone(),
                bytes: self.wrapping.seal(context, key.expose())?,
            })
        };
        std::future::ready(wrap()).boxed()
    }

    fn unwrap_key<'a>(
        &'a self,
        wrapped: &'a WrappedKey,
        context: &'a [u8],
    ) -> BoxFuture<'a, Result<Key, KeyEncryptionError>> {
        let unwrap = || {
            if wrapped.kek != self.id {
                return Err(KeyEncryptionError::OtherKey {
                    wanted: wrapped.kek.clone(),
                    held: self.id.clone(),
                });
            }
            let bytes = self.wrapping.open(context, &wrapped.bytes)?;
            Ok(Key::from_slice(&bytes).ok_or(Unsealable)?)
        };
        std::future::ready(unwrap()).boxed()
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn write(path: &Path, bytes: &[u8]) {
        fs::write(path, bytes).unwrap();
        fs::set_permissions(path, fs::Permissions::from_mode(0o600)).unwrap();
    }

    #[test]
    fn raw_and_hexadecimal_files_are_the_same_key() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("kek");
        // Ends in bytes that text would lose.
        let mut raw = [0x41; KEY_BYTES];
        raw[31] = b'\n';
        write(&path, &raw);
        let first = LocalKey::load(&path, "keys.key_file", false).unwrap();
        write(&path, format!("{}\n", hex::encode(raw)).as_bytes());
        let second = LocalKey::load(&path, "keys.key_file", false).unwrap();
        assert_eq!(first.id(), second.id());
    }

    #[test]
    fn a_made_key_is_read_back_the_same() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("kek");
        let made = LocalKey::load(&path, "keys.key_file", true).unwrap();
        assert_eq!(
            made.id(),
            LocalKey::load(&path, "keys.key_file", false).unwrap().id()
        );
    }

    #[test]
    fn a_file_that_holds_no_key_is_refused_without_showing_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("kek");
        for bytes in [&b""[..], b"too short", &[b'z'; 64], &[7; 33]] {
            write(&path, bytes);
            let error = LocalKey::load(&path, "keys.key_file", true)
                .err()
                .unwrap()
                .to_string();
            assert!(error.contains(EXPECTED), "{error}");
            assert!(!error.contains("too short"), "{error}");
        }
    }

    #[tokio::test]
    async fn of_several_keys_one_wraps_and_each_unwraps_its_own() {
        let [old, new, foreign] = [(); 3].map(|()| LocalKey::new(&Key::random().unwrap()));
        let data_key = Key::random().unwrap();
        let by_old = old.wrap(&data_key, b"here").await.unwrap();
        let by_foreign = foreign.wrap(&data_key, b"here").await.unwrap();
        let (old_id, new_id) = (old.id().clone(), new.id().clone());
        let keys = KeyEncryptionKeys::new(
            Box::new(new),
            vec![Other {
                key: Box::new(old),
                old: true,
            }],
        );
        assert!(keys.holds(&old_id) && keys.holds(&new_id) && !keys.holds(foreign.id()));
        let by_new = keys.wrap(&data_key, b"here").await.unwrap();
        assert_eq!(by_new.kek, new_id);
        for wrapped in [&by_old, &by_new] {
            let back = keys.unwrap_key(wrapped, b"here").await.unwrap();
            assert_eq!(back.expose(), data_key.expose());
            assert!(keys.unwrap_key(wrapped, b"there").await.is_err());
        }
        assert!(keys.unwrap_key(&by_foreign, b"here").await.is_err());
    }

    #[tokio::test]
    async fn a_data_key_wrapped_by_another_key_says_by_which() {
        let (a, b) = (Key::random().unwrap(), Key::random().unwrap());
        let (a, b) = (LocalKey::new(&a), LocalKey::new(&b));
        let data_key = Key::random().unwrap();
        let wrapped = a.wrap(&data_key, b"here").await.unwrap();
        let back = a.unwrap_key(&wrapped, b"here").await.unwrap();
        assert_eq!(back.expose(), data_key.expose());
        assert!(a.unwrap_key(&wrapped, b"there").await.is_err());
        let error = b
            .unwrap_key(&wrapped, b"here")
            .await
            .unwrap_err()
            .to_string();
        assert!(error.contains(&a.id().to_string()), "{error}");
    }
}
