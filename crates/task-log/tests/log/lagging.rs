//! A replica that lags: it answers direct gets of a stream, and has heard of nothing that was stored there.
//!
//! How far a real one lags nobody can tell it. So the stream's own answer no direct gets any more, and this does, over a connection of its own to
//! the real server, with the server's words for that there is nothing.

use nats_server::NatsServer;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpStream;

const INBOX: &str = "_INBOX.lagging";
const NOTHING: &str = "NATS/1.0 404 Message Not Found\r\n\r\n";

pub(crate) struct Lagging(BufReader<TcpStream>);

struct Message {
    reply: Option<String>,
    payload: String,
}

impl Lagging {
    /// In place of all replicas of `stream`.
    pub(crate) async fn of(server: &NatsServer, stream: &str) -> Self {
        let url = server.url();
        let address = url.strip_prefix("nats://").unwrap();
        let connection = TcpStream::connect(address).await.unwrap();
        let mut lagging = Self(BufReader::new(connection));
        let hello = r#"CONNECT {"verbose":false,"pedantic":false,"headers":true}"#;
        lagging.send(&format!("{hello}\r\nSUB {INBOX} 1\r\n")).await;
        let info = lagging.ask("STREAM.INFO", stream, "").await;
        let direct = r#""allow_direct":true"#;
        let config = config_of(&info);
        assert!(config.contains(direct), "{config}");
        let config = config.replace(direct, r#""allow_direct":false"#);
        let updated = lagging.ask("STREAM.UPDATE", stream, &config).await;
        assert!(!config_of(&updated).contains(direct), "{updated}");
        let listen = format!("SUB $JS.API.DIRECT.GET.{stream} 2\r\nPING\r\n");
        lagging.send(&listen).await;
        while lagging.line().await != "PONG" {}
        lagging
    }

    /// Answers for as long as it is asked to.
    pub(crate) async fn answer(mut self) {
        loop {
            let asked = self.message().await;
            let reply = asked.reply.unwrap();
            let size = NOTHING.len();
            let answer = format!("HPUB {reply} {size} {size}\r\n{NOTHING}\r\n");
            self.send(&answer).await;
        }
    }

    async fn ask(&mut self, what: &str, stream: &str, request: &str) -> String {
        let size = request.len();
        let subject = format!("$JS.API.{what}.{stream}");
        let asked = format!("PUB {subject} {INBOX} {size}\r\n{request}\r\n");
        self.send(&asked).await;
        self.message().await.payload
    }

    async fn send(&mut self, text: &str) {
        let connection = self.0.get_mut();
        connection.write_all(text.as_bytes()).await.unwrap();
    }

    async fn line(&mut self) -> String {
        let mut line = String::new();
        let read = self.0.read_line(&mut line).await.unwrap();
        assert!(read > 0, "the server hung up");
        assert!(!line.starts_with("-ERR"), "{line}");
        line.trim_end().to_owned()
    }

    /// The next one; the server is told that this lives when it asks.
    async fn message(&mut self) -> Message {
        loop {
            let line = self.line().await;
            if line == "PING" {
                self.send("PONG\r\n").await;
            }
            // MSG <subject> <subscription> [<reply>] <size>
            let Some(rest) = line.strip_prefix("MSG ") else {
                continue;
            };
            let tokens: Vec<&str> = rest.split(' ').collect();
            let size: usize = tokens.last().unwrap().parse().unwrap();
            let mut payload = vec![0; size + "\r\n".len()];
            self.0.read_exact(&mut payload).await.unwrap();
            payload.truncate(size);
            return Message {
                reply: (tokens.len() == 4).then(|| tokens[2].to_owned()),
                payload: String::from_utf8(payload).unwrap(),
            };
        }
    }
}

/// The configuration in what the server says of a stream: no text in it has braces.
fn config_of(info: &str) -> &str {
    let from = info.find(r#""config":"#).expect(info) + r#""config":"#.len();
    let mut depth = 0;
    for (at, c) in info[from..].char_indices() {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return &info[from..=from + at];
        }
    }
    panic!("{info}");
}
