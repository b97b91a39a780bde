//! Submissions on their way into the log: each by itself, or many callers' in one go.
//!
//! A broker that flushes now and then takes each by itself for the least. One that flushes each message to the disk before it
//! acknowledges it takes many together for little more than one.
//!
//! While appends are on their way, further submissions queue up; the next append takes all that wait, up to a limit. A lone
//! submission never waits for company: with nothing on its way it is appended at once, by itself. So the groups grow with the load, and
//! with how long the broker takes to make them durable (Helland et al., *Group Commit Timers and High Volume Transaction Systems*,
//! 1987, without the timer).

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;
use std::time::Instant;

use contract::task::Submitted;
use futures::future::BoxFuture;
use futures::stream::{FuturesUnordered, StreamExt as _};
use messaging::{Appended, BrokerError, EventLog, MAX_GROUP, Manner, NewEvent};
use tokio::sync::{Semaphore, mpsc, oneshot};

use crate::manner::{Choice, Manners};
use crate::record::{self, TaskRef};
use crate::{Submission, TaskLogError, decode, encode, retention};

/// How submissions are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Commit {
    /// Each by itself, as soon as it comes.
    OneByOne,
    /// Those that come while others are being stored, together.
    Together,
    /// Those that come while others are being stored, in whichever of the two ways takes less of the broker's time: that is measured.
    Measured,
}

/// Submissions that wait, or, one by one, that are on their way; further callers wait outside.
const WAITING: usize = 4096;
/// Appends on their way at once.
const APPENDS: usize = 4;
/// The same where all go together: each costs the broker some milliseconds whatever its size, so rather few and large. Measured: of 1 to 4
/// the most submissions a second with 1 and 2, at 64, 256 and 1024 callers.
const TOGETHER: usize = 2;
/// How often what is left of an earlier task of its id is removed for one submission.
const CLEARINGS: usize = 3;
/// Bytes in one append, so that one does not hold up the others for long.
const GROUP_BYTES: usize = 1 << 20;

/// Whether the end of an earlier task may be removed that lies at this place, for its id has come again: who must see each end says so.
pub type MayGo = Arc<dyn Fn(u64) -> BoxFuture<'static, bool> + Send + Sync>;

type Answer = oneshot::Sender<Result<Appended, BrokerError>>;

struct Pending {
    event: NewEvent,
    answer: Answer,
    since: Instant,
}

/// Where submissions go in. Cheap to clone.
#[derive(Clone)]
pub struct Intake {
    pending: mpsc::Sender<Pending>,
    log: EventLog,
    /// Where they are stored one by one: room for them.
    by_itself: Option<Arc<Semaphore>>,
    may_go: Option<MayGo>,
}

/// What appends them; somebody has to [run](Committer::run) it.
pub struct Committer {
    log: EventLog,
    pending: mpsc::Receiver<Pending>,
    commit: Commit,
}

pub(crate) fn open(log: EventLog, commit: Commit) -> (Intake, Committer) {
    let (sender, pending) = mpsc::channel(WAITING);
    let alone = commit == Commit::OneByOne;
    let intake = Intake {
        pending: sender,
        log: log.clone(),
        by_itself: alone.then(|| Arc::new(Semaphore::new(WAITING))),
        may_go: None,
    };
    let committer = Committer {
        log,
        pending,
        commit,
    };
    (intake, committer)
}

impl Intake {
    /// The same, which removes the end of an earlier task only where that may go.
    #[must_use]
    pub fn asking(mut self, may_go: MayGo) -> Self {
        self.may_go = Some(may_go);
        self
    }

    /// Stores that a task exists (create-only).
    ///
    /// # Errors
    /// [`TaskLogError::EarlierEnd`] when its id is not free so far; any other when it is not known to be stored. Unless it
    /// [is not](TaskLogError::is_not_stored), it may be: a caller that submits again under the same id finds out.
    pub async fn submit(&self, submitted: &Submitted) -> Result<Submission, TaskLogError> {
        if let Some(room) = &self.by_itself {
            let _room = room.acquire().await.map_err(|_| TaskLogError::Stopping)?;
            return submit(&self.log, submitted, self.may_go.as_ref()).await;
        }
        let event = submission(submitted)?;
        let (answer, answered) = oneshot::channel();
        let pending = Pending {
            event,
            answer,
            since: Instant::now(),
        };
        let sent = self.pending.send(pending).await;
        sent.map_err(|_| TaskLogError::Stopping)?;
        let appended = answered.await.map_err(|_| TaskLogError::Stopping)?;
        settle(&self.log, submitted, self.may_go.as_ref(), appended).await
    }
}

