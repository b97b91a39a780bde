//! How many nonces a tenant may have in the replay cache: as many as are left for all others. Alone it has half of the cache, two
//! have a third each, and whoever comes next finds room.
//!
//! What is left the broker says, for all instances; what a tenant has each instance counts for itself, of what it has stored. So
//! the count is approximate: a tenant that goes to several instances may have as much at each, and what was stored before a start
//! is nobody's. Neither fills the cache, for what is left is the whole cache's: it only leaves less of it to others.
//!
//! Bounded: nonces are stored for proven keys only, so there are no more tenants here than have keys, with 67 numbers each.

use std::collections::{HashMap, VecDeque};
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant, SystemTime};

use contract::TenantId;
use messaging::Fill;

use crate::replay::REMEMBERED;

/// Nonces of one such time are forgotten together.
const SLOT_SECONDS: u64 = 10;
/// What one takes on the broker, bytes, as long as there is none to measure.
const NONCE_BYTES: u64 = 350;
/// The shortest wait that anyone is told.
const LEAST_WAIT: Duration = Duration::from_secs(1);

/// Who has how much of the cache.
pub(crate) struct NonceRoom {
    max_bytes: u64,
    began: Instant,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    tenants: HashMap<TenantId, Stored>,
    /// What the cache held when the broker was last asked.
    messages: u64,
    bytes: u64,
    /// What was stored from here since then.
    stored_since: u64,
    /// When the oldest of the cache is forgotten, after the beginning; none while it is empty.
    oldest_gone: Option<Duration>,
}

/// What one tenant has stored from here: how many in which slot, the oldest first.
#[derive(Debug, Default)]
struct Stored(VecDeque<(u64, u64)>);

impl NonceRoom {
    pub(crate) fn new(max_bytes: u64) -> Self {
        Self {
            max_bytes,
            began: Instant::now(),
            state: Mutex::default(),
        }
    }

    /// Notes what the cache holds, and lets go of what is forgotten.
    pub(crate) fn see(&self, fill: Fill) {
        self.see_at(fill, contract::clock::system_time(), self.began.elapsed());
    }

    fn see_at(&self, fill: Fill, wall: SystemTime, now: Duration) {
        let state = &mut *self.state();
        (state.messages, state.bytes) = (fill.messages, fill.bytes);
        state.stored_since = 0;
        state.oldest_gone = fill.oldest_at.map(|at| {
            let age = wall.duration_since(at).unwrap_or_default();
            now + REMEMBERED.saturating_sub(age)
        });
        for stored in state.tenants.values_mut() {
            stored.forget(now);
        }
        state.tenants.retain(|_, stored| !stored.0.is_empty());
    }

    /// Whether a tenant may store one more, or how long it takes until it may.
    pub(crate) fn admit(&self, tenant: &TenantId) -> Result<(), Duration> {
        self.admit_at(tenant, self.began.elapsed())
    }

    fn admit_at(&self, tenant: &TenantId, now: Duration) -> Result<(), Duration> {
        let state = &mut *self.state();
        let free = state.free(self.max_bytes);
        let Some(stored) = state.tenants.get_mut(tenant) else {
            return Ok(());
        };
        stored.forget(now);
        stored.wait(free, now).map_or(Ok(()), Err)
    }

    /// Notes that a tenant's nonce is stored.
    pub(crate) fn stored(&self, tenant: &TenantId) {
        self.stored_at(tenant, self.began.elapsed());
    }

    fn stored_at(&self, tenant: &TenantId, now: Duration) {
        let state = &mut *self.state();
        state.stored_since += 1;
        state.oldest_gone.get_or_insert(now + REMEMBERED);
        match state.tenants.get_mut(tenant) {
            Some(stored) => stored.add(now),
            None => {
                let mut stored = Stored::default();
                stored.add(now);
                state.tenants.insert(tenant.clone(), stored);
            }
        }
    }

    /// When a full cache has room again: when its oldest nonce is forgotten.
    pub(crate) fn full_for(&self) -> Duration {
        let gone = self.state().oldest_gone.unwrap_or_default();
        let left = gone.saturating_sub(self.began.elapsed());
        left.clamp(LEAST_WAIT, REMEMBERED)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // What a panic could leave half written is a count that is approximate anyway.
        self.state.lock().unwrap_or_else(|e| e.into_inner())
    }
}

impl State {
    /// How many more fit.
    fn free(&self, max_bytes: u64) -> u64 {
        let each = self.bytes.checked_div(self.messages);
        let each = each.unwrap_or(NONCE_BYTES).max(1);
        let left = max_bytes.saturating_sub(self.bytes) / each;
        left.saturating_sub(self.stored_since)
    }
}

impl Stored {
    fn add(&mut self, now: Duration) {
        let slot = now.as_secs() / SLOT_SECONDS;
        match self.0.back_mut() {
            // Threads that come here out of turn are a moment apart.
            Some((last, count)) if *last >= slot => *count += 1,
            _ => self.0.push_back((slot, 1)),
        }
    }

    fn forget(&mut self, now: Duration) {
        while self.0.front().is_some_and(|&(slot, _)| gone(slot) <= now) {
            self.0.pop_front();
        }
    }

