//! URLs that callers name to have the platform fetch, for them, what only it can reach. What must not be reached is a listener
//! of the test's own, on every loopback address: it counts who comes.

use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use e2e::{LIMIT, Platform, agent};
use serde_json::{Value, json};

use super::{FRONT, under_attack};

/// Nobody may come here.
struct Inside {
    port: u16,
    visits: Arc<AtomicUsize>,
}

impl Inside {
    fn start() -> Self {
        let listener = TcpListener::bind("0.0.0.0:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let visits = Arc::new(AtomicUsize::new(0));
        let mut listeners = vec![listener];
        // Where there is IPv6.
        listeners.extend(TcpListener::bind(("::1", port)));
        for listener in listeners {
            let visits = visits.clone();
            // Ends with the test's process.
            std::thread::spawn(move || {
                for _ in listener.incoming() {
                    visits.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        Self { port, visits }
    }

    /// Ways to write an address that leads here, or to another place that is nobody's business.
    fn addresses(&self) -> Vec<String> {
        let port = self.port;
        let hosts = [
            "127.0.0.1",
            "127.0.0.1.",
            "127.1",
            "127.0.0.2",
            "2130706433",
            "0x7f000001",
            "0x7f.1",
            "0177.0.0.1",
            "017700000001",
            "0",
            "0.0.0.0",
            "[::1]",
            "[::]",
            "[::ffff:127.0.0.1]",
            "[::ffff:7f00:1]",
            "[::127.0.0.1]",
            "[64:ff9b::7f00:1]",
            "[2002:7f00:1::]",
            "127。0。0。1",
            "１２７.0.0.1",
            "user@127.0.0.1",
            "example.com@127.0.0.1",
            "169.254.169.254",
            "[::ffff:169.254.169.254]",
            "10.0.0.1",
            "172.16.0.1",
            "192.168.0.1",
            "100.64.0.1",
            "[fe80::1]",
            "[fd00::1]",
            "224.0.0.1",
            "255.255.255.255",
        ];
        let mut all: Vec<_> = hosts
            .iter()
            .map(|host| format!("http://{host}:{port}/a.png"))
            .collect();
        all.push(format!("http://127.0.0.1:{port}#@example.com/"));
        all.push(format!("http://127.0.0.1:{port}\\@example.com/"));
        all.push(format!("gopher://127.0.0.1:{port}/"));
        all.push("http://8.8.8.8:22/".to_owned());
        all.push("file:///etc/passwd".to_owned());
        all
    }

    /// Names that lead here wherever they are looked up.
    fn names(&self) -> Vec<String> {
        let port = self.port;
        ["localhost", "LOCALHOST", "localhost.", "a.localhost"]
            .map(|name| format!("http://{name}:{port}/a.png"))
            .to_vec()
    }

    fn assert_unseen(&self, what: &str) {
        assert_eq!(self.visits.load(Ordering::Relaxed), 0, "{what} was gone to");
    }
}

fn post(platform: &Platform, path: &str, body: &Value) -> (u16, Value) {
    let mut answer = agent()
        .post(format!("{}{path}", platform.url()))
        .header("authorization", platform.authorization())
        .send_json(body)
        .unwrap();
    (
        answer.status().as_u16(),
        answer.body_mut().read_json().unwrap(),
    )
}

/// http:// too, or it would be refused for that alone; and one address of loopback as a server that is allowed.
const OPEN: [(&str, &str); 4] = [
    ("INKSTONE_GATEWAY__EGRESS__HTTPS_ONLY", "false"),
    ("INKSTONE_ORCHESTRATOR__EGRESS__HTTPS_ONLY", "false"),
    ("INKSTONE_GATEWAY__EGRESS__ALLOW", "[\"127.0.0.7/32\"]"),
    ("INKSTONE_ORCHESTRATOR__EGRESS__ALLOW", "[\"127.0.0.7/32\"]"),
];

#[tokio::test(flavor = "multi_thread")]
async fn no_url_of_a_picture_leads_into_the_private_network() {
    let platform = Platform::start_services(&FRONT, &OPEN, false).await;
    platform.allow("dev", 1000).await;
    let inside = Inside::start();
    let edit = |url: &str| {
        let body = json!({"prompt": "a cat", "images": [{"image_url": url}]});
        post(&platform, "/v1/images/edits", &body)
    };
    under_attack(&platform, "pictures by URL", 16, async {
        tokio::task::block_in_place(|| {
            for url in inside.addresses().into_iter().chain(inside.names()) {
                let (status, answer) = edit(&url);
                assert_eq!(status, 400, "{url}: {answer}");
                assert_eq!(answer["error"]["param"], "images", "{url}: {answer}");
                inside.assert_unseen(&url);
            }
            // A server that is allowed, and sends on to one that is not.
            let redirect = redirect(inside.port);
            let (status, answer) = edit(&redirect);
            assert!((400..500).contains(&status), "{answer}");
            inside.assert_unseen("where a redirect points");
        });
    })
    .await;
}

/// The URL of a server on the allowed address that answers everything with a redirect to the one that is not.
fn redirect(port: u16) -> String {
    let listener = TcpListener::bind("127.0.0.7:0").unwrap();
    let url = format!("http://{}/a.png", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let _ = stream.read(&mut [0; 4096]);
            let answer = format!(
                "HTTP/1.1 302 Found\r\nlocation: http://127.0.0.1:{port}/\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
            );
            let _ = stream.write_all(answer.as_bytes());
        }
    });
    url
}

#[tokio::test(flavor = "multi_thread")]
async fn no_webhook_is_delivered_into_the_private_network() {
    let platform = Platform::start_services(&FRONT, &OPEN, false).await;
    platform.allow("dev", 1000).await;
    let inside = Inside::start();
    let submit = |url: &str| {
        post(
            &platform,
            "/v1/tasks",
            &json!({"prompt": "a cat", "webhook_url": url}),
        )
    };
    under_attack(&platform, "webhooks", 16, async {
        tokio::task::block_in_place(|| {
            for url in inside.addresses().into_iter().chain(inside.names()) {
                let (status, answer) = submit(&url);
                assert_eq!(status, 400, "{url}: {answer}");
                assert_eq!(answer["field"], "webhook_url", "{url}: {answer}");
            }
            // Where a redirect leads shows only when it is gone to, which is when its task has ended; and so do other names.
            let urls = [redirect(inside.port)];
            for url in &urls {
                let (status, task) = submit(url);
                assert_eq!(status, 202, "{url}: {task}");
                let task = format!(
                    "{}/v1/tasks/{}",
                    platform.url(),
                    task["id"].as_str().unwrap()
                );
                let cancelled = agent()
                    .delete(task)
                    .header("authorization", platform.authorization());
                assert_eq!(cancelled.call().unwrap().status(), 200);
            }
            wait_tried(&platform, urls.len());
        });
    })
    .await;
    inside.assert_unseen("a webhook");
}

/// Waits until so many deliveries have been tried, and not taken.
fn wait_tried(platform: &Platform, times: usize) {
    let deadline = Instant::now() + LIMIT;
    loop {
        let metrics = platform.metrics("orchestrator");
        let of = |line: &&str| line.starts_with("inkstone_orchestrator_webhooks_total{");
        assert!(!metrics.contains("outcome=\"taken\""), "{metrics}");
        let counts = metrics
            .lines()
            .filter(of)
            .filter_map(|line| line.rsplit_once(' ')?.1.parse::<usize>().ok());
        if counts.sum::<usize>() >= times {
            return;
        }
        assert!(Instant::now() < deadline, "{metrics}");
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
}
