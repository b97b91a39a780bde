//! Whom calls to the orchestrator are for, by auth's word; and that nobody is turned away when auth signs with another key.

use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use contract::auth::auth_service_client::AuthServiceClient;
use contract::auth::authenticate_request::Proof;
use contract::auth::{AuthenticateRequest, Caller};
use contract::orchestrator::orchestrator_service_client::OrchestratorServiceClient;
use contract::orchestrator::{
    CancelRequest, FeedbackRequest, GetRequest, ListRequest, ResolveImageRequest, SubmitRequest,
    WatchRequest,
};
use contract::v1::{self, Feedback, TaskPhase, watch_response::Event};
use e2e::{LIMIT, Platform};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tonic::transport::Channel;
use tonic::{Code, Status};

use crate::{assert_whole, short_picture};

/// By how many seconds auth's clock is wrong.
const CLOCK: &str = "INKSTONE_AUTH__PROCESS__CLOCK_OFFSET";

/// How long a request may take whose body arrives slowly.
const REQUEST_TIMEOUT: &str = "INKSTONE_GATEWAY__HTTP__REQUEST_TIMEOUT";

/// Between two looks.
const PAUSE: Duration = Duration::from_millis(100);

/// What auth says of a caller with this key, as the gateway hears it.
async fn asserted(platform: &Platform, bearer: &str) -> Caller {
    let request = AuthenticateRequest {
        proof: Some(Proof::Bearer(bearer.to_owned())),
        receipt: None,
    };
    let mut auth = AuthServiceClient::new(platform.channel("auth"));
    let answer = auth.authenticate(request).await.unwrap();
    answer.into_inner().caller.unwrap()
}

async fn asserted_of_acme(platform: &Platform) -> Caller {
    let bearer = platform.authorization();
    asserted(platform, bearer.strip_prefix("Bearer ").unwrap()).await
}

/// A POST of the caller who shows this: status and body.
fn post(platform: &Platform, path: &str, authorization: &str, body: &Value) -> (u16, Value) {
    let answer = e2e::agent()
        .post(format!("{}{path}", platform.url()))
        .header("authorization", authorization)
        .send_json(body);
    let mut answer = answer.unwrap();
    let status = answer.status().as_u16();
    (status, answer.body_mut().read_json().unwrap_or_default())
}

/// The same, as soon as the gateway has found a service that was started anew.
async fn post_soon(
    platform: &Platform,
    path: &str,
    authorization: &str,
    body: &Value,
) -> (u16, Value) {
    let began = Instant::now();
    loop {
        let (status, answer) = post(platform, path, authorization, body);
        if status != 503 {
            return (status, answer);
        }
        assert!(began.elapsed() < LIMIT, "{answer}");
        tokio::time::sleep(PAUSE).await;
    }
}

async fn token(platform: &Platform) -> String {
    let bearer = platform.authorization();
    let (status, issued) = post_soon(platform, "/v1/token", &bearer, &json!({})).await;
    assert_eq!(status, 200, "{issued}");
    issued["access_token"].as_str().unwrap().to_owned()
}

