//! Dispatches that were lost: somebody purged WORK, the broker lost its end with the power, or a worker took one off whose task goes on.
//!
//! What was handed over here and has not ended is in memory ([`unended`](super::unended)), and each look at WORK says what of it is there no
//! more. What was handed over before a queue was opened here is read from the log, in the background: its cursor tells from where.

use std::collections::HashSet;
use std::ops::Range;
use std::time::Instant;

use contract::TaskId;
use futures::FutureExt as _;
use task_log::{Missed, Queue, TaskLog, TaskLogError, TaskRef};

use super::unended::Missing;
use super::{Answer, Dispatcher, task_of};
use crate::unreadable;

/// Tasks of which it is asked at once whether they have ended.
const MAX_ASKED: usize = 64;
/// Submissions read in a row, one after another.
const READ: usize = 64;

/// A task whose dispatch was missed, and what came of asking.
pub(super) struct Asked {
    task: TaskRef,
    result: Result<Missed, TaskLogError>,
}

/// What was read of a queue's submissions that were handed over before.
pub(super) struct Reread {
    queue: Queue,
    range: Range<u64>,
    result: Result<Found, TaskLogError>,
}

/// Up to before `next`, these have no end.
struct Found {
    open: Vec<(u64, TaskId)>,
    next: u64,
}

impl Dispatcher {
    /// WORK held these at some time after `began`.
    pub(super) fn look_for_lost(&mut self, there: &HashSet<TaskId>, began: Instant) {
        let now = Instant::now();
        if !self.mandate.borrow().is_sure(now) {
            return;
        }
        let room = MAX_ASKED.saturating_sub(self.asked);
        for missing in self.unended.look(there, began, now, room) {
            self.ask(missing);
        }
        let number = self.unended.unreadable();
        metrics::gauge!(unreadable::METRIC, "place" => "lost").set(number as f64);
    }

    /// Asks for one, and hands it over again if it was lost.
    fn ask(&mut self, missing: Missing) {
        self.asked += 1;
        let Missing {
            task,
            though_running,
        } = missing;
        let weight = self.settings.lanes.get(&task.lane).copied().unwrap_or(1);
        let log = self.log.clone();
        let ask = async move {
            let result = log.hand_over_again(&task, weight, though_running).await;
            Answer::Asked(Box::new(Asked { task, result }))
        };
        self.answers.push(ask.boxed());
    }

    pub(super) fn asked(&mut self, Asked { task, result }: Asked) {
        self.asked -= 1;
        let now = Instant::now();
        match result {
            Ok(missed) => self.know(task.task, missed, now),
            Err(error) if error.is_unreadable() => self.cannot_be_read(&task, &error, now),
            Err(error) => {
                let (task, error) = (task.task, lifecycle::chain(&error));
                tracing::debug!(%task, error, "asking again whether it has ended");
                self.unended.asked(task, None, now);
            }
        }
        // After many ends that were not heard, or a purge, those that wait for an answer hold places.
        if self.mandate.borrow().is_sure(now)
            && let Some(missing) = self.unended.next(now)
        {
            self.ask(missing);
        }
    }

    /// What became of a task whose dispatch was missed.
    fn know(&mut self, task: TaskId, missed: Missed, now: Instant) {
        if missed == Missed::Dispatched {
            tracing::warn!(%task, "its dispatch was lost from WORK: it was handed over again");
            metrics::counter!("inkstone_orchestrator_dispatched_again_total").increment(1);
        }
        self.unended.asked(task, Some(missed), now);
        if missed == Missed::Over {
            // Its end was not heard: until now it kept its place.
            self.is_due |= self.out.remove(task, now);
        }
    }

    /// A task whose dispatch was lost and that nobody could carry out. It is told less and less often.
    fn cannot_be_read(&mut self, task: &TaskRef, error: &TaskLogError, now: Instant) {
        let Some((sequence, rest)) = self.unended.cannot_be_read(task.task, now) else {
            return;
        };
        let (task, tenant, error) = (task.task, &task.tenant, lifecycle::chain(error));
        tracing::warn!(
            %task,
            %tenant,
            sequence,
            error,
            again_in = ?rest,
            "its dispatch was lost from WORK, and it cannot be read: {}",
            unreadable::WHAT_TO_DO
        );
    }

    /// Reads on in what was handed over before its queue was opened here. One read at a time: nobody waits for this.
    pub(super) fn reread_on(&mut self) {
        if self.rereading {
            return;
        }
        let Some((queue, range)) = self.unended.unread() else {
            return;
        };
        self.rereading = true;
        let log = self.log.clone();
        let read = async move {
            let result = reread(&log, &queue, range.clone()).await;
            Answer::Reread(Box::new(Reread {
                queue,
                range,
                result,
            }))
        };
        self.answers.push(read.boxed());
    }

    pub(super) fn reread(&mut self, read: Reread) {
        self.rereading = false;
        let Reread {
            queue,
            range,
            result,
        } = read;
        match result {
            Ok(Found { open, next }) => {
                let now = Instant::now();
                if self.unended.read(&queue, range, next, open, now) {
                    // What has ended since is kept with the cursor.
                    self.saving.changed(&queue);
                }
                self.reread_on();
            }
            // With the next tick.
            Err(error) => {
                let error = lifecycle::chain(&error);
                tracing::debug!(error, %queue, "reading what was handed over before again");
            }
        }
    }
}

async fn reread(log: &TaskLog, queue: &Queue, range: Range<u64>) -> Result<Found, TaskLogError> {
    let (mut open, mut next) = (Vec::new(), range.start);
    for _ in 0..READ {
        let found = log.submission_between(queue, next, range.end).await?;
        let Some(event) = found else {
            next = range.end;
            break;
        };
        next = event.sequence + 1;
        // One without a task's id was buried.
        let Some(task) = task_of(&event.subject) else {
            continue;
        };
        let Queue { lane, tenant } = queue.clone();
        let done = log.done(&TaskRef { tenant, lane, task }).await?;
        if done.is_none() {
            open.push((event.sequence, task));
        }
    }
    Ok(Found { open, next })
}
