//! `inkstone-gateway`: the public edge as a process of its own.

use std::process::ExitCode;

#[global_allocator]
static ALLOCATOR: allocator::MiMalloc = allocator::MiMalloc;

fn main() -> ExitCode {
    allocator::give_back_soon();
    lifecycle::run::<gateway::Settings, _, _>(gateway::start)
}
