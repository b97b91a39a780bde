//! The public port: exact shapes, both kinds of stream, who sees what, and pictures that depend on what was asked.

use std::io::{BufRead as _, BufReader};
use std::time::{Duration, Instant};

use contract::inference::ServerReadyRequest;
use contract::inference::grpc_inference_service_client::GrpcInferenceServiceClient;
use contract::v1::{
    CancelRequest, GetImageRequest, SubmitTask, Task, TaskPhase, WatchRequest, watch_response,
};
use e2e::{Platform, agent};
use serde_json::{Value, json};
use tonic::transport::Endpoint;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

use crate::{assert_whole, digests, long_picture, short_picture};

async fn draw(platform: &Platform, change: impl FnOnce(&mut SubmitTask)) -> Vec<String> {
    let mut picture = short_picture();
    change(&mut picture);
    let task = platform.submit(picture).await.unwrap();
    digests(&platform.wait_ended(&task.id).await)
}

#[tokio::test(flavor = "multi_thread")]
async fn pictures_depend_on_prompt_and_seed_and_on_nothing_else() {
    let platform = Platform::start().await;
    let first = draw(&platform, |_| {}).await;
    assert_eq!(
        draw(&platform, |_| {}).await,
        first,
        "same seed, same bytes"
    );
    assert_ne!(draw(&platform, |p| p.seed = Some(8)).await, first);
    assert_ne!(
        draw(&platform, |p| p.prompt = "a 3d dog".to_owned()).await,
        first
    );
    // Picture i of a task is the picture of seed + i.
    let both = draw(&platform, |p| p.images = 2).await;
    assert_eq!(both[0], first[0]);
    assert_eq!(both[1], draw(&platform, |p| p.seed = Some(8)).await[0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn healthz_says_exactly_status_version_and_uptime() {
    let platform = Platform::start().await;
    let (status, body) = e2e::get(&format!("{}/healthz", platform.url()), &[]).unwrap();
    assert_eq!(status, 200);
    let health: Value = serde_json::from_str(&body).unwrap();
    let uptime = health["uptime_seconds"].as_u64().unwrap();
    let version = env!("CARGO_PKG_VERSION");
    let exact = format!(r#"{{"status":"ok","version":"{version}","uptime_seconds":{uptime}}}"#);
    assert_eq!(body.trim_end(), exact);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancelled_picture_ends_as_cancelled_and_frees_the_worker() {
    let platform = Platform::start_with(&[("INKSTONE_GPU_WORKER__WORKER__SLOTS", "1")]).await;
    let running = platform.submit(long_picture()).await.unwrap();
    let waiting = platform.submit(long_picture()).await.unwrap();
    platform.wait_running(&running.id).await;
    for id in [&running.id, &waiting.id, &running.id] {
        let cancel = platform.request(CancelRequest {
            task_id: id.clone(),
        });
        let task = platform
            .client()
            .cancel(cancel)
            .await
            .unwrap()
            .into_inner()
            .task
            .unwrap();
        assert_eq!(task.phase(), TaskPhase::Cancelled);
    }
    let next = platform.submit(short_picture()).await.unwrap();
    assert_whole(&platform, &platform.wait_ended(&next.id).await);
    for id in [&running.id, &waiting.id] {
        assert_eq!(
            platform.get(id).await.unwrap().phase(),
            TaskPhase::Cancelled
        );
    }
    let done = platform.request(CancelRequest {
        task_id: next.id.clone(),
    });
    let task = platform
        .client()
        .cancel(done)
        .await
        .unwrap()
        .into_inner()
        .task
        .unwrap();
    assert_eq!(
        task.phase(),
        TaskPhase::Succeeded,
        "what has ended stays as it ended"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_grpc_watch_tells_progress_previews_and_the_end() {
    let platform = Platform::start().await;
    let mut picture = short_picture();
    (picture.partial_images, picture.steps) = (2, 40);
    let task = platform.submit(picture).await.unwrap();
    let watch = platform.request(WatchRequest {
        task_id: task.id.clone(),
        previews: true,
    });
    let mut updates = platform.client().watch(watch).await.unwrap().into_inner();
    let (mut steps, mut previews, mut last) = (0, 0, None);
    while let Some(update) = updates.message().await.unwrap() {
        match update.event.unwrap() {
            watch_response::Event::Progress(progress) => steps = steps.max(progress.step),
            watch_response::Event::Preview(preview) => {
                assert!(preview.data.starts_with(b"\x89PNG"));
                previews += 1;
            }
            watch_response::Event::Task(task) => last = Some(task),
        }
    }
    assert!(
        steps > 0 && previews > 0,
        "{steps} steps, {previews} previews"
    );
    let ended = last.unwrap();
    assert_whole(&platform, &ended);
    let fetch = platform.request(GetImageRequest {
        task_id: ended.id,
        index: 0,
    });
    let image = platform
        .client()
        .get_image(fetch)
        .await
        .unwrap()
        .into_inner();
    assert_eq!(image.data.len() as u64, image.info.unwrap().size_bytes);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_own_dialect_submits_streams_serves_and_keeps_tenants_apart() {
    let platform = Platform::start().await;
    let url = platform.url();
    let bearer = platform.authorization();
    let body = json!({"prompt": "a 3d cat", "steps": 4, "seed": 7});
    let mut answer = agent()
        .post(format!("{url}/v1/tasks"))
        .header("authorization", &bearer)
        .header("x-request-id", "my-request.1")
        .send_json(&body)
        .unwrap();
    assert_eq!(answer.status(), 202);
    assert_eq!(answer.headers()["x-request-id"], "my-request.1");
    assert!(answer.headers().contains_key("traceparent"));
    let task: Value = answer.body_mut().read_json().unwrap();
    let id = task["id"].as_str().unwrap();
    let events = agent()
        .get(format!("{url}/v1/tasks/{id}/events"))
        .header("authorization", &bearer)
        .call()
        .unwrap();
    let lines = BufReader::new(events.into_body().into_reader()).lines();
    let data: Vec<Value> = lines
        .map_while(Result::ok)
        .filter_map(|line| serde_json::from_str(line.strip_prefix("data:")?.trim()).ok())
        .collect();
    let last = data.last().unwrap();
    assert_eq!(last["phase"], "succeeded", "{data:?}");
    // The picture's own address needs no key; without its token it needs one.
    let picture = last["images"][0]["url"].as_str().unwrap();
    let mut served = agent().get(picture).call().unwrap();
    assert_eq!(
        (
            served.status().as_u16(),
            &served.headers()["content-type"] == "image/png"
        ),
        (200, true)
    );
    assert!(
        served
            .body_mut()
            .read_to_vec()
            .unwrap()
            .starts_with(b"\x89PNG")
    );
    let bare = picture.split('?').next().unwrap();
    assert_eq!(e2e::get(bare, &[]).unwrap().0, 401);
    let wrong = format!("{bare}?token={}", "0".repeat(32));
    assert_eq!(e2e::get(&wrong, &[]).unwrap().0, 404);
    // Another tenant's task is no task.
    let other = platform.create_key("dev-", "other").await;
    let other = format!("Bearer {}", other.bearer);
    let stranger = || {
        e2e::get(
            &format!("{url}/v1/tasks/{id}"),
            &[("authorization", &other)],
        )
        .unwrap()
        .0
    };
    let deadline = Instant::now() + Duration::from_secs(5);
    while stranger() == 401 && Instant::now() < deadline {}
    assert_eq!(stranger(), 404);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_is_answered_task_by_task_and_charged_task_by_task() {
    let platform = Platform::start().await;
    let good = |seed: u64| json!({"prompt": "a 3d cat", "steps": 2, "seed": seed, "idempotency_key": format!("k{seed}")});
    let send = |body: &Value| {
        let mut answer = agent()
            .post(format!("{}/v1/tasks/batch", platform.url()))
            .header("authorization", platform.authorization())
            .send_json(body)
            .unwrap();
        let left = answer.headers().get("ratelimit-remaining").cloned();
        let body: Value = answer.body_mut().read_json().unwrap();
        (answer.status().as_u16(), left, body)
    };
    // One without any task says how many there may be.
    for list in [json!([]), json!([good(1)]), json!([[good(1)]])] {
        let (status, _, body) = send(&list);
        let told = "the body must be a JSON object, not a list";
        assert_eq!((status, &body["detail"]), (400, &json!(told)), "{list}");
    }
    for none in [json!({}), json!({"tasks": []})] {
        let (status, _, body) = send(&none);
        assert_eq!((status, &body["field"]), (400, &json!("tasks")), "{none}");
        let detail = body["detail"].as_str().unwrap();
        assert!(detail.contains("1 to 100"), "{none}: {detail}");
    }
    let bad = json!({"prompt": "a 3d cat", "steps": 1_000_000});
    let typo = json!({"promt": "a 3d cat"});
    let tasks = json!({"tasks": [good(1), bad, good(1), typo, good(2), 7]});
    let (status, left, body) = send(&tasks);
    assert_eq!(status, 200, "{body}");
    assert!(left.is_some());
    let results = body["results"].as_array().unwrap();
    let statuses: Vec<u64> = results
        .iter()
        .map(|one| one["status"].as_u64().unwrap())
        .collect();
    assert_eq!(statuses, [202, 400, 202, 400, 202, 400], "{body}");
    assert_eq!(results[1]["error"]["field"], "steps");
    assert_eq!(results[3]["error"]["field"], "promt");
    assert_eq!(results[5]["error"]["field"], "tasks");
    let detail = "tasks[5] must be an object, not 7";
    assert_eq!(results[5]["error"]["detail"], detail);
    // The same key and request is the same task, in one batch too; which of the two made it is a matter of luck.
    assert_eq!(results[0]["task"]["id"], results[2]["task"]["id"]);
    assert_ne!(results[0]["existing"], results[2]["existing"]);
    for index in [0, 4] {
        let id = results[index]["task"]["id"].as_str().unwrap();
        let ended = platform.wait_ended(id).await;
        assert_eq!(ended.phase(), TaskPhase::Succeeded);
    }
    // 50 a second, 50 at once: a batch that can never be let through says so, and one that comes too early waits.
    let many = |count: u64| json!({"tasks": (100..100 + count).map(good).collect::<Vec<_>>()});
    let (status, _, body) = send(&many(60));
    assert_eq!((status, &body["field"]), (400, &json!("tasks")), "{body}");
    let (status, _, body) = send(&many(101));
    assert_eq!(status, 400, "{body}");
    let (mut accepted, mut refused) = (0, 0);
    for _ in 0..4 {
        match send(&many(40)).0 {
            200 => accepted += 1,
            429 => refused += 1,
            other => panic!("{other}"),
        }
    }
    assert!(accepted >= 1 && refused >= 1, "{accepted} {refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_caller_who_waits_for_pictures_in_any_dialect_and_hangs_up_gets_its_task_cancelled() {
    let platform = Platform::start().await;
    let text = json!({"shape": [1], "name": "PROMPT", "datatype": "BYTES", "data": ["a 3d cat"]});
    let steps = json!({"shape": [1], "name": "STEPS", "datatype": "INT32", "data": [100]});
    let messages = json!([{"role": "user", "content": [{"text": "a 3d cat"}]}]);
    for (path, body) in [
        (
            "/v1/images/generations",
            json!({"prompt": "a 3d cat", "steps": 100, "n": 10}),
        ),
        (
            "/api/v1/services/aigc/multimodal-generation/generation",
            json!({"input": {"messages": messages}, "parameters": {"steps": 100, "n": 10}}),
        ),
        (
            "/v2/models/inkstone-demo/infer",
            json!({"inputs": [text, steps]}),
        ),
    ] {
        let caller = ask_and_leave_open(&platform, path, "", &body);
        let id = wait_one_under_way(&platform, path).await;
        drop(caller);
        let ended = platform.wait_ended(&id).await;
        assert_eq!(ended.phase(), TaskPhase::Cancelled, "{path}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_that_stops_cancels_the_tasks_of_those_who_wait_or_stream_without_a_key_to_come_back_with()
 {
    // Nobody draws, so that all of it would go on.
    let front = ["auth", "model-registry", "orchestrator", "gateway"];
    let drain = ("INKSTONE_GATEWAY__HTTP__DRAIN", "200ms");
    let mut platform = Platform::start_services(&front, &[drain], false).await;
    let asked = [
        ("waits", false, ""),
        ("streams", true, ""),
        ("waits with a key", false, "idempotency-key: one\r\n"),
        ("streams with a key", true, "idempotency-key: another\r\n"),
    ];
    let callers = asked.map(|(user, stream, key)| {
        let body = json!({"prompt": "a 3d cat", "user": user, "stream": stream});
        let caller = ask_and_leave_open(&platform, "/v1/images/generations", key, &body);
        (user, stream, caller)
    });
    let deadline = Instant::now() + e2e::LIMIT;
    let mut tasks = Vec::new();
    while tasks.len() < callers.len() {
        assert!(Instant::now() < deadline, "not all became tasks: {tasks:?}");
        tokio::time::sleep(Duration::from_millis(5)).await;
        tasks = platform.list().await;
    }
    assert!(platform.terminate("gateway"), "{}", platform.log("gateway"));
    platform.run("gateway");
    platform.wait_ready("gateway");
    for (user, stream, mut caller) in callers {
        let mut heard = String::new();
        std::io::Read::read_to_string(&mut caller, &mut heard).unwrap();
        assert!(heard.contains("this gateway stops"), "{user}: {heard}");
        assert_eq!(heard.contains("event: error"), stream, "{user}: {heard}");
        let is_its = |task: &&Task| task.request.as_ref().is_some_and(|r| r.user == user);
        let id = &tasks.iter().find(is_its).unwrap().id;
        if user.ends_with("key") {
            let task = platform.get(id).await.unwrap();
            assert!(!e2e::has_ended(&task), "{user}: {task:?}");
        } else {
            let ended = platform.wait_ended(id).await;
            assert_eq!(ended.phase(), TaskPhase::Cancelled, "{user}");
        }
    }
}

/// `headers`: further ones, each with its line's end.
fn ask_and_leave_open(
    platform: &Platform,
    path: &str,
    headers: &str,
    body: &Value,
) -> std::net::TcpStream {
    let body = body.to_string();
    let request = format!(
        "POST {path} HTTP/1.1\r\nhost: x\r\nauthorization: {}\r\n{headers}\
         content-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
        platform.authorization(),
        body.len()
    );
    let mut caller = std::net::TcpStream::connect(platform.url().replace("http://", "")).unwrap();
    std::io::Write::write_all(&mut caller, request.as_bytes()).unwrap();
    caller
}

async fn wait_one_under_way(platform: &Platform, path: &str) -> String {
    let deadline = Instant::now() + e2e::LIMIT;
    loop {
        let tasks = platform.list().await;
        if let Some(task) = tasks.iter().find(|task| !e2e::has_ended(task)) {
            return task.id.clone();
        }
        let late = Instant::now() >= deadline;
        assert!(!late, "the request to {path} did not become a task");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revoked_key_is_refused_within_a_second() {
    let platform = Platform::start().await;
    let key = platform.create_key("dev-", "acme").await;
    let bearer = format!("Bearer {}", key.bearer);
    let url = format!("{}/v1/models", platform.url());
    let status = || e2e::get(&url, &[("authorization", &bearer)]).unwrap().0;
    let deadline = Instant::now() + Duration::from_secs(5);
    while status() != 200 {
        assert!(
            Instant::now() < deadline,
            "a new key must be known in a moment"
        );
    }
    platform.revoke_key(&key.key.unwrap().app_key).await;
    let revoked = Instant::now();
    while status() != 401 {
        assert!(revoked.elapsed() < Duration::from_secs(1), "still let in");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_object_store_refuses_submissions_and_loses_nothing_accepted() {
    let mut platform = Platform::start().await;
    let task = platform.submit(long_picture()).await.unwrap();
    platform.wait_running(&task.id).await;
    // What a full disk looks like from above: nothing new can be created. (A file where the folder was.)
    let (objects, aside) = (
        platform.objects(),
        platform.objects().with_extension("aside"),
    );
    std::fs::rename(&objects, &aside).unwrap();
    std::fs::write(&objects, "full").unwrap();
    platform.wait_readiness("orchestrator", 503);
    let body = json!({"prompt": "a 3d cat"}).to_string();
    let mut refused = agent()
        .post(format!("{}/v1/tasks", platform.url()))
        .header("authorization", platform.authorization())
        .header("content-type", "application/json")
        .send(&body)
        .unwrap();
    let problem: Value = refused.body_mut().read_json().unwrap();
    assert_eq!(refused.status(), 503, "{problem}");
    assert!(refused.headers().contains_key("retry-after"));
    std::fs::remove_file(&objects).unwrap();
    std::fs::rename(&aside, &objects).unwrap();
    assert_whole(&platform, &platform.wait_ended(&task.id).await);
    platform.wait_ready("orchestrator");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_task_log_refuses_submissions_and_still_ends_what_was_accepted() {
    let small = [("INKSTONE_ORCHESTRATOR__STREAMS__TASK_MAX_SIZE", "8KiB")];
    let mut platform = Platform::start_with(&small).await;
    let mut accepted = Vec::new();
    let refused = loop {
        match platform.submit(short_picture()).await {
            Ok(task) => accepted.push(task.id),
            Err(status) if status.code() == tonic::Code::ResourceExhausted => {}
            Err(status) => break status,
        }
        assert!(accepted.len() < 100, "a log of 8 KiB must be full by now");
        tokio::time::sleep(Duration::from_millis(100)).await;
    };
    assert_eq!(refused.code(), tonic::Code::Unavailable, "{refused:?}");
    platform.wait_readiness("orchestrator", 503);
    // The gateway stays in service for those who read, and says what is missing.
    let limited = "orchestrator: answers and is not ready: task log: full";
    platform.wait_readiness_with("gateway", 200, limited);
    // Whichever of its ways a load balancer asks by.
    let ready = format!("{}/v2/health/ready", platform.url());
    assert_eq!(e2e::get(&ready, &[]).unwrap().0, 200);
    let public = Endpoint::from_shared(platform.url())
        .unwrap()
        .connect_lazy();
    let mut inference = GrpcInferenceServiceClient::new(public.clone());
    let answer = inference.server_ready(ServerReadyRequest {}).await.unwrap();
    assert!(answer.into_inner().ready);
    let mut health = HealthClient::new(public);
    let answer = health.check(HealthCheckRequest::default()).await.unwrap();
    assert_eq!(answer.into_inner().status(), ServingStatus::Serving);
    for id in &accepted {
        assert_whole(&platform, &platform.wait_ended(id).await);
    }
}
