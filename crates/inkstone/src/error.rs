//! What can go wrong at the terminal, in words for the person there.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use contract::{ErrorCode, Failure};

use crate::span::in_words;

/// Why a command did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum CliError {
    /// The operating system would not give threads or signals.
    #[error("cannot start the runtime")]
    Runtime(#[source] io::Error),
    /// The command was carried out, and its answer could not be written.
    #[error("what was to be told cannot be written to the standard output")]
    Told(#[source] io::Error),
    /// A file or folder cannot be used.
    #[error("cannot {operation} {}", path.display())]
    File {
        /// Read, write, make.
        operation: &'static str,
        /// Which.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// A picture is to be written in a format that there is not.
    #[error("{}: the extension says the format, and must be png, jpg or webp", path.display())]
    Extension {
        /// Where to.
        path: PathBuf,
    },
    /// The platform's address cannot be had.
    #[error("cannot listen on {address}; name another address with --listen ADDRESS:PORT")]
    Listen {
        /// Where.
        address: SocketAddr,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// A picture is to be written where a folder is.
    #[error("{}: this is a folder; name a file in it, such as {}/cat.png", path.display(), path.display())]
    OutputFolder {
        /// Where to.
        path: PathBuf,
    },
    /// A picture is to be written to the standard output.
    #[error("-: a picture goes into a file, not to the standard output; name one, such as cat.png")]
    OutputStream,
    /// A picture is to be written into a folder that is not there.
    #[error("{}: there is no folder {}; make it first, or name another", output.display(), folder.display())]
    NoOutputFolder {
        /// Where to.
        output: PathBuf,
        /// What is missing of it.
        folder: PathBuf,
    },
    /// Ctrl-C or SIGTERM before there was a task.
    #[error("stopped before anything was drawn")]
    Interrupted,
    /// No platform runs on the data folder.
    #[error("no platform runs on {}; start one with `inkstone up` or `make up`", data.display())]
    NotRunning {
        /// The data folder.
        data: PathBuf,
    },
    /// Another platform runs on the data folder.
    #[error("a platform runs on {} already (process {process}); stop it, or use another --data", data.display())]
    AlreadyRunning {
        /// The data folder.
        data: PathBuf,
        /// Its process id.
        process: i32,
    },
    /// The data was taken away from a platform that runs.
    #[error("{} was removed or replaced while the platform ran, and with it what it had stored; start it again", path.display())]
    FolderGone {
        /// The data folder, or one in it.
        path: PathBuf,
    },
    /// Another platform is about to run on the data folder, or about to stop.
    #[error("another process starts or stops a platform on {}; wait for it, or use another --data", data.display())]
    AlreadyStarting {
        /// The data folder.
        data: PathBuf,
    },
    /// There is no key to call with.
    #[error("no key: give --key or INKSTONE_KEY, or make one with `inkstone keys create`")]
    NoKey,
    /// There is no policy for a prefix.
    #[error("there is no policy for {prefix:?}; there are {}", listed(known))]
    NoSuchPolicy {
        /// As given.
        prefix: String,
        /// Those that there are.
        known: Vec<String>,
    },
    /// A new policy lacks something.
    #[error("there is no policy for {prefix:?} yet; a new one needs {option}")]
    NewPolicy {
        /// As given.
        prefix: String,
        /// What is missing.
        option: &'static str,
    },
    /// A key that cannot be sent.
    #[error("the key is not one: it holds characters that no key has")]
    BadKey,
    /// There is no model to publish.
    #[error("{} is not a model folder (no model_index.json); run from the repository or give --model", path.display())]
    NoModel {
        /// Where one was looked for.
        path: PathBuf,
    },
    /// No model is named, and none was published before.
    #[error(
        "there is no model to draw with: none was published on {} before; give a folder with --model, or start it in the \
         repository, which has one",
        data.display()
    )]
    NoModels {
        /// The data folder.
        data: PathBuf,
    },
    /// `inkstone demo` where its model is not.
    #[error(
        "`inkstone demo` draws with the demo model of the repository: start it in there; elsewhere give a folder with a model to \
         `inkstone up --model FOLDER`"
    )]
    NoDemoModel,
    /// `inkstone up` with certificates between its services.
    #[error(
        "{variable} is set, but `inkstone up` runs all services in one process, without certificates between them; unset it, or \
         run the services one by one. The public port takes a certificate by INKSTONE_GATEWAY__HTTP__TLS__CERT and …__KEY"
    )]
    CertificatesInOneProcess {
        /// The variable of the environment.
        variable: String,
    },
    /// nats-server could not be started.
    #[error(transparent)]
    Broker(#[from] nats_server::ServerError),
    /// Settings, which only the environment can have made wrong.
    #[error(transparent)]
    Settings(#[from] settings::SettingsError),
    /// Logs and metrics.
    #[error(transparent)]
    Telemetry(#[from] telemetry::TelemetryError),
    /// A service did not start.
    #[error("{service} did not start")]
    Start {
        /// Which.
        service: &'static str,
        /// Why not.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A service ended.
    #[error(transparent)]
    Failed(#[from] lifecycle::TaskFailure),
    /// The platform did not become ready.
    #[error("the platform did not become ready within {}: {problem}", in_words(*limit))]
    NotReady {
        /// How long it was waited for.
        limit: Duration,
        /// What is missing.
        problem: String,
    },
    /// An address is not one.
    #[error(transparent)]
    Address(#[from] rpc::RpcError),
    /// Certificates are not good.
    #[error("--tls-dir")]
    Tls(#[from] rpc::TlsError),
    /// The CA of an https address is not one.
    #[error("--ca")]
    Ca(#[source] rpc::TlsError),
    /// Nobody answers at an address.
    #[error(
        "nothing answers at {url} ({reason}); start a platform there with `inkstone up`, or say where it is with {option}"
    )]
    Unreachable {
        /// The address.
        url: String,
        /// What the connection says.
        reason: String,
        /// How to give another address.
        option: &'static str,
    },
    /// The certificate of an address is not one to trust.
    #[error("the certificate of {url} is not trusted ({reason}); {remedy}")]
    Untrusted {
        /// The address.
        url: String,
        /// What is wrong with it.
        reason: String,
        /// What to do.
        remedy: String,
    },
    /// An address that is called in the clear speaks TLS, or the reverse.
    #[error("what answers at {url} {speaks}; {remedy}")]
    WrongScheme {
        /// The address.
        url: String,
        /// What it speaks.
        speaks: &'static str,
        /// What to do.
        remedy: String,
    },
    /// A service is to be called with TLS, and there are no certificates to show it.
    #[error(
        "{url} is called with certificates: give the folder of operator.inkstone's with --tls-dir, or say http:// with {option} \
         where the service has none"
    )]
    NoCertificates {
        /// The address.
        url: String,
        /// How to give another address.
        option: &'static str,
    },
    /// The platform said no.
    #[error("{}", describe(.0))]
    Refused(Failure),
    /// The task ended otherwise than with pictures.
    #[error("the task {task} {how}")]
    Ended {
        /// Which.
        task: String,
        /// Failed or cancelled, and why.
        how: String,
        /// Whether someone wished it so.
        cancelled: bool,
    },
    /// A task that was to be cancelled had ended before.
    #[error("the task {task} {how} already: there was nothing left to cancel")]
    HadEnded {
        /// Which.
        task: String,
        /// Its end, as a sentence has it.
        how: &'static str,
    },
    /// The platform went away while a task was followed, and did not come back in time.
    #[error(
        "the platform went away, and was waited for for {} (--patience); the task does not end by that: \
         `inkstone watch {task}` follows it again",
        in_words(*patience)
    )]
    Away {
        /// Which task.
        task: String,
        /// How long it was waited for.
        patience: Duration,
        /// What the last try met.
        #[source]
        source: Box<CliError>,
    },
    /// There is no such dead letter.
    #[error("{reason}; `inkstone dead list` shows those that are there")]
    NoSuchLetter {
        /// What the orchestrator says.
        reason: String,
    },
    /// What came over the wire makes no sense.
    #[error("the platform's answer makes no sense: {0}")]
    Answer(&'static str),
    /// A file is not a picture that we can read.
    #[error("cannot inspect {}", path.display())]
    Inspect {
        /// Which.
        path: PathBuf,
        /// Why not.
        #[source]
        source: imaging::InspectError,
    },
    /// There are no audit files.
    #[error("there are no audit files (.jsonl) in {}", path.display())]
    NoAuditFiles {
        /// Where they were looked for.
        path: PathBuf,
    },
    /// Nothing was ever kept on the data folder.
    #[error(
        "{} is no platform's data folder: name the one of `inkstone up` with --data, or a folder with audit files with --files",
        data.display()
    )]
    NoData {
        /// The data folder.
        data: PathBuf,
    },
    /// The platform on the data folder has written no audit files so far.
    #[error("there are no audit files in {} so far: {}", path.display(), when_audited(*every))]
    NoAuditFilesYet {
        /// Where they were looked for.
        path: PathBuf,
        /// How long a record waits for its file; `None` where nothing is recorded.
        every: Option<Duration>,
    },
    /// An audit file was tampered with, or one in front of it is missing.
    #[error("{} is not good; the chain is good up to record {good}", path.display())]
    Audit {
        /// Which.
        path: PathBuf,
        /// The last good record's number.
        good: u64,
        /// What is wrong.
        #[source]
        source: ::audit::file::FileError,
    },
    /// The last audit records are missing.
    #[error(
        "the files end with {end}, and {head} is not among them: records are missing or another chain was put there"
    )]
    AuditTail {
        /// Where the files end.
        end: String,
        /// What should be there.
        head: String,
    },
    /// Events were removed before they were recorded.
    #[error(
        "each record is good up to {end}, in {count} files, but the chain is not whole: it has {number} gaps, and {known} are said to be known (--known-gaps); {first}"
    )]
    AuditGaps {
        /// Where the files end.
        end: String,
        /// How many files there are.
        count: usize,
        /// How many gaps there are.
        number: usize,
        /// How many there may be.
        known: usize,
        /// What the first of them says.
        first: String,
    },
    /// Nothing is recorded of a task.
    #[error("the files hold no record of the task {task}")]
    NotAudited {
        /// Which.
        task: String,
    },
    /// Nothing is recorded of a task, and something was not recorded.
    #[error(
        "the files hold no record of the task {task}; but they have {gaps} gaps, in which it may have been"
    )]
    PerhapsNotAudited {
        /// Which.
        task: String,
        /// How many gaps there are.
        gaps: usize,
    },
    /// `doctor` found something.
    #[error("{0} of the checks failed")]
    Unwell(usize),
}

