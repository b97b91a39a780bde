//! Against servers of our own on this machine, each a thread that answers what it is told to.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::*;

const LONG: Duration = Duration::from_secs(30);

fn settings() -> EgressSettings {
    EgressSettings {
        enabled: true,
        https_only: false,
        allow: vec!["127.0.0.0/8".parse().unwrap()],
        deny: Vec::new(),
        ca_file: String::new(),
        connect_timeout: "10s".parse().unwrap(),
        timeout: "30s".parse().unwrap(),
        max_concurrent: 4,
        max_per_host: 2,
    }
}

fn limits(max_bytes: u64) -> Limits {
    let timeout = LONG;
    Limits { max_bytes, timeout }
}

/// A server that answers each connection with `answer`; it keeps what it was asked.
struct Server {
    address: SocketAddr,
    asked: Arc<Mutex<Vec<String>>>,
}

impl Server {
    fn start(answer: impl Fn(&mut TcpStream) + Send + 'static) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = listener.local_addr().unwrap();
        let asked = Arc::new(Mutex::new(Vec::new()));
        let heard = asked.clone();
        // Ends with the test's process.
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                heard.lock().unwrap().push(read_request(&mut stream));
                answer(&mut stream);
            }
        });
        Self { address, asked }
    }

    fn saying(answer: &'static str) -> Self {
        Self::start(move |stream| {
            // A client that has had enough hangs up.
            let _ = stream.write_all(answer.as_bytes());
        })
    }

    fn url(&self) -> String {
        format!("http://{}/x?y=z", self.address)
    }
}

/// Head and body, as far as the head announces one.
fn read_request(stream: &mut TcpStream) -> String {
    let mut text = Vec::new();
    let mut byte = [0];
    while !text.ends_with(b"\r\n\r\n") && stream.read(&mut byte).unwrap_or(0) == 1 {
        text.push(byte[0]);
    }
    let head = String::from_utf8_lossy(&text).to_lowercase();
    let length = head.split("content-length: ").nth(1);
    let length = length.and_then(|rest| rest.lines().next()?.parse().ok());
    let mut body = vec![0; length.unwrap_or(0)];
    stream.read_exact(&mut body).unwrap();
    text.extend(body);
    String::from_utf8_lossy(&text).into_owned()
}

#[tokio::test]
async fn what_lies_at_a_url_is_fetched_whole() {
    let server = Server::saying(
        "HTTP/1.1 200 OK\r\nContent-Type: image/png\r\nContent-Length: 5\r\n\r\nhello",
    );
    let egress = Egress::new(&settings()).unwrap();
    let fetched = egress.get(&server.url(), limits(5)).await.unwrap();
    assert_eq!(fetched.content_type.as_deref(), Some("image/png"));
    assert_eq!(fetched.bytes, "hello");
    let asked = server.asked.lock().unwrap()[0].clone();
    assert!(asked.starts_with("GET /x?y=z HTTP/1.1\r\n"), "{asked}");
    let asked = asked.to_lowercase();
    assert!(!asked.contains("accept-encoding"), "{asked}");
    assert!(
        asked.contains(&format!("host: {}", server.address)),
        "{asked}"
    );
}

#[tokio::test]
async fn more_than_the_limit_is_refused_when_announced_and_when_it_comes() {
    let egress = Egress::new(&settings()).unwrap();
    for answer in [
        "HTTP/1.1 200 OK\r\nContent-Length: 999999999999\r\n\r\n",
        "HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nhello",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nhel\r\n2\r\nlo\r\n0\r\n\r\n",
    ] {
        let server = Server::saying(answer);
        let error = egress.get(&server.url(), limits(4)).await.unwrap_err();
        assert!(
            matches!(error, EgressError::TooLarge { limit: 4, .. }),
            "{answer}: {error}"
        );
    }
}