/// Stores by itself that a task exists.
pub(crate) async fn submit(
    log: &EventLog,
    submitted: &Submitted,
    may_go: Option<&MayGo>,
) -> Result<Submission, TaskLogError> {
    let appended = log.create(&submission(submitted)?).await;
    settle(log, submitted, may_go, appended).await
}

/// The event that makes a task.
fn submission(submitted: &Submitted) -> Result<NewEvent, TaskLogError> {
    let task = TaskRef::of(submitted)?;
    // In whichever lane: the same key may come again with a request that would go to another.
    let family = record::event_in_any_lane(&task.tenant, task.task, "submitted");
    let subject = task.subject("submitted");
    let event = NewEvent::new(subject, family, encode(submitted));
    // Or a task would begin with the end of an earlier one of its id, whose submission the log has let go of.
    Ok(event.barred_by(record::filter(&task.tenant, task.task)))
}

/// What came of a submission.
async fn settle(
    log: &EventLog,
    submitted: &Submitted,
    may_go: Option<&MayGo>,
    appended: Result<Appended, BrokerError>,
) -> Result<Submission, TaskLogError> {
    match appended {
        // In a box: hardly any needs it.
        Err(BrokerError::Barred { .. }) => Box::pin(submit_over(log, submitted, may_go)).await,
        appended => outcome(appended?),
    }
}

/// Stores a submission that was kept out by what is left of an earlier task of its id.
async fn submit_over(
    log: &EventLog,
    submitted: &Submitted,
    may_go: Option<&MayGo>,
) -> Result<Submission, TaskLogError> {
    let task = TaskRef::of(submitted)?;
    let mut cleared = 0;
    loop {
        retention::clear(log, &task, may_go).await?;
        cleared += 1;
        let created = log.create(&submission(submitted)?).await;
        match created.map_err(BrokerError::in_doubt) {
            // A replica that lags does not tell of all that is left.
            Err(BrokerError::Barred { .. }) if cleared < CLEARINGS => {}
            created => {
                return Ok(match outcome(created?)? {
                    // An earlier try has stored it after all: no two are the same.
                    Submission::Existing(existing) if *existing == *submitted => {
                        Submission::Accepted
                    }
                    outcome => outcome,
                });
            }
        }
    }
}

/// What a submission's append means.
fn outcome(appended: Appended) -> Result<Submission, TaskLogError> {
    match appended {
        Appended::Created => Ok(Submission::Accepted),
        Appended::Exists(payload) => {
            let existing = decode("submitted", &payload)?;
            Ok(Submission::Existing(Box::new(existing)))
        }
    }
}

impl Committer {
    /// Appends what comes in until nobody can send any more.
    pub async fn run(mut self) {
        let mut waiting = VecDeque::new();
        let mut appends = FuturesUnordered::new();
        let mut open = true;
        let most = match self.commit {
            Commit::Together => TOGETHER,
            Commit::OneByOne | Commit::Measured => APPENDS,
        };
        let (mut manners, began) = (Manners::new(), Instant::now());
        while open || !waiting.is_empty() || !appends.is_empty() {
            if !waiting.is_empty() && appends.len() < most {
                // What else has come by now goes along.
                while waiting.len() < MAX_GROUP
                    && let Ok(pending) = self.pending.try_recv()
                {
                    waiting.push_back(pending);
                }
                let group = next_group(&mut waiting);
                if group.is_empty() {
                    continue;
                }
                let choice = (self.commit == Commit::Measured)
                    .then(|| manners.choose(group.len(), began.elapsed()));
                appends.push(append(&self.log, group, choice));
            }
            let may_wait = waiting.len() < MAX_GROUP;
            tokio::select! {
                pending = self.pending.recv(), if open && may_wait => match pending {
                    Some(pending) => waiting.push_back(pending),
                    None => open = false,
                },
                Some((choice, stored)) = appends.next() => {
                    if let Some(choice) = choice {
                        manners.finish(&choice, began.elapsed(), stored);
                    }
                }
            }
        }
    }
}

