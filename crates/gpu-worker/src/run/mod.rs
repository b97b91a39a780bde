//! One dispatch, from the queue to its settlement.
//!
//! What the broker is told last follows from what the log holds by then: a dispatch leaves the queue only after the
//! task's end is stored (invariant I4), and everything else goes back. Deliveries are not counted; attempts are, in the
//! task's state, by the worker that takes the task up.

mod decide;
mod running;

use std::sync::Arc;
use std::time::{Duration, Instant};

use contract::ErrorCode;
use contract::task::{
    DeadLetter, Dispatch, Done, Failed, Phase, State, StoredImage, Succeeded, done,
};
use messaging::Delivery;
use prost::Message as _;
use storage::Key;
use task_log::{Ended, Record, TaskLogError, TaskRef};
use tracing::Instrument as _;

use crate::metrics;
use crate::models::Served;
use crate::pipeline::{self, NodeError, TaskJob, Verdict, checkpoint};
use crate::retry::{Stopped, until_stopped};
use crate::worker::Worker;
use lifecycle::chain;

use decide::{Decision, decide, retry_delay};
pub(crate) use running::Running;

/// Whose dead letter it is when the dispatch does not say.
const NOBODY: &str = "unknown";
/// Times that a task which is not in the log is looked for before its dispatch is buried, and the pause between them.
const LOOKS_FOR_A_TASK: u64 = 3;
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// What the broker is to be told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Settlement {
    /// The task has ended, or there is none.
    Ack,
    /// Someone takes it up after this long.
    GiveBack(Duration),
}

/// Carries out one delivery, with heartbeats, and settles it.
pub(crate) async fn deliver(worker: Arc<Worker>, served: Arc<Served>, delivery: Delivery) {
    let span = tracing::info_span!("task", otel.kind = "consumer", task = tracing::field::Empty);
    delivery.continue_trace(&span);
    let work = async {
        // A worker that stops hands back at once: another has room.
        let settlement = dispatched(&worker, &served, &delivery).await;
        let settlement = settlement.unwrap_or(Settlement::GiveBack(Duration::ZERO));
        let settled = match settlement {
            Settlement::Ack => delivery.ack().await,
            Settlement::GiveBack(delay) => delivery.give_back(delay).await,
        };
        if let Err(error) = settled {
            // It comes again after the ack wait, and is then decided by what the log holds.
            tracing::warn!(
                error = chain(&error),
                ?settlement,
                "a dispatch was not settled"
            );
        }
    };
    delivery.heartbeat(work).instrument(span).await;
}

async fn dispatched(
    worker: &Arc<Worker>,
    served: &Arc<Served>,
    delivery: &Delivery,
) -> Result<Settlement, Stopped> {
    let dispatch = match Dispatch::decode(delivery.payload().clone()) {
        Ok(dispatch) => dispatch,
        Err(error) => return unreadable(worker, delivery, &error.to_string()).await,
    };
    let Dispatch {
        tenant,
        lane,
        task_id,
        weight,
    } = &dispatch;
    let task = match TaskRef::parse(tenant, lane, task_id) {
        Ok(task) => task,
        Err(error) => return unreadable(worker, delivery, &chain(&error)).await,
    };
    tracing::Span::current().record("task", tracing::field::display(task.task));
    let record = match read(worker, &task).await? {
        Ok(record) => record,
        Err(error) => {
            let reason = format!("the task's events cannot be read: {}", chain(&error));
            return give_up(
                worker,
                delivery,
                &task,
                ErrorCode::Internal,
                reason,
                0,
                None,
            )
            .await;
        }
    };
    let place = worker.running.enter(task.task);
    match (
        decide(record.as_ref(), place.is_none(), worker.max_attempts),
        record,
    ) {
        (Decision::Run { attempt }, Some(record)) => {
            run(worker, served, delivery, task, *weight, record, attempt).await
        }
        (Decision::Exhausted { attempts }, Some(record)) => {
            let reason = format!(
                "taken up {attempts} times; each time the worker ended before the task did"
            );
            let code = ErrorCode::AttemptsExhausted;
            forget_checkpoint(worker, Some(&record)).await;
            give_up(
                worker,
                delivery,
                &task,
                code,
                reason,
                attempts,
                record.state.as_ref(),
            )
            .await
        }
        (Decision::AlreadyHere, _) => {
            tracing::info!("delivered again while it runs here");
            Ok(Settlement::GiveBack(worker.ack_wait))
        }
        (Decision::Ended, record) => {
            forget_checkpoint(worker, record.as_ref()).await;
            Ok(Settlement::Ack)
        }
        // It may lie on a replica that has not heard of it so far.
        (Decision::Bury, _) if delivery.deliveries() <= LOOKS_FOR_A_TASK => {
            Ok(Settlement::GiveBack(LOOK_AGAIN))
        }
        (Decision::Bury | Decision::Run { .. } | Decision::Exhausted { .. }, _) => {
            let reason = "a dispatch of a task that is not in the log".to_owned();
            bury(worker, delivery, &task, ErrorCode::TaskNotFound, reason).await?;
            Ok(Settlement::Ack)
        }
    }
}

