//! `inkstone-orchestrator`: see the library.

/// Allocating was a seventh of the processor's time (docs/PERFORMANCE.md, "The edge").
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> std::process::ExitCode {
    lifecycle::run(orchestrator::start)
}
