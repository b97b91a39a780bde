//! HTTP/2 as no client speaks it: frames by hand, and many of them.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::Instant;

use e2e::Platform;

use super::{FRONT, PATIENCE, PAUSE, connect, under_attack};

const DATA: u8 = 0;
pub(super) const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;
const CONTINUATION: u8 = 9;
const END_STREAM: u8 = 1;
pub(super) const END_HEADERS: u8 = 4;

/// Frames that a flood consists of: far more than any limit, little enough to be sent in a moment.
const FLOOD: u32 = 50_000;
/// Floods of the same kind at once.
const CONNECTIONS: usize = 4;

pub(super) fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = (payload.len() as u32).to_be_bytes();
    let mut frame = length[1..].to_vec();
    frame.extend([kind, flags]);
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    frame
}

/// A header field, literally and not to be remembered (RFC 7541, 6.2.2).
fn field(name: &str, value: &str) -> Vec<u8> {
    let mut field = vec![0];
    for text in [name, value] {
        number(&mut field, text.len());
        field.extend(text.as_bytes());
    }
    field
}

/// A length with a prefix of seven bits (RFC 7541, 5.1).
fn number(out: &mut Vec<u8>, length: usize) {
    const FULL: usize = 127;
    if length < FULL {
        out.push(length as u8);
        return;
    }
    out.push(FULL as u8);
    let mut rest = length - FULL;
    while rest >= 128 {
        out.push((rest % 128 + 128) as u8);
        rest /= 128;
    }
    out.push(rest as u8);
}

fn request(path: &str, more: &[(&str, &str)]) -> Vec<u8> {
    head("GET", path, more)
}

pub(super) fn head(method: &str, path: &str, more: &[(&str, &str)]) -> Vec<u8> {
    let known = [
        (":method", method),
        (":scheme", "http"),
        (":authority", "x"),
        (":path", path),
    ];
    known
        .iter()
        .chain(more)
        .flat_map(|(name, value)| field(name, value))
        .collect()
}

/// A connection on which both sides have said that they speak HTTP/2.
pub(super) fn open(platform: &Platform) -> TcpStream {
    let mut stream = connect(platform);
    let mut hello = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    hello.extend(frame(SETTINGS, 0, 0, &[]));
    stream.write_all(&hello).unwrap();
    stream
}

/// What the gateway did with a flood.
struct Outcome {
    /// Bytes that it took, or the system for it, before it took no more.
    taken: usize,
    /// The error of its farewell, if there was one.
    farewell: Option<u32>,
}

/// Sends pieces for as long as the gateway takes them, while what it says is read.
fn flood(mut stream: TcpStream, pieces: impl Iterator<Item = Vec<u8>>) -> Outcome {
    let mut reader = stream.try_clone().unwrap();
    let reading = std::thread::spawn(move || {
        let mut all = Vec::new();
        // Ends when the gateway closes the connection, or the flood below does.
        let _ = reader.read_to_end(&mut all);
        all
    });
    let began = Instant::now();
    let (mut taken, mut batch) = (0, Vec::new());
    for piece in pieces {
        batch.extend(piece);
        if batch.len() < 16 * 1024 {
            continue;
        }
        if stream.write_all(&batch).is_err() {
            break;
        }
        taken += batch.len();
        batch.clear();
        assert!(began.elapsed() < PATIENCE, "a flood goes on and on");
    }
    let _ = stream.write_all(&batch);
    let _ = stream.shutdown(std::net::Shutdown::Write);
    let answer = reading.join().unwrap();
    Outcome {
        taken,
        farewell: farewell(&answer),
    }
}

/// The error code of the last GOAWAY in what was received.
fn farewell(mut bytes: &[u8]) -> Option<u32> {
    let mut code = None;
    while let [a, b, c, kind, _, _, _, _, _, rest @ ..] = bytes {
        let length = u32::from_be_bytes([0, *a, *b, *c]) as usize;
        let payload = rest.get(..length)?;
        if *kind == GOAWAY {
            code = Some(u32::from_be_bytes(payload[4..8].try_into().unwrap()));
        }
        bytes = &rest[length..];
    }
    code
}