/// Whether all of it is stored; a broker that did not do it tells nothing of its speed. Together, where nothing was chosen.
async fn append(
    log: &EventLog,
    group: Vec<Pending>,
    choice: Option<Choice>,
) -> (Option<Choice>, bool) {
    metrics::histogram!("inkstone_orchestrator_commit_group_size").record(group.len() as f64);
    if let Some(oldest) = group.first() {
        let waited = oldest.since.elapsed().as_secs_f64();
        metrics::histogram!("inkstone_orchestrator_commit_wait_seconds").record(waited);
    }
    let (events, answers): (Vec<NewEvent>, Vec<Answer>) = group
        .into_iter()
        .map(|pending| (pending.event, pending.answer))
        .unzip();
    let manner = match &choice {
        Some(choice) => choice.manner,
        None if events.len() < 2 => Manner::OneByOne,
        None => Manner::Together,
    };
    let results = log.create_each(events, manner).await;
    let stored = results.iter().all(Result::is_ok);
    for (answer, result) in answers.into_iter().zip(results) {
        // Whoever asked may be gone; the task is there all the same, as after any lost answer.
        let _ = answer.send(result);
    }
    (choice, stored)
}

/// The first of those that wait, as many as may go together: no two of one family, for the second must hear of the first. Those that
/// may not keep their place.
fn next_group(waiting: &mut VecDeque<Pending>) -> Vec<Pending> {
    let mut families = HashSet::new();
    let mut bytes = 0;
    let mut group = Vec::new();
    let mut left = VecDeque::new();
    while let Some(pending) = waiting.pop_front() {
        // Whoever asked has given up, and was told so: it would be a task that nobody knows of.
        if pending.answer.is_closed() {
            continue;
        }
        let size = pending.event.size();
        let full = group.len() >= MAX_GROUP || (bytes + size > GROUP_BYTES && !group.is_empty());
        if full {
            left.push_back(pending);
            break;
        }
        if families.insert(pending.event.family().to_owned()) {
            bytes += size;
            group.push(pending);
        } else {
            left.push_back(pending);
        }
    }
    left.append(waiting);
    *waiting = left;
    group
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn pending(number: usize, family: u8, bytes: usize) -> Pending {
        let subject = format!("s.{number}");
        let payload = vec![0; bytes].into();
        // Somebody waits for the answer for as long as the test runs.
        let (answer, waits) = oneshot::channel();
        std::mem::forget(waits);
        Pending {
            event: NewEvent::new(subject, format!("f.{family}"), payload),
            answer,
            since: Instant::now(),
        }
    }

    #[test]
    fn nothing_is_stored_for_those_who_have_given_up() {
        let mut waiting: VecDeque<Pending> = (0..9).map(|n| pending(n, n as u8, 1)).collect();
        for (number, pending) in waiting.iter_mut().enumerate() {
            if number % 3 != 0 {
                pending.answer = oneshot::channel().0;
            }
        }
        let group = next_group(&mut waiting);
        let subjects: Vec<&str> = group.iter().map(|one| one.event.subject()).collect();
        assert_eq!(subjects, ["s.0", "s.3", "s.6"]);
        assert!(waiting.is_empty());
    }

    proptest! {
        #[test]
        fn groups_keep_the_order_of_a_family_and_leave_nothing_out(
            all in prop::collection::vec((0u8..12, 1usize..600_000), 0..40),
        ) {
            let mut waiting: VecDeque<Pending> = (all.iter().enumerate())
                .map(|(number, &(family, bytes))| pending(number, family, bytes))
                .collect();
            let mut taken = Vec::new();
            while !waiting.is_empty() {
                let group = next_group(&mut waiting);
                prop_assert!(!group.is_empty() && group.len() <= MAX_GROUP);
                let bytes: usize = group.iter().map(|one| one.event.size()).sum();
                prop_assert!(group.len() == 1 || bytes <= GROUP_BYTES);
                let families: HashSet<_> = group.iter().map(|one| one.event.family()).collect();
                prop_assert_eq!(families.len(), group.len());
                taken.extend(group);
            }
            prop_assert_eq!(taken.len(), all.len());
            for family in 0..12 {
                let name = format!("f.{family}");
                let order: Vec<usize> = (taken.iter())
                    .filter(|one| one.event.family() == name)
                    .map(|one| one.event.subject()[2..].parse().unwrap())
                    .collect();
                prop_assert!(order.is_sorted(), "{order:?}");
            }
        }
    }
}
