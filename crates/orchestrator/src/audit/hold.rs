//! What the log must keep until it is recorded.
//!
//! The log lets go of what is old and has ended ([`aged`](crate::aged)). It does not go beyond the event that was recorded last, and this one stays:
//! it is the witness that nothing behind it has gone ([`gap`](super::gap)). So while AUDIT is full, or nobody writes, the log keeps what is older than
//! `streams.task_retention`, and where it becomes full it refuses submissions: what is not accepted needs no record. That has an end. What is
//! older than that by `audit.hold` goes all the same, and the chain tells of it when it goes on.
//!
//! One thing goes by another way: the end of a task whose submission the log has let go of, when its id comes again (`retention::clear` in
//! `task-log`). It may not before it is recorded. And it may be the witness: then it is noted up to where the log is known to be whole behind it.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};

use futures::FutureExt as _;
use messaging::{Broker, BrokerError, Bucket, EventLog, Extent};
use task_log::{MayGo, TaskLog};

use super::{AUDIT, AuditError, first_line, identity, last_block, last_line};

/// Where it lies in its bucket that the log has let go of what was not recorded.
pub(super) const RELEASED: &str = "released";
/// … and that it has let go of the witness.
const WITNESS: &str = "witness";
/// Between two times that the log of this process tells of it.
const SAY_EVERY: Duration = Duration::from_secs(600);

/// That the log has let go of what was not recorded, since it was held for too long; or of the witness, since the id of its task came again.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(super) struct Released {
    /// Of some that lay before this place. Of the witness: between it and this place there was nothing to record when it went.
    pub(super) before: u64,
    /// Where the witness lay; 0 of what was not recorded.
    #[serde(default)]
    pub(super) witness: u64,
    /// Of which [log](identity); an orchestrator of before does not say it.
    #[serde(default)]
    log: String,
}

impl Released {
    /// Whether it says something of this log, and not of one that was there before it was made anew. Where it names none it is taken for this one's unless
    /// it says what cannot be of it.
    pub(super) fn is_of(&self, log: &Extent) -> bool {
        match self.log.is_empty() {
            true => self.before <= log.last + 1,
            false => self.log == identity(log),
        }
    }
}

/// What the log may let go of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Leave {
    /// Nothing at this place or behind it.
    pub(crate) before: u64,
    /// But what was stored before this time, wherever it lies.
    pub(crate) regardless_of: Option<SystemTime>,
    /// Whether there is anything old at that place that waits to be recorded.
    pub(crate) is_held: bool,
}

impl Leave {
    /// For who records nothing.
    pub(crate) const ALL: Self = Self {
        before: u64::MAX,
        regardless_of: None,
        is_held: false,
    };
}

/// Where the chain stands.
#[derive(Debug, Clone, Copy)]
struct Taken {
    /// The place of the event that was recorded last; 0 for none.
    place: u64,
    /// When the first was stored that is not recorded.
    waits_since: Option<SystemTime>,
}

/// Keeps the log from letting go of what is not recorded.
pub(crate) struct Hold {
    log: TaskLog,
    blocks: EventLog,
    released: Bucket<Released>,
    /// For so long.
    most: Duration,
    /// What `released` was last set to here.
    noted: Mutex<Option<Released>>,
    said: Mutex<Option<Instant>>,
}

impl Hold {
    pub(super) async fn new(broker: &Broker, most: Duration) -> Result<Self, BrokerError> {
        Ok(Self {
            log: TaskLog::new(broker.clone()),
            blocks: broker.log(AUDIT),
            released: released(broker).await?,
            most,
            noted: Mutex::default(),
            said: Mutex::new(None),
        })
    }

    /// What the log may let go of that was stored before `time`. Where nobody knows what is recorded, that is nothing but what was held for too long.
    pub(crate) async fn leave(&self, time: SystemTime) -> Leave {
        let (taken, is_known) = match self.taken().await {
            Ok(taken) => (taken, true),
            Err(error) => {
                metrics::counter!("inkstone_orchestrator_audit_errors_total").increment(1);
                let error = lifecycle::chain(&error);
                tracing::warn!(
                    error,
                    "how far the log is recorded is not known: it lets go of nothing for now that is not older than streams.task_retention and audit.hold together"
                );
                (self.nothing_taken().await, false)
            }
        };
        let since = taken.waits_since;
        let held = since.and_then(|since| time.duration_since(since).ok());
        let seconds = held.unwrap_or_default().as_secs_f64();
        metrics::gauge!("inkstone_orchestrator_audit_holds_log_seconds").set(seconds);
        let too_long = time.checked_sub(self.most);
        let regardless_of = too_long.filter(|time| since.is_some_and(|since| since < *time));
        let is_over = regardless_of.is_some();
        if held.is_some() && (is_known || is_over) {
            self.tell(seconds, is_over);
        }
        Leave {
            before: taken.place,
            regardless_of,
            is_held: held.is_some(),
        }
    }

    /// Notes that the log lets go of some of what is not recorded, so that the chain can say why it is missing. Before it does: who dies in between
    /// would leave a chain that begins with what is left, as if there had been nothing else.
    pub(crate) async fn note_release(&self) -> Result<(), AuditError> {
        let log = self.log.extent().await?;
        let released = Released {
            before: log.last + 1,
            witness: 0,
            log: identity(&log),
        };
        if !self.is_noted(&released) {
            self.released.put(RELEASED, &released).await?;
            *self.noted.lock().unwrap_or_else(|e| e.into_inner()) = Some(released);
        }
        Ok(())
    }