#[tokio::test]
async fn a_redirect_is_an_answer_and_not_followed() {
    let inside = Server::saying("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n");
    let place = inside.url();
    let server = Server::start(move |stream| {
        let answer =
            format!("HTTP/1.1 302 Found\r\nLocation: {place}\r\nContent-Length: 0\r\n\r\n");
        stream.write_all(answer.as_bytes()).unwrap();
    });
    let egress = Egress::new(&settings()).unwrap();
    let error = egress.get(&server.url(), limits(9)).await.unwrap_err();
    assert!(
        error
            .to_string()
            .ends_with("302; redirects are not followed"),
        "{error}"
    );
    let sent = egress
        .post(&server.url(), HeaderMap::new(), Bytes::new(), LONG)
        .await;
    assert_eq!(sent.unwrap().status, StatusCode::FOUND);
    assert!(inside.asked.lock().unwrap().is_empty());
}

#[tokio::test]
async fn an_answer_is_read_as_far_as_it_is_of_use() {
    let server = Server::start(|stream| {
        let head = "HTTP/1.1 503 Later\r\nRetry-After: 7\r\nConnection: close\r\n\r\n";
        stream.write_all(head.as_bytes()).unwrap();
        let _ = stream.write_all(&[b'x'; 100_000]);
    });
    let egress = Egress::new(&settings()).unwrap();
    let mut headers = HeaderMap::new();
    headers.insert("webhook-id", "m-1".parse().unwrap());
    let body = Bytes::from_static(b"{}");
    let answer = egress
        .post(&server.url(), headers, body, LONG)
        .await
        .unwrap();
    assert_eq!(answer.status, 503);
    assert_eq!(answer.retry_after, Some(Duration::from_secs(7)));
    assert_eq!(answer.body_start.len(), MAX_ANSWER_BYTES);
    let asked = server.asked.lock().unwrap()[0].clone();
    assert!(
        asked.starts_with("POST /x?y=z") && asked.contains("webhook-id: m-1"),
        "{asked}"
    );
    assert!(asked.ends_with("\r\n\r\n{}"), "{asked}");
}

#[tokio::test]
async fn a_server_that_says_nothing_is_left_at_the_time_limit_and_others_wait_no_longer() {
    // Nobody accepts; the operating system does.
    let silent = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let url = format!("http://{}/", silent.local_addr().unwrap());
    let egress = Egress::new(&EgressSettings {
        max_per_host: 1,
        ..settings()
    })
    .unwrap();
    let short = Limits {
        max_bytes: 1,
        timeout: Duration::from_millis(200),
    };
    let error = egress.get(&url, short).await.unwrap_err();
    assert_eq!(error.word(), "timed_out", "{error}");
    // Someone else has the one place that this host has.
    let _other = egress.shared.turns.take("127.0.0.1").await;
    let error = egress.get(&url, short).await.unwrap_err();
    assert_eq!(error.word(), "busy", "{error}");
}

/// A look-up that knows one name, and how often it was asked.
fn knows(addresses: Vec<SocketAddr>) -> (Lookup, Arc<AtomicUsize>) {
    let asked = Arc::new(AtomicUsize::new(0));
    let count = asked.clone();
    let lookup: Lookup = Arc::new(move |name| {
        count.fetch_add(1, Ordering::Relaxed);
        match name {
            "pictures.test" => Ok(addresses.clone()),
            _ => Err(std::io::Error::new(std::io::ErrorKind::NotFound, "unknown")),
        }
    });
    (lookup, asked)
}

#[tokio::test]
async fn the_connection_is_made_to_the_address_that_was_checked_and_the_name_stays_in_the_request()
{
    let server = Server::saying("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n");
    let port = server.address.port();
    let (lookup, asked) = knows(vec![SocketAddr::from(([127, 0, 0, 1], 0))]);
    let egress = Egress::with_lookup(&settings(), lookup).unwrap();
    let url = format!("http://pictures.test:{port}/");
    egress.get(&url, limits(1)).await.unwrap();
    egress.get(&url, limits(1)).await.unwrap();
    // Once for each request: none rests on what was checked for another.
    assert_eq!(asked.load(Ordering::Relaxed), 2);
    let heard = server.asked.lock().unwrap()[0].to_lowercase();
    assert!(
        heard.contains(&format!("host: pictures.test:{port}\r\n")),
        "{heard}"
    );
}

