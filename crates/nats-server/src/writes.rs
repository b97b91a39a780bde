//! Whether the server can store: what it says of that itself.

use std::io::{self, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use crate::NatsServer;

/// How long its answer may take.
const ANSWER_LIMIT: Duration = Duration::from_secs(1);
/// Of an answer no more is read than that.
const MOST: u64 = 64 << 10;
/// What it says of a stream that it does not write to any more, and without JetStream (`healthz` in nats-server's `monitor.go`).
const BROKEN: [&str; 2] = ["write error", "not enabled"];

impl NatsServer {
    /// What keeps it from storing until it is started again, in its own words. A write that failed it holds against the stream for as long as it runs, also
    /// when the disk has room again: nothing is stored there, and whoever wants to hears nothing (`werr` in nats-server's `filestore.go`).
    pub fn write_problem(&self) -> Option<String> {
        // One that does not answer is none of these.
        let answer = ask(self.monitor).ok()?;
        let (_, body) = answer.split_once("\r\n\r\n")?;
        let broken = BROKEN.iter().any(|words| body.contains(words));
        broken.then(|| body.trim().to_owned())
    }
}

/// What `/healthz` answers, with its head.
fn ask(address: SocketAddr) -> io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&address, ANSWER_LIMIT)?;
    stream.set_read_timeout(Some(ANSWER_LIMIT))?;
    stream.write_all(b"GET /healthz HTTP/1.0\r\n\r\n")?;
    let mut answer = String::new();
    stream.take(MOST).read_to_string(&mut answer)?;
    Ok(answer)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_that_can_store_has_no_problem_and_says_so_where_it_is_asked() {
        let mut server = NatsServer::scratch().unwrap();
        let answer = ask(server.monitor).unwrap();
        assert!(answer.starts_with("HTTP/1.0 200"), "{answer}");
        assert!(answer.contains("\"ok\""), "{answer}");
        assert_eq!(server.write_problem(), None);
        server.restart().unwrap();
        assert!(ask(server.monitor).is_ok());
        server.kill();
        assert_eq!(server.write_problem(), None);
    }
}