/// How many requests for this path were answered.
fn answered(metrics: &str, path: &str) -> u64 {
    let of_path = format!("route=\"{path}\"");
    let lines = metrics.lines().filter(|line| {
        line.starts_with("inkstone_gateway_requests_total") && line.contains(&of_path)
    });
    let counts = lines.filter_map(|line| line.rsplit_once(' ')?.1.parse::<u64>().ok());
    counts.sum()
}

/// The same flood on several connections at once.
async fn floods(
    platform: &Platform,
    name: &str,
    mib: u64,
    pieces: impl Fn() -> Box<dyn Iterator<Item = Vec<u8>> + Send>,
) -> Vec<Outcome> {
    let mut outcomes = Vec::new();
    under_attack(platform, name, mib, async {
        let open = || {
            let (stream, pieces) = (open(platform), pieces());
            std::thread::spawn(move || flood(stream, pieces))
        };
        let floods: Vec<_> = (0..CONNECTIONS).map(|_| open()).collect();
        let join = || {
            floods
                .into_iter()
                .map(|flood| flood.join().unwrap())
                .collect()
        };
        outcomes = tokio::task::block_in_place(join);
    })
    .await;
    outcomes
}

/// Reads until so many answers have ended.
pub(super) fn read_ends(stream: &mut TcpStream, wanted: usize) {
    let mut ended = 0;
    while ended < wanted {
        let mut head = [0; 9];
        stream.read_exact(&mut head).unwrap();
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
        let mut payload = vec![0; length as usize];
        stream.read_exact(&mut payload).unwrap();
        let [kind, flags] = [head[3], head[4]];
        ended += usize::from(matches!(kind, DATA | HEADERS) && flags & END_STREAM != 0);
    }
}

/// Asks for health on so many streams, gives each answer its window, and reads them all.
fn read_health(stream: &mut TcpStream, streams: &mut impl Iterator<Item = u32>, count: usize) {
    let head = request("/healthz", &[]);
    let ask = |id| {
        let mut piece = frame(HEADERS, END_HEADERS | END_STREAM, id, &head);
        piece.extend(frame(WINDOW_UPDATE, 0, id, &65_535_u32.to_be_bytes()));
        piece
    };
    let asked: Vec<u8> = streams.by_ref().take(count).flat_map(ask).collect();
    stream.write_all(&asked).unwrap();
    read_ends(stream, count);
}

/// Reads until a stream is over: true when the gateway takes it back.
fn read_over(stream: &mut TcpStream, wanted: u32) -> bool {
    loop {
        let mut head = [0; 9];
        stream.read_exact(&mut head).unwrap();
        let [length, id] = [
            [0, head[0], head[1], head[2]],
            [head[5], head[6], head[7], head[8]],
        ]
        .map(u32::from_be_bytes);
        let mut payload = vec![0; length as usize];
        stream.read_exact(&mut payload).unwrap();
        if id == wanted && (head[3] == RST_STREAM || head[4] & END_STREAM != 0) {
            return head[3] == RST_STREAM;
        }
    }
}

