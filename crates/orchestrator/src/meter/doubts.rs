//! Charges of which it is not known whether their task was stored: an answer was lost, or its caller has gone. They count, or whoever makes
//! answers get lost would get pictures for nothing. But whoever repeats a submission under its idempotency key is charged again, and if the
//! first was not stored, that is once too often.
//!
//! So the day's record names what is in doubt: by the task's id, which is the same each time, and by when each attempt was submitted. What was stored
//! says when it was, and while it is in the log nothing else can be stored under that id. So where another attempt is found in the log, what is in doubt
//! was not stored and cannot be any more: one write of the day's record gives it back and drops its name. Where the attempt itself is found, the name goes
//! and the charge stays; where none is, both stay until the day is over.
//!
//! The log is looked at where a charge would be refused, for only there it matters; so nothing is asked while a day has room. Where that settled nothing,
//! it is not looked at again for a moment: whoever is refused may ask again and again.

use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use contract::task::Submitted;
use contract::{Failure, TaskId, TenantId};
use futures::{StreamExt as _, TryStreamExt as _};
use messaging::{BrokerError, Entry};
use task_log::TaskLogError;
use tokio::sync::Notify;

use super::{Account, CONCURRENCY, Charge, DAY, Held, MAX_TRIES, Meter, name, unavailable};
use crate::usage::{Day, Doubt, Use};

/// Doubts that a day's record names, and that wait here to be named. What is more counts as used.
const MAX_NAMED: usize = 64;
/// Attempts that may go by one charge.
const MAX_ATTEMPTS: usize = 16;
/// After a look that settled nothing there is none for so long, unless the day's record was written since.
const LOOK_AFTER: Duration = Duration::from_secs(2);

/// An attempt to make a task whose id would come again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Attempt {
    task: String,
    at: u64,
}

impl Attempt {
    pub(crate) fn of(submitted: &Submitted) -> Self {
        Self {
            task: submitted.task_id.clone(),
            at: nanos(submitted),
        }
    }
}

/// When it was submitted, in nanoseconds since 1970. No two attempts at the same task have the same.
fn nanos(submitted: &Submitted) -> u64 {
    let at = submitted.at.unwrap_or_default();
    let part = |number: i64| u64::try_from(number).unwrap_or(0);
    let seconds = part(at.seconds).saturating_mul(1_000_000_000);
    seconds.saturating_add(part(at.nanos.into()))
}

/// What is in doubt of one account and that the day's record does not name so far.
pub(super) struct Doubts {
    pending: Mutex<Vec<Pending>>,
    /// The last look at the log that settled nothing: at which revision of the day's record, and when.
    in_vain: Mutex<Option<(u64, Instant)>>,
    /// Wakes whoever names them.
    wake: Arc<Notify>,
}

struct Pending {
    day: u64,
    attempt: Attempt,
    charged: Use,
    /// The revision in whose place it was written without an answer. When another stands there and does not name it, that may have named it and it was
    /// settled since.
    tried: Option<u64>,
}

/// The first of those that are pending, which go into one write.
struct Batch {
    all: usize,
    /// Those of them of which an earlier write may be on its way.
    tried: usize,
}

impl Doubts {
    pub(super) fn new(wake: Arc<Notify>) -> Self {
        Self {
            pending: Mutex::default(),
            in_vain: Mutex::default(),
            wake,
        }
    }

    /// Whether there are any.
    pub(super) fn any(&self) -> bool {
        !self.pending().is_empty()
    }

