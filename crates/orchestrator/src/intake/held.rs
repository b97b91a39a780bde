//! Messages that were let in and charged, and wait for something else: a place among tasks that wait, or a part of the platform. When
//! they come again they are verified again, for a key may have been revoked, and charged nothing. Known to this orchestrator alone:
//! another, or one that was started anew, charges once more.

use std::collections::BTreeMap;
use std::num::NonZeroU32;

/// A message's place in the stream, and when the broker took it (Unix nanoseconds): a stream that was made anew counts from 1 again.
pub(super) type Id = (u64, u128);

/// How many tasks of the tenant may wait, if there is a limit.
pub(super) type Limit = Option<NonZeroU32>;

/// Those that are known at once. Of more, the oldest are forgotten: most of them are gone, taken by another orchestrator.
const MOST: usize = 100_000;

/// The messages.
#[derive(Debug, Default)]
pub(crate) struct Held(BTreeMap<Id, Limit>);

impl Held {
    pub(super) fn get(&self, id: &Id) -> Option<Limit> {
        self.0.get(id).copied()
    }

    pub(super) fn insert(&mut self, id: Id, limit: Limit) {
        self.0.insert(id, limit);
        while self.0.len() > MOST {
            self.0.pop_first();
        }
    }

    pub(super) fn remove(&mut self, id: &Id) {
        self.0.remove(id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_more_are_known_than_may_be_and_the_newest_are() {
        let mut held = Held::default();
        for sequence in 0..MOST as u64 + 10 {
            held.insert((sequence, 1), None);
        }
        assert_eq!(held.0.len(), MOST);
        assert_eq!(held.get(&(0, 1)), None);
        assert_eq!(held.get(&(MOST as u64, 1)), Some(None));
        // Of the same place in a stream that was made anew.
        assert_eq!(held.get(&(MOST as u64, 2)), None);
        held.remove(&(MOST as u64, 1));
        assert_eq!(held.get(&(MOST as u64, 1)), None);
    }
}
