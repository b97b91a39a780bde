//! JetStream, and nothing about tasks: streams with create-only append and last-value reads
//! ([`EventLog`]), pull queues with heartbeats ([`WorkQueue`]), typed key-value buckets
//! ([`Bucket`]), and plain publish/subscribe for what may be lost.
//!
//! This is the only crate that knows the client library.
//!
//! Two facts shape it. A publish that times out is ambiguous: it may have been stored, so appends read back
//! before they report. And `ack()` is silent, so acknowledgements here are confirmed by the server.

mod bucket;
mod group;
mod log;
mod queue;

use std::time::Duration;

use async_nats::connection::State;
use async_nats::jetstream;
use async_nats::jetstream::stream::{Config, Republish};
use bytes::Bytes;
use futures::{Stream, StreamExt as _};

pub use async_nats::jetstream::stream::RetentionPolicy;
pub use bucket::{Bucket, Change, Entry, Snapshot};
pub use group::{MAX_GROUP, Manner, NewEvent};
pub use log::{Appended, Event, EventLog, MAX_BATCH};
pub use queue::{Delivery, Puller, WorkQueue};

type Cause = Box<dyn std::error::Error + Send + Sync>;

/// How long the server may take to answer one request.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(3);
/// Between attempts to reach a broker that is not there yet.
const RETRY_PAUSE: Duration = Duration::from_millis(250);

/// Settings of the connection to NATS, under `[broker]`.
#[derive(Debug, Clone, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BrokerSettings {
    /// One or more `nats://host:port`, separated by commas.
    pub url: String,
    /// Copies of each stream and bucket: 1 for a single server, 3 for a cluster.
    pub replicas: usize,
    /// How long a starting service waits for the broker before it gives up.
    pub start_timeout: settings::Millis,
}

/// What went wrong with the broker.
#[derive(Debug, thiserror::Error)]
pub enum BrokerError {
    /// There is no connection just now.
    #[error("the broker at {url} cannot be reached")]
    Unreachable {
        /// Where it should be.
        url: String,
    },
    /// The address is malformed or the credentials are refused.
    #[error("cannot connect to the broker at {url}")]
    Connect {
        /// Where.
        url: String,
        /// Why not.
        #[source]
        source: async_nats::ConnectError,
    },
    /// The broker answered no, or did not answer.
    #[error("{operation} failed")]
    Request {
        /// What was asked.
        operation: &'static str,
        /// Its answer.
        #[source]
        source: Cause,
    },
    /// A stored value is not what this version writes.
    #[error("{what} cannot be decoded")]
    Decode {
        /// Which value.
        what: String,
        /// Why not.
        #[source]
        source: Cause,
    },
    /// Someone else changed the value since it was read.
    #[error("{key} was changed by someone else meanwhile")]
    Conflict {
        /// Which key.
        key: String,
    },
}

impl BrokerError {
    fn request<E: Into<Cause>>(operation: &'static str) -> impl FnOnce(E) -> Self {
        move |source| Self::Request {
            operation,
            source: source.into(),
        }
    }
}

/// A connection to NATS. Cheap to clone; it reconnects by itself, for ever.
#[derive(Clone)]
pub struct Broker {
    client: async_nats::Client,
    jetstream: jetstream::Context,
    settings: BrokerSettings,
}

impl Broker {
    /// Connects and waits until JetStream answers, `start_timeout` at most.
    ///
    /// # Errors
    /// When the address is malformed or nothing answers in time.
    pub async fn connect(settings: &BrokerSettings, name: &str) -> Result<Self, BrokerError> {
        let client = async_nats::ConnectOptions::new()
            .name(name)
            .retry_on_initial_connect()
            .max_reconnects(None)
            .reconnect_delay_callback(|attempts| {
                Duration::from_millis((50 * attempts as u64).clamp(50, 1000))
            })
            .ping_interval(Duration::from_secs(5))
            .connection_timeout(REQUEST_TIMEOUT)
            .request_timeout(Some(REQUEST_TIMEOUT))
            .connect(settings.url.split(',').collect::<Vec<_>>())
            .await
            .map_err(|source| BrokerError::Connect {
                url: settings.url.clone(),
                source,
            })?;
        let jetstream = jetstream::ContextBuilder::new()
            .timeout(REQUEST_TIMEOUT)
            .ack_timeout(REQUEST_TIMEOUT)
            .build(client.clone());
        let broker = Self {
            client,
            jetstream,
            settings: settings.clone(),
        };
        broker.patiently(|| broker.probe()).await?;
        Ok(broker)
    }

    /// Tries `operation` until it succeeds or the start timeout has passed; then the last error counts.
    ///
    /// # Errors
    /// What `operation` last failed with.
    pub async fn patiently<T, F>(&self, mut operation: impl FnMut() -> F) -> Result<T, BrokerError>
    where
        F: Future<Output = Result<T, BrokerError>>,
    {
        let deadline = tokio::time::Instant::now() + self.settings.start_timeout.duration();
        loop {
            match operation().await {
                Ok(value) => return Ok(value),
                Err(error) if tokio::time::Instant::now() >= deadline => return Err(error),
                Err(error) => tracing::debug!(%error, "waiting for the broker"),
            }
            tokio::time::sleep(RETRY_PAUSE).await;
        }
    }

