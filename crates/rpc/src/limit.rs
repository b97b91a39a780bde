//! How many calls to a peer may be under way, by how long they take.
//!
//! What is offered beyond what a platform can do queues somewhere: in sockets, in run queues, in front of the broker. No bound on
//! a single queue helps then; what helps is to let fewer in. As long as even the fastest answer of a while is slow, something
//! queues throughout, and the limit is halved; else it grows with use. One slow call says nothing: it is the fastest that is looked at (as
//! CoDel does: Nichols and Jacobson, *Controlling Queue Delay*, 2012). What is slow depends on the peer, too: where the disk is slow,
//! an answer that takes as long as it always did is none.
//!
//! Pure: time is handed in.

use std::time::Duration;

use tokio::time::Instant;

/// The limit is at least and at most this. As many as the first are always let in: what so few callers wait for is the work itself, on a
/// small machine too, and not a queue that could be kept short by turning them away.
const BOUNDS: (usize, usize) = (512, 4096);
/// How often it is looked at, and answers without which a look says nothing.
const LOOK: (Duration, u32) = (Duration::from_millis(100), 16);
/// An answer within this is not slow …
const QUICK: Duration = Duration::from_millis(20);
/// … nor is one within so many times the fastest of the last five to ten minutes.
const TIMES: u32 = 2;
const REMEMBERED: Duration = Duration::from_secs(300);

/// The limit, and those under way.
#[derive(Debug)]
pub(crate) struct Limit {
    most: usize,
    under_way: usize,
    /// Of this look: the most under way, the answers, and the fastest of them.
    peak: usize,
    answers: u32,
    fastest: Option<Duration>,
    looked: Instant,
    /// The fastest of these minutes and of those before.
    base: (Option<Duration>, Option<Duration>),
    base_since: Instant,
}

impl Limit {
    pub(crate) fn new(now: Instant) -> Self {
        Self {
            most: BOUNDS.1,
            under_way: 0,
            peak: 0,
            answers: 0,
            fastest: None,
            looked: now,
            base: (None, None),
            base_since: now,
        }
    }

    /// Whether there is room for one more; then it is under way until it [leaves](Limit::leave). Calls that go as one find room where a
    /// single one would, and may go beyond the limit by all but one: else single calls would keep them out for as long as there are many.
    pub(crate) fn enter(&mut self, calls: usize) -> bool {
        if self.under_way >= self.most {
            return false;
        }
        self.add(calls);
        true
    }

    /// One more, whatever the limit: of those that are bounded elsewhere.
    pub(crate) fn enter_in_any_case(&mut self) {
        self.add(1);
    }

    fn add(&mut self, calls: usize) {
        self.under_way += calls;
        self.peak = self.peak.max(self.under_way);
    }

    /// Calls that came as one are no longer under way. How long they took together says nothing of how long one takes.
    pub(crate) fn leave_together(&mut self, calls: usize) {
        self.under_way = self.under_way.saturating_sub(calls);
    }

    /// One is no longer under way; `took` if it was answered. Whoever gave up, or was in a hurry, says nothing of the peer.
    pub(crate) fn leave(&mut self, now: Instant, took: Option<Duration>) {
        self.under_way = self.under_way.saturating_sub(1);
        if let Some(took) = took {
            self.answers += 1;
            self.fastest = least(self.fastest, Some(took));
        }
        if now.saturating_duration_since(self.looked) >= LOOK.0 && self.answers >= LOOK.1 {
            self.look(now);
        }
    }

    fn look(&mut self, now: Instant) {
        // There were answers, or this would be no look.
        let fastest = self.fastest.take().unwrap_or_default();
        if now.saturating_duration_since(self.base_since) >= REMEMBERED {
            self.base = (None, self.base.0);
            self.base_since = now;
        }
        // Before anything is known of the peer, it is as fast as it is.
        let base = least(self.base.0, self.base.1).unwrap_or(fastest);
        self.base.0 = least(self.base.0, Some(fastest));
        if fastest > QUICK.max(base * TIMES) {
            self.most = (self.most.min(self.peak) / 2).max(BOUNDS.0);
        } else if self.peak * 10 >= self.most * 8 {
            self.most = (self.most + self.most / 8).min(BOUNDS.1);
        }
        (self.answers, self.peak, self.looked) = (0, self.under_way, now);
    }

