//! Requests that fail as a store's may, for tests of what stands above: a layer over the real store that a file switches on and off
//! while services run.
//!
//! The setting `storage.faults` names the file; it is read before each request, and where there is none, none fails. It holds
//! [`FaultPlan`] as JSON. Only with a folder as the store: what others share is not to be disturbed.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use futures::StreamExt as _;
use futures::stream::{self, BoxStream};
use object_store::path::Path;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, GetResultPayload, ListResult, MultipartUpload,
    ObjectMeta, ObjectStore, PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
};

use crate::whole::ReadBack;

/// The longest that a request is held up.
const MAX_DELAY: Duration = Duration::from_secs(30);

/// How many of a hundred requests go wrong, and how. What is left goes well.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct FaultPlan {
    /// Which requests they are follows from this and from the order in which a process sends them.
    pub seed: u64,
    /// Fail, and nothing was done.
    pub errors: u8,
    /// Are carried out, and answer that they failed.
    pub lost_answers: u8,
    /// Reads that break off in the middle.
    pub broken_reads: u8,
    /// Writes of whole objects that answer that all is stored, where other bytes are.
    pub lies: u8,
    /// Writes of whole objects that fail as on a full disk.
    pub full: u8,
    /// Requests that take `delay_ms` longer, whatever becomes of them.
    pub delays: u8,
    /// Milliseconds.
    pub delay_ms: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    Error,
    LostAnswer,
    BrokenRead,
    Lie,
    Full,
}

/// What is to become of the `number`-th request: which fault, and whether it is held up.
fn fate(plan: &FaultPlan, number: u64) -> (Option<Fault>, bool) {
    let random = mix(plan.seed.wrapping_add(mix(number)));
    let (what, late) = (random % 100, (random >> 32) % 100);
    let faults = [
        (Fault::Error, plan.errors),
        (Fault::LostAnswer, plan.lost_answers),
        (Fault::BrokenRead, plan.broken_reads),
        (Fault::Lie, plan.lies),
        (Fault::Full, plan.full),
    ];
    let mut below = 0;
    let fault = faults.into_iter().find(|(_, share)| {
        below += u64::from(*share);
        what < below
    });
    (fault.map(|(fault, _)| fault), late < u64::from(plan.delays))
}

/// SplitMix64 (Steele, Lea and Flood, 2014).
fn mix(seed: u64) -> u64 {
    let z = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// A store whose requests fail as a file says.
#[derive(Debug, Clone)]
pub(crate) struct Faulty {
    inner: Arc<dyn ObjectStore>,
    file: PathBuf,
    requests: Arc<AtomicU64>,
}

impl Faulty {
    pub(crate) fn new(inner: Arc<dyn ObjectStore>, file: PathBuf) -> Self {
        tracing::warn!(file = %file.display(), "requests to the object store fail as this file says");
        Self {
            inner,
            file,
            requests: Arc::default(),
        }
    }

    /// Holds the request up, if that is its fate, and says how it goes on.
    async fn strike(&self) -> Option<Fault> {
        let text = tokio::fs::read(&self.file).await.ok()?;
        // A file that is just being written is none.
        let plan: FaultPlan = serde_json::from_slice(&text).ok()?;
        let number = self.requests.fetch_add(1, Ordering::Relaxed);
        let (fault, late) = fate(&plan, number);
        if late {
            let delay = Duration::from_millis(plan.delay_ms).min(MAX_DELAY);
            tokio::time::sleep(delay).await;
        }
        fault
    }

    /// Carries a request out, or not, and gives back its answer, or not.
    async fn through<T>(&self, request: impl Future<Output = Result<T>>) -> Result<T> {
        match self.strike().await {
            Some(Fault::Error) => Err(failed("a fault was asked for")),
            Some(Fault::LostAnswer) => {
                request.await?;
                Err(failed("an answer was to be lost"))
            }
            Some(Fault::BrokenRead | Fault::Lie | Fault::Full) | None => request.await,
        }
    }
}

/// The same number of other bytes.
fn other(payload: &PutPayload) -> PutPayload {
    let bytes = payload.iter().flat_map(|part| part.iter());
    let bytes: Vec<u8> = bytes.map(|byte| !byte).collect();
    PutPayload::from(bytes)
}

fn full() -> Error {
    Error::Generic {
        store: "faulty",
        source: std::io::Error::from(std::io::ErrorKind::StorageFull).into(),
    }
}

fn failed(why: &'static str) -> Error {
    Error::Generic {
        store: "faulty",
        source: why.into(),
    }
}

impl fmt::Display for Faulty {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} with faults", self.inner)
    }
}

