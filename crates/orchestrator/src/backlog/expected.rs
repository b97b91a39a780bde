//! What was heard of a queue against what was seen when it was read: whether something is missing, and when to look for it again.
//! Pure.

use std::time::{Duration, Instant};

/// After how long a queue is read again that ends before what was heard of: a replica that lags may have answered. Some of it may also have been
/// read before it was heard of, so no more than these.
pub(super) const LAGS: [Duration; 3] = [
    Duration::from_millis(20),
    Duration::from_millis(40),
    Duration::from_millis(80),
];
/// How long after it was read word may come of what was read before it was heard of.
pub(super) const WORD: Duration = Duration::from_millis(200);

/// Submissions of a queue that should be found.
#[derive(Debug)]
pub(super) struct Expected {
    /// How many were read that nobody has told of so far, and when the last of them were.
    untold: u64,
    read_ahead: Instant,
    /// How many were heard of and not seen so far …
    unseen: u64,
    /// … and how often they were looked for in vain since.
    looks: usize,
}

impl Expected {
    /// None so far.
    pub(super) fn new(now: Instant) -> Self {
        Self {
            untold: 0,
            read_ahead: now,
            unseen: 0,
            looks: 0,
        }
    }

    /// So many will be found, or were just before somebody told of them.
    pub(super) fn expect(&mut self, submissions: u64, now: Instant) {
        if now.saturating_duration_since(self.read_ahead) >= WORD {
            self.untold = 0;
        }
        let known = self.untold.min(submissions);
        self.untold -= known;
        if self.unseen == 0 {
            self.looks = 0;
        }
        self.unseen = self.unseen.saturating_add(submissions - known);
    }

    /// So many were there when the queue was read.
    pub(super) fn see(&mut self, seen: u64, now: Instant) {
        let ahead = seen.saturating_sub(self.unseen);
        if ahead > 0 {
            self.untold = self.untold.saturating_add(ahead);
            self.read_ahead = now;
        }
        self.unseen = self.unseen.saturating_sub(seen);
    }

    /// How long to rest before what is missing where the queue seemed to end is looked for again; `None` where nothing is, or it was looked
    /// for often enough.
    pub(super) fn rest(&mut self) -> Option<Duration> {
        if self.unseen == 0 {
            return None;
        }
        let lag = LAGS.get(self.looks).copied();
        self.looks += 1;
        if lag.is_none() {
            self.unseen = 0;
        }
        lag
    }
}
