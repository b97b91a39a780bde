//! A stream as a log of keyed events: how they are read and removed. How they are written is in `append`.

use std::time::SystemTime;

use async_nats::HeaderMap;
use async_nats::jetstream::response::Response;
use async_nats::jetstream::stream::DeleteMessageErrorKind;
use bytes::Bytes;
use futures::StreamExt as _;

use crate::{Broker, BrokerError, REQUEST_TIMEOUT};

/// In answers: how many events that match are still to come.
const PENDING: &str = "Nats-Num-Pending";
/// The most events that one read returns.
pub const MAX_BATCH: usize = 512;

/// A stream whose subjects are keys.
#[derive(Clone)]
pub struct EventLog {
    pub(crate) broker: Broker,
    pub(crate) stream: &'static str,
}

/// One stored event.
#[derive(Debug, Clone)]
pub struct Event {
    /// Its key.
    pub subject: String,
    /// Its place in the stream.
    pub sequence: u64,
    /// What was written.
    pub payload: Bytes,
    pub(crate) headers: HeaderMap,
}

/// Some events, and how many more there are.
#[derive(Debug, Clone)]
pub struct Page {
    /// In stream order.
    pub events: Vec<Event>,
    /// How many that match lie behind the last of them.
    pub behind: u64,
}

impl Event {
    /// Makes `span` a child of the writer's span.
    pub fn continue_trace(&self, span: &tracing::Span) {
        telemetry::continue_trace(span, |name| self.header(name));
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|value| value.as_str())
    }

    /// The writer's span, as a `traceparent`.
    pub fn traceparent(&self) -> Option<&str> {
        self.header("traceparent")
    }

    /// When the broker stored it.
    pub fn stored_at(&self) -> Option<SystemTime> {
        let time = self.headers.get(async_nats::header::NATS_TIME_STAMP)?;
        let time = time.as_str();
        Some(time.parse::<jiff::Timestamp>().ok()?.into())
    }
}

impl EventLog {
    pub(crate) fn new(broker: Broker, stream: &'static str) -> Self {
        Self { broker, stream }
    }

    /// The last event at `subject`, which may hold wildcards.
    ///
    /// # Errors
    /// When the broker does not answer.
    pub async fn last(&self, subject: &str) -> Result<Option<Event>, BrokerError> {
        Ok(self.last_of_each(subject).await?.pop())
    }

    /// The last event at exactly `subject`. Costs the broker less than [`last`](Self::last).
    ///
    /// # Errors
    /// When the broker does not answer.
    pub async fn at(&self, subject: &str) -> Result<Option<Event>, BrokerError> {
        let place = format!("$JS.API.DIRECT.GET.{}.{subject}", self.stream);
        self.ask(place, Bytes::new()).await
    }

    /// The last event at all the subjects that `filter` matches, however many they are.
    pub(crate) async fn newest(&self, filter: &str) -> Result<Option<Event>, BrokerError> {
        let request = serde_json::json!({ "last_by_subj": filter });
        let place = format!("$JS.API.DIRECT.GET.{}", self.stream);
        self.ask(place, Bytes::from(request.to_string())).await
    }

    /// The last event at each subject that `filter` matches, in stream order.
    ///
    /// # Errors
    /// When the broker does not answer. Of more matches than one batch holds the rest is left out.
    pub async fn last_of_each(&self, filter: &str) -> Result<Vec<Event>, BrokerError> {
        self.last_of_all(&[filter]).await
    }

    /// The last event at each subject that one of `filters` matches, in stream order.
    ///
    /// # Errors
    /// When the broker does not answer. Of more matches than one batch holds the rest is left out.
    pub async fn last_of_all(&self, filters: &[&str]) -> Result<Vec<Event>, BrokerError> {
        let request = serde_json::json!({ "multi_last": filters, "batch": MAX_BATCH });
        self.direct_get(request).await
    }

    /// Up to `limit` events at subjects that `filter` matches, in stream order, from `sequence` on.
    ///
    /// # Errors
    /// When the broker does not answer.
    pub async fn from_sequence(
        &self,
        filter: &str,
        sequence: u64,
        limit: usize,
    ) -> Result<Vec<Event>, BrokerError> {
        Ok(self.page(filter, sequence, limit).await?.events)
    }

    /// The same, and how many more there are behind them. Counting them costs the broker time that grows with their number: where there
    /// are very many, a [`Reader`](crate::Reader) counts them once.
    ///
    /// # Errors
    /// When the broker does not answer.
    pub async fn page(
        &self,
        filter: &str,
        sequence: u64,
        limit: usize,
    ) -> Result<Page, BrokerError> {
        let batch = limit.min(MAX_BATCH);
        let request =
            serde_json::json!({ "seq": sequence.max(1), "next_by_subj": filter, "batch": batch });
        let events = self.direct_get(request).await?;
        let behind = events.last().and_then(|event| {
            let pending = event.header(PENDING)?;
            pending.parse().ok()
        });
        Ok(Page {
            events,
            behind: behind.unwrap_or(0),
        })
    }

