//! Taking partitions up and letting them go, and keeping cursors.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::time::Duration;

use futures::{FutureExt as _, StreamExt as _};
use messaging::{BrokerError, Bucket};
use task_log::{Cursor, Queue};

use super::{Answer, Dispatcher, LAST_ANSWERS};
use crate::partitions::Partition;

/// Cursors saved at once.
const SAVES: usize = 64;
/// How long saving the cursors of what is let go may take: nobody depends on it.
const LAST_SAVES: Duration = Duration::from_secs(1);

/// What is stored of cursors.
#[derive(Default)]
pub(super) struct Saving {
    /// Each with its revision; no entry for one that was never saved.
    stored: HashMap<Queue, (u64, Cursor)>,
    /// Those that may have moved since.
    changed: HashSet<Queue>,
    /// On their way.
    under_way: HashSet<Queue>,
}

impl Saving {
    pub(super) fn opened(&mut self, queue: &Queue, stored: Option<(u64, Cursor)>) {
        self.changed.remove(queue);
        match stored {
            Some(stored) => drop(self.stored.insert(queue.clone(), stored)),
            None => drop(self.stored.remove(queue)),
        }
    }

    pub(super) fn changed(&mut self, queue: &Queue) {
        if !self.changed.contains(queue) {
            self.changed.insert(queue.clone());
        }
    }

    /// Whether what is stored may be behind.
    pub(super) fn is_due(&self, queue: &Queue) -> bool {
        self.changed.contains(queue) || self.under_way.contains(queue)
    }

    pub(super) fn forget(&mut self, queue: &Queue) {
        self.stored.remove(queue);
        self.changed.remove(queue);
    }
}

/// A cursor that was saved: its revision, or why not.
pub(super) struct Saved {
    queue: Queue,
    cursor: Cursor,
    revision: Result<u64, BrokerError>,
}

async fn save(
    cursors: Bucket<Cursor>,
    queue: Queue,
    cursor: Cursor,
    revision: Option<u64>,
) -> Saved {
    let key = queue.key();
    let stored = match revision {
        Some(revision) => cursors.update(&key, &cursor, revision).await,
        None => cursors.create(&key, &cursor).await,
    };
    let revision = match stored {
        // Its owner before this one was not as dead as it seemed. What it has handed over is handed over; this cursor is right too.
        Err(BrokerError::Conflict { .. }) => match cursors.get(&key).await {
            Ok(Some(entry)) => cursors.update(&key, &cursor, entry.revision).await,
            Ok(None) => cursors.create(&key, &cursor).await,
            Err(error) => Err(error),
        },
        stored => stored,
    };
    Saved {
        queue,
        cursor,
        revision,
    }
}

impl Dispatcher {
    /// Saves the cursors that have moved.
    pub(super) fn save_cursors(&mut self) {
        let due: Vec<Queue> = self.saving.changed.iter().cloned().collect();
        for queue in due {
            if self.saving.under_way.len() >= SAVES {
                return;
            }
            if self.saving.under_way.contains(&queue) {
                continue;
            }
            self.saving.changed.remove(&queue);
            let Some((cursor, revision)) = self.unsaved(&queue) else {
                continue;
            };
            self.saving.under_way.insert(queue.clone());
            let save = save(self.cursors.clone(), queue, cursor, revision);
            self.answers.push(save.map(Answer::Saved).boxed());
        }
    }

    /// The cursor of a queue, if another is stored, and that one's revision.
    fn unsaved(&self, queue: &Queue) -> Option<(Cursor, Option<u64>)> {
        let sequence = self.backlog.lines().get(queue)?.cursor();
        let ended = self.unended.first(queue).unwrap_or(sequence);
        let cursor = Cursor::new(sequence, ended);
        match self.saving.stored.get(queue) {
            Some(&(_, stored)) if stored == cursor => None,
            // Of a queue of which nothing was ever handed over there is nothing to keep.
            None if sequence <= 1 => None,
            stored => Some((cursor, stored.map(|(revision, _)| *revision))),
        }
    }

