//! Group commit: events of strangers, appended together.
//!
//! A broker that flushes each write to the disk before it acknowledges it can do a few thousand a second, one by one; in an
//! atomic batch (NATS ADR-50, nats-server 2.12) all events of the batch are flushed once. The client library has no
//! publisher for batches: the headers are set here.

use async_nats::HeaderMap;
use async_nats::jetstream::response::Response;
use bytes::Bytes;
use futures::future::join_all;

use crate::append::{EXPECTED_SUBJECT, trace_headers};
use crate::{Appended, BrokerError, Event, EventLog, REQUEST_TIMEOUT, in_flight};

const BATCH_ID: &str = "Nats-Batch-Id";
const BATCH_SEQUENCE: &str = "Nats-Batch-Sequence";
const BATCH_COMMIT: &str = "Nats-Batch-Commit";
const OPERATION: &str = "appending events";
/// The most events in one batch; the server takes a thousand.
pub const MAX_GROUP: usize = 1000;

/// How a group of events is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Manner {
    /// Each in a message of its own, all of them on their way at once.
    OneByOne,
    /// In one atomic batch.
    Together,
}

/// An event that is to be created.
#[derive(Debug, Clone)]
pub struct NewEvent {
    pub(crate) subject: String,
    pub(crate) family: String,
    /// What bars it, where that is more than its family.
    barred_by: Option<String>,
    pub(crate) payload: Bytes,
    pub(crate) headers: HeaderMap,
}

impl NewEvent {
    /// `payload` at `subject`. Whether it is stored is decided by what there is at all subjects that `family`, which may hold wildcards and
    /// matches `subject`, matches. Part of the trace in which this is called.
    pub fn new(subject: String, family: String, payload: Bytes) -> Self {
        Self {
            subject,
            family,
            barred_by: None,
            payload,
            headers: trace_headers(),
        }
    }

    /// The same, which is not created either while there is something at any subject that `filter` matches; it matches all that the family
    /// does. Where that is not of the family, whoever creates it hears that it is [barred](BrokerError::Barred).
    #[must_use]
    pub fn barred_by(mut self, filter: String) -> Self {
        self.barred_by = Some(filter);
        self
    }

    /// Where it is to be stored.
    pub fn subject(&self) -> &str {
        &self.subject
    }

    /// The subjects by whose events it is decided.
    pub fn family(&self) -> &str {
        &self.family
    }

    /// The subjects at which there must be nothing when it is created.
    pub(crate) fn bar(&self) -> &str {
        self.barred_by.as_deref().unwrap_or(&self.family)
    }

    /// Whether more than its family bars it.
    pub(crate) fn has_bar(&self) -> bool {
        self.barred_by.is_some()
    }

    /// That something else bars it.
    pub(crate) fn barred(&self) -> BrokerError {
        BrokerError::Barred {
            filter: self.bar().to_owned(),
        }
    }

    /// Bytes of what is to be stored.
    pub fn size(&self) -> usize {
        self.payload.len()
    }
}

/// What came of trying to store a group in one batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Tried {
    /// All that have no answer yet were created.
    Stored,
    /// Nothing was sent.
    NotSent,
    /// Some may have been stored.
    InDoubt,
}

/// What the server says to a batch.
#[derive(Debug, serde::Deserialize)]
struct Committed {
    #[serde(default, rename = "count")]
    events: usize,
}

impl EventLog {
    /// Creates each of these. Together: with one flush for all; when some were there before, those are answered so and the others are
    /// tried together again, and when that fails too, each is created by itself, so that what is wrong with one is nobody
    /// else's answer. Answers are in the events' order, with errors as of [`create`](Self::create). At most [`MAX_GROUP`], no two of one
    /// family.
    pub async fn create_each(
        &self,
        events: Vec<NewEvent>,
        manner: Manner,
    ) -> Vec<Result<Appended, BrokerError>> {
        let mut answers: Vec<Option<Appended>> = events.iter().map(|_| None).collect();
        let tried = match manner {
            Manner::OneByOne => Tried::NotSent,
            Manner::Together => self.try_together(&events, &mut answers).await,
        };
        if tried == Tried::Stored {
            let settled = |answer: Option<Appended>| Ok(answer.unwrap_or(Appended::Created));
            return answers.into_iter().map(settled).collect();
        }
        let one_by_one = events.iter().zip(answers).map(async |(event, answer)| {
            if let Some(answer) = answer {
                return Ok(answer);
            }
            let created = self.create(event).await;
            if tried == Tried::NotSent {
                return created;
            }
            // One that is there with just this payload may be there because several were tried together.
            match created.map_err(BrokerError::in_doubt)? {
                Appended::Exists(payload) if payload == event.payload => Ok(Appended::Created),
                created => Ok(created),
            }
        });
        join_all(one_by_one).await
    }

