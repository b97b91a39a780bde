//! What callers are told of their tasks' waits: the place in the queue, and how long until they begin.
//!
//! The model ([`crate::estimate`]) is solved some times a second, of this orchestrator's queues and the live workers, and how fast those are is
//! measured ([`crate::throughput`]). Whoever asks for a task has its own place looked up as it is just then, which costs some
//! microseconds; of a queue that another orchestrator serves that one is asked ([`crate::asking`]). What is not known is not told: no
//! wait before any end has told what tasks cost, unless nothing is to be waited for.

mod solving;

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use contract::TenantId;
use contract::v1::{self, TaskPhase};
use futures::StreamExt as _;
use futures::stream::BoxStream;
use lifecycle::Service;
use messaging::{Broker, BrokerError};
use task_log::{Queue, Record, TaskRef};
use tokio::sync::watch;

use crate::ahead::{Ahead, Handed};
use crate::asking::{About, Asking, At, Figures, Question, Waiter};
use crate::backlog::{Standing, queue_of};
use crate::estimate::{Fleet, Outlook, Place, QueueLoad};
use crate::learning::Learned;
use crate::partitions::Partition;
use crate::schedule::LanePolicy;
use solving::keep_solving;

/// What workers have before all that waits is worked out anew when it was told anew, or after so long.
const AHEAD_GOOD_FOR: Duration = Duration::from_millis(10);
/// Of two waits told for one moment, the later one is news when it is away from the other by this part of the larger …
const NEWS: f64 = 0.25;
/// … and by so much.
const LEAST_NEWS: Duration = Duration::from_secs(2);

/// What waits here.
pub(crate) trait Queues: Send + Sync + 'static {
    /// The queues in which tasks wait, of those that this orchestrator serves.
    fn queues(&self) -> Vec<QueueLoad>;

    /// How many tasks of its queue wait before the task whose submission lies at `sequence`; `None` when it waits no more, or another
    /// orchestrator serves its queue.
    fn position(&self, task: &TaskRef, sequence: u64) -> Option<u64>;

    /// How many tasks wait in a queue, and so before the next one that comes; `None` when another orchestrator serves it.
    fn length(&self, queue: &Queue) -> Option<u64>;

    /// How many tasks of a tenant wait in all of its queues, of which some may have ended there; `None` when another orchestrator serves them, or this
    /// one has not found all of them so far.
    fn of_tenant(&self, tenant: &TenantId) -> Option<u64>;

    /// The partition in which a tenant's queues are, and whether this orchestrator serves it.
    fn partition(&self, tenant: &TenantId) -> (Partition, bool);

    /// Where the dispatcher stands.
    fn standing(&self) -> Arc<Standing>;
}

/// Tells waits. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Waits {
    queues: Arc<dyn Queues>,
    learned: Learned,
    outlook: watch::Receiver<Option<Arc<Outlook>>>,
    asking: Asking,
    usual: Arc<Usual>,
    seen: Arc<Seen>,
}

/// What was last worked out for tasks that wait in queues: many come at once, and the same goes before all of them.
#[derive(Debug, Default)]
struct Seen(Mutex<Option<LastSeen>>);

#[derive(Debug)]
struct LastSeen {
    /// Of what it was worked out.
    standing: Arc<Standing>,
    outlook: Arc<Outlook>,
    at: Instant,
    ahead: Arc<Ahead>,
}

impl Seen {
    /// What workers have before all that waits, as of some milliseconds ago at most.
    fn ahead(&self, standing: &Arc<Standing>, outlook: &Arc<Outlook>) -> Arc<Ahead> {
        // Every change leaves it whole.
        let mut last = self.0.lock().unwrap_or_else(|e| e.into_inner());
        let good = last.as_ref().filter(|last| {
            Arc::ptr_eq(&last.standing, standing)
                && Arc::ptr_eq(&last.outlook, outlook)
                && last.at.elapsed() < AHEAD_GOOD_FOR
        });
        if let Some(last) = good {
            return last.ahead.clone();
        }
        let at = Instant::now();
        let ahead = Arc::new(ahead(standing, None, outlook.fleet()));
        *last = Some(LastSeen {
            standing: standing.clone(),
            outlook: outlook.clone(),
            at,
            ahead: ahead.clone(),
        });
        ahead
    }
}

/// What the last submissions cost on average: of a queue that has filled faster than the model is solved nothing else is known.
#[derive(Debug, Default)]
struct Usual(Mutex<Option<f64>>);

