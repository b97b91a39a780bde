//! Messages over gRPC that are packed, that announce more than there is, that are large in memory alone, and that never come.

use std::io::{Cursor, Write as _};
use std::time::{Duration, Instant};

use e2e::Platform;
use http_body_util::{BodyExt as _, Full};
use hyper::client::conn::http2::SendRequest;
use hyper::{HeaderMap, Request};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::task::JoinSet;

use super::flate::gzip_zeros;
use super::frames::{self, END_HEADERS, HEADERS};
use super::{FRONT, PATIENCE, address, under_attack};

const SUBMIT: &str = "/inkstone.v1.ImageService/Submit";
const SUBMIT_BATCH: &str = "/inkstone.v1.ImageService/SubmitBatch";
const MODEL_INFER: &str = "/inference.GRPCInferenceService/ModelInfer";

type Body = Full<Cursor<Vec<u8>>>;

/// A connection for calls, which lives as long as `connections`.
async fn open(
    platform: &Platform,
    connections: &mut JoinSet<hyper::Result<()>>,
) -> SendRequest<Body> {
    let stream = tokio::net::TcpStream::connect(address(platform)).await;
    let stream = TokioIo::new(stream.unwrap());
    let shaken = hyper::client::conn::http2::handshake(TokioExecutor::new(), stream);
    let (sender, connection) = shaken.await.unwrap();
    connections.spawn(connection);
    sender
}

/// A call of one message, with what stands in front of it: whether it is packed, how, and the length that it announces.
fn call(
    platform: &Platform,
    path: &str,
    (coding, flag, announced): (&str, u8, u32),
    message: &[u8],
) -> Request<Body> {
    let mut body = vec![flag];
    body.extend(announced.to_be_bytes());
    body.extend(message);
    let request = Request::post(format!("{}{path}", platform.url()))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .header("grpc-encoding", coding)
        .header("authorization", platform.authorization())
        .body(Full::new(Cursor::new(body)));
    request.unwrap()
}

/// What an answer says of how the call ended: in its head, or behind it.
async fn told(mut sender: SendRequest<Body>, call: Request<Body>) -> HeaderMap {
    let answer = sender.send_request(call).await.unwrap();
    let mut told = answer.headers().clone();
    let rest = answer.into_body().collect().await.unwrap();
    told.extend(rest.trailers().cloned().unwrap_or_default());
    told
}

/// A gigabyte in a megabyte, and messages that announce more than there is or may be.
pub(super) async fn packed_messages(platform: &Platform) {
    let mut connections = JoinSet::new();
    let sender = open(platform, &mut connections).await;
    let bomb = gzip_zeros(20 << 20);
    let least = bomb.len() as u32;
    for prefix in [
        ("gzip", 1, least),
        ("deflate", 1, least),
        ("zstd", 1, least),
        ("identity", 1, least),
        ("identity", 0, 1 << 30),
        ("identity", 0, u32::MAX),
        ("identity", 77, least),
    ] {
        let told = told(sender.clone(), call(platform, SUBMIT, prefix, &bomb)).await;
        // UNIMPLEMENTED where it is packed, OUT_OF_RANGE where it is too long, INTERNAL where it is no message at all.
        let expected = match prefix {
            ("identity", 0, _) => "11",
            ("identity", ..) => "13",
            _ => "12",
        };
        assert_eq!(told["grpc-status"], expected, "{prefix:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_of_a_megabyte_of_empty_records_are_refused_before_they_become_a_hundred_times_that()
 {
    const CONNECTIONS: usize = 4;
    /// Calls at once, of which each became 170 MiB.
    const CALLS: usize = 16;
    let platform = Platform::start_services(&FRONT, &[], false).await;
    platform.allow("dev", 1000).await;
    // A key and a length of nothing, as often as a message has room for.
    for (path, key, bytes, field) in [
        (SUBMIT_BATCH, 0x0a_u8, 1_usize << 20, "tasks"),
        (MODEL_INFER, 0x2a, 256 << 10, "inputs"),
    ] {
        let message = [key, 0].repeat(bytes / 2);
        under_attack(&platform, path, 64, async {
            let mut connections = JoinSet::new();
            let mut senders = Vec::new();
            for _ in 0..CONNECTIONS {
                senders.push(open(&platform, &mut connections).await);
            }
            let mut calls = JoinSet::new();
            for i in 0..CALLS {
                let prefix = ("identity", 0, bytes as u32);
                let call = call(&platform, path, prefix, &message);
                calls.spawn(told(senders[i % CONNECTIONS].clone(), call));
            }
            while let Some(told) = calls.join_next().await {
                let told = told.unwrap();
                // INVALID_ARGUMENT
                assert_eq!(told["grpc-status"], "3", "{path}: {told:?}");
                assert_eq!(told["inkstone-field"], field);
            }
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_whose_message_never_comes_gives_its_place_back_long_before_a_picture_would_be_late()
{
    /// All places of one tenant, half of those that there are.
    const PLACES: u32 = 4;
    const LIMIT: Duration = Duration::from_secs(3);
    let few = [
        ("INKSTONE_GATEWAY__HTTP__MAX_CONCURRENT_GENERATIONS", "8"),
        ("INKSTONE_GATEWAY__HTTP__REQUEST_TIMEOUT", "3s"),
    ];
    let platform = Platform::start_services(&FRONT, &few, false).await;
    platform.allow("dev", 1000).await;
    let bearer = platform.authorization();
    let fields = [
        ("content-type", "application/grpc"),
        ("te", "trailers"),
        ("authorization", bearer.as_str()),
    ];
    let head = frames::head("POST", MODEL_INFER, &fields);
    under_attack(&platform, "no message", 32, async {
        tokio::task::block_in_place(|| {
            let mut stream = frames::open(&platform);
            // Whoever had no place would be refused at once.
            for round in 0..2 {
                let begun = Instant::now();
                for place in 0..PLACES {
                    let number = 2 * (round * PLACES + place) + 1;
                    let begin = frames::frame(HEADERS, END_HEADERS, number, &head);
                    stream.write_all(&begin).unwrap();
                }
                frames::read_ends(&mut stream, 1);
                let first = begun.elapsed();
                frames::read_ends(&mut stream, PLACES as usize - 1);
                let last = begun.elapsed();
                assert!(first >= LIMIT && last < PATIENCE, "{first:?} to {last:?}");
            }
        });
    })
    .await;
    // DEADLINE_EXCEEDED
    let metrics = platform.metrics("gateway");
    let ended = metrics.lines().find(|line| {
        line.starts_with("inkstone_gateway_requests_total")
            && line.contains("GRPCInferenceService")
            && line.contains("status=\"grpc-4\"")
    });
    let count = ended.and_then(|line| line.rsplit_once(' ')?.1.parse::<u32>().ok());
    assert_eq!(count, Some(2 * PLACES), "{metrics}");
}