/// What each call of a caller's is refused with.
async fn refusals(
    orchestrator: &mut OrchestratorServiceClient<Channel>,
    caller: &Caller,
    task: &str,
) -> Vec<Status> {
    let (tenant, assertion) = (caller.tenant.clone(), caller.assertion.clone());
    let task_id = task.to_owned();
    let get = GetRequest {
        tenant: tenant.clone(),
        task_id: task_id.clone(),
        assertion: assertion.clone(),
    };
    let cancel = CancelRequest {
        tenant: tenant.clone(),
        task_id: task_id.clone(),
        assertion: assertion.clone(),
        ..CancelRequest::default()
    };
    let list = ListRequest {
        tenant: tenant.clone(),
        assertion: assertion.clone(),
        ..ListRequest::default()
    };
    let watch = WatchRequest {
        tenant: tenant.clone(),
        task_id: task_id.clone(),
        assertion: assertion.clone(),
        ..WatchRequest::default()
    };
    let feedback = FeedbackRequest {
        tenant: tenant.clone(),
        task_id: task_id.clone(),
        assertion: assertion.clone(),
        feedback: Some(Feedback::default()),
    };
    let picture = ResolveImageRequest {
        tenant,
        task_id,
        assertion,
        ..ResolveImageRequest::default()
    };
    let submit = SubmitRequest {
        caller: Some(caller.clone()),
        task: Some(short_picture()),
    };
    vec![
        orchestrator.get(get).await.unwrap_err(),
        orchestrator.cancel(cancel).await.unwrap_err(),
        orchestrator.list(list).await.unwrap_err(),
        orchestrator.watch(watch).await.unwrap_err(),
        orchestrator.feedback(feedback).await.unwrap_err(),
        orchestrator.resolve_image(picture).await.unwrap_err(),
        orchestrator.submit(submit).await.unwrap_err(),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn who_reaches_the_orchestrator_without_auths_word_acts_for_nobody() {
    let platform = Platform::start().await;
    let task = platform.submit(short_picture()).await.unwrap();
    let mine = asserted_of_acme(&platform).await;
    let other = platform.create_key("dev-", "bcme").await;
    let theirs = asserted(&platform, &other.bearer).await;
    let token = token(&platform).await;
    let mut orchestrator = OrchestratorServiceClient::new(platform.channel("orchestrator"));
    for (tenant, assertion, code) in [
        ("acme", "", Code::Unauthenticated),
        ("acme", "made.up.here", Code::Unauthenticated),
        ("acme", token.as_str(), Code::Unauthenticated),
        ("acme", theirs.assertion.as_str(), Code::PermissionDenied),
        ("bcme", mine.assertion.as_str(), Code::PermissionDenied),
    ] {
        let caller = Caller {
            tenant: tenant.to_owned(),
            assertion: assertion.to_owned(),
            ..mine.clone()
        };
        for refused in refusals(&mut orchestrator, &caller, &task.id).await {
            assert_eq!(refused.code(), code, "{tenant}: {refused}");
        }
    }
    assert_whole(&platform, &platform.wait_ended(&task.id).await);
    assert_eq!(platform.list().await.len(), 1, "nothing else was made");

    // What a caller may do is auth's to say, too: without a model in its policy it could do nothing.
    let without_policy = Caller {
        policy: None,
        ..mine.clone()
    };
    let request = SubmitRequest {
        caller: Some(without_policy),
        task: Some(short_picture()),
    };
    let accepted = orchestrator.submit(request).await.unwrap().into_inner();
    let accepted = accepted.task.unwrap();
    assert_whole(&platform, &platform.wait_ended(&accepted.id).await);
    // Without a tenant there is the task's own token, and nothing else.
    let nobodys = ResolveImageRequest {
        task_id: task.id.clone(),
        access_token: "made-up".to_owned(),
        ..ResolveImageRequest::default()
    };
    let refused = orchestrator.resolve_image(nobodys).await.unwrap_err();
    assert_eq!(refused.code(), Code::NotFound, "{refused}");
}

/// The ids of the keys that are published.
fn kids(platform: &Platform) -> Vec<String> {
    let url = format!("{}/.well-known/jwks.json", platform.url());
    let (status, keys) = e2e::get(&url, &[]).unwrap();
    assert_eq!(status, 200, "{keys}");
    let keys: Value = serde_json::from_str(&keys).unwrap();
    let keys = keys["keys"].as_array().unwrap();
    let kid = |key: &Value| key["kid"].as_str().unwrap().to_owned();
    keys.iter().map(kid).collect()
}

/// The key that has signed a token.
fn kid(token: &str) -> String {
    let (header, _) = token.split_once('.').unwrap();
    let header = URL_SAFE_NO_PAD.decode(header).unwrap();
    let header: Value = serde_json::from_slice(&header).unwrap();
    header["kid"].as_str().unwrap().to_owned()
}

/// A picture is drawn for who shows this token: by the gateway's way, and so by auth's word, to the orchestrator.
async fn draws(platform: &Platform, token: &str) {
    let authorization = format!("Bearer {token}");
    let wanted = json!({"prompt": "a 3d cat", "steps": 2});
    let (status, task) = post_soon(platform, "/v1/tasks", &authorization, &wanted).await;
    assert_eq!(status, 202, "{task}");
    let task = platform.wait_ended(task["id"].as_str().unwrap()).await;
    assert_eq!(task.phase(), TaskPhase::Succeeded, "{task:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn auth_signs_with_another_key_under_live_services_and_tokens_stay_good_for_their_time() {
    let settings = [
        ("INKSTONE_AUTH__TOKENS__LIFETIME", "3h"),
        ("INKSTONE_AUTH__TOKENS__ROTATE_EVERY", "5h"),
        // By the broker's clock, which they are made and removed by, the first key is four hours old then: the next one is due to be
        // published.
        (CLOCK, "-14500"),
    ];
    let mut platform = Platform::start_with(&settings).await;
    let both = kids(&platform);
    assert_eq!(both.len(), 2);

    platform.restart_with("auth", (CLOCK, "0"));
    let old = token(&platform).await;
    assert_eq!(kid(&old), both[0]);
    assert_eq!(kids(&platform), both);
    draws(&platform, &old).await;

    // An hour later the next key signs. What the first one has signed is good, for the services that were there before, too.
    platform.restart_with("auth", (CLOCK, "3700"));
    let new = token(&platform).await;
    assert_eq!(kid(&new), both[1]);
    assert_eq!(kids(&platform), both);
    for token in [&old, &new] {
        draws(&platform, token).await;
    }

    // What it has signed expires. The key itself goes by the broker's clock: others may not have come that far.
    platform.restart_with("auth", (CLOCK, "14700"));
    let last = token(&platform).await;
    assert_eq!((kid(&last), kids(&platform)), (both[1].clone(), both));
    draws(&platform, &last).await;
    let authorization = format!("Bearer {old}");
    let (status, refused) = post(&platform, "/v1/tasks", &authorization, &json!({}));
    assert_eq!(status, 401, "{refused}");
}

/// Waits until the orchestrator takes what auth has said of a caller no more.
async fn until_expired(platform: &Platform, caller: &Caller, task: &str) {
    let mut orchestrator = OrchestratorServiceClient::new(platform.channel("orchestrator"));
    let began = Instant::now();
    loop {
        let get = GetRequest {
            tenant: caller.tenant.clone(),
            task_id: task.to_owned(),
            assertion: caller.assertion.clone(),
        };
        match orchestrator.get(get).await {
            Ok(_) => assert!(began.elapsed() < LIMIT, "it never expires"),
            Err(refused) => {
                assert!(refused.message().contains("expired"), "{refused}");
                return;
            }
        }
        tokio::time::sleep(PAUSE).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_arrives_for_longer_than_auths_word_is_good_makes_its_task() {
    // What auth says is good for half a minute then, by the broker's clock.
    let settings = [(CLOCK, "-275"), (REQUEST_TIMEOUT, "2m")];
    let mut platform = Platform::start_with(&settings).await;
    let task = platform.submit(short_picture()).await.unwrap();
    let body = r#"{"prompt": "a 3d cat", "steps": 2}"#;
    let head = format!(
        "POST /v1/tasks HTTP/1.1\r\nhost: e2e\r\nauthorization: {}\r\ncontent-type: application/json\r\n\
         content-length: {}\r\nexpect: 100-continue\r\nconnection: close\r\n\r\n",
        platform.authorization(),
        body.len()
    );
    let address = platform.url().replace("http://", "");
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(head.as_bytes()).await.unwrap();
    // The body is asked for once its sender is known.
    let go_on = "HTTP/1.1 100 Continue\r\n\r\n";
    let mut heard = vec![0; go_on.len()];
    let asked_for = stream.read_exact(&mut heard);
    tokio::time::timeout(LIMIT, asked_for)
        .await
        .unwrap()
        .unwrap();
    assert_eq!(String::from_utf8_lossy(&heard), go_on);
    let caller = asserted_of_acme(&platform).await;
    platform.restart_with("auth", (CLOCK, "0"));
    until_expired(&platform, &caller, &task.id).await;
    // The gateway has found the new auth.
    token(&platform).await;
    stream.write_all(body.as_bytes()).await.unwrap();
    let mut answer = String::new();
    let answered = stream.read_to_string(&mut answer);
    tokio::time::timeout(LIMIT, answered)
        .await
        .unwrap()
        .unwrap();
    assert!(answer.starts_with("HTTP/1.1 202"), "{answer}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_outlives_auths_word_on_its_caller_and_the_orchestrator_that_it_began_at() {
    // What auth says is good for half a minute then, by the broker's clock.
    let mut platform = Platform::start_with(&[(CLOCK, "-275")]).await;
    // Nobody draws for now.
    platform.kill("gpu-worker");
    let task = platform.submit(short_picture()).await.unwrap();
    let request = platform.request(v1::WatchRequest {
        task_id: task.id.clone(),
        ..Default::default()
    });
    let mut watch = platform.client().watch(request).await.unwrap().into_inner();
    watch.message().await.unwrap().expect("the task as it is");
    let caller = asserted_of_acme(&platform).await;
    platform.restart_with("auth", (CLOCK, "0"));
    until_expired(&platform, &caller, &task.id).await;
    // The gateway opens the watch anew, and needs another word for that.
    platform.kill("orchestrator");
    platform.run("orchestrator");
    platform.run("gpu-worker");
    let end = async {
        loop {
            let event = watch.message().await.unwrap().expect("it goes on");
            if let Some(Event::Task(task)) = event.event
                && e2e::has_ended(&task)
            {
                return task;
            }
        }
    };
    let ended = tokio::time::timeout(LIMIT, end).await.unwrap();
    assert_whole(&platform, &ended);
}