    pub(super) fn saved(&mut self, saved: Saved) {
        let Saved {
            queue,
            cursor,
            revision,
        } = saved;
        self.saving.under_way.remove(&queue);
        match revision {
            Ok(revision) => drop(self.saving.stored.insert(queue, (revision, cursor))),
            Err(error) => {
                let error = lifecycle::chain(&error);
                tracing::debug!(error, %queue, "a cursor is saved later");
                self.saving.changed(&queue);
            }
        }
    }

    /// The mandate has changed.
    pub(super) fn change_partitions(&mut self) {
        let granted = self.mandate.borrow_and_update().partitions.clone();
        let lost = self.own.difference(&granted).copied().collect();
        let closing = std::mem::replace(&mut self.closing, lost);
        // Also those that were about to be let go: what was told of them meanwhile was not listened to.
        let gained = granted.difference(&self.own);
        let gained: BTreeSet<Partition> = gained
            .chain(closing.intersection(&granted))
            .copied()
            .collect();
        if !gained.is_empty() {
            self.own.extend(&gained);
            let queues = self.known.keys();
            let of = |queue: &&Queue| gained.contains(&self.partitions.of(&queue.tenant));
            let queues: Vec<Queue> = queues.filter(of).cloned().collect();
            tracing::info!(
                partitions = gained.len(),
                queues = queues.len(),
                "taking over partitions"
            );
            for queue in queues {
                self.open(queue, 0);
            }
            self.tell_served();
        }
        self.is_due = true;
    }

    /// Lets go what can be let go.
    pub(super) async fn close(&mut self) {
        if self.closing.is_empty() {
            return;
        }
        let busy = self.busy();
        let free: BTreeSet<Partition> = self.closing.difference(&busy).copied().collect();
        if !free.is_empty() {
            self.let_go(&free).await;
        }
    }

    /// Partitions from which something is on its way.
    fn busy(&self) -> BTreeSet<Partition> {
        let lines = self.backlog.lines();
        let busy = lines.values().filter(|line| !line.is_settled());
        busy.map(|line| self.partitions.of(&line.queue.tenant))
            .collect()
    }

    fn queues_of(&self, partitions: &BTreeSet<Partition>) -> Vec<Queue> {
        let lines = self.backlog.lines();
        let of = |queue: &&Queue| partitions.contains(&self.partitions.of(&queue.tenant));
        lines.keys().filter(of).cloned().collect()
    }

    async fn let_go(&mut self, partitions: &BTreeSet<Partition>) {
        let queues = self.queues_of(partitions);
        let changed = queues
            .iter()
            .filter(|queue| self.saving.changed.contains(queue));
        let saves = changed.filter_map(|queue| {
            let (cursor, revision) = self.unsaved(queue)?;
            Some(save(self.cursors.clone(), queue.clone(), cursor, revision))
        });
        let saves: Vec<_> = saves.collect();
        let saves = futures::stream::iter(saves)
            .buffer_unordered(SAVES)
            .for_each(async |_| {});
        if tokio::time::timeout(LAST_SAVES, saves).await.is_err() {
            tracing::debug!("some cursors were not saved");
        }
        for queue in queues {
            if let Some(line) = self.backlog.lines().remove(&queue) {
                self.held = self.held.saturating_sub(line.heads.len());
            }
            self.active.remove(&queue);
            self.readers.remove(&queue);
            self.saving.forget(&queue);
        }
        let of = self.partitions;
        let kept = |queue: &Queue| !partitions.contains(&of.of(&queue.tenant));
        self.unended.retain(kept);
        self.own.retain(|partition| !partitions.contains(partition));
        self.closing
            .retain(|partition| !partitions.contains(partition));
        self.tell_served();
    }

    /// Waits for what is on its way, keeps the cursors, and lets everything go.
    pub(super) async fn finish(&mut self) {
        self.closing = self.own.clone();
        let answers = async {
            while self.hands > 0
                && let Some(answer) = self.answers.next().await
            {
                self.take(answer);
            }
        };
        if tokio::time::timeout(LAST_ANSWERS, answers).await.is_err() {
            tracing::debug!("some dispatches were not answered");
        }
        let all = self.own.clone();
        self.let_go(&all).await;
    }
}
