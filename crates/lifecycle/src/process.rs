//! What a service's `main` does: settings, telemetry, start, wait, stop.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use settings::{Millis, Settings, SettingsError};
use telemetry::{Telemetry, TelemetryError, TelemetrySettings};

use crate::Service;
use crate::tasks::chain;

/// What a process ends with in which something hung: `EX_TEMPFAIL` of `sysexits.h`, an error that a new process may not have.
pub const HUNG: u8 = 75;

/// Settings that every process has, under `[process]` and `[telemetry]`.
#[derive(Debug, Clone, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProcessSettings {
    /// Where `/livez`, `/readyz` and `/metrics` are served.
    pub admin_listen: SocketAddr,
    /// How long running work may take to end after SIGTERM.
    pub shutdown_grace: Millis,
    /// Threads that carry out what is asked, see [`threads`].
    #[serde(default)]
    pub threads: usize,
    /// Seconds by which this process's clock is to be wrong; for tests.
    #[serde(default)]
    pub clock_offset: i64,
}

/// More threads than that only wait for each other.
const MOST_THREADS: usize = 512;

/// A service that can be a process of its own.
pub trait Process: Settings {
    /// Whether a crash may leave a copy of the process's memory behind; not where that holds callers' secrets.
    const CORE_DUMPS: bool = false;

    /// Its `[process]` section.
    fn process(&self) -> &ProcessSettings;
    /// Its `[telemetry]` section.
    fn telemetry(&self) -> &TelemetrySettings;
}

