//! A stream as a work queue: publish once by message id, pull with room, heartbeat while working.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use async_nats::jetstream::consumer::pull;
use async_nats::jetstream::consumer::{AckPolicy, DeliverPolicy, PullConsumer};
use async_nats::jetstream::context::{PublishError, PublishErrorKind};
use async_nats::jetstream::message::PublishMessage;
use async_nats::jetstream::publish::PublishAck;
use async_nats::jetstream::{self, AckKind};
use bytes::Bytes;
use futures::StreamExt as _;

use crate::append::trace_headers;
use crate::coming::Coming;
use crate::{Broker, BrokerError, REQUEST_TIMEOUT, in_flight};

/// How long one pull waits for messages before it is asked again.
const PULL_EXPIRES: Duration = Duration::from_secs(5);
/// Of an ack wait, what may pass without a word: the broker began to count before the message came.
const LAPSED_TENTHS: u32 = 9;
const OPENING: &str = "opening a queue";
const ACKNOWLEDGING: &str = "acknowledging work";

/// A stream from which each message is taken by one worker at a time.
#[derive(Clone)]
pub struct WorkQueue {
    broker: Broker,
    stream: &'static str,
}

/// A message on its way into a queue.
#[derive(Debug, Clone)]
pub struct Outgoing {
    /// Where to.
    pub subject: String,
    /// What it is known by within the stream's duplicate window; without one it is never a duplicate.
    pub id: Option<String>,
    /// Beside those that we set ourselves.
    pub headers: Vec<(&'static str, String)>,
    /// What it says.
    pub payload: Bytes,
}

/// One durable consumer of a queue, shared by whoever pulls under the same name.
#[derive(Clone)]
pub struct Puller {
    broker: Broker,
    consumer: PullConsumer,
    ack_wait: Duration,
}

/// One message, to be [acknowledged](Delivery::ack) or [given back](Delivery::give_back). If it is neither, it is
/// delivered again one ack wait after its last [heartbeat](Delivery::heartbeat).
pub struct Delivery {
    broker: Broker,
    message: jetstream::Message,
    ack_wait: Duration,
    /// When the broker was last told that it goes on; it came then, at first.
    told: Mutex<Instant>,
    /// Stays, once an ack wait has passed without a word.
    lapsed: AtomicBool,
}

impl WorkQueue {
    pub(crate) fn new(broker: Broker, stream: &'static str) -> Self {
        Self { broker, stream }
    }

    /// Stores a message unless one with the same id was stored within the stream's duplicate window.
    ///
    /// # Errors
    /// When it is not known to be stored.
    pub async fn publish(
        &self,
        subject: &str,
        message_id: &str,
        payload: Bytes,
    ) -> Result<(), BrokerError> {
        let message = Outgoing {
            subject: subject.to_owned(),
            id: Some(message_id.to_owned()),
            headers: Vec::new(),
            payload,
        };
        self.send(message).await.map(drop)
    }

    /// Stores a message, unless one with its id is known. Its place in the stream, or that of the one that is known.
    ///
    /// # Errors
    /// [`BrokerError::Full`] where there is no room; others when it is not known to be stored.
    pub async fn send(&self, message: Outgoing) -> Result<u64, BrokerError> {
        let mut headers = trace_headers();
        for (name, value) in message.headers {
            headers.insert(name, value);
        }
        let mut publish = PublishMessage::build()
            .payload(message.payload)
            .headers(headers)
            .expected_stream(self.stream);
        if let Some(id) = message.id {
            publish = publish.message_id(id);
        }
        let stored = self.offer(&message.subject, publish).await;
        let stored = stored.map_err(|error| self.failed(error))?;
        Ok(stored.sequence)
    }

    /// Stores a message unless one is there at its subject, waiting or being worked on, or one with its id was stored within the stream's
    /// duplicate window; without an id it is never such a one. True when this stored it. The caller must be ready for one that is stored
    /// although an error says that this is not known.
    ///
    /// # Errors
    /// When it is not known to be stored.
    pub async fn create(
        &self,
        subject: &str,
        message_id: Option<&str>,
        payload: Bytes,
    ) -> Result<bool, BrokerError> {
        if !self.broker.is_connected() {
            return Err(self.broker.unreachable());
        }
        let mut publish = PublishMessage::build()
            .payload(payload)
            .headers(trace_headers())
            .expected_stream(self.stream)
            .expected_last_subject_sequence(0);
        if let Some(id) = message_id {
            publish = publish.message_id(id);
        }
        match self.offer(subject, publish).await {
            Ok(stored) => Ok(!stored.duplicate),
            Err(error) if error.kind() == PublishErrorKind::WrongLastSequence => Ok(false),
            Err(error) => Err(self.failed(error)),
        }
    }

