//! What a command ends with, for scripts (docs/OPERATIONS.md, "The command line").

use contract::ErrorCode;

use crate::error::CliError;

/// Whatever has no code of its own.
const FAILURE: u8 = 1;
/// What was typed cannot be; clap's own for what it does not understand.
const USAGE: u8 = 2;
/// The task failed.
const TASK_FAILED: u8 = 3;
/// The task was cancelled.
const TASK_CANCELLED: u8 = 4;
/// The platform is not there, or stays away.
const UNREACHABLE: u8 = 5;
/// There was nothing left to cancel.
const HAD_ENDED: u8 = 6;

/// The exit code of a command that ended with `error`.
pub(crate) fn code(error: &CliError) -> u8 {
    match error {
        CliError::Ended {
            cancelled: false, ..
        } => TASK_FAILED,
        CliError::Ended {
            cancelled: true, ..
        } => TASK_CANCELLED,
        CliError::Interrupted => TASK_CANCELLED,
        CliError::HadEnded { .. } => HAD_ENDED,
        CliError::Unreachable { .. }
        | CliError::WrongScheme { .. }
        | CliError::Untrusted { .. }
        | CliError::NotRunning { .. }
        | CliError::Away { .. } => UNREACHABLE,
        CliError::Extension { .. }
        | CliError::OutputFolder { .. }
        | CliError::OutputStream
        | CliError::NoOutputFolder { .. }
        | CliError::NoKey
        | CliError::BadKey
        | CliError::NewPolicy { .. }
        | CliError::NoCertificates { .. }
        | CliError::Address(_) => USAGE,
        CliError::Refused(failure) => match failure.code {
            ErrorCode::InvalidArgument => USAGE,
            ErrorCode::Unavailable | ErrorCode::DeadlineExceeded => UNREACHABLE,
            _ => FAILURE,
        },
        _ => FAILURE,
    }
}

#[cfg(test)]
mod tests {
    use contract::Failure;

    use super::*;

    #[test]
    fn a_script_can_tell_why_a_command_did_not_do_as_it_was_told() {
        let ended = |cancelled| CliError::Ended {
            task: "t".to_owned(),
            how: String::new(),
            cancelled,
        };
        let refused = |code| CliError::Refused(Failure::new(code, "no"));
        let codes = [
            code(&ended(false)),
            code(&ended(true)),
            code(&refused(ErrorCode::InvalidArgument)),
            code(&refused(ErrorCode::Unavailable)),
            code(&refused(ErrorCode::TaskNotFound)),
            code(&CliError::Unwell(1)),
        ];
        assert_eq!(codes, [3, 4, 2, 5, 1, 1]);
    }
}
