//! Solving the model of waits, some times a second, beside whoever asks.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use contract::fleet::{self, WorkerRecord};
use messaging::{Broker, BrokerError, Bucket};
use tokio::sync::watch;

use super::Queues;
use crate::estimate::{Fleet, Outlook};
use crate::schedule::LanePolicy;
use crate::throughput::{Sample, Throughput};

/// How often the model is solved …
const SOLVE_EVERY: Duration = Duration::from_millis(100);
/// … and that takes at most one part in so many of the time.
const SOLVE_PART: u32 = 50;
/// How often the workers are counted …
const COUNT_EVERY: Duration = Duration::from_secs(2);
/// … and while there is none.
const COUNT_NONE_EVERY: Duration = Duration::from_millis(500);

/// Solves the model again and again, of what waits here and of the workers there are.
pub(super) async fn keep_solving(
    broker: &Broker,
    queues: &dyn Queues,
    policy: &LanePolicy,
    sender: &watch::Sender<Option<Arc<Outlook>>>,
) {
    let mut bucket = None;
    let mut workers = Workers::default();
    let mut counted: Option<Instant> = None;
    let mut throughput = Throughput::default();
    loop {
        let count_every = match workers.devices {
            0 => COUNT_NONE_EVERY,
            _ => COUNT_EVERY,
        };
        if counted.is_none_or(|at| at.elapsed() >= count_every) {
            counted = Some(Instant::now());
            match count_workers(broker, &mut bucket).await {
                Ok(count) => workers = count,
                // The last count holds: workers do not come and go with the broker's answers.
                Err(error) => {
                    tracing::debug!(error = lifecycle::chain(&error), "workers not counted");
                }
            }
        }
        let began = Instant::now();
        let standing = queues.standing();
        if let Some(at) = standing.at {
            let capacity = workers.devices as f64 * standing.share;
            throughput.note(Sample {
                at,
                tally: standing.tally,
                handed: &standing.handed,
                capacity,
                changes: standing.changes,
            });
            let fleet = fleet_of(workers, standing.share, &throughput);
            let outlook = Outlook::new(&queues.queues(), policy, &standing.turns, fleet);
            sender.send_replace(Some(Arc::new(outlook)));
        }
        let pause = (began.elapsed() * SOLVE_PART).max(SOLVE_EVERY);
        tokio::time::sleep(pause).await;
    }
}

/// What of the workers goes to the queues here, `share` of them.
fn fleet_of(workers: Workers, share: f64, throughput: &Throughput) -> Fleet {
    let slots = workers.slots as f64 * share;
    let rate = throughput.rate(workers.devices as f64 * share);
    // Before any task has told what it gets of its device: as much as any other.
    let even = rate / slots.max(1.0);
    Fleet {
        slots,
        rate,
        speed: throughput.speed().unwrap_or(even),
        alone: throughput.alone(),
    }
}

/// All live workers together, each with a device of its own.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Workers {
    devices: u64,
    /// Tasks that they can run at once.
    slots: u64,
}

impl Workers {
    /// Those that have a model to work with.
    fn of(records: &BTreeMap<String, WorkerRecord>) -> Self {
        let able = records.values().filter(|worker| !worker.models.is_empty());
        able.fold(Self::default(), |sum, worker| Self {
            devices: sum.devices + 1,
            slots: sum.slots + worker.slots as u64,
        })
    }
}

async fn count_workers(
    broker: &Broker,
    bucket: &mut Option<Bucket<WorkerRecord>>,
) -> Result<Workers, BrokerError> {
    let bucket = match bucket {
        Some(bucket) => bucket,
        None => bucket.insert(broker.bucket(fleet::BUCKET, fleet::MAX_AGE).await?),
    };
    Ok(Workers::of(&bucket.all().await?))
}
