//! Reading from a stream's leader.
//!
//! Any replica answers a direct get, also one that has not applied what was stored a moment ago. The leader has it.

use async_nats::jetstream::stream::LastRawMessageErrorKind;

use crate::{BrokerError, Event, EventLog};

impl EventLog {
    /// The last event at all the subjects that `filter` matches, as the stream's leader has it. All such reads are one server's work, so this
    /// is for where a replica that lags would be believed.
    ///
    /// # Errors
    /// When the broker does not answer, or the stream has no leader just now.
    pub async fn last_at_leader(&self, filter: &str) -> Result<Option<Event>, BrokerError> {
        const OPERATION: &str = "asking a stream's leader";
        if !self.broker.is_connected() {
            return Err(self.broker.unreachable());
        }
        let stream = self.broker.stream(self.stream, OPERATION).await?;
        match stream.get_last_raw_message_by_subject(filter).await {
            Ok(found) => Ok(Some(Event {
                subject: found.subject.to_string(),
                sequence: found.sequence,
                payload: found.payload,
                headers: found.headers,
            })),
            Err(error) if error.kind() == LastRawMessageErrorKind::NoMessageFound => Ok(None),
            Err(error) => Err(BrokerError::request(OPERATION)(error)),
        }
    }
}