/// Removes what a task that is over would have gone on from; best effort, for nobody reads it again.
async fn forget_checkpoint(worker: &Worker, record: Option<&Record>) {
    let state = record.and_then(|record| record.state.as_ref());
    let checkpoint = state.and_then(|state| state.checkpoint.as_ref());
    let Some(key) = checkpoint.and_then(|checkpoint| Key::stored(&checkpoint.key)) else {
        return;
    };
    if let Err(error) = worker.storage.delete(&key).await {
        tracing::debug!(error = chain(&error), "a checkpoint stays behind");
    }
}

/// Reads the task, for as long as it takes; an inner error is one that waiting does not mend.
async fn read(
    worker: &Worker,
    task: &TaskRef,
) -> Result<Result<Option<Record>, TaskLogError>, Stopped> {
    until_stopped(&worker.stop, "reading the task", || async {
        match worker.log.read(&task.tenant, task.task).await {
            Err(error @ TaskLogError::Broker(_)) => Err(error),
            answer => Ok(answer),
        }
    })
    .await
}

/// Takes the task up.
async fn run(
    worker: &Arc<Worker>,
    served: &Arc<Served>,
    delivery: &Delivery,
    task: TaskRef,
    weight: u32,
    record: Record,
    attempt: u32,
) -> Result<Settlement, Stopped> {
    let before = record.state.unwrap_or_default();
    let now = contract::now();
    let state = State {
        phase: Phase::Running.into(),
        attempt,
        worker: worker.name.clone(),
        scheduled_at: before.scheduled_at,
        started_at: before.started_at.or(Some(now)),
        checkpoint: before.checkpoint,
        at: Some(now),
    };
    until_stopped(&worker.stop, "writing the task's state", || {
        worker.log.set_state(&task, &state)
    })
    .await?;
    if attempt == 1 {
        metrics::queue_wait(&served.name, &record.submitted);
    }
    tracing::info!(attempt, model = %served.name, version = %served.version, "taken up");
    let request = record.submitted.request.unwrap_or_default();
    let pictures = request.images;
    let started = Instant::now();
    let mut job = TaskJob::new(worker, served, task, request, weight, state);
    let (outcome, settlement) = match until_stopped(&worker.stop, "listening for the end", || {
        worker.log.ends(&job.task)
    })
    .await
    {
        Err(Stopped) => ("handed_back", hand_back(&job).await),
        Ok(mut ends) => {
            let result = tokio::select! {
                biased;
                done = ends.wait() => Err(done),
                result = pipeline::run(&mut job) => Ok(result),
            };
            match result {
                // Dropping the pipeline has already told the engine to forget the pictures.
                Err(done) => ("ended_elsewhere", ended_elsewhere(&mut job, &done).await),
                Ok(result) => finish(&mut job, delivery, result).await,
            }
        }
    };
    metrics::task(&served.name, outcome, pictures, started.elapsed());
    tracing::info!(outcome, took = ?started.elapsed(), "left");
    Ok(settlement)
}

/// Writes the end that the pipeline came to, if it came to one.
async fn finish(
    job: &mut TaskJob,
    delivery: &Delivery,
    result: Result<(), NodeError>,
) -> (metrics::Outcome, Settlement) {
    let attempt = job.state.attempt;
    let error = match result {
        Ok(()) => {
            let succeeded = Succeeded {
                images: std::mem::take(&mut job.images),
                engine_ms: job.engine_time.as_millis().try_into().unwrap_or(u64::MAX),
            };
            let ended = end(job, done::Outcome::Succeeded(succeeded.clone())).await;
            // An answer that was lost makes our own end look like another's.
            let ours = |done: &Done| done.worker == job.worker.name && done.attempt == attempt;
            return match ended {
                Ok(Ended::First) => succeeded_here(job).await,
                Ok(Ended::Already(done)) if ours(&done) => succeeded_here(job).await,
                Ok(Ended::Already(done)) => {
                    job.images = succeeded.images;
                    ("ended_elsewhere", ended_elsewhere(job, &done).await)
                }
                Err(Stopped) => ("handed_back", hand_back(job).await),
            };
        }
        Err(error) => error,
    };
    let settled = match error.verdict() {
        Verdict::HandBack => Err(Stopped),
        Verdict::Fail(code) => {
            tracing::warn!(%code, error = chain(&error), "the task cannot be carried out");
            fail(job, code, chain(&error))
                .await
                .map(|()| ("failed", Settlement::Ack))
        }
        Verdict::Retry if attempt < job.worker.max_attempts => {
            let delay = retry_delay(attempt);
            tracing::warn!(attempt, ?delay, error = chain(&error), "the attempt failed");
            rest(job, attempt).await;
            Ok(("retried", Settlement::GiveBack(delay)))
        }
        Verdict::Retry => {
            let code = ErrorCode::AttemptsExhausted;
            let reason = format!("taken up {attempt} times; the last time: {}", chain(&error));
            let state = Some(&job.state);
            let given = give_up(
                &job.worker,
                delivery,
                &job.task,
                code,
                reason,
                attempt,
                state,
            )
            .await;
            given.map(|settlement| ("failed", settlement))
        }
    };
    match settled {
        Ok(settled) => {
            if settled.1 == Settlement::Ack {
                checkpoint::remove(job).await;
            }
            settled
        }
        Err(Stopped) => ("handed_back", hand_back(job).await),
    }
}

