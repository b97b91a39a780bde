//! What is open when its key is revoked: auth has let it in, and is asked again.

use std::time::{Duration, Instant};

use contract::inference::ModelInferRequest;
use contract::inference::grpc_inference_service_client::GrpcInferenceServiceClient;
use contract::v1::{CancelRequest, WatchRequest, WatchResponse, watch_response::Event};
use e2e::{LIMIT, Platform};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tonic::{Code, Request, Streaming};

use crate::instances::two_gateways;
use crate::short_picture;

/// For how long auth's word on a caller is enough to submit by it.
const NEWS: Duration = Duration::from_secs(1);

/// Bytes to a gateway, and a connection for the answer.
async fn send(platform: &Platform, gateway: &str, bytes: &str) -> TcpStream {
    let address = platform.url_of(gateway).replace("http://", "");
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(bytes.as_bytes()).await.unwrap();
    stream
}

/// What comes until these words have come.
async fn heard(stream: &mut TcpStream, words: &str) -> String {
    let mut bytes = Vec::new();
    let began = Instant::now();
    while !String::from_utf8_lossy(&bytes).contains(words) {
        let left = LIMIT.saturating_sub(began.elapsed());
        let read = tokio::time::timeout(left, stream.read_buf(&mut bytes)).await;
        let heard = String::from_utf8_lossy(&bytes);
        assert!(read.is_ok(), "{words:?} does not come: {heard}");
        assert!(read.unwrap().unwrap() > 0, "no {words:?} in {heard}");
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

fn with_key<T>(bearer: &str, message: T) -> Request<T> {
    let mut request = Request::new(message);
    let bearer = format!("Bearer {bearer}").parse().unwrap();
    request.metadata_mut().insert("authorization", bearer);
    request
}

/// The watch of a task at a gateway, once it has shown the task.
async fn watch(
    platform: &Platform,
    gateway: &str,
    request: Request<WatchRequest>,
) -> Streaming<WatchResponse> {
    let answer = platform.client_of(gateway).watch(request).await;
    let mut watch = answer.unwrap().into_inner();
    watch.message().await.unwrap().expect("the task as it is");
    watch
}

/// How a stream ends.
async fn refusal<T>(stream: &mut Streaming<T>) -> Code {
    let end = async {
        loop {
            match stream.message().await {
                Ok(Some(_)) => {}
                Ok(None) => return Code::Ok,
                Err(status) => return status.code(),
            }
        }
    };
    tokio::time::timeout(LIMIT, end).await.expect("it goes on")
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_open_ends_when_its_key_is_revoked_what_arrives_later_makes_no_task_and_another_keys_goes_on()
 {
    // Nobody draws, so that all of it would go on.
    let (platform, key) = two_gateways().await;
    let task = platform.submit(short_picture()).await.unwrap().id;
    let wanted = || WatchRequest {
        task_id: task.clone(),
        ..Default::default()
    };

    let mut own = watch(&platform, "gateway-2", with_key(&key.bearer, wanted())).await;
    let mut others = watch(&platform, "gateway-2", platform.request(wanted())).await;
    let head = format!("host: e2e\r\nauthorization: Bearer {}\r\n", key.bearer);
    let get = format!("GET /v1/tasks/{task}/events HTTP/1.1\r\n{head}\r\n");
    let mut events = send(&platform, "gateway", &get).await;
    heard(&mut events, "event: task").await;
    // None of its requests has come yet.
    let requests = with_key(&key.bearer, futures::stream::pending::<ModelInferRequest>());
    let mut inference = GrpcInferenceServiceClient::new(platform.channel("gateway"));
    let answers = inference.model_stream_infer(requests).await;
    let mut answers = answers.unwrap().into_inner();
    let one = r#"{"prompt": "a 3d cat", "steps": 2}"#;
    // More than the key may ever send at once, which is said where a batch is charged.
    let many = format!("{{\"tasks\": [{}]}}", [one; 60].join(","));
    let mut slow = Vec::new();
    for (path, body) in [("/v1/tasks", one), ("/v1/tasks/batch", many.as_str())] {
        let post = format!(
            "POST {path} HTTP/1.1\r\n{head}content-type: application/json\r\ncontent-length: {}\r\n\
             expect: 100-continue\r\nconnection: close\r\n\r\n",
            body.len()
        );
        let mut stream = send(&platform, "gateway-2", &post).await;
        // The body is asked for once its sender is known.
        heard(&mut stream, "100 Continue\r\n\r\n").await;
        slow.push((stream, body));
    }
    let let_in = tokio::time::Instant::now();

    platform.revoke_key(&key.key.unwrap().app_key).await;
    assert_eq!(refusal(&mut own).await, Code::Unauthenticated);
    assert_eq!(refusal(&mut answers).await, Code::Unauthenticated);
    // Its last event names the task, which goes on.
    let end = heard(&mut events, &format!("\"task_id\":\"{task}\"")).await;
    assert!(end.contains("event: error"), "{end}");
    assert!(end.contains("unauthenticated"), "{end}");
    assert!(end.contains(&format!("see /v1/tasks/{task}")), "{end}");
    tokio::time::sleep_until(let_in + NEWS).await;
    for (mut stream, body) in slow {
        stream.write_all(body.as_bytes()).await.unwrap();
        let answer = heard(&mut stream, "\r\n\r\n").await;
        assert!(answer.starts_with("HTTP/1.1 401"), "{answer}");
    }

    assert_eq!(platform.list().await.len(), 1);
    // The other key's watch hears of its task's end.
    let cancel = platform.request(CancelRequest { task_id: task });
    platform.client().cancel(cancel).await.unwrap();
    let ended = async {
        while let Some(event) = others.message().await.unwrap() {
            if let Some(Event::Task(task)) = event.event
                && e2e::has_ended(&task)
            {
                return true;
            }
        }
        false
    };
    assert!(tokio::time::timeout(LIMIT, ended).await.unwrap());
}
