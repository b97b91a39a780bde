//! `inkstone-gateway`: the public edge as a process of its own.

use std::process::ExitCode;

/// Allocating was a seventh of the processor's time (docs/PERFORMANCE.md, "The edge").
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    lifecycle::run::<gateway::Settings, _, _>(gateway::start)
}