#[async_trait]
impl ObjectStore for Faulty {
    async fn put_opts(
        &self,
        location: &Path,
        payload: PutPayload,
        mut options: PutOptions,
    ) -> Result<PutResult> {
        // What is read back may fail by itself.
        ReadBack::decline(&mut options);
        match self.strike().await {
            Some(Fault::Error) => Err(failed("a fault was asked for")),
            Some(Fault::Full) => Err(full()),
            Some(Fault::Lie) => {
                let other = other(&payload);
                self.inner.put_opts(location, other, options).await
            }
            Some(Fault::LostAnswer) => {
                self.inner.put_opts(location, payload, options).await?;
                Err(failed("an answer was to be lost"))
            }
            Some(Fault::BrokenRead) | None => self.inner.put_opts(location, payload, options).await,
        }
    }

    async fn put_multipart_opts(
        &self,
        location: &Path,
        options: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        let put = self.inner.put_multipart_opts(location, options);
        self.through(put).await
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        let head = options.head;
        match self.strike().await {
            Some(Fault::Error | Fault::LostAnswer) => Err(failed("a fault was asked for")),
            Some(Fault::BrokenRead) if !head => {
                broken(self.inner.get_opts(location, options).await?).await
            }
            Some(Fault::BrokenRead | Fault::Lie | Fault::Full) | None => {
                self.inner.get_opts(location, options).await
            }
        }
    }

    fn delete_stream(
        &self,
        locations: BoxStream<'static, Result<Path>>,
    ) -> BoxStream<'static, Result<Path>> {
        // Whether a removal fails matters to nobody, so none does. Whoever asks for it waits for it all the same.
        let faulty = self.clone();
        let held_up = locations.then(move |location| {
            let faulty = faulty.clone();
            async move {
                faulty.strike().await;
                location
            }
        });
        self.inner.delete_stream(held_up.boxed())
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.inner.list(prefix)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.through(self.inner.list_with_delimiter(prefix)).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.through(self.inner.copy_opts(from, to, options)).await
    }
}

