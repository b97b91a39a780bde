//! Who can do what next, by the functions that the services decide by. What a worker does then is in `worker`.

use std::time::Duration;

use stateright::{Model, Property};
use task_log::transition::{CameOut, Decision, decide, needs_dispatch};

use crate::world::{
    At, Canceller, Dispatcher, End, MAX_ATTEMPTS, Message, Mishaps, STEPS, Stands, World,
};

/// The store takes no picture, and the task may be tried for longer.
pub(crate) const NOT_STORED: CameOut = CameOut::NotStored {
    tried_for: Duration::ZERO,
    at_most: Some(Duration::from_secs(1)),
};
/// The same, and it has been tried for as long as it may.
const NOT_STORED_IN_TIME: CameOut = CameOut::NotStored {
    tried_for: Duration::from_secs(1),
    at_most: Some(Duration::from_secs(1)),
};

/// A task's life, with so many mishaps.
#[derive(Clone)]
pub(crate) struct Life {
    pub(crate) mishaps: Mishaps,
    /// Whether a state is written only in place of the one that its writer read or wrote last.
    pub(crate) guarded: bool,
    /// Whether a checkpoint whose state nobody answered for is removed before a later state is known to stand.
    pub(crate) hasty: bool,
    /// Whether nothing tells workers of one name apart, as all here are.
    pub(crate) by_name: bool,
}

/// One thing that happens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Act {
    Dispatcher,
    DispatcherDies,
    Deliver(usize),
    AckWaitPasses,
    /// It does what comes next.
    Goes(usize),
    PutsAway(usize),
    /// The state that names its checkpoint is stored or not; it does not hear of that.
    HearsNothing {
        worker: usize,
        stored: bool,
    },
    ComesOut(usize, CameOut),
    Dies(usize),
    Canceller,
    /// A state is stored behind an end that was on its way in a cluster: each is checked against what is there, and not against the other.
    DispatcherOvertaken,
    Overtaken(usize),
}

impl Model for Life {
    type State = World;
    type Action = Act;

    fn init_states(&self) -> Vec<World> {
        vec![World::new(self.mishaps)]
    }

    fn actions(&self, world: &World, acts: &mut Vec<Act>) {
        if world.dispatcher != Dispatcher::Acknowledged {
            acts.push(Act::Dispatcher);
            if world.left.deaths > 0 && world.dispatcher != Dispatcher::Handed {
                acts.push(Act::DispatcherDies);
            }
            if world.dispatcher == Dispatcher::Handed && world.done.is_some() {
                acts.push(Act::DispatcherOvertaken);
            }
        }
        if !matches!(world.canceller, Canceller::Told(_)) {
            acts.push(Act::Canceller);
        }
        if world.work.is_some_and(|message| message.out.is_some()) {
            acts.push(Act::AckWaitPasses);
        }
        for (number, worker) in world.workers.iter().enumerate() {
            if world.work.is_some_and(|message| message.out.is_none()) {
                acts.push(Act::Deliver(number));
            }
            if worker.at == At::Nothing {
                continue;
            }
            acts.push(Act::Goes(number));
            if matches!(worker.at, At::Looked { .. }) && world.done.is_some() {
                acts.push(Act::Overtaken(number));
            }
            if world.left.deaths > 0 {
                acts.push(Act::Dies(number));
            }
            if let At::PuttingAway(_) = worker.at
                && world.left.lost_answers > 0
            {
                let hears_nothing = |stored| Act::HearsNothing {
                    worker: number,
                    stored,
                };
                acts.extend([true, false].map(hears_nothing));
            }
            if let At::Running(run) = worker.at {
                acts.push(Act::PutsAway(number));
                acts.push(Act::ComesOut(number, CameOut::Failed));
                if run.step == 0 {
                    acts.push(Act::ComesOut(number, CameOut::Impossible));
                }
                if world.left.stops > 0 {
                    acts.push(Act::ComesOut(number, CameOut::Stopped));
                }
                if run.step == STEPS {
                    acts.push(Act::ComesOut(number, NOT_STORED_IN_TIME));
                    if world.left.stops > 0 {
                        acts.push(Act::ComesOut(number, NOT_STORED));
                    }
                }
            }
        }
    }