impl Usual {
    /// One more submission counts for one in so many.
    const OF: f64 = 16.0;

    /// What is usual, with this one.
    fn note(&self, cost: u64) -> u64 {
        // Every change leaves it whole.
        let mut mean = self.0.lock().unwrap_or_else(|e| e.into_inner());
        let cost = cost as f64;
        let new = mean.map_or(cost, |mean| mean + (cost - mean) / Self::OF);
        *mean = Some(new);
        new as u64
    }

    /// What is usual; before anything was submitted, what this one costs.
    fn or(&self, cost: u64) -> u64 {
        let mean = *self.0.lock().unwrap_or_else(|e| e.into_inner());
        mean.map_or(cost, |mean| mean as u64)
    }
}

impl Waits {
    /// Solves the model, and answers others, for as long as the service runs.
    ///
    /// # Errors
    /// When others cannot be listened to.
    pub(crate) async fn start(
        service: &Service,
        broker: &Broker,
        (queues, learned): (Arc<dyn Queues>, Learned),
        policy: LanePolicy,
    ) -> Result<Self, BrokerError> {
        let (sender, outlook) = watch::channel(None);
        let stopping = service.tasks.stopping();
        let (source, solver) = (queues.clone(), broker.clone());
        service.tasks.critical("waits", async move {
            tokio::select! {
                () = stopping => {}
                () = keep_solving(&solver, &*source, &policy, &sender) => {}
            }
            Ok::<(), std::convert::Infallible>(())
        });
        let (asking, questions) = Asking::start(service, broker).await?;
        let waits = Self {
            queues,
            learned,
            outlook,
            asking,
            usual: Arc::default(),
            seen: Arc::default(),
        };
        let (answering, stopping) = (waits.clone(), service.tasks.stopping());
        service.tasks.critical("questions", async move {
            tokio::select! {
                () = stopping => {}
                () = answering.keep_answering(questions) => {}
            }
            Ok::<(), std::convert::Infallible>(())
        });
        Ok(waits)
    }

    async fn keep_answering(&self, mut questions: BoxStream<'static, (Partition, Question)>) {
        while let Some((_, question)) = questions.next().await {
            let (_, is_here) = self.queues.partition(question.about.tenant());
            if is_here {
                let figures = match &question.about {
                    About::Task(waiter) => self.figures(waiter, None),
                    About::Tenant(tenant) => self.queues.of_tenant(tenant).map(position),
                };
                self.asking.answer(&question, figures).await;
            }
        }
    }

    /// How many tasks of a tenant wait, as far as the orchestrator that serves them has it in memory: some may have ended in their queues.
    pub(crate) async fn of_tenant(&self, tenant: &TenantId) -> Option<u64> {
        let (partition, is_here) = self.queues.partition(tenant);
        if is_here {
            return self.queues.of_tenant(tenant);
        }
        let told = self.asking.ask(partition, About::Tenant(tenant.clone()));
        told.await.map(|figures| figures.position)
    }

    /// How many tasks wait in a task's queue, and so before it if it is about to be stored there; not known of a queue of another's.
    pub(crate) fn length(&self, task: &TaskRef) -> Option<u64> {
        self.queues.length(&queue_of(task))
    }

    /// The task as its tenant sees it, with its place and its wait as far as they are known.
    pub(crate) async fn view(&self, record: &Record) -> v1::Task {
        let at = match record.state {
            Some(_) => At::Workers,
            None => At::Sequence(record.sequence),
        };
        self.view_at(record, at, None).await
    }

    /// The same of a task that was stored just now, behind `before` others of its queue if that is known.
    pub(crate) async fn view_new(&self, record: &Record, before: Option<u64>) -> v1::Task {
        self.view_at(record, At::End, before).await
    }

    async fn view_at(&self, record: &Record, at: At, before: Option<u64>) -> v1::Task {
        let mut task = record.view();
        if !waits(&task) {
            return task;
        }
        let Ok(place) = record.task_ref() else {
            return task;
        };
        let (partition, is_here) = self.queues.partition(&place.tenant);
        let cost = self.learned.cost(&record.submitted);
        let waiter = Waiter {
            place,
            at,
            cost: match at {
                At::End => self.usual.note(cost),
                At::Sequence(_) | At::Workers => self.usual.or(cost),
            },
            limit: match record.submitted.tasks_running {
                0 => None,
                limit => Some(limit.into()),
            },
        };
        let figures = match is_here {
            true => self.figures(&waiter, before),
            false => self.asking.ask(partition, About::Task(waiter)).await,
        };
        if let Some(Figures { position, wait }) = figures {
            task.queue_position = Some(position);
            task.estimated_wait_ms = wait.and_then(|wait| u64::try_from(wait.as_millis()).ok());
        }
        task
    }

