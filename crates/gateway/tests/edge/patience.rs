//! Clients that dribble are cut off, and nobody else notices.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use futures::FutureExt as _;
use futures::future::LocalBoxFuture;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpSocket, TcpStream};

use crate::Edge;
use crate::client::{Answer, ask, send};

/// How long the gateway holds a connection on which only `said` was sent.
async fn borne(edge: &Edge, said: &[u8]) -> Duration {
    let mut stream = TcpStream::connect(edge.address).await.unwrap();
    stream.write_all(said).await.unwrap();
    let began = Instant::now();
    let mut answer = Vec::new();
    // An end and a reset are both an end.
    let end = tokio::time::timeout(Duration::from_secs(8), stream.read_to_end(&mut answer)).await;
    assert!(end.is_ok(), "still open after {:?}", began.elapsed());
    began.elapsed()
}

#[tokio::test]
async fn a_connection_that_does_not_finish_its_head_is_cut() {
    let edge = Edge::start(&[("http.header_read_timeout", "500ms")]).await;
    let half: [&[u8]; 4] = [
        b"",
        b"PRI * HTTP/2",
        b"GET /healthz HTTP/1.1\r\nHost: x\r\nX-Slow: ",
        b"G",
    ];
    for said in half {
        let took = borne(&edge, said).await;
        assert!(took >= Duration::from_millis(400), "{took:?}");
    }
    assert_eq!(ask(edge.address, "GET /healthz").await.status, 200);
    edge.stop().await;
}

#[tokio::test]
async fn a_body_that_never_arrives_does_not_hold_up_a_refusal() {
    let edge = Edge::start(&[]).await;
    let mut stream = TcpStream::connect(edge.address).await.unwrap();
    let head = "POST /v1/tasks HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{";
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut answer = [0; 64];
    let read = stream.read(&mut answer);
    let read = tokio::time::timeout(Duration::from_secs(8), read)
        .await
        .unwrap()
        .unwrap();
    assert!(answer[..read].starts_with(b"HTTP/1.1 401"));
    edge.stop().await;
}

#[tokio::test]
async fn connections_beyond_the_limit_wait_and_are_served_in_turn() {
    let edge = Edge::start(&[
        ("http.max_connections", "1"),
        ("http.header_read_timeout", "500ms"),
    ])
    .await;
    // Takes the only place and says nothing.
    let silent = TcpStream::connect(edge.address).await.unwrap();
    let answer =
        tokio::time::timeout(Duration::from_secs(8), ask(edge.address, "GET /healthz")).await;
    assert_eq!(answer.unwrap().status, 200);
    drop(silent);
    edge.stop().await;
}

#[tokio::test]
async fn a_head_over_the_limit_is_refused() {
    let edge = Edge::start(&[("http.max_header_bytes", "8KiB")]).await;
    let long = format!(
        "GET /healthz HTTP/1.1\r\nHost: x\r\nX-Long: {}\r\n\r\n",
        "x".repeat(20_000)
    );
    let mut stream = TcpStream::connect(edge.address).await.unwrap();
    // The refusal may come before all of it is sent.
    let _ = stream.write_all(long.as_bytes()).await;
    let mut answer = [0; 64];
    let read = stream.read(&mut answer).await.unwrap_or(0);
    let answer = String::from_utf8_lossy(&answer[..read]);
    assert!(
        answer.is_empty() || answer.starts_with("HTTP/1.1 431"),
        "{answer}"
    );
    edge.stop().await;
}

const JSON: &str = "Content-Type: application/json";

/// An edge whose auth takes connections and says nothing, so that whoever has a key waits; and a request to `path` that waits in the only
/// place that its kind has, so that the next of them hears that too many `what`.
async fn full(setting: &str, path: &str, what: &str) -> (Edge, TcpStream, TcpListener) {
    let auth = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", auth.local_addr().unwrap());
    let edge = Edge::start(&[("auth.url", &url), (setting, "1")]).await;
    let mut waiting = TcpStream::connect(edge.address).await.unwrap();
    let request = format!(
        "POST {path} HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer k\r\n{JSON}\r\nContent-Length: 2\r\n\r\n{{}}"
    );
    waiting.write_all(request.as_bytes()).await.unwrap();
    let until = Instant::now() + Duration::from_secs(30);
    let full = loop {
        // Without credentials: 401 as long as there is room.
        let answer = send(edge.address, &format!("POST {path}"), &[JSON], "{}").await;
        if answer.status != 401 {
            break answer;
        }
        assert!(Instant::now() < until, "the first has no place");
        tokio::time::sleep(Duration::from_millis(10)).await;
    };
    assert_eq!(full.status, 503, "{}", full.body);
    assert_eq!(full.header("retry-after"), Some("1"));
    assert!(full.body.contains(what), "{}", full.body);
    (edge, waiting, auth)
}

