//! The day's use of each tenant under each policy, the same for all orchestrators and safe from restarts.
//!
//! The bucket `USAGE` has one record a day, policy and tenant: what is used or set aside. An orchestrator sets aside a little more
//! than it needs, by compare and set, and charges from that without asking again; what it does not use it puts back after a while,
//! and everything when it stops. One that is killed leaves what it had set aside as used, which is a small part of the day's. What
//! tasks give back ([`refunds`]) goes into the record at once, and so does what may have been charged for nothing ([`doubts`]). Policies without such
//! limits cost nothing.

mod doubts;
mod refunds;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant, UNIX_EPOCH};

use contract::{Failure, TenantId};
use futures::StreamExt as _;
use lifecycle::Service;
use messaging::{Broker, BrokerError, Bucket};
use settings::ByteSize;
use task_log::TaskLog;
use tokio::sync::{Mutex as Turn, Notify};

use crate::usage::{Day, DayLimit, Use};
pub(crate) use doubts::Attempt;
use doubts::Doubts;
use refunds::{GivenBack, Refunds};

/// The bucket of days.
const USAGE: &str = "USAGE";
/// How long a day's record is kept.
const KEPT: Duration = Duration::from_secs(3 * 24 * 3600);
/// How long what was set aside waits to be used.
const IDLE: Duration = Duration::from_secs(5);
/// Attempts to write a record that others write, too.
const MAX_TRIES: usize = 32;
/// Attempts to write a record while the broker does not confirm, and what lies between them.
const WRITES: usize = 3;
const WRITE_AGAIN: Duration = Duration::from_millis(500);
/// How often a service that stops looks for what is not used since.
const LOOK_AGAIN: Duration = Duration::from_millis(50);
/// Records written at the same time when putting back.
const CONCURRENCY: usize = 16;
const RETRY_AFTER: Duration = Duration::from_secs(1);
const DAY: u64 = 24 * 3600;

/// Whose use, under which policy.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Account {
    pub(crate) tenant: TenantId,
    pub(crate) policy: String,
}

/// Seconds since 1970. A function, so that tests can choose the day.
type Clock = Box<dyn Fn() -> u64 + Send + Sync>;

/// The broker's time: by it tasks are submitted, and all orchestrators have the same day.
pub(crate) fn now(log: &TaskLog) -> u64 {
    let since = log.now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| since.as_secs())
}

/// What is set aside here and not used.
#[derive(Debug)]
struct Spare {
    day: u64,
    left: Use,
    used_at: Instant,
}

impl Spare {
    /// Goes on to `day`. Of another nothing is left.
    fn turn_to(&mut self, day: u64) {
        if self.day != day {
            self.day = day;
            self.left = Use::default();
        }
    }
}

struct Held {
    spare: Mutex<Spare>,
    /// Held by whoever writes the record.
    turn: Turn<()>,
    refunds: Refunds,
    doubts: Doubts,
}

impl Held {
    fn spare(&self) -> MutexGuard<'_, Spare> {
        // After a panic it still holds whole values.
        self.spare.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// Takes from what is set aside; false where that is too little.
    fn take(&self, day: u64, ask: Use) -> bool {
        let mut spare = self.spare();
        spare.turn_to(day);
        spare.used_at = Instant::now();
        let enough = spare.left.holds(ask);
        if enough {
            spare.left = spare.left.less(ask);
        }
        enough
    }

    fn put(&self, day: u64, more: Use) {
        let mut spare = self.spare();
        if spare.day == day {
            spare.left = spare.left.plus(more);
        }
    }

    /// Whether what is left is to be put back: nothing was used for `idle`.
    fn is_due(&self, idle: Duration) -> bool {
        self.spare().used_at.elapsed() >= idle
    }

    /// Takes what is to be put back, and says of which day it is.
    fn take_due(&self, idle: Duration) -> (u64, Use) {
        let mut spare = self.spare();
        let due = match spare.used_at.elapsed() >= idle {
            true => std::mem::take(&mut spare.left),
            false => Use::default(),
        };
        (spare.day, due)
    }
}

/// All accounts that were used lately.
pub(crate) struct Meter {
    bucket: Bucket<Day>,
    refunds: Bucket<GivenBack>,
    /// Tells which of several attempts was stored.
    log: TaskLog,
    /// Told when a charge is in doubt.
    doubted: Arc<Notify>,
    accounts: Mutex<HashMap<Account, Arc<Held>>>,
    clock: Clock,
}

