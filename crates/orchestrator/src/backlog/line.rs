//! One queue of this orchestrator's, as far as it is in memory: where reading goes on, the next few tasks, those that are being handed
//! over. Pure.

use std::collections::{BTreeSet, VecDeque};
use std::time::{Duration, Instant};

use task_log::Queue;

use super::expected::Expected;
use super::ladder::Ladder;
use crate::cost::Size;
use crate::schedule::Version;

pub(crate) use super::head::Waiting;

/// One queue.
#[derive(Debug)]
pub(crate) struct Line {
    pub(crate) queue: Queue,
    /// Where reading goes on: everything before it is in `heads`, is being handed over, or is done with.
    pub(crate) next: u64,
    /// In order of their sequences.
    pub(crate) heads: VecDeque<Waiting>,
    /// Being handed over.
    under_way: BTreeSet<u64>,
    /// There may be more from `next` on.
    pub(crate) more: bool,
    /// How many there are from `next` on, as far as is known.
    pub(crate) behind: u64,
    /// Being read just now.
    pub(crate) reading: bool,
    /// In line to be read.
    pub(crate) queued: bool,
    /// None of its heads can run: their versions have no room.
    pub(crate) stuck: bool,
    /// A submission was heard of while it was read.
    heard: bool,
    /// What was heard of and not found.
    expected: Expected,
    /// When reading last found its end.
    pub(crate) looked: Instant,
    /// Not before then, because the last attempt failed.
    pub(crate) not_before: Option<Instant>,
    /// It is not read before then, because not all that was heard of was found. Its heads go meanwhile.
    pub(crate) rests_until: Option<Instant>,
    /// The mean cost of those that were read last; 0 before any was.
    usual: u64,
    /// Submissions that have gone by, for the ladder.
    passed: u64,
    pub(crate) ladder: Ladder,
}

impl Line {
    /// A queue of which everything before `cursor` is done with, and nothing else is known.
    pub(crate) fn new(queue: Queue, cursor: u64, now: Instant) -> Self {
        let mut ladder = Ladder::default();
        ladder.note(cursor, 0);
        Self {
            queue,
            next: cursor,
            heads: VecDeque::new(),
            under_way: BTreeSet::new(),
            more: true,
            behind: 0,
            reading: false,
            queued: false,
            stuck: false,
            heard: false,
            expected: Expected::new(now),
            looked: now,
            not_before: None,
            rests_until: None,
            usual: 0,
            passed: 0,
            ladder,
        }
    }

    /// Every task whose submission lies before this was handed over or has ended.
    pub(crate) fn cursor(&self) -> u64 {
        let head = self.heads.front().map(|head| head.sequence);
        let under_way = self.under_way.first().copied();
        [head, under_way]
            .into_iter()
            .flatten()
            .fold(self.next, u64::min)
    }

    /// How many wait that are not being handed over just now, as far as is known.
    pub(crate) fn waiting(&self) -> u64 {
        self.heads.len() as u64 + self.behind
    }

    /// Of the heads; where there is none, of those that were there last. 0: none was ever seen.
    pub(crate) fn mean_cost(&self) -> u64 {
        mean_cost(&self.heads).unwrap_or(self.usual)
    }

    /// Tells anew what the heads cost.
    pub(crate) fn cost_anew(&mut self, cost: impl Fn(&Version, Size) -> u64) {
        for head in &mut self.heads {
            if let Some(size) = head.size {
                head.cost = cost(&head.version, size);
            }
        }
        self.usual = self.mean_cost();
    }

    pub(crate) fn is_active(&self) -> bool {
        self.more || !self.heads.is_empty() || !self.under_way.is_empty()
    }

    pub(crate) fn is_settled(&self) -> bool {
        self.under_way.is_empty()
    }

    /// So many submissions were stored.
    pub(crate) fn hear(&mut self, submissions: u64, now: Instant) {
        self.behind = self.behind.saturating_add(submissions);
        self.more = true;
        self.heard = self.reading;
        // If it rests for what it has not found: this may be there.
        self.rests_until = None;
        self.expect(submissions, now);
    }

    /// So many will be found, or were just before somebody told of them.
    pub(crate) fn expect(&mut self, submissions: u64, now: Instant) {
        self.expected.expect(submissions, now);
    }

