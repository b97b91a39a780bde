//! The command line: the whole platform in one process (`up`, `demo`), and a client of it (everything else).
//!
//! `inkstone up` runs the same five services as production does, each through its own `start`, beside a real
//! nats-server child process; the only difference is that they share a process and listen on free ports. The client commands
//! speak gRPC to the public port and would work against any deployment.

mod audit;
mod broker;
mod callee;
mod cli;
mod client;
mod dead;
mod demo;
mod doctor;
mod environment;
mod error;
mod examples;
mod exit;
mod follow;
mod generate;
mod inspect;
mod keys;
mod models;
mod out;
mod place;
mod platform;
mod policies;
mod progress;
mod shell;
mod span;
mod starting;
mod up;
mod values;
mod watch;

use std::process::ExitCode;

use clap::{CommandFactory as _, FromArgMatches as _};

use crate::out::complain;
pub use error::CliError;

/// Parses the command line, runs it, and says what went wrong in one line.
pub fn main() -> ExitCode {
    let typed = environment::without_empty(cli::Cli::command()).get_matches();
    let command = cli::Cli::from_arg_matches(&typed).unwrap_or_else(|error| error.exit());
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(lifecycle::threads(0, false))
        .enable_all()
        .build();
    let outcome = match runtime {
        Ok(runtime) => {
            let outcome = runtime.block_on(cli::run(command));
            runtime.shutdown_timeout(std::time::Duration::from_secs(1));
            outcome
        }
        Err(source) => Err(CliError::Runtime(source)),
    };
    // After a command that was carried out, and whose answer nobody has.
    let outcome = outcome.and_then(|()| out::failure().map_or(Ok(()), |e| Err(CliError::Told(e))));
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            complain!("inkstone: {}", lifecycle::chain(&error));
            match &error {
                CliError::Failed(failure) if failure.hung => begin_anew(),
                _ => ExitCode::from(exit::code(&error)),
            }
        }
    }
}

/// A thread that hangs cannot be ended from within its process: the same command takes this process over, as a supervisor of
/// the services would start a new one.
fn begin_anew() -> ExitCode {
    use std::os::unix::process::CommandExt as _;
    let mut arguments = std::env::args_os();
    let named = arguments.next().unwrap_or_else(|| "inkstone".into());
    let program = std::env::current_exe().unwrap_or_else(|_| named.into());
    complain!("inkstone: beginning anew");
    let error = std::process::Command::new(program).args(arguments).exec();
    complain!("inkstone: cannot begin anew: {error}");
    ExitCode::from(lifecycle::HUNG)
}
