//! What waits: which queues there are, and what of them is in memory.
//!
//! A queue is a tenant's tasks in one lane. The tasks lie in TASKS and nowhere else; here is, for each queue of this orchestrator's
//! partitions, where reading goes on and the next few tasks ([`line`]). Whoever admits a task makes sure first that its queue is known
//! ([`Backlog::announce`]), and tells the queue's owner afterwards ([`Backlog::poke`]). The first may not fail, the second may.

mod expected;
mod head;
pub(crate) mod ladder;
pub(crate) mod line;
mod pokes;

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use contract::TenantId;
use lifecycle::Service;
use messaging::{Broker, BrokerError, Bucket};
use task_log::{Queue, TaskLog, TaskRef, Touch};
use tokio::sync::{Notify, mpsc, watch};

use crate::ahead::Handed;
use crate::estimate::QueueLoad;
use crate::partitions::{Mandate, Partition, Partitions};
use crate::schedule::Turns;
use crate::throughput::Tally;
use crate::waits::Queues;
use line::Line;
use pokes::Pokes;

/// How long a queue that was announced here is known to be known. Far less than [`FORGET_AFTER`].
const ANNOUNCED_FOR: Duration = Duration::from_secs(10 * 60);
/// Queues that are remembered as announced; others are announced more often than need be.
const MAX_ANNOUNCED: usize = 65_536;
/// After this time without an announcement the record of an empty queue is removed.
pub(crate) const FORGET_AFTER: Duration = Duration::from_secs(30 * 60);
/// Words about queues on their way to the dispatcher; more are dropped, and the queues found in rotation.
const MAX_WORDS: usize = 4096;

/// So many submissions were stored in this queue.
pub(crate) type Word = (Queue, u64);

/// The backlog. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Backlog(Arc<Inner>);

struct Inner {
    broker: Broker,
    partitions: Partitions,
    records: Bucket<Touch>,
    announced: Mutex<HashMap<Queue, Instant>>,
    pokes: Mutex<Pokes>,
    /// The first of them was noted.
    noted: Notify,
    mandate: watch::Receiver<Mandate>,
    own: mpsc::Sender<Word>,
    lines: Mutex<HashMap<Queue, Line>>,
    standing: Mutex<Arc<Standing>>,
}

/// What the dispatcher tells of itself whenever that has changed, for estimates.
#[derive(Debug, Default)]
pub(crate) struct Standing {
    /// When it was so; `None`: nothing was told so far.
    pub(crate) at: Option<Instant>,
    /// Whose turn it is.
    pub(crate) turns: Turns,
    /// What workers have of these partitions' tasks, in the order in which they were handed over.
    pub(crate) handed: Vec<Handed>,
    /// What has become of those before.
    pub(crate) tally: Tally,
    /// How often the measure of costs had changed in which all this is.
    pub(crate) changes: u64,
    /// The part of the workers' time that goes to these partitions, 0 to 1.
    pub(crate) share: f64,
    /// Partitions of which all queues that exist are in memory.
    pub(crate) settled: BTreeSet<Partition>,
}

impl Backlog {
    /// Opens it. The other end hears of submissions to queues of this orchestrator's.
    ///
    /// # Errors
    /// When the bucket cannot be opened.
    pub(crate) async fn open(
        service: &Service,
        broker: &Broker,
        log: &TaskLog,
        partitions: Partitions,
        mandate: watch::Receiver<Mandate>,
    ) -> Result<(Self, mpsc::Receiver<Word>), BrokerError> {
        let (own, words) = mpsc::channel(MAX_WORDS);
        let backlog = Self(Arc::new(Inner {
            broker: broker.clone(),
            partitions,
            records: log.backlog().await?,
            announced: Mutex::default(),
            pokes: Mutex::default(),
            noted: Notify::new(),
            mandate,
            own,
            lines: Mutex::default(),
            standing: Mutex::default(),
        }));
        let (telling, stopping) = (backlog.clone(), service.tasks.stopping());
        service.tasks.critical("pokes", async move {
            tokio::select! {
                () = stopping => {}
                () = telling.keep_telling() => {}
            }
            Ok::<(), BrokerError>(())
        });
        Ok((backlog, words))
    }

    /// Makes sure that the queue's owner, whoever it is, knows of the queue. Before anything is stored in it.
    ///
    /// # Errors
    /// When that is not sure: then nothing may be stored.
    pub(crate) async fn announce(&self, queue: &Queue) -> Result<(), BrokerError> {
        let now = Instant::now();
        let fresh = |at: &Instant| now.saturating_duration_since(*at) < ANNOUNCED_FOR;
        if lock(&self.0.announced).get(queue).is_some_and(fresh) {
            return Ok(());
        }
        Box::pin(self.0.records.put(&queue.key(), &Touch {})).await?;
        let mut announced = lock(&self.0.announced);
        if announced.len() >= MAX_ANNOUNCED {
            announced.retain(|_, at| fresh(at));
            if announced.len() >= MAX_ANNOUNCED {
                announced.clear();
            }
        }
        // From before it was written: rather known for too short a time than for too long.
        announced.insert(queue.clone(), now);
        Ok(())
    }

    /// Whoever submits next announces the queue: its record is gone, which a broker's clock that jumps makes happen too early.
    pub(crate) fn unannounce(&self, queue: &Queue) {
        lock(&self.0.announced).remove(queue);
    }