    /// The first event at a subject that `filter` matches from `sequence` on. Costs the broker little, however many there are.
    ///
    /// # Errors
    /// When the broker does not answer.
    pub async fn next(&self, filter: &str, sequence: u64) -> Result<Option<Event>, BrokerError> {
        let request = serde_json::json!({ "seq": sequence.max(1), "next_by_subj": filter });
        let place = format!("$JS.API.DIRECT.GET.{}", self.stream);
        self.ask(place, Bytes::from(request.to_string())).await
    }

    /// One question, one event.
    async fn ask(&self, place: String, request: Bytes) -> Result<Option<Event>, BrokerError> {
        const OPERATION: &str = "reading an event";
        if !self.broker.is_connected() {
            return Err(self.broker.unreachable());
        }
        let asked = self.broker.client().request(place, request);
        let answer = asked.await.map_err(BrokerError::request(OPERATION))?;
        match answer.status.map_or(200, |status| status.as_u16()) {
            200 => event(answer).map(Some),
            404 => Ok(None),
            status => {
                let text = format!("the broker answered {status}");
                Err(BrokerError::request(OPERATION)(text))
            }
        }
    }

    /// The place of the first event that was stored at `time` or later, at a subject that `filter` matches; `None` where there is none. Costs the
    /// broker little, however many there are.
    ///
    /// # Errors
    /// When the broker does not answer.
    pub async fn sequence_at(
        &self,
        filter: &str,
        time: SystemTime,
    ) -> Result<Option<u64>, BrokerError> {
        const OPERATION: &str = "looking a time up";
        let time = jiff::Timestamp::try_from(time).map_err(BrokerError::request(OPERATION))?;
        let time = time.to_string();
        // Without a batch: of one, the broker would count what is behind it.
        let request = serde_json::json!({ "start_time": time, "next_by_subj": filter });
        let place = format!("$JS.API.DIRECT.GET.{}", self.stream);
        let found = self.ask(place, Bytes::from(request.to_string())).await?;
        Ok(found.map(|event| event.sequence))
    }

    /// The bytes that the stream takes.
    ///
    /// # Errors
    /// When the broker does not answer.
    pub async fn size(&self) -> Result<u64, BrokerError> {
        let stream = self.broker.jetstream().get_stream(self.stream).await;
        let stream = stream.map_err(BrokerError::request("reading a stream's state"))?;
        Ok(stream.cached_info().state.bytes)
    }

    /// How many subjects that `filter` matches hold an event. What it costs the broker grows with their number.
    ///
    /// # Errors
    /// When the broker does not answer.
    pub async fn count(&self, filter: &str) -> Result<u64, BrokerError> {
        // The answer has a page of subjects, and says how many there are: of a page behind the last one, nothing else.
        #[derive(serde::Deserialize)]
        struct Counted {
            #[serde(default)]
            total: u64,
        }
        const OPERATION: &str = "counting subjects";
        if !self.broker.is_connected() {
            return Err(self.broker.unreachable());
        }
        let subject = format!("STREAM.INFO.{}", self.stream);
        let request = serde_json::json!({ "subjects_filter": filter, "offset": i32::MAX });
        let answer = self.broker.jetstream().request(subject, &request).await;
        match answer.map_err(BrokerError::request(OPERATION))? {
            Response::Ok(Counted { total }) => Ok(total),
            Response::Err { error } => Err(BrokerError::request(OPERATION)(error)),
        }
    }

    /// The present, by the clock of the broker that leads the stream.
    ///
    /// # Errors
    /// When the broker does not answer.
    pub async fn time(&self) -> Result<SystemTime, BrokerError> {
        time(&self.broker, self.stream).await
    }

    /// The sequence of the stream's last message.
    ///
    /// # Errors
    /// When the broker does not answer.
    pub async fn last_sequence(&self) -> Result<u64, BrokerError> {
        let stream = self.broker.jetstream().get_stream(self.stream).await;
        let stream = stream.map_err(BrokerError::request("reading a stream's state"))?;
        Ok(stream.cached_info().state.last_sequence)
    }

