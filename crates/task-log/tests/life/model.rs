//! Who can do what next, by the functions that the services decide by.

use std::time::Duration;

use stateright::{Model, Property};
use task_log::Writer;
use task_log::transition::{
    CameOut, Decision, Ending, Known, Next, Settlement, Written, after_attempt, after_refusal,
    after_rest, decide, needs_dispatch,
};

use crate::world::{
    At, Canceller, Checkpoint, Dispatcher, End, MAX_ATTEMPTS, Message, Mishaps, Run, STEPS, Stands,
    World,
};

/// The store takes no picture, and the task may be tried for longer.
const NOT_STORED: CameOut = CameOut::NotStored {
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

/// The name of all workers.
const NAME: u8 = 1;
/// The process of one that ends the task without having taken it up: none in which that runs, or has run.
const NO_RUN: u8 = u8::MAX;

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

    /// `gpu-worker/src/run`: what a worker does next.
    fn go(&self, world: &mut World, worker: usize) {
        let at = match world.workers[worker].at {
            At::Nothing => At::Nothing,
            At::Delivered { told } => look(world, told),
            At::Looked { known, version } => self.decided(world, known, version, true),
            At::Refused => At::Settling(after_refusal(Some(world.known()))),
            // `gpu-worker/src/run/mod.rs`, `run`: it listens for the end beside what it does. There is nothing to decide, so no function is asked.
            At::Running(_) if world.done.is_some() => At::CleaningUp,
            At::Running(run) if run.step < STEPS => At::Running(Run {
                step: run.step + 1,
                ..run
            }),
            At::Running(run) => {
                world.pictures = true;
                self.left_by(run, CameOut::Drawn)
            }
            At::PuttingAway(run) => self.name_checkpoint(world, run),
            At::WritingEnd { by, ending } => {
                let is_first = world.done.is_none();
                let is_own = match world.end(End::By(by, ending)) {
                    End::By(found, _) => by.wrote(&found),
                    End::Cancelled => false,
                };
                if is_first || is_own {
                    At::Settling(Settlement::Ack)
                } else {
                    At::CleaningUp
                }
            }
            At::CleaningUp => {
                if !matches!(world.done, Some(End::By(_, Ending::Succeeded))) {
                    world.pictures = false;
                }
                At::Settling(Settlement::Ack)
            }
            At::Resting { run, attempts } => self.rest(world, run, attempts),
            At::Settling(settlement) => {
                settle(world, worker, settlement);
                At::Nothing
            }
        };
        world.workers[worker].at = at;
    }

    /// `sees_end`: whether an end that is there keeps it from being taken up.
    fn decided(&self, world: &mut World, known: Known, version: u8, sees_end: bool) -> At {
        match decide(Some(known), false, MAX_ATTEMPTS) {
            Decision::Bury => unreachable!("the task is in the log"),
            Decision::AlreadyHere => unreachable!("see `deliver`"),
            Decision::Ended => At::Settling(Settlement::Ack),
            Decision::Exhausted { attempts } => At::WritingEnd {
                by: self.writer(NO_RUN, attempts),
                ending: Ending::GivenUp,
            },
            Decision::Run { attempt } => {
                // Of the record that was read, as all of the state that is written.
                let checkpoint = world.stands.and_then(|stands| stands.checkpoint);
                let number = world.seen.runs + 1;
                let stands = Stands {
                    running: true,
                    attempt,
                    checkpoint,
                    run: number,
                };
                let has_ended = sees_end && world.done.is_some();
                if has_ended || !world.replace(version, stands, self.guarded) {
                    return At::Refused;
                }
                world.seen.runs = number;
                At::Running(Run {
                    number,
                    attempt,
                    version: world.version,
                    step: checkpoint.map_or(0, |checkpoint| checkpoint.step),
                    checkpoint,
                    unsure: None,
                })
            }
        }
    }

    /// `gpu-worker/src/pipeline/checkpoint.rs`, `write`: the object.
    fn put_away(&self, world: &mut World, worker: usize) -> Option<()> {
        let At::Running(run) = world.workers[worker].at else {
            return None;
        };
        if run.checkpoint.map_or(0, |checkpoint| checkpoint.step) >= run.step {
            return None;
        }
        if self.hasty
            && let Some(unsure) = run.unsure
        {
            world.checkpoints &= !unsure.bit();
        }
        world.checkpoints |= run.puts_away().bit();
        world.workers[worker].at = At::PuttingAway(run);
        Some(())
    }

    /// The same, `stand`, after the object was stored.
    fn name_checkpoint(&self, world: &mut World, run: Run) -> At {
        let checkpoint = run.puts_away();
        let stored = self.write(world, run, names(run, checkpoint));
        // It has read what stands there where it was refused.
        let known = [run.checkpoint, run.unsure, Some(checkpoint)];
        world.forget_unnamed(known.into_iter().flatten());
        if !stored {
            return At::Settling(Settlement::Leave);
        }
        At::Running(Run {
            version: world.version,
            checkpoint: Some(checkpoint),
            unsure: None,
            ..run
        })
    }

    /// The same, when no answer comes.
    fn hear_nothing(&self, world: &mut World, worker: usize, stored: bool) -> Option<()> {
        let At::PuttingAway(run) = world.workers[worker].at else {
            return None;
        };
        world.left.lost_answers -= 1;
        let checkpoint = run.puts_away();
        if stored && !world.replace(run.version, names(run, checkpoint), self.guarded) {
            return None;
        }
        world.workers[worker].at = At::Running(Run {
            unsure: Some(checkpoint),
            ..run
        });
        Some(())
    }

    /// `gpu-worker/src/pipeline/mod.rs`, `write_state`.
    fn write(&self, world: &mut World, run: Run, stands: Stands) -> bool {
        if world.replace(run.version, stands, self.guarded) {
            return true;
        }
        let own = self.writer(run.number, run.attempt);
        let wrote = |stands| own.wrote(&self.writer_of(stands));
        let is_own = world.stands.is_some_and(wrote);
        let version = world.version;
        is_own && world.replace(version, stands, self.guarded)
    }

    fn rest(&self, world: &mut World, run: Run, attempts: u32) -> At {
        let stands = Stands {
            running: false,
            attempt: attempts,
            // The newest that is stored: whoever saw it named has removed the one before.
            checkpoint: run.unsure.or(run.checkpoint),
            run: run.number,
        };
        let written = if self.write(world, run, stands) {
            world.forget_unnamed(run.checkpoint.into_iter().chain(run.unsure));
            if attempts < run.attempt {
                world.seen.handed_back += 1;
            }
            Written::Stored
        } else {
            Written::Refused
        };
        At::Settling(after_rest(std::time::Duration::ZERO, written))
    }
}

