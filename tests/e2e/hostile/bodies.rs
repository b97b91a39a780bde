//! Bodies that are too long, too deep, packed, or many at once.

use std::io::Write as _;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use e2e::Platform;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpSocket;
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::flate::gzip_zeros;
use super::messages::packed_messages;
use super::{
    FRONT, PATIENCE, address, connect, exchange, head, read_answers, statuses, under_attack,
};

/// Every path that takes JSON.
pub(super) const JSON_PATHS: [&str; 7] = [
    "/v1/tasks",
    "/v1/tasks/batch",
    "/v1/images/generations",
    "/api/v1/services/aigc/text2image/image-synthesis",
    "/api/v1/services/aigc/multimodal-generation/generation",
    "/v2/models/inkstone-demo/infer",
    "/v1/token",
];
const SYNTHESIS: &str = JSON_PATHS[3];
pub(super) const EDITS: &str = "/v1/images/edits";
const GIB: usize = 1 << 30;
/// A body that is withheld, and what is missing of it.
const WITHHELD: usize = 1 << 20;
const REST: usize = 10;

/// The headers that JSON needs on a path.
pub(super) fn json(path: &str) -> String {
    let kind = "content-type: application/json";
    // Without it, DashScope's older requests are refused for that alone.
    let more = if path == SYNTHESIS {
        "\r\nx-dashscope-async: enable"
    } else {
        ""
    };
    format!("{kind}{more}")
}

fn post(platform: &Platform, path: &str, headers: &str, body: &[u8]) -> (Vec<u16>, String) {
    let headers = format!(
        "{headers}\r\ncontent-length: {}\r\nconnection: close",
        body.len()
    );
    let mut request = head(platform, path, &headers).into_bytes();
    request.extend_from_slice(body);
    let answer = exchange(platform, &request);
    (statuses(&answer), answer)
}

#[tokio::test(flavor = "multi_thread")]
async fn bodies_of_a_gigabyte_packed_or_deep_are_refused_for_next_to_no_memory() {
    let platform = Platform::start_services(&FRONT, &[], false).await;
    platform.allow("dev", 1000).await;
    let run = |name: &'static str, attack: fn(&Platform)| {
        let platform = &platform;
        under_attack(platform, name, 48, async move {
            tokio::task::block_in_place(|| attack(platform));
        })
    };
    run("packed bodies", packed).await;
    under_attack(&platform, "packed messages", 48, packed_messages(&platform)).await;
    run("deep JSON", deep).await;
    run("an announced gigabyte", announced_gigabyte).await;
    run("a gigabyte in chunks", chunked_gigabyte).await;
}

/// A gigabyte in a megabyte.
fn packed(platform: &Platform) {
    let bomb = gzip_zeros(20 << 20);
    assert!(bomb.len() < 1 << 20);
    for coding in [
        "gzip",
        "GZIP",
        "deflate",
        "br",
        "zstd",
        "gzip, gzip",
        "x-gzip",
    ] {
        for path in JSON_PATHS {
            let headers = format!("{}\r\ncontent-encoding: {coding}", json(path));
            let (status, answer) = post(platform, path, &headers, &bomb);
            // A token's body is too long before it is anything else.
            let expected = if path == "/v1/token" { 413 } else { 415 };
            assert_eq!(status, [expected], "{path} {coding}: {answer}");
        }
    }
    let form = "content-type: multipart/form-data; boundary=b\r\ncontent-encoding: gzip";
    let (status, answer) = post(platform, EDITS, form, &bomb);
    assert_eq!(status, [415], "{answer}");
}

fn deep(platform: &Platform) {
    let openings = [
        "[".to_owned(),
        "{\"a\":".to_owned(),
        "[{\"a\":".to_owned(),
        "{\"prompt\":[".to_owned(),
        "{\"input\":{\"messages\":[".to_owned(),
        "{\"inputs\":[{\"data\":[".to_owned(),
    ];
    for path in JSON_PATHS {
        for opening in &openings {
            let body = opening.repeat(1000 * 1000 / opening.len());
            // A token's body is smaller than that.
            let (status, answer) = post(platform, path, &json(path), body.as_bytes());
            let expected = if path == "/v1/token" { 413 } else { 400 };
            assert_eq!(status, [expected], "{path} {opening}: {answer}");
        }
    }
}

