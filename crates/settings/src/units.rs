//! Durations and sizes that carry their unit in the text.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Deserializer, de};

/// A text that is not a number with one of the known units.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{given:?} is not {expected}")]
pub struct ParseUnitError {
    given: String,
    expected: &'static str,
}

fn parse(text: &str, units: &[(&str, u64)], expected: &'static str) -> Result<u64, ParseUnitError> {
    let error = || ParseUnitError {
        given: text.to_owned(),
        expected,
    };
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let number: u64 = number.parse().map_err(|_| error())?;
    let unit = unit.trim();
    let factor = units.iter().find(|(name, _)| *name == unit).map(|u| u.1);
    factor
        .and_then(|factor| number.checked_mul(factor))
        .ok_or_else(error)
}

/// A duration in whole milliseconds, written `250ms`, `5s`, `2m`, `24h` or `7d`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Millis(Duration);

impl Millis {
    /// As a [`Duration`].
    pub fn duration(self) -> Duration {
        self.0
    }
}

impl From<Duration> for Millis {
    /// To the whole millisecond below.
    fn from(time: Duration) -> Self {
        let millis = u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        Self(Duration::from_millis(millis))
    }
}

impl FromStr for Millis {
    type Err = ParseUnitError;

    fn from_str(text: &str) -> Result<Self, ParseUnitError> {
        let units = [
            ("ms", 1),
            ("s", 1000),
            ("m", 60_000),
            ("h", 3_600_000),
            ("d", 86_400_000),
        ];
        let expected = "a duration such as 250ms, 5s, 2m, 24h or 7d";
        parse(text, &units, expected).map(|ms| Self(Duration::from_millis(ms)))
    }
}

/// A number of bytes, written `4096B`, `64KiB`, `8MiB` or `2GiB`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct ByteSize(u64);

impl ByteSize {
    /// So many bytes.
    pub const fn of(bytes: u64) -> Self {
        Self(bytes)
    }

    /// In bytes.
    pub fn bytes(self) -> u64 {
        self.0
    }

    /// So many bytes more.
    #[must_use]
    pub fn plus(self, bytes: u64) -> Self {
        Self(self.0.saturating_add(bytes))
    }
}

impl FromStr for ByteSize {
    type Err = ParseUnitError;

    fn from_str(text: &str) -> Result<Self, ParseUnitError> {
        let units = [
            ("B", 1),
            ("KiB", 1 << 10),
            ("MiB", 1 << 20),
            ("GiB", 1 << 30),
        ];
        parse(text, &units, "a size such as 4096B, 64KiB, 8MiB or 2GiB").map(Self)
    }
}

impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let units = [("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)];
        match units
            .iter()
            .find(|(_, unit)| self.0 >= *unit && self.0.is_multiple_of(*unit))
        {
            Some((name, unit)) => write!(f, "{} {name}", self.0 / unit),
            None => write!(f, "{} B", self.0),
        }
    }
}

macro_rules! deserialize_from_text {
    ($($name:ident),*) => {$(
        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = String::deserialize(deserializer)?;
                text.parse().map_err(de::Error::custom)
            }
        }
    )*};
}

deserialize_from_text!(Millis, ByteSize);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_are_read_and_nonsense_is_refused() {
        assert_eq!("2m".parse::<Millis>().unwrap().duration().as_secs(), 120);
        assert_eq!("8MiB".parse::<ByteSize>().unwrap().bytes(), 8 << 20);
        for text in [
            "",
            "5",
            "s",
            "-5s",
            "5 weeks",
            "99999999999999999999s",
            "18446744073709551615d",
        ] {
            assert!(text.parse::<Millis>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_size_is_shown_in_its_largest_whole_unit() {
        assert_eq!("8192KiB".parse::<ByteSize>().unwrap().to_string(), "8 MiB");
        assert_eq!("1500B".parse::<ByteSize>().unwrap().to_string(), "1500 B");
    }
}