    /// One that another keeps out which is on its way is offered again until it is known what there is.
    async fn offer(
        &self,
        subject: &str,
        message: PublishMessage,
    ) -> Result<PublishAck, PublishError> {
        let context = self.broker.jetstream();
        in_flight::until_settled(|| async {
            let sent = context.send_publish(subject.to_owned(), message.clone());
            sent.await?.await
        })
        .await
    }

    fn failed(&self, error: PublishError) -> BrokerError {
        if crate::is_full(&error) {
            let stream = self.stream;
            return BrokerError::Full { stream };
        }
        BrokerError::request("queueing work")(error)
    }

    /// How many messages wait or are being worked on, by subject, among those that `filter` matches.
    ///
    /// # Errors
    /// When the broker does not answer.
    pub async fn depth(&self, filter: &str) -> Result<Vec<(String, usize)>, BrokerError> {
        let stream = self.broker.stream(self.stream, OPENING).await?;
        let info = stream.info_with_subjects(filter).await;
        let mut info = info.map_err(BrokerError::request("reading a queue's depth"))?;
        let mut depths = Vec::new();
        while let Some(subject) = info.next().await {
            depths.push(subject.map_err(BrokerError::request("reading a queue's depth"))?);
        }
        Ok(depths)
    }

    /// Removes all but the last `keep` messages of those that `filter` matches; how many went.
    ///
    /// # Errors
    /// When the broker does not say that it has.
    pub async fn keep_last(&self, filter: &str, keep: u64) -> Result<u64, BrokerError> {
        let stream = self.broker.stream(self.stream, OPENING).await?;
        let purged = stream.purge().filter(filter).keep(keep).await;
        let purged = purged.map_err(BrokerError::request("purging a queue"))?;
        Ok(purged.purged)
    }

    /// The durable consumers, each with the sequence up to which everything that it may hand out has been acknowledged.
    ///
    /// # Errors
    /// When the broker does not answer.
    pub async fn consumers(&self) -> Result<Vec<(String, u64)>, BrokerError> {
        let stream = self.broker.stream(self.stream, OPENING).await?;
        let mut consumers = stream.consumers();
        let mut all = Vec::new();
        while let Some(info) = consumers.next().await {
            let info = info.map_err(BrokerError::request("listing consumers"))?;
            all.push((info.name, info.ack_floor.stream_sequence));
        }
        Ok(all)
    }

    /// Removes a consumer; what it had out is nobody's.
    ///
    /// # Errors
    /// When the broker does not answer, or there is no such consumer.
    pub async fn remove_consumer(&self, name: &str) -> Result<(), BrokerError> {
        let context = &self.broker.jetstream();
        let removed = context.delete_consumer_from_stream(name, self.stream).await;
        removed
            .map(drop)
            .map_err(BrokerError::request("removing a consumer"))
    }

    /// Opens the durable consumer `name` on subjects that `filter` matches.
    ///
    /// `ack_wait` is how long a silent worker keeps a message; `max_out` how many messages may be out at once.
    /// Deliveries are not counted here: whoever takes work decides from its own record when to stop trying.
    ///
    /// # Errors
    /// When the broker refuses, or the stream is not there.
    pub async fn puller(
        &self,
        name: &str,
        filter: &str,
        ack_wait: Duration,
        max_out: i64,
    ) -> Result<Puller, BrokerError> {
        let config = pull::Config {
            durable_name: Some(name.to_owned()),
            filter_subject: filter.to_owned(),
            ack_policy: AckPolicy::Explicit,
            deliver_policy: DeliverPolicy::All,
            ack_wait,
            max_ack_pending: max_out,
            ..pull::Config::default()
        };
        let made = self
            .broker
            .jetstream()
            .create_consumer_on_stream(config, self.stream);
        let consumer = made
            .await
            .map_err(BrokerError::request("opening a consumer"))?;
        Ok(Puller {
            broker: self.broker.clone(),
            consumer,
            ack_wait,
        })
    }
}

impl Puller {
    /// Waits a few seconds for up to `room` messages. Comes back as soon as it has one or more; empty when there were none.
    ///
    /// # Errors
    /// When the broker cannot be asked. Messages that came before the error are not lost: they are delivered again.
    pub async fn pull(&self, room: usize) -> Result<Vec<Delivery>, BrokerError> {
        let Some(first) = self.one().await? else {
            return Ok(Vec::new());
        };
        let mut all = vec![first];
        all.extend(self.more(room.saturating_sub(1)).await);
        Ok(all)
    }

