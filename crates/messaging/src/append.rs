//! How a stream's events are written: create-only, or in place of the last one, and whether they were where an answer is lost.

use async_nats::HeaderMap;
use async_nats::jetstream::context::{PublishError, PublishErrorKind};
use async_nats::jetstream::message::PublishMessage;
use bytes::Bytes;

use crate::group::NewEvent;
use crate::{BrokerError, Event, EventLog, in_flight};

/// To which subjects `Nats-Expected-Last-Subject-Sequence` looks (nats-server 2.11); the client library has no name for it.
pub(crate) const EXPECTED_SUBJECT: &str = "Nats-Expected-Last-Subject-Sequence-Subject";
const APPENDING: &str = "appending an event";
const WRITING: &str = "writing an event";

/// What came of a create-only append.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Appended {
    /// It is stored now.
    Created,
    /// Something was there first: its payload.
    Exists(Bytes),
}

/// What came of putting an event in another's place, or behind it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Replaced {
    /// It is stored, at this place in the stream.
    Stored(u64),
    /// Another one was there.
    Refused,
}

impl EventLog {
    /// Stores an event unless there is something at any subject of its family. The stream's acknowledgement has been seen when
    /// this returns. An answer that got lost is settled by reading back.
    ///
    /// # Errors
    /// [`BrokerError::NotStored`] when it is not, and [`BrokerError::Barred`] when it was refused for [something else](NewEvent::barred_by);
    /// any other when that is not known. Then it may still be: the caller must be ready to find it.
    pub async fn create(&self, event: &NewEvent) -> Result<Appended, BrokerError> {
        if !self.broker.is_connected() {
            return Err(BrokerError::not_stored(APPENDING)(
                self.broker.unreachable(),
            ));
        }
        let message = PublishMessage::build()
            .payload(event.payload.clone())
            .headers(event.headers.clone())
            .expected_last_subject_sequence(0)
            .header(EXPECTED_SUBJECT, event.bar());
        let Err(error) = self.publish(&event.subject, message).await else {
            return Ok(Appended::Created);
        };
        let ambiguous = match error.kind() {
            PublishErrorKind::WrongLastSequence => false,
            PublishErrorKind::TimedOut | PublishErrorKind::BrokenPipe => true,
            // Nobody listens at the stream's subjects, as between two of its leaders; or the client has not sent it.
            PublishErrorKind::StreamNotFound
            | PublishErrorKind::MaxAckPending
            | PublishErrorKind::MaxPayloadExceeded => {
                return Err(BrokerError::not_stored(APPENDING)(error));
            }
            _ if crate::is_full(&error) => return Err(BrokerError::not_stored(APPENDING)(error)),
            _ => return Err(BrokerError::request(APPENDING)(error)),
        };
        // In a box: hardly any needs it, and hundreds of these are under way at once.
        match Box::pin(self.last(&event.family)).await? {
            Some(found) if ambiguous && found.payload == event.payload => Ok(Appended::Created),
            Some(found) => Ok(Appended::Exists(found.payload)),
            None if !ambiguous => Box::pin(self.refused(event, error)).await,
            None => Err(BrokerError::request(APPENDING)(error)),
        }
    }

    /// What came of a create-only append that was refused though a replica has nothing of its family: that replica lags, or something else is there.
    async fn refused(
        &self,
        event: &NewEvent,
        error: PublishError,
    ) -> Result<Appended, BrokerError> {
        match self.last_at_leader(&event.family).await? {
            Some(found) => Ok(Appended::Exists(found.payload)),
            None if event.has_bar() => Err(event.barred()),
            None => Err(BrokerError::request(APPENDING)(error)),
        }
    }

    /// Stores `payload` at `subject`, in place of what was there.
    ///
    /// # Errors
    /// When it is not known to be stored.
    pub async fn put(&self, subject: &str, payload: Bytes) -> Result<(), BrokerError> {
        let message = PublishMessage::build()
            .payload(payload)
            .headers(trace_headers());
        let stored = self.publish(subject, message).await;
        stored.map(drop).map_err(BrokerError::request(WRITING))
    }

