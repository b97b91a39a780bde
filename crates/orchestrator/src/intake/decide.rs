//! What becomes of a submission that was not accepted: it waits, or it is refused. Pure.

use std::time::Duration;

use contract::{ErrorCode, Failure};

/// The shortest and the longest pause of what waits for a part of the platform; it grows with what was waited.
const PAUSES: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));
/// The longest pause of what waits for a place among its tenant's tasks: to look is cheap, and a place that nobody takes is lost.
const LOOK_AGAIN: Duration = Duration::from_secs(2);
/// Tries that a submission has whatever its age: after an outage, all that waited is old.
const TRIES: u64 = 10;

/// What is to be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Then {
    /// Leave it in the stream, and come again after this.
    Wait(Duration),
    /// Tell its producer, and take it out.
    Refuse,
}

/// Whether a caller is over something that it may: others of its own are before it.
pub(crate) fn is_limit(code: ErrorCode) -> bool {
    matches!(
        code,
        ErrorCode::RateLimited | ErrorCode::TooManyTasks | ErrorCode::QuotaExceeded
    )
}

/// Decides: `age` is for how long the broker has had it, `tries` how often it was tried, `max_wait` how long it may wait.
pub(crate) fn then(failure: &Failure, age: Duration, tries: u64, max_wait: Duration) -> Then {
    let wait = match failure.code {
        ErrorCode::TooManyTasks => failure.retry_after.unwrap_or(PAUSES.0).min(LOOK_AGAIN),
        code if is_limit(code) => failure.retry_after.unwrap_or(PAUSES.0),
        ErrorCode::Unavailable | ErrorCode::DeadlineExceeded | ErrorCode::Internal => {
            let pause = (age / 4).clamp(PAUSES.0, PAUSES.1);
            pause.max(failure.retry_after.unwrap_or_default())
        }
        // Nothing changes by itself.
        _ => return Then::Refuse,
    };
    // A limit of a day is not waited for, and neither is anything for longer than a producer was promised.
    let too_late = age.saturating_add(wait) > max_wait && tries > TRIES;
    if wait > max_wait || too_late {
        return Then::Refuse;
    }
    Then::Wait(wait)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);

    fn limited(seconds: u64) -> Failure {
        Failure {
            retry_after: Some(Duration::from_secs(seconds)),
            ..Failure::new(ErrorCode::RateLimited, "over the limit")
        }
    }

    #[test]
    fn what_no_time_mends_is_refused_at_once() {
        for &code in ErrorCode::ALL {
            let waits = matches!(
                code,
                ErrorCode::RateLimited
                    | ErrorCode::TooManyTasks
                    | ErrorCode::QuotaExceeded
                    | ErrorCode::Unavailable
                    | ErrorCode::DeadlineExceeded
                    | ErrorCode::Internal
            );
            let then = then(&Failure::new(code, "no"), Duration::ZERO, 1, HOUR);
            assert_eq!(then != Then::Refuse, waits, "{code}");
        }
    }

    #[test]
    fn over_a_limit_it_waits_for_as_long_as_the_limit_says() {
        let waits = Then::Wait(Duration::from_secs(3));
        assert_eq!(then(&limited(3), Duration::ZERO, 1, HOUR), waits);
        // A limit of the day is over at midnight: that is told, not waited for.
        assert_eq!(
            then(&limited(8 * 3600), Duration::ZERO, 1, HOUR),
            Then::Refuse
        );
    }

    #[test]
    fn for_a_place_it_is_looked_again_soon_however_long_a_caller_would_be_told_to_wait() {
        let full = |seconds| Failure {
            code: ErrorCode::TooManyTasks,
            ..limited(seconds)
        };
        let waits = |seconds| Then::Wait(Duration::from_secs(seconds));
        assert_eq!(then(&full(1), Duration::ZERO, 1, HOUR), waits(1));
        assert_eq!(then(&full(600), Duration::ZERO, 1, HOUR), waits(2));
        let minute = Duration::from_secs(60);
        assert_eq!(then(&full(600), Duration::ZERO, 1, minute), waits(2));
    }

    #[test]
    fn after_an_outage_the_old_ones_are_tried_too() {
        let down = Failure::unavailable("not just now", Duration::from_secs(5));
        let waits = |tries| then(&down, 2 * HOUR, tries, HOUR) != Then::Refuse;
        assert!(waits(1) && waits(10) && !waits(11));
    }

    proptest! {
        #[test]
        fn nothing_waits_for_ever(code in prop::sample::select(ErrorCode::ALL), wait in 0u64..100_000) {
            let failure = Failure {
                retry_after: Some(Duration::from_millis(wait)),
                ..Failure::new(code, "no")
            };
            let (mut age, mut tries) = (Duration::ZERO, 1);
            while let Then::Wait(wait) = then(&failure, age, tries, HOUR) {
                prop_assert!(wait <= HOUR);
                age += wait;
                tries += 1;
                prop_assert!(tries < 200_000_000);
                if wait.is_zero() {
                    // Time passes in any case.
                    age += Duration::from_secs(1);
                }
            }
        }
    }
}
