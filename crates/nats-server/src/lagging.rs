//! A replica that lags, for tests of what its word is worth.
//!
//! How far one of a cluster lags nobody can tell it. A mirror of a stream may answer the stream's direct gets in its place, as replicas do, and
//! what it hears of can be chosen.

use std::io;
use std::time::{Duration, Instant};

use crate::NatsServer;
use crate::api::{Api, LIMIT, unexpected};

const POLL: Duration = Duration::from_millis(20);

impl NatsServer {
    /// Has direct gets of `stream`, which keeps one event a subject, answered by a replica that hears of events at subjects which `filter` matches and
    /// of no others. It has those when this returns; there must be one at least. The leader answers as before. For a server in the clear and
    /// without users.
    ///
    /// # Errors
    /// When the server refuses or does not answer in time.
    pub fn lag(&self, stream: &str, filter: &str) -> io::Result<()> {
        let mut api = Api::connect(self)?;
        let mirror = mirror_of(stream);
        let config = format!(
            r#"{{"name":"{mirror}","mirror":{{"name":"{stream}","filter_subject":"{filter}"}},"mirror_direct":true,"storage":"memory"}}"#
        );
        api.ask(&format!("STREAM.CREATE.{mirror}"), &config)?;
        let matching = format!(r#"{{"subjects_filter":"{filter}"}}"#);
        let info = api.ask(&format!("STREAM.INFO.{stream}"), &matching)?;
        let wanted = number(&info, "total")?;
        let deadline = Instant::now() + LIMIT;
        loop {
            let heard = api.ask(&format!("STREAM.INFO.{mirror}"), "")?;
            if number(&heard, "messages")? >= wanted.max(1) {
                break;
            }
            if Instant::now() >= deadline {
                return Err(io::Error::other(format!(
                    "the mirror has not heard of {wanted}: {heard}"
                )));
            }
            std::thread::sleep(POLL);
        }
        // The mirror alone answers from now on.
        api.set_direct(stream, &info, false)
    }

    /// Has direct gets of a stream answered as before it [lagged](Self::lag).
    ///
    /// # Errors
    /// As for [`lag`](Self::lag).
    pub fn catch_up(&self, stream: &str) -> io::Result<()> {
        let mut api = Api::connect(self)?;
        let info = api.ask(&format!("STREAM.INFO.{stream}"), "")?;
        api.set_direct(stream, &info, true)?;
        api.ask(&format!("STREAM.DELETE.{}", mirror_of(stream)), "")?;
        Ok(())
    }
}

fn mirror_of(stream: &str) -> String {
    format!("LAGS_{stream}")
}

/// The first number of this name in an answer.
fn number(answer: &str, name: &str) -> io::Result<u64> {
    let rest = answer.split_once(&format!("\"{name}\":"));
    let (_, rest) = rest.ok_or_else(|| unexpected(answer))?;
    let end = rest.find(|c: char| !c.is_ascii_digit());
    let digits = &rest[..end.unwrap_or(rest.len())];
    digits.parse().map_err(|_| unexpected(answer))
}

impl Api {
    /// Whether a stream, of which this `info` was told, answers direct gets itself.
    fn set_direct(&mut self, stream: &str, info: &str, answers: bool) -> io::Result<()> {
        let config = info
            .split_once(r#""config":"#)
            .and_then(|(_, rest)| rest.split_once(r#","created":"#));
        let (config, _) = config.ok_or_else(|| unexpected(info))?;
        let [before, after] = [!answers, answers].map(|is| format!(r#""allow_direct":{is}"#));
        if !config.contains(&before) {
            return Err(unexpected(config));
        }
        let config = config.replace(&before, &after);
        self.ask(&format!("STREAM.UPDATE.{stream}"), &config)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_is_found_in_an_answer_by_its_name() {
        let answer = r#"{"total":12,"state":{"messages":3}}"#;
        assert_eq!(number(answer, "total").unwrap(), 12);
        assert_eq!(number(answer, "messages").unwrap(), 3);
        assert!(number(answer, "bytes").is_err());
    }
}
