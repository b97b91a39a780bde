//! Gives back what tasks were charged for that are not drawn after all: each once, however often its end is seen, whoever sees it, and
//! wherever they are killed.
//!
//! One write of the day's record takes the charge back and names the refund. Then the bucket `REFUNDS` gets a record of it, after which
//! the name may leave the day's record: it does with the next refund there. Only then is the end acknowledged. So whoever is handed an end
//! finds its refund named in one of the two, or it was not made. What is asked for while a write is under way is written together.

use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use contract::task::Submitted;
use futures::future::join_all;
use messaging::{Broker, BrokerError, Bucket};
use serde::{Deserialize, Serialize};
use settings::ByteSize;
use tokio::sync::oneshot::error::TryRecvError;
use tokio::sync::{Mutex as Turn, oneshot};

use super::{Account, DAY, Held, MAX_TRIES, Meter, name};
use crate::usage::Use;

/// The bucket of those that were given back.
const REFUNDS: &str = "REFUNDS";
/// How long it is known that one was. It is given back on the day on which it was charged, or not at all.
const KEPT: Duration = Duration::from_secs(2 * 24 * 3600);
/// Refunds that a day's record names. One that has no record in `REFUNDS` so far stays, so where there are as many there are no more.
const MAX_NAMED: usize = 256;

/// What stands in `REFUNDS`: that a task was given back.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct GivenBack {}

/// Opens the bucket.
pub(super) async fn open(
    broker: &Broker,
    max_size: ByteSize,
) -> Result<Bucket<GivenBack>, BrokerError> {
    let open = || broker.bucket_of_size(REFUNDS, KEPT, max_size);
    broker.patiently(open).await
}

/// What is to be given back to one account.
#[derive(Default)]
pub(super) struct Refunds {
    waiting: Mutex<Vec<Refund>>,
    /// Held by whoever gives back. Those that the day's record may name and that are known to be in `REFUNDS`.
    turn: Turn<Vec<String>>,
}

struct Refund {
    day: u64,
    name: String,
    charged: Use,
    /// Told true when it was given back, now or before, and false when there is no room. Dropped when that is not known.
    told: oneshot::Sender<bool>,
}

impl Refunds {
    fn waiting(&self) -> MutexGuard<'_, Vec<Refund>> {
        // After a panic it still holds whole values.
        self.waiting.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// Takes those of one day that are still wanted.
    fn take(&self, day: u64) -> Vec<Refund> {
        let mut waiting = self.waiting();
        waiting.retain(|refund| !refund.told.is_closed());
        waiting.extract_if(.., |refund| refund.day == day).collect()
    }
}

impl Meter {
    /// Gives back what a task was charged for that is not drawn after all, unless that was done before. Of a day that is over nothing is given
    /// back. It may be given up at any time, and asked for again.
    ///
    /// # Errors
    /// When it is not known to be given back. [`BrokerError::Full`]: it is not, and has to wait until `REFUNDS` has room.
    pub(crate) async fn refund(&self, submitted: &Submitted) -> Result<(), BrokerError> {
        let (Ok(tenant), Some(request)) = (submitted.tenant.parse(), &submitted.request) else {
            return Ok(());
        };
        let policy = submitted.charged_to.clone();
        let day = day_of(submitted);
        if policy.is_empty() || day != (self.clock)() / DAY {
            return Ok(());
        }
        let account = Account { tenant, policy };
        let held = self.account(&account);
        let (told, mut hears) = oneshot::channel();
        held.refunds.waiting().push(Refund {
            day,
            name: refund_name(submitted),
            charged: Use::of(request),
            told,
        });
        let mut known = held.refunds.turn.lock().await;
        let mut heard = hears.try_recv();
        // Else whoever had the turn before has taken it along.
        if heard == Err(TryRecvError::Empty) {
            let batch = held.refunds.take(day);
            let record = name(&account, day);
            self.give_back(&record, &held, batch, &mut known).await?;
            heard = hears.try_recv();
        }
        match heard {
            Ok(true) => Ok(()),
            Ok(false) => Err(BrokerError::Full { stream: REFUNDS }),
            Err(_) => Err(BrokerError::Request {
                operation: "giving back with others what was charged",
                source: "it is not known to be written".into(),
            }),
        }
    }

    async fn give_back(
        &self,
        record: &str,
        held: &Held,
        batch: Vec<Refund>,
        known: &mut Vec<String>,
    ) -> Result<(), BrokerError> {
        let Written { new, no_room } = self.take_back(record, held, &batch, known).await?;
        self.note(&new, known).await?;
        for Refund { name, told, .. } in batch {
            // Whoever asked may have gone.
            let _ = told.send(!no_room.contains(&name));
        }
        Ok(())
    }