    async fn try_together(&self, events: &[NewEvent], answers: &mut [Option<Appended>]) -> Tried {
        let mut tried = Tried::NotSent;
        for _ in 0..2 {
            let open: Vec<&NewEvent> = unanswered(events, answers);
            match self.create_together(&open).await {
                Ok(()) => return Tried::Stored,
                Err(error) => {
                    if !matches!(error, BrokerError::NotStored { .. }) {
                        tried = Tried::InDoubt;
                    }
                    let error = &error as &dyn std::error::Error;
                    tracing::debug!(error, events = open.len(), "not stored together");
                }
            }
            match self.find_each(&open).await {
                Ok(found) if !found.is_empty() => settle(events, answers, &found),
                _ => break,
            }
        }
        tried
    }

    /// What there is of these events' families.
    async fn find_each(&self, events: &[&NewEvent]) -> Result<Vec<Event>, BrokerError> {
        let families: Vec<&str> = events.iter().map(|event| event.family()).collect();
        self.last_of_all(&families).await
    }

    /// All of them, or none if an error says so; after a time-out that is not known. Offered again while one is kept out by a write on its way.
    async fn create_together(&self, events: &[&NewEvent]) -> Result<(), BrokerError> {
        // The client itself only limits the wait for an answer: with a broken connection, what is to be sent waits for another.
        let limit = 2 * REQUEST_TIMEOUT;
        let mut pauses = in_flight::pauses();
        loop {
            let sent = tokio::time::timeout(limit, self.send_together(events)).await;
            let Err(error) = sent.unwrap_or_else(|_| Err(self.broker.unreachable())) else {
                return Ok(());
            };
            match pauses.next() {
                Some(pause) if in_flight::is_why(&error) => tokio::time::sleep(pause).await,
                _ => return Err(error),
            }
        }
    }

    async fn send_together(&self, events: &[&NewEvent]) -> Result<(), BrokerError> {
        let (client, stream) = (self.broker.client(), self.stream);
        if !self.broker.is_connected() {
            return Err(BrokerError::not_stored(OPERATION)(
                self.broker.unreachable(),
            ));
        }
        let id = client.new_inbox();
        let id = id.rsplit('.').next().unwrap_or(&id);
        let headers = |index: usize, event: &NewEvent| {
            let mut headers = event.headers.clone();
            headers.insert(BATCH_ID, id);
            headers.insert(BATCH_SEQUENCE, (index + 1).to_string());
            headers.insert(async_nats::header::NATS_EXPECTED_STREAM, stream);
            headers.insert(async_nats::header::NATS_EXPECTED_LAST_SUBJECT_SEQUENCE, "0");
            headers.insert(EXPECTED_SUBJECT, event.bar());
            headers
        };
        let Some((last, first)) = events.split_last() else {
            return Ok(());
        };
        for (index, event) in first.iter().enumerate() {
            let (subject, payload) = (event.subject.clone(), event.payload.clone());
            let sent = client.publish_with_headers(subject, headers(index, event), payload);
            sent.await.map_err(BrokerError::request(OPERATION))?;
        }
        let mut headers = headers(first.len(), last);
        headers.insert(BATCH_COMMIT, "1");
        let answer =
            client.request_with_headers(last.subject.clone(), headers, last.payload.clone());
        let answer = answer.await.map_err(BrokerError::request(OPERATION))?;
        let committed: Response<Committed> =
            serde_json::from_slice(&answer.payload).map_err(|source| BrokerError::Decode {
                what: "the answer to a batch".to_owned(),
                source: source.into(),
            })?;
        match committed {
            Response::Ok(committed) if committed.events == events.len() => Ok(()),
            Response::Ok(committed) => {
                let text = format!(
                    "{} of {} events were stored",
                    committed.events,
                    events.len()
                );
                Err(BrokerError::request(OPERATION)(text))
            }
            Response::Err { error } => Err(BrokerError::request(OPERATION)(error)),
        }
    }
}

fn unanswered<'a>(events: &'a [NewEvent], answers: &[Option<Appended>]) -> Vec<&'a NewEvent> {
    let pairs = events.iter().zip(answers);
    let open = pairs.filter(|(_, answer)| answer.is_none());
    open.map(|(event, _)| event).collect()
}

/// Answers those of whose family something was found. What was found may be the event itself, when only the answer was lost.
fn settle(events: &[NewEvent], answers: &mut [Option<Appended>], found: &[Event]) {
    for there in found {
        let pairs = events.iter().zip(answers.iter_mut());
        for (event, answer) in pairs {
            if answer.is_none() && matches(&event.family, &there.subject) {
                *answer = Some(if event.payload == there.payload {
                    Appended::Created
                } else {
                    Appended::Exists(there.payload.clone())
                });
            }
        }
    }
}

/// Whether a subject is one that `pattern`, with `*` for any one token, stands for.
fn matches(pattern: &str, subject: &str) -> bool {
    let (mut wanted, mut given) = (pattern.split('.'), subject.split('.'));
    loop {
        match (wanted.next(), given.next()) {
            (None, None) => return true,
            (Some(wanted), Some(given)) if wanted == "*" || wanted == given => {}
            _ => return false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_star_stands_for_one_token() {
        assert!(matches("a.*.c", "a.b.c"));
        assert!(matches("a.b", "a.b"));
        for other in ["a.b", "a.b.d", "a.b.c.d", "a.c", ""] {
            assert!(!matches("a.*.c", other), "{other}");
        }
    }
}