    fn pending(&self) -> MutexGuard<'_, Vec<Pending>> {
        // After a panic it still holds whole values.
        self.pending.lock().unwrap_or_else(|e| e.into_inner())
    }

    fn in_vain(&self) -> MutexGuard<'_, Option<(u64, Instant)>> {
        // It is only ever set.
        self.in_vain.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// A look for what is named at this revision settled nothing.
    fn note_in_vain(&self, revision: u64, now: Instant) {
        *self.in_vain() = Some((revision, now));
    }

    /// Whether one would settle nothing again, as far as anybody knows.
    fn is_in_vain(&self, revision: u64, now: Instant) -> bool {
        let last = *self.in_vain();
        last.is_some_and(|(seen, at)| {
            seen == revision && now.saturating_duration_since(at) < LOOK_AFTER
        })
    }

    fn add(&self, day: u64, attempt: Attempt, charged: Use) {
        let mut pending = self.pending();
        if pending.len() >= MAX_NAMED {
            tracing::debug!(task = attempt.task, "its charge stays, stored or not");
            return;
        }
        pending.push(Pending {
            day,
            attempt,
            charged,
            tried: None,
        });
        self.wake.notify_one();
    }

    /// Lets go of those of other days, of which nothing is given back.
    fn turn_to(&self, day: u64) {
        self.pending().retain(|one| one.day == day);
    }

    /// Adds to a day's record, which was read at `revision`, those for which it has room.
    fn name_in(&self, all: &mut Day, revision: u64) -> Batch {
        let mut pending = self.pending();
        pending.retain(|one| {
            let named = all.doubts.iter().any(|doubt| doubt.is_of(&one.attempt));
            // Rather charged once too often than given back twice.
            let lost = one.tried.is_some_and(|tried| tried < revision);
            !named && !lost
        });
        let room = MAX_NAMED.saturating_sub(all.doubts.len());
        let mut batch = Batch { all: 0, tried: 0 };
        for one in pending.iter_mut().take(room) {
            batch.all += 1;
            batch.tried += usize::from(one.tried.is_some());
            one.tried = one.tried.or(Some(revision));
            all.doubts.push(Doubt {
                task: one.attempt.task.clone(),
                charged: one.charged,
                at: vec![one.attempt.at],
            });
        }
        batch
    }

    /// The batch is in the record.
    fn named(&self, batch: &Batch) {
        self.pending().drain(..batch.all);
    }

    /// The batch is not. Those that were tried before stand first.
    fn refused(&self, batch: &Batch) {
        let mut pending = self.pending();
        for one in pending.iter_mut().take(batch.all).skip(batch.tried) {
            one.tried = None;
        }
    }
}

impl Doubt {
    fn is_of(&self, attempt: &Attempt) -> bool {
        self.task == attempt.task && self.at.contains(&attempt.at)
    }
}

impl Charge {
    /// It is not known whether what it was charged for is there.
    pub(crate) fn in_doubt(self, attempt: Attempt) {
        if self.charged != Use::default() {
            self.held.doubts.add(self.day, attempt, self.charged);
        }
        self.keep();
    }
}