    /// Whether to read on now, and how many to ask for.
    pub(crate) fn wants(&self, cap: usize, now: Instant) -> Option<usize> {
        let over = |until: Option<Instant>| until.is_none_or(|at| at <= now);
        let idle = !self.reading && over(self.not_before) && over(self.rests_until);
        let low = self.heads.len() * 2 <= cap && self.heads.len() < cap;
        (idle && self.more && low).then(|| cap - self.heads.len())
    }

    pub(crate) fn begin_reading(&mut self) {
        (self.reading, self.heard) = (true, false);
    }

    /// What was read: `taken` in order, up to before `next`; `seen` were there, and `behind` are behind them.
    pub(crate) fn read(
        &mut self,
        taken: Vec<Waiting>,
        seen: u64,
        next: u64,
        behind: u64,
        now: Instant,
    ) {
        self.heads.extend(taken);
        self.usual = self.mean_cost();
        self.passed += seen;
        self.next = self.next.max(next);
        self.ladder.note(self.next, self.passed);
        self.expected.see(seen, now);
        // What is known to lie behind is read at once.
        let goes_on = self.heard || behind > 0;
        let lag = if goes_on { None } else { self.expected.rest() };
        let none_taken = seen > 0 && self.heads.is_empty();
        self.more = behind > 0 || self.heard || lag.is_some() || none_taken;
        self.behind = behind;
        (self.reading, self.heard) = (false, false);
        self.looked = now;
        self.not_before = None;
        self.rests_until = lag.map(|lag| now + lag);
    }

    /// Reads from the beginning again when the log, whose last sequence was `last` at some time after `began`, ends before where reading goes
    /// on: it lost its end with the power, or was made anew. True when that is so. What was handed over is not handed over twice.
    pub(crate) fn rewind(&mut self, last: u64, began: Instant) -> bool {
        let idle = self.heads.is_empty() && self.under_way.is_empty() && !self.reading;
        if !idle || self.looked >= began || self.next <= last + 1 {
            return false;
        }
        (self.next, self.passed, self.more) = (1, 0, true);
        self.ladder = Ladder::default();
        self.ladder.note(1, 0);
        true
    }

    /// Reading failed: again later.
    pub(crate) fn not_read(&mut self, again: Instant) {
        (self.reading, self.heard) = (false, false);
        self.more = true;
        self.not_before = Some(again);
    }

    /// Takes a head out to be handed over.
    pub(crate) fn take(&mut self, sequence: u64) -> Option<Waiting> {
        let at = self.heads.binary_search_by_key(&sequence, |h| h.sequence);
        let head = self.heads.remove(at.ok()?)?;
        self.under_way.insert(sequence);
        Some(head)
    }

    /// It was handed over, or needs not be.
    pub(crate) fn done(&mut self, sequence: u64) {
        self.under_way.remove(&sequence);
        self.ladder.forget_before(self.cursor());
    }

    /// It was not handed over: it is a head again.
    pub(crate) fn put_back(&mut self, head: Waiting, again: Instant) {
        self.under_way.remove(&head.sequence);
        let at = self
            .heads
            .partition_point(|other| other.sequence < head.sequence);
        self.heads.insert(at, head);
        self.not_before = Some(again);
    }

    /// How many of the queue's tasks wait before the one that lies at `sequence`; `None` if it waits no more.
    pub(crate) fn position(&self, sequence: u64) -> Option<u64> {
        if sequence < self.cursor() {
            return None;
        }
        if sequence < self.next {
            let before = |head: &&Waiting| head.sequence < sequence;
            return Some(self.heads.iter().filter(before).count() as u64);
        }
        let known = self.passed + self.behind;
        let ordinal = self.ladder.ordinal_up_to(sequence, known)?;
        Some(self.heads.len() as u64 + ordinal.saturating_sub(self.passed))
    }

    /// All that are known of lie before `sequence` of the log.
    pub(crate) fn note_end(&mut self, sequence: u64) {
        if sequence > self.next && !self.reading {
            self.ladder.note(sequence, self.passed + self.behind);
        }
    }
}

