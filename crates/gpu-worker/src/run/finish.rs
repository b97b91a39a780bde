//! What becomes of a task that has come out of the pipeline: its end, or a rest.

use std::time::{Duration, SystemTime};

use contract::ErrorCode;
use contract::task::{Failed, State, Succeeded, done};
use messaging::Delivery;
use task_log::transition::{CameOut, Ending, Next, Settlement, after_attempt};
use task_log::{Ended, Writer};

use super::history::Over;
use super::{end, ended_elsewhere, give_up, hand_back, leave, rest};
use crate::metrics;
use crate::pipeline::{NodeError, TaskJob, Verdict, checkpoint};
use crate::retry::Stopped;
use lifecycle::chain;

/// How it went on from here.
type Left = Result<(metrics::Outcome, Settlement), Stopped>;

/// Why a task is not done, and the words for it.
struct Why {
    verdict: Verdict,
    text: String,
}

/// Does what follows from how the pipeline came out.
pub(super) async fn finish(
    job: &mut TaskJob,
    delivery: &Delivery,
    result: Result<(), NodeError>,
) -> (metrics::Outcome, Settlement) {
    let result = result.map_err(|error| Why {
        verdict: error.verdict(),
        text: chain(&error),
    });
    let came_out = match &result {
        Ok(()) => CameOut::Drawn,
        Err(why) => came_out(job, why),
    };
    let next = after_attempt(job.state.attempt, came_out, job.worker.max_attempts);
    let settled = match (next, result) {
        (Next::End(Ending::Succeeded), Ok(())) => succeed(job).await,
        (Next::End(Ending::GivenUp), Err(why)) => given_up(job, delivery, &why).await,
        (Next::End(_), Err(why)) => fail(job, why).await,
        (Next::Rest { attempts, pause }, Err(why)) => Ok(put_off(job, &why, attempts, pause).await),
        // Of what is drawn nothing follows but its end as succeeded.
        (Next::End(_) | Next::Rest { .. }, Ok(())) => Err(Stopped),
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

fn came_out(job: &TaskJob, why: &Why) -> CameOut {
    match why.verdict {
        Verdict::Fail(_) => CameOut::Impossible,
        Verdict::Retry => CameOut::Failed,
        Verdict::HandBack => CameOut::Stopped,
        Verdict::LeaveToAnother => {
            let at_most = job.worker.output.give_up_after.duration();
            CameOut::NotStored {
                tried_for: tried_for(&job.state, job.worker.log.now()),
                at_most: Some(at_most).filter(|most| !most.is_zero()),
            }
        }
    }
}

/// How long before `now` the task was first taken up, whoever did. Both are by the broker's clock: of two workers' one may be days ahead.
fn tried_for(state: &State, now: SystemTime) -> Duration {
    let first = state
        .started_at
        .and_then(|at| SystemTime::try_from(at).ok());
    let tried_for = first.and_then(|first| now.duration_since(first).ok());
    tried_for.unwrap_or_default()
}

/// All pictures are stored.
async fn succeed(job: &mut TaskJob) -> Left {
    let succeeded = Succeeded {
        images: std::mem::take(&mut job.images),
        engine_ms: job.engine_time.as_millis().try_into().unwrap_or(u64::MAX),
    };
    let ended = end(job, done::Outcome::Succeeded(succeeded.clone())).await?;
    let own = job.worker.as_writer(job.state.attempt);
    match ended {
        Ended::First => Ok(("succeeded", Settlement::Ack)),
        // An answer that was lost makes our own end look like another's.
        Ended::Already(done) if own.wrote(&Writer::from(&*done)) => {
            Ok(("succeeded", Settlement::Ack))
        }
        Ended::Already(done) => {
            job.images = succeeded.images;
            Ok(("ended_elsewhere", ended_elsewhere(job, &done).await))
        }
    }
}

/// The task cannot be carried out.
async fn fail(job: &TaskJob, why: Why) -> Left {
    let code = match why.verdict {
        Verdict::Fail(code) => code,
        Verdict::Retry | Verdict::HandBack | Verdict::LeaveToAnother => ErrorCode::Internal,
    };
    tracing::warn!(%code, error = why.text, "the task cannot be carried out");
    let failed = Failed {
        code: code.to_string(),
        message: why.text,
    };
    end(job, done::Outcome::Failed(failed)).await?;
    Ok(("failed", Settlement::Ack))
}

/// It was tried as often, or for as long, as it may be.
async fn given_up(job: &TaskJob, delivery: &Delivery, why: &Why) -> Left {
    let (attempt, text) = (job.state.attempt, &why.text);
    let reason = match why.verdict {
        Verdict::LeaveToAnother => {
            let limit = job.worker.output.give_up_after.duration();
            format!(
                "no worker has stored its pictures within {limit:?} of its beginning; the last time: {text}"
            )
        }
        _ => format!("taken up {attempt} times; the last time: {text}"),
    };
    let code = ErrorCode::AttemptsExhausted;
    let (worker, state) = (&job.worker, Some(&job.state));
    let given = give_up(worker, delivery, &job.task, code, reason, attempt, state);
    Ok(("failed", given.await?))
}

/// The task rests, until this worker or another takes it up again.
async fn put_off(
    job: &TaskJob,
    why: &Why,
    attempts: u32,
    pause: Duration,
) -> (metrics::Outcome, Settlement) {
    let (attempt, text) = (job.state.attempt, why.text.as_str());
    match why.verdict {
        Verdict::HandBack => {
            let rested = rest(job, attempts, pause, Over::HandedBack, "").await;
            ("handed_back", rested)
        }
        Verdict::LeaveToAnother => {
            tracing::warn!(attempt, ?pause, error = text, "left to another worker");
            leave(job, pause);
            let rested = rest(job, attempts, pause, Over::HandedBack, text).await;
            ("handed_back", rested)
        }
        Verdict::Retry | Verdict::Fail(_) => {
            tracing::warn!(attempt, ?pause, error = text, "the attempt failed");
            leave(job, pause);
            let rested = rest(job, attempts, pause, Over::Failed, text).await;
            ("retried", rested)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_task_is_tried_for_as_long_as_it_is_since_it_was_first_taken_up() {
        let first = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000);
        let state = State {
            started_at: Some(first.into()),
            ..State::default()
        };
        let while_later = Duration::from_secs(90);
        assert_eq!(tried_for(&state, first + while_later), while_later);
        // By a broker whose clock is behind, and of a task that nobody has begun.
        assert_eq!(tried_for(&state, first - while_later), Duration::ZERO);
        assert_eq!(tried_for(&State::default(), first), Duration::ZERO);
    }
}