    /// Stores `payload` at `subject` in place of the event with the sequence `after`, 0 for none; no payload is ever written twice.
    /// An answer that got lost is settled by reading back.
    ///
    /// # Errors
    /// When it is not known to be stored. Try again: one that was stored is found.
    pub async fn replace(
        &self,
        subject: &str,
        payload: Bytes,
        after: u64,
    ) -> Result<Replaced, BrokerError> {
        let message = PublishMessage::build()
            .payload(payload.clone())
            .headers(trace_headers())
            .expected_last_subject_sequence(after);
        match self.publish(subject, message).await {
            Ok(sequence) => Ok(Replaced::Stored(sequence)),
            Err(error) => self.settled(error, &payload, after, subject).await,
        }
    }

    /// Stores an event behind the one with the sequence `after`, 0 for none, if that is the last of its family; no payload is ever written
    /// twice. An answer that got lost is settled by reading back the family's last event: where that is a later one, this one counts as refused.
    ///
    /// # Errors
    /// [`BrokerError::Full`] where there is no room. Any other when it is not known to be stored. It may still be: the caller must be ready to
    /// find it.
    pub async fn append(&self, event: &NewEvent, after: u64) -> Result<Replaced, BrokerError> {
        let message = PublishMessage::build()
            .payload(event.payload.clone())
            .headers(event.headers.clone())
            .expected_last_subject_sequence(after)
            .header(EXPECTED_SUBJECT, event.family.as_str());
        match self.publish(&event.subject, message).await {
            Ok(sequence) => Ok(Replaced::Stored(sequence)),
            Err(error) if crate::is_full(&error) => Err(BrokerError::Full {
                stream: self.stream,
            }),
            Err(error) => {
                let family = event.family.as_str();
                self.settled(error, &event.payload, after, family).await
            }
        }
    }

    /// What came of a write behind `after` that was refused, or whose answer got lost, by the last event at the subjects that `filter` matches.
    ///
    /// A replica says which that is. One that lags may have none behind `after` although the write was refused for one, and that one may be what
    /// was to be written, stored by an earlier try: then the stream's leader says it.
    async fn settled(
        &self,
        error: PublishError,
        payload: &Bytes,
        after: u64,
        filter: &str,
    ) -> Result<Replaced, BrokerError> {
        let is_refused = match error.kind() {
            PublishErrorKind::WrongLastSequence => true,
            PublishErrorKind::TimedOut | PublishErrorKind::BrokenPipe => false,
            _ => return Err(BrokerError::request(WRITING)(error)),
        };
        let mut found = self.newest(filter).await?;
        if is_refused && place_of(found.as_ref()) <= after {
            // In a box: hardly any needs it.
            found = Box::pin(self.last_at_leader(filter)).await?;
        }
        let place = place_of(found.as_ref());
        match found {
            Some(found) if found.payload == *payload => Ok(Replaced::Stored(place)),
            // Where it was refused for what the leader does not have either, that is on its way there. Where it was not, it may be.
            _ if place == after || (place < after && !is_refused) => {
                Err(BrokerError::request(WRITING)(error))
            }
            _ => Ok(Replaced::Refused),
        }
    }

    /// Where it is stored. One that another keeps out which is on its way is offered again until it is known what there is.
    async fn publish(&self, subject: &str, message: PublishMessage) -> Result<u64, PublishError> {
        let message = message.expected_stream(self.stream);
        in_flight::until_settled(|| self.publish_once(subject, message.clone())).await
    }

    async fn publish_once(
        &self,
        subject: &str,
        message: PublishMessage,
    ) -> Result<u64, PublishError> {
        // Without a connection the client would keep the message and send it later, when whoever waited has been told
        // that it failed: an accepted task that nobody knows of.
        if !self.broker.is_connected() {
            return Err(PublishErrorKind::BrokenPipe.into());
        }
        let sent = self
            .broker
            .jetstream()
            .send_publish(subject.to_owned(), message);
        sent.await?.await.map(|stored| stored.sequence)
    }
}

/// Where an event lies; 0 where there is none.
fn place_of(found: Option<&Event>) -> u64 {
    found.map_or(0, |found| found.sequence)
}

pub(crate) fn trace_headers() -> HeaderMap {
    let mut headers = HeaderMap::new();
    telemetry::inject(|name, value| headers.insert(name, value));
    headers
}
