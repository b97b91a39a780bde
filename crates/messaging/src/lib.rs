//! JetStream, and nothing about tasks: streams with create-only append and last-value reads
//! ([`EventLog`]), pull queues with heartbeats ([`WorkQueue`]), typed key-value buckets
//! ([`Bucket`]), and plain publish/subscribe for what may be lost.
//!
//! This is the only crate that knows the client library.
//!
//! Two facts shape it. A publish that times out is ambiguous: it may have been stored, so appends read back
//! before they report. And `ack()` is silent, so acknowledgements here are confirmed by the server.

mod append;
mod bucket;
mod coming;
mod error;
mod group;
mod in_flight;
mod leader;
mod log;
mod options;
mod queue;
mod reader;
#[cfg(test)]
mod scratch;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_nats::connection::State;
use async_nats::jetstream;
use async_nats::jetstream::stream::{Config, Republish};
use bytes::Bytes;
use futures::{Stream, StreamExt as _};

pub use append::{Appended, Replaced};
pub use async_nats::jetstream::stream::RetentionPolicy;
pub use bucket::{Bucket, Change, Entry, Snapshot, Written};
pub use coming::Coming;
pub use error::BrokerError;
pub use group::{MAX_GROUP, Manner, NewEvent};
pub use leader::{Extent, Fill};
pub use log::{Event, EventLog, MAX_BATCH, Page};
pub use queue::{Delivery, Outgoing, Puller, WorkQueue};
pub use reader::Reader;

pub(crate) use error::{is_full, refusal};

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
    /// Holds `ca.pem`, and `cert.pem` with `key.pem` where the broker asks for them; empty is no TLS.
    #[serde(default)]
    pub tls_dir: PathBuf,
    /// Which of the broker's users the service is; empty where the broker has none.
    #[serde(default)]
    pub user: String,
    /// Holds the user's password.
    #[serde(default)]
    pub password_file: PathBuf,
}

impl BrokerSettings {
    /// One server in the clear.
    pub fn new(url: impl Into<String>, start_timeout: settings::Millis) -> Self {
        Self {
            url: url.into(),
            replicas: 1,
            start_timeout,
            tls_dir: PathBuf::new(),
            user: String::new(),
            password_file: PathBuf::new(),
        }
    }
}

/// A connection to NATS. Cheap to clone; it reconnects by itself, for ever.
#[derive(Clone)]
pub struct Broker {
    shared: Arc<Shared>,
}

/// Behind one pointer: each client of the library is a dozen handles and a box, and whoever has a task log has five brokers.
struct Shared {
    client: async_nats::Client,
    jetstream: jetstream::Context,
    settings: BrokerSettings,
}

impl Broker {
    /// Connects and waits until JetStream answers, `start_timeout` at most.
    ///
    /// # Errors
    /// When the address is malformed, a certificate or the password is missing, or nothing answers in time.
    pub async fn connect(settings: &BrokerSettings, name: &str) -> Result<Self, BrokerError> {
        let client = options::of(settings)?
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
        let shared = Shared {
            client,
            jetstream,
            settings: settings.clone(),
        };
        let broker = Self {
            shared: Arc::new(shared),
        };
        broker.patiently(|| broker.probe()).await?;
        Ok(broker)
    }