impl CliError {
    pub(crate) fn file(
        operation: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::File {
            operation,
            path,
            source,
        }
    }
}

fn when_audited(every: Option<Duration>) -> String {
    match every {
        Some(every) => format!(
            "while the platform runs, what happens to a task is in one within {} (audit.export_every) and some seconds; wait for it, or \
             start the platform with INKSTONE_ORCHESTRATOR__AUDIT__EXPORT_EVERY=10s",
            in_words(every)
        ),
        None => "nothing is recorded, for audit.enabled is false (INKSTONE_ORCHESTRATOR__AUDIT__ENABLED)".to_owned(),
    }
}

fn listed(names: &[String]) -> String {
    match names {
        [] => "none".to_owned(),
        names => names.join(", "),
    }
}

fn describe(failure: &Failure) -> String {
    let mut text = failure.message.clone();
    if failure.code == ErrorCode::ModelNotFound {
        text.push_str(" (`inkstone models list` shows them)");
    }
    if let Some(wait) = failure.retry_after {
        text.push_str(&format!(" (in {})", in_words(wait)));
    }
    format!("{text} [{}]", failure.code)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_model_that_there_is_not_is_answered_with_the_command_that_lists_them() {
        let told = |code| CliError::Refused(Failure::new(code, "no")).to_string();
        assert!(told(ErrorCode::ModelNotFound).contains("`inkstone models list`"));
        assert!(!told(ErrorCode::TaskNotFound).contains("models list"));
    }

    #[test]
    fn a_policy_that_there_is_not_is_answered_with_those_that_there_are() {
        let told = |known: &[&str]| {
            let known = known.iter().map(|name| (*name).to_owned()).collect();
            let prefix = "gold-".to_owned();
            CliError::NoSuchPolicy { prefix, known }.to_string()
        };
        assert!(told(&["dev-", "prod-"]).ends_with("there are dev-, prod-"));
        assert!(told(&[]).ends_with("there are none"), "{}", told(&[]));
    }

    #[test]
    fn how_long_to_wait_is_told_as_people_say_it() {
        let refused = CliError::Refused(Failure {
            retry_after: Some(Duration::from_secs(3725)),
            ..Failure::new(ErrorCode::QuotaExceeded, "no")
        });
        assert_eq!(refused.to_string(), "no (in 1 h 2 min) [quota_exceeded]");
        let away = CliError::Away {
            task: "t".to_owned(),
            patience: Duration::from_secs(90),
            source: Box::new(CliError::NoKey),
        };
        assert!(away.to_string().contains("for 1 min 30 s (--patience)"));
    }
}
