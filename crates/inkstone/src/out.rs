//! Where a command tells what it has to tell.
//!
//! `println!` ends the process with a panic where nobody reads on, as in `inkstone dead list | head -1`. Here what nobody reads is let go of, and the
//! command goes on to its end: it may be at something that should not be left half done. Where it cannot be written for another reason, as on a full
//! disk, the command does not end as if it had told it.

use std::fmt;
use std::io::{self, Write};
use std::sync::Mutex;

/// A line to the standard output.
macro_rules! say {
    ($($words:tt)*) => { $crate::out::line(format_args!($($words)*)) };
}

/// A line to the standard error output.
macro_rules! complain {
    ($($words:tt)*) => { $crate::out::error_line(format_args!($($words)*)) };
}

pub(crate) use {complain, say};

/// Why something could not be written; the first of all reasons.
static FAILED: Mutex<Option<io::Error>> = Mutex::new(None);

pub(crate) fn line(words: fmt::Arguments<'_>) {
    write(format!("{words}\n").as_bytes());
}

/// What ends with its own line ends, in one piece.
pub(crate) fn write(text: &[u8]) {
    if let Err(error) = whole(&mut io::stdout().lock(), text) {
        let mut failed = FAILED.lock().unwrap_or_else(|e| e.into_inner());
        failed.get_or_insert(error);
    }
}

pub(crate) fn error_line(words: fmt::Arguments<'_>) {
    // There is nowhere to say that it cannot be said.
    let _ = writeln!(io::stderr().lock(), "{words}");
}

/// Why something could not be written that was to be said, if that happened.
pub(crate) fn failure() -> Option<io::Error> {
    FAILED.lock().unwrap_or_else(|e| e.into_inner()).take()
}

/// No error where nobody reads it.
fn whole(to: &mut impl Write, text: &[u8]) -> io::Result<()> {
    match to.write_all(text).and_then(|()| to.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        written => written,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Fails(io::ErrorKind);

    impl Write for Fails {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(self.0.into())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn what_nobody_reads_is_no_error_and_what_cannot_be_written_is() {
        whole(&mut Fails(io::ErrorKind::BrokenPipe), b"x").unwrap();
        let full = whole(&mut Fails(io::ErrorKind::StorageFull), b"x");
        assert_eq!(full.unwrap_err().kind(), io::ErrorKind::StorageFull);
        let mut told = Vec::new();
        whole(&mut told, b"x\n").unwrap();
        assert_eq!(told, b"x\n");
    }
}
