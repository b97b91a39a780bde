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

/// How often the rest of a group is tried together: without what was there, without what is barred, and once more for what a replica that
/// lags did not tell of.
const ROUNDS: usize = 4;

/// What one event of a group hears.
type Answer = Result<Appended, BrokerError>;

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
    /// Creates each of these. Together: with one flush for all; when some were there before, or are barred, those are answered so and the others are
    /// tried together again, and when that fails, too, each is created by itself, so that what is wrong with one is nobody
    /// else's answer. Answers are in the events' order, with errors as of [`create`](Self::create). At most [`MAX_GROUP`], no two of one
    /// family.
    pub async fn create_each(&self, events: Vec<NewEvent>, manner: Manner) -> Vec<Answer> {
        let mut answers: Vec<Option<Answer>> = events.iter().map(|_| None).collect();
        let tried = match manner {
            Manner::OneByOne => Tried::NotSent,
            Manner::Together => self.try_together(&events, &mut answers).await,
        };
        if tried == Tried::Stored {
            let settled = |answer: Option<Answer>| answer.unwrap_or(Ok(Appended::Created));
            return answers.into_iter().map(settled).collect();
        }
        let one_by_one = events.iter().zip(answers).map(async |(event, answer)| {
            if let Some(answer) = answer {
                return answer;
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

    async fn try_together(&self, events: &[NewEvent], answers: &mut [Option<Answer>]) -> Tried {
        let mut tried = Tried::NotSent;
        for _ in 0..ROUNDS {
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

    /// What there is of these events' families; where there is nothing of any, what bars them.
    async fn find_each(&self, events: &[&NewEvent]) -> Result<Vec<Event>, BrokerError> {
        let families: Vec<&str> = events.iter().map(|event| event.family()).collect();
        let found = self.last_of_all(&families).await?;
        if !found.is_empty() || !events.iter().any(|event| event.has_bar()) {
            return Ok(found);
        }
        // Not at once: of a task that is there these are several events, and the broker takes no question with too many answers.
        let bars: Vec<&str> = events.iter().map(|event| event.bar()).collect();
        self.last_of_all(&bars).await
    }

    /// All of them, or none if an error says so; after a time-out that is not known. Offered again while one is kept out by a write on its way.
    async fn create_together(&self, events: &[&NewEvent]) -> Result<(), BrokerError> {
        // The client itself only limits the wait for an answer: with a broken connection, what is to be sent waits for another.
        let limit = 2 * REQUEST_TIMEOUT;
        in_flight::until_settled(|| async {
            let sent = tokio::time::timeout(limit, self.send_together(events)).await;
            sent.unwrap_or_else(|_| Err(self.broker.unreachable()))
        })
        .await
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

fn unanswered<'a>(events: &'a [NewEvent], answers: &[Option<Answer>]) -> Vec<&'a NewEvent> {
    let pairs = events.iter().zip(answers);
    let open = pairs.filter(|(_, answer)| answer.is_none());
    open.map(|(event, _)| event).collect()
}

/// Answers those of whose family something was found, and those that something else bars. What was found may be the event itself, when only
/// the answer was lost. An event of the family lies in front of what else there is of its task.
fn settle(events: &[NewEvent], answers: &mut [Option<Answer>], found: &[Event]) {
    for there in found {
        let pairs = events.iter().zip(answers.iter_mut());
        for (event, answer) in pairs {
            if answer.is_some() {
                continue;
            }
            if matches(&event.family, &there.subject) {
                *answer = Some(Ok(if event.payload == there.payload {
                    Appended::Created
                } else {
                    Appended::Exists(there.payload.clone())
                }));
            } else if matches(event.bar(), &there.subject) {
                *answer = Some(Err(event.barred()));
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
    use std::collections::HashSet;

    use nats_server::NatsServer;

    use super::*;
    use crate::scratch::{SPEC, event};
    use crate::{Broker, BrokerSettings};

    #[tokio::test(flavor = "multi_thread")]
    async fn what_is_barred_and_what_is_there_is_taken_out_of_a_group_and_all_others_go_together() {
        let server = NatsServer::scratch().unwrap();
        let settings = BrokerSettings::new(server.url(), "20s".parse().unwrap());
        let broker = Broker::connect(&settings, "test").await.unwrap();
        broker.ensure_stream(&SPEC).await.unwrap();
        let log = broker.log(SPEC.name);
        for leftover in ["test.7.ended", "test.31.ended"] {
            log.put(leftover, Bytes::new()).await.unwrap();
        }
        let first = log.create(&event("12", "first")).await.unwrap();
        assert_eq!(first, Appended::Created);

        let group = (0..40).map(|number| event(&number.to_string(), "new"));
        let answers = log.create_each(group.collect(), Manner::Together).await;
        let mut batches = HashSet::new();
        for (number, answer) in answers.into_iter().enumerate() {
            match (number, answer) {
                (7 | 31, Err(BrokerError::Barred { filter })) => {
                    assert_eq!(filter, format!("test.{number}.*"));
                }
                (12, Ok(Appended::Exists(found))) => assert_eq!(found, "first"),
                (_, Ok(Appended::Created)) => {
                    let stored = log.at(&format!("test.{number}.made")).await.unwrap();
                    let stored = stored.unwrap();
                    batches.insert(stored.header(BATCH_ID).map(str::to_owned));
                }
                other => panic!("{other:?}"),
            }
        }
        assert!(
            batches.len() == 1 && !batches.contains(&None),
            "{batches:?}"
        );
    }

    #[test]
    fn a_star_stands_for_one_token() {
        assert!(matches("a.*.c", "a.b.c"));
        assert!(matches("a.b", "a.b"));
        for other in ["a.b", "a.b.d", "a.b.c.d", "a.c", ""] {
            assert!(!matches("a.*.c", other), "{other}");
        }
    }
}
