//! The auth service as a process of its own.

use std::process::ExitCode;

/// Allocating was a seventh of the processor's time (docs/PERFORMANCE.md, "The edge").
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    lifecycle::run::<auth::Settings, _, _>(auth::start)
}
