//! What a policy allows at once and in a day, from the operator's command to the caller's answer.

use std::time::{Duration, Instant};

use contract::v1::{SubmitRequest, TaskPhase};
use e2e::{Platform, agent};
use serde_json::{Value, json};

/// Without a worker, tasks stay where the orchestrator puts them.
const SERVICES: [&str; 4] = ["auth", "model-registry", "orchestrator", "gateway"];

/// Makes a submission one that can be repeated.
const NAMED: Option<(&str, &str)> = Some(("idempotency-key", "mine"));

struct Answer {
    status: u16,
    body: Value,
    retry_after: Option<u64>,
    remaining: Option<u64>,
}

fn post(platform: &Platform, path: &str, header: Option<(&str, &str)>, body: &Value) -> Answer {
    let mut request = agent()
        .post(format!("{}{path}", platform.url()))
        .header("authorization", platform.authorization());
    if let Some((name, value)) = header {
        request = request.header(name, value);
    }
    let mut answer = request.send_json(body).unwrap();
    let number = |name| {
        let value = answer.headers().get(name)?;
        value.to_str().unwrap().parse().ok()
    };
    Answer {
        status: answer.status().as_u16(),
        retry_after: number("retry-after"),
        remaining: number("ratelimit-remaining"),
        body: answer.body_mut().read_json().unwrap(),
    }
}

fn submit(platform: &Platform, images: u32) -> Answer {
    let body = json!({"prompt": "a 3d cat", "steps": 1, "images": images});
    post(platform, "/v1/tasks", None, &body)
}

fn call_as<T>(message: T, bearer: &str) -> tonic::Request<T> {
    let mut request = tonic::Request::new(message);
    let bearer = format!("Bearer {bearer}").parse().unwrap();
    request.metadata_mut().insert("authorization", bearer);
    request
}

