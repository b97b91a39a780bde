//! A key-value bucket of JSON values with compare-and-set, and a live copy of it.

use std::collections::BTreeMap;
use std::marker::PhantomData;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use async_nats::jetstream::kv::{self, CreateErrorKind, Operation, UpdateErrorKind};
use async_nats::jetstream::stream::LastRawMessageErrorKind;
use bytes::Bytes;
use futures::{StreamExt as _, TryStreamExt as _};
use lifecycle::Tasks;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::watch;

use crate::log::{MAX_BATCH, direct_get};
use crate::{Broker, BrokerError, Event, in_flight, leader};

/// How often a live copy is read anew, in case the watch missed something.
const RECONCILE: Duration = Duration::from_secs(30);
const WATCH_PAUSE: Duration = Duration::from_millis(500);

/// A bucket of `T`.
pub struct Bucket<T> {
    name: &'static str,
    store: kv::Store,
    broker: Broker,
    kind: PhantomData<fn() -> T>,
}

impl<T> Clone for Bucket<T> {
    fn clone(&self) -> Self {
        Self {
            name: self.name,
            store: self.store.clone(),
            broker: self.broker.clone(),
            kind: PhantomData,
        }
    }
}

/// A value and the revision that a later [update](Bucket::update) must name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry<T> {
    /// What is stored.
    pub value: T,
    /// Which write stored it.
    pub revision: u64,
}

/// One write to a bucket, as it is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Written<T> {
    /// Which key.
    pub key: String,
    /// What was written; `None` where the key was removed.
    pub value: Option<T>,
    /// Which write it is; grows from write to write, over all keys of the bucket.
    pub revision: u64,
    /// When, by the broker's clock.
    pub at: SystemTime,
}

/// One change of a bucket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change<T> {
    /// A key has a new value.
    Put(String, T),
    /// A key is gone.
    Gone(String),
}

/// All values of a bucket by key, as last seen.
pub type Snapshot<T> = Arc<BTreeMap<String, T>>;

impl<T> Bucket<T> {
    pub(crate) fn new(name: &'static str, store: kv::Store, broker: Broker) -> Self {
        Self {
            name,
            store,
            broker,
            kind: PhantomData,
        }
    }
}

impl<T: Serialize + DeserializeOwned> Bucket<T> {
    fn decode(&self, key: &str, bytes: &[u8]) -> Result<T, BrokerError> {
        serde_json::from_slice(bytes).map_err(|source| BrokerError::Decode {
            what: format!("{}/{key}", self.name),
            source: source.into(),
        })
    }

    fn encode(&self, key: &str, value: &T) -> Result<Bytes, BrokerError> {
        let bytes = serde_json::to_vec(value).map_err(|source| BrokerError::Decode {
            what: format!("{}/{key}", self.name),
            source: source.into(),
        })?;
        Ok(bytes.into())
    }

    fn conflict(&self, key: &str) -> BrokerError {
        BrokerError::Conflict {
            key: format!("{}/{key}", self.name),
        }
    }

    /// The value at `key`.
    ///
    /// # Errors
    /// When the broker does not answer or the value cannot be decoded.
    pub async fn get(&self, key: &str) -> Result<Option<Entry<T>>, BrokerError> {
        let entry = self.store.entry(key).await;
        let entry = entry.map_err(BrokerError::request("reading a bucket"))?;
        let Some(entry) = entry.filter(|e| e.operation == Operation::Put) else {
            return Ok(None);
        };
        Ok(Some(Entry {
            value: self.decode(key, &entry.value)?,
            revision: entry.revision,
        }))
    }

    /// Whether there is a value at `key`, by who leads the bucket: what was stored before is seen, as [`get`](Self::get), which any copy
    /// answers, does not promise.
    ///
    /// # Errors
    /// When the broker does not answer.
    pub async fn holds(&self, key: &str) -> Result<bool, BrokerError> {
        let subject = format!("$KV.{}.{key}", self.name);
        let last = self.store.stream.get_last_raw_message_by_subject(&subject);
        match last.await {
            Ok(message) => Ok(message.headers.get("KV-Operation").is_none()),
            Err(error) if error.kind() == LastRawMessageErrorKind::NoMessageFound => Ok(false),
            Err(error) => Err(BrokerError::request("reading a bucket")(error)),
        }
    }

    /// The present, by the clock of the broker that leads the bucket.
    ///
    /// # Errors
    /// When the broker does not answer.
    pub async fn time(&self) -> Result<SystemTime, BrokerError> {
        let stream = format!("KV_{}", self.name);
        crate::log::time(&self.broker, &stream).await
    }

