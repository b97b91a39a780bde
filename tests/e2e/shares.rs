//! One tenant cannot hold everything that a gateway has to give at once.

use std::io::Write as _;
use std::net::TcpStream;
use std::time::{Duration, Instant};

use contract::ErrorCode;
use contract::Failure;
use contract::v1::{SubmitRequest, SubmitTask, WatchRequest, WatchResponse};
use e2e::Platform;
use tonic::{Request, Status, Streaming};

use crate::short_picture;

/// A tenant with its bearer.
struct Tenant<'a> {
    platform: &'a Platform,
    bearer: String,
}

impl Tenant<'_> {
    fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        let bearer = format!("Bearer {}", self.bearer).parse().unwrap();
        request.metadata_mut().insert("authorization", bearer);
        request
    }

    async fn task(&self) -> String {
        let task = Some(short_picture());
        let request = self.request(SubmitRequest { task });
        let answer = self.platform.client().submit(request).await.unwrap();
        answer.into_inner().task.unwrap().id
    }

    async fn watch(&self, task: &str) -> Result<Streaming<WatchResponse>, Status> {
        let request = self.request(WatchRequest {
            task_id: task.to_owned(),
            previews: false,
        });
        let answer = self.platform.client().watch(request).await?;
        Ok(answer.into_inner())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tenant_with_its_share_of_streams_is_refused_another_and_the_next_tenant_is_not() {
    // Nobody draws, so that the streams go on.
    let services = ["auth", "model-registry", "orchestrator", "gateway"];
    let settings = [
        ("INKSTONE_GATEWAY__HTTP__MAX_EVENT_STREAMS", "4"),
        ("INKSTONE_GATEWAY__HTTP__TENANT_SHARE", "50"),
    ];
    let platform = Platform::start_services(&services, &settings, false).await;
    let tenant = |bearer: String| Tenant {
        platform: &platform,
        bearer,
    };
    let greedy = tenant(platform.create_key("dev-", "greedy").await.bearer);
    let other = tenant(platform.create_key("dev-", "other").await.bearer);
    let task = greedy.task().await;
    let first = greedy.watch(&task).await.unwrap();
    let second = greedy.watch(&task).await.unwrap();
    let status = greedy.watch(&task).await.unwrap_err();
    // Beside the share that was reached, the key's rate would be taken for it.
    let told = ["ratelimit-limit", "ratelimit-remaining"].map(|name| {
        let value = status.metadata().get(name).unwrap();
        value.to_str().unwrap().to_owned()
    });
    assert_eq!(told, ["2", "0"]);
    let refused = Failure::from(status);
    assert_eq!(refused.code, ErrorCode::RateLimited);
    assert!(
        refused.retry_after.is_some() && refused.message.contains("may have 2"),
        "{refused}"
    );
    let theirs = other.task().await;
    let third = other.watch(&theirs).await.unwrap();
    drop((first, third));
    // What was given back is there again, once the gateway has heard of it.
    let deadline = std::time::Instant::now() + e2e::LIMIT;
    while greedy.watch(&task).await.is_err() {
        assert!(std::time::Instant::now() < deadline, "still refused");
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    drop(second);
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_does_not_read_its_pictures_is_refused_more_of_them_and_others_are_served() {
    // A share is 4 KiB, and what is no more is not counted.
    let settings = [
        ("INKSTONE_GATEWAY__HTTP__MAX_UNREAD_BYTES", "400KiB"),
        ("INKSTONE_GATEWAY__HTTP__TENANT_SHARE", "1"),
        // Of which a share's share is two: whoever does not read is no reason to refuse whoever looks at the same moment.
        ("INKSTONE_GATEWAY__HTTP__MAX_CONCURRENT_READS", "20000"),
    ];
    let platform = Platform::start_with(&settings).await;
    let large = SubmitTask {
        width: 256,
        height: 256,
        ..short_picture()
    };
    let task = platform.submit(large).await.unwrap();
    let task = platform.wait_ended(&task.id).await;
    // It is read 128 KiB at a time; whichever of these is left unread is more than a share.
    let size = task.images[0].size_bytes;
    assert!(size % (128 * 1024) > 4 * 1024, "{size} B");
    // With a token, which needs no key and counts for the task.
    let picture = task.images[0].path.as_str();
    assert!(picture.contains("token="), "{picture}");
    let ask = |path: &str| {
        let request = e2e::agent().get(format!("{}{path}", platform.url()));
        let request = request.header("authorization", platform.authorization());
        let mut answer = request.call().unwrap();
        let wait = answer.headers().contains_key("retry-after");
        let body = answer.body_mut().read_to_vec().unwrap();
        let body = String::from_utf8_lossy(&body).into_owned();
        (answer.status().as_u16(), wait, body)
    };
    let until = |status: u16| {
        let began = Instant::now();
        loop {
            let answer = ask(picture);
            if answer.0 == status {
                return answer;
            }
            assert!(began.elapsed() < e2e::LIMIT, "still {}", answer.0);
            std::thread::sleep(Duration::from_millis(50));
        }
    };
    tokio::task::block_in_place(|| {
        until(200);
        let address = platform.url().replace("http://", "");
        let mut deaf = TcpStream::connect(address).unwrap();
        // More than sockets take, and none of it is read.
        let questions = format!("GET {picture} HTTP/1.1\r\nhost: x\r\n\r\n").repeat(300);
        deaf.write_all(questions.as_bytes()).unwrap();
        let (_, wait, body) = until(429);
        assert!(wait && body.contains("wait to be read"), "{body}");
        let other = format!("/v1/tasks/{}", task.id);
        for path in ["/v1/models", &other, "/docs"] {
            assert_eq!(ask(path).0, 200, "{path}");
        }
        drop(deaf);
        until(200);
    });
}
