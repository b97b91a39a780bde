//! Connections that say nothing, little, or too slowly, and those that never listen.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use e2e::Platform;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpSocket;
use tokio::task::JoinSet;

use super::bodies::{EDITS, JSON_PATHS, json};
use super::{FRONT, PATIENCE, address, connect, head, statuses, under_attack};

/// Connections of the flood. Of 20,000 open files, which is what CI allows, the flood and the gateway need one each.
const FLOOD: usize = 10_000;
/// Half of them come from one address, many more than it may have, and the others from these many, fewer than each may have.
const OTHERS: usize = 8;
/// How much of a head each sends, bytes: together as much as 100,000 connections with heads of 2 KiB.
const HALF_A_HEAD: usize = 20 * 1024;
/// `http.max_connections`.
pub(super) const MOST: usize = 4096;
/// What such a flood may take, MiB: `http.max_connections`, each with a head of `http.max_header_bytes`, 32 KiB, and as much again for all
/// else. How many come and are closed has no part in it.
pub(super) const FULL_HOUSE_MIB: u64 = (MOST * 64 / 1024) as u64;
/// Opened at a time.
const AT_ONCE: usize = 200;

/// Where the `i`th connection of the flood comes from.
fn source(i: usize) -> Ipv4Addr {
    let host = if i.is_multiple_of(2) {
        1
    } else {
        2 + i / 2 % OTHERS
    };
    Ipv4Addr::new(127, 0, 2, host as u8)
}

/// A connection with half a head sent.
pub(super) async fn dribble(to: SocketAddr, from: Ipv4Addr) -> Option<tokio::net::TcpStream> {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind((from, 0).into()).unwrap();
    let mut stream = tokio::time::timeout(PATIENCE, socket.connect(to))
        .await
        .ok()?
        .ok()?;
    let half = format!(
        "GET / HTTP/1.1\r\nhost: x\r\nx-long: {}",
        "x".repeat(HALF_A_HEAD)
    );
    // Whoever has too many connections, or has to make way, is closed meanwhile.
    let _ = stream.write_all(half.as_bytes()).await;
    Some(stream)
}