/// The same answer, whose bytes break off half-way.
async fn broken(whole: GetResult) -> Result<GetResult> {
    let (meta, range) = (whole.meta.clone(), whole.range.clone());
    let (attributes, extensions) = (whole.attributes.clone(), whole.extensions.clone());
    let half = usize::try_from((range.end - range.start) / 2).unwrap_or(usize::MAX);
    let bytes = whole.bytes().await?;
    let first = bytes.slice(..half.min(bytes.len()));
    let parts = [Ok(first), Err(failed("a read was to break off"))];
    Ok(GetResult {
        payload: GetResultPayload::Stream(stream::iter(parts).boxed()),
        meta,
        range,
        attributes,
        extensions,
    })
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::{Key, Storage, StorageError, StorageSettings, sha256_hex};

    fn faulty() -> (tempfile::TempDir, PathBuf, Storage) {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("faults.json");
        let url = format!("file://{}/objects", folder.path().display());
        let mut settings = StorageSettings::new(url);
        settings.faults = file.clone();
        let storage = Storage::open(&settings).unwrap();
        (folder, file, storage)
    }

    fn set(file: &PathBuf, plan: FaultPlan) {
        std::fs::write(file, serde_json::to_vec(&plan).unwrap()).unwrap();
    }

    #[tokio::test]
    async fn a_file_switches_each_fault_on_and_off_while_the_store_is_open() {
        let (_folder, file, storage) = faulty();
        let key = Key::artifact(&sha256_hex(b"x")).unwrap();
        let data = Bytes::from_static(b"xy");
        let all = |plan: FaultPlan| set(&file, plan);
        all(FaultPlan {
            errors: 100,
            ..FaultPlan::default()
        });
        assert!(storage.put(&key, data.clone()).await.is_err());
        std::fs::remove_file(&file).unwrap();
        assert_eq!(storage.size(&key).await.unwrap(), None, "it was not stored");
        all(FaultPlan {
            lost_answers: 100,
            ..FaultPlan::default()
        });
        assert!(storage.put(&key, data.clone()).await.is_err());
        all(FaultPlan {
            broken_reads: 100,
            ..FaultPlan::default()
        });
        assert_eq!(storage.size(&key).await.unwrap(), Some(2), "it was stored");
        assert!(storage.get(&key, 2).await.is_err());
        all(FaultPlan {
            full: 100,
            ..FaultPlan::default()
        });
        let error = storage.put(&key, data.clone()).await.unwrap_err();
        let StorageError::Request { source, .. } = error else {
            panic!("{error}");
        };
        let Error::Generic { source, .. } = source else {
            panic!("{source}");
        };
        let cause = source.downcast::<std::io::Error>().unwrap();
        assert_eq!(cause.kind(), std::io::ErrorKind::StorageFull);
        assert_eq!(storage.get(&key, 2).await.unwrap(), data, "it stays");
        all(FaultPlan {
            lies: 100,
            ..FaultPlan::default()
        });
        storage.put(&key, data.clone()).await.unwrap();
        let found = storage.get(&key, 2).await.unwrap();
        assert!(found.len() == data.len() && found != data);
        std::fs::remove_file(&file).unwrap();
        storage.put(&key, data.clone()).await.unwrap();
        assert_eq!(storage.get(&key, 2).await.unwrap(), data);
    }

    #[tokio::test]
    async fn what_is_read_back_of_a_lie_or_breaks_off_is_told_to_the_writer() {
        let (_folder, file, storage) = faulty();
        let key = Key::artifact(&sha256_hex(b"x")).unwrap();
        let data = Bytes::from_static(b"xy");
        set(
            &file,
            FaultPlan {
                broken_reads: 100,
                ..FaultPlan::default()
            },
        );
        assert!(storage.put_and_get(&key, data.clone()).await.is_err());
        set(
            &file,
            FaultPlan {
                lies: 100,
                ..FaultPlan::default()
            },
        );
        let found = storage.put_and_get(&key, data.clone()).await.unwrap();
        assert!(found.len() == data.len() && found != data);
        std::fs::remove_file(&file).unwrap();
        let found = storage.put_and_get(&key, data.clone()).await.unwrap();
        assert_eq!(found, data);
    }

    #[test]
    fn about_as_many_requests_fail_as_the_plan_says_and_the_same_ones_again() {
        let plan = FaultPlan {
            seed: 7,
            errors: 20,
            lost_answers: 10,
            broken_reads: 10,
            delays: 30,
            delay_ms: 1,
            ..FaultPlan::default()
        };
        let fates: Vec<_> = (0..10_000).map(|number| fate(&plan, number)).collect();
        let again: Vec<_> = (0..10_000).map(|number| fate(&plan, number)).collect();
        assert_eq!(fates, again);
        let share = |wanted: Option<Fault>| fates.iter().filter(|f| f.0 == wanted).count();
        assert!((1_800..2_200).contains(&share(Some(Fault::Error))));
        assert!((800..1_200).contains(&share(Some(Fault::LostAnswer))));
        assert!((5_700..6_300).contains(&share(None)));
        let late = fates.iter().filter(|fate| fate.1).count();
        assert!((2_700..3_300).contains(&late), "{late}");
    }

    #[test]
    fn faults_are_refused_for_a_store_that_others_share() {
        let mut settings = StorageSettings::new("s3://bucket/prefix");
        settings.faults = "/tmp/faults.json".into();
        let refused = Storage::open(&settings).map(drop).unwrap_err();
        assert!(matches!(refused, StorageError::Faults), "{refused}");
    }
}
