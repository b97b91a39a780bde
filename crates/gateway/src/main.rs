//! `inkstone-gateway`: the public edge as a process of its own.

use std::process::ExitCode;

fn main() -> ExitCode {
    lifecycle::run::<gateway::Settings, _, _>(gateway::start)
}