fn announced_gigabyte(platform: &Platform) {
    let form = "content-type: multipart/form-data; boundary=b";
    for (path, kind) in JSON_PATHS
        .map(|path| (path, json(path)))
        .into_iter()
        .chain([(EDITS, form.to_owned())])
    {
        // Refused before any of it is sent, …
        let head = head(platform, path, &format!("{kind}\r\ncontent-length: {GIB}"));
        let mut stream = connect(platform);
        stream.write_all(head.as_bytes()).unwrap();
        assert_eq!(statuses(&read_answers(&mut stream)), [413], "{path}");
        // … and to those who send without listening as well.
        let mut stream = connect(platform);
        stream.write_all(head.as_bytes()).unwrap();
        send_gigabyte(&mut stream, &[b' '; 64 * 1024]);
        assert_eq!(statuses(&read_answers(&mut stream)), [413], "{path}");
    }
}

/// Sends a gigabyte in these pieces, or what is taken of it.
fn send_gigabyte(stream: &mut std::net::TcpStream, piece: &[u8]) {
    for _ in 0..GIB / piece.len() {
        if stream.write_all(piece).is_err() {
            return;
        }
    }
    panic!("a gigabyte was taken");
}

fn chunked_gigabyte(platform: &Platform) {
    let mut chunk = b"10000\r\n".to_vec();
    chunk.resize(chunk.len() + 0x10000, b' ');
    chunk.extend(b"\r\n");
    let form = "content-type: multipart/form-data; boundary=b";
    for (path, kind) in JSON_PATHS
        .map(|path| (path, json(path)))
        .into_iter()
        .chain([(EDITS, form.to_owned())])
    {
        let mut stream = connect(platform);
        let head = head(
            platform,
            path,
            &format!("{kind}\r\ntransfer-encoding: chunked"),
        );
        stream.write_all(head.as_bytes()).unwrap();
        send_gigabyte(&mut stream, &chunk);
        // The answer came while the sender was sending, and is there for it to read.
        assert_eq!(statuses(&read_answers(&mut stream)), [413], "{path}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn bodies_that_arrive_at_once_have_so_much_memory_together_and_small_ones_always_find_room() {
    let few = [
        ("INKSTONE_GATEWAY__HTTP__MAX_UPLOAD", "1MiB"),
        ("INKSTONE_GATEWAY__HTTP__MAX_BODY_BYTES", "4MiB"),
        // All of them are one caller's here.
        ("INKSTONE_GATEWAY__HTTP__TENANT_SHARE", "100"),
        (
            "INKSTONE_GATEWAY__HTTP__MAX_CONNECTIONS_PER_ADDRESS",
            "4096",
        ),
    ];
    let platform = Platform::start_services(&FRONT, &few, false).await;
    platform.allow("dev", 1000).await;
    // The bodies, and as much again for what sockets and parsers have.
    under_attack(&platform, "many bodies", 32, async {
        tokio::task::block_in_place(|| many_bodies(&platform));
    })
    .await;
}

fn many_bodies(platform: &Platform) {
    const BODY: usize = 1 << 20;
    let head = head(
        platform,
        "/v1/tasks",
        &format!("{}\r\ncontent-length: {BODY}", json("/v1/tasks")),
    );
    // All but their last bytes: held for as long as the sender likes, or a request may take.
    let mut streams: Vec<_> = (0..40)
        .map(|_| {
            let mut stream = connect(platform);
            stream.write_all(head.as_bytes()).unwrap();
            // One that is refused may be closed meanwhile.
            let _ = stream.write_all(&vec![b' '; BODY - 10]);
            stream
        })
        .collect();
    let (status, answer) = post(
        platform,
        "/v1/tasks",
        &json("/v1/tasks"),
        br#"{"prompt": "a cat"}"#,
    );
    assert_eq!(status, [202], "{answer}");
    let mut busy = 0;
    for stream in &mut streams {
        let _ = stream.write_all(&[b' '; 10]);
        let answer = read_answers(stream);
        match statuses(&answer)[..] {
            // Nothing but spaces.
            [400] => {}
            [503] => {
                assert!(answer.contains("retry-after"), "{answer}");
                busy += 1;
            }
            _ => panic!("{answer}"),
        }
    }
    assert!(busy >= 30, "{busy} of 40 found no room");
    let metrics = platform.metrics("gateway");
    assert!(metrics.contains("inkstone_gateway_bodies_refused_total"));
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_withholds_the_ends_of_its_bodies_leaves_room_for_those_of_other_addresses_and_tenants()
 {
    // Of four bodies one address may have one, and one tenant two.
    let few = [
        ("INKSTONE_GATEWAY__HTTP__MAX_UPLOAD", "1MiB"),
        ("INKSTONE_GATEWAY__HTTP__MAX_BODY_BYTES", "4MiB"),
    ];
    let platform = Platform::start_services(&FRONT, &few, false).await;
    platform.allow("dev", 1000).await;
    let other = platform.create_key("dev-", "other").await;
    let other = format!("Bearer {}", other.bearer);
    under_attack(
        &platform,
        "withheld bodies",
        32,
        withheld_bodies(&platform, &other),
    )
    .await;
}

async fn withheld_bodies(platform: &Platform, other: &str) {
    let mine = platform.authorization();
    let (go_on, told) = watch::channel(false);
    let mut sending = JoinSet::new();
    let withhold = |host: u8, bearer: &str, told: &watch::Receiver<bool>| {
        let from = Ipv4Addr::new(127, 0, 3, host);
        let head = json("/v1/tasks");
        let head = format!(
            "POST /v1/tasks HTTP/1.1\r\nhost: x\r\nauthorization: {bearer}\r\n{head}\r\n\
             content-length: {WITHHELD}\r\nconnection: close\r\n\r\n"
        );
        withheld(address(platform), from, head, told.clone())
    };
    // Each of two addresses has one body, and is refused another; the third has none, because its tenant has two.
    for (host, held, why) in [
        (1, 1, "for one address"),
        (2, 2, "for one address"),
        (3, 2, "for one tenant"),
    ] {
        while sending.len() < held {
            sending.spawn(withhold(host, &mine, &told));
        }
        until_held(platform, held).await;
        sending.spawn(withhold(host, &mine, &told));
        let answer = next_answer(&mut sending).await;
        assert_eq!(statuses(&answer), [429], "{answer}");
        assert!(answer.contains(why), "{why}: {answer}");
        assert!(answer.contains("retry-after"), "{answer}");
    }
    until_held(platform, 2).await;
    // A body of another tenant, from another address, arrives whole and is read: it is nothing but spaces.
    let (_now, at_once) = watch::channel(true);
    let mut others = JoinSet::new();
    others.spawn(withhold(4, other, &at_once));
    let answer = next_answer(&mut others).await;
    assert_eq!(statuses(&answer), [400], "{answer}");
    // So are those that were held, once they end.
    go_on.send(true).unwrap();
    for _ in 0..2 {
        let answer = next_answer(&mut sending).await;
        assert_eq!(statuses(&answer), [400], "{answer}");
    }
}

/// Waits until all that was sent of so many withheld bodies is in the gateway's memory.
async fn until_held(platform: &Platform, bodies: usize) {
    // What every body may have takes no room.
    let expected = (bodies * (WITHHELD - REST - 16 * 1024)) as f64;
    let began = Instant::now();
    loop {
        let metrics = platform.metrics("gateway");
        let held = metrics
            .lines()
            .find_map(|line| line.strip_prefix("inkstone_gateway_body_bytes "));
        let held = held.map_or(0.0, |held| held.trim().parse::<f64>().unwrap());
        if held == expected {
            return;
        }
        assert!(began.elapsed() < PATIENCE, "{held} bytes, not {expected}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn next_answer(sending: &mut JoinSet<String>) -> String {
    let next = tokio::time::timeout(PATIENCE, sending.join_next()).await;
    next.unwrap().unwrap().unwrap()
}

/// What comes back to a request from an address whose body lacks its last bytes until `told`.
async fn withheld(
    to: SocketAddr,
    from: Ipv4Addr,
    head: String,
    mut told: watch::Receiver<bool>,
) -> String {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind((from, 0).into()).unwrap();
    let mut stream = socket.connect(to).await.unwrap();
    let (mut reads, mut writes) = stream.split();
    let send = async {
        // One that is refused may be closed meanwhile.
        let _ = writes.write_all(head.as_bytes()).await;
        let _ = writes.write_all(&vec![b' '; WITHHELD - REST]).await;
        drop(told.wait_for(|told| *told).await);
        let _ = writes.write_all(&[b' '; REST]).await;
        std::future::pending::<()>().await;
    };
    let mut answer = Vec::new();
    tokio::select! {
        // A reset is an end, too.
        _ = reads.read_to_end(&mut answer) => {}
        () = send => {}
    }
    String::from_utf8_lossy(&answer).into_owned()
}
