//! The auth service as a process of its own.

use std::process::ExitCode;

#[global_allocator]
static ALLOCATOR: allocator::MiMalloc = allocator::MiMalloc;

fn main() -> ExitCode {
    lifecycle::run::<auth::Settings, _, _>(auth::start)
}
