//! Every task ends before the log lets go of it (`streams.task_retention`): a submission that vanished without an end would be a task that was
//! accepted and that nobody knows any more. So what is here ends what is old, and then [lets go](task_log::Retention) of what has ended;
//! while no orchestrator is there, nothing goes.
//!
//! A task that waits in its queue has a [longest wait](task_log::deadline::Kept), nine tenths of that time. The oldest of a queue are its heads, so whoever
//! owns the queue ends them as it ends those whose own deadline has passed ([`dispatch`](crate::dispatch)), some at a time, and nothing is noted of a
//! submission. What was handed over has left its queue, and its dispatch is in WORK until it has ended: that is looked through here,
//! which costs a read for each, and those are as many as the windows let through. One that has begun may end by itself meanwhile: it
//! ends here half a tenth later, and a worker that still draws it hears of that.
//!
//! What has ended only now is not let go of at once, nor what lies behind it: whoever is to hear of it, a webhook or a producer, is told from what
//! was submitted. Of what is still in WORK that holds whoever ended it.
//!
//! An end is one more event in the log, and a log that is full takes none. So what could not be ended keeps nothing that lies before it: that goes,
//! and makes room for the ends that are tried at the next look. Where nothing lies before it, some that ended long ago go from behind it.
//!
//! A task that [cannot be read](crate::unreadable) ends by its age, too: in WORK, or where it is what keeps the log from letting go.
//!
//! What the audit chain has not recorded stays, too, [for a time](crate::audit::Hold).
//!
//! Every orchestrator does so by itself. Ending what another has ended is no error. What time it is says the broker.

mod swept;

use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use contract::task::Done;
use contract::{TaskId, TenantId};
use futures::StreamExt as _;
use lifecycle::Service;
use task_log::deadline::Kept;
use task_log::{Ended, Held, LetGo, Out, Retention, StreamSettings, TaskLog, TaskLogError};

use crate::audit::{Hold, Leave};
use crate::sweeps::{self, Turn};
use crate::unreadable;
use swept::{Looked, Swept};

/// Looks within the time for which a task is kept, so that one comes well before each limit is over ...
const LOOKS: u32 = 200;
/// ... but not more often, ...
const SHORTEST: Duration = Duration::from_millis(250);
/// ... and not less often than this.
const LONGEST: Duration = Duration::from_secs(60);
/// So many looks long nothing is let go of after a start, nor what had to be ended: then that was told.
const TOLD_WITHIN: u32 = 5;
/// Tasks that are looked at together.
const AT_ONCE: usize = 8;
/// After so many tasks that could not be ended a look ends no more, and after so many that could not be read it reads no more: each may have been
/// waited for.
const MAX_FAILED: usize = 64;
/// Tasks that keep the log from letting go and are given up in one look. Each is looked for in all queues.
const MAX_GIVEN_UP: usize = 8;
/// Between two times that the log tells of tasks that cannot be read.
const SAY_EVERY: Duration = Duration::from_secs(600);

/// Looks at what workers have been handed, and at what the log has kept, for as long as the service runs.
///
/// # Errors
/// When the broker refuses.
pub(crate) async fn start(
    service: &Service,
    log: &TaskLog,
    streams: &StreamSettings,
    hold: Option<Arc<Hold>>,
) -> Result<(), TaskLogError> {
    let kept = streams.kept();
    let Some(retention) = kept.retention() else {
        return Ok(());
    };
    let every = (retention / LOOKS).clamp(SHORTEST, LONGEST);
    let told_within = every * TOLD_WITHIN;
    let aged = Arc::new(Aged {
        log: log.clone(),
        keeper: log.retention().await?,
        hold,
        kept,
        retention,
        full_at: streams.task_max_size.bytes(),
        every,
        told_within,
        told: Mutex::new(Told {
            all_from: Instant::now() + told_within,
            ended: VecDeque::new(),
            said: None,
        }),
        under_way: Mutex::new(None),
    });
    sweeps::start_in_turns(service, "aged", every, move || {
        let aged = aged.clone();
        async move { aged.turn().await }
    });
    Ok(())
}