    /// Takes from a day's record what those of `batch` were charged that were not given back before, and names them there.
    async fn take_back(
        &self,
        record: &str,
        held: &Held,
        batch: &[Refund],
        known: &mut Vec<String>,
    ) -> Result<Written, BrokerError> {
        let _turn = held.turn.lock().await;
        for _ in 0..MAX_TRIES {
            let stored = self.bucket.get(record).await?;
            let (mut day, revision) = match stored {
                Some(entry) => (entry.value, Some(entry.revision)),
                None => Default::default(),
            };
            known.retain(|name| day.refunds.contains(name));
            self.note(&day.refunds, known).await?;
            // After the record was read: a name that had left it by then is in `REFUNDS`, and for one that leaves it later it is not written.
            let new = self.not_given_back(batch, &day.refunds).await?;
            day.refunds.retain(|name| !known.contains(name));
            let mut written = Written::default();
            for refund in new {
                let Refund { name, charged, .. } = refund;
                if day.refunds.contains(name) {
                    continue;
                }
                if day.refunds.len() >= MAX_NAMED {
                    written.no_room.push(name.clone());
                    continue;
                }
                day.used = day.used.less(*charged);
                day.refunds.push(name.clone());
                written.new.push(name.clone());
            }
            if written.new.is_empty() {
                return Ok(written);
            }
            let stored = match revision {
                None => self.bucket.create(record, &day).await,
                Some(revision) => self.bucket.update(record, &day, revision).await,
            };
            match stored {
                Ok(_) => return Ok(written),
                Err(BrokerError::Conflict { .. }) => {}
                // Should it be written all the same, the next one finds it named.
                Err(error) => return Err(error),
            }
        }
        Err(BrokerError::Conflict {
            key: record.to_owned(),
        })
    }

    /// Those that are neither `named` nor in `REFUNDS`.
    async fn not_given_back<'a>(
        &self,
        batch: &'a [Refund],
        named: &[String],
    ) -> Result<Vec<&'a Refund>, BrokerError> {
        let others = batch.iter().filter(|refund| !named.contains(&refund.name));
        let others: Vec<&Refund> = others.collect();
        let mut looked = Vec::with_capacity(others.len());
        for refund in &others {
            looked.push(self.refunds.holds(&refund.name));
        }
        let mut new = Vec::new();
        for (refund, given_back) in others.into_iter().zip(join_all(looked).await) {
            if !given_back? {
                new.push(refund);
            }
        }
        Ok(new)
    }

    /// Puts those that a day's record names into `REFUNDS`, and adds to `known` which of them are there. Those that find no room are not.
    async fn note(&self, names: &[String], known: &mut Vec<String>) -> Result<(), BrokerError> {
        let names: Vec<&String> = names.iter().filter(|name| !known.contains(name)).collect();
        let (given_back, mut notes) = (GivenBack {}, Vec::with_capacity(names.len()));
        for name in &names {
            notes.push(self.refunds.create(name, &given_back));
        }
        let mut full = None;
        for (name, noted) in names.into_iter().zip(join_all(notes).await) {
            match noted {
                Ok(_) | Err(BrokerError::Conflict { .. }) => known.push(name.clone()),
                Err(error @ BrokerError::Full { .. }) => full = Some(error),
                Err(error) => return Err(error),
            }
        }
        if let Some(error) = full {
            // Nothing is lost: they stay named where they are.
            tracing::warn!(%error, "what was given back is noted later");
        }
        Ok(())
    }
}

/// What came of a write of a day's record.
#[derive(Debug, Default)]
struct Written {
    /// Those that it gave back.
    new: Vec<String>,
    /// Those that it could not name any more.
    no_room: Vec<String>,
}

/// The day on which a task was charged. An earlier version did not say it, and then it is that of the submission.
fn day_of(submitted: &Submitted) -> u64 {
    let at = submitted.at.unwrap_or_default().seconds;
    match submitted.charged_day {
        0 => u64::try_from(at).unwrap_or(0) / DAY,
        day => day,
    }
}

/// A task's refund. When it was submitted is in it, because an id may come again: the log can let go of a task before [`KEPT`] is over, and
/// whoever submits with the same idempotency key then is charged for another.
fn refund_name(submitted: &Submitted) -> String {
    let at = submitted.at.unwrap_or_default().seconds;
    format!("{}.{at}", submitted.task_id)
}

#[cfg(test)]
#[path = "refunds_tests.rs"]
mod tests;