fn mean_cost(heads: &VecDeque<Waiting>) -> Option<u64> {
    let sum: u64 = heads.iter().map(|head| head.cost).sum();
    let mean = sum.checked_div(heads.len() as u64)?;
    Some(mean.max(1))
}

/// How long a queue rests after something about it failed.
pub(crate) const REST: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::expected::{LAGS, WORD};
    use super::super::head::tests::waiting;
    use super::*;

    fn line() -> Line {
        let queue = Queue {
            lane: "standard-image".parse().unwrap(),
            tenant: "acme".parse().unwrap(),
        };
        Line::new(queue, 1, Instant::now())
    }

    proptest! {
        /// Steps: read some, hand one over, have one stored, have one fail; against a list of what is not done with.
        #[test]
        fn the_cursor_never_passes_what_is_not_done_with(
            steps in prop::collection::vec((0u8..4, 0usize..8), 0..200),
        ) {
            let (mut line, now) = (line(), Instant::now());
            let mut open = BTreeSet::new();
            let mut under_way: Vec<Waiting> = Vec::new();
            let mut last = line.cursor();
            for (step, number) in steps {
                match step {
                    0 => {
                        let from = line.next;
                        line.begin_reading();
                        let new: Vec<u64> = (0..number as u64).map(|n| from + 3 * n).collect();
                        open.extend(&new);
                        let next = new.last().map_or(from, |last| last + 1);
                        let heads = new.iter().copied().map(waiting).collect();
                        line.read(heads, new.len() as u64, next, 0, now);
                    }
                    1 => {
                        let at = number % line.heads.len().max(1);
                        if let Some(head) = line.heads.get(at).map(|head| head.sequence) {
                            under_way.push(line.take(head).unwrap());
                        }
                    }
                    2 if !under_way.is_empty() => {
                        let head = under_way.swap_remove(number % under_way.len());
                        open.remove(&head.sequence);
                        line.done(head.sequence);
                    }
                    3 if !under_way.is_empty() => {
                        let head = under_way.swap_remove(number % under_way.len());
                        line.put_back(head, now);
                    }
                    _ => {}
                }
                let first = open.first().copied().unwrap_or(line.next);
                prop_assert_eq!(line.cursor(), first);
                prop_assert!(line.cursor() >= last);
                last = line.cursor();
                prop_assert!(line.heads.iter().is_sorted_by_key(|head| head.sequence));
                let waiting = line.waiting() + under_way.len() as u64;
                prop_assert_eq!(waiting, open.len() as u64);
            }
        }
    }

    #[test]
    fn what_is_heard_of_while_it_is_read_is_looked_for_again() {
        let (mut line, now) = (line(), Instant::now());
        line.begin_reading();
        line.hear(1, now);
        line.read(Vec::new(), 0, 1, 0, now);
        assert_eq!(line.wants(8, now), Some(8));
        line.begin_reading();
        line.read(Vec::new(), 0, 1, 0, now);
        assert_eq!(line.wants(8, now), None);
    }

    /// Reads `found` of a queue without more behind them, and hands them over; with when it is read again.
    fn look(line: &mut Line, found: &[u64], now: Instant) -> Option<Duration> {
        line.begin_reading();
        let heads = found.iter().copied().map(waiting).collect();
        let next = found.last().map_or(line.next, |last| last + 1);
        line.read(heads, found.len() as u64, next, 0, now);
        for sequence in found {
            line.take(*sequence).unwrap();
            line.done(*sequence);
        }
        let again = |at: Instant| at.saturating_duration_since(now);
        line.more
            .then(|| line.rests_until.map_or(Duration::ZERO, again))
    }

    #[test]
    fn what_was_heard_of_and_is_not_found_is_looked_for_a_few_times() {
        let (mut line, now) = (line(), Instant::now());
        assert_eq!(look(&mut line, &[], now), None, "nothing was heard of");
        line.hear(1, now);
        for lag in LAGS {
            assert_eq!(look(&mut line, &[], now), Some(lag));
            assert!(line.is_active());
            assert_eq!(line.wants(8, now), None);
            assert_eq!(line.wants(8, now + lag), Some(8));
        }
        assert_eq!(look(&mut line, &[], now), None);
        assert!(!line.is_active());
        // Neither what comes later nor what nobody told of is missed for it.
        line.hear(2, now);
        assert_eq!(look(&mut line, &[10], now), Some(LAGS[0]));
        assert_eq!(look(&mut line, &[11, 12], now), None);
    }

    #[test]
    fn what_was_read_before_it_was_heard_of_is_not_looked_for_again() {
        let (mut line, now) = (line(), Instant::now());
        line.hear(1, now);
        assert_eq!(look(&mut line, &[10, 11], now), None);
        line.hear(1, now + WORD / 2);
        assert_eq!(look(&mut line, &[], now), None);
        // Long after it, that would be another one.
        line.hear(1, now);
        assert_eq!(look(&mut line, &[12, 13], now), None);
        line.hear(1, now + WORD);
        assert_eq!(look(&mut line, &[], now), Some(LAGS[0]));
    }

    #[test]
    fn a_word_ends_the_rest_of_what_was_not_found_and_no_other() {
        let (mut line, now) = (line(), Instant::now());
        line.hear(1, now);
        look(&mut line, &[], now);
        assert_eq!(line.wants(8, now), None);
        line.hear(1, now);
        assert_eq!(line.wants(8, now), Some(8));
        // What it has goes meanwhile.
        line.read(vec![waiting(10)], 1, 11, 0, now);
        assert!(line.rests_until.is_some() && line.not_before.is_none());
        // After an error it waits for as long as it was told to.
        line.not_before = Some(now + LAGS[0]);
        line.hear(1, now);
        assert_eq!(line.wants(8, now), None);
    }

    #[test]
    fn what_was_heard_of_before_a_queue_was_open_is_looked_for_too() {
        let (mut line, now) = (line(), Instant::now());
        line.expect(1, now);
        assert_eq!((line.behind, line.wants(8, now)), (0, Some(8)));
        assert_eq!(look(&mut line, &[], now), Some(LAGS[0]));
        assert_eq!(look(&mut line, &[10], now), None);
    }

    #[test]
    fn a_queue_of_a_log_that_was_made_anew_is_read_from_the_beginning() {
        let start = Instant::now();
        let later = start + Duration::from_secs(1);
        let mut line = line();
        line.begin_reading();
        line.read(vec![waiting(10)], 1, 11, 0, start);
        // What is held is done first.
        assert!(!line.rewind(3, later));
        line.take(10).unwrap();
        line.done(10);
        // The log may have had its last message since it was looked at.
        assert!(!line.rewind(3, start));
        assert!(!line.rewind(10, later));
        assert!(line.rewind(3, later));
        assert_eq!((line.next, line.cursor()), (1, 1));
        assert!(line.wants(8, later).is_some());
    }

    #[test]
    fn a_place_in_the_queue_is_told_from_what_lies_before() {
        let (mut line, now) = (line(), Instant::now());
        line.begin_reading();
        line.read(vec![waiting(10), waiting(20)], 2, 21, 98, now);
        line.note_end(1000);
        assert_eq!(line.position(10), Some(0));
        assert_eq!(line.position(20), Some(1));
        assert_eq!(line.position(1000), Some(100));
        assert_eq!(line.position(5), None);
        let middle = line.position(500).unwrap();
        assert!((40..60).contains(&middle), "{middle}");
    }

    #[test]
    fn who_came_in_a_burst_a_moment_ago_is_told_of_those_before_it() {
        let (mut line, now) = (line(), Instant::now());
        line.begin_reading();
        line.read(vec![waiting(10), waiting(20)], 2, 21, 0, now);
        // Nobody has looked at the log's end since.
        line.hear(100, now);
        assert_eq!(line.waiting(), 102);
        assert_eq!(line.position(21), Some(2));
        assert_eq!(line.position(31), Some(12));
        assert_eq!(line.position(5000), Some(101));
    }

    #[test]
    fn a_queue_without_heads_costs_what_its_last_ones_did() {
        let (mut line, now) = (line(), Instant::now());
        assert_eq!(line.mean_cost(), 0);
        line.begin_reading();
        let head = Waiting {
            cost: 7,
            ..waiting(10)
        };
        line.read(vec![head], 1, 11, 0, now);
        line.take(10).unwrap();
        line.done(10);
        assert_eq!(line.mean_cost(), 7);
    }
}