struct Aged {
    log: TaskLog,
    keeper: Retention,
    /// What must stay until it is recorded; `None` where nothing is recorded.
    hold: Option<Arc<Hold>>,
    kept: Kept,
    retention: Duration,
    /// At how many bytes nothing new is accepted.
    full_at: u64,
    /// From one look to the next.
    every: Duration,
    /// How long what has ended here stays.
    told_within: Duration,
    told: Mutex<Told>,
    /// The look that has not let go of all that it may.
    under_way: Mutex<Option<Look>>,
}

/// What a look has found in WORK: what may go, in as many turns as that takes.
#[derive(Debug, Clone, Copy)]
struct Look {
    /// When all of WORK was looked through.
    at: Instant,
    /// Where what may go lies before.
    bound: u64,
}

/// What others are told, and when.
struct Told {
    /// From then on what ended before this began was told.
    all_from: Instant,
    /// What was seen to have ended lately: when, and where the first of them lies.
    ended: VecDeque<(Instant, u64)>,
    /// When tasks that cannot be read were last told of.
    said: Option<Instant>,
}

impl Told {
    fn note(&mut self, place: u64, now: Instant) {
        self.ended.push_back((now, place));
    }

    /// Where what is told lies before; `None` when that is not known.
    fn before(&mut self, now: Instant, within: Duration) -> Option<u64> {
        let is_told = |at: Instant| now.saturating_duration_since(at) >= within;
        while self.ended.front().is_some_and(|(at, _)| is_told(*at)) {
            self.ended.pop_front();
        }
        let first = self.ended.iter().map(|(_, place)| *place).min();
        (now >= self.all_from).then(|| first.unwrap_or(u64::MAX))
    }
}

/// Whether an end may not have been told so far. It is dated by the broker's clock, as `now` is, and perhaps a little later, if it came in between.
fn is_recent(done: &Done, now: SystemTime, within: Duration) -> bool {
    let at = done.at.and_then(|at| SystemTime::try_from(at).ok());
    at.is_some_and(|at| match now.duration_since(at) {
        Ok(age) => age < within,
        Err(ahead) => ahead.duration() < within,
    })
}

/// What failed in one look.
#[derive(Default)]
struct Failed {
    ends: AtomicUsize,
    reads: AtomicUsize,
}

impl Aged {
    /// A turn: ends what must end, unless a look goes on that did, and lets go of what may go; whether there is more of that.
    async fn turn(&self) -> Turn {
        let mut look = self.goes_on(Instant::now());
        if look.is_none() {
            look = self.look().await;
        }
        let Some(look) = look else {
            return Turn::Over;
        };
        let turn = self.let_go(look.bound).await.unwrap_or_else(|error| {
            let error = lifecycle::chain(&error);
            tracing::warn!(error, "what is kept no longer stays for now");
            Turn::Over
        });
        *self.under_way() = (turn == Turn::GoesOn).then_some(look);
        turn
    }

    /// The look that goes on. Not when it is time for the next: what is in WORK grows older meanwhile, and is to end before the log lets go of it.
    fn goes_on(&self, now: Instant) -> Option<Look> {
        let look = self.under_way().take()?;
        (now.saturating_duration_since(look.at) < self.every).then_some(look)
    }

    fn under_way(&self) -> MutexGuard<'_, Option<Look>> {
        // Every change leaves it whole.
        self.under_way.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// Ends what must end; `None` where nothing may go then.
    async fn look(&self) -> Option<Look> {
        let swept = match self.sweep().await {
            Ok(swept) => swept,
            Err(error) => {
                let error = lifecycle::chain(&error);
                tracing::warn!(error, "tasks that are kept no longer are looked at again");
                return None;
            }
        };
        swept.tell_failures();
        self.tell_unreadable(&swept);
        let (mut told, at) = (self.told(), Instant::now());
        if let Some(place) = swept.ended {
            told.note(place, at);
        }
        let bound = swept.bound(told.before(at, self.told_within)?)?;
        Some(Look { at, bound })
    }

    fn told(&self) -> MutexGuard<'_, Told> {
        // Every change leaves it whole.
        self.told.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// Ends what must end of what is in WORK.
    async fn sweep(&self) -> Result<Swept, TaskLogError> {
        let out = self.log.out().await?;
        if out.is_empty() {
            return Ok(Swept::default());
        }
        let now = self.log.time().await?;
        let failed = Failed::default();
        let looks = futures::stream::iter(out).map(|one| self.look_at(one, now, &failed));
        let looks = looks.buffer_unordered(AT_ONCE);
        let all = looks.fold(Swept::default(), async |all: Swept, one| all.note(one));
        Ok(all.await)
    }