    /// Waits a few seconds for a message; none when there was none.
    ///
    /// # Errors
    /// As [`pull`](Self::pull).
    pub async fn one(&self) -> Result<Option<Delivery>, BrokerError> {
        Ok(self.request(1, Some(PULL_EXPIRES)).await?.pop())
    }

    /// Asks for up to `room` messages at once, which come one by one, each as soon as it is there: for who has the room to itself for a few
    /// seconds. What is dropped before its end leaves what is on its way to its ack wait.
    ///
    /// # Errors
    /// When the broker cannot be asked.
    pub async fn coming(&self, room: usize) -> Result<Coming, BrokerError> {
        let asked = Instant::now();
        let batch = self.consumer.batch().max_messages(room);
        let messages = batch.expires(PULL_EXPIRES).messages().await;
        let messages =
            messages.map_err(BrokerError::request::<pull::BatchError>("pulling work"))?;
        let until = tokio::time::Instant::now() + PULL_EXPIRES + REQUEST_TIMEOUT;
        Ok(Coming::new(
            self.broker.clone(),
            messages,
            self.ack_wait,
            until,
            asked,
        ))
    }

    /// Up to `room` messages that are there now, for who has one already. None where the broker cannot be asked: what is in hand is not given up for what is not.
    pub async fn more(&self, room: usize) -> Vec<Delivery> {
        if room == 0 {
            return Vec::new();
        }
        let more = self.request(room, None).await;
        more.inspect_err(|error| tracing::debug!(%error, "no more than there is"))
            .unwrap_or_default()
    }

    async fn request(
        &self,
        room: usize,
        wait: Option<Duration>,
    ) -> Result<Vec<Delivery>, BrokerError> {
        let failed = BrokerError::request::<pull::BatchError>;
        let asked = Instant::now();
        let messages = match wait {
            Some(expires) => {
                let batch = self.consumer.batch().max_messages(room).expires(expires);
                batch.messages().await.map_err(failed("pulling work"))?
            }
            None => {
                let fetch = self.consumer.fetch().max_messages(room);
                fetch.messages().await.map_err(failed("pulling work"))?
            }
        };
        // A limit of our own: the server's last word may have been lost with the connection.
        let limit = wait.unwrap_or(Duration::ZERO) + REQUEST_TIMEOUT;
        let until = tokio::time::Instant::now() + limit;
        let broker = self.broker.clone();
        let mut coming = Coming::new(broker, messages, self.ack_wait, until, asked);
        let mut deliveries = Vec::new();
        loop {
            match coming.next().await {
                Ok(Some(delivery)) => deliveries.push(delivery),
                Err(error) if deliveries.is_empty() => return Err(error),
                Ok(None) | Err(_) => return Ok(deliveries),
            }
        }
    }
}

impl Delivery {
    /// A message that may have lain here since then.
    pub(crate) fn new(
        broker: Broker,
        message: jetstream::Message,
        ack_wait: Duration,
        since: Instant,
    ) -> Self {
        Self {
            broker,
            message,
            ack_wait,
            told: Mutex::new(since),
            lapsed: AtomicBool::new(false),
        }
    }

    /// What was published.
    pub fn payload(&self) -> &Bytes {
        &self.message.payload
    }

    /// Where it was published.
    pub fn subject(&self) -> &str {
        &self.message.subject
    }

    /// Its headers, as they were sent: names in any case, a name once for each of its values.
    pub fn headers(&self) -> impl Iterator<Item = (&str, &str)> {
        let headers = self.message.headers.iter().flat_map(|h| h.iter());
        headers.flat_map(|(name, values)| {
            let values = values.iter();
            values.map(move |value| (name.as_ref(), value.as_str()))
        })
    }

    /// Its place in the stream.
    pub fn sequence(&self) -> u64 {
        self.message.info().map_or(0, |info| info.stream_sequence)
    }