/// Something charged. Dropped without being [kept](Charge::keep) it is given back.
pub(crate) struct Charge {
    held: Arc<Held>,
    day: u64,
    charged: Use,
}

impl Charge {
    /// The day that is charged, counted from 1970-01-01.
    pub(crate) fn day(&self) -> u64 {
        self.day
    }

    /// What it was charged for is there.
    pub(crate) fn keep(mut self) {
        self.charged = Use::default();
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        if self.charged != Use::default() {
            self.held.put(self.day, self.charged);
        }
    }
}

impl Meter {
    /// Opens the buckets; that of refunds takes `refunds`.
    pub(crate) async fn open(
        broker: &Broker,
        clock: impl Fn() -> u64 + Send + Sync + 'static,
        refunds: ByteSize,
    ) -> Result<Self, BrokerError> {
        let open = || broker.bucket(USAGE, KEPT);
        Ok(Self {
            bucket: broker.patiently(open).await?,
            refunds: refunds::open(broker, refunds).await?,
            log: TaskLog::new(broker.clone()),
            doubted: Arc::default(),
            accounts: Mutex::default(),
            clock: Box::new(clock),
        })
    }

    /// Puts back what is not used, now and then and when the service stops.
    pub(crate) fn keep_up(self: Arc<Self>, service: &Service) {
        let stopping = service.tasks.stopping();
        service.tasks.critical("usage", async move {
            tokio::pin!(stopping);
            loop {
                tokio::select! {
                    () = &mut stopping => break,
                    () = tokio::time::sleep(IDLE) => self.put_back(IDLE).await,
                    () = self.doubted.notified() => self.put_back(IDLE).await,
                }
            }
            // Calls that were begun go on, and may give back until the last of them has ended.
            loop {
                let alone = Arc::strong_count(&self) == 1;
                self.put_back(Duration::ZERO).await;
                if alone {
                    return Ok::<(), std::convert::Infallible>(());
                }
                tokio::time::sleep(LOOK_AGAIN).await;
            }
        });
    }

    /// Charges an account for today.
    ///
    /// # Errors
    /// When the day has not so much left, when no day has, and when the record cannot be written.
    pub(crate) async fn charge(
        &self,
        account: &Account,
        limit: DayLimit,
        ask: Use,
    ) -> Result<Charge, Failure> {
        if let Some(exceeded) = limit.never(ask) {
            return Err(exceeded.on_any_day());
        }
        let now = (self.clock)();
        let day = now / DAY;
        let held = self.account(account);
        if !held.take(day, ask) {
            let _turn = held.turn.lock().await;
            // Whoever had the turn before may have set enough aside.
            if !held.take(day, ask) {
                let until_midnight = Duration::from_secs(DAY - now % DAY);
                self.set_aside(account, &held, day, limit, ask, until_midnight)
                    .await?;
            }
        }
        Ok(Charge {
            held,
            day,
            charged: ask,
        })
    }

    fn account(&self, account: &Account) -> Arc<Held> {
        let mut accounts = self.accounts();
        let new = || {
            Arc::new(Held {
                spare: Mutex::new(Spare {
                    day: 0,
                    left: Use::default(),
                    used_at: Instant::now(),
                }),
                turn: Turn::default(),
                refunds: Refunds::default(),
                doubts: Doubts::new(self.doubted.clone()),
            })
        };
        accounts.entry(account.clone()).or_insert_with(new).clone()
    }

    fn accounts(&self) -> MutexGuard<'_, HashMap<Account, Arc<Held>>> {
        self.accounts.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// Sets enough aside for what is asked, and takes that.
    async fn set_aside(
        &self,
        account: &Account,
        held: &Held,
        day: u64,
        limit: DayLimit,
        ask: Use,
        until_midnight: Duration,
    ) -> Result<(), Failure> {
        let name = name(account, day);
        for _ in 0..MAX_TRIES {
            let needed = ask.less(held.spare().left);
            let stored = self.bucket.get(&name).await.map_err(unavailable)?;
            let (mut all, revision) = match stored {
                Some(entry) => (entry.value, Some(entry.revision)),
                None => Default::default(),
            };
            let more = limit.set_aside(all.used, needed);
            let more = match more {
                Ok(more) => more,
                Err(exceeded) => {
                    let doubts = !all.doubts.is_empty() || held.doubts.any();
                    let read = (all.used, revision.unwrap_or(0));
                    // In a box: hardly any needs it.
                    if doubts && Box::pin(self.settle(account, held, day, read)).await? {
                        continue;
                    }
                    return Err(exceeded.today(until_midnight));
                }
            };
            all.used = all.used.plus(more);
            let written = match revision {
                None => self.bucket.create(&name, &all).await,
                Some(revision) => self.bucket.update(&name, &all, revision).await,
            };
            match written {
                Ok(_) => {
                    held.put(day, more);
                    if held.take(day, ask) {
                        return Ok(());
                    }
                    // Others took from it meanwhile: again.
                }
                Err(BrokerError::Conflict { .. }) => {}
                Err(error) => return Err(unavailable(error)),
            }
        }
        let text = "the day's use is being counted by too many at once; try again";
        Err(Failure::unavailable(text, RETRY_AFTER))
    }