fn until(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + e2e::LIMIT;
    while !done() {
        assert!(Instant::now() < deadline, "{what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Sets the policy; auth answers when it is in force there.
fn set(platform: &Platform, arguments: &[&str]) {
    let command = ["policies", "set", "dev-"];
    platform
        .operate(&[&command[..], arguments].concat())
        .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tenant_has_as_many_tasks_waiting_and_running_as_its_policy_allows() {
    let platform = Platform::start_services(&SERVICES, &[], false).await;
    set(&platform, &["--tasks-waiting", "3", "--tasks-running", "1"]);
    let shown = platform.operate(&["policies", "show", "dev-"]).unwrap();
    assert!(shown.contains("tasks waiting        3"), "{shown}");

    let first = submit(&platform, 1);
    assert_eq!(first.status, 202, "{}", first.body);
    let first = first.body["id"].as_str().unwrap().to_owned();
    let phase = async |id: &str| platform.get(id).await.unwrap().phase();
    while phase(&first).await != TaskPhase::Scheduled {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let body = json!({"prompt": "a 3d cat", "steps": 1, "images": 1});
    let named = post(&platform, "/v1/tasks", NAMED, &body);
    let mut waiting = vec![named.body["id"].as_str().unwrap().to_owned()];
    for _ in 0..2 {
        let accepted = submit(&platform, 1);
        assert_eq!(accepted.status, 202, "{}", accepted.body);
        waiting.push(accepted.body["id"].as_str().unwrap().to_owned());
    }
    let refused = submit(&platform, 1);
    assert_eq!(refused.status, 429, "{}", refused.body);
    assert_eq!(refused.body["code"], "too_many_tasks");
    assert!(refused.retry_after >= Some(1));
    assert!(refused.remaining >= Some(1), "requests are not used up");
    // Whoever asks for what it has already gets it.
    let again = post(&platform, "/v1/tasks", NAMED, &body);
    assert_eq!((again.status, &again.body["id"]), (202, &json!(waiting[0])));
    // Whoever asks for something else by the same key is told of the header that has it.
    let other = json!({"prompt": "a 3d dog"});
    for (path, place) in [
        ("/v1/tasks", "/field"),
        ("/v1/images/generations", "/error/param"),
    ] {
        let refused = post(&platform, path, NAMED, &other);
        assert_eq!(refused.status, 409, "{}", refused.body);
        let named = refused.body.pointer(place);
        assert_eq!(named, Some(&json!("Idempotency-Key")), "{}", refused.body);
    }
    // The worker has room for sixteen of a version, and this tenant for one.
    for id in &waiting {
        assert_eq!(phase(id).await, TaskPhase::Queued);
    }
    let cancel = platform.request(contract::v1::CancelRequest {
        task_id: waiting[2].clone(),
    });
    platform.client().cancel(cancel).await.unwrap();
    until("a place is free", || submit(&platform, 1).status == 202);
    // Where nothing has left for a while, nothing is said to leave at once.
    until("the wait that is told grows", || {
        let refused = submit(&platform, 1);
        refused.body["code"] == "too_many_tasks" && refused.retry_after > Some(2)
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn the_tasks_of_a_tenant_at_its_limit_end_one_after_the_other_and_anothers_do_not_wait_for_them()
 {
    // A short picture writes no checkpoint, so its last state is the one with which it was taken up.
    let no_checkpoints = [("INKSTONE_GPU_WORKER__ENGINE__CHECKPOINT_EVERY", "0s")];
    let platform = Platform::start_with(&no_checkpoints).await;
    set(&platform, &["--tasks-running", "1"]);
    let mut tasks = Vec::new();
    for _ in 0..7 {
        let task = platform.submit(crate::short_picture()).await.unwrap();
        tasks.push(task.id);
    }
    let other = platform.create_key("dev-", "other").await;
    let submitted = SubmitRequest {
        task: Some(crate::short_picture()),
    };
    let submitted = call_as(submitted, &other.bearer);
    let others = platform.client().submit(submitted).await.unwrap();
    let others = others.into_inner().task.unwrap().id;
    // By their places in the log, not by their times: those are two processes' reckonings of the broker's clock.
    let log = platform.connect().await.log("TASKS");
    let place = async |tenant: &str, id: &str, event: &str| {
        let subject = format!("inkstone.task.{tenant}.*.{id}.{event}");
        log.last(&subject).await.unwrap().unwrap().sequence
    };
    let mut ran = Vec::new();
    for id in &tasks {
        let task = platform.wait_ended(id).await;
        assert_eq!(task.phase(), TaskPhase::Succeeded, "{task:?}");
        let begun = place("acme", id, "state").await;
        ran.push((begun, place("acme", id, "done").await));
    }
    ran.sort_unstable();
    for pair in ran.windows(2) {
        let ((_, ended), (begun, _)) = (pair[0], pair[1]);
        assert!(ended < begun, "two at once: {ran:?}");
    }
    // Nobody else's turn is waited for: it was taken up before the last of them had ended.
    let begun = place("other", &others, "state").await;
    let (_, last) = ran[ran.len() - 1];
    assert!(begun < last, "{begun} {ran:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_day_ends_for_a_tenant_with_its_last_picture_in_every_dialect_and_over_a_crash() {
    let mut platform = Platform::start_services(&SERVICES, &[], false).await;
    set(&platform, &["--images-per-day", "10"]);
    let day = |refused: &Answer| {
        assert_eq!(refused.status, 429, "{}", refused.body);
        let wait = refused.retry_after.unwrap();
        assert!((1..=24 * 3600).contains(&wait), "{wait}");
        assert_eq!(refused.remaining, Some(0));
    };
    let never =
        json!({"prompt": "a 3d cat", "images": 10, "steps": 100, "width": 128, "height": 128});
    set(&platform, &["--pixel-steps-per-day", "1000000"]);
    let refused = post(&platform, "/v1/tasks", None, &never);
    assert_eq!((refused.status, refused.retry_after), (400, None));
    assert_eq!(refused.body["field"], "steps", "{}", refused.body);
    set(&platform, &["--pixel-steps-per-day", "none"]);
    assert_eq!(submit(&platform, 4).status, 202);
    let refused = submit(&platform, 7);
    day(&refused);
    assert_eq!(refused.body["code"], "quota_exceeded");
    assert_eq!(
        submit(&platform, 4).status,
        202,
        "nobody was charged for it"
    );
    // Two are left: of a batch of three, one is too many.
    let one = json!({"prompt": "a 3d cat", "steps": 1});
    let batch = json!({"tasks": [one, one, one]});
    let answer = post(&platform, "/v1/tasks/batch", None, &batch);
    let mut statuses: Vec<_> = answer.body["results"].as_array().unwrap().iter().collect();
    statuses.sort_by_key(|result| result["status"].as_u64());
    let statuses: Vec<_> = statuses.iter().map(|r| r["status"].as_u64()).collect();
    assert_eq!(statuses, [Some(202), Some(202), Some(429)]);

    platform.kill("orchestrator");
    platform.run("orchestrator");
    platform.wait_ready("orchestrator");
    until("the orchestrator is reached again", || {
        submit(&platform, 1).status == 429
    });
    day(&submit(&platform, 1));
    let openai = json!({"prompt": "a 3d cat", "n": 1});
    let refused = post(&platform, "/v1/images/generations", None, &openai);
    day(&refused);
    assert_eq!(refused.body["error"]["type"], "rate_limit_error");
    assert_eq!(refused.body["error"]["code"], "quota_exceeded");
    let aliyun = json!({"model": "inkstone-demo", "input": {"prompt": "a 3d cat"}});
    let path = "/api/v1/services/aigc/text2image/image-synthesis";
    let enable = Some(("x-dashscope-async", "enable"));
    let refused = post(&platform, path, enable, &aliyun);
    day(&refused);
    assert_eq!(refused.body["code"], "Throttling.AllocationQuota");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operator_hears_what_is_wrong_with_a_policy() {
    let platform = Platform::start_services(&["auth"], &[], false).await;
    let wrong = |arguments: &[&str], words: &str| {
        let said = platform.operate(arguments).unwrap_err();
        assert!(said.contains(words), "{said}");
    };
    let set = ["policies", "set"];
    wrong(
        &[&set[..], &["dev-", "--burst", "0"]].concat(),
        "burst: must be 1 to 1000000, not 0",
    );
    wrong(
        &[&set[..], &["dev-", "--tasks-waiting", "0"]].concat(),
        "tasks_waiting: must be at least 1",
    );
    wrong(&[&set[..], &["gold-"]].concat(), "--requests-per-second");
    wrong(&["policies", "show", "gold-"], "dev-, prod-, test-");
    wrong(&["policies", "remove", "dev-"], "keys that are good");
    let listed = platform.operate(&["policies", "list"]).unwrap();
    assert_eq!(listed.lines().count(), 4, "{listed}");
    let gold = ["gold-", "--models", "*", "--requests-per-second", "7"];
    platform.operate(&[&set[..], &gold].concat()).unwrap();
    let removed = platform.operate(&["policies", "remove", "gold-"]).unwrap();
    assert!(removed.contains("gold- removed"), "{removed}");
}
