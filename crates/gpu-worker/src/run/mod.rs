//! One dispatch, from the queue to its settlement.
//!
//! What the broker is told last follows from what the log holds by then: a dispatch leaves the queue only after the
//! task's end is stored (invariant I4), and everything else goes back. Deliveries are not counted; attempts are, in the
//! task's state, by the worker that takes the task up.

mod alone;
mod elsewhere;
mod finish;
mod history;
mod late;
mod letters;
mod missing;
mod reading;
mod running;

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use contract::ErrorCode;
use contract::task::{Dispatch, Done, Failed, Phase, State, StoredImage, done};
use messaging::Delivery;
use prost::Message as _;
use storage::Key;
use task_log::transition::{
    CameOut, Decision, Known, Next, Settlement, Written, after_attempt, after_refusal, after_rest,
    decide,
};
use task_log::{Ended, Record, TaskRef, has_listeners};
use tracing::Instrument as _;

use crate::metrics;
use crate::models::Served;
use crate::pipeline::{self, NodeError, StateWritten, TaskJob, checkpoint};
use crate::retry::{Stopped, until_stopped};
use crate::worker::Worker;
use lifecycle::chain;

pub(crate) use elsewhere::Elsewhere;
use elsewhere::{LEFT_AGAIN, is_anothers};
use finish::finish;
use history::Over;
use late::expire;
pub(crate) use late::{Untold, hear_time};
use letters::{bury, unreadable};
pub(crate) use missing::Missing;
use reading::{TIME_GOOD_FOR, is_exhausted, look, read_at_leader};
pub(crate) use running::Running;

/// Between two looks for a task that is not in the log, or not as it was told to be.
const LOOK_AGAIN: Duration = Duration::from_secs(1);
/// A task that is carried out for longer is listened for, so that one that was cancelled is not drawn to its end. To subscribe for each short one
/// would cost the broker more than what is drawn in vain.
const LISTEN_AFTER: Duration = Duration::from_millis(200);