async fn succeeded_here(job: &mut TaskJob) -> (metrics::Outcome, Settlement) {
    checkpoint::remove(job).await;
    ("succeeded", Settlement::Ack)
}

/// Stores the end, for as long as it takes.
async fn end(job: &TaskJob, outcome: done::Outcome) -> Result<Ended, Stopped> {
    let done = ending(&job.worker, outcome, job.state.attempt, Some(&job.state));
    until_stopped(&job.worker.stop, "writing the task's end", || {
        job.worker.log.end(&job.task, &done)
    })
    .await
}

async fn fail(job: &TaskJob, code: ErrorCode, message: String) -> Result<(), Stopped> {
    let failed = Failed {
        code: code.to_string(),
        message,
    };
    end(job, done::Outcome::Failed(failed)).await.map(drop)
}

fn ending(worker: &Worker, outcome: done::Outcome, attempt: u32, state: Option<&State>) -> Done {
    Done {
        at: Some(contract::now()),
        outcome: Some(outcome),
        worker: worker.name.clone(),
        attempt,
        started_at: state.and_then(|state| state.started_at),
    }
}

/// Someone else ended the task, such as its owner by cancelling it. What it left behind goes.
async fn ended_elsewhere(job: &mut TaskJob, done: &Done) -> Settlement {
    tracing::info!(by = done.worker, "ended elsewhere");
    checkpoint::remove(job).await;
    // Pictures of one that succeeded elsewhere have the same keys and the same bytes: they stay.
    if !matches!(done.outcome, Some(done::Outcome::Succeeded(_))) {
        let keys = job
            .images
            .iter()
            .filter_map(|StoredImage { key, .. }| Key::stored(key));
        for key in keys {
            if let Err(error) = job.worker.storage.delete(&key).await {
                tracing::debug!(error = chain(&error), "a picture that nobody wants stays");
            }
        }
    }
    Settlement::Ack
}

/// The worker stops: the attempt was nobody's fault and does not count.
async fn hand_back(job: &TaskJob) -> Settlement {
    rest(job, job.state.attempt.saturating_sub(1)).await;
    Settlement::GiveBack(Duration::ZERO)
}

/// Writes that the task waits for a worker again. When that fails the old state stays, which only counts an attempt more.
async fn rest(job: &TaskJob, attempt: u32) {
    let state = State {
        phase: Phase::Scheduled.into(),
        attempt,
        worker: String::new(),
        at: Some(contract::now()),
        ..job.state.clone()
    };
    if let Err(error) = job.worker.log.set_state(&job.task, &state).await {
        tracing::warn!(error = chain(&error), "the task's state was not written");
    }
}

/// Ends the task as failed and keeps a copy of its dispatch.
async fn give_up(
    worker: &Worker,
    delivery: &Delivery,
    task: &TaskRef,
    code: ErrorCode,
    reason: String,
    attempt: u32,
    state: Option<&State>,
) -> Result<Settlement, Stopped> {
    bury(worker, delivery, task, code, reason.clone()).await?;
    let failed = Failed {
        code: code.to_string(),
        message: reason,
    };
    let done = ending(worker, done::Outcome::Failed(failed), attempt, state);
    until_stopped(&worker.stop, "writing the task's end", || {
        worker.log.end(task, &done)
    })
    .await?;
    Ok(Settlement::Ack)
}

/// A message that cannot be read never will be: it goes to DEAD, once, whoever sent it.
async fn unreadable(
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
            delivery,
            ErrorCode::InvalidArgument,
            format!("not a dispatch: {problem}"),
        )
    };
    write_letter(worker, &letter).await?;
    Ok(Settlement::Ack)
}

async fn bury(
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
        ..letter(delivery, code, reason)
    };
    write_letter(worker, &letter).await
}

fn letter(delivery: &Delivery, code: ErrorCode, reason: String) -> DeadLetter {
    DeadLetter {
        code: code.to_string(),
        reason,
        at: Some(contract::now()),
        subject: delivery.subject().to_owned(),
        payload: delivery.payload().to_vec(),
        ..DeadLetter::default()
    }
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