    /// When the broker took it.
    pub fn published(&self) -> SystemTime {
        let nanos = self.message.info().map_or(0, |info| {
            u64::try_from(info.published.unix_timestamp_nanos()).unwrap_or_default()
        });
        SystemTime::UNIX_EPOCH + Duration::from_nanos(nanos)
    }

    /// How often it has been delivered, this time included.
    pub fn deliveries(&self) -> u64 {
        self.message.info().map_or(1, |i| i.delivered.max(1) as u64)
    }

    /// Makes `span` a child of the publisher's span.
    pub fn continue_trace(&self, span: &tracing::Span) {
        let headers = self.message.headers.as_ref();
        telemetry::continue_trace(span, |name| {
            headers.and_then(|h| h.get(name)).map(|v| v.as_str())
        });
    }

    /// Drives `work` while telling the broker every third of the ack wait that it goes on.
    pub async fn heartbeat<T>(&self, work: impl Future<Output = T>) -> T {
        let mut work = std::pin::pin!(work);
        let period = self.ack_wait / 3;
        // Not at once: what is given back in the same moment would be overtaken, and stay away for the whole ack wait.
        let mut beat = tokio::time::interval_at(tokio::time::Instant::now() + period, period);
        loop {
            tokio::select! {
                done = &mut work => return done,
                _ = beat.tick() => self.still_working().await,
            }
        }
    }

    /// Tells the broker that the message is still being worked on: its ack wait begins anew. May be lost.
    pub async fn still_working(&self) {
        // Without a connection it would wait in line, and in the end whoever sends it would wait too.
        if !self.broker.is_connected() {
            return;
        }
        // Before it counts as told: a process that slept for longer may be too late.
        self.has_lapsed();
        match self.message.ack_with(AckKind::Progress).await {
            Ok(()) => *self.told.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now(),
            Err(error) => tracing::debug!(error, "a heartbeat was not sent"),
        }
    }

    /// Whether an ack wait, or nearly that, has once passed without a [heartbeat](Self::heartbeat), by a clock that goes on while the process is stopped:
    /// another may have the message since, and the broker takes the word of whoever ever had it.
    pub fn has_lapsed(&self) -> bool {
        let told = *self.told.lock().unwrap_or_else(PoisonError::into_inner);
        if told.elapsed() > self.ack_wait / 10 * LAPSED_TENTHS {
            self.lapsed.store(true, Ordering::Relaxed);
        }
        self.lapsed.load(Ordering::Relaxed)
    }

    /// Takes the message off the queue, confirmed by the server.
    ///
    /// # Errors
    /// When the confirmation did not come: it may be delivered again.
    pub async fn ack(&self) -> Result<(), BrokerError> {
        self.confirm(AckKind::Ack).await
    }

    /// The same, without waiting for the confirmation: where one more delivery does no harm. An acknowledgement may be lost.
    ///
    /// # Errors
    /// When there is no connection, or the message came without an address.
    pub async fn ack_unconfirmed(&self) -> Result<(), BrokerError> {
        // As a heartbeat: who has more to acknowledge than the line holds would wait for the connection.
        if !self.broker.is_connected() {
            return Err(self.broker.unreachable());
        }
        let to = self.address()?;
        let sent = self.broker.client().publish(to, AckKind::Ack.into()).await;
        sent.map_err(BrokerError::request(ACKNOWLEDGING))
    }

    /// Puts the message back, to be delivered after `delay`.
    ///
    /// # Errors
    /// When the confirmation did not come: it is delivered again after the ack wait at the latest.
    pub async fn give_back(&self, delay: Duration) -> Result<(), BrokerError> {
        self.confirm(AckKind::Nak(Some(delay))).await
    }

    async fn confirm(&self, kind: AckKind) -> Result<(), BrokerError> {
        // The client's own way to be confirmed subscribes for each message anew; a request has a place for its answer.
        let to = self.address()?;
        let confirmed = self.broker.client().request(to, kind.into()).await;
        confirmed
            .map(drop)
            .map_err(BrokerError::request(ACKNOWLEDGING))
    }

    fn address(&self) -> Result<async_nats::Subject, BrokerError> {
        let address = self.message.reply.clone();
        address.ok_or_else(|| {
            BrokerError::request(ACKNOWLEDGING)("it came without an address for that")
        })
    }
}
