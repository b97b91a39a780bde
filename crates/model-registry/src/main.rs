//! The model registry as a process of its own.

use std::process::ExitCode;

fn main() -> ExitCode {
    lifecycle::run::<model_registry::Settings, _, _>(model_registry::start)
}