    /// Whether this or more was noted here.
    fn is_noted(&self, released: &Released) -> bool {
        // It is only ever set.
        let noted = self.noted.lock().unwrap_or_else(|e| e.into_inner());
        let noted = noted.as_ref();
        noted.is_some_and(|noted| noted.log == released.log && noted.before >= released.before)
    }

    /// Asks [`may_go`](Self::may_go).
    pub(crate) fn asked(self: Arc<Self>) -> MayGo {
        Arc::new(move |place| {
            let hold = self.clone();
            async move { hold.may_go(place).await }.boxed()
        })
    }

    /// Whether the end at `place` may go now, for the id of its task has come again. Not where nobody knows.
    pub(super) async fn may_go(&self, place: u64) -> bool {
        self.goes(place).await.unwrap_or_else(|error| {
            metrics::counter!("inkstone_orchestrator_audit_errors_total").increment(1);
            let error = lifecycle::chain(&error);
            tracing::warn!(
                place,
                error,
                "whether an end is recorded is not known: it stays"
            );
            false
        })
    }

    async fn goes(&self, place: u64) -> Result<bool, AuditError> {
        let recorded = self.recorded().await?;
        if place == recorded {
            self.note_witness(place).await?;
        }
        Ok(place <= recorded)
    }

    /// Notes that the log lets go of the witness, and up to where nothing has gone behind it that is to be recorded. Before it does, as what is
    /// released.
    async fn note_witness(&self, witness: u64) -> Result<(), AuditError> {
        let log = self.log.extent().await?;
        let end = log.last + 1;
        let next = self.log.next_at_leader(witness).await?;
        let before = next.map_or(end, |next| next.min(end));
        // Asked last: whoever removed something behind it meanwhile has removed it, too.
        let now = self.log.extent().await?;
        if now.first > witness || now.made != log.made {
            return Ok(());
        }
        let released = Released {
            before,
            witness,
            log: identity(&log),
        };
        match self.released.get(WITNESS).await? {
            // Another has gone since: this one is no longer asked for.
            Some(noted) if noted.value.is_of(&log) && noted.value.witness > witness => {}
            Some(noted) => {
                let revision = noted.revision;
                self.released.update(WITNESS, &released, revision).await?;
            }
            None => {
                self.released.create(WITNESS, &released).await?;
            }
        }
        Ok(())
    }

    /// The place of the event that was recorded last; 0 for none.
    async fn recorded(&self) -> Result<u64, AuditError> {
        let Some(last) = last_block(&self.blocks).await? else {
            return Ok(0);
        };
        let place = last_line(&last)?.content.source;
        let recorded = first_line(&last)?.content.log;
        let log = self.log.extent().await?;
        // Of a log that was made anew nothing is recorded.
        let is_other = !recorded.is_empty() && recorded != identity(&log);
        Ok(if is_other || log.last < place {
            0
        } else {
            place
        })
    }

    async fn taken(&self) -> Result<Taken, AuditError> {
        let place = self.recorded().await?;
        Ok(Taken {
            place,
            waits_since: self.log.next_stored_at(place).await?,
        })
    }

    /// Where nobody knows what is recorded: as if nothing were, all that the log has waits.
    async fn nothing_taken(&self) -> Taken {
        Taken {
            place: 0,
            // Where the broker does not say that either, nothing goes.
            waits_since: self.log.oldest_at().await.unwrap_or_default(),
        }
    }

    /// Says now and then that the log is held, or no longer is.
    fn tell(&self, seconds: f64, is_over: bool) {
        let now = Instant::now();
        // It is only ever set.
        let mut said = self.said.lock().unwrap_or_else(|e| e.into_inner());
        if said.is_some_and(|at| now.saturating_duration_since(at) < SAY_EVERY) {
            return;
        }
        *said = Some(now);
        drop(said);
        match is_over {
            false => tracing::warn!(
                seconds,
                "the log keeps what is older than streams.task_retention, for the audit chain has not recorded it: see that the object store takes files, and that AUDIT has room (audit.max_size); after audit.hold it goes unrecorded"
            ),
            true => tracing::error!(
                seconds,
                "the log lets go of what the audit chain has not recorded, for audit.hold is over: the chain will have a gap; see that the object store takes files, and that AUDIT has room (audit.max_size)"
            ),
        }
    }
}

/// Before which place there was nothing to record behind this witness when this log let go of it, as is noted; 0 where it is not.
pub(super) async fn whole_before(
    log: &Extent,
    released: &Bucket<Released>,
    witness: u64,
) -> Result<u64, AuditError> {
    let found = released.get(WITNESS).await?;
    let found = found.filter(|found| found.value.is_of(log) && found.value.witness == witness);
    Ok(found.map_or(0, |found| found.value.before))
}

/// Where it is noted that the log has let go of what was not recorded.
pub(super) async fn released(broker: &Broker) -> Result<Bucket<Released>, BrokerError> {
    broker.bucket("audit", Duration::ZERO).await
}
