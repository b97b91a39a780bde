//! How many tasks run at once, and that one may have the worker for itself.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, SemaphorePermit};

/// The worker's slots.
pub(crate) struct Slots {
    /// A permit a task. Who waits first is served first: a task that waits for all slots is not overtaken by others that want one.
    permits: Arc<Semaphore>,
    /// All but one.
    others: u32,
    /// Whose turn it is to run alone. Two that kept their own slots and waited for each other's would wait for ever.
    turn: Semaphore,
}

/// All slots but a task's own, until dropped.
pub(crate) struct Alone<'a> {
    _others: SemaphorePermit<'a>,
    _turn: SemaphorePermit<'a>,
}

impl Slots {
    pub(crate) fn new(all: usize) -> Self {
        Self {
            permits: Arc::new(Semaphore::new(all)),
            others: u32::try_from(all.saturating_sub(1)).unwrap_or(u32::MAX),
            turn: Semaphore::new(1),
        }
    }

    /// Waits until one is free, without keeping it.
    pub(crate) async fn room(&self) {
        // Nobody closes the semaphore.
        drop(self.permits.acquire().await);
    }

    /// How many are free.
    pub(crate) fn free(&self) -> usize {
        self.permits.available_permits()
    }

    /// One of them, if any is free and nobody waits for it.
    pub(crate) fn take(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.permits).try_acquire_owned().ok()
    }

    /// All others, for a task that has one. Those that are free are taken at once and the rest as they become free, so the wait lasts as long as
    /// what runs now. `None` when another task waits so, or runs alone.
    pub(crate) async fn alone(&self) -> Option<Alone<'_>> {
        let turn = self.turn.try_acquire().ok()?;
        let others = self.permits.acquire_many(self.others).await.ok()?;
        Some(Alone {
            _others: others,
            _turn: turn,
        })
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;

    use super::*;

    #[tokio::test]
    async fn a_task_that_runs_alone_waits_for_what_runs_and_lets_nobody_in_meanwhile() {
        let slots = Slots::new(3);
        let own = slots.take().unwrap();
        let beside = slots.take().unwrap();
        let mut waiting = std::pin::pin!(slots.alone());
        assert!(waiting.as_mut().now_or_never().is_none());
        assert!(slots.take().is_none(), "the free one is kept for it");
        assert!(slots.alone().await.is_none(), "one at a time");
        drop(beside);
        let alone = waiting.await;
        assert!(alone.is_some());
        assert!(slots.take().is_none());
        assert!(slots.alone().await.is_none(), "one at a time");
        drop(alone);
        assert_eq!(slots.free(), 2);
        drop(own);
        assert_eq!(slots.free(), 3);
    }

    #[tokio::test]
    async fn who_has_stopped_waiting_to_run_alone_keeps_nobody_out() {
        let slots = Slots::new(3);
        let (_own, _beside) = (slots.take().unwrap(), slots.take().unwrap());
        assert!(slots.alone().now_or_never().is_none());
        assert!(slots.take().is_some());
    }

    #[tokio::test]
    async fn of_a_single_slot_whoever_has_it_is_alone() {
        let slots = Slots::new(1);
        let _own = slots.take().unwrap();
        assert!(slots.alone().await.is_some());
    }
}
