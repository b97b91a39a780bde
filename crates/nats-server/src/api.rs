//! What JetStream is asked by, for what tests do to a server and no service does.

use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::time::Duration;

use crate::NatsServer;

/// How long the server may take to answer.
pub(crate) const LIMIT: Duration = Duration::from_secs(15);
const INBOX: &str = "_INBOX.tests";

impl NatsServer {
    /// Removes a stream and all that it holds, as an operator can. For a server in the clear and without users.
    ///
    /// # Errors
    /// When the server refuses or does not answer in time.
    pub fn remove_stream(&self, stream: &str) -> io::Result<()> {
        Api::connect(self)?.ask(&format!("STREAM.DELETE.{stream}"), "")?;
        Ok(())
    }
}

pub(crate) fn unexpected(answer: &str) -> io::Error {
    io::Error::other(format!("not an answer that was expected: {answer}"))
}

/// A connection that asks one thing after the other.
pub(crate) struct Api(BufReader<TcpStream>);

impl Api {
    pub(crate) fn connect(server: &NatsServer) -> io::Result<Self> {
        let connection = TcpStream::connect(server.address)?;
        connection.set_read_timeout(Some(LIMIT))?;
        let mut api = Self(BufReader::new(connection));
        let hello = r#"CONNECT {"verbose":false,"pedantic":false}"#;
        api.send(&format!("{hello}\r\nSUB {INBOX} 1\r\n"))?;
        Ok(api)
    }

    pub(crate) fn ask(&mut self, what: &str, request: &str) -> io::Result<String> {
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