    /// What is known here of a task that waits.
    fn figures(&self, waiter: &Waiter, before: Option<u64>) -> Option<Figures> {
        let standing = self.queues.standing();
        // Of a task that was handed over a moment ago the log may not tell so yet. One that was stored just now was not.
        let at_workers = match waiter.at {
            At::End => None,
            At::Workers | At::Sequence(_) => self.at_workers(&waiter.place, &standing),
        };
        at_workers.or_else(|| self.in_queue(waiter, before, &standing))
    }

    /// Of a task that was handed to workers and has not begun.
    fn at_workers(&self, place: &TaskRef, standing: &Standing) -> Option<Figures> {
        let all = &standing.handed;
        let own = all.iter().find(|one| one.task == place.task)?;
        if own.begun.is_some() {
            return None;
        }
        let wait = self.outlook().and_then(|outlook| {
            let ahead = ahead(standing, Some(own.order), outlook.fleet());
            self.told(outlook.wait_at_workers(&ahead))
        });
        Some(Figures {
            position: not_begun(all, place, own.order),
            wait,
        })
    }

    /// Of a task that waits in its queue.
    fn in_queue(
        &self,
        waiter: &Waiter,
        before: Option<u64>,
        standing: &Arc<Standing>,
    ) -> Option<Figures> {
        let place = &waiter.place;
        let position = match (waiter.at, before) {
            (At::Workers, _) => return None,
            (At::End, Some(before)) => before,
            (At::End, None) => self.length(place)?,
            (At::Sequence(sequence), _) => self.queues.position(place, sequence)?,
        };
        let of_tenant = standing
            .handed
            .iter()
            .filter(|one| one.tenant == place.tenant);
        let (handed, not_begun) = of_tenant.fold((0, 0), |(handed, not_begun), one| {
            (
                handed + 1,
                not_begun + u64::from(is_queued_with(one, place)),
            )
        });
        let wait = self.outlook().and_then(|outlook| {
            let ahead = self.seen.ahead(standing, &outlook);
            let place = Place {
                lane: &place.lane,
                tenant: &place.tenant,
                position,
                cost: waiter.cost,
                limit: waiter.limit,
                handed,
            };
            self.told(outlook.wait(place, &ahead))
        });
        Some(Figures {
            position: position + not_begun,
            wait,
        })
    }

    fn outlook(&self) -> Option<Arc<Outlook>> {
        self.outlook.borrow().clone()
    }

    /// A wait that may be told: none that comes of guesses alone.
    fn told(&self, wait: Option<Duration>) -> Option<Duration> {
        wait.filter(|wait| wait.is_zero() || self.learned.is_measured())
    }
}

/// A place of which no wait is told.
fn position(position: u64) -> Figures {
    Figures {
        position,
        wait: None,
    }
}

/// Whether a task waits to begin.
pub(crate) fn waits(task: &v1::Task) -> bool {
    matches!(task.phase(), TaskPhase::Queued | TaskPhase::Scheduled)
}

/// What workers have now before a task that was handed over at `before`, or before all that were not handed over.
fn ahead(standing: &Standing, before: Option<u64>, fleet: &Fleet) -> Ahead {
    let now = Instant::now();
    let at = standing.at.unwrap_or(now);
    Ahead::of(&standing.handed, before, fleet, (at, now))
}

/// How many of a task's own queue workers have, or are about to get, and have not begun that were handed over earlier than `before`.
fn not_begun(handed: &[Handed], place: &TaskRef, before: u64) -> u64 {
    let is_before = |one: &&Handed| {
        one.order < before && one.tenant == place.tenant && is_queued_with(one, place)
    };
    handed.iter().filter(is_before).count() as u64
}

/// Whether one of the same tenant's has not begun and came from the same queue.
fn is_queued_with(one: &Handed, place: &TaskRef) -> bool {
    one.begun.is_none() && one.lane.as_ref() == Some(&place.lane)
}

/// What a watcher was told of a wait, and when.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Told {
    wait: Option<Duration>,
    at: Instant,
}

impl Told {
    /// What this view of a task tells.
    pub(crate) fn of(task: &v1::Task, at: Instant) -> Self {
        let wait = task.estimated_wait_ms.map(Duration::from_millis);
        Self { wait, at }
    }

