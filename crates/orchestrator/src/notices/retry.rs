//! When a webhook that did not take its message is told again. Pure.
//!
//! The time since the task's end says how often it was told: attempts are not counted, so an orchestrator that dies in between, or a turn
//! that had to be waited for, costs none.

use std::time::Duration;

use http::StatusCode;

/// A receiver that asks to be left alone is, for as long as this.
const LONGEST_ASKED: Duration = Duration::from_secs(3600);
/// Of each pause, so much more at random (in percent): those that failed together do not come back together.
const JITTER_PERCENT: u32 = 20;

/// What a receiver's answer means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Answer {
    /// It has it.
    Taken,
    /// It wants no more of it.
    Gone,
    /// It did not take it now.
    NotNow,
}

/// Reads a status. Redirects are not followed, so they are no answer.
pub(crate) fn read(status: StatusCode) -> Answer {
    match status {
        status if status.is_success() => Answer::Taken,
        StatusCode::GONE => Answer::Gone,
        _ => Answer::NotNow,
    }
}

/// How long to wait at this age, or `None` when it is time to give up. `pauses` are those after the first, the second … attempt; the last
/// goes on. `asked` is how long the receiver wants to be left alone, `random` 0 to 255.
pub(crate) fn pause(
    age: Duration,
    pauses: &[Duration],
    give_up_after: Duration,
    asked: Option<Duration>,
    random: u8,
) -> Option<Duration> {
    let mut until = Duration::ZERO;
    let at = pauses.iter().find(|pause| {
        until = until.saturating_add(**pause);
        age < until
    });
    let pause = *at.or(pauses.last())?;
    let asked = asked.unwrap_or_default().min(LONGEST_ASKED);
    let pause = pause.max(asked);
    if age.saturating_add(pause) > give_up_after {
        return None;
    }
    Some(pause + pause * JITTER_PERCENT / 100 * u32::from(random) / 255)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const DAY: Duration = Duration::from_secs(86400);

    fn seconds(seconds: &[u64]) -> Vec<Duration> {
        seconds.iter().copied().map(Duration::from_secs).collect()
    }

    /// The pauses from the first attempt until it is given up.
    fn schedule(pauses: &[Duration], random: u8) -> Vec<Duration> {
        let (mut age, mut all) = (Duration::ZERO, Vec::new());
        while let Some(wait) = pause(age, pauses, DAY, None, random) {
            age += wait;
            all.push(wait);
        }
        all
    }

    #[test]
    fn pauses_grow_and_the_last_goes_on_until_it_is_given_up() {
        let pauses = seconds(&[5, 30, 120, 600, 3600]);
        for random in [0, 255] {
            let all = schedule(&pauses, random);
            let first: Vec<_> = all[..5].iter().zip(&pauses).collect();
            for (wait, pause) in first {
                assert!((*pause..=*pause * 12 / 10).contains(wait), "{wait:?}");
            }
            assert!(all.len() > 20 && all.iter().sum::<Duration>() <= DAY * 12 / 10);
        }
    }

    #[test]
    fn a_receiver_that_asks_for_time_has_it_within_reason() {
        let pauses = seconds(&[5]);
        let asked = |seconds| {
            let asked = Some(Duration::from_secs(seconds));
            pause(Duration::ZERO, &pauses, DAY, asked, 0).unwrap()
        };
        assert_eq!(asked(1), pauses[0]);
        assert_eq!(asked(60), Duration::from_secs(60));
        assert_eq!(asked(100_000), LONGEST_ASKED);
    }

    #[test]
    fn only_a_success_is_one_and_gone_is_the_end() {
        for (status, answer) in [
            (200, Answer::Taken),
            (204, Answer::Taken),
            (302, Answer::NotNow),
            (404, Answer::NotNow),
            (410, Answer::Gone),
            (429, Answer::NotNow),
            (500, Answer::NotNow),
        ] {
            assert_eq!(
                read(StatusCode::from_u16(status).unwrap()),
                answer,
                "{status}"
            );
        }
    }

    proptest! {
        #[test]
        fn every_schedule_comes_to_an_end_within_its_time(
            pauses in prop::collection::vec(1u64..100_000, 1..8), random: u8,
        ) {
            let all = schedule(&seconds(&pauses), random);
            prop_assert!(all.iter().sum::<Duration>() <= DAY * 12 / 10);
        }

        #[test]
        fn whenever_it_is_looked_at_the_pause_is_one_of_the_list(
            age in 0u64..90_000, pauses in prop::collection::vec(1u64..100_000, 1..8),
        ) {
            let pauses = seconds(&pauses);
            if let Some(wait) = pause(Duration::from_secs(age), &pauses, DAY, None, 0) {
                prop_assert!(pauses.contains(&wait));
            }
        }
    }
}
