//! What can go wrong, in words that a stranger may read: no address of ours, nothing of an answer's body.

use std::path::PathBuf;
use std::time::Duration;

/// A request that was not made, or did not come to its end.
#[derive(Debug, thiserror::Error)]
pub enum EgressError {
    /// The settings switch such requests off.
    #[error("addresses cannot be reached from here: this platform has it switched off")]
    Off,
    /// The text is not a URL to go to. Reads on from a field's name: `must be …`.
    #[error("{problem}")]
    Url {
        /// What it must be.
        problem: &'static str,
    },
    /// The name leads, or the URL itself points, to an address that is not public. In the same words as one that is not found:
    /// what names there are inside is nobody's business.
    #[error("{host} is not at a public address")]
    NotPublic {
        /// The host that the URL names.
        host: String,
    },
    /// The name leads nowhere.
    #[error("{host} is not at a public address")]
    NotFound {
        /// The host that the URL names.
        host: String,
        /// What the look-up said.
        #[source]
        source: std::io::Error,
    },
    /// Others are before this request, for longer than it may take.
    #[error("too many requests are under way to {host} or in all")]
    Busy {
        /// The host that the URL names.
        host: String,
    },
    /// No connection, no TLS, or no HTTP.
    #[error("{host} cannot be reached")]
    Unreachable {
        /// The host that the URL names.
        host: String,
        /// What happened.
        #[source]
        source: reqwest::Error,
    },
    /// The connection broke in the middle of the answer.
    #[error("the answer of {host} broke off")]
    BrokenOff {
        /// The host that the URL names.
        host: String,
        /// What happened.
        #[source]
        source: reqwest::Error,
    },
    /// It took too long.
    #[error("{host} took longer than {limit:?}")]
    TimedOut {
        /// The host that the URL names.
        host: String,
        /// How long it was waited for.
        limit: Duration,
    },
    /// Another status than 200; a redirect is not followed.
    #[error("{host} answered with status {status}{}", if (300..400).contains(status) { "; redirects are not followed" } else { "" })]
    Status {
        /// The host that the URL names.
        host: String,
        /// The status.
        status: u16,
    },
    /// More bytes than wanted.
    #[error("{host} answered with more than {limit} bytes")]
    TooLarge {
        /// The host that the URL names.
        host: String,
        /// The limit in bytes.
        limit: u64,
    },
}

/// Why there can be no requests at all.
#[derive(Debug, thiserror::Error)]
pub enum EgressSetupError {
    /// `ca_file` cannot be read.
    #[error("cannot read egress.ca_file {}", path.display())]
    ReadCaFile {
        /// The file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// `ca_file` holds something else than certificates.
    #[error("egress.ca_file {} is not a file of certificates in PEM", path.display())]
    CaFile {
        /// The file.
        path: PathBuf,
        /// What was found.
        #[source]
        source: reqwest::Error,
    },
    /// There is nothing to verify servers with.
    #[error(
        "cannot set up HTTPS to addresses that callers name; without root certificates in the system, set egress.ca_file, or \
         egress.enabled = false"
    )]
    Client(#[source] reqwest::Error),
}

/// What the resolver found wrong, on its way through the client.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Refusal {
    #[error("not every address of it is public")]
    NotPublic,
    #[error("it has no address")]
    NotFound(#[source] std::io::Error),
}

impl EgressError {
    /// What a failure of the client is here.
    pub(crate) fn of(host: &str, error: reqwest::Error) -> Self {
        let host = host.to_owned();
        // The URL may carry a secret of its caller's in its query.
        let error = error.without_url();
        match refusal(&error) {
            Some(Refusal::NotPublic) => return Self::NotPublic { host },
            Some(Refusal::NotFound(source)) => {
                let source = std::io::Error::new(source.kind(), source.to_string());
                return Self::NotFound { host, source };
            }
            None => {}
        }
        match error.is_body() || error.is_decode() {
            true => Self::BrokenOff {
                host,
                source: error,
            },
            false => Self::Unreachable {
                host,
                source: error,
            },
        }
    }

    /// One word for metrics.
    pub(crate) fn word(&self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::Url { .. } => "url",
            Self::NotPublic { .. } => "not_public",
            Self::NotFound { .. } => "not_found",
            Self::Busy { .. } => "busy",
            Self::Unreachable { .. } => "unreachable",
            Self::BrokenOff { .. } => "broken_off",
            Self::TimedOut { .. } => "timed_out",
            Self::Status { .. } => "status",
            Self::TooLarge { .. } => "too_large",
        }
    }
}

fn refusal(error: &reqwest::Error) -> Option<&Refusal> {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(error) = cause {
        if let Some(refusal) = error.downcast_ref::<Refusal>() {
            return Some(refusal);
        }
        cause = error.source();
    }
    None
}
