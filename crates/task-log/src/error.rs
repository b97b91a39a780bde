//! What can go wrong with the log.

use contract::id::InvalidId;
use messaging::BrokerError;

/// Why the log could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum TaskLogError {
    /// The broker is not there or says no.
    #[error(transparent)]
    Broker(#[from] BrokerError),
    /// This process is stopping.
    #[error("this process is stopping")]
    Stopping,
    /// The end of an earlier task of an id [must stay](crate::MayGo) for now, and keeps the next one out.
    #[error(
        "an earlier task of this id has ended, and its end, at place {place} of the log, must stay for now"
    )]
    EarlierEnd {
        /// Where it lies.
        place: u64,
    },
    /// A stored event is not what this version writes.
    #[error("a stored `{what}` event cannot be decoded")]
    Decode {
        /// Which event.
        what: &'static str,
        /// Why not.
        #[source]
        source: prost::DecodeError,
    },
    /// A stored event names something that is not an id.
    #[error("a task event holds an invalid id")]
    Id(#[from] InvalidId),
}

impl TaskLogError {
    /// Whether what is stored is not what this version reads, however often it is tried.
    pub fn is_unreadable(&self) -> bool {
        matches!(self, Self::Decode { .. } | Self::Id(_))
    }

    /// Whether what was to be stored is not, for certain.
    pub fn is_not_stored(&self) -> bool {
        // An end that is there has kept out whatever was tried before, too.
        matches!(
            self,
            Self::Broker(BrokerError::NotStored { .. }) | Self::EarlierEnd { .. }
        )
    }
}
