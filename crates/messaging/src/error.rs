//! What can go wrong with the broker, and what is stored all the same.

use std::path::PathBuf;

use async_nats::jetstream;
use async_nats::jetstream::context::{CreateStreamError, CreateStreamErrorKind};
use settings::ByteSize;

type Cause = Box<dyn std::error::Error + Send + Sync>;

/// What went wrong with the broker.
#[derive(Debug, thiserror::Error)]
pub enum BrokerError {
    /// There is no connection just now.
    #[error("the broker at {url} cannot be reached")]
    Unreachable {
        /// Where it should be.
        url: String,
    },
    /// TLS is asked for and its files are not there.
    #[error("setting broker.tls_dir: {} is missing", path.display())]
    NoCertificate {
        /// The file.
        path: PathBuf,
    },
    /// The broker's user cannot be one.
    #[error("setting broker.user {problem}")]
    User {
        /// What is wrong with it.
        problem: &'static str,
    },
    /// The user's password cannot be had.
    #[error(transparent)]
    Password(#[from] settings::SecretFileError),
    /// The address is malformed or the credentials are refused.
    #[error("cannot connect to the broker at {url}")]
    Connect {
        /// Where.
        url: String,
        /// Why not.
        #[source]
        source: async_nats::ConnectError,
    },
    /// The broker answered no, or did not answer.
    #[error("{operation} failed")]
    Request {
        /// What was asked.
        operation: &'static str,
        /// Its answer.
        #[source]
        source: Cause,
    },
    /// It was never sent, or no stream took it: nothing is stored, now or later.
    #[error("{operation} failed, and nothing is stored")]
    NotStored {
        /// What was asked.
        operation: &'static str,
        /// Why not.
        #[source]
        source: Cause,
    },
    /// A stored value is not what this version writes.
    #[error("{what} cannot be decoded")]
    Decode {
        /// Which value.
        what: String,
        /// Why not.
        #[source]
        source: Cause,
    },
    /// A stream that refuses when it is full is full, or a subject's share of it is.
    #[error("{stream} has no room for it")]
    Full {
        /// Which stream.
        stream: &'static str,
    },
    /// The broker cannot set aside what a stream is to take.
    #[error(
        "the broker has no room to set aside {size} for the stream {stream}: its disk, or its max_file_store, has less left; make \
         room there, or lower the setting of the stream's size (docs/SETTINGS.md)"
    )]
    NoRoom {
        /// Which stream.
        stream: String,
        /// What it is to take.
        size: ByteSize,
    },
    /// It was refused for something that is there and is not [of its family](crate::NewEvent::barred_by).
    #[error("it cannot be created while there is something at {filter}")]
    Barred {
        /// Where.
        filter: String,
    },
    /// Someone else changed the value since it was read.
    #[error("{key} was changed by someone else meanwhile")]
    Conflict {
        /// Which key.
        key: String,
    },
}

impl BrokerError {
    /// Whether the broker had no room: nothing is stored then.
    pub fn is_full(&self) -> bool {
        matches!(self, Self::Full { .. }) || is_full(self)
    }

    /// Whether another try would hear the same until someone does something.
    pub(crate) fn is_final(&self) -> bool {
        matches!(self, Self::NoRoom { .. })
    }

    /// Why a stream of `max_bytes` could not be created.
    pub(crate) fn creating<E>(
        operation: &'static str,
        stream: &str,
        max_bytes: i64,
    ) -> impl FnOnce(E) -> Self
    where
        E: std::error::Error + Send + Sync + 'static,
    {
        move |error| match u64::try_from(max_bytes) {
            Ok(bytes) if lacks_storage(&error) => Self::NoRoom {
                stream: stream.to_owned(),
                size: ByteSize::of(bytes),
            },
            _ => Self::request(operation)(error),
        }
    }

    pub(crate) fn request<E: Into<Cause>>(operation: &'static str) -> impl FnOnce(E) -> Self {
        move |source| Self::Request {
            operation,
            source: source.into(),
        }
    }

    pub(crate) fn not_stored<E: Into<Cause>>(operation: &'static str) -> impl FnOnce(E) -> Self {
        move |source| Self::NotStored {
            operation,
            source: source.into(),
        }
    }

    /// The same of what an earlier try may have stored.
    #[must_use]
    pub fn in_doubt(self) -> Self {
        match self {
            Self::NotStored { operation, source } => Self::Request { operation, source },
            error => error,
        }
    }
}

/// Whether the broker refused because the stream has no room. It does not say more than that it could not store.
pub(crate) fn is_full(error: &(dyn std::error::Error + 'static)) -> bool {
    refusal(error) == Some(jetstream::ErrorCode::STREAM_STORE_FAILED)
}

/// Whether the broker refused to create a stream because it has not as much storage left.
fn lacks_storage(error: &(dyn std::error::Error + 'static)) -> bool {
    // The broker's answer is in the kind of such an error, not in its cause. A bucket's error lies around its stream's.
    let mut causes = std::iter::successors(Some(error), |&error| error.source());
    let refusal = causes.find_map(|cause| cause.downcast_ref::<CreateStreamError>());
    refusal.is_some_and(|refusal| match refusal.kind() {
        CreateStreamErrorKind::JetStream(answer) => {
            answer.error_code() == jetstream::ErrorCode::STORAGE_RESOURCES_EXCEEDED
        }
        _ => false,
    })
}

/// The code with which the broker refused, where it did.
pub(crate) fn refusal(error: &(dyn std::error::Error + 'static)) -> Option<jetstream::ErrorCode> {
    // A bucket's errors lie around those of its stream.
    let mut causes = std::iter::successors(Some(error), |&error| error.source());
    let refusal = causes.find_map(|cause| cause.downcast_ref::<jetstream::Error>());
    refusal.map(jetstream::Error::error_code)
}
