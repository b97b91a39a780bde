//! Who is let in, and where memory is: the engine's side of the [account](super::memory).

use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::sync::oneshot;

use super::EngineError;
use super::loaded::{Adopted, Reserved};
use super::memory::{Account, Begun, DoesNotFit, Needs, Rank, make_way};
use super::stepper::{BETWEEN, Stepper};
use crate::metrics;

/// A model that is to be loaded, or to be adopted once it is.
pub(crate) struct PendingWeights {
    /// Of its weights, beyond those that were reserved for it before.
    pub(super) bytes: u64,
    /// What one picture of it takes, without which it is of no use.
    pub(super) picture: Needs,
    /// Set once it is loaded.
    pub(super) loaded: Option<Adopted>,
    /// Pictures with smaller numbers were there before.
    pub(super) after: u64,
    pub(super) reply: oneshot::Sender<Result<Reserved, DoesNotFit>>,
}

impl Stepper {
    /// Of all models, loaded and being loaded.
    fn weights(&self) -> u64 {
        self.weights.load(Ordering::Relaxed)
    }

    /// Of the models that are loaded.
    fn adopted_weights(&self) -> u64 {
        let alive = self.adopted.iter().filter(|model| model.is_alive());
        alive.map(|model| model.bytes).sum()
    }

    /// What has been let in takes, and what the decoder has.
    fn begun(&self) -> impl Iterator<Item = Needs> {
        let decoding = self.decoding.values().map(|&decode| Needs {
            decode,
            ..Needs::default()
        });
        self.entries
            .values()
            .map(|entry| entry.takes())
            .chain(decoding)
    }

    fn accounted(&self, step: u64) -> Account {
        let most = self.account.borrow().most;
        let mut account = Account {
            weights: self.weights(),
            jobs: self.begun().map(|needs| needs.job).sum(),
            step,
            // One at a time.
            decoder: self.decoding.values().copied().max().unwrap_or(0),
            aside: self.entries.values().map(|entry| entry.aside()).sum(),
            most,
        };
        account.most = most.max(account.total());
        account
    }

    /// What is left of the room when everything but the next step has its own.
    pub(super) fn room_for_step(&self) -> u64 {
        let Account {
            weights,
            jobs,
            decoder,
            ..
        } = self.accounted(0);
        let taken = weights.saturating_add(jobs).saturating_add(decoder);
        self.budget.room().saturating_sub(taken)
    }

    /// Whether a preview can be decoded without keeping anybody from a step.
    pub(super) fn room_for_preview(&self, decode: u64) -> bool {
        let Account {
            weights,
            jobs,
            decoder,
            ..
        } = self.accounted(0);
        let step = self.begun().map(|needs| needs.step).max().unwrap_or(0);
        let parts = [weights, jobs, step, decoder.max(decode)];
        parts.into_iter().fold(0, u64::saturating_add) <= self.budget.room()
    }

    /// What is left for pictures put aside.
    pub(super) fn room_aside(&self) -> u64 {
        let aside = self.entries.values().map(|entry| entry.aside()).sum();
        self.budget.aside().saturating_sub(aside)
    }

    /// Lets pictures in, in the order in which they are due, for as long as there is room; one that is more urgent than
    /// others may have them put aside. One that cannot fit beside the models that are loaded is refused; what is reserved for
    /// one that is being loaded may come free again.
    ///
    /// Nobody slips in before the one whose turn it is: it would keep that one waiting for as long as small ones come.
    pub(super) fn let_in(&mut self) {
        while let Some(id) = self.next_in() {
            let Some(entry) = self.entries.get(&id) else {
                return;
            };
            let (needs, rank) = (entry.needs, entry.rank);
            let weights = self.weights();
            let ever = self.budget.can_ever_fit(self.adopted_weights(), needs);
            if let Err(refused) = ever {
                metrics::refused("picture");
                self.fail(id, EngineError::DoesNotFit(refused));
                continue;
            }
            if self.budget.fits(weights, self.begun(), needs) {
                if needs.begin.saturating_add(needs.job) > self.room_for_step() {
                    // The decoder has the room just now, and tells when it is done.
                    return;
                }
                self.begin(id);
                continue;
            }
            let begun = self.begun_by_rank();
            let Some(aside) = make_way(self.budget, weights, &begun, needs, rank) else {
                return;
            };
            let put_aside = aside.into_iter().filter(|&id| self.put_aside(id)).count();
            if put_aside == 0 {
                return;
            }
        }
    }

    fn begin(&mut self, id: u64) {
        let room = self.room_aside();
        let Some(entry) = self.entries.get_mut(&id) else {
            return;
        };
        self.pulse.at("beginning a picture", vec![id], None);
        let begun = entry.begin();
        self.pulse.at(BETWEEN, Vec::new(), None);
        match begun {
            // It may have been put away after its last step: there is none to take then.
            Ok(()) => entry.finish(room),
            Err(error) => self.fail(id, error),
        }
    }

