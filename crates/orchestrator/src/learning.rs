//! Learns from ends what tasks cost.

use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use contract::task::Submitted;
use lifecycle::Service;
use task_log::TaskLog;
use tokio::sync::mpsc;

use crate::cost::{Costs, Size};
use crate::schedule::Version;

/// Between two ends that are learned from: each costs a read of its task. Costs change slowly, so a sample says enough.
const SAMPLE_EVERY: Duration = Duration::from_millis(200);

/// What was learned so far. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Learned {
    costs: Arc<Mutex<Costs>>,
    /// Ends to be learned from. There is room for one: of others nothing is learned.
    ends: mpsc::Sender<String>,
}

impl Learned {
    /// Learns from what is [heard](Self::hear) for as long as the service runs.
    pub(crate) fn start(service: &Service, log: &TaskLog) -> Self {
        let (learned, mut ends) = Self::new();
        let (learning, log) = (learned.clone(), log.clone());
        let stopping = service.tasks.stopping();
        let learn = async move {
            while let Some(subject) = ends.recv().await {
                learning.learn_from(&log, &subject).await;
                tokio::time::sleep(SAMPLE_EVERY).await;
            }
        };
        service.tasks.critical("costs", async move {
            tokio::select! {
                () = stopping => {}
                () = learn => {}
            }
            Ok::<(), std::convert::Infallible>(())
        });
        learned
    }

    fn new() -> (Self, mpsc::Receiver<String>) {
        let (ends, heard) = mpsc::channel(1);
        let costs = Arc::default();
        (Self { costs, ends }, heard)
    }

    /// A task has ended whose end is told at `inkstone.event.<tenant>.<lane>.<task>.done`. Costs next to nothing but for the one that is learned from.
    pub(crate) fn hear(&self, subject: &str) {
        if let Ok(room) = self.ends.try_reserve() {
            room.send(subject.to_owned());
        }
    }

    /// What a task will take of a device, in microseconds.
    pub(crate) fn cost(&self, submitted: &Submitted) -> u64 {
        self.costs().of(submitted)
    }

    /// The same of a task of which no more is known than this.
    pub(crate) fn cost_of(&self, version: &Version, size: Size) -> u64 {
        self.costs().of_size(version, size)
    }

    /// Whether anything was learned so far: without it a cost is a guess.
    pub(crate) fn is_measured(&self) -> bool {
        self.costs().is_measured()
    }

    /// How often what some tasks cost has changed much.
    pub(crate) fn changes(&self) -> u64 {
        self.costs().changes()
    }

    async fn learn_from(&self, log: &TaskLog, subject: &str) {
        // inkstone.event.<tenant>.<lane>.<task>.done
        let mut tokens = subject.split('.').skip(2);
        let tenant = tokens.next().and_then(|token| token.parse().ok());
        let task = tokens.nth(1).and_then(|token| token.parse().ok());
        let (Some(tenant), Some(task)) = (tenant, task) else {
            return;
        };
        match log.read(&tenant, task).await {
            Ok(Some(record)) => {
                if let Some(done) = &record.done {
                    self.costs().learn(&record.submitted, done);
                }
            }
            Ok(None) => {}
            Err(error) => {
                tracing::debug!(error = lifecycle::chain(&error), "an end taught nothing");
            }
        }
    }

    fn costs(&self) -> MutexGuard<'_, Costs> {
        // Every change leaves them whole.
        self.costs.lock().unwrap_or_else(|e| e.into_inner())
    }
}