impl Meter {
    /// Names in the day's record what is in doubt. For whoever has the account's turn. It may be given up at any time.
    pub(super) async fn name_doubts(
        &self,
        account: &Account,
        held: &Held,
    ) -> Result<(), BrokerError> {
        let day = (self.clock)() / DAY;
        let record = name(account, day);
        for _ in 0..MAX_TRIES {
            held.doubts.turn_to(day);
            if !held.doubts.any() {
                return Ok(());
            }
            let Some(Entry {
                value: mut all,
                revision,
            }) = self.bucket.get(&record).await?
            else {
                // A copy that lags: something was charged there.
                return Ok(());
            };
            let batch = held.doubts.name_in(&mut all, revision);
            if batch.all == 0 {
                return Ok(());
            }
            match self.replace(&record, &all, revision).await {
                Ok(()) => {
                    held.doubts.named(&batch);
                    return Ok(());
                }
                Err(BrokerError::Conflict { .. }) => held.doubts.refused(&batch),
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Gives back what was charged for attempts in whose place another was stored. True when the day may have more than it had as it was `read`, with so
    /// much used and at this revision: when something was given back, here or by another meanwhile. For whoever has the account's turn.
    pub(super) async fn settle(
        &self,
        account: &Account,
        held: &Held,
        day: u64,
        read: (Use, u64),
    ) -> Result<bool, Failure> {
        let named = self.name_doubts(account, held).await;
        named.map_err(unavailable)?;
        let record = name(account, day);
        let stored = self.bucket.get(&record).await.map_err(unavailable)?;
        let Some(Entry {
            value: mut all,
            revision,
        }) = stored
        else {
            return Ok(false);
        };
        let (used, seen) = read;
        if revision > seen && !all.used.holds(used) {
            return Ok(true);
        }
        if held.doubts.is_in_vain(revision, Instant::now()) {
            return Ok(false);
        }
        let (before, mut back) = (all.doubts.len(), Use::default());
        let doubts = std::mem::take(&mut all.doubts);
        let looks: Vec<_> = doubts
            .into_iter()
            .map(|doubt| self.look(&account.tenant, doubt))
            .collect();
        let mut looks = futures::stream::iter(looks).buffered(CONCURRENCY);
        while let Some((doubt, owed)) = looks.try_next().await.map_err(unavailable)? {
            match owed {
                Some(owed) => back = back.plus(owed),
                None => all.doubts.push(doubt),
            }
        }
        if all.doubts.len() == before {
            held.doubts.note_in_vain(revision, Instant::now());
            return Ok(false);
        }
        all.used = all.used.less(back);
        match self.bucket.update(&record, &all, revision).await {
            Ok(_) => Ok(back != Use::default()),
            Err(BrokerError::Conflict { .. }) => Ok(true),
            // Should it be written all the same, the next one does not find them named any more.
            Err(error) => Err(unavailable(error)),
        }
    }

    /// What is to be given back for a doubt; `None` while that is not known. A task that is not in the log may come yet.
    async fn look(
        &self,
        tenant: &TenantId,
        doubt: Doubt,
    ) -> Result<(Doubt, Option<Use>), BrokerError> {
        let Ok(task) = doubt.task.parse::<TaskId>() else {
            return Ok((doubt, None));
        };
        let record = match self.log.read(tenant, task).await {
            Ok(record) => record,
            Err(TaskLogError::Broker(error)) => return Err(error),
            Err(error) => {
                let error = lifecycle::chain(&error);
                tracing::debug!(task = doubt.task, error, "its charge stays in doubt");
                None
            }
        };
        let owed = record.map(|record| {
            let stored = nanos(&record.submitted);
            match doubt.at.contains(&stored) {
                true => Use::default(),
                false => doubt.charged,
            }
        });
        Ok((doubt, owed))
    }

    /// Lets an attempt go on under what an earlier one of the same task was charged today, of which it is not known whether it was stored: one of the two
    /// is, at most. False when nothing like that is named.
    ///
    /// # Errors
    /// When it is not known whether the day's record says so.
    pub(crate) async fn join(
        &self,
        account: &Account,
        ask: Use,
        attempt: &Attempt,
    ) -> Result<bool, Failure> {
        let held = self.account(account);
        let _turn = held.turn.lock().await;
        let named = self.name_doubts(account, &held).await;
        named.map_err(unavailable)?;
        let record = name(account, (self.clock)() / DAY);
        for _ in 0..MAX_TRIES {
            let stored = self.bucket.get(&record).await.map_err(unavailable)?;
            let Some(Entry {
                value: mut all,
                revision,
            }) = stored
            else {
                return Ok(false);
            };
            let fits = |doubt: &&mut Doubt| {
                let room = doubt.at.len() < MAX_ATTEMPTS;
                doubt.task == attempt.task && doubt.charged.holds(ask) && room
            };
            let Some(doubt) = all.doubts.iter_mut().find(fits) else {
                return Ok(false);
            };
            doubt.at.push(attempt.at);
            match self.bucket.update(&record, &all, revision).await {
                Ok(_) => return Ok(true),
                Err(BrokerError::Conflict { .. }) => {}
                Err(error) => return Err(unavailable(error)),
            }
        }
        Ok(false)
    }
}

#[cfg(test)]
#[path = "doubts_tests.rs"]
mod tests;