    /// How long it takes until there are fewer of these than are free, by what is forgotten of these alone; none if there are now,
    /// and where there are none of these at all.
    fn wait(&self, mut free: u64, now: Duration) -> Option<Duration> {
        let mut mine: u64 = self.0.iter().map(|(_, count)| count).sum();
        let mut wait = None;
        for (slot, count) in &self.0 {
            if mine < free {
                break;
            }
            mine -= count;
            free += count;
            wait = Some(gone(*slot).saturating_sub(now).max(LEAST_WAIT));
        }
        wait
    }
}

/// When the last nonce of a slot is forgotten, after the beginning.
fn gone(slot: u64) -> Duration {
    Duration::from_secs((slot + 1) * SLOT_SECONDS) + REMEMBERED
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const EMPTY: Fill = Fill {
        messages: 0,
        bytes: 0,
        oldest_at: None,
    };

    fn tenant(name: &str) -> TenantId {
        name.parse().unwrap()
    }

    fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    /// Stores until it is refused: how many, and the wait.
    fn fill_up(room: &NonceRoom, tenant: &TenantId, now: Duration) -> (u64, Duration) {
        let mut count = 0;
        loop {
            match room.admit_at(tenant, now) {
                Ok(()) => room.stored_at(tenant, now),
                Err(wait) => return (count, wait),
            }
            count += 1;
        }
    }

    #[test]
    fn a_tenant_has_as_many_nonces_as_it_leaves_to_others_and_the_next_finds_room() {
        let room = NonceRoom::new(1200 * NONCE_BYTES);
        let names = ["a", "b", "c"].map(tenant);
        let counts = names.map(|name| fill_up(&room, &name, Duration::ZERO).0);
        assert_eq!(counts, [600, 300, 150]);
        let newcomer = tenant("d");
        room.admit_at(&newcomer, Duration::ZERO).unwrap();
    }

    #[test]
    fn a_tenant_is_told_when_enough_of_its_own_nonces_are_forgotten_and_is_let_in_then() {
        let room = NonceRoom::new(100 * NONCE_BYTES);
        let (a, first) = (tenant("a"), seconds(5));
        for _ in 0..10 {
            room.stored_at(&a, first);
        }
        let (count, wait) = fill_up(&room, &a, seconds(300));
        assert_eq!(count, 40);
        assert_eq!(seconds(300) + wait, seconds(10) + REMEMBERED);
        let then = seconds(300) + wait;
        room.admit_at(&a, then - seconds(1)).unwrap_err();
        room.admit_at(&a, then).unwrap();
    }

    #[test]
    fn what_other_instances_have_stored_counts_and_a_full_cache_says_when_its_oldest_goes() {
        let room = NonceRoom::new(100 * 400);
        let wall = SystemTime::UNIX_EPOCH + seconds(1_700_000_000);
        let fill = Fill {
            messages: 90,
            bytes: 90 * 400,
            oldest_at: Some(wall - seconds(600)),
        };
        room.see_at(fill, wall, Duration::ZERO);
        let (a, b) = (tenant("a"), tenant("b"));
        assert_eq!(fill_up(&room, &a, Duration::ZERO).0, 5);
        assert_eq!(fill_up(&room, &b, Duration::ZERO).0, 3);
        let left = room.full_for();
        assert!(seconds(55) < left && left <= seconds(60), "{left:?}");
    }

    #[test]
    fn tenants_whose_nonces_are_forgotten_take_no_memory() {
        let room = NonceRoom::new(1 << 20);
        for number in 0..100 {
            room.stored_at(&tenant(&format!("t-{number}")), seconds(number));
        }
        let slots = |room: &NonceRoom| {
            let state = room.state();
            state.tenants.values().map(|s| s.0.len()).max()
        };
        for second in 0..2000 {
            let now = seconds(100 + second);
            room.stored_at(&tenant("busy"), now);
            room.see_at(EMPTY, SystemTime::UNIX_EPOCH, now);
            assert!(slots(&room).unwrap() <= 68);
        }
        assert_eq!(room.state().tenants.len(), 1);
        room.see_at(EMPTY, SystemTime::UNIX_EPOCH, seconds(4000));
        assert_eq!(room.state().tenants.len(), 0);
    }

    proptest! {
        #[test]
        fn whatever_was_stored_whoever_is_refused_is_let_in_when_told(
            stored in prop::collection::vec((0..600u64, 1..50u64), 1..40),
            free in 0..500u64,
        ) {
            let mut slots = Stored::default();
            let mut stored = stored;
            stored.sort_unstable();
            for (at, count) in stored {
                for _ in 0..count {
                    slots.add(seconds(at));
                }
            }
            let now = seconds(600);
            let all = |slots: &Stored| slots.0.iter().map(|(_, count)| count).sum::<u64>();
            let before = all(&slots);
            prop_assert_eq!(slots.wait(free, now).is_some(), before >= free);
            if let Some(wait) = slots.wait(free, now) {
                let then = now + wait;
                slots.forget(then);
                let left = all(&slots);
                prop_assert!(left < free + before - left);
                prop_assert!(slots.wait(free + before - left, then).is_none());
            }
        }
    }
}
