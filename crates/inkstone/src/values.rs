//! How values on the command line are read. Where one is not good, the error says what is.

use std::fmt::Display;
use std::net::SocketAddr;
use std::str::FromStr;
use std::time::Duration;

use contract::limits::{MAX_IMAGES, MAX_POLICY_REQUESTS};

/// A limit, or that there is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Limit<T> {
    /// No limit.
    None,
    /// At most so many.
    Most(T),
}

pub(crate) fn address(text: &str) -> Result<SocketAddr, String> {
    let parsed = text.parse();
    parsed.map_err(|_| "an address is IP:PORT, such as 127.0.0.1:8080".to_owned())
}

pub(crate) fn pictures(text: &str) -> Result<u32, String> {
    let parsed = text.parse::<u32>().ok();
    let parsed = parsed.filter(|count| (1..=MAX_IMAGES).contains(count));
    parsed.ok_or_else(|| format!("the number of pictures is from 1 to {MAX_IMAGES}"))
}

pub(crate) fn seed(text: &str) -> Result<u64, String> {
    let parsed = text.parse();
    parsed.map_err(|_| format!("a seed is a whole number from 0 to {}", u64::MAX))
}

/// The most is the model's, and the platform says it.
pub(crate) fn steps(text: &str) -> Result<u32, String> {
    let parsed = text.parse::<u32>().ok().filter(|count| *count > 0);
    parsed.ok_or_else(|| {
        "the number of steps is a whole number from 1 to what the model takes, such as 20"
            .to_owned()
    })
}

/// A policy's; what is too few or too many, the platform says.
pub(crate) fn requests(text: &str) -> Result<u32, String> {
    let parsed = text.parse();
    parsed.map_err(|_| {
        format!(
            "the number of requests is a whole number from 1 to {MAX_POLICY_REQUESTS}, such as 5"
        )
    })
}

/// How many tasks a policy allows.
pub(crate) fn tasks_limit(text: &str) -> Result<Limit<u32>, String> {
    limit(text, u32::MAX)
}

/// How much a policy allows in a day.
pub(crate) fn day_limit(text: &str) -> Result<Limit<u64>, String> {
    limit(text, u64::MAX)
}

fn limit<T: FromStr + Display>(text: &str, most: T) -> Result<Limit<T>, String> {
    if text == "none" {
        return Ok(Limit::None);
    }
    let parsed = text.parse().map(Limit::Most);
    parsed.map_err(|_| format!("a limit is a whole number from 1 to {most}, or none"))
}

pub(crate) fn time(text: &str) -> Result<Duration, String> {
    let parsed = text.parse::<::settings::Millis>();
    let parsed = parsed.map(::settings::Millis::duration);
    parsed.map_err(|_| "a time is a number and ms, s, m, h or d, such as 30s".to_owned())
}

pub(crate) fn share(text: &str) -> Result<f32, String> {
    let parsed = text.parse::<f32>().ok();
    let parsed = parsed.filter(|share| (0.0..=1.0).contains(share));
    parsed.ok_or_else(|| "a share is a number from 0 to 1".to_owned())
}

pub(crate) fn size(text: &str) -> Result<(u32, u32), String> {
    let sides = text.split_once(['x', 'X', '*']);
    let parsed = sides.and_then(|(w, h)| Some((w.parse().ok()?, h.parse().ok()?)));
    parsed.ok_or_else(|| "a size is WIDTHxHEIGHT, such as 128x128".to_owned())
}

pub(crate) fn weight(text: &str) -> Result<(String, u32), String> {
    let parts = text.split_once('=');
    let parsed = parts.and_then(|(version, w)| Some((version.to_owned(), w.parse().ok()?)));
    parsed.ok_or_else(|| "traffic is VERSION=WEIGHT, such as 2=10".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_weights_are_read() {
        assert_eq!(size("128x96"), Ok((128, 96)));
        assert!(size("128").is_err());
        assert_eq!(time("30s"), Ok(Duration::from_secs(30)));
        assert_eq!(time("0s"), Ok(Duration::ZERO));
        assert!(time("soon").is_err());
        assert_eq!(weight("2=10"), Ok(("2".to_owned(), 10)));
        assert!(weight("2").is_err());
    }

    #[test]
    fn a_limit_is_a_number_or_none() {
        assert_eq!(tasks_limit("none"), Ok(Limit::None));
        assert_eq!(day_limit("5"), Ok(Limit::Most(5)));
        assert_eq!(day_limit("4294967296"), Ok(Limit::Most(4_294_967_296)));
        for bad in ["", "-1", "many", "4294967296"] {
            let said = tasks_limit(bad).unwrap_err();
            assert!(said.contains("from 1 to 4294967295, or none"), "{said}");
        }
    }

    #[test]
    fn what_an_address_a_seed_and_a_number_of_pictures_are_is_said() {
        assert_eq!(address("127.0.0.1:1"), Ok(([127, 0, 0, 1], 1).into()));
        assert!(address("localhost:1").unwrap_err().contains("IP:PORT"));
        assert_eq!(seed("7"), Ok(7));
        assert!(seed("abc").unwrap_err().contains("from 0 to"));
        assert_eq!(pictures("10"), Ok(10));
        for bad in ["0", "11", "x"] {
            assert!(pictures(bad).is_err(), "{bad}");
        }
        assert_eq!(steps("20"), Ok(20));
        for bad in ["0", "-1", "1.5"] {
            assert!(steps(bad).unwrap_err().contains("from 1 to"), "{bad}");
        }
        assert_eq!(requests("5"), Ok(5));
        assert!(requests("-1").is_err());
    }
}