/// Carries out one delivery, with heartbeats, and settles it.
pub(crate) async fn deliver(worker: Arc<Worker>, served: Arc<Served>, delivery: Delivery) {
    let span = tracing::info_span!("task", otel.kind = "consumer", task = tracing::field::Empty);
    delivery.continue_trace(&span);
    let work = async {
        // A worker that stops hands back at once: another has room.
        let settlement = dispatched(&worker, &served, &delivery).await;
        let settlement = settlement.unwrap_or(Settlement::GiveBack(Duration::ZERO));
        let settlement = unless_lapsed(settlement, delivery.has_lapsed());
        let settled = match settlement {
            Settlement::Ack => delivery.ack().await,
            Settlement::GiveBack(delay) => delivery.give_back(delay).await,
            Settlement::Leave => Ok(()),
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
    // In a box, as what carries a task out is below: it is large, and would be copied whole at each turn on its way to where it runs.
    delivery.heartbeat(Box::pin(work)).instrument(span).await;
}

/// What the broker is told by a worker that may not have been heard from for an ack wait, such as one that was stopped: to give back what
/// another has by now would hand it to a third. Where nobody has it, it comes again after the ack wait. That a task has ended is true all the same.
fn unless_lapsed(settlement: Settlement, lapsed: bool) -> Settlement {
    match settlement {
        Settlement::GiveBack(_) if lapsed => {
            tracing::info!("not given back: another worker may have it by now");
            Settlement::Leave
        }
        settlement => settlement,
    }
}

/// Reads a dispatch and its task, and does what is decided.
async fn dispatched(
    worker: &Arc<Worker>,
    served: &Arc<Served>,
    delivery: &Delivery,
) -> Result<Settlement, Stopped> {
    let dispatch = match Dispatch::decode(delivery.payload().clone()) {
        Ok(dispatch) => dispatch,
        Err(error) => return unreadable(worker, delivery, &error.to_string()).await,
    };
    let task = match TaskRef::parse(&dispatch.tenant, &dispatch.lane, &dispatch.task_id) {
        Ok(task) => task,
        Err(error) => return unreadable(worker, delivery, &chain(&error)).await,
    };
    tracing::Span::current().record("task", tracing::field::display(task.task));
    let record = match look(worker, delivery, &dispatch, &task).await? {
        Ok(record) => record,
        Err(error) => {
            let reason = format!("the task's events cannot be read: {}", chain(&error));
            let code = ErrorCode::Internal;
            return give_up(worker, delivery, &task, code, reason, 0, None).await;
        }
    };
    // Until what is decided is done.
    let place = worker.running.enter(task.task);
    let known = record.as_ref().map(Known::from);
    let decision = decide(known, place.is_none(), worker.max_attempts);
    let weight = dispatch.weight;
    decided(worker, served, delivery, task, weight, record, decision).await
}

/// Does what is decided of a task.
async fn decided(
    worker: &Arc<Worker>,
    served: &Arc<Served>,
    delivery: &Delivery,
    task: TaskRef,
    weight: u32,
    record: Option<Record>,
    decision: Decision,
) -> Result<Settlement, Stopped> {
    match (decision, record) {
        (Decision::Run { .. }, Some(_)) if is_anothers(worker, served, &task).await => {
            tracing::info!("it failed here: left to another worker");
            Ok(Settlement::GiveBack(LEFT_AGAIN))
        }
        (Decision::Run { attempt }, Some(record)) => {
            let _alone = match alone::room(worker, &task, &record, attempt).await? {
                Ok(alone) => alone,
                Err(settlement) => return Ok(settlement),
            };
            let run = run(worker, served, delivery, task, weight, record, attempt);
            Box::pin(run).await
        }
        // A replica that lags told so.
        (Decision::Exhausted { .. }, Some(_)) if !is_exhausted(worker, &task).await? => {
            Ok(Settlement::GiveBack(LOOK_AGAIN))
        }
        (Decision::Exhausted { attempts }, Some(record)) => {
            exhausted(worker, delivery, &task, &record, attempts).await
        }
        (Decision::AlreadyHere, _) => {
            tracing::info!("delivered again while it runs here");
            Ok(Settlement::GiveBack(worker.ack_wait))
        }
        (Decision::Ended, record) => {
            forget_checkpoint(worker, record.as_ref()).await;
            Ok(Settlement::Ack)
        }
        // The stream's leader was asked; it may be one in whose place the others have just put another.
        // Deliveries say nothing of that: a task that rested often has had many, and was there each time.
        (Decision::Bury, _) if !worker.missing.is_given_up(task.task, Instant::now()) => {
            Ok(Settlement::GiveBack(LOOK_AGAIN))
        }
        (Decision::Bury | Decision::Run { .. } | Decision::Exhausted { .. }, _) => {
            let reason = "a dispatch of a task that is not in the log".to_owned();
            bury(worker, delivery, &task, ErrorCode::TaskNotFound, reason).await?;
            Ok(Settlement::Ack)
        }
    }
}

/// What becomes of the dispatch of a task that was not taken up, as it is now; an end leaves nothing to go on from.
async fn refused(worker: &Worker, now: Option<&Record>) -> Settlement {
    if now.is_some_and(|now| now.done.is_some()) {
        forget_checkpoint(worker, now).await;
    }
    after_refusal(now.map(Known::from))
}

/// Gives up a task that was taken up as often as it may be.
async fn exhausted(
    worker: &Worker,
    delivery: &Delivery,
    task: &TaskRef,
    record: &Record,
    attempts: u32,
) -> Result<Settlement, Stopped> {
    let reason =
        format!("taken up {attempts} times; each time the worker ended before the task did");
    let (code, state) = (ErrorCode::AttemptsExhausted, record.state.as_ref());
    forget_checkpoint(worker, Some(record)).await;
    give_up(worker, delivery, task, code, reason, attempts, state).await
}

/// Removes what a task that is over would have gone on from; best effort, for nobody reads it again.
async fn forget_checkpoint(worker: &Worker, record: Option<&Record>) {
    let state = record.and_then(|record| record.state.as_ref());
    let checkpoint = state.and_then(|state| state.checkpoint.as_ref());
    if let Some(key) = checkpoint.and_then(|checkpoint| Key::stored(&checkpoint.key)) {
        worker.forget(&[key]).await;
    }
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
    let began = |state: &State| state.started_at.is_some();
    if !record.state.as_ref().is_some_and(began)
        && let Some(settlement) = expire(worker, &task, &record.submitted).await?
    {
        return Ok(settlement);
    }
    // By the broker's clock, so that another worker can tell for how long the task was tried. Where that is not told, it is reckoned from what was
    // told last, and is not before the dispatch was queued, by that clock.
    let now = late::time_soon(worker, TIME_GOOD_FOR).await;
    let now = now.unwrap_or_else(|| worker.log.now().max(delivery.published()));
    let behind = record.behind();
    let before = record.state.unwrap_or_default();
    let state = taken_up(worker, served, before, attempt, now);
    let written = until_stopped(&worker.stop, "writing the task's state", || {
        worker.log.take_up(&task, &state, behind)
    });
    let Some(sequence) = written.await? else {
        tracing::info!(attempt, "not taken up: it has changed meanwhile");
        // Read or told of: whoever has taken it up keeps it, and where nobody has it, the next delivery is decided by what the log holds. The leader says
        // whether it has ended, for it has refused the state: for a replica that lags, an end would not be there yet.
        let now = read_at_leader(worker, &task).await?.ok().flatten();
        return Ok(refused(worker, now.as_ref()).await);
    };
    if attempt == 1 {
        metrics::queue_wait(&served.name, &record.submitted, now);
    }
    tracing::info!(attempt, model = %served.name, version = %served.version, "taken up");
    let without_listeners = !has_listeners(&record.submitted);
    let request = record.submitted.request.unwrap_or_default();
    let pictures = request.images;
    let started = Instant::now();
    let mut job = TaskJob::new(worker, served, task, request, weight, state);
    job.state_sequence = sequence;
    job.without_listeners = without_listeners;
    let ended = end_elsewhere(worker, job.task.clone());
    let result = tokio::select! {
        biased;
        done = ended => Err(done),
        result = pipeline::run(&mut job) => Ok(result),
    };
    let (outcome, settlement) = match result {
        // The attempt did not come out, so nothing follows from how. Dropping the pipeline has already told the engine to forget the pictures.
        Err(done) => ("ended_elsewhere", ended_elsewhere(&mut job, &done).await),
        // Nor here. Its successor has a later delivery, and goes on from what the log names.
        Ok(Err(NodeError::TakenOver)) => ("taken_over", Settlement::Leave),
        Ok(result) => finish(&mut job, delivery, result).await,
    };
    metrics::task(&served.name, outcome, pictures, started.elapsed());
    if outcome == "succeeded" {
        let learned = &worker.learned;
        learned.task_took(&served.key(), started.elapsed());
    }
    tracing::info!(outcome, took = ?started.elapsed(), "left");
    Ok(settlement)
}

/// The state of a task that this worker takes up, in place of the one before.
fn taken_up(
    worker: &Worker,
    served: &Served,
    before: State,
    attempt: u32,
    now: SystemTime,
) -> State {
    let mut state = State {
        phase: Phase::Running.into(),
        attempt,
        worker: worker.name.clone(),
        incarnation: worker.incarnation.clone(),
        scheduled_at: before.scheduled_at,
        started_at: before.started_at.or(Some(now.into())),
        checkpoint: before.checkpoint,
        at: Some(now.into()),
        runs: before.runs,
    };
    let version = served.version.as_str();
    history::begin(&mut state, &worker.name, &worker.device, version);
    state
}

/// Resolves when somebody else has ended the task; never if the worker stops before it could listen.
async fn end_elsewhere(worker: &Worker, task: TaskRef) -> Done {
    tokio::time::sleep(LISTEN_AFTER).await;
    let listening = until_stopped(&worker.stop, "listening for the end", || {
        worker.log.ends(&task)
    });
    match listening.await {
        Ok(mut ends) => ends.wait().await,
        Err(Stopped) => std::future::pending().await,
    }
}

/// Stores the end, for as long as it takes.
async fn end(job: &TaskJob, outcome: done::Outcome) -> Result<Ended, Stopped> {
    let done = Done {
        without_listeners: job.without_listeners,
        ..ending(&job.worker, outcome, job.state.attempt, Some(&job.state))
    };
    until_stopped(&job.worker.stop, "writing the task's end", || {
        job.worker.log.end(&job.task, &done)
    })
    .await
}

fn ending(worker: &Worker, outcome: done::Outcome, attempt: u32, state: Option<&State>) -> Done {
    Done {
        at: Some(worker.log.now().into()),
        outcome: Some(outcome),
        worker: worker.name.clone(),
        incarnation: worker.incarnation.clone(),
        attempt,
        started_at: state.and_then(|state| state.started_at),
        ..Done::default()
    }
}

/// Someone else ended the task, such as its owner by cancelling it. What it left behind goes.
async fn ended_elsewhere(job: &mut TaskJob, done: &Done) -> Settlement {
    match done.worker.as_str() {
        // As its owner wished, mostly: no news to whoever runs the worker.
        "" => tracing::debug!("ended by the orchestrator"),
        by => tracing::info!(by, "ended elsewhere"),
    }
    checkpoint::remove(job).await;
    let unwanted = unnamed(&job.images, done);
    job.worker.forget(&unwanted).await;
    Settlement::Ack
}

/// The keys of those pictures that a task's end does not name. Of one that succeeded elsewhere with the same bytes it names all.
fn unnamed(images: &[StoredImage], done: &Done) -> Vec<Key> {
    let named: &[StoredImage] = match &done.outcome {
        Some(done::Outcome::Succeeded(succeeded)) => &succeeded.images,
        Some(done::Outcome::Failed(_) | done::Outcome::Cancelled(_)) => &[],
        // A later version wrote it: who knows what it names.
        None => images,
    };
    let keys = images.iter().map(|image| &image.key);
    let unnamed = keys.filter(|key| named.iter().all(|image| image.key != **key));
    unnamed.filter_map(|key| Key::stored(key)).collect()
}

/// Another worker takes it up next, if there is one.
fn leave(job: &TaskJob, rest: Duration) {
    let elsewhere = &job.worker.elsewhere;
    elsewhere.leave(job.task.task, Instant::now(), rest);
}

/// The worker stops: the attempt was nobody's fault and does not count.
async fn hand_back(job: &TaskJob) -> Settlement {
    let attempt = job.state.attempt;
    match after_attempt(attempt, CameOut::Stopped, job.worker.max_attempts) {
        Next::Rest { attempts, pause } => rest(job, attempts, pause, Over::HandedBack, "").await,
        Next::End(_) => Settlement::GiveBack(Duration::ZERO),
    }
}

/// Writes that the task waits for a worker again, unless another has it by now.
async fn rest(
    job: &TaskJob,
    attempt: u32,
    pause: Duration,
    over: Over,
    reason: &str,
) -> Settlement {
    let mut state = State {
        phase: Phase::Scheduled.into(),
        attempt,
        worker: String::new(),
        incarnation: String::new(),
        at: Some(job.worker.log.now().into()),
        ..job.state.clone()
    };
    history::end(&mut state, over, reason);
    let written = match job.write_state(&state).await {
        Ok(StateWritten::Stored(_)) => {
            checkpoint::forget_unnamed(job, &state).await;
            Written::Stored
        }
        Ok(StateWritten::TakenOver(_)) => {
            tracing::info!("another worker has it by now");
            Written::Refused
        }
        Err(error) => {
            tracing::warn!(error = chain(&error), "the task's state was not written");
            Written::Unknown
        }
    };
    after_rest(pause, written)
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

#[cfg(test)]
mod tests {
    use contract::task::{Cancelled, Succeeded};

    use super::*;

    #[test]
    fn who_was_not_heard_from_for_an_ack_wait_gives_nothing_back_and_acknowledges_ends() {
        let back = Settlement::GiveBack(Duration::from_secs(1));
        assert_eq!(unless_lapsed(back, true), Settlement::Leave);
        assert_eq!(unless_lapsed(back, false), back);
        assert_eq!(unless_lapsed(Settlement::Ack, true), Settlement::Ack);
    }

    #[test]
    fn of_what_was_drawn_twice_the_pictures_stay_that_the_end_names() {
        let image = |key: &str| StoredImage {
            key: key.to_owned(),
            ..StoredImage::default()
        };
        let end = |outcome| Done {
            outcome,
            ..Done::default()
        };
        let ours = [image("images/00/t-0.aa.png"), image("images/00/t-1.bb.png")];
        let theirs = vec![image("images/00/t-0.aa.png"), image("images/00/t-1.cc.png")];
        let succeeded = Succeeded {
            images: theirs,
            ..Succeeded::default()
        };
        let gone = |outcome| {
            let keys = unnamed(&ours, &end(outcome));
            keys.iter().map(Key::to_string).collect::<Vec<_>>()
        };
        let all = ours.each_ref().map(|image| image.key.clone());
        let other = gone(Some(done::Outcome::Succeeded(succeeded)));
        assert_eq!(other, all[1..]);
        let cancelled = gone(Some(done::Outcome::Cancelled(Cancelled::default())));
        assert_eq!(cancelled, all);
        assert_eq!(gone(None), [""; 0], "who knows what it names");
    }
}
