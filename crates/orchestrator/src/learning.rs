//! Learns from ends what tasks cost.

use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use contract::task::Submitted;
use futures::StreamExt as _;
use lifecycle::Service;
use messaging::{Broker, BrokerError};
use task_log::TaskLog;

use crate::cost::{Costs, Size};
use crate::schedule::Version;

/// Between two ends that are learned from: each costs a read of its task. Costs change slowly, so a sample says enough.
const SAMPLE_EVERY: Duration = Duration::from_millis(200);

/// What was learned so far. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub(crate) struct Learned(Arc<Mutex<Costs>>);

impl Learned {
    /// Learns for as long as the service runs.
    ///
    /// # Errors
    /// When the ends cannot be listened to.
    pub(crate) async fn start(
        service: &Service,
        broker: &Broker,
        log: &TaskLog,
    ) -> Result<Self, BrokerError> {
        let learned = Self::default();
        let mut ends = broker
            .listen("inkstone.event.*.*.*.done".to_owned())
            .await?;
        let (learning, log) = (learned.clone(), log.clone());
        let stopping = service.tasks.stopping();
        let learn = async move {
            let mut last: Option<Instant> = None;
            while let Some((subject, _)) = ends.next().await {
                if last.is_some_and(|at| at.elapsed() < SAMPLE_EVERY) {
                    continue;
                }
                last = Some(Instant::now());
                learning.learn_from(&log, &subject).await;
            }
        };
        service.tasks.critical("costs", async move {
            tokio::select! {
                () = stopping => {}
                () = learn => {}
            }
            Ok::<(), std::convert::Infallible>(())
        });
        Ok(learned)
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
        self.0.lock().unwrap_or_else(|e| e.into_inner())
    }
}
