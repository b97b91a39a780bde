//! Who must be served while others attack: a tenant of its own, from an address of its own.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use e2e::Platform;
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpSocket;

use super::{PATIENCE, PAUSE, address};

/// Where no attack comes from.
const FROM: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 9);
const TENANT: &str = "neighbour";
/// The first of so many requests submits a task, the others look at that and at the models.
const A_TASK_IN: usize = 20;

/// A caller who behaves: each of its requests comes on a new connection and must be answered, and its tasks are accepted.
pub(super) struct Neighbour {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Heard>,
}

/// What it was answered.
#[derive(Default)]
pub(super) struct Heard {
    pub(super) served: usize,
    /// Its tasks that were accepted.
    pub(super) accepted: usize,
    /// The longest that it waited for an answer, connecting included.
    pub(super) slowest: Duration,
    refused: Vec<String>,
}

impl Neighbour {
    pub(super) async fn start(platform: &Platform) -> Self {
        let bearer = platform.create_key("dev-", TENANT).await.bearer;
        let (stop, to) = (Arc::new(AtomicBool::new(false)), address(platform));
        let told = stop.clone();
        // A thread and a runtime of its own: attacks may keep the test's busy.
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            runtime.block_on(live(to, &bearer, &told))
        });
        Self { stop, thread }
    }

    /// How it was served: each time, or this panics.
    pub(super) fn finish(self) -> Heard {
        self.stop.store(true, Ordering::Relaxed);
        let heard = self.thread.join().unwrap();
        let refused = &heard.refused;
        assert!(
            refused.is_empty(),
            "the neighbour was not served: {refused:?}"
        );
        heard
    }
}

/// Begins with a task and ends with one, which comes when the attack has done all that it does.
async fn live(to: SocketAddr, bearer: &str, stop: &AtomicBool) -> Heard {
    let mut heard = Heard::default();
    let mut task: Option<String> = None;
    for number in 0.. {
        let last = stop.load(Ordering::Relaxed);
        let submits = last || number % A_TASK_IN == 0;
        let (request, expected) = if submits {
            (submission(bearer), "202")
        } else {
            let task = task.as_deref().filter(|_| number % 2 == 1);
            (look(bearer, task.unwrap_or("/v1/models")), "200")
        };
        let began = Instant::now();
        let answer = tokio::time::timeout(PATIENCE, ask(to, &request)).await;
        heard.slowest = heard.slowest.max(began.elapsed());
        match answer {
            Ok(Ok(answer)) if status(&answer) == Some(expected) => {
                heard.served += 1;
                heard.accepted += usize::from(submits);
                if submits {
                    task = Some(location(&answer));
                }
            }
            other => heard.refused.push(format!("{other:?}")),
        }
        if last {
            break;
        }
        // Its key lets 50 a second through.
        tokio::time::sleep(PAUSE).await;
    }
    heard
}

fn look(bearer: &str, path: &str) -> String {
    format!(
        "GET {path} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {bearer}\r\nconnection: close\r\n\r\n"
    )
}

fn submission(bearer: &str) -> String {
    let body = json!({"prompt": "a 3d cat", "steps": 4}).to_string();
    format!(
        "POST /v1/tasks HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {bearer}\r\ncontent-type: application/json\r\n\
         content-length: {}\r\nconnection: close\r\n\r\n{body}",
        body.len()
    )
}

/// Sends a request on a connection of its own, and gives all of the answer.
async fn ask(to: SocketAddr, request: &str) -> io::Result<String> {
    let socket = TcpSocket::new_v4()?;
    socket.bind((FROM, 0).into())?;
    let mut stream = socket.connect(to).await?;
    stream.write_all(request.as_bytes()).await?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

fn status(answer: &str) -> Option<&str> {
    answer.strip_prefix("HTTP/1.1 ")?.get(..3)
}

/// Where an accepted task is looked at.
fn location(answer: &str) -> String {
    let mut places = answer
        .lines()
        .filter_map(|line| line.strip_prefix("location: "));
    places.next().expect("an accepted task has a place").into()
}