    fn next_state(&self, before: &World, act: Act) -> Option<World> {
        let mut world = *before;
        match act {
            Act::Dispatcher => Self::dispatch(&mut world, true),
            Act::DispatcherOvertaken => Self::dispatch(&mut world, false),
            Act::DispatcherDies => {
                world.left.deaths -= 1;
                world.dispatcher = Dispatcher::Handed;
            }
            Act::Deliver(worker) => deliver(&mut world, worker),
            Act::AckWaitPasses => ack_wait_passes(&mut world)?,
            Act::Goes(worker) => self.go(&mut world, worker),
            Act::Overtaken(worker) => {
                let At::Looked { known, version } = world.workers[worker].at else {
                    return None;
                };
                world.workers[worker].at = self.decided(&mut world, known, version, false);
            }
            Act::PutsAway(worker) => self.put_away(&mut world, worker)?,
            Act::HearsNothing { worker, stored } => {
                self.hear_nothing(&mut world, worker, stored)?;
            }
            Act::ComesOut(worker, came_out) => self.comes_out(&mut world, worker, came_out)?,
            Act::Dies(worker) => {
                world.left.deaths -= 1;
                world.workers[worker].at = At::Nothing;
            }
            Act::Canceller => cancel(&mut world),
        }
        (world != *before).then(|| world.in_order())
    }

    fn properties(&self) -> Vec<Property<Self>> {
        crate::properties::all()
    }
}

impl Life {
    /// `TaskLog::hand_over`: neither write overwrites anything, and whoever was interrupted does both again.
    fn dispatch(world: &mut World, sees_end: bool) {
        world.dispatcher = match world.dispatcher {
            Dispatcher::Handed => {
                let scheduled = Stands {
                    running: false,
                    attempt: 0,
                    checkpoint: None,
                    run: 0,
                };
                if !(sees_end && world.done.is_some()) && world.replace(0, scheduled, true) {
                    let told = Some(world.version);
                    Dispatcher::Scheduled { told }
                } else {
                    Dispatcher::Stood
                }
            }
            Dispatcher::Stood if needs_dispatch(world.done.is_some()) => {
                Dispatcher::Scheduled { told: None }
            }
            Dispatcher::Stood => Dispatcher::Published,
            Dispatcher::Scheduled { told } => {
                // Its subject is the task's: while there is one, WORK refuses another.
                if world.work.is_none() {
                    world.published += 1;
                    world.work = Some(Message {
                        number: world.published,
                        out: None,
                        told,
                    });
                }
                Dispatcher::Published
            }
            Dispatcher::Published | Dispatcher::Acknowledged => Dispatcher::Acknowledged,
        };
    }
}

/// A worker that is at it hears of it again in another of its slots, reads, decides, and settles that at once.
fn deliver(world: &mut World, worker: usize) {
    let Some(message) = &mut world.work else {
        return;
    };
    let slot = &mut world.workers[worker];
    if slot.at == At::Nothing {
        message.out = Some(worker);
        slot.message = message.number;
        slot.at = At::Delivered {
            told: message.told.take(),
        };
    } else if decide(Some(world.known()), true, MAX_ATTEMPTS) == Decision::Ended {
        world.work = None;
    }
}

fn ack_wait_passes(world: &mut World) -> Option<()> {
    let message = world.work.as_mut()?;
    let worker = message.out.take()?;
    let holder = world.workers[worker];
    if holder.at != At::Nothing && holder.message == message.number {
        world.left.taken_for_dead = world.left.taken_for_dead.checked_sub(1)?;
    }
    Some(())
}

/// `orchestrator/src/tasks/mod.rs`, `cancel`. It looks first, which decides nothing: what it is told is the end that counts.
fn cancel(world: &mut World) {
    if world.canceller == Canceller::Waits {
        world.canceller = Canceller::Told(world.end(End::Cancelled));
    }
}