    /// Tries `operation` until it succeeds or the start timeout has passed; then the last error counts. A broker without room for a
    /// stream is not waited for: it has none until someone makes some.
    ///
    /// # Errors
    /// What `operation` last failed with.
    pub async fn patiently<T, F>(&self, mut operation: impl FnMut() -> F) -> Result<T, BrokerError>
    where
        F: Future<Output = Result<T, BrokerError>>,
    {
        let deadline = tokio::time::Instant::now() + self.shared.settings.start_timeout.duration();
        loop {
            match operation().await {
                Ok(value) => return Ok(value),
                Err(error) if error.is_final() || tokio::time::Instant::now() >= deadline => {
                    return Err(error);
                }
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
        let account = self.jetstream().query_account().await;
        account
            .map(drop)
            .map_err(BrokerError::request("asking for the account"))
    }

    pub(crate) fn client(&self) -> &async_nats::Client {
        &self.shared.client
    }

    pub(crate) fn jetstream(&self) -> &jetstream::Context {
        &self.shared.jetstream
    }

    pub(crate) fn is_connected(&self) -> bool {
        self.client().connection_state() == State::Connected
    }

    /// The handle of `stream`. The broker is not asked whether there is one; `operation` is what it is wanted for.
    pub(crate) async fn stream(
        &self,
        stream: &str,
        operation: &'static str,
    ) -> Result<jetstream::stream::Stream<()>, BrokerError> {
        let handle = self.jetstream().get_stream_no_info(stream).await;
        handle.map_err(BrokerError::request(operation))
    }

    fn unreachable(&self) -> BrokerError {
        BrokerError::Unreachable {
            url: self.shared.settings.url.clone(),
        }
    }

    /// Creates a stream or brings it to this configuration, and opens it.
    ///
    /// # Errors
    /// [`BrokerError::NoRoom`] when the broker has less room than the stream sets aside; when it refuses otherwise, for instance because
    /// the change is not allowed on a stream with messages.
    pub async fn ensure_stream(&self, spec: &StreamSpec) -> Result<(), BrokerError> {
        let config = Config {
            name: spec.name.to_owned(),
            subjects: spec.subjects.iter().map(|&s| s.to_owned()).collect(),
            retention: spec.retention,
            max_messages: spec.max_messages,
            max_messages_per_subject: spec.max_messages_per_subject,
            discard_new_per_subject: spec.refuse_when_full && spec.shares,
            max_message_size: spec.max_message_size,
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
            num_replicas: self.shared.settings.replicas,
            allow_direct: true,
            allow_atomic_publish: spec.batches,
            storage: jetstream::stream::StorageType::File,
            ..Config::default()
        };
        let made = self.jetstream().create_or_update_stream(config).await;
        made.map(drop).map_err(BrokerError::creating(
            "creating a stream",
            spec.name,
            spec.max_bytes,
        ))
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
        self.open_bucket(name, max_age, -1).await
    }

    /// The same of one that takes `max_bytes`, which the broker sets aside. Full it refuses what is new.
    ///
    /// # Errors
    /// [`BrokerError::NoRoom`] when the broker has less room than that; when it refuses otherwise.
    pub async fn bucket_of_size<T>(
        &self,
        name: &'static str,
        max_age: Duration,
        max_bytes: settings::ByteSize,
    ) -> Result<Bucket<T>, BrokerError> {
        let max_bytes = i64::try_from(max_bytes.bytes()).unwrap_or(i64::MAX);
        self.open_bucket(name, max_age, max_bytes).await
    }

    async fn open_bucket<T>(
        &self,
        name: &'static str,
        max_age: Duration,
        max_bytes: i64,
    ) -> Result<Bucket<T>, BrokerError> {
        let config = jetstream::kv::Config {
            bucket: name.to_owned(),
            history: 1,
            max_age,
            max_bytes,
            num_replicas: self.shared.settings.replicas,
            ..jetstream::kv::Config::default()
        };
        let store = self.jetstream().create_or_update_key_value(config).await;
        let store = store.map_err(BrokerError::creating("opening a bucket", name, max_bytes))?;
        Ok(Bucket::new(name, store, self.clone()))
    }

    /// Tells whoever listens now. May be lost.
    pub async fn tell(&self, subject: String, payload: Bytes) {
        if !self.is_connected() {
            return;
        }
        if let Err(error) = self.client().publish(subject, payload).await {
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
        let messages = self.subscribe(subject).await?;
        Ok(messages.map(|m| (m.subject.to_string(), m.payload)))
    }

    /// Events that are sent on to `subject` ([`StreamSpec::republish`]), as they are stored, from now on. Some may be lost.
    ///
    /// # Errors
    /// As for [`listen`](Self::listen).
    pub async fn listen_for_events(
        &self,
        subject: String,
    ) -> Result<impl Stream<Item = Event> + Send + Unpin + use<>, BrokerError> {
        let messages = self.subscribe(subject).await?;
        Ok(messages.filter_map(|message| std::future::ready(log::event(message).ok())))
    }

    async fn subscribe(&self, subject: String) -> Result<async_nats::Subscriber, BrokerError> {
        let subscription = self.client().subscribe(subject).await;
        let subscription = subscription.map_err(BrokerError::request("subscribing"))?;
        // The server must know of the subscription before the caller reads state that it wants to see change.
        let flushed = tokio::time::timeout(REQUEST_TIMEOUT, self.client().flush()).await;
        match flushed {
            Ok(Ok(())) => Ok(subscription),
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
    /// How many messages it keeps; -1 without limit.
    pub max_messages: i64,
    /// How many messages one subject keeps; -1 for all.
    pub max_messages_per_subject: i64,
    /// Whether a subject that has as many refuses new messages, as the stream does, instead of dropping its oldest.
    pub shares: bool,
    /// How large one message may be, headers included; -1 for what the server takes.
    pub max_message_size: i32,
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

#[cfg(test)]
mod tests {
    use std::process::Command;

    use nats_server::NatsServer;

    use super::*;

    #[tokio::test]
    async fn a_broker_that_asks_for_certificates_is_reached_with_one_and_not_without() {
        let folder = tempfile::tempdir().unwrap();
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../../scripts/dev-certs.sh");
        let made = Command::new(script).arg(folder.path()).output().unwrap();
        assert!(made.status.success(), "{made:?}");
        let server = NatsServer::scratch_of(false, Some(folder.path().join("nats"))).unwrap();
        let with = |dir: PathBuf, wait: &str| BrokerSettings {
            tls_dir: dir,
            ..BrokerSettings::new(server.url(), wait.parse().unwrap())
        };
        let good = with(folder.path().join("auth"), "20s");
        let broker = Broker::connect(&good, "test").await.unwrap();
        broker.probe().await.unwrap();

        // The CA alone, without a certificate of one's own.
        let none = with(folder.path().join("ca"), "500ms");
        std::fs::remove_file(folder.path().join("ca/key.pem")).unwrap();
        assert!(Broker::connect(&none, "test").await.is_err());
        let missing = with(folder.path().join("nobody"), "20s");
        let missing = Broker::connect(&missing, "test").await.err().unwrap();
        let text = missing.to_string();
        assert!(
            text.contains("broker.tls_dir") && text.contains("ca.pem"),
            "{text}"
        );
    }

    #[tokio::test]
    async fn a_broker_without_room_for_a_stream_is_not_waited_for() {
        let server = NatsServer::scratch_with_room(1 << 20).unwrap();
        let patient = BrokerSettings::new(server.url(), "10m".parse().unwrap());
        let broker = Broker::connect(&patient, "test").await.unwrap();
        let limit = Duration::from_secs(60);

        let stream = broker.patiently(|| broker.ensure_stream(&crate::scratch::SPEC));
        let stream = tokio::time::timeout(limit, stream).await.unwrap();
        let size = settings::ByteSize::of(32 << 20);
        let bucket =
            broker.patiently(|| broker.bucket_of_size::<u32>("KEPT", Duration::ZERO, size));
        let bucket = tokio::time::timeout(limit, bucket).await.unwrap();
        for (refused, words) in [
            (stream.unwrap_err(), ["16 MiB", "stream TEST:"]),
            (bucket.err().unwrap(), ["32 MiB", "stream KEPT:"]),
        ] {
            let text = refused.to_string();
            assert!(words.iter().all(|word| text.contains(word)), "{text}");
            assert!(text.contains("max_file_store"), "{text}");
        }
    }
}
