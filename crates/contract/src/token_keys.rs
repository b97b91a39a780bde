//! The keys that auth publishes ([`TokenKey`]), as whoever asks it now and then knows them.
//!
//! An instance of auth that cannot open a key lists the others, while another instance signs with it. So a key is known until an answer says
//! that it is held no more, and not until one does not list it (`docs/adr/0018-tokens-are-verified-in-auth-and-their-keys-live-in-the-bucket.md`).

use std::time::{Duration, SystemTime};

use crate::auth::{ListTokenKeysResponse, TokenKey};

/// How long a key is known that no answer lists, whatever they say of its generation: should the keys be made anew from the first on, an old one
/// must not stand for the new one of its number.
pub const KEPT: Duration = Duration::from_secs(24 * 3600);
/// How many are known. Auth publishes three at most.
const MOST: usize = 16;

/// The keys that are known, and when each was listed last.
#[derive(Debug, Default)]
pub struct KnownKeys(Vec<(TokenKey, SystemTime)>);

impl KnownKeys {
    /// Takes an answer of `now`. Known after it are the keys that it lists, and of those before them the ones that it says are held and not
    /// opened. All others are gone, whatever it could not open.
    pub fn learn(&mut self, answer: ListTokenKeysResponse, now: SystemTime) -> Vec<TokenKey> {
        let ListTokenKeysResponse { keys, unopened } = answer;
        let stays = |(key, listed): &(TokenKey, SystemTime)| {
            let listed_anew = |other: &TokenKey| other.kid == key.kid;
            // By a clock that went back it was just now.
            let age = now.duration_since(*listed).unwrap_or_default();
            key.generation != 0
                && unopened.contains(&key.generation)
                && !keys.iter().any(listed_anew)
                && age < KEPT
        };
        self.0.retain(stays);
        let listed = keys.into_iter().map(|key| (key, now));
        // Those that are listed are never the ones beyond the limit.
        let known = listed.chain(self.0.drain(..)).take(MOST).collect();
        self.0 = known;
        self.0.iter().map(|(key, _)| key.clone()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(listed: &[u64], unopened: &[u64]) -> ListTokenKeysResponse {
        let key = |generation: &u64| TokenKey {
            kid: format!("key-{generation}"),
            x: String::new(),
            generation: *generation,
        };
        ListTokenKeysResponse {
            keys: listed.iter().map(key).collect(),
            unopened: unopened.to_vec(),
        }
    }

    fn at(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000 + seconds)
    }

    fn learn(known: &mut KnownKeys, answer: ListTokenKeysResponse, seconds: u64) -> Vec<u64> {
        let mut now: Vec<_> = known
            .learn(answer, at(seconds))
            .iter()
            .map(|k| k.generation)
            .collect();
        now.sort_unstable();
        now
    }

    #[test]
    fn a_key_that_one_instance_cannot_open_stays_and_one_that_is_held_no_more_goes_at_once() {
        let mut known = KnownKeys::default();
        assert_eq!(learn(&mut known, answer(&[1, 2], &[]), 0), [1, 2]);
        assert_eq!(learn(&mut known, answer(&[2], &[1]), 1), [1, 2]);
        // Once more, as long as nobody can open it.
        assert_eq!(learn(&mut known, answer(&[2, 3], &[1]), 2), [1, 2, 3]);
        // The second was removed while the first cannot be opened; then that one too.
        assert_eq!(learn(&mut known, answer(&[3], &[1]), 3), [1, 3]);
        assert_eq!(learn(&mut known, answer(&[3], &[]), 4), [3]);
        // What a whole answer has dropped comes back by being listed alone.
        assert_eq!(learn(&mut known, answer(&[3], &[1, 2]), 5), [3]);
        assert_eq!(learn(&mut known, answer(&[], &[]), 6), [0_u64; 0]);
    }

    #[test]
    fn what_nobody_lists_is_known_for_a_day_and_what_has_no_number_for_no_longer_than_it_is_listed()
    {
        let mut known = KnownKeys::default();
        learn(&mut known, answer(&[1, 2], &[]), 0);
        learn(&mut known, answer(&[1], &[2]), 10);
        let last = KEPT.as_secs() - 1;
        assert_eq!(learn(&mut known, answer(&[1], &[2]), last), [1, 2]);
        assert_eq!(learn(&mut known, answer(&[], &[1, 2]), last + 1), [1]);
        // As a release before these numbers lists them.
        let mut known = KnownKeys::default();
        assert_eq!(learn(&mut known, answer(&[0], &[]), 0), [0]);
        assert_eq!(learn(&mut known, answer(&[1], &[0]), 1), [1]);
        // However many there are said to be.
        let many: Vec<u64> = (1..100).collect();
        assert_eq!(learn(&mut known, answer(&many, &[]), 2).len(), MOST);
    }
}
