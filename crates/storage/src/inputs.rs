//! What callers have sent: how old it is, and which of it is old.

use std::time::{Duration, SystemTime};

use futures::TryStreamExt as _;
use object_store::ObjectStoreExt as _;
use object_store::path::Path;

use crate::{Key, Storage, StorageError, key, path, request};

/// An object, how large it is, and when it was last written, by the store's clock.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Aged {
    /// Its key.
    pub key: Key,
    /// Its size in bytes.
    pub size: u64,
    /// When it was last written.
    pub written: SystemTime,
}

impl Storage {
    /// How long ago an object was last written by this machine's clock, if it is there. One from the future is new.
    ///
    /// # Errors
    /// When the store did not answer.
    pub async fn age(&self, key: &Key) -> Result<Option<Duration>, StorageError> {
        let written = self.written(key).await?;
        let now = contract::clock::system_time();
        Ok(written.map(|written| now.duration_since(written).unwrap_or_default()))
    }

    /// When an object was last written by the store's clock, if it is there.
    ///
    /// # Errors
    /// When the store did not answer.
    pub async fn written(&self, key: &Key) -> Result<Option<SystemTime>, StorageError> {
        match self.store.head(&path(key)).await {
            Ok(meta) => Ok(Some(SystemTime::from(meta.last_modified))),
            Err(object_store::Error::NotFound { .. }) => Ok(None),
            Err(source) => Err(request("finding", key)(source)),
        }
    }

    /// Writes an object of at most `limit` bytes again as it is, so that it is new.
    ///
    /// # Errors
    /// As [`get`](Self::get) and [`put`](Self::put).
    pub async fn renew(&self, key: &Key, limit: u64) -> Result<(), StorageError> {
        let data = self.get(key, limit).await?;
        self.put(key, data).await
    }

    /// Up to `most` of the files that tenants have sent and that were last written before `before`, in no order.
    ///
    /// # Errors
    /// When the store did not answer.
    pub async fn inputs_before(
        &self,
        before: SystemTime,
        most: usize,
    ) -> Result<Vec<Aged>, StorageError> {
        let mut found = Vec::new();
        let mut objects = self.store.list(Some(&Path::from(key::INPUTS)));
        while found.len() < most
            && let Some(meta) = objects.try_next().await.map_err(StorageError::List)?
        {
            let written = SystemTime::from(meta.last_modified);
            // What is not of our making is not ours to remove.
            if written < before
                && let Some(key) = Key::stored(meta.location.as_ref())
            {
                let size = meta.size;
                found.push(Aged { key, size, written });
            }
        }
        Ok(found)
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::sha256_hex;
    use crate::tests::scratch;

    fn input(tenant: &str, data: &[u8]) -> Key {
        Key::input(&tenant.parse().unwrap(), &sha256_hex(data)).unwrap()
    }

    #[tokio::test]
    async fn what_callers_sent_is_listed_by_age_and_nothing_else() {
        let (_folder, storage) = scratch();
        let begun = SystemTime::now();
        let (one, other) = (input("acme", b"1"), input("bcme", b"2"));
        let artifact = Key::artifact(&sha256_hex(b"3")).unwrap();
        for key in [&one, &other, &artifact] {
            storage.put(key, Bytes::from_static(b"x")).await.unwrap();
        }
        assert_eq!(storage.age(&input("acme", b"4")).await.unwrap(), None);
        assert!(storage.age(&one).await.unwrap().is_some());
        let later = SystemTime::now() + Duration::from_secs(60);
        let found = storage.inputs_before(later, 10).await.unwrap();
        assert!(found.iter().all(|one| one.size == 1));
        let mut keys: Vec<Key> = found.into_iter().map(|one| one.key).collect();
        keys.sort_by(|a, b| a.as_str().cmp(b.as_str()));
        assert_eq!(keys, [one.clone(), other]);
        assert_eq!(storage.inputs_before(later, 1).await.unwrap().len(), 1);
        let before = begun - Duration::from_secs(60);
        assert_eq!(storage.inputs_before(before, 10).await.unwrap(), []);
        storage.renew(&one, 1).await.unwrap();
        assert_eq!(
            storage.get(&one, 1).await.unwrap(),
            Bytes::from_static(b"x")
        );
    }

    #[tokio::test]
    async fn a_store_to_which_nothing_was_sent_has_nothing_old() {
        let (_folder, storage) = scratch();
        let later = SystemTime::now() + Duration::from_secs(60);
        assert_eq!(storage.inputs_before(later, 10).await.unwrap(), []);
    }
}
