//! Why a run could not be made.

use std::io;
use std::path::PathBuf;

/// Why a run could not be made; that it found something is no error.
#[derive(Debug, thiserror::Error)]
pub enum ChaosError {
    /// The broker did not start.
    #[error(transparent)]
    Server(#[from] nats_server::ServerError),
    /// The broker did not answer.
    #[error(transparent)]
    Broker(#[from] messaging::BrokerError),
    /// No port could be had.
    #[error("no port can be had")]
    Port(#[source] io::Error),
    /// A service could not be started.
    #[error("cannot start a service; `cargo build --workspace --bins` makes them")]
    Spawn(#[source] io::Error),
    /// A service did not become ready.
    #[error("{name} is not ready; see {}", log.display())]
    NotReady {
        /// Which one.
        name: String,
        /// Where it says why.
        log: PathBuf,
    },
    /// The broker's copies did not become whole again.
    #[error("the brokers do not have the same a minute after the last fault")]
    NotWhole,
    /// A file cannot be read or written.
    #[error("cannot use {}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// A key could not be made.
    #[error("a caller's key could not be made: {0}")]
    Key(String),
    /// A stored event is not understood.
    #[error("an event at {subject} is not understood")]
    Event {
        /// Where it is.
        subject: String,
    },
}
