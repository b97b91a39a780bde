//! A task whose caller waits for the pictures, whatever the dialect: submitted, watched to its end, read, and cancelled when
//! the caller hangs up before the answer (`docs/adr/0012-a-caller-who-hangs-up-cancels.md`).

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use contract::auth::Caller;
use contract::{ErrorCode, Failure, TaskId, v1};
use tokio::time::Instant;

use crate::auth::Admitted;
use crate::edge::Edge;
use crate::platform::Reader;
use crate::task_json::end_failure;
use crate::tasks::{by_header, task_id};
use crate::watch::{Abandon, Watch};

/// Tries to read a picture that is drawn, and the pause after the first of them.
const TRIES: u32 = 5;
const PAUSE: Duration = Duration::from_millis(500);

/// Submits, and keeps watch from the moment that the task exists: a caller who hangs up while the submission is under way
/// abandons its task like one who hangs up later.
pub(crate) async fn accept(
    edge: &Arc<Edge>,
    caller: &Admitted,
    task: v1::SubmitTask,
) -> Result<(v1::Task, Abandon), Failure> {
    let (answer, answered) = tokio::sync::oneshot::channel();
    let (own, caller) = (edge.clone(), caller.clone());
    edge.tasks.job("submit", async move {
        let can_come_back = !task.idempotency_key.is_empty();
        let accepted = own.platform.submit(&caller, task).await;
        let accepted = accepted.and_then(|(task, _)| {
            let mut abandon = Abandon::new(own, &caller, task_id(&task.id)?);
            if can_come_back {
                abandon.disarm();
            }
            Ok((task, abandon))
        });
        // Nobody there any more: dropping the answer abandons the task.
        drop(answer.send(accepted));
    });
    let failed = |_| Failure::new(ErrorCode::Internal, "the submission was not carried out");
    // In every dialect that waits, a header brings the key.
    answered.await.map_err(failed)?.map_err(by_header)
}

/// The task once it has succeeded.
///
/// # Errors
/// Why it has not, or that it goes on by itself beyond `watch`'s deadline.
pub(crate) async fn success(mut watch: Watch, mut abandon: Abandon) -> Result<v1::Task, Failure> {
    let ended = watch.end().await;
    match &ended {
        Ok(_) => abandon.disarm(),
        Err(failure) => abandon.told(failure),
    }
    let task = ended?;
    match end_failure(&task) {
        Some(failure) => Err(failure),
        None => Ok(task),
    }
}

/// Submits and waits for the success, until `deadline` at most.
pub(crate) async fn draw(
    edge: &Arc<Edge>,
    caller: &Admitted,
    task: v1::SubmitTask,
    deadline: Instant,
) -> Result<v1::Task, Failure> {
    let (task, abandon) = accept(edge, caller, task).await?;
    let id = task_id(&task.id)?;
    let watch = Watch::new(edge.clone(), caller, id, false, deadline);
    success(watch, abandon).await
}

/// One picture's bytes; waits out a short outage, since the picture is drawn.
pub(crate) async fn picture(
    edge: &Edge,
    caller: &Caller,
    task: TaskId,
    index: u32,
) -> Result<Bytes, Failure> {
    let mut tries = 1;
    loop {
        match edge
            .platform
            .picture(Reader::Tenant(caller), task, index)
            .await
        {
            Ok(picture) => return Ok(picture.data),
            Err(failure) if failure.code == ErrorCode::Unavailable && tries < TRIES => {
                tokio::time::sleep(PAUSE * tries).await;
                tries += 1;
            }
            Err(failure) => return Err(failure),
        }
    }
}