    /// Asks JetStream whether it is there.
    ///
    /// # Errors
    /// When it is not.
    pub async fn probe(&self) -> Result<(), BrokerError> {
        if !self.is_connected() {
            return Err(self.unreachable());
        }
        let account = self.jetstream.query_account().await;
        account
            .map(drop)
            .map_err(BrokerError::request("asking for the account"))
    }

    pub(crate) fn is_connected(&self) -> bool {
        self.client.connection_state() == State::Connected
    }

    fn unreachable(&self) -> BrokerError {
        BrokerError::Unreachable {
            url: self.settings.url.clone(),
        }
    }

    /// Creates a stream or brings it to this configuration, and opens it.
    ///
    /// # Errors
    /// When the broker refuses, for instance because the change is not allowed on a stream with messages.
    pub async fn ensure_stream(&self, spec: &StreamSpec) -> Result<(), BrokerError> {
        let config = Config {
            name: spec.name.to_owned(),
            subjects: spec.subjects.iter().map(|&s| s.to_owned()).collect(),
            retention: spec.retention,
            max_messages_per_subject: spec.max_messages_per_subject,
            max_age: spec.max_age,
            max_bytes: spec.max_bytes,
            // A full stream must refuse new messages, never drop accepted ones.
            discard: if spec.refuse_when_full {
                jetstream::stream::DiscardPolicy::New
            } else {
                jetstream::stream::DiscardPolicy::Old
            },
            duplicate_window: spec.duplicate_window,
            republish: spec.republish.map(|(source, destination)| Republish {
                source: source.to_owned(),
                destination: destination.to_owned(),
                headers_only: false,
            }),
            num_replicas: self.settings.replicas,
            allow_direct: true,
            allow_atomic_publish: spec.batches,
            storage: jetstream::stream::StorageType::File,
            ..Config::default()
        };
        let made = self.jetstream.create_or_update_stream(config).await;
        made.map(drop)
            .map_err(BrokerError::request("creating a stream"))
    }

    /// The log kept in `stream`, which must exist.
    pub fn log(&self, stream: &'static str) -> EventLog {
        EventLog::new(self.clone(), stream)
    }

    /// The work queue kept in `stream`, which must exist.
    pub fn queue(&self, stream: &'static str) -> WorkQueue {
        WorkQueue::new(self.clone(), stream)
    }

    /// Opens a bucket of `T`, and creates it if need be. Entries vanish `max_age` after they were last written; zero
    /// keeps them.
    ///
    /// # Errors
    /// When the broker refuses.
    pub async fn bucket<T>(
        &self,
        name: &'static str,
        max_age: Duration,
    ) -> Result<Bucket<T>, BrokerError> {
        let config = jetstream::kv::Config {
            bucket: name.to_owned(),
            history: 1,
            max_age,
            num_replicas: self.settings.replicas,
            ..jetstream::kv::Config::default()
        };
        let store = self.jetstream.create_or_update_key_value(config).await;
        let store = store.map_err(BrokerError::request("opening a bucket"))?;
        Ok(Bucket::new(name, store))
    }

    /// Tells whoever listens now. May be lost.
    pub async fn tell(&self, subject: String, payload: Bytes) {
        if !self.is_connected() {
            return;
        }
        if let Err(error) = self.client.publish(subject, payload).await {
            tracing::debug!(%error, "a message that may be lost was lost");
        }
    }

    /// Messages to `subject`, which may hold wildcards, from now on. Some may be lost.
    ///
    /// # Errors
    /// When the subject is malformed or the client is closed.
    pub async fn listen(
        &self,
        subject: String,
    ) -> Result<impl Stream<Item = (String, Bytes)> + Send + Unpin + use<>, BrokerError> {
        let subscription = self.client.subscribe(subject).await;
        let subscription = subscription.map_err(BrokerError::request("subscribing"))?;
        // The server must know of the subscription before the caller reads state that it wants to see change.
        let flushed = tokio::time::timeout(REQUEST_TIMEOUT, self.client.flush()).await;
        match flushed {
            Ok(Ok(())) => Ok(subscription.map(|m| (m.subject.to_string(), m.payload))),
            Ok(Err(error)) => Err(BrokerError::request("subscribing")(error)),
            Err(_) => Err(self.unreachable()),
        }
    }
}

/// What a stream should be like.
#[derive(Debug, Clone)]
pub struct StreamSpec {
    /// Its name, upper case.
    pub name: &'static str,
    /// What it stores.
    pub subjects: &'static [&'static str],
    /// When messages leave it.
    pub retention: RetentionPolicy,
    /// How many messages one subject keeps; -1 for all.
    pub max_messages_per_subject: i64,
    /// How long a message stays; zero for ever.
    pub max_age: Duration,
    /// How large it may grow; -1 without limit.
    pub max_bytes: i64,
    /// Whether a full stream refuses new messages instead of dropping the oldest.
    pub refuse_when_full: bool,
    /// Whether events may be appended together.
    pub batches: bool,
    /// Within which time a message id is known again.
    pub duplicate_window: Duration,
    /// Subjects (with wildcards) to send again once stored, and where to: what a listener hears there is in the stream.
    pub republish: Option<(&'static str, &'static str)>,
}