    async fn look_at(&self, out: Out, now: SystemTime, failed: &Failed) -> Looked {
        let (Some(tenant), Some(id)) = (out.tenant, out.task) else {
            return Looked::Stays;
        };
        if failed.reads.load(Ordering::Relaxed) >= MAX_FAILED {
            return Looked::NotRead(None);
        }
        let looked = match self.look_at_readable(&tenant, id, now, failed).await {
            Err(error) if error.is_unreadable() => {
                self.look_at_unreadable(&tenant, id, now, failed).await
            }
            looked => looked,
        };
        looked.unwrap_or_else(|error| {
            failed.reads.fetch_add(1, Ordering::Relaxed);
            Looked::NotRead(Some(error))
        })
    }

    /// Ends a task that can be read, if it must.
    async fn look_at_readable(
        &self,
        tenant: &TenantId,
        id: TaskId,
        now: SystemTime,
        failed: &Failed,
    ) -> Result<Looked, TaskLogError> {
        let Some(record) = self.log.read(tenant, id).await? else {
            return Ok(Looked::Stays);
        };
        let task = record.task_ref()?;
        let place = record.sequence;
        let since = now.duration_since(UNIX_EPOCH).unwrap_or_default();
        if self.kept.overdue(&record, since).is_none() {
            return Ok(self.not_ended_here(place, record.done.as_ref(), now));
        }
        // A replica that lags may not have heard that it has begun, or ended.
        let Some(record) = self.log.read_at_leader(tenant, id).await? else {
            return Ok(Looked::Stays);
        };
        let Some(end) = self.kept.overdue(&record, since) else {
            return Ok(self.not_ended_here(place, record.done.as_ref(), now));
        };
        if failed.ends.load(Ordering::Relaxed) >= MAX_FAILED {
            return Ok(Looked::NotEnded(place, None));
        }
        Ok(match self.log.end(&task, &end).await {
            Ok(Ended::First) => {
                tracing::warn!(task = %task.task, "ended, for the log is about to let go of it");
                Looked::Ended(place)
            }
            Ok(Ended::Already(done)) => self.not_ended_here(place, Some(&done), now),
            Err(error) => {
                failed.ends.fetch_add(1, Ordering::Relaxed);
                Looked::NotEnded(place, Some(error))
            }
        })
    }

    /// What a task is that nobody ended here: if another did just now, its end is to be told as one from here is.
    fn not_ended_here(&self, place: u64, done: Option<&Done>, now: SystemTime) -> Looked {
        match done.is_some_and(|done| is_recent(done, now, self.told_within)) {
            true => Looked::Ended(place),
            false => Looked::Stays,
        }
    }

    /// Ends a task that cannot be read, if it must: a worker that takes it up would do so before, but there may be none. By when the broker stored
    /// it, for what it says itself nobody knows.
    async fn look_at_unreadable(
        &self,
        tenant: &TenantId,
        id: TaskId,
        now: SystemTime,
        failed: &Failed,
    ) -> Result<Looked, TaskLogError> {
        let Some(found) = self.log.unreadable(tenant, id).await? else {
            return Ok(Looked::Stays);
        };
        let age = found.stored_at.and_then(|at| now.duration_since(at).ok());
        if age.is_none_or(|age| age < self.retention) {
            return Ok(Looked::Unreadable(Box::new(found)));
        }
        let place = found.sequence;
        if failed.ends.load(Ordering::Relaxed) >= MAX_FAILED {
            return Ok(Looked::NotEnded(place, None));
        }
        Ok(match unreadable::end(&self.log, &found, now).await {
            Ok(()) => Looked::Ended(place),
            Err(error) => {
                failed.ends.fetch_add(1, Ordering::Relaxed);
                Looked::NotEnded(place, Some(error))
            }
        })
    }