async fn flood(to: SocketAddr) -> Vec<tokio::net::TcpStream> {
    let (mut opening, mut open) = (JoinSet::new(), Vec::new());
    for i in 0..FLOOD {
        if opening.len() == AT_ONCE
            && let Some(stream) = opening.join_next().await
        {
            open.extend(stream.unwrap());
        }
        opening.spawn(dribble(to, source(i)));
    }
    open.extend(opening.join_all().await.into_iter().flatten());
    open
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_thousand_connections_with_half_a_head_each_keep_nobody_out() {
    let platform = Platform::start_services(&FRONT, &[], false).await;
    let to = address(&platform);
    under_attack(&platform, "half a head", FULL_HOUSE_MIB, async {
        let open = flood(to).await;
        assert!(
            open.len() > FLOOD / 2,
            "only {} connections came to be",
            open.len()
        );
        // The gateway says nothing to any, so all that can be read of a connection is its end.
        let is_open = |stream: &tokio::net::TcpStream| {
            let read = stream.try_read(&mut [0]);
            read.is_err_and(|error| error.kind() == std::io::ErrorKind::WouldBlock)
        };
        let alive = || open.iter().filter(|stream| is_open(stream)).count();
        // Those that the operating system has taken and the gateway has not seen yet are open as well, for a moment.
        let until = Instant::now() + PATIENCE;
        while alive() > MOST && Instant::now() < until {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        let (alive, all) = (alive(), open.len());
        println!("{alive} of {all} connections are still open");
        assert!(alive <= MOST, "{alive}: more than http.max_connections");
    })
    .await;
    let closed = platform.metrics("gateway");
    for reason in ["address", "crowded"] {
        assert!(closed.contains(&format!("reason=\"{reason}\"")), "{closed}");
    }
}

/// Asks for what needs no key, again and again, and comes back whenever its connection is closed.
async fn keep_busy(from: Ipv4Addr, to: SocketAddr) {
    const PAUSE: Duration = Duration::from_millis(300);
    const COME_BACK: Duration = Duration::from_millis(200);
    loop {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind((from, 0).into()).unwrap();
        if let Ok(mut stream) = socket.connect(to).await {
            let ask = b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n";
            while stream.write_all(ask).await.is_ok()
                && matches!(stream.read(&mut [0; 4096]).await, Ok(1..))
            {
                tokio::time::sleep(PAUSE).await;
            }
        }
        tokio::time::sleep(COME_BACK).await;
    }
}

/// How many connections the gateway has closed for this reason.
pub(super) fn closed(platform: &Platform, reason: &str) -> u64 {
    let closed = "inkstone_gateway_connections_closed_total";
    metric(platform, &format!("{closed}{{reason=\"{reason}\"}}"))
}

/// A number of the gateway's, by its name with all its labels; nothing is 0.
pub(super) fn metric(platform: &Platform, name: &str) -> u64 {
    let metrics = platform.metrics("gateway");
    let values = metrics.lines().filter_map(|line| line.strip_prefix(name));
    let mut counts = values.filter_map(|value| value.strip_prefix(' '));
    counts.next().map_or(0, |count| count.parse().unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_house_full_of_busy_connections_from_four_addresses_keeps_nobody_out() {
    const ADDRESSES: u8 = 4;
    /// More than each may have, so that no place stays free.
    const EACH: usize = 80;
    /// Places that busy connections have given up: the neighbour has asked about as often in the full house.
    const GIVEN_UP: u64 = 40;
    let few = [
        ("INKSTONE_GATEWAY__HTTP__MAX_CONNECTIONS", "256"),
        ("INKSTONE_GATEWAY__HTTP__MAX_CONNECTIONS_PER_ADDRESS", "64"),
    ];
    let platform = Platform::start_services(&FRONT, &few, false).await;
    let to = address(&platform);
    under_attack(&platform, "busy connections", 32, async {
        let mut busy = JoinSet::new();
        for number in 0..usize::from(ADDRESSES) * EACH {
            let host = 1 + number % usize::from(ADDRESSES);
            busy.spawn(keep_busy(Ipv4Addr::new(127, 0, 4, host as u8), to));
        }
        let began = Instant::now();
        loop {
            let given_up = tokio::task::block_in_place(|| closed(&platform, "crowded_busy"));
            if given_up >= GIVEN_UP {
                break;
            }
            let waited = began.elapsed();
            assert!(waited < PATIENCE, "{given_up} made way in {waited:?}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_that_dribble_their_bodies_or_never_read_are_cut_off() {
    let quick = [
        ("INKSTONE_GATEWAY__HTTP__REQUEST_TIMEOUT", "2s"),
        ("INKSTONE_GATEWAY__HTTP__READ_TIMEOUT", "2s"),
        ("INKSTONE_GATEWAY__HTTP__HEADER_READ_TIMEOUT", "2s"),
    ];
    let platform = Platform::start_services(&FRONT, &quick, false).await;
    under_attack(&platform, "slow bodies", 16, async {
        tokio::task::block_in_place(|| slow_bodies(&platform));
    })
    .await;
    under_attack(&platform, "slow heads", 16, async {
        tokio::task::block_in_place(|| slow_heads(&platform));
    })
    .await;
    under_attack(&platform, "deaf clients", 64, async {
        tokio::task::block_in_place(|| deaf_clients(&platform));
    })
    .await;
    let closed = platform.metrics("gateway");
    assert!(closed.contains("reason=\"slow_reader\""), "{closed}");
}

/// Writes a byte now and then until the gateway answers or closes the connection, and gives what it has answered.
fn drip(stream: &mut TcpStream) -> String {
    let began = Instant::now();
    let mut answer = Vec::new();
    stream
        .set_read_timeout(Some(Duration::from_millis(100)))
        .unwrap();
    while began.elapsed() < PATIENCE {
        let mut piece = [0; 4096];
        match stream.read(&mut piece) {
            Ok(0) => return String::from_utf8_lossy(&answer).into_owned(),
            Ok(read) => answer.extend_from_slice(&piece[..read]),
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
            Err(_) => return String::from_utf8_lossy(&answer).into_owned(),
        }
        if !answer.is_empty() {
            return String::from_utf8_lossy(&answer).into_owned();
        }
        let _ = stream.write_all(b" ");
    }
    panic!("neither answered nor closed after {PATIENCE:?}");
}

/// In every dialect, JSON and a form alike.
fn slow_bodies(platform: &Platform) {
    let form = "content-type: multipart/form-data; boundary=b";
    let all = JSON_PATHS.map(|path| (path, json(path)));
    let all = all.into_iter().chain([(EDITS, form.to_owned())]);
    // Fewer than the key's burst: these are let in, and then time out.
    let mut streams = Vec::new();
    for (path, kind) in all {
        let head = head(platform, path, &format!("{kind}\r\ncontent-length: 1000"));
        for _ in 0..3 {
            let mut stream = connect(platform);
            stream.write_all(head.as_bytes()).unwrap();
            streams.push((path, stream));
        }
    }
    for (path, stream) in &mut streams {
        assert_eq!(statuses(&drip(stream)), [504], "{path}");
    }
}

fn slow_heads(platform: &Platform) {
    let mut streams: Vec<_> = (0..100).map(|_| connect(platform)).collect();
    for stream in &mut streams {
        stream
            .write_all(b"GET / HTTP/1.1\r\nhost: x\r\nx-slow:")
            .unwrap();
    }
    for stream in &mut streams {
        // Closed, or told why.
        let answer = drip(stream);
        assert!(answer.is_empty() || statuses(&answer) == [408], "{answer}");
    }
}

/// Asks for ever, and reads nothing.
fn deaf_clients(platform: &Platform) {
    let questions = "GET /docs/errors/invalid_argument HTTP/1.1\r\nhost: x\r\n\r\n".repeat(1000);
    let mut streams: Vec<_> = (0..20).map(|_| connect(platform)).collect();
    let began = Instant::now();
    for stream in &mut streams {
        // As soon as the gateway writes no more it reads no more, so this stops; and it ends when the gateway cuts it off.
        while stream.write_all(questions.as_bytes()).is_ok() {
            assert!(
                began.elapsed() < PATIENCE,
                "a client that reads nothing is still borne"
            );
        }
    }
}

/// Asks for pages of many kilobytes, more of them than sockets take, and reads nothing.
fn deaf(platform: &Platform) -> TcpStream {
    let mut stream = connect(platform);
    let questions = "GET /openapi.json HTTP/1.1\r\nhost: x\r\n\r\n".repeat(1000);
    stream.write_all(questions.as_bytes()).unwrap();
    stream
}

#[tokio::test(flavor = "multi_thread")]
async fn while_too_many_pages_are_unread_who_asks_for_one_hears_when_to_come_again_until_the_deaf_reader_is_cut_off()
 {
    let settings = [
        (
            "INKSTONE_GATEWAY__HTTP__MAX_UNREAD_BYTES_WITHOUT_KEY",
            "16KiB",
        ),
        ("INKSTONE_GATEWAY__HTTP__READ_TIMEOUT", "6s"),
    ];
    let platform = Platform::start_services(&FRONT, &settings, false).await;
    let ask = |path: &str| {
        let request = e2e::agent().get(format!("{}{path}", platform.url()));
        let request = request.header("authorization", platform.authorization());
        request.call().unwrap()
    };
    let until = |what: &str, status: u16| {
        let began = Instant::now();
        loop {
            let answer = ask("/docs");
            if answer.status().as_u16() == status {
                return answer;
            }
            assert!(began.elapsed() < PATIENCE, "{what}: {}", answer.status());
            std::thread::sleep(Duration::from_millis(50));
        }
    };
    tokio::task::block_in_place(|| {
        until("before", 200);
        let mut stream = deaf(&platform);
        let refused = until("a reader that reads nothing fills no room", 503);
        assert_eq!(refused.headers()["retry-after"], "1");
        // Callers with a key, and what needs no room, are answered all the while.
        assert_eq!(ask("/v1/models").status(), 200);
        assert_eq!(ask("/healthz").status(), 200);
        let began = Instant::now();
        while !platform
            .metrics("gateway")
            .contains("reason=\"slow_reader\"")
        {
            let waited = began.elapsed();
            assert!(waited < PATIENCE, "a deaf reader is borne for {waited:?}");
            std::thread::sleep(Duration::from_millis(50));
        }
        until("what the deaf reader left is still counted", 200);
        // Of all that it asked for, it has at most what was in the sockets, and the end.
        let mut heard = Vec::new();
        let _ = stream.read_to_end(&mut heard);
        let heads: [&[u8]; 2] = [b"HTTP/1.1 200", b"HTTP/1.1 503"];
        let answers = heard.windows(heads[0].len());
        let answers = answers.filter(|part| heads.contains(part)).count();
        assert!(answers < 1000, "{answers} answers: nobody was cut off");
    });
}