/// Why a process ended otherwise than by a signal.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The command line is not understood.
    #[error("{0}")]
    CommandLine(String),
    /// The settings cannot be used.
    #[error(transparent)]
    Settings(#[from] SettingsError),
    /// Logs, traces or metrics could not be started.
    #[error(transparent)]
    Telemetry(#[from] TelemetryError),
    /// The operating system would write core dumps.
    #[error("cannot forbid core dumps, which hold secrets")]
    CoreDumps(#[source] io::Error),
    /// The operating system would not give a runtime or signals.
    #[error("cannot start the runtime")]
    Runtime(#[source] io::Error),
    /// The service did not start.
    #[error("cannot start")]
    Start(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// A critical task ended.
    #[error(transparent)]
    Failed(#[from] crate::TaskFailure),
}

/// Runs one service as this process until SIGTERM or SIGINT, then stops it within its grace time.
pub fn run<S, F, E>(start: impl FnOnce(S, Telemetry) -> F) -> ExitCode
where
    S: Process,
    F: Future<Output = Result<Service, E>>,
    E: std::error::Error + Send + Sync + 'static,
{
    let outcome = command_line::<S>().and_then(|command| match command {
        Command::Run { config } => run_with(settings::load(config.as_deref(), &[])?, start),
        Command::Print(text) => {
            use io::Write as _;
            // A closed pipe is the reader's wish.
            let _ = io::stdout().write_all(text.as_bytes());
            Ok(())
        }
    });
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            use io::Write as _;
            let _ = writeln!(io::stderr(), "inkstone-{}: {}", S::SERVICE, chain(&error));
            match error {
                RunError::Failed(failure) if failure.hung => ExitCode::from(HUNG),
                _ => ExitCode::FAILURE,
            }
        }
    }
}

enum Command {
    Run { config: Option<PathBuf> },
    Print(String),
}

fn command_line<S: Settings>() -> Result<Command, RunError> {
    let mut config = None;
    let mut args = std::env::args_os().skip(1);
    while let Some(arg) = args.next() {
        match arg.to_str() {
            Some("--config") => match args.next() {
                Some(path) => config = Some(PathBuf::from(path)),
                None => return Err(RunError::CommandLine("--config needs a file".to_owned())),
            },
            Some("--defaults") => return Ok(Command::Print(S::DEFAULTS.to_owned())),
            Some("--version") => {
                let version = env!("CARGO_PKG_VERSION");
                return Ok(Command::Print(format!(
                    "inkstone-{} {version}\n",
                    S::SERVICE
                )));
            }
            Some("--help" | "-h") => return Ok(Command::Print(help::<S>())),
            _ => {
                let text = format!("unknown argument {}; see --help", arg.display());
                return Err(RunError::CommandLine(text));
            }
        }
    }
    Ok(Command::Run { config })
}

fn help<S: Settings>() -> String {
    let env = S::SERVICE.to_uppercase().replace('-', "_");
    format!(
        "inkstone-{} [--config FILE]\n\n  \
         --config FILE   settings that override the defaults, key by key (TOML)\n  \
         --defaults      print every setting with its default and what it is for\n  \
         --version       print the version\n\n\
         INKSTONE_{env}__SECTION__KEY in the environment overrides both.\n",
        S::SERVICE
    )
}

fn run_with<S, F, E>(settings: S, start: impl FnOnce(S, Telemetry) -> F) -> Result<(), RunError>
where
    S: Process,
    F: Future<Output = Result<Service, E>>,
    E: std::error::Error + Send + Sync + 'static,
{
    if !S::CORE_DUMPS {
        crate::forbid_core_dumps().map_err(RunError::CoreDumps)?;
    }
    contract::clock::set_offset(settings.process().clock_offset);
    let exports = !settings.telemetry().otlp_endpoint.is_empty();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(threads(settings.process().threads, exports))
        .enable_all()
        .build()
        .map_err(RunError::Runtime)?;
    let grace = settings.process().shutdown_grace.duration();
    let telemetry = {
        let _inside = runtime.enter();
        Telemetry::start(S::SERVICE, settings.telemetry())?
    };
    let outcome = runtime.block_on(live(start(settings, telemetry.clone()), &telemetry, grace));
    telemetry.flush();
    // Blocking work that is stuck must not hold the process beyond its grace.
    runtime.shutdown_timeout(Duration::from_secs(1));
    outcome
}

/// Threads of a runtime for who asked for so many, and 0 for whoever leaves it to the machine.
pub fn threads(asked: usize, exports_traces: bool) -> usize {
    // The exporter's batches need a second one, whatever the machine has.
    let least = if exports_traces { 2 } else { 1 };
    match asked {
        0 => std::thread::available_parallelism().map_or(2, |n| n.get().clamp(2, 16)),
        asked => asked.clamp(least, MOST_THREADS),
    }
}

async fn live<F, E>(start: F, telemetry: &Telemetry, grace: Duration) -> Result<(), RunError>
where
    F: Future<Output = Result<Service, E>>,
    E: std::error::Error + Send + Sync + 'static,
{
    let signal = shutdown_signal().map_err(RunError::Runtime)?;
    tokio::pin!(signal);
    let service = tokio::select! {
        service = start => service.map_err(|e| RunError::Start(Box::new(e)))?,
        () = &mut signal => return Ok(()),
    };
    tracing::info!(service = service.name, "started");
    let mut upkeep = tokio::time::interval(Duration::from_secs(5));
    let failure = loop {
        tokio::select! {
            () = &mut signal => break None,
            failure = service.tasks.failed() => break Some(failure),
            _ = upkeep.tick() => telemetry.upkeep(),
        }
    };
    tracing::info!(service = service.name, ?grace, "stopping");
    service.stop(grace).await;
    failure.map_or(Ok(()), |failure| Err(failure.into()))
}

/// Resolves at the first SIGTERM, SIGINT or SIGHUP (a terminal that was closed).
///
/// # Errors
/// When the handlers cannot be installed.
pub fn shutdown_signal() -> io::Result<impl Future<Output = ()> + Send> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut hangup = signal(SignalKind::hangup())?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
            _ = hangup.recv() => {}
        }
    })
}

/// Resolves at the first SIGINT from now on: someone at a terminal who is waiting for an end, and does not want to.
///
/// # Errors
/// When the handler cannot be installed.
pub fn interrupt() -> io::Result<impl Future<Output = ()> + Send> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut interrupt = signal(SignalKind::interrupt())?;
    Ok(async move {
        let _ = interrupt.recv().await;
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_are_as_asked_for_within_bounds_and_two_where_traces_are_exported() {
        assert_eq!(threads(1, false), 1);
        assert_eq!(threads(1, true), 2);
        assert_eq!(threads(24, true), 24);
        assert_eq!(threads(usize::MAX, false), MOST_THREADS);
        assert!((2..=16).contains(&threads(0, false)));
    }
}