    /// Says that tasks in WORK cannot be read, now and then.
    fn tell_unreadable(&self, swept: &Swept) {
        metrics::gauge!(unreadable::METRIC, "place" => "work").set(swept.unreadable as f64);
        let Some(first) = &swept.first_unreadable else {
            return;
        };
        let (mut told, now) = (self.told(), Instant::now());
        let said = told.said;
        if said.is_some_and(|at| now.saturating_duration_since(at) < SAY_EVERY) {
            return;
        }
        told.said = Some(now);
        drop(told);
        tracing::warn!(
            task = %first.task.task,
            tenant = %first.task.tenant,
            sequence = first.sequence,
            subject = first.subject,
            error = lifecycle::chain(&first.error),
            number = swept.unreadable,
            "tasks in WORK cannot be read, of which this is the oldest: {}",
            unreadable::WHAT_TO_DO
        );
    }

    /// Lets go of what is old and lies before `bound`, of so much at a time.
    async fn let_go(&self, bound: u64) -> Result<Turn, TaskLogError> {
        let now = self.log.time().await?;
        let Some(before) = now.checked_sub(self.retention) else {
            return Ok(Turn::Over);
        };
        let (leave, went) = self.leave(before, bound).await?;
        if went == Turn::GoesOn {
            return Ok(went);
        }
        let bound = bound.min(leave.before);
        let place = match self.keeper.let_go(before, bound).await? {
            LetGo::All => return Ok(Turn::Over),
            // What keeps the log from letting go lies behind that, and what went has made room.
            LetGo::More(place) => {
                tracing::debug!(place, "the log lets go of more in another turn");
                return Ok(Turn::GoesOn);
            }
            LetGo::UpTo(place) => place,
        };
        // What was recorded last stays, and keeps nothing else.
        if place != leave.before || leave.is_held {
            self.keeps(before, place, leave.before).await?;
        }
        self.give_up_held(before, now).await?;
        Ok(Turn::Over)
    }

    /// Says that what was stored before `time` stays from `place` on, and makes room behind that where the log is full, nothing at `bound` or behind
    /// it.
    async fn keeps(&self, time: SystemTime, place: u64, bound: u64) -> Result<(), TaskLogError> {
        tracing::info!(
            place,
            "the log keeps more than streams.task_retention: a task from then has not ended, did so just now, or is not in the audit chain"
        );
        if self.log.size().await? >= self.full_at {
            let number = self.keeper.make_room(time, place, bound).await?;
            if number > 0 {
                tracing::warn!(
                    place,
                    number,
                    "the log is full: tasks that ended long ago were removed behind one that has not"
                );
            }
        }
        Ok(())
    }

    /// What may go of what was stored before `time`, by what is recorded. What was not, and was kept for too long, and lies before `bound`, goes here;
    /// beside it whether there is more of that.
    async fn leave(&self, time: SystemTime, bound: u64) -> Result<(Leave, Turn), TaskLogError> {
        let Some(hold) = &self.hold else {
            return Ok((Leave::ALL, Turn::Over));
        };
        let leave = hold.leave(time).await;
        let Some(time) = leave.regardless_of else {
            return Ok((leave, Turn::Over));
        };
        // Not noted it goes all the same: there may be no room to note it in.
        if let Err(error) = hold.note_release().await {
            let error = lifecycle::chain(&error);
            tracing::warn!(error, "the audit chain may not say why it has a gap");
        }
        let turn = match self.keeper.let_go(time, bound).await? {
            LetGo::More(_) => Turn::GoesOn,
            LetGo::All | LetGo::UpTo(_) => Turn::Over,
        };
        Ok((leave, turn))
    }

    /// Gives up what keeps the log from letting go and cannot be read: where its dispatch is lost, nobody else comes to it.
    async fn give_up_held(&self, before: SystemTime, now: SystemTime) -> Result<(), TaskLogError> {
        let mut last = 0;
        for _ in 0..MAX_GIVEN_UP {
            let Some(Held {
                place,
                task: Some(task),
            }) = self.keeper.held(before).await?
            else {
                break;
            };
            // Where a replica has not heard of its end so far.
            if place <= last {
                break;
            }
            last = place;
            let found = self.log.unreadable(&task.tenant, task.task).await?;
            let Some(found) = found else {
                break;
            };
            unreadable::end(&self.log, &found, now).await?;
            self.told().note(place, Instant::now());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
