//! What a worker does next.

use task_log::Writer;
use task_log::transition::{
    CameOut, Decision, Ending, Known, Next, Settlement, Written, after_attempt, after_refusal,
    after_rest, decide,
};

use crate::model::{Life, NOT_STORED};
use crate::world::{At, Checkpoint, End, MAX_ATTEMPTS, Run, STEPS, Stands, World};

/// The name of all workers.
const NAME: u8 = 1;
/// The process of one that ends the task without having taken it up: none in which that runs, or has run.
const NO_RUN: u8 = u8::MAX;

impl Life {
    /// `gpu-worker/src/run`: what a worker does next.
    pub(crate) fn go(&self, world: &mut World, worker: usize) {
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
    pub(crate) fn decided(
        &self,
        world: &mut World,
        known: Known,
        version: u8,
        sees_end: bool,
    ) -> At {
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
    pub(crate) fn put_away(&self, world: &mut World, worker: usize) -> Option<()> {
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
    pub(crate) fn hear_nothing(
        &self,
        world: &mut World,
        worker: usize,
        stored: bool,
    ) -> Option<()> {
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

    pub(crate) fn comes_out(
        &self,
        world: &mut World,
        worker: usize,
        came_out: CameOut,
    ) -> Option<()> {
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
