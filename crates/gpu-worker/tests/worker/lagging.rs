//! A worker that reads the log from a replica that lags.

use contract::TaskId;
use contract::task::{Phase, State, Submitted};
use contract::v1::SubmitTask;
use task_log::{TaskRef, deadline};

use crate::support::{Platform, request, stop, until};

/// A task that should have begun some minutes ago.
async fn late(platform: &Platform) -> Submitted {
    let like = SubmitTask {
        expires_after_seconds: 60,
        ..request("a cat", 1, 2)
    };
    let like = platform.submit_only(like).await;
    let mut at = contract::now();
    at.seconds -= 1200;
    let late = Submitted {
        task_id: TaskId::random().to_string(),
        at: Some(at),
        ..platform.record(&like).await.submitted
    };
    platform.log.submit(&late).await.unwrap();
    late
}

#[tokio::test]
async fn a_task_that_another_worker_began_in_time_is_not_ended_as_late() {
    let platform = Platform::start().await;
    let (begun, waiting) = (late(&platform).await, late(&platform).await);
    let state = State {
        phase: Phase::Scheduled.into(),
        attempt: 1,
        started_at: begun.at,
        ..State::default()
    };
    let begun_task = TaskRef::of(&begun).unwrap();
    platform.log.set_state(&begun_task, &state).await.unwrap();
    let submissions = "inkstone.task.*.*.*.submitted";
    platform.nats.lag("TASKS", submissions).unwrap();
    // The one that nobody began comes last: when that has ended, the other was looked at.
    for submitted in [&begun, &waiting] {
        platform.log.dispatch(submitted, 1, 1).await.unwrap();
    }
    let worker = platform.worker(&[("worker.ack_wait", "2s")]).await;
    let waiting = TaskRef::of(&waiting).unwrap();
    let end = async || {
        let record = platform.log.read_at_leader(&waiting.tenant, waiting.task);
        record.await.unwrap().unwrap().done
    };
    until("what nobody began has ended", async || {
        end().await.is_some()
    })
    .await;
    assert!(end().await.as_ref().is_some_and(deadline::has_expired));
    platform.nats.catch_up("TASKS").unwrap();
    assert_eq!(platform.pictures(&begun_task).await.len(), 1);
    stop(worker).await;
}
