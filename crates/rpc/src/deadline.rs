//! The caller's deadline, carried from hop to hop.
//!
//! Whoever answers a request sets a deadline around its work ([`within`]); every call that the work makes then takes what
//! is left of it, less a margin for the answer's way back, as `grpc-timeout` (gRPC over HTTP/2, "Requests"). Work that
//! runs in a task of its own has no caller that waits, and so no deadline.

use std::future::Future;
use std::time::Duration;

use http::{HeaderName, HeaderValue};
use tokio::time::Instant;

/// Kept back for the answer's way, at most.
const MARGIN: Duration = Duration::from_millis(20);
/// Less than this helps nobody: the call is not made.
const LEAST: Duration = Duration::from_millis(1);

/// How much of its time a call had used up when it was sent once more, in microseconds. What it carries of others' time limits, as a
/// group of calls does, is as it was when it was sent first.
pub(crate) const SPENT: HeaderName = HeaderName::from_static("inkstone-spent-us");

tokio::task_local! {
    static DEADLINE: Instant;
    static SPENT_BEFORE: Duration;
}

/// Does `work` for a call that had used up so much before it was sent this time.
pub(crate) async fn sent_again<F: Future>(spent: Duration, work: F) -> F::Output {
    SPENT_BEFORE.scope(spent, work).await
}

/// What the call that is being answered had used up before it was sent this time.
pub(crate) fn spent() -> Duration {
    SPENT_BEFORE.try_with(|spent| *spent).unwrap_or_default()
}

/// Reads [`SPENT`]; nonsense is nothing.
pub(crate) fn parse_spent(value: &HeaderValue) -> Option<Duration> {
    let micros = value.to_str().ok()?.parse().ok()?;
    Some(Duration::from_micros(micros))
}

/// Does `work` under a deadline `limit` from now, or under that of the work around it if that comes first. It bounds the
/// calls that `work` makes; it does not end `work` itself.
pub async fn within<F: Future>(limit: Duration, work: F) -> F::Output {
    let mine = Instant::now() + limit;
    let until = DEADLINE.try_with(|d| mine.min(*d)).unwrap_or(mine);
    DEADLINE.scope(until, work).await
}

/// What is left until the deadline of the work that asks; `None` if it has none.
pub fn left() -> Option<Duration> {
    let now = Instant::now();
    DEADLINE.try_with(|d| d.saturating_duration_since(now)).ok()
}

/// How long a call may take that could take `most`, when its caller has `left`; `None` when it is too late to make it.
pub(crate) fn onward(left: Option<Duration>, most: Duration) -> Option<Duration> {
    let Some(left) = left else { return Some(most) };
    // A tenth of a short deadline, or short ones would be eaten up by the margins of the hops.
    let rest = left - MARGIN.min(left / 10);
    (rest >= LEAST).then(|| rest.min(most))
}

/// Reads gRPC's `TimeoutValue TimeoutUnit`: at most 8 digits and one of `H M S m u n`.
pub fn parse(text: &str) -> Option<Duration> {
    let split = text
        .len()
        .checked_sub(1)
        .filter(|end| text.is_char_boundary(*end))?;
    let (digits, unit) = text.split_at(split);
    let well = (1..=8).contains(&digits.len()) && digits.bytes().all(|b| b.is_ascii_digit());
    let count: u64 = well.then(|| digits.parse().ok())??;
    match unit {
        "H" => Some(Duration::from_secs(count * 3600)),
        "M" => Some(Duration::from_secs(count * 60)),
        "S" => Some(Duration::from_secs(count)),
        "m" => Some(Duration::from_millis(count)),
        "u" => Some(Duration::from_micros(count)),
        "n" => Some(Duration::from_nanos(count)),
        _ => None,
    }
}

/// Writes it, rounded down so that no hop gives more than it has.
pub(crate) fn text(limit: Duration) -> String {
    let eight_digits = |count: u128| count < 100_000_000;
    let (micros, millis) = (limit.as_micros(), limit.as_millis());
    if eight_digits(micros) {
        format!("{micros}u")
    } else if eight_digits(millis) {
        format!("{millis}m")
    } else {
        format!("{}S", limit.as_secs().min(99_999_999))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_grpc_timeout_is_read_as_the_protocol_writes_it() {
        assert_eq!(parse("100m"), Some(Duration::from_millis(100)));
        let most = Duration::from_secs(99_999_999 * 3600);
        assert_eq!(parse("99999999H"), Some(most));
        for bad in ["", "m", "1", "123456789S", "1x", "-1S", "é", "1é"] {
            assert_eq!(parse(bad), None, "{bad}");
        }
    }

    #[tokio::test]
    async fn the_nearest_deadline_holds_and_outside_of_work_there_is_none() {
        assert_eq!(left(), None);
        let (long, short) = (Duration::from_secs(60), Duration::from_secs(1));
        let seen = within(short, within(long, async { left() })).await.unwrap();
        assert!(seen <= short);
        let seen = within(long, within(short, async { left() })).await.unwrap();
        assert!(seen <= short);
    }

    proptest! {
        #[test]
        fn a_hop_never_gives_more_than_it_has(left in 0..200_000u64, most in 1..100_000u64) {
            let (left, most) = (Duration::from_millis(left), Duration::from_millis(most));
            match onward(Some(left), most) {
                Some(limit) => prop_assert!(limit <= most && limit < left && limit >= LEAST),
                None => prop_assert!(left < LEAST * 2),
            }
            prop_assert_eq!(onward(None, most), Some(most));
        }

        #[test]
        fn what_is_written_is_read_as_no_more(micros in 0..u64::MAX / 2) {
            let limit = Duration::from_micros(micros);
            let read = parse(&text(limit)).unwrap();
            prop_assert!(read <= limit);
        }
    }
}