    /// Puts back what accounts have set aside that were not used for `idle`, and forgets them. Names what is in doubt.
    async fn put_back(&self, idle: Duration) {
        let all: Vec<_> = {
            let accounts = self.accounts();
            let due = accounts
                .iter()
                .filter(|(_, held)| held.is_due(idle) || held.doubts.any());
            due.map(|(account, held)| (account.clone(), held.clone()))
                .collect()
        };
        futures::stream::iter(all)
            .for_each_concurrent(CONCURRENCY, async |(account, held)| {
                let _turn = held.turn.lock().await;
                let put_back = async {
                    // First: where an answer to that is lost, it is written in place of the same revision.
                    self.name_doubts(&account, &held).await?;
                    self.put_back_one(&account, &held, idle).await
                };
                if let Err(error) = put_back.await {
                    // It counts as used; nothing else is wrong.
                    tracing::debug!(%error, "what was set aside of a day is not put back");
                }
                // Two: the table's and ours. Who has another may be about to charge.
                let mut accounts = self.accounts();
                if Arc::strong_count(&held) <= 2
                    && held.spare().left == Use::default()
                    && !held.doubts.any()
                {
                    accounts.remove(&account);
                }
            })
            .await;
    }

    async fn put_back_one(
        &self,
        account: &Account,
        held: &Held,
        idle: Duration,
    ) -> Result<(), BrokerError> {
        let (day, spare) = held.take_due(idle);
        if spare == Use::default() || day != (self.clock)() / DAY {
            return Ok(());
        }
        let name = name(account, day);
        for _ in 0..MAX_TRIES {
            let stored = self.bucket.get(&name).await;
            // Another time: nothing of it was written.
            let stored = stored.inspect_err(|_| held.put(day, spare))?;
            let Some(stored) = stored else {
                return Ok(());
            };
            let (mut all, revision) = (stored.value, stored.revision);
            all.used = all.used.less(spare);
            match self.replace(&name, &all, revision).await {
                Err(BrokerError::Conflict { .. }) => {}
                // Whether it was written is not known after an error: rather charged once too often than given back twice.
                done => return done,
            }
        }
        held.put(day, spare);
        Ok(())
    }

    /// Replaces the record that was read at `revision`. An attempt that failed may have written it all the same, so the next one replaces
    /// the same revision: it is written once at most.
    ///
    /// # Errors
    /// [`BrokerError::Conflict`] when it was not written; any other when that is not known.
    async fn replace(&self, name: &str, all: &Day, revision: u64) -> Result<(), BrokerError> {
        let mut failed = None;
        for _ in 0..WRITES {
            if failed.is_some() {
                tokio::time::sleep(WRITE_AGAIN).await;
            }
            match self.bucket.update(name, all, revision).await {
                Ok(_) => return Ok(()),
                // After a failure, what is there instead may be ours.
                Err(conflict @ BrokerError::Conflict { .. }) => {
                    return Err(failed.unwrap_or(conflict));
                }
                Err(error) => failed = Some(error),
            }
        }
        failed.map_or(Ok(()), Err)
    }
}

/// A day's record. Days are counted from 1970-01-01.
fn name(account: &Account, day: u64) -> String {
    let Account { tenant, policy } = account;
    format!("{day}.{policy}.{tenant}")
}

fn unavailable(error: BrokerError) -> Failure {
    tracing::warn!(
        error = lifecycle::chain(&error),
        "the day's use cannot be counted"
    );
    let text = "the day's use cannot be counted just now; try again";
    Failure::unavailable(text, RETRY_AFTER)
}

#[cfg(test)]
mod tests;
