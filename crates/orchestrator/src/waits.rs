//! What callers are told of their tasks' waits: the place in the queue, and how long until they begin.
//!
//! The model ([`crate::estimate`]) is solved once a second, of this orchestrator's queues and the live workers. A poll asks for its
//! task's place alone, so that it costs some microseconds; what is not known is not told.

use std::sync::Arc;
use std::time::Duration;

use contract::fleet::{self, WorkerRecord};
use contract::v1::{self, TaskPhase};
use lifecycle::Service;
use messaging::{Broker, BrokerError, Bucket};
use task_log::{Record, TaskRef};
use tokio::sync::watch;

use crate::estimate::{Fleet, Outlook, Place, QueueLoad};
use crate::schedule::{LanePolicy, Turns};

/// How often the model is solved.
const SOLVE_EVERY: Duration = Duration::from_secs(1);
/// How often the workers are counted, in times that the model is solved.
const COUNT_EVERY: u32 = 5;
/// Units of work are microseconds of a device.
const RATE_PER_SLOT: f64 = 1e6;

/// What waits here.
pub(crate) trait Queues: Send + Sync + 'static {
    /// The queues in which tasks wait, of those that this orchestrator serves.
    fn queues(&self) -> Vec<QueueLoad>;

    /// How many tasks of its queue wait before the task whose submission lies at `sequence`; `None` when it waits no more, or another
    /// orchestrator serves its queue.
    fn position(&self, task: &TaskRef, sequence: u64) -> Option<u64>;

    /// Whose turn it is.
    fn turns(&self) -> Turns;

    /// What is left of the tasks that were handed to workers from here, in units of work.
    fn handed_over(&self) -> u64;

    /// The part of the workers' time that goes to these queues, 0 to 1.
    fn share(&self) -> f64;
}

/// Tells waits. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Waits {
    queues: Arc<dyn Queues>,
    outlook: watch::Receiver<Option<Arc<Outlook>>>,
}

impl Waits {
    /// Solves the model for as long as the service runs.
    pub(crate) fn start(
        service: &Service,
        broker: &Broker,
        queues: Arc<dyn Queues>,
        policy: LanePolicy,
    ) -> Self {
        let (sender, outlook) = watch::channel(None);
        let stopping = service.tasks.stopping();
        let (source, broker) = (queues.clone(), broker.clone());
        service.tasks.critical("waits", async move {
            tokio::select! {
                () = stopping => {}
                () = keep_solving(&broker, &*source, &policy, &sender) => {}
            }
            Ok::<(), std::convert::Infallible>(())
        });
        Self { queues, outlook }
    }

    /// The task as its tenant sees it, with its wait if it waits and that is known.
    pub(crate) fn view(&self, record: &Record) -> v1::Task {
        let mut task = record.view();
        if task.phase() != TaskPhase::Queued {
            return task;
        }
        let Ok(place) = record.task_ref() else {
            return task;
        };
        let Some(position) = self.queues.position(&place, record.sequence) else {
            return task;
        };
        task.queue_position = Some(position);
        let outlook = self.outlook.borrow().clone();
        let wait = outlook.and_then(|outlook| {
            outlook.wait(Place {
                lane: &place.lane,
                tenant: &place.tenant,
                position,
                limit: match record.submitted.tasks_running {
                    0 => None,
                    limit => Some(limit.into()),
                },
            })
        });
        task.estimated_wait_ms = wait.and_then(|wait| u64::try_from(wait.as_millis()).ok());
        task
    }
}

async fn keep_solving(
    broker: &Broker,
    queues: &dyn Queues,
    policy: &LanePolicy,
    sender: &watch::Sender<Option<Arc<Outlook>>>,
) {
    let mut every = tokio::time::interval(SOLVE_EVERY);
    let mut bucket = None;
    let mut slots = 0;
    for round in 0_u32.. {
        every.tick().await;
        if round.is_multiple_of(COUNT_EVERY) {
            match count_slots(broker, &mut bucket).await {
                Ok(counted) => slots = counted,
                // The last count holds: workers do not come and go with the broker's answers.
                Err(error) => {
                    tracing::debug!(error = lifecycle::chain(&error), "workers not counted");
                }
            }
        }
        let fleet = Fleet {
            slots,
            rate_per_slot: RATE_PER_SLOT * queues.share(),
            ahead: queues.handed_over(),
        };
        let outlook = Outlook::new(&queues.queues(), policy, &queues.turns(), fleet);
        sender.send_replace(Some(Arc::new(outlook)));
    }
}

/// Tasks that all live workers together can run at once.
async fn count_slots(
    broker: &Broker,
    bucket: &mut Option<Bucket<WorkerRecord>>,
) -> Result<u64, BrokerError> {
    let bucket = match bucket {
        Some(bucket) => bucket,
        None => bucket.insert(broker.bucket(fleet::BUCKET, fleet::MAX_AGE).await?),
    };
    let workers = bucket.all().await?;
    let able = workers.values().filter(|worker| !worker.models.is_empty());
    Ok(able.map(|worker| worker.slots as u64).sum())
}