    /// Whether the later one is news to who was told this: the wait has become known, or unknown, or is clearly another than
    /// what is left of the one that was told.
    pub(crate) fn is_outdated_by(&self, later: &Self) -> bool {
        let passed = later.at.saturating_duration_since(self.at);
        match (self.wait, later.wait) {
            (None, None) => false,
            (Some(_), None) | (None, Some(_)) => true,
            (Some(told), Some(wait)) => {
                let left = told.saturating_sub(passed);
                let most = left.max(wait).mul_f64(NEWS).max(LEAST_NEWS);
                left.abs_diff(wait) > most
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use contract::TaskId;

    use super::*;

    #[test]
    fn what_workers_have_is_worked_out_once_for_many_and_anew_when_it_is_another_or_old() {
        let seen = Seen::default();
        let fleet = Fleet {
            slots: 1.0,
            rate: 1e6,
            speed: 1e6,
            alone: 1e6,
        };
        let policy = crate::schedule::simulation::policy([], 1);
        let outlook = || Arc::new(Outlook::new(&[], &policy, &Default::default(), fleet));
        let (standing, first) = (Arc::new(Standing::default()), outlook());
        let once = seen.ahead(&standing, &first);
        // Two calls that the machine lets lie apart would be two moments: this one is made new.
        seen.0.lock().unwrap().as_mut().unwrap().at = Instant::now() + Duration::from_secs(60);
        assert!(Arc::ptr_eq(&once, &seen.ahead(&standing, &first)));
        let other = seen.ahead(&standing, &outlook());
        assert!(!Arc::ptr_eq(&once, &other));
        let standing = Arc::new(Standing::default());
        let other = seen.ahead(&standing, &first);
        assert!(!Arc::ptr_eq(&once, &other));
        let old = Instant::now().checked_sub(AHEAD_GOOD_FOR).unwrap();
        seen.0.lock().unwrap().as_mut().unwrap().at = old;
        assert!(!Arc::ptr_eq(&other, &seen.ahead(&standing, &first)));
    }

    #[test]
    fn what_is_usual_is_not_what_the_last_one_costs() {
        let usual = Usual::default();
        assert_eq!(usual.or(70), 70);
        for number in 0..200_u64 {
            // 60 to 140, 100 on average.
            usual.note(60 + number * 50 % 90);
        }
        for cost in [60, 140] {
            let told = usual.or(cost);
            assert!((85..=115).contains(&told), "{told}");
        }
    }

    #[test]
    fn a_wait_is_told_again_when_it_is_clearly_another_than_what_is_left_of_it() {
        let start = Instant::now();
        let told = |seconds: Option<u64>, after: u64| Told {
            wait: seconds.map(Duration::from_secs),
            at: start + Duration::from_secs(after),
        };
        let first = told(Some(100), 0);
        assert!(!first.is_outdated_by(&told(Some(60), 40)));
        assert!(!first.is_outdated_by(&told(Some(70), 40)));
        assert!(first.is_outdated_by(&told(Some(100), 40)));
        assert!(first.is_outdated_by(&told(Some(20), 40)));
        assert!(first.is_outdated_by(&told(None, 40)));
        // Near the end a second or two is none.
        assert!(!first.is_outdated_by(&told(Some(2), 100)));
        assert!(!told(None, 0).is_outdated_by(&told(None, 40)));
        assert!(told(None, 0).is_outdated_by(&told(Some(0), 40)));
    }

    #[test]
    fn tasks_that_workers_have_and_have_not_begun_count_in_their_own_queue() {
        let place = TaskRef {
            tenant: "acme".parse().unwrap(),
            lane: "standard-image".parse().unwrap(),
            task: TaskId::random(),
        };
        let handed = |order: u64, tenant: &str, lane: &str, has_begun: bool| Handed {
            task: TaskId::random(),
            tenant: tenant.parse().unwrap(),
            lane: Some(lane.parse().unwrap()),
            cost: Some(1),
            order,
            begun: has_begun.then(Instant::now),
            had: Duration::ZERO,
        };
        let all = [
            handed(1, "acme", "standard-image", true),
            handed(2, "acme", "standard-image", false),
            handed(3, "acme", "standard-hd", false),
            handed(4, "other", "standard-image", false),
            handed(5, "acme", "standard-image", false),
        ];
        assert_eq!(not_begun(&all, &place, u64::MAX), 2);
        assert_eq!(not_begun(&all, &place, 5), 1);
        assert_eq!(not_begun(&all, &place, 2), 0);
    }
}