    /// Tells the queue's owner that a submission was stored in it. May be lost.
    pub(crate) async fn poke(&self, queue: &Queue) {
        let (was_empty, count) = {
            let mut pokes = lock(&self.0.pokes);
            (pokes.next().is_none(), pokes.note(queue, Instant::now()))
        };
        if was_empty {
            self.0.noted.notify_one();
        }
        if let Some(count) = count {
            Box::pin(self.tell(queue.clone(), count)).await;
        }
    }

    async fn keep_telling(&self) {
        loop {
            // Nobody is woken up hundreds of times a second for nothing.
            let next = lock(&self.0.pokes).next();
            let Some(next) = next else {
                self.0.noted.notified().await;
                continue;
            };
            tokio::time::sleep_until(next.into()).await;
            let due = lock(&self.0.pokes).due(Instant::now());
            for (queue, count) in due {
                self.tell(queue, count).await;
            }
        }
    }

    async fn tell(&self, queue: Queue, count: u64) {
        let partition = self.0.partitions.of(&queue.tenant);
        if self.is_mine(partition) {
            // Without room it is found in rotation.
            let _ = self.0.own.try_send((queue, count));
            return;
        }
        let word = format!("{count} {queue}");
        let subject = format!("inkstone.poke.{partition}");
        self.0.broker.tell(subject, word.into()).await;
    }

    fn is_mine(&self, partition: Partition) -> bool {
        self.0.mandate.borrow().partitions.contains(&partition)
    }

    /// What of this orchestrator's queues is in memory.
    pub(crate) fn lines(&self) -> MutexGuard<'_, HashMap<Queue, Line>> {
        lock(&self.0.lines)
    }

    /// Where the dispatcher stands.
    pub(crate) fn stand(&self, standing: Standing) {
        *lock(&self.0.standing) = Arc::new(standing);
    }
}

impl Queues for Backlog {
    fn queues(&self) -> Vec<QueueLoad> {
        let lines = self.lines();
        let waiting = lines.values().filter(|line| line.waiting() > 0);
        let load = |line: &Line| QueueLoad {
            lane: line.queue.lane.clone(),
            tenant: line.queue.tenant.clone(),
            waiting: line.waiting(),
            mean_cost: line.mean_cost(),
        };
        waiting.map(load).collect()
    }

    fn position(&self, task: &TaskRef, sequence: u64) -> Option<u64> {
        let queue = queue_of(task);
        self.lines().get(&queue)?.position(sequence)
    }

    fn length(&self, queue: &Queue) -> Option<u64> {
        let waiting = self.lines().get(queue).map(Line::waiting);
        let waiting = waiting.or_else(|| {
            let partition = self.0.partitions.of(&queue.tenant);
            let is_settled = self.standing().settled.contains(&partition);
            (self.is_mine(partition) && is_settled).then_some(0)
        })?;
        Some(waiting + lock(&self.0.pokes).untold(queue))
    }

    fn of_tenant(&self, tenant: &TenantId) -> Option<u64> {
        let (partition, is_mine) = self.partition(tenant);
        if !is_mine || !self.standing().settled.contains(&partition) {
            return None;
        }
        let lines = self.lines();
        let lines = lines.values().filter(|line| line.queue.tenant == *tenant);
        let waiting: u64 = lines.map(Line::waiting).sum();
        Some(waiting + lock(&self.0.pokes).untold_of(tenant))
    }

    fn partition(&self, tenant: &TenantId) -> (Partition, bool) {
        let partition = self.0.partitions.of(tenant);
        (partition, self.is_mine(partition))
    }

    fn standing(&self) -> Arc<Standing> {
        lock(&self.0.standing).clone()
    }
}

/// The queue in which a task waits.
pub(crate) fn queue_of(task: &TaskRef) -> Queue {
    Queue {
        lane: task.lane.clone(),
        tenant: task.tenant.clone(),
    }
}

/// What others tell of a queue, as they wrote it.
pub(crate) fn read_word(payload: &[u8]) -> Option<Word> {
    let (count, queue) = std::str::from_utf8(payload).ok()?.split_once(' ')?;
    Some((Queue::of_key(queue)?, count.parse().ok()?))
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Every change leaves these whole.
    mutex.lock().unwrap_or_else(|e| e.into_inner())
}

#[cfg(test)]
mod tests {
    use messaging::BrokerSettings;
    use nats_server::NatsServer;

    use super::*;

    #[tokio::test]
    async fn a_queue_whose_record_is_gone_is_announced_anew() {
        let server = NatsServer::scratch().unwrap();
        let settings = BrokerSettings::new(server.url(), "20s".parse().unwrap());
        let broker = Broker::connect(&settings, "test").await.unwrap();
        let log = TaskLog::new(broker.clone());
        let (_mandates, mandate) = watch::channel(Mandate::default());
        let service = Service::new("test");
        let opened = Backlog::open(&service, &broker, &log, Partitions(1), mandate).await;
        let (backlog, _words) = opened.unwrap();
        let records = log.backlog().await.unwrap();
        let queue = Queue {
            lane: "standard-image".parse().unwrap(),
            tenant: "acme".parse().unwrap(),
        };
        let is_known = async || records.get(&queue.key()).await.unwrap().is_some();
        backlog.announce(&queue).await.unwrap();
        assert!(is_known().await);
        records.delete(&queue.key()).await.unwrap();
        backlog.announce(&queue).await.unwrap();
        assert!(!is_known().await, "it is taken to be known");
        backlog.unannounce(&queue);
        backlog.announce(&queue).await.unwrap();
        assert!(is_known().await);
    }
}
