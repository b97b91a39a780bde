//! What all tasks of one worker share.

use std::time::Duration;

use lifecycle::chain;
use storage::{Key, Storage};
use task_log::{TaskLog, Writer};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::engine::{Engine, Hung};
use crate::fleet::Fleet;
use crate::models::Learned;
use crate::pull::Pulled;
use crate::run::{Elsewhere, Missing, Running, Untold};
use crate::settings::OutputSettings;
use crate::slots::Slots;

/// How long removing what nobody needs may take, all of a task's together: its dispatch is not settled before, and a worker that stops has
/// little time. The orchestrators' sweep finds what stays.
const FORGET_LIMIT: Duration = Duration::from_secs(5);

/// When a running task is put away.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Checkpoints {
    /// `None`: never for the time's sake.
    pub(crate) every: Option<Duration>,
    /// Steps of each picture; `None`: never for their sake.
    pub(crate) steps: Option<u32>,
}

/// How long a task may be drawn in one run.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RunLimits {
    /// Whatever it asks for; zero: any time.
    pub(crate) floor: Duration,
    /// For each step of each million pixels.
    pub(crate) per_megapixel_step: Duration,
}

impl RunLimits {
    /// For so many pictures of one size, of so many steps each; `None`: any time.
    pub(crate) fn of(self, pictures: usize, pixels: u64, steps: u32) -> Option<Duration> {
        if self.floor.is_zero() {
            return None;
        }
        let megapixels = pixels as f64 / 1e6;
        let work = megapixels * pictures as f64 * f64::from(steps);
        let more = self.per_megapixel_step.as_secs_f64() * work;
        // More than a duration can hold is any time.
        let more = Duration::try_from_secs_f64(more).ok()?;
        self.floor.checked_add(more)
    }
}

/// The worker.
pub(crate) struct Worker {
    /// As states and ends name it.
    pub(crate) name: String,
    /// As they name this process, which another worker of the same name is not, nor this one when it is started again.
    pub(crate) incarnation: String,
    pub(crate) log: TaskLog,
    pub(crate) storage: Storage,
    pub(crate) engine: Engine,
    pub(crate) slots: Slots,
    pub(crate) pulled: Pulled,
    pub(crate) running: Running,
    pub(crate) ack_wait: Duration,
    pub(crate) max_attempts: u32,
    pub(crate) limits: RunLimits,
    pub(crate) checkpoints: Checkpoints,
    pub(crate) output: OutputSettings,
    /// What it computes on, as runs name it.
    pub(crate) device: String,
    /// Tasks that failed here.
    pub(crate) elsewhere: Elsewhere,
    /// Tasks that have a dispatch and are not in the log.
    pub(crate) missing: Missing,
    pub(crate) untold: Untold,
    pub(crate) fleet: Fleet,
    pub(crate) learned: Learned,
    /// What hangs, once something does; the worker takes up nothing more and ends.
    pub(crate) hung: watch::Sender<Option<Hung>>,
    /// As labels name it.
    pub(crate) content_producer: String,
    /// Whether pictures have a visible label that did not ask for one.
    pub(crate) always_visible: bool,
    /// Cancelled when the service has been asked to stop.
    pub(crate) stop: CancellationToken,
}

impl Worker {
    /// Who this is, in what it writes of an attempt.
    pub(crate) fn as_writer(&self, attempt: u32) -> Writer<&str> {
        Writer {
            worker: self.name.as_str(),
            incarnation: self.incarnation.as_str(),
            attempt,
        }
    }

    /// Resolves when something hangs.
    pub(crate) async fn hangs(&self) -> Hung {
        let mut hung = self.hung.subscribe();
        let found = hung.wait_for(Option::is_some).await;
        match found.ok().and_then(|hung| hung.clone()) {
            Some(hung) => hung,
            // The sender is ours: it is not closed.
            None => std::future::pending().await,
        }
    }

    /// Removes objects that nobody needs any more. Best effort.
    pub(crate) async fn forget(&self, keys: &[Key]) {
        let removing = async {
            for key in keys {
                if let Err(error) = self.storage.delete(key).await {
                    tracing::debug!(error = chain(&error), %key, "what nobody needs stays");
                }
            }
        };
        let removed = tokio::time::timeout(FORGET_LIMIT, removing).await;
        if removed.is_err() {
            tracing::debug!(limit = ?FORGET_LIMIT, "what nobody needs was not removed in time");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_task_may_be_drawn_for_longer_the_more_it_asks_for() {
        let limits = RunLimits {
            floor: Duration::from_secs(60),
            per_megapixel_step: Duration::from_secs(2),
        };
        let of = |pictures, pixels, steps| limits.of(pictures, pixels, steps).unwrap().as_secs();
        assert_eq!(of(1, 0, 50), 60);
        assert_eq!(of(1, 1_000_000, 30), 120);
        assert_eq!(of(4, 500_000, 30), 180);
        let endless = RunLimits {
            floor: Duration::ZERO,
            ..limits
        };
        assert_eq!(endless.of(1, 1_000_000, 30), None);
    }
}
