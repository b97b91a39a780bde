//! What is given up: a copy of the dispatch goes to DEAD, with the reason.

use contract::ErrorCode;
use contract::task::{DeadLetter, Dispatch};
use messaging::Delivery;
use prost::Message as _;
use task_log::TaskRef;
use task_log::transition::Settlement;

use crate::metrics;
use crate::retry::{Stopped, until_stopped};
use crate::worker::Worker;

/// Whose dead letter it is when the dispatch does not say.
const NOBODY: &str = "unknown";

/// A message that cannot be read never will be: it goes to DEAD, once, whoever sent it.
pub(super) async fn unreadable(
    worker: &Worker,
    delivery: &Delivery,
    problem: &str,
) -> Result<Settlement, Stopped> {
    // Named by its bytes, so that a second delivery of it writes the same letter.
    let digest = storage::sha256_hex(delivery.payload());
    let letter = DeadLetter {
        task_id: format!("unreadable-{}", &digest[..16]),
        tenant: NOBODY.to_owned(),
        ..letter(
            worker,
            delivery,
            ErrorCode::InvalidArgument,
            format!("not a dispatch: {problem}"),
        )
    };
    write_letter(worker, &letter).await?;
    Ok(Settlement::Ack)
}

pub(super) async fn bury(
    worker: &Worker,
    delivery: &Delivery,
    task: &TaskRef,
    code: ErrorCode,
    reason: String,
) -> Result<(), Stopped> {
    let letter = DeadLetter {
        task_id: task.task.to_string(),
        tenant: task.tenant.to_string(),
        lane: task.lane.to_string(),
        ..letter(worker, delivery, code, reason)
    };
    write_letter(worker, &letter).await
}

fn letter(worker: &Worker, delivery: &Delivery, code: ErrorCode, reason: String) -> DeadLetter {
    DeadLetter {
        code: code.to_string(),
        reason,
        at: Some(worker.log.now().into()),
        subject: delivery.subject().to_owned(),
        payload: kept(delivery.payload()),
        ..DeadLetter::default()
    }
}

/// A dispatch without what it tells of its task: letters stay for longer than the log keeps what callers wrote.
fn kept(payload: &[u8]) -> Vec<u8> {
    let Ok(mut dispatch) = Dispatch::decode(payload) else {
        return payload.to_vec();
    };
    let told = !dispatch.submitted.is_empty() || dispatch.state.is_some();
    if !told && dispatch.state_sequence == 0 {
        // Also what a later version wrote beside it.
        return payload.to_vec();
    }
    dispatch.submitted.clear();
    dispatch.state = None;
    dispatch.state_sequence = 0;
    dispatch.state_is_last = false;
    dispatch.encode_to_vec()
}

async fn write_letter(worker: &Worker, letter: &DeadLetter) -> Result<(), Stopped> {
    metrics::buried();
    tracing::warn!(
        subject = letter.subject,
        reason = letter.reason,
        "given up into DEAD"
    );
    until_stopped(&worker.stop, "writing a dead letter", || {
        worker.log.bury(letter)
    })
    .await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_letter_keeps_the_dispatch_and_not_what_its_caller_wrote() {
        let dispatch = Dispatch {
            task_id: "a task".to_owned(),
            weight: 3,
            ..Dispatch::default()
        };
        let told = Dispatch {
            submitted: b"a prompt".to_vec(),
            state: Some(Default::default()),
            state_sequence: 7,
            state_is_last: true,
            ..dispatch.clone()
        };
        assert_eq!(kept(&told.encode_to_vec()), dispatch.encode_to_vec());
        let mut unknown = dispatch.encode_to_vec();
        // Field 100, of a later version: 1.
        unknown.extend([0xa0, 0x06, 0x01]);
        assert_eq!(kept(&unknown), unknown);
        let garbage = b"\xff\xff not protobuf";
        assert_eq!(kept(garbage), garbage);
    }
}