#[tokio::test]
async fn a_name_with_one_address_that_is_not_public_is_not_gone_to() {
    let server = Server::saying("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n");
    let inside = SocketAddr::from(([127, 0, 0, 1], 0));
    let outside = SocketAddr::from(([8, 8, 8, 8], 0));
    let settings = EgressSettings {
        allow: Vec::new(),
        ..settings()
    };
    for addresses in [vec![inside], vec![outside, inside]] {
        let (lookup, _) = knows(addresses);
        let egress = Egress::with_lookup(&settings, lookup).unwrap();
        let url = format!("http://pictures.test:{}/", server.address.port());
        let error = egress.get(&url, limits(1)).await.unwrap_err();
        assert_eq!(
            error.to_string(),
            "pictures.test is not at a public address"
        );
    }
    // The system's own look-up, of a name that every machine knows, where it is not refused by its text.
    let url = format!("http://localhost:{}/", server.address.port());
    let by_text = Egress::new(&settings).unwrap().check_url(&url).unwrap_err();
    assert!(
        matches!(by_text, EgressError::NotPublic { .. }),
        "{by_text}"
    );
    let settings = EgressSettings {
        allow: vec!["::1".parse().unwrap()],
        ..settings
    };
    let egress = Egress::new(&settings).unwrap();
    egress.check_url(&url).unwrap();
    let error = egress.get(&url, limits(1)).await.unwrap_err();
    assert!(matches!(error, EgressError::NotPublic { .. }), "{error}");
    assert!(server.asked.lock().unwrap().is_empty());
}

#[tokio::test]
async fn what_is_not_found_or_not_there_is_told_apart() {
    let (lookup, _) = knows(Vec::new());
    let egress = Egress::with_lookup(&settings(), lookup).unwrap();
    let get = |url: &'static str| egress.get(url, limits(1));
    let error = get("http://unknown.test/").await.unwrap_err();
    assert!(matches!(error, EgressError::NotFound { .. }), "{error}");
    let error = get("http://pictures.test/").await.unwrap_err();
    assert!(matches!(error, EgressError::NotFound { .. }), "{error}");
    let closed = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
        .unwrap()
        .local_addr()
        .unwrap();
    let error = egress
        .get(&format!("http://{closed}/?secret=1"), limits(1))
        .await
        .unwrap_err();
    assert!(matches!(error, EgressError::Unreachable { .. }), "{error}");
    assert!(!format!("{error:?}").contains("secret"), "{error:?}");
    let server = Server::saying("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhel");
    let error = egress.get(&server.url(), limits(9)).await.unwrap_err();
    assert!(matches!(error, EgressError::BrokenOff { .. }), "{error}");
}

#[tokio::test]
async fn what_is_switched_off_is_refused_without_a_request() {
    let egress = Egress::new(&EgressSettings {
        enabled: false,
        ..settings()
    })
    .unwrap();
    assert!(matches!(
        egress.check_url("https://example.com"),
        Err(EgressError::Off)
    ));
    let got = egress.get("https://example.com", limits(1)).await;
    assert!(matches!(got, Err(EgressError::Off)));
}

#[test]
fn settings_that_cannot_work_are_named() {
    assert!(settings().validate().is_ok());
    let none = EgressSettings {
        max_per_host: 0,
        ..settings()
    };
    assert_eq!(none.validate().unwrap_err().0, "egress.max_per_host");
    let never = EgressSettings {
        timeout: "0s".parse().unwrap(),
        ..settings()
    };
    assert_eq!(never.validate().unwrap_err().0, "egress.timeout");
}
