//! `inkstone-orchestrator`: see the library.

#[global_allocator]
static ALLOCATOR: allocator::MiMalloc = allocator::MiMalloc;

fn main() -> std::process::ExitCode {
    allocator::give_back_soon();
    lifecycle::run(orchestrator::start)
}
