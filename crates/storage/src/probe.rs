//! Whether the store takes bytes, and what is left of those who asked.

use std::time::{Duration, SystemTime};

use bytes::Bytes;

use crate::{Aged, Key, Storage, StorageError};

/// Large enough to need a block of its own on a full disk.
const PROBE_BYTES: usize = 64 * 1024;
/// How long a store that is not well may take to remove what it may have taken. That it is not well is not told later for that.
const CLEAN_UP: Duration = Duration::from_secs(1);

impl Storage {
    /// Writes a small object, reads it back and removes it: the only honest way to know that there is room.
    ///
    /// It is the same object each time, so that of those that are given up one is left at most, which the next one removes. A removal that was given
    /// up and is carried out late may have the next one fail, too.
    ///
    /// # Errors
    /// When any of it fails, for instance because a disk is full.
    pub async fn probe(&self) -> Result<(), StorageError> {
        // Another's removal must not come between writing and reading.
        let key = self.probing.lock().await;
        let answer = self.write_and_read(&key).await;
        if answer.is_ok() {
            return self.delete(&key).await;
        }
        // What it said first is what matters. It may have been stored all the same.
        let _ = tokio::time::timeout(CLEAN_UP, self.delete(&key)).await;
        answer
    }

    async fn write_and_read(&self, key: &Key) -> Result<(), StorageError> {
        let data = Bytes::from(vec![0x5a; PROBE_BYTES]);
        self.put(key, data.clone()).await?;
        if self.get(key, PROBE_BYTES as u64).await? == data {
            Ok(())
        } else {
            Err(StorageError::ReadBack)
        }
    }

    /// Up to `most` of the objects with which processes have probed the store and that were last written before `before`, in no order: those
    /// processes were killed meanwhile.
    ///
    /// # Errors
    /// When the store did not answer.
    pub async fn probes_before(
        &self,
        before: SystemTime,
        most: usize,
    ) -> Result<Vec<Aged>, StorageError> {
        // All others lie in folders.
        let found = self.store.list_with_delimiter(None).await;
        let found = found.map_err(StorageError::List)?.objects;
        let old = found.into_iter().filter_map(|meta| {
            let (size, written) = (meta.size, SystemTime::from(meta.last_modified));
            let key = Key::of_probe(meta.location.as_ref()).filter(|_| written < before)?;
            Some(Aged { key, size, written })
        });
        Ok(old.take(most).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::scratch;
    use crate::{FaultPlan, StorageSettings, sha256_hex};

    fn left(folder: &tempfile::TempDir) -> Vec<String> {
        let left = std::fs::read_dir(folder.path()).unwrap();
        let names = left.map(|entry| entry.unwrap().file_name());
        names.map(|name| name.into_string().unwrap()).collect()
    }

    #[tokio::test]
    async fn a_probe_leaves_nothing_behind() {
        let (folder, storage) = scratch();
        storage.probe().await.unwrap();
        assert_eq!(left(&folder), [""; 0]);
    }

    #[tokio::test]
    async fn a_probe_whose_answer_is_lost_leaves_nothing_behind() {
        let folder = tempfile::tempdir().unwrap();
        let faults = tempfile::NamedTempFile::new().unwrap();
        let plan = FaultPlan {
            lost_answers: 100,
            ..FaultPlan::default()
        };
        std::fs::write(faults.path(), serde_json::to_vec(&plan).unwrap()).unwrap();
        let mut settings = StorageSettings::new(format!("file://{}", folder.path().display()));
        settings.faults = faults.path().to_owned();
        let storage = Storage::open(&settings).unwrap();
        storage.probe().await.unwrap_err();
        assert_eq!(left(&folder), [""; 0]);
    }

    #[tokio::test]
    async fn what_a_probe_leaves_that_is_given_up_goes_with_the_next() {
        let (folder, storage) = scratch();
        let key = storage.probing.lock().await.clone();
        // As when its caller waits no longer for the answer.
        storage.put(&key, Bytes::from_static(b"x")).await.unwrap();
        assert_eq!(left(&folder), [key.as_str()]);
        storage.probe().await.unwrap();
        assert_eq!(left(&folder), [""; 0]);
    }

    #[tokio::test]
    async fn those_who_probe_at_once_do_not_disturb_each_other() {
        let (_folder, storage) = scratch();
        let probes = (0..20).map(|_| storage.probe());
        let answers = futures::future::join_all(probes).await;
        assert!(answers.iter().all(Result::is_ok), "{answers:?}");
    }

    #[tokio::test]
    async fn what_killed_processes_have_probed_with_is_listed_by_age_and_nothing_else() {
        let (folder, storage) = scratch();
        let begun = SystemTime::now();
        let left_over = [Key::probe(), Key::probe()];
        let artifact = Key::artifact(&sha256_hex(b"x")).unwrap();
        for key in left_over.iter().chain([&artifact]) {
            storage.put(key, Bytes::from_static(b"x")).await.unwrap();
        }
        // Not of our making.
        std::fs::write(folder.path().join("probe-of-someone"), b"x").unwrap();
        let later = SystemTime::now() + Duration::from_secs(60);
        let found = storage.probes_before(later, 10).await.unwrap();
        let mut keys: Vec<Key> = found.into_iter().map(|one| one.key).collect();
        let mut expected = left_over.to_vec();
        for keys in [&mut keys, &mut expected] {
            keys.sort_by(|a, b| a.as_str().cmp(b.as_str()));
        }
        assert_eq!(keys, expected);
        assert_eq!(storage.probes_before(later, 1).await.unwrap().len(), 1);
        let before = begun - Duration::from_secs(60);
        assert_eq!(storage.probes_before(before, 10).await.unwrap(), []);
    }
}
