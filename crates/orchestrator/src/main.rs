//! `inkstone-orchestrator`: see the library.

fn main() -> std::process::ExitCode {
    lifecycle::run(orchestrator::start)
}
