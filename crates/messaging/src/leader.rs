//! Reading from a stream's leader.
//!
//! Any replica answers a direct get, also one that has not applied what was stored a moment ago. The leader has it.

use std::time::{Duration, SystemTime};

use async_nats::header::NATS_TIME_STAMP;
use async_nats::jetstream::message::StreamMessage;
use async_nats::jetstream::stream::LastRawMessageErrorKind;

use crate::{BrokerError, Event, EventLog};

const OPERATION: &str = "asking a stream's leader";

/// Which places of a stream hold events, and since when there is this stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// The first event's place; behind `last` where there is none.
    pub first: u64,
    /// The last place that was taken.
    pub last: u64,
    /// When that was, by the broker's clock.
    pub last_at: SystemTime,
    /// When the stream was made. All that keep it say the same, to the nanosecond, and so do they after a restart and with other settings: one that was
    /// removed and made anew under this name says another. In a cluster so does one that was restored from a backup, but for the server that took it
    /// in, until that one is restarted.
    pub made: SystemTime,
}

/// How much a stream holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fill {
    /// Its events.
    pub messages: u64,
    /// What they take.
    pub bytes: u64,
    /// When the broker stored the oldest of them, by its own clock; none where there are none.
    pub oldest_at: Option<SystemTime>,
}

/// It tells when it was stored, as one from a direct get does.
pub(crate) fn event(found: StreamMessage) -> Event {
    let mut headers = found.headers;
    let stored_at = jiff::Timestamp::from_nanosecond(found.time.unix_timestamp_nanos());
    if let Ok(stored_at) = stored_at {
        headers.insert(NATS_TIME_STAMP, stored_at.to_string());
    }
    Event {
        subject: found.subject.to_string(),
        sequence: found.sequence,
        payload: found.payload,
        headers,
    }
}

/// The time that a stream names. Of one that never had an event it is long before ours.
fn at(nanos: i128) -> SystemTime {
    let nanos = u64::try_from(nanos).unwrap_or_default();
    SystemTime::UNIX_EPOCH + Duration::from_nanos(nanos)
}

impl EventLog {
    /// Where the stream begins and ends, as its leader has it.
    ///
    /// # Errors
    /// When the broker does not answer, or the stream has no leader just now.
    pub async fn extent(&self) -> Result<Extent, BrokerError> {
        let stream = self.broker.jetstream().get_stream(self.stream).await;
        let stream = stream.map_err(BrokerError::request(OPERATION))?;
        let info = stream.cached_info();
        let state = &info.state;
        Ok(Extent {
            first: state.first_sequence.max(1),
            last: state.last_sequence,
            last_at: at(state.last_timestamp.unix_timestamp_nanos()),
            made: at(info.created.unix_timestamp_nanos()),
        })
    }

    /// How much the stream holds, as its leader has it.
    ///
    /// # Errors
    /// When the broker does not answer, or the stream has no leader just now.
    pub async fn fill(&self) -> Result<Fill, BrokerError> {
        if !self.broker.is_connected() {
            return Err(self.broker.unreachable());
        }
        let stream = self.broker.jetstream().get_stream(self.stream).await;
        let stream = stream.map_err(BrokerError::request(OPERATION))?;
        let state = &stream.cached_info().state;
        let oldest_at = at(state.first_timestamp.unix_timestamp_nanos());
        Ok(Fill {
            messages: state.messages,
            bytes: state.bytes,
            oldest_at: (state.messages > 0).then_some(oldest_at),
        })
    }

    /// The last event at all the subjects that `filter` matches, as the stream's leader has it. All such reads are one server's work, so this
    /// is for where a replica that lags would be believed.
    ///
    /// # Errors
    /// When the broker does not answer, or the stream has no leader just now.
    pub async fn last_at_leader(&self, filter: &str) -> Result<Option<Event>, BrokerError> {
        if !self.broker.is_connected() {
            return Err(self.broker.unreachable());
        }
        let stream = self.broker.stream(self.stream, OPERATION).await?;
        match stream.get_last_raw_message_by_subject(filter).await {
            Ok(found) => Ok(Some(event(found))),
            Err(error) if error.kind() == LastRawMessageErrorKind::NoMessageFound => Ok(None),
            Err(error) => Err(BrokerError::request(OPERATION)(error)),
        }
    }

    /// The first event at a subject that `filter` matches from `sequence` on, as the stream's leader has it. Used as
    /// [`last_at_leader`](Self::last_at_leader) is.
    ///
    /// # Errors
    /// When the broker does not answer, or the stream has no leader just now.
    pub async fn next_at_leader(
        &self,
        filter: &str,
        sequence: u64,
    ) -> Result<Option<Event>, BrokerError> {
        if !self.broker.is_connected() {
            return Err(self.broker.unreachable());
        }
        let stream = self.broker.stream(self.stream, OPERATION).await?;
        let found = stream.get_first_raw_message_by_subject(filter, sequence.max(1));
        match found.await {
            Ok(found) => Ok(Some(event(found))),
            Err(error) if error.kind() == LastRawMessageErrorKind::NoMessageFound => Ok(None),
            Err(error) => Err(BrokerError::request(OPERATION)(error)),
        }
    }
}

#[cfg(test)]
mod tests {
    use nats_server::NatsServer;

    use crate::scratch::{SPEC, two_writers};
    use crate::{Broker, BrokerSettings, StreamSpec};

    #[tokio::test]
    async fn a_stream_is_known_by_when_it_was_made_until_it_is_made_anew() {
        let mut server = NatsServer::scratch().unwrap();
        let settings = BrokerSettings::new(server.url(), "20s".parse().unwrap());
        let broker = Broker::connect(&settings, "test").await.unwrap();
        broker.ensure_stream(&SPEC).await.unwrap();
        let log = broker.log(SPEC.name);
        let made = log.extent().await.unwrap().made;
        let larger = StreamSpec {
            max_bytes: 1 << 25,
            ..SPEC
        };
        broker.ensure_stream(&larger).await.unwrap();
        assert_eq!(log.extent().await.unwrap().made, made);
        server.restart().unwrap();
        let again = broker.patiently(|| log.extent()).await.unwrap();
        assert_eq!(again.made, made);
        server.remove_stream(SPEC.name).unwrap();
        broker.ensure_stream(&SPEC).await.unwrap();
        assert!(log.extent().await.unwrap().made > made);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn whoever_leads_a_stream_of_a_cluster_says_the_same_of_when_it_was_made() {
        let (mut cluster, log, _) = two_writers().await;
        let made = log.extent().await.unwrap().made;
        // One of them leads it, so that another does then.
        for node in &mut cluster.nodes {
            node.restart().unwrap();
            let after = log.broker.patiently(|| log.extent()).await.unwrap();
            assert_eq!(after.made, made);
        }
    }
}