    /// How many may be under way at present.
    pub(crate) fn most(&self) -> usize {
        self.most
    }
}

fn least(one: Option<Duration>, other: Option<Duration>) -> Option<Duration> {
    match (one, other) {
        (Some(one), Some(other)) => Some(one.min(other)),
        (one, other) => one.or(other),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use proptest::prelude::*;

    use super::*;

    /// One server that takes calls in their order, and a disk behind it that adds to each without being a queue.
    struct Peer {
        limit: Limit,
        began: Instant,
        /// What a call takes of the server, and of the disk.
        work: Duration,
        disk: Duration,
        free_at: Duration,
        /// When each of those under way came and will be answered.
        queue: VecDeque<(Duration, Duration)>,
        served: Vec<Duration>,
        refused: usize,
    }

    impl Peer {
        fn new(work: Duration, disk: Duration) -> Self {
            let began = Instant::now();
            Self {
                limit: Limit::new(began),
                began,
                work,
                disk,
                free_at: Duration::ZERO,
                queue: VecDeque::new(),
                served: Vec::new(),
                refused: 0,
            }
        }

        fn answer_until(&mut self, now: Duration) {
            while let Some(&(came, answered)) = self.queue.front()
                && answered <= now
            {
                self.queue.pop_front();
                let took = answered - came;
                self.limit.leave(self.began + answered, Some(took));
                self.served.push(took);
            }
        }

        fn ask(&mut self, now: Duration) {
            self.answer_until(now);
            if !self.limit.enter(1) {
                self.refused += 1;
                return;
            }
            self.free_at = self.free_at.max(now) + self.work;
            self.queue.push_back((now, self.free_at + self.disk));
        }

        /// Offers calls at this rate for so many seconds, from `from` on.
        fn offer(&mut self, rate: f64, from: f64, seconds: f64) {
            for number in 0..(rate * seconds) as usize {
                self.ask(Duration::from_secs_f64(from + number as f64 / rate));
            }
        }
    }

    const WORK: Duration = Duration::from_micros(100);

    #[test]
    fn what_is_offered_beyond_what_can_be_done_is_refused_and_the_rest_is_quick() {
        let mut peer = Peer::new(WORK, Duration::from_millis(1));
        peer.offer(5_000.0, 0.0, 2.0);
        assert_eq!(peer.refused, 0);
        peer.offer(15_000.0, 2.0, 20.0);
        let served = peer.served.len() as f64;
        assert!(
            served >= (5_000.0 * 2.0 + 10_000.0 * 20.0) * 0.95,
            "{served}"
        );
        // Once it has found its limit; before, the queue was what the widest limit lets in.
        let mut late: Vec<_> = peer.served.split_off(peer.served.len() / 4);
        late.sort_unstable();
        let p99 = late[late.len() * 99 / 100];
        assert!(p99 <= Duration::from_millis(80), "{p99:?}");
        assert!(peer.limit.most() < 800, "{}", peer.limit.most());
    }

    #[test]
    fn a_burst_that_is_soon_over_is_let_in() {
        let mut peer = Peer::new(WORK, Duration::from_millis(1));
        for second in 0..20 {
            let second = f64::from(second);
            peer.offer(100_000.0, second, 0.005);
            peer.offer(4_000.0, second + 0.005, 0.995);
        }
        assert_eq!(peer.refused, 0);
    }

    #[test]
    fn a_slow_disk_is_no_overload() {
        let mut peer = Peer::new(WORK, Duration::from_millis(40));
        peer.offer(8_000.0, 0.0, 30.0);
        assert_eq!(peer.refused, 0);
    }

    #[test]
    fn after_an_overload_the_limit_opens_again() {
        let mut peer = Peer::new(WORK, Duration::from_millis(1));
        peer.offer(5_000.0, 0.0, 1.0);
        peer.offer(30_000.0, 1.0, 5.0);
        let refused = peer.refused;
        assert!(refused > 0);
        peer.offer(9_000.0, 6.0, 10.0);
        assert!(peer.refused - refused < 500, "{}", peer.refused - refused);
    }

    /// So many callers who each ask again as soon as they are answered, of a peer that does one call after the other in `work`, from
    /// its very start on.
    fn closed_loop(callers: usize, work: impl Fn(usize) -> Duration, calls: usize) -> usize {
        let now = Instant::now();
        let mut limit = Limit::new(now);
        let mut waiting: VecDeque<Duration> = (0..callers).map(|_| Duration::ZERO).collect();
        let (mut clock, mut refused) = (Duration::ZERO, 0);
        for _ in 0..callers {
            refused += usize::from(!limit.enter(1));
        }
        for number in 0..calls {
            clock += work(number);
            let asked = waiting.pop_front().unwrap_or_default();
            limit.leave(now + clock, Some(clock - asked));
            refused += usize::from(!limit.enter(1));
            waiting.push_back(clock);
        }
        refused
    }

    #[test]
    fn a_moderate_number_of_callers_is_never_refused_however_slow_the_peer_is_at_its_start_or_becomes()
     {
        for callers in [1, 128, 512] {
            // 100 µs each; 5 ms each; a cold start that is a hundred times as slow as what follows; and one that turns slow.
            assert_eq!(closed_loop(callers, |_| WORK, 50_000), 0);
            assert_eq!(closed_loop(callers, |_| 50 * WORK, 10_000), 0);
            let cold = |number| if number < 500 { 100 * WORK } else { WORK };
            assert_eq!(closed_loop(callers, cold, 50_000), 0);
            let slower = |number| if number < 20_000 { WORK } else { 100 * WORK };
            assert_eq!(closed_loop(callers, slower, 40_000), 0);
        }
    }

    #[test]
    fn calls_that_come_as_one_count_as_many_and_find_room_where_one_would() {
        let mut limit = Limit::new(Instant::now());
        while limit.under_way < BOUNDS.1 - 1 {
            assert!(limit.enter(1));
        }
        assert!(limit.enter(100));
        assert!(!limit.enter(100) && !limit.enter(1));
        limit.leave_together(100);
        assert!(limit.enter(1));
        assert_eq!(limit.under_way, BOUNDS.1);
    }

    #[test]
    fn a_few_slow_calls_and_callers_who_give_up_close_nothing() {
        let now = Instant::now();
        let mut limit = Limit::new(now);
        for number in 0..5_000 {
            let at = now + Duration::from_millis(number);
            let took = match number % 10 {
                0 => Some(Duration::from_millis(1)),
                1 => None,
                _ => Some(Duration::from_secs(3)),
            };
            assert!(limit.enter(1));
            limit.leave(at, took);
        }
        assert_eq!(limit.most(), BOUNDS.1);
    }

    proptest! {
        #[test]
        fn the_limit_stays_within_its_bounds_and_nobody_is_counted_for_ever(
            steps in prop::collection::vec((any::<bool>(), 0u64..200, prop::option::of(0u64..5_000)), 0..2000),
        ) {
            let mut now = Instant::now();
            let mut limit = Limit::new(now);
            let mut inside = 0;
            for (enters, later, took) in steps {
                now += Duration::from_millis(later);
                if enters {
                    inside += usize::from(limit.enter(1));
                } else if inside > 0 {
                    inside -= 1;
                    limit.leave(now, took.map(Duration::from_millis));
                }
                prop_assert!((BOUNDS.0..=BOUNDS.1).contains(&limit.most()));
                prop_assert_eq!(limit.under_way, inside);
            }
        }
    }
}
