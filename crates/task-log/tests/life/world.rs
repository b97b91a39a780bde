//! One task's world: what the broker and the object store hold, and what everybody who acts on it is at.

use std::hash::{DefaultHasher, Hash, Hasher as _};

use task_log::Writer;
use task_log::transition::{Ending, Known, Settlement};

/// Attempts that a task has.
pub(crate) const MAX_ATTEMPTS: u32 = 2;
/// Steps of its picture.
pub(crate) const STEPS: u8 = 2;
/// Workers.
pub(crate) const WORKERS: usize = 2;

/// Times that things happen which nobody can be kept from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Mishaps {
    /// A worker or the dispatcher dies and is started again.
    pub(crate) deaths: u8,
    /// A worker that is alive is taken for dead: its dispatch is handed to another, and it goes on.
    pub(crate) taken_for_dead: u8,
    /// A worker is asked to stop, and is started again; or the store takes nothing from it, and it leaves the task to another.
    pub(crate) stops: u8,
    /// A worker hears nothing of the state that names its checkpoint, which is stored or not.
    pub(crate) lost_answers: u8,
}

/// The task's `state` event.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Stands {
    pub(crate) running: bool,
    pub(crate) attempt: u32,
    pub(crate) checkpoint: Option<Checkpoint>,
    /// Which taking up wrote it, 0 for the dispatcher.
    pub(crate) run: u8,
}

/// A checkpoint's key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Checkpoint {
    /// Whose it is: no two runs' objects are the same, whatever attempt each is.
    pub(crate) run: u8,
    pub(crate) step: u8,
}

impl Checkpoint {
    pub(crate) fn bit(self) -> u64 {
        1 << (self.run * (STEPS + 1) + self.step)
    }
}

/// The task's `done` event.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum End {
    Cancelled,
    By(Writer<u8>, Ending),
}

/// The message in WORK.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Message {
    pub(crate) number: u8,
    /// Who has it, as far as the broker knows.
    pub(crate) out: Option<usize>,
    /// The version of the state that it tells of, if it does, until somebody has had it.
    pub(crate) told: Option<u8>,
}

/// What a run knows of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Run {
    pub(crate) number: u8,
    pub(crate) attempt: u32,
    /// Of the state that it wrote last.
    pub(crate) version: u8,
    pub(crate) step: u8,
    pub(crate) checkpoint: Option<Checkpoint>,
    /// A checkpoint that a state of its own may name, of which it heard nothing.
    pub(crate) unsure: Option<Checkpoint>,
}

impl Run {
    /// What it is put away as now.
    pub(crate) fn puts_away(&self) -> Checkpoint {
        Checkpoint {
            run: self.number,
            step: self.step,
        }
    }
}

/// What a worker is at. Between any two of these it may die, or be overtaken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum At {
    Nothing,
    /// It goes by the state that it was told of, or reads.
    Delivered {
        told: Option<u8>,
    },
    Looked {
        known: Known,
        version: u8,
    },
    Refused,
    Running(Run),
    /// The checkpoint's object is stored, the state that names it is not.
    PuttingAway(Run),
    WritingEnd {
        by: Writer<u8>,
        ending: Ending,
    },
    Resting {
        run: Run,
        attempts: u32,
    },
    /// The end is another's: what this run stored goes.
    CleaningUp,
    Settling(Settlement),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Worker {
    /// Of the message that it was handed.
    pub(crate) message: u8,
    pub(crate) at: At,
}

/// What the dispatcher is at, with the submission that it was handed and has not acknowledged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Dispatcher {
    Handed,
    /// There was a state.
    Stood,
    /// The task is to be published, and its workers told of the state with this version, if the dispatcher wrote it.
    Scheduled {
        told: Option<u8>,
    },
    Published,
    Acknowledged,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Canceller {
    Waits,
    /// Was told how it ended.
    Told(End),
}

/// All of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct World {
    pub(crate) stands: Option<Stands>,
    /// Grows with each state that is written; 0 before the first.
    pub(crate) version: u8,
    pub(crate) done: Option<End>,
    pub(crate) pictures: bool,
    /// Objects, by [`Checkpoint::bit`].
    pub(crate) checkpoints: u64,
    pub(crate) work: Option<Message>,
    pub(crate) published: u8,
    pub(crate) workers: [Worker; WORKERS],
    pub(crate) dispatcher: Dispatcher,
    pub(crate) canceller: Canceller,
    pub(crate) left: Mishaps,
    pub(crate) seen: Seen,
}

/// What no service knows, for the properties.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub(crate) struct Seen {
    pub(crate) first_end: Option<End>,
    /// Times that it was taken up.
    pub(crate) runs: u8,
    /// Times that it was handed back by a worker that stopped, or that could store nothing.
    pub(crate) handed_back: u8,
    pub(crate) acknowledged_before_the_end: bool,
}

impl World {
    pub(crate) fn new(left: Mishaps) -> Self {
        let worker = Worker {
            message: 0,
            at: At::Nothing,
        };
        Self {
            stands: None,
            version: 0,
            done: None,
            pictures: false,
            checkpoints: 0,
            work: None,
            published: 0,
            workers: [worker; WORKERS],
            dispatcher: Dispatcher::Handed,
            canceller: Canceller::Waits,
            left,
            seen: Seen::default(),
        }
    }

    /// What a reader of the log sees.
    pub(crate) fn known(&self) -> Known {
        Known {
            ended: self.done.is_some(),
            attempts: self.stands.map_or(0, |stands| stands.attempt),
        }
    }

    /// Puts a state in place of the one with this version. False when another stands there.
    pub(crate) fn replace(&mut self, version: u8, stands: Stands, guarded: bool) -> bool {
        if guarded && self.version != version {
            return false;
        }
        self.stands = Some(stands);
        self.version += 1;
        true
    }

    /// Removes those objects that the state does not name.
    pub(crate) fn forget_unnamed(&mut self, known: impl IntoIterator<Item = Checkpoint>) {
        let named = self.stands.and_then(|stands| stands.checkpoint);
        for checkpoint in known {
            if named != Some(checkpoint) {
                self.checkpoints &= !checkpoint.bit();
            }
        }
    }

    /// Creates the end, and says which one counts.
    pub(crate) fn end(&mut self, end: End) -> End {
        let counts = *self.done.get_or_insert(end);
        self.seen.first_end.get_or_insert(counts);
        counts
    }

    /// The same with the workers in one order: none of them has a name, so that a world and its mirror image are one.
    pub(crate) fn in_order(mut self) -> Self {
        let place = |worker: &Worker| {
            let mut hasher = DefaultHasher::new();
            worker.hash(&mut hasher);
            hasher.finish()
        };
        let [first, second] = &self.workers;
        if place(first) > place(second) {
            self.workers.reverse();
            let out = self.work.as_mut().and_then(|message| message.out.as_mut());
            if let Some(worker) = out {
                *worker = WORKERS - 1 - *worker;
            }
        }
        self
    }

    /// Nothing is left to be done for the task.
    pub(crate) fn is_over(&self) -> bool {
        let idle = |worker: &Worker| worker.at == At::Nothing;
        self.done.is_some() && self.work.is_none() && self.workers.iter().all(idle)
    }
}
