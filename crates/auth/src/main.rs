//! The auth service as a process of its own.

use std::process::ExitCode;

fn main() -> ExitCode {
    lifecycle::run::<auth::Settings, _, _>(auth::start)
}
