//! One worker as a process.

use std::process::ExitCode;

fn main() -> ExitCode {
    lifecycle::run::<gpu_worker::Settings, _, _>(gpu_worker::start)
}