    /// Removes everything in front of `sequence`.
    ///
    /// # Errors
    /// When the broker does not confirm.
    pub async fn remove_before(&self, sequence: u64) -> Result<(), BrokerError> {
        const OPERATION: &str = "removing old events";
        let stream = self.broker.jetstream().get_stream(self.stream).await;
        let stream = stream.map_err(BrokerError::request(OPERATION))?;
        let purged = stream.purge().sequence(sequence).await;
        purged.map(drop).map_err(BrokerError::request(OPERATION))
    }

    /// Removes one event, and no other that has taken its subject since; true when this did it.
    ///
    /// # Errors
    /// When the broker does not confirm.
    pub async fn remove(&self, sequence: u64) -> Result<bool, BrokerError> {
        const OPERATION: &str = "removing an event";
        let stream = self.broker.stream(self.stream, OPERATION).await?;
        let error = match stream.delete_message(sequence).await {
            Ok(removed) => return Ok(removed),
            Err(error) => error,
        };
        let refused = matches!(error.kind(), DeleteMessageErrorKind::JetStream(_));
        // Versions of the server do not agree on how they refuse to remove what is not there.
        let next = async || self.from_sequence(">", sequence, 1).await;
        match refused && next().await?.first().map(|e| e.sequence) != Some(sequence) {
            true => Ok(false),
            false => Err(BrokerError::request(OPERATION)(error)),
        }
    }

    /// One request, several answers, as in NATS's ADR-31 (batched direct get), which the client library does not
    /// have: answers come to an inbox until one has an end-of-batch status.
    async fn direct_get(&self, request: serde_json::Value) -> Result<Vec<Event>, BrokerError> {
        direct_get(&self.broker, self.stream, request).await
    }
}

/// The present, by the clock of the broker that leads a stream.
pub(crate) async fn time(broker: &Broker, stream: &str) -> Result<SystemTime, BrokerError> {
    #[derive(serde::Deserialize)]
    struct Told {
        ts: String,
    }
    const OPERATION: &str = "asking for the time";
    if !broker.is_connected() {
        return Err(broker.unreachable());
    }
    let subject = format!("STREAM.INFO.{stream}");
    let answer = broker.jetstream().request(subject, &()).await;
    let told = match answer.map_err(BrokerError::request(OPERATION))? {
        Response::Ok(Told { ts }) => ts,
        Response::Err { error } => return Err(BrokerError::request(OPERATION)(error)),
    };
    let time = told.parse::<jiff::Timestamp>();
    Ok(time.map_err(BrokerError::request(OPERATION))?.into())
}

/// Reads several events of a stream by one request.
pub(crate) async fn direct_get(
    broker: &Broker,
    stream: &str,
    request: serde_json::Value,
) -> Result<Vec<Event>, BrokerError> {
    const OPERATION: &str = "reading events";
    let client = broker.client();
    if !broker.is_connected() {
        return Err(broker.unreachable());
    }
    let inbox = client.new_inbox();
    let subscribed = client.subscribe(inbox.clone()).await;
    let mut answers = subscribed.map_err(BrokerError::request(OPERATION))?;
    let subject = format!("$JS.API.DIRECT.GET.{}", stream);
    let payload = Bytes::from(request.to_string());
    let sent = client.publish_with_reply(subject, inbox, payload).await;
    sent.map_err(BrokerError::request(OPERATION))?;
    let mut events = Vec::new();
    loop {
        let answer = tokio::time::timeout(REQUEST_TIMEOUT, answers.next()).await;
        let Ok(Some(answer)) = answer else {
            return Err(broker.unreachable());
        };
        let status = answer.status.map_or(200, |status| status.as_u16());
        match status {
            200 => events.push(event(answer)?),
            // End of batch; nothing found.
            204 | 404 => return Ok(events),
            503 => return Err(broker.unreachable()),
            _ => {
                let text = answer.description.unwrap_or_default().to_string();
                let text = format!("the broker answered {status} {text}");
                return Err(BrokerError::request(OPERATION)(text));
            }
        }
    }
}

/// Of a direct-get answer, or of a message that the stream has sent on.
pub(crate) fn event(message: async_nats::Message) -> Result<Event, BrokerError> {
    let headers = message.headers.as_ref();
    let header = |name| headers.and_then(|h| h.get(name)).map(ToString::to_string);
    let subject = header(async_nats::header::NATS_SUBJECT);
    let sequence = header(async_nats::header::NATS_SEQUENCE).and_then(|s| s.parse().ok());
    match (subject, sequence) {
        (Some(subject), Some(sequence)) => Ok(Event {
            subject,
            sequence,
            payload: message.payload,
            headers: message.headers.unwrap_or_default(),
        }),
        _ => Err(BrokerError::Decode {
            what: "an event of a stream".to_owned(),
            source: "subject or sequence is missing".into(),
        }),
    }
}