#[tokio::test]
async fn generations_that_fill_their_room_take_none_from_submissions() {
    let setting = "http.max_concurrent_generations";
    let what = "generations are under way";
    let (edge, waiting, _auth) = full(setting, "/v1/images/generations", what).await;
    for path in ["/v2/models/m/infer", "/v1/images/edits"] {
        let answer = send(edge.address, &format!("POST {path}"), &[JSON], "{}").await;
        assert_eq!(answer.status, 503, "{path}: {}", answer.body);
    }
    for path in [
        "/v1/tasks",
        "/v1/tasks/batch",
        "/api/v1/services/aigc/text2image/image-synthesis",
    ] {
        let answer = send(edge.address, &format!("POST {path}"), &[JSON], "{}").await;
        assert_eq!(answer.status, 401, "{path}: {}", answer.body);
    }
    assert_eq!(ask(edge.address, "GET /v1/tasks").await.status, 401);
    drop(waiting);
    edge.stop().await;
}

#[tokio::test]
async fn submissions_that_fill_their_room_take_none_from_who_looks() {
    let setting = "http.max_concurrent_requests";
    let (edge, waiting, _auth) = full(setting, "/v1/tasks", "submissions are under way").await;
    // Whoever looks finds room, and is asked who it is.
    for line in [
        "GET /v1/tasks",
        "GET /v1/tasks/x",
        "GET /v1/models",
        "DELETE /v1/tasks/x",
    ] {
        assert_eq!(ask(edge.address, line).await.status, 401, "{line}");
    }
    assert_eq!(ask(edge.address, "GET /healthz").await.status, 200);
    drop(waiting);
    edge.stop().await;
}