impl Life {
    /// Who a run is in what it writes. Each is taken for a process of its own: of one process's no two go on at a time.
    fn writer(&self, run: u8, attempt: u32) -> Writer<u8> {
        Writer {
            worker: NAME,
            incarnation: if self.by_name { 0 } else { run },
            attempt,
        }
    }

    /// Who wrote a state, as it tells: where no worker has the task, nobody.
    fn writer_of(&self, stands: Stands) -> Writer<u8> {
        if stands.running {
            return self.writer(stands.run, stands.attempt);
        }
        Writer {
            worker: 0,
            incarnation: 0,
            attempt: stands.attempt,
        }
    }

    fn comes_out(&self, world: &mut World, worker: usize, came_out: CameOut) -> Option<()> {
        let At::Running(run) = world.workers[worker].at else {
            return None;
        };
        if came_out == CameOut::Stopped || came_out == NOT_STORED {
            world.left.stops -= 1;
        }
        world.workers[worker].at = self.left_by(run, came_out);
        Some(())
    }

    fn left_by(&self, run: Run, came_out: CameOut) -> At {
        match after_attempt(run.attempt, came_out, MAX_ATTEMPTS) {
            Next::End(ending) => At::WritingEnd {
                by: self.writer(run.number, run.attempt),
                ending,
            },
            Next::Rest { attempts, .. } => At::Resting { run, attempts },
        }
    }
}

/// The state that names a checkpoint.
fn names(run: Run, checkpoint: Checkpoint) -> Stands {
    Stands {
        running: true,
        attempt: run.attempt,
        checkpoint: Some(checkpoint),
        run: run.number,
    }
}

/// `gpu-worker/src/run/reading.rs`, `look`. The dispatcher's state counts no attempt; of an end it knows nothing.
fn look(world: &World, told: Option<u8>) -> At {
    match told {
        Some(version) => At::Looked {
            known: Known {
                attempts: 0,
                ended: false,
            },
            version,
        },
        None => At::Looked {
            known: world.known(),
            version: world.version,
        },
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

/// The broker takes the word of whoever ever had the message.
fn settle(world: &mut World, worker: usize, settlement: Settlement) {
    let Some(message) = &mut world.work else {
        return;
    };
    if message.number != world.workers[worker].message {
        return;
    }
    match settlement {
        Settlement::Ack => {
            world.work = None;
            world.seen.acknowledged_before_the_end |= world.done.is_none();
        }
        Settlement::GiveBack(_) => message.out = None,
        Settlement::Leave => {}
    }
}

/// `orchestrator/src/tasks/mod.rs`, `cancel`. It looks first, which decides nothing: what it is told is the end that counts.
fn cancel(world: &mut World) {
    if world.canceller == Canceller::Waits {
        world.canceller = Canceller::Told(world.end(End::Cancelled));
    }
}
