//! `inkstone-gateway`: the public edge as a process of its own.

use std::process::ExitCode;

#[global_allocator]
static ALLOCATOR: allocator::MiMalloc = allocator::MiMalloc;

fn main() -> ExitCode {
    lifecycle::run::<gateway::Settings, _, _>(gateway::start)
}
