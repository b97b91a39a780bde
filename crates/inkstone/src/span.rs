//! How long something takes, as people say it.

use std::time::Duration;

const MINUTE: u64 = 60;
const HOUR: u64 = 60 * MINUTE;
const DAY: u64 = 24 * HOUR;

/// `4 s`, `1 min 5 s`, `1 h 2 min`, `2 d 3 h`: two units at most. Below an hour it is rounded up to seconds, so that who waits for so long
/// has waited long enough; above, to what is nearest.
pub(crate) fn in_words(span: Duration) -> String {
    let begun = u64::from(span.subsec_nanos() > 0);
    let seconds = span.as_secs().saturating_add(begun);
    if seconds < HOUR {
        return units((seconds / MINUTE, "min"), (seconds % MINUTE, "s"));
    }
    let minutes = rounded(seconds, MINUTE);
    if minutes < DAY / MINUTE {
        return units((minutes / 60, "h"), (minutes % 60, "min"));
    }
    let hours = rounded(seconds, HOUR);
    units((hours / 24, "d"), (hours % 24, "h"))
}

fn rounded(seconds: u64, unit: u64) -> u64 {
    seconds / unit + u64::from(seconds % unit >= unit / 2)
}

/// Without what is nothing.
fn units(large: (u64, &str), small: (u64, &str)) -> String {
    let ((many, large), (few, small)) = (large, small);
    match (many, few) {
        (0, few) => format!("{few} {small}"),
        (many, 0) => format!("{many} {large}"),
        (many, few) => format!("{many} {large} {few} {small}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_span_is_told_in_two_units_at_most() {
        for (seconds, words) in [
            (0, "0 s"),
            (59, "59 s"),
            (60, "1 min"),
            (65, "1 min 5 s"),
            (3599, "59 min 59 s"),
            (3600, "1 h"),
            (3725, "1 h 2 min"),
            (86_369, "23 h 59 min"),
            (86_370, "1 d"),
            (2 * 86_400 + 3 * 3600, "2 d 3 h"),
        ] {
            assert_eq!(in_words(Duration::from_secs(seconds)), words);
        }
        assert_eq!(in_words(Duration::from_millis(200)), "1 s");
        assert_eq!(in_words(Duration::from_millis(59_001)), "1 min");
        assert_eq!(in_words(Duration::from_millis(3_599_500)), "1 h");
        assert!(in_words(Duration::MAX).ends_with(" h"));
    }
}