/// Numbers of streams that a client opens.
fn streams() -> impl Iterator<Item = u32> {
    (0..FLOOD).map(|i| 2 * i + 1)
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_taken_back_as_soon_as_they_are_made_end_their_connection() {
    let platform = Platform::start_services(&FRONT, &[], false).await;
    let bearer = platform.authorization();
    let pieces = || -> Box<dyn Iterator<Item = Vec<u8>> + Send> {
        let head = request("/v1/models", &[("authorization", &bearer)]);
        Box::new(streams().map(move |stream| {
            let mut piece = frame(HEADERS, END_HEADERS | END_STREAM, stream, &head);
            // CANCEL
            piece.extend(frame(RST_STREAM, 0, stream, &8_u32.to_be_bytes()));
            piece
        }))
    };
    let outcomes = floods(&platform, "rapid reset", 64, pieces).await;
    for outcome in outcomes {
        // ENHANCE_YOUR_CALM, where it is still heard.
        assert!(
            matches!(outcome.farewell, None | Some(11)),
            "{:?}",
            outcome.farewell
        );
    }
    let metrics = platform.metrics("gateway");
    let all = CONNECTIONS as u64 * u64::from(FLOOD);
    let answered = answered(&metrics, "/v1/models");
    println!("{answered} of {all} requests that were taken back were worked for");
    assert!(answered < all / 100, "{answered} of {all} were worked for");
    // Requests that are malformed have the server take them back itself.
    let pieces = || -> Box<dyn Iterator<Item = Vec<u8>> + Send> {
        let head = request("/", &[("connection", "close")]);
        Box::new(
            streams().map(move |stream| frame(HEADERS, END_HEADERS | END_STREAM, stream, &head)),
        )
    };
    let outcomes = floods(&platform, "made to reset", 64, pieces).await;
    assert!(
        outcomes
            .iter()
            .all(|outcome| outcome.farewell.is_none_or(|code| code != 0))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn heads_that_never_end_settings_pings_and_empty_frames_end_their_connection_or_pass() {
    let platform = Platform::start_services(&FRONT, &[], false).await;
    // Continued for ever (CVE-2024-27316), in large pieces and in empty ones.
    for (name, size) in [("continuation", 8 * 1024), ("empty continuation", 0)] {
        let outcomes = floods(&platform, name, 32, move || {
            let first = frame(HEADERS, END_STREAM, 1, &request("/healthz", &[]));
            let more = field("x-long", &"x".repeat(size));
            let more = if size == 0 { Vec::new() } else { more };
            let more = (0..FLOOD).map(move |_| frame(CONTINUATION, 0, 1, &more));
            Box::new(std::iter::once(first).chain(more))
        });
        for outcome in outcomes.await {
            assert!(
                outcome.farewell.is_none_or(|code| code != 0),
                "{name}: {:?}",
                outcome.farewell
            );
            let all = FLOOD as usize * (size + 9);
            // Of a small flood, the system may have taken all before the gateway said no.
            let some = outcome.taken < all || size == 0;
            assert!(some, "{name}: all of {all} bytes were taken");
        }
    }
    // A head that is too long in one frame is answered, and others on its connection go on.
    let too_long = field("x-long", &"x".repeat(15 * 1024));
    let heads = move || -> Box<dyn Iterator<Item = Vec<u8>> + Send> {
        let mut head = request("/healthz", &[]);
        let (first, more) = (too_long.clone(), too_long.clone());
        head.extend(first);
        Box::new((0..100).map(move |i| {
            let mut piece = frame(HEADERS, END_STREAM, 2 * i + 1, &head);
            piece.extend(frame(CONTINUATION, 0, 2 * i + 1, &more));
            piece.extend(frame(CONTINUATION, END_HEADERS, 2 * i + 1, &more));
            piece
        }))
    };
    floods(&platform, "long heads", 32, heads).await;
    // Cheap for the sender and no cheaper for the receiver: what counts is that nothing piles up.
    for (name, piece) in [
        ("settings", frame(SETTINGS, 0, 0, &[0, 1, 0, 0, 16, 0])),
        ("pings", frame(PING, 0, 0, &[7; 8])),
        (
            "window updates",
            frame(WINDOW_UPDATE, 0, 0, &1_u32.to_be_bytes()),
        ),
        ("unknown frames", frame(200, 0, 0, &[0; 64])),
    ] {
        floods(&platform, name, 16, move || {
            let piece = piece.clone();
            Box::new((0..FLOOD).map(move |_| piece.clone()))
        })
        .await;
    }
    // A body of nothing, for ever.
    floods(&platform, "empty data", 16, || {
        let mut head = request("/v1/tasks", &[("content-type", "application/json")]);
        head.splice(..field(":method", "GET").len(), field(":method", "POST"));
        let first = frame(HEADERS, END_HEADERS, 1, &head);
        Box::new(std::iter::once(first).chain((0..FLOOD).map(|_| frame(DATA, 0, 1, &[]))))
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_anyone_may_ask_for_keeps_nobody_out_when_it_is_never_asked_to_the_end() {
    /// Within what a connection may have under way, and together more than there are places for requests that look.
    const STREAMS: u32 = 250;
    const HELD: usize = 6;
    let platform = Platform::start_services(&FRONT, &[], false).await;
    for (path, kind) in [
        ("/grpc.health.v1.Health/Check", "application/grpc"),
        ("/grpc.health.v1.Health/Watch", "application/grpc"),
        (
            "/inference.GRPCInferenceService/ServerLive",
            "application/grpc",
        ),
        ("/v1/token", "application/json"),
    ] {
        under_attack(&platform, path, 64, async {
            let fields = [("content-type", kind), ("authorization", "Bearer x")];
            let head = head("POST", path, &fields);
            let begun = (0..STREAMS).map(|i| frame(HEADERS, END_HEADERS, 2 * i + 1, &head));
            let begun: Vec<u8> = begun.flatten().collect();
            let hold = || {
                let mut held: Vec<_> = (0..HELD).map(|_| open(&platform)).collect();
                for stream in &mut held {
                    stream.write_all(&begun).unwrap();
                }
                for stream in &mut held {
                    read_ends(stream, STREAMS as usize);
                }
            };
            tokio::task::block_in_place(hold);
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_that_are_never_read_are_given_up_though_their_connection_reads_others() {
    /// What the connection is handed of each stays with it: of so many it is little enough for the connection to be borne.
    const STUCK: u32 = 8;
    /// Answers about health that are read at a time: more of them in a second than a client must read.
    const READ: usize = 100;
    let settings = [
        (
            "INKSTONE_GATEWAY__HTTP__MAX_UNREAD_BYTES_WITHOUT_KEY",
            "64KiB",
        ),
        ("INKSTONE_GATEWAY__HTTP__READ_TIMEOUT", "2s"),
    ];
    let platform = Platform::start_services(&FRONT, &settings, false).await;
    let page = || {
        e2e::get(&format!("{}/docs", platform.url()), &[])
            .unwrap()
            .0
    };
    let attack = || {
        let mut streams = streams();
        let mut stream = open(&platform);
        // No answer has a window (RFC 9113, 6.5.2), and all of them together have one that never ends.
        let mut hello = frame(SETTINGS, 0, 0, &[0, 4, 0, 0, 0, 0]);
        hello.extend(frame(WINDOW_UPDATE, 0, 0, &(1_u32 << 30).to_be_bytes()));
        stream.write_all(&hello).unwrap();
        let head = request("/openapi.json", &[]);
        for id in streams.by_ref().take(STUCK as usize) {
            let ask = frame(HEADERS, END_HEADERS | END_STREAM, id, &head);
            stream.write_all(&ask).unwrap();
        }
        for (what, status) in [("fill no room", 503), ("keep their room", 200)] {
            let began = Instant::now();
            while page() != status {
                assert!(began.elapsed() < PATIENCE, "answers left unread {what}");
                read_health(&mut stream, &mut streams, READ);
                std::thread::sleep(PAUSE);
            }
        }
        // The connection is as good as before; what was given up is told where there is a window for it.
        read_health(&mut stream, &mut streams, READ);
        // Those that found no room had little to say, and all of that was handed over.
        let mut taken_back = 0;
        for id in (0..STUCK).map(|i| 2 * i + 1) {
            let window = frame(WINDOW_UPDATE, 0, id, &(1_u32 << 20).to_be_bytes());
            stream.write_all(&window).unwrap();
            taken_back += u32::from(read_over(&mut stream, id));
        }
        assert!(
            (1..STUCK).contains(&taken_back),
            "{taken_back} were taken back"
        );
        read_health(&mut stream, &mut streams, READ);
    };
    under_attack(&platform, "answers left unread", 32, async {
        tokio::task::block_in_place(attack);
    })
    .await;
    let metrics = platform.metrics("gateway");
    assert!(!metrics.contains("reason=\"slow_reader\""), "{metrics}");
}