/// What comes back to a submission with a key from this address.
async fn submit_from(from: Ipv4Addr, to: SocketAddr) -> String {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind((from, 0).into()).unwrap();
    let mut stream = socket.connect(to).await.unwrap();
    let request = format!(
        "POST /v1/tasks HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer k\r\n{JSON}\r\nContent-Length: 2\r\n\
         Connection: close\r\n\r\n{{}}"
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}

#[tokio::test]
async fn keys_from_one_address_that_wait_for_auth_keep_out_nobody_from_another() {
    // It takes connections and says nothing, so that whoever has a key waits.
    let auth = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", auth.local_addr().unwrap());
    // Of eight places two are left for other addresses: one may have a quarter, as of connections, and more while nobody else asks.
    let edge = Edge::start(&[
        ("auth.url", &url),
        ("auth.timeout", "3s"),
        ("http.max_concurrent_requests", "8"),
    ])
    .await;
    let flood = Ipv4Addr::new(127, 0, 0, 2);
    let asking = [(); 7].map(|()| submit_from(flood, edge.address).boxed_local());
    let first = futures::future::select_all(asking);
    let first = tokio::time::timeout(Duration::from_secs(8), first).await;
    let (refused, _, waiting) = first.unwrap();
    assert!(refused.starts_with("HTTP/1.1 429"), "{refused}");
    let why = "callers not known yet from one address, which may have 2";
    assert!(refused.contains(why), "{refused}");
    // Whoever comes from elsewhere has a place, and waits for auth until that is late.
    let other = submit_from(Ipv4Addr::new(127, 0, 0, 3), edge.address);
    let other = tokio::time::timeout(Duration::from_secs(30), other).await;
    let other = other.unwrap();
    assert!(other.starts_with("HTTP/1.1 50"), "{other}");
    assert!(!other.contains("submissions are under way"), "{other}");
    drop(waiting);
    edge.stop().await;
}

#[tokio::test]
async fn whoever_makes_up_tasks_and_tokens_leaves_reads_to_others() {
    // It takes connections and says nothing, so that whoever looks for a picture waits.
    let orchestrator = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", orchestrator.local_addr().unwrap());
    // Of three, half are one.
    let edge = Edge::start(&[
        ("orchestrator.url", &url),
        ("http.max_concurrent_reads", "3"),
    ])
    .await;
    let picture =
        |i: u32| format!("GET /v1/tasks/{i:08}-0000-7000-8000-000000000000/images/0?token=x");
    let lines = [picture(1), picture(2)];
    let [one, other] = [&lines[0], &lines[1]].map(|line| Box::pin(ask(edge.address, line)));
    // Whichever comes second hears at once that there is no place.
    let first = futures::future::select(one, other);
    let first = tokio::time::timeout(Duration::from_secs(8), first).await;
    let (refused, waiting) = first.unwrap().factor_first();
    assert!(
        refused.body.contains("pictures are looked for by token"),
        "{}",
        refused.body
    );
    assert_eq!(refused.status, 503, "{}", refused.body);
    assert_eq!(refused.header("retry-after"), Some("1"));
    assert_eq!(ask(edge.address, "GET /v1/tasks").await.status, 401);
    drop(waiting);
    edge.stop().await;
}

/// Asks three times at once. The first answer, and what still waits for one.
async fn three_times(address: SocketAddr, line: &str) -> (Answer, Vec<LocalBoxFuture<'_, Answer>>) {
    let asking = [(); 7].map(|()| ask(address, line).boxed_local());
    let first = futures::future::select_all(asking);
    let first = tokio::time::timeout(Duration::from_secs(8), first).await;
    let (answer, _, waiting) = first.unwrap();
    (answer, waiting)
}

#[tokio::test]
async fn a_link_that_many_look_at_leaves_room_for_those_of_others() {
    // It takes connections and says nothing, so that whoever looks for a picture waits.
    let orchestrator = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", orchestrator.local_addr().unwrap());
    // Of eight, half are four, of which one task may have two.
    let edge = Edge::start(&[
        ("orchestrator.url", &url),
        ("http.max_concurrent_reads", "8"),
    ])
    .await;
    let picture =
        |i: u32| format!("GET /v1/tasks/{i:08}-0000-7000-8000-000000000000/images/0?token=x");
    let (popular, other) = (picture(1), picture(2));
    let (refused, two) = three_times(edge.address, &popular).await;
    assert_eq!(refused.status, 429, "{}", refused.body);
    assert_eq!(refused.header("retry-after"), Some("1"));
    let why = "looked for by token for one task, which may have 2";
    assert!(refused.body.contains(why), "{}", refused.body);
    // Two of these wait as well: only so is the house full.
    let (refused, two_more) = three_times(edge.address, &other).await;
    assert_eq!(refused.status, 503, "{}", refused.body);
    drop((two, two_more));
    edge.stop().await;
}

#[tokio::test]
async fn pages_that_someone_without_a_key_does_not_read_take_room_from_pages_alone() {
    let edge = Edge::start(&[("http.max_unread_bytes_without_key", "16KiB")]).await;
    let until = async |line: &str, status: u16| {
        let limit = Instant::now() + Duration::from_secs(30);
        loop {
            let answer = ask(edge.address, line).await;
            if answer.status == status {
                return answer;
            }
            assert!(Instant::now() < limit, "{line}: still {}", answer.status);
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    until("GET /docs", 200).await;
    // More than sockets take, and none of it is read.
    let mut deaf = TcpStream::connect(edge.address).await.unwrap();
    let questions = "GET /openapi.json HTTP/1.1\r\nHost: h\r\n\r\n".repeat(1000);
    deaf.write_all(questions.as_bytes()).await.unwrap();
    let refused = until("GET /docs", 503).await;
    assert_eq!(refused.header("retry-after"), Some("1"));
    assert!(
        refused.body.contains("without a key wait to be read"),
        "{}",
        refused.body
    );
    for line in ["GET /", "GET /openapi.json", "GET /docs/errors/not_found"] {
        until(line, 503).await;
    }
    // Whoever would show a key is asked for it.
    for line in ["GET /v1/models", "GET /v1/tasks"] {
        assert_eq!(ask(edge.address, line).await.status, 401, "{line}");
    }
    assert_eq!(ask(edge.address, "GET /healthz").await.status, 200);
    drop(deaf);
    until("GET /docs", 200).await;
    edge.stop().await;
}
