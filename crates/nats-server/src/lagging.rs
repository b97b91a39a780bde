//! A replica that lags, for tests of what its word is worth.
//!
//! How far one of a cluster lags nobody can tell it. A mirror of a stream may answer the stream's direct gets in its place, as replicas do, and
//! what it hears of can be chosen.

use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use crate::NatsServer;

/// How long the server may take to answer, and the mirror to hear of what it may.
const LIMIT: Duration = Duration::from_secs(15);
const POLL: Duration = Duration::from_millis(20);
const INBOX: &str = "_INBOX.lagging";

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

fn unexpected(answer: &str) -> io::Error {
    io::Error::other(format!("not an answer that was expected: {answer}"))
}

/// The first number of this name in an answer.
fn number(answer: &str, name: &str) -> io::Result<u64> {
    let rest = answer.split_once(&format!("\"{name}\":"));
    let (_, rest) = rest.ok_or_else(|| unexpected(answer))?;
    let end = rest.find(|c: char| !c.is_ascii_digit());
    let digits = &rest[..end.unwrap_or(rest.len())];
    digits.parse().map_err(|_| unexpected(answer))
}

/// A connection that asks one thing after the other.
struct Api(BufReader<TcpStream>);

impl Api {
    fn connect(server: &NatsServer) -> io::Result<Self> {
        let connection = TcpStream::connect(server.address)?;
        connection.set_read_timeout(Some(LIMIT))?;
        let mut api = Self(BufReader::new(connection));
        let hello = r#"CONNECT {"verbose":false,"pedantic":false}"#;
        api.send(&format!("{hello}\r\nSUB {INBOX} 1\r\n"))?;
        Ok(api)
    }

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

    fn ask(&mut self, what: &str, request: &str) -> io::Result<String> {
        let size = request.len();
        self.send(&format!(
            "PUB $JS.API.{what} {INBOX} {size}\r\n{request}\r\n"
        ))?;
        loop {
            let line = self.line()?;
            if line == "PING" {
                self.send("PONG\r\n")?;
            }
            if line.starts_with("-ERR") {
                return Err(io::Error::other(line));
            }
            // MSG <subject> <subscription> <size>
            let Some(rest) = line.strip_prefix("MSG ") else {
                continue;
            };
            let size = rest.rsplit(' ').next().and_then(|size| size.parse().ok());
            let size: usize = size.ok_or_else(|| unexpected(&line))?;
            let mut payload = vec![0; size + "\r\n".len()];
            self.0.read_exact(&mut payload)?;
            payload.truncate(size);
            let answer = String::from_utf8(payload).map_err(io::Error::other)?;
            // A mirror tells of errors of its own, behind its configuration.
            let head = answer.split(r#""config":"#).next();
            return match head.is_some_and(|head| head.contains(r#""error":"#)) {
                true => Err(io::Error::other(answer)),
                false => Ok(answer),
            };
        }
    }

    fn send(&mut self, text: &str) -> io::Result<()> {
        self.0.get_mut().write_all(text.as_bytes())
    }

    fn line(&mut self) -> io::Result<String> {
        let mut line = String::new();
        match self.0.read_line(&mut line)? {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            _ => Ok(line.trim_end().to_owned()),
        }
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