    /// Stores a value at a key that has none.
    ///
    /// # Errors
    /// [`BrokerError::Conflict`] when it has one, [`BrokerError::Full`] when a bucket [of a size](Broker::bucket_of_size) has no room.
    pub async fn create(&self, key: &str, value: &T) -> Result<u64, BrokerError> {
        let bytes = self.encode(key, value)?;
        let created = in_flight::until_settled(|| self.store.create(key, bytes.clone()));
        created.await.map_err(|error| match error.kind() {
            CreateErrorKind::AlreadyExists => self.conflict(key),
            _ if crate::is_full(&error) => BrokerError::Full { stream: self.name },
            _ => BrokerError::request("writing a bucket")(error),
        })
    }

    /// Replaces the value that was read at `revision`.
    ///
    /// # Errors
    /// [`BrokerError::Conflict`] when it has changed since.
    pub async fn update(&self, key: &str, value: &T, revision: u64) -> Result<u64, BrokerError> {
        let bytes = self.encode(key, value)?;
        let updated = in_flight::until_settled(|| self.store.update(key, bytes.clone(), revision));
        updated.await.map_err(|error| match error.kind() {
            UpdateErrorKind::WrongLastRevision => self.conflict(key),
            _ => BrokerError::request("writing a bucket")(error),
        })
    }

    /// Stores a value whatever was there.
    ///
    /// # Errors
    /// When the broker does not confirm.
    pub async fn put(&self, key: &str, value: &T) -> Result<u64, BrokerError> {
        let bytes = self.encode(key, value)?;
        let put = self.store.put(key, bytes).await;
        put.map_err(BrokerError::request("writing a bucket"))
    }

    /// Removes a key.
    ///
    /// # Errors
    /// When the broker does not confirm.
    pub async fn delete(&self, key: &str) -> Result<(), BrokerError> {
        let deleted = self.store.delete(key).await;
        deleted.map_err(BrokerError::request("writing a bucket"))
    }

    /// Removes a key whose value was written at `revision`.
    ///
    /// # Errors
    /// [`BrokerError::Conflict`] when it has changed since.
    pub async fn delete_at(&self, key: &str, revision: u64) -> Result<(), BrokerError> {
        let expected = Some(revision);
        let deleted = in_flight::until_settled(|| self.store.delete_expect_revision(key, expected));
        deleted.await.map_err(|error| match error.kind() {
            UpdateErrorKind::WrongLastRevision => self.conflict(key),
            _ => BrokerError::request("writing a bucket")(error),
        })
    }

    /// Removes what was written at `key` up to `revision`, and leaves nothing in its place: nobody who follows the bucket hears of it, and no key
    /// that is gone takes room for ever. What was written since stays. True when something went.
    ///
    /// # Errors
    /// When the broker does not confirm.
    pub async fn forget(&self, key: &str, revision: u64) -> Result<bool, BrokerError> {
        let subject = format!("$KV.{}.{key}", self.name);
        // Up to but not including it.
        let purge = self.store.stream.purge().filter(subject);
        let purged = purge.sequence(revision + 1).await;
        let purged = purged.map_err(BrokerError::request("writing a bucket"))?;
        Ok(purged.purged > 0)
    }

    /// The last write of each key that was written after `revision`, in the order of their revisions, as many as one read returns:
    /// less than [`MAX_BATCH`] means that these are all.
    ///
    /// # Errors
    /// When the broker does not answer.
    pub async fn written_since(&self, revision: u64) -> Result<Vec<Written<T>>, BrokerError> {
        let filter = format!("$KV.{}.>", self.name);
        let request = serde_json::json!({
            "seq": revision + 1, "next_by_subj": filter, "batch": MAX_BATCH,
        });
        let stream = format!("KV_{}", self.name);
        let events = direct_get(&self.broker, &stream, request).await?;
        Ok(events
            .iter()
            .filter_map(|event| self.written(event))
            .collect())
    }

    /// Some of the last writes after `revision`, in the order of their revisions, and the one behind which to go on; `None` where there are no more. Any
    /// replica answers [`written_since`](Self::written_since), a page from one and the next from another, which may lag: it has neither a key's
    /// last write nor, behind `revision`, the one before that. So where an answer ends, whoever leads the bucket is asked what comes next. For
    /// whoever must miss no key.
    ///
    /// # Errors
    /// When the broker does not answer, or the bucket has no leader just now.
    pub async fn page_since(
        &self,
        revision: u64,
    ) -> Result<(Vec<Written<T>>, Option<u64>), BrokerError> {
        let mut page = self.written_since(revision).await?;
        let seen = page.last().map_or(revision, |last| last.revision);
        if page.len() >= MAX_BATCH {
            return Ok((page, Some(seen)));
        }
        let Some(event) = self.next_at_leader(seen + 1).await? else {
            return Ok((page, None));
        };
        page.extend(self.written(&event));
        Ok((page, Some(event.sequence)))
    }

