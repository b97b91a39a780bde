//! Assertions that were verified, so that a call costs a look and not a signature's verification.

use std::collections::HashMap;
use std::sync::Arc;

use contract::auth::Caller;

/// SHA-256 of an assertion. Nobody finds another text with the same.
pub(super) type Digest = [u8; 32];

/// Bytes of assertions in one generation: some ten thousand callers'.
const GENERATION_BYTES: usize = 8 << 20;

/// A verified one.
#[derive(Clone)]
pub(super) struct Known {
    pub(super) caller: Arc<Caller>,
    /// From when on it is good for nothing, Unix seconds.
    pub(super) ends: i64,
    /// The assertion's length, which what is known of it does not exceed by much.
    pub(super) bytes: usize,
}

/// Two generations: when the young one is full it becomes the old one, and the old one goes. What is used stays, and nothing has to be
/// looked through.
#[derive(Default)]
pub(super) struct Seen {
    young: Generation,
    old: Generation,
}

#[derive(Default)]
struct Generation {
    known: HashMap<Digest, Known>,
    bytes: usize,
}

impl Seen {
    pub(super) fn get(&mut self, digest: &Digest) -> Option<Known> {
        if let Some(known) = self.young.known.get(digest) {
            return Some(known.clone());
        }
        let known = self.old.known.get(digest)?.clone();
        self.put(*digest, known.clone());
        Some(known)
    }

    pub(super) fn put(&mut self, digest: Digest, known: Known) {
        if self.young.bytes + known.bytes > GENERATION_BYTES {
            self.old = std::mem::take(&mut self.young);
        }
        let bytes = known.bytes;
        if self.young.known.insert(digest, known).is_none() {
            self.young.bytes += bytes;
        }
    }

    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digest(number: usize) -> Digest {
        let mut digest = Digest::default();
        digest[..8].copy_from_slice(&number.to_le_bytes());
        digest
    }

    #[test]
    fn what_is_used_stays_and_all_of_it_has_an_end() {
        let known = Known {
            caller: Arc::default(),
            ends: 7,
            bytes: GENERATION_BYTES / 10,
        };
        let mut seen = Seen::default();
        seen.put(digest(0), known.clone());
        for number in 1..1000 {
            seen.put(digest(number), known.clone());
            assert!(seen.get(&digest(0)).is_some(), "{number}");
            assert!(seen.young.known.len() <= 10 && seen.old.known.len() <= 10);
        }
        assert!(seen.get(&digest(900)).is_none());
        seen.clear();
        assert!(seen.get(&digest(0)).is_none());
        assert_eq!(seen.young.bytes, 0);
    }
}
