//! A crash leaves no copy of memory behind: it holds callers' secrets.

use std::io;

use rustix::process::{Resource, Rlimit, setrlimit};

/// Sees to it that this process leaves no core dump, whatever the shell or the machine says, and that only the
/// administrator can read its memory while it runs (`ptrace`, `/proc/<pid>/mem`).
///
/// # Errors
/// When the operating system refuses.
pub fn forbid_core_dumps() -> io::Result<()> {
    let none = Rlimit {
        current: Some(0),
        maximum: Some(0),
    };
    setrlimit(Resource::Core, none)?;
    // A limit of 0 does not hold for a handler that the kernel pipes to (core(5)); this does.
    #[cfg(target_os = "linux")]
    rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use rustix::process::getrlimit;

    use super::*;

    #[test]
    fn once_forbidden_there_is_no_core_dump_and_no_way_back() {
        forbid_core_dumps().unwrap();
        let limit = getrlimit(Resource::Core);
        assert_eq!((limit.current, limit.maximum), (Some(0), Some(0)));
        #[cfg(target_os = "linux")]
        assert!(matches!(
            rustix::process::dumpable_behavior(),
            Ok(rustix::process::DumpableBehavior::NotDumpable)
        ));
    }
}