    /// Whose turn it is. While a model waits for room, only those that would have none beside it, and were there first.
    /// Those that have none beside a model that is being loaded wait for what becomes of it, and hold up nobody meanwhile.
    fn next_in(&self) -> Option<u64> {
        let (weights, adopted) = (self.weights(), self.adopted_weights());
        let fits = |weights, needs| self.budget.can_ever_fit(weights, needs).is_ok();
        let may_begin = |id: u64, needs: Needs| {
            let decided = fits(weights, needs) || !fits(adopted, needs);
            decided
                && self.pending.front().is_none_or(|pending| {
                    let beside = weights.saturating_add(pending.bytes);
                    id < pending.after && !fits(beside, needs)
                })
        };
        let waiting = self
            .entries
            .iter()
            .filter(|(id, entry)| entry.is_waiting() && may_begin(**id, entry.needs));
        waiting
            .min_by_key(|(id, entry)| (entry.rank.due, **id))
            .map(|(&id, _)| id)
    }

    /// Pictures that have begun. What is done but not decoded holds room too, and does not go.
    fn begun_by_rank(&self) -> Vec<Begun> {
        let entries = self.entries.iter().map(|(&id, entry)| Begun {
            id,
            needs: entry.takes(),
            rank: entry.rank,
            can_go: entry.is_drawing(),
        });
        let decoding = self.decoding.values().map(|&decode| Begun {
            id: 0,
            needs: Needs {
                decode,
                ..Needs::default()
            },
            rank: Rank::new(1, Duration::ZERO),
            can_go: false,
        });
        entries.chain(decoding).collect()
    }

    fn put_aside(&mut self, id: u64) -> bool {
        let room = self.room_aside();
        let Some(entry) = self.entries.get_mut(&id) else {
            return false;
        };
        let put_aside = entry.put_aside(room);
        if put_aside {
            metrics::put_aside();
        }
        put_aside
    }

    /// Gives models that are to be loaded their room, one after the other. Pictures that could not go on beside the model
    /// are drawn first; others make way.
    pub(super) fn make_room_for_weights(&mut self) {
        // Nobody waits for these any more.
        self.pending.retain(|pending| !pending.reply.is_closed());
        self.adopted.retain(Adopted::is_alive);
        while let Some(pending) = self.pending.front() {
            let beside = self.weights().saturating_add(pending.bytes);
            let verdict = self.can_be_served(pending);
            if verdict.is_ok() && self.is_held_up(pending) {
                return;
            }
            if verdict.is_ok() && !self.budget.fits(beside, self.begun(), Needs::default()) {
                let drawing = self.entries.iter().filter(|(_, entry)| entry.is_drawing());
                let last = drawing.max_by_key(|(id, entry)| (entry.rank.due, **id));
                let last = last.map(|(&id, _)| id);
                if !last.is_some_and(|id| self.put_aside(id)) {
                    return;
                }
                continue;
            }
            let Some(pending) = self.pending.pop_front() else {
                return;
            };
            let answer = match verdict {
                Ok(()) => {
                    self.adopted.extend(pending.loaded);
                    let engine = self.engine.clone();
                    Ok(Reserved::new(pending.bytes, &self.weights, engine))
                }
                Err(refused) => {
                    metrics::refused("model");
                    Err(refused)
                }
            };
            // If nobody waits any more, what was reserved is given back by being dropped here.
            drop(pending.reply.send(answer));
        }
    }

    /// Whether a model has a place: beside those that are loaded it must leave each of them, and itself, room for a default
    /// picture; and its weights must have room beside all, those that are being loaded too.
    fn can_be_served(&self, pending: &PendingWeights) -> Result<(), DoesNotFit> {
        let loaded = pending.loaded.as_ref();
        let own = loaded.map_or(pending.bytes, |model| model.bytes);
        let had = own.saturating_sub(pending.bytes);
        let pictures = self.adopted.iter().map(|model| model.picture);
        let pictures = pictures.chain([pending.picture]).map(Needs::alone);
        let with = |picture: u64| Needs {
            job: own.saturating_add(picture),
            ..Needs::default()
        };
        let largest = with(pictures.max().unwrap_or(0));
        self.budget
            .can_ever_fit(self.adopted_weights(), largest)
            .and_then(|()| {
                let others = self.weights().saturating_sub(had);
                self.budget.can_ever_fit(others, with(0))
            })
    }

    /// Whether there is a picture that was there before and could not go on beside the model. One that waits for what
    /// becomes of another model holds up none.
    fn is_held_up(&self, pending: &PendingWeights) -> bool {
        let weights = self.weights();
        let beside = weights.saturating_add(pending.bytes);
        let fits = |weights, needs| self.budget.can_ever_fit(weights, needs).is_ok();
        self.entries.iter().any(|(&id, entry)| {
            let unfinished = entry.is_drawing() || entry.is_waiting();
            let needs = entry.needs;
            id < pending.after && unfinished && fits(weights, needs) && !fits(beside, needs)
        })
    }

    /// Tells where memory is, with a step that takes so much.
    pub(super) fn tell_account(&self, step: u64) {
        let account = self.accounted(step);
        let waiting = self.entries.values().filter(|entry| entry.is_waiting());
        metrics::pictures(self.entries.len(), waiting.count());
        metrics::memory(&account);
        self.account.send_replace(account);
    }
}