    /// The first write from `revision` on that is the last one of its key, as whoever leads the bucket has it.
    async fn next_at_leader(&self, revision: u64) -> Result<Option<Event>, BrokerError> {
        let filter = format!("$KV.{}.>", self.name);
        let stream = &self.store.stream;
        let found = stream.get_first_raw_message_by_subject(filter, revision);
        match found.await {
            Ok(found) => Ok(Some(leader::event(found))),
            Err(error) if error.kind() == LastRawMessageErrorKind::NoMessageFound => Ok(None),
            Err(error) => Err(BrokerError::request("reading a bucket")(error)),
        }
    }

    fn written(&self, event: &Event) -> Option<Written<T>> {
        let prefix = format!("$KV.{}.", self.name);
        let key = event.subject.strip_prefix(&prefix)?.to_owned();
        let removed = event.header("KV-Operation").is_some() || event.payload.is_empty();
        let value = match self.decode(&key, &event.payload) {
            _ if removed => None,
            Ok(value) => Some(value),
            Err(error) => {
                tracing::error!(%error, "left out");
                None
            }
        };
        Some(Written {
            key,
            value,
            revision: event.sequence,
            at: event.stored_at().unwrap_or(SystemTime::UNIX_EPOCH),
        })
    }

    /// Every value by key. A value that cannot be decoded is logged and left out: it must not hide the others.
    ///
    /// # Errors
    /// When the broker does not answer.
    pub async fn all(&self) -> Result<BTreeMap<String, T>, BrokerError> {
        let keys = self.store.keys().await;
        let keys = keys.map_err(BrokerError::request("listing a bucket"))?;
        let keys: Vec<String> = keys
            .try_collect()
            .await
            .map_err(BrokerError::request("listing a bucket"))?;
        let mut all = BTreeMap::new();
        for key in keys {
            match self.get(&key).await {
                Ok(Some(entry)) => drop(all.insert(key, entry.value)),
                Ok(None) => {}
                Err(error @ BrokerError::Decode { .. }) => {
                    tracing::error!(%error, "left out");
                }
                Err(error) => return Err(error),
            }
        }
        Ok(all)
    }
}

impl<T: Serialize + DeserializeOwned + Clone + Send + Sync + 'static> Bucket<T> {
    /// A copy of the bucket that follows its changes within milliseconds for as long as the service runs, and is
    /// read anew now and then in case a change was missed.
    ///
    /// # Errors
    /// When the bucket cannot be read now.
    pub async fn follow(
        &self,
        tasks: &Tasks,
        task: &'static str,
    ) -> Result<watch::Receiver<Snapshot<T>>, BrokerError> {
        let (sender, receiver) = watch::channel(Arc::new(self.all().await?));
        let bucket = self.clone();
        let stopping = tasks.stopping();
        tasks.critical(task, async move {
            tokio::select! {
                () = stopping => {}
                () = bucket.keep_following(&sender) => {}
            }
            Ok::<(), BrokerError>(())
        });
        Ok(receiver)
    }

    async fn keep_following(&self, copy: &watch::Sender<Snapshot<T>>) {
        loop {
            if let Err(error) = self.follow_once(copy).await {
                tracing::debug!(%error, bucket = self.name, "watching again");
                tokio::time::sleep(WATCH_PAUSE).await;
            }
        }
    }

    /// Watches until the watch breaks or it is time to read everything anew.
    async fn follow_once(&self, copy: &watch::Sender<Snapshot<T>>) -> Result<(), BrokerError> {
        // Watch first, read second: a change between the two is then seen twice rather than never.
        let watch = self.store.watch_all().await;
        let mut watch = watch.map_err(BrokerError::request("watching a bucket"))?;
        let all = self.all().await?;
        copy.send_replace(Arc::new(all));
        let until = tokio::time::Instant::now() + RECONCILE;
        while let Ok(next) = tokio::time::timeout_at(until, watch.next()).await {
            let Some(entry) = next else { break };
            let entry = entry.map_err(BrokerError::request("watching a bucket"))?;
            let change = match entry.operation {
                Operation::Put => match self.decode(&entry.key, &entry.value) {
                    Ok(value) => Change::Put(entry.key, value),
                    Err(error) => {
                        tracing::error!(%error, "left out");
                        continue;
                    }
                },
                Operation::Delete | Operation::Purge => Change::Gone(entry.key),
            };
            copy.send_modify(|all| apply(Arc::make_mut(all), change));
        }
        Ok(())
    }
}

fn apply<T>(all: &mut BTreeMap<String, T>, change: Change<T>) {
    match change {
        Change::Put(key, value) => drop(all.insert(key, value)),
        Change::Gone(key) => drop(all.remove(&key)),
    }
}
