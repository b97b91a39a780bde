//! A receiver of webhooks that fails first.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use aws_lc_rs::hmac;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use e2e::LIMIT;

/// Answers 500 once, and 200 from then on.
pub(crate) struct Hook {
    url: String,
    told: Arc<Mutex<Vec<Told>>>,
}

/// One request that came.
#[derive(Debug, Clone)]
pub(crate) struct Told {
    headers: BTreeMap<String, String>,
    pub(crate) body: Vec<u8>,
}

impl Hook {
    /// With which an orchestrator tells one on this machine.
    pub(crate) const REACHABLE: [(&'static str, &'static str); 2] = [
        ("INKSTONE_ORCHESTRATOR__EGRESS__ALLOW", "[\"127.0.0.0/8\"]"),
        ("INKSTONE_ORCHESTRATOR__EGRESS__HTTPS_ONLY", "false"),
    ];
    /// With which it soon tells one again that has failed.
    pub(crate) const SOON_AGAIN: (&'static str, &'static str) =
        ("INKSTONE_ORCHESTRATOR__WEBHOOKS__PAUSES", "[\"1s\"]");

    pub(crate) fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/hook", listener.local_addr().unwrap());
        let told = Arc::new(Mutex::new(Vec::new()));
        let seen = told.clone();
        // Ends with the test's process.
        std::thread::spawn(move || {
            for connection in listener.incoming() {
                let Ok(mut connection) = connection else {
                    continue;
                };
                let Some(one) = read(&connection) else {
                    continue;
                };
                let mut seen = seen.lock().unwrap();
                let status = if seen.is_empty() { "500 No" } else { "200 OK" };
                seen.push(one);
                let answer =
                    format!("HTTP/1.1 {status}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
                let _ = connection.write_all(answer.as_bytes());
            }
        });
        Self { url, told }
    }

    pub(crate) fn url(&self) -> &str {
        &self.url
    }

    /// All that it has been told, once a message of this id is among it.
    pub(crate) fn wait_for_id(&self, id: &str) -> Vec<Told> {
        let mut times = 1;
        loop {
            let told = self.wait_for(times);
            if told.iter().any(|one| one.header("webhook-id") == id) {
                return told;
            }
            times = told.len() + 1;
        }
    }

    /// Waits until it has been told so often.
    pub(crate) fn wait_for(&self, times: usize) -> Vec<Told> {
        let deadline = Instant::now() + LIMIT;
        while Instant::now() < deadline {
            let told = self.told.lock().unwrap().clone();
            if told.len() >= times {
                return told;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        panic!("not told {times} times: {:?}", self.told.lock().unwrap());
    }
}

fn read(connection: &TcpStream) -> Option<Told> {
    let mut reader = BufReader::new(connection);
    let mut headers = BTreeMap::new();
    let mut line = String::new();
    reader.read_line(&mut line).ok()?;
    loop {
        line.clear();
        reader.read_line(&mut line).ok()?;
        let Some((name, value)) = line.trim_end().split_once(':') else {
            break;
        };
        headers.insert(name.to_lowercase(), value.trim().to_owned());
    }
    let length = headers.get("content-length")?.parse().ok()?;
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    Some(Told { headers, body })
}

impl Told {
    pub(crate) fn header(&self, name: &str) -> &str {
        &self.headers[name]
    }

    /// As a receiver checks it who has read docs/API.md.
    pub(crate) fn is_signed_with(&self, secret: &str) -> bool {
        let key = STANDARD
            .decode(secret.trim_start_matches("whsec_"))
            .unwrap();
        let (id, timestamp) = (self.header("webhook-id"), self.header("webhook-timestamp"));
        let signed = [format!("{id}.{timestamp}.").as_bytes(), &self.body].concat();
        let mac = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, &key), &signed);
        self.header("webhook-signature") == format!("v1,{}", STANDARD.encode(mac))
    }
}
