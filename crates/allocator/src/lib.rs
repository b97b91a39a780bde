//! The allocator of the services that allocate most, and how long it keeps what is freed.
//!
//! It is mimalloc: allocating was a seventh of the processor's time (docs/PERFORMANCE.md, "The edge"). By itself it keeps freed memory for a
//! second before the system has it back. What takes and frees much at once pays for each page that comes back: of a submission under load, auth, the
//! gateway and the orchestrator take a tenth to a fifth less with a second than with 10 ms. Beside a large backlog the orchestrator has too much with a
//! second ("A long backlog"), so it has 100 ms; the others keep the second.
//!
//! A service's `main.rs` names it as its allocator, and the orchestrator's `main` calls [`give_back_soon`] before anything else. Its library does
//! neither: what else uses that has an allocator of its own.
#![allow(unsafe_code, reason = "mimalloc's options are set by functions of C")]

use std::ffi::{c_int, c_long};

pub use mimalloc::MiMalloc;

/// For how many milliseconds what is freed is kept.
const PURGE_DELAY: c_long = 100;

/// `mi_option_purge_delay` of `mi_option_t` in `mimalloc.h`, the same number in versions 2 and 3. A test holds it to the variable of that name.
const OPTION_PURGE_DELAY: c_int = 15;

// Declared here and not taken from `libmimalloc-sys`: what that declares of options comes with a dependency more, and lacks this one's number.
// SAFETY: the declarations are those of `mimalloc.h`; `mi_option_t` is an enum, which C has as an `int`.
unsafe extern "C" {
    #[cfg(test)]
    fn mi_option_get(option: c_int) -> c_long;
    fn mi_option_set_default(option: c_int, value: c_long);
}

/// Has the allocator give memory back 100 ms after it was freed, unless the environment says otherwise (`MIMALLOC_PURGE_DELAY`, in milliseconds).
///
/// To be called first of all in `main`, while the process has no other thread.
pub fn give_back_soon() {
    // SAFETY: it writes one number into a table of its own, after it has looked whether there is such an option, and leaves the number alone that
    // came from the environment. It is not synchronized; there is no other thread yet.
    unsafe { mi_option_set_default(OPTION_PURGE_DELAY, PURGE_DELAY) }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[global_allocator]
    static ALLOCATOR: MiMalloc = MiMalloc;

    const NAME: &str = "what_is_freed_is_kept_for_a_tenth_of_a_second_or_as_the_environment_says";
    /// What mimalloc reads.
    const VARIABLE: &str = "MIMALLOC_PURGE_DELAY";
    /// What is to be in force; set where this is the process that it is to be in force in.
    const EXPECTED: &str = "ALLOCATOR_TEST_EXPECTED";

    /// The environment is read once, before `main`: each case is a process of its own.
    #[test]
    fn what_is_freed_is_kept_for_a_tenth_of_a_second_or_as_the_environment_says() {
        if let Ok(expected) = std::env::var(EXPECTED) {
            give_back_soon();
            // SAFETY: it reads a number that nobody else writes.
            let in_force = unsafe { mi_option_get(OPTION_PURGE_DELAY) };
            assert_eq!(in_force.to_string(), expected);
            return;
        }
        for (set, expected) in [(None, "100"), (Some("250"), "250"), (Some("-1"), "-1")] {
            let mut case = Command::new(std::env::current_exe().unwrap());
            case.args(["--exact", &format!("tests::{NAME}")])
                .env(EXPECTED, expected)
                .env_remove(VARIABLE)
                .envs(set.map(|set| (VARIABLE, set)));
            let output = case.output().unwrap();
            let told = String::from_utf8_lossy(&output.stdout);
            let passed = output.status.success() && told.contains("1 passed");
            assert!(passed, "{set:?}: {told}");
        }
    }
}
