//! What can go wrong, and how a caller hears of it.

use std::time::Duration;

use contract::id::InvalidId;
use contract::{ErrorCode, Failure};
use egress::EgressSetupError;
use lifecycle::admin::AdminError;
use messaging::BrokerError;
use rpc::RpcError;
use storage::StorageError;
use task_log::TaskLogError;

/// How long callers are asked to wait when a part is down.
const RETRY_AFTER: Duration = Duration::from_secs(2);
/// The same of a submission whose id waits for the audit chain: each try is announced, charged and given back, and a chain that stands still goes on
/// when somebody has seen to it.
const EARLIER_END_RETRY_AFTER: Duration = Duration::from_secs(30);

/// Why the orchestrator did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// No broker.
    #[error(transparent)]
    Broker(#[from] BrokerError),
    /// No streams.
    #[error("cannot open the task log")]
    TaskLog(#[from] TaskLogError),
    /// No object store.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// No way to webhooks.
    #[error(transparent)]
    Egress(#[from] EgressSetupError),
    /// The certificates for TLS between services are not good.
    #[error("setting tls.dir")]
    Tls(#[from] rpc::TlsError),
    /// No gRPC.
    #[error(transparent)]
    Rpc(#[from] RpcError),
    /// No admin port.
    #[error(transparent)]
    Admin(#[from] AdminError),
}

/// Why a call was not carried out.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// The request itself is at fault, or policy says no.
    #[error(transparent)]
    Refused(#[from] Failure),
    /// The log does not answer.
    #[error(transparent)]
    TaskLog(#[from] TaskLogError),
    /// The gateway sent something that is not an id where one belongs.
    #[error(transparent)]
    Id(#[from] InvalidId),
}

impl From<CallError> for Failure {
    fn from(error: CallError) -> Failure {
        match error {
            CallError::Refused(failure) => failure,
            CallError::TaskLog(error @ (TaskLogError::Broker(_) | TaskLogError::Stopping)) => {
                tracing::warn!(error = lifecycle::chain(&error), "answered unavailable");
                Failure::unavailable(
                    "the task log is not reachable just now; try again",
                    RETRY_AFTER,
                )
            }
            CallError::TaskLog(error @ TaskLogError::EarlierEnd { .. }) => {
                tracing::warn!(error = lifecycle::chain(&error), "answered unavailable");
                Failure::unavailable(
                    "an earlier task of this id has ended, and its end is not recorded so far; try again",
                    EARLIER_END_RETRY_AFTER,
                )
            }
            CallError::TaskLog(error) => {
                tracing::error!(error = lifecycle::chain(&error), "answered internal");
                Failure::new(ErrorCode::Internal, "the task's record cannot be read")
            }
            CallError::Id(error) => Failure::invalid("task_id", error.to_string()),
        }
    }
}

/// A task that this tenant does not have.
pub(crate) fn task_not_found(task: &str) -> CallError {
    let shown: String = task.chars().take(64).collect();
    let text = format!("there is no task {shown}");
    CallError::Refused(Failure::new(ErrorCode::TaskNotFound, text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_waits_for_the_audit_chain_is_asked_to_wait_longer_than_who_waits_for_the_log() {
        let wait = |error: TaskLogError| {
            let failure = Failure::from(CallError::TaskLog(error));
            assert_eq!(failure.code, ErrorCode::Unavailable);
            failure.retry_after
        };
        let earlier_end = wait(TaskLogError::EarlierEnd { place: 7 });
        assert_eq!(earlier_end, Some(EARLIER_END_RETRY_AFTER));
        assert_eq!(wait(TaskLogError::Stopping), Some(RETRY_AFTER));
    }
}
