//! The wall clock that decisions and records go by.
//!
//! Machines' clocks disagree. So that tests can have processes that disagree, too, a process may be told by how much its own is wrong
//! (setting `process.clock_offset`); everything that reads the time of day reads it here.

use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, SystemTime};

/// The most that a clock may be told to be wrong by, in seconds.
const MOST: i64 = 24 * 3600;

static OFFSET_SECONDS: AtomicI64 = AtomicI64::new(0);

/// Says by how many seconds this process's clock is wrong: ahead, or behind where negative. A day at most; more counts as a day.
pub fn set_offset(seconds: i64) {
    OFFSET_SECONDS.store(seconds.clamp(-MOST, MOST), Ordering::Relaxed);
}

/// By how many seconds it is wrong.
pub(crate) fn offset() -> i64 {
    OFFSET_SECONDS.load(Ordering::Relaxed)
}

/// The present.
pub fn system_time() -> SystemTime {
    shifted(SystemTime::now(), offset())
}

/// The present.
pub fn timestamp() -> jiff::Timestamp {
    // A day before or after the present is within what both types hold.
    jiff::Timestamp::try_from(system_time()).unwrap_or_else(|_| jiff::Timestamp::now())
}

fn shifted(time: SystemTime, seconds: i64) -> SystemTime {
    let by = Duration::from_secs(seconds.unsigned_abs());
    let moved = if seconds < 0 {
        time.checked_sub(by)
    } else {
        time.checked_add(by)
    };
    moved.unwrap_or(time)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_that_is_wrong_is_ahead_or_behind() {
        let now = SystemTime::now();
        let by = |seconds| shifted(now, seconds);
        assert_eq!(by(0), now);
        assert_eq!(
            by(30).duration_since(now).ok(),
            Some(Duration::from_secs(30))
        );
        assert_eq!(
            now.duration_since(by(-30)).ok(),
            Some(Duration::from_secs(30))
        );
    }
}
