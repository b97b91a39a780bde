//! `inkstone`: see the library.

fn main() -> std::process::ExitCode {
    inkstone::main()
}
