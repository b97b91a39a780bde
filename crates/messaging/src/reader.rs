//! Reading a long part of a stream, some events at a time.
//!
//! A batched direct get counts, at each call, what is still to come: with a million matches that takes the broker a tenth of a second
//! and more. A consumer counts once, when it is made. It lives in the broker's memory and goes by itself when nobody asks.

use std::time::Duration;

use async_nats::HeaderMap;
use async_nats::jetstream::consumer::pull;
use async_nats::jetstream::consumer::{AckPolicy, DeliverPolicy, PullConsumer};
use futures::StreamExt as _;

use crate::{BrokerError, Event, EventLog, Page, REQUEST_TIMEOUT};

/// After which the broker forgets a reader that does not read.
const IDLE: Duration = Duration::from_secs(30);
const OPERATION: &str = "reading events in turn";

/// A place in a stream from which events are read in turn.
pub struct Reader {
    consumer: PullConsumer,
    next: u64,
    /// How many events the broker has sent to it.
    sent: u64,
}

impl EventLog {
    /// Reads events at subjects that one of `filters` matches, in stream order, from `sequence` on. Where the stream ends before that, it
    /// reads what comes next.
    ///
    /// # Errors
    /// When the broker refuses.
    pub async fn reader(&self, filters: &[&str], sequence: u64) -> Result<Reader, BrokerError> {
        let next = sequence.max(1);
        let config = pull::Config {
            filter_subjects: filters.iter().map(|&filter| filter.to_owned()).collect(),
            ack_policy: AckPolicy::None,
            deliver_policy: DeliverPolicy::ByStartSequence {
                start_sequence: next,
            },
            inactive_threshold: IDLE,
            memory_storage: true,
            num_replicas: 1,
            ..pull::Config::default()
        };
        let context = self.broker.jetstream();
        let made = context.create_consumer_on_stream(config, self.stream).await;
        let consumer = made.map_err(BrokerError::request(OPERATION))?;
        Ok(Reader {
            consumer,
            next,
            sent: 0,
        })
    }
}

impl Reader {
    /// Where it goes on.
    pub fn next_sequence(&self) -> u64 {
        self.next
    }

    /// The next events, `limit` at most; those that are there, without waiting for others.
    ///
    /// # Errors
    /// When the broker does not answer, or has forgotten the reader; then a new one must be made.
    pub async fn read(&mut self, limit: usize) -> Result<Page, BrokerError> {
        let fetch = self.consumer.fetch().max_messages(limit).messages().await;
        let messages = fetch.map_err(BrokerError::request(OPERATION))?;
        let mut messages = std::pin::pin!(messages);
        let mut page = Page {
            events: Vec::new(),
            behind: 0,
        };
        let until = tokio::time::Instant::now() + REQUEST_TIMEOUT;
        loop {
            // An answer that is lost must not be taken for the end: the consumer has gone past what it sent.
            let message = tokio::time::timeout_at(until, messages.next()).await;
            let message = message.map_err(|_| failed("no answer"))?;
            let Some(message) = message else {
                return Ok(page);
            };
            let message = message.map_err(failed)?;
            let info = message.info().map_err(|error| failed(error.to_string()))?;
            let (sequence, behind, sent) =
                (info.stream_sequence, info.pending, info.consumer_sequence);
            // Those that were lost on the way do not come again.
            if sent != self.sent + 1 {
                return Err(failed("events were lost on their way"));
            }
            self.sent = sent;
            self.next = sequence + 1;
            page.behind = behind;
            let async_nats::Message {
                subject,
                payload,
                headers,
                ..
            } = message.message;
            page.events.push(Event {
                subject: subject.to_string(),
                sequence,
                payload,
                headers: headers.unwrap_or_else(HeaderMap::new),
            });
        }
    }
}

fn failed(cause: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> BrokerError {
    BrokerError::request(OPERATION)(cause)
}
