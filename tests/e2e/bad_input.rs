//! Bad input, over the wire: each is refused with the field and the limit in the dialect's shape, and nothing else is
//! disturbed. One platform serves all of it, and draws a picture at the end.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use aws_lc_rs::hmac;
use e2e::{Platform, agent};
use serde_json::{Value, json};

use crate::{assert_whole, short_picture};

struct Caller<'a> {
    platform: &'a Platform,
}

impl Caller<'_> {
    fn post(&self, path: &str, body: impl AsRef<[u8]>) -> (u16, Value) {
        let authorization = self.platform.authorization();
        self.post_with(path, body, &[("authorization", &authorization)])
    }

    fn post_with(
        &self,
        path: &str,
        body: impl AsRef<[u8]>,
        headers: &[(&str, &str)],
    ) -> (u16, Value) {
        let mut request = agent().post(format!("{}{path}", self.platform.url()));
        request = request.header("content-type", "application/json");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let mut answer = request.send(body.as_ref()).unwrap();
        let status = answer.status().as_u16();
        (status, answer.body_mut().read_json().unwrap_or(Value::Null))
    }

    /// The own dialect's problem document names `field` and says `text`.
    fn assert_problem(&self, body: impl AsRef<[u8]>, status: u16, field: Value, text: &str) {
        let (found, problem) = self.post("/v1/tasks", body);
        assert_eq!(found, status, "{problem}");
        assert_eq!(problem["status"], status, "{problem}");
        assert!(
            problem["code"].is_string() && problem["title"].is_string(),
            "{problem}"
        );
        assert_eq!(problem["field"], field, "{problem}");
        let detail = problem["detail"].as_str().unwrap();
        assert!(detail.contains(text), "{detail:?} does not say {text:?}");
    }

    /// The OpenAI dialect's error names `param` and says `text`.
    fn assert_openai(&self, body: Value, status: u16, param: Value, text: &str) {
        let (found, answer) = self.post("/v1/images/generations", body.to_string());
        let error = &answer["error"];
        assert_eq!(found, status, "{answer}");
        assert_eq!(error["param"], param, "{answer}");
        assert!(error["type"].is_string(), "{answer}");
        let message = error["message"].as_str().unwrap();
        assert!(message.contains(text), "{message:?} does not say {text:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_input_of_every_kind_is_refused_by_name_and_disturbs_nothing() {
    let platform = Platform::start().await;
    let caller = Caller {
        platform: &platform,
    };
    prompts(&caller);
    numbers(&caller);
    keys(&caller).await;
    bodies(&caller);
    batches(&caller);
    webhooks(&caller);
    openai(&caller);
    credentials(&caller).await;
    hang_ups(&platform);
    let task = platform.submit(short_picture()).await.unwrap();
    assert_whole(&platform, &platform.wait_ended(&task.id).await);
    assert_eq!(
        platform.list().await.len(),
        1,
        "nothing that was refused may be a task"
    );
}

fn prompts(caller: &Caller<'_>) {
    caller.assert_problem(json!({}).to_string(), 400, json!("prompt"), "prompt");
    caller.assert_problem(
        json!({"prompt": "  "}).to_string(),
        400,
        json!("prompt"),
        "empty",
    );
    let huge = json!({"prompt": "x".repeat(4097)}).to_string();
    caller.assert_problem(huge, 400, json!("prompt"), "4096");
    let mut not_utf8 = b"{\"prompt\": \"".to_vec();
    not_utf8.extend([0xff, 0xfe, b'"', b'}']);
    caller.assert_problem(not_utf8, 400, Value::Null, "UTF-8");
    let unknown = json!({"prompt": "a cat", "model": "nope"}).to_string();
    caller.assert_problem(unknown, 404, json!("model"), "nope");
}

fn numbers(caller: &Caller<'_>) {
    let with = |field: &str, value: Value| json!({"prompt": "a cat", field: value}).to_string();
    caller.assert_problem(
        with("width", json!(100)),
        400,
        json!("width"),
        "multiple of 32",
    );
    caller.assert_problem(with("height", json!(4096)), 400, json!("height"), "256");
    caller.assert_problem(with("images", json!(11)), 400, json!("images"), "10");
    caller.assert_problem(with("steps", json!(1_000_000)), 400, json!("steps"), "100");
    caller.assert_problem(
        with("guidance_scale", json!(1e9)),
        400,
        json!("guidance_scale"),
        "20",
    );
    caller.assert_problem(
        with("partial_images", json!(4)),
        400,
        json!("partial_images"),
        "3",
    );
    for (field, value, text) in [
        ("guidance_rescale", json!(1.5), "0 to 1"),
        ("scheduler", json!("plms"), "dpm++2m-sde-karras"),
        ("prompt_syntax", json!("compel"), "plain, weighted"),
    ] {
        caller.assert_problem(with(field, value), 400, json!(field), text);
    }
    let (status, _) = caller.post("/v1/tasks", with("seed", json!(-1)));
    assert_eq!(status, 400);
    let (status, _) = caller.post("/v1/tasks", with("promt", json!("typo")));
    assert_eq!(status, 400, "a field that nobody knows must not be ignored");
}

/// Names with control characters are the platform's own: no caller's task is known by one. A key is told of by where it was.
async fn keys(caller: &Caller<'_>) {
    let task = contract::v1::SubmitTask {
        idempotency_key: "\0dead letter\0task.acme".to_owned(),
        ..short_picture()
    };
    let batch = json!({"tasks": [{"prompt": "a cat", "idempotency_key": &task.idempotency_key}]});
    let (status, answer) = caller.post("/v1/tasks/batch", batch.to_string());
    assert_eq!(status, 200, "{answer}");
    let text = answer.to_string();
    assert!(text.contains("must hold no control characters"), "{text}");
    assert_eq!(answer["results"][0]["error"]["field"], "idempotency_key");
    let (authorization, long) = (caller.platform.authorization(), "k".repeat(257));
    for (path, key) in [("/v1/tasks", &*long), ("/v1/tasks/batch", "order-1")] {
        let headers = [("authorization", &*authorization), ("idempotency-key", key)];
        let (status, problem) = caller.post_with(path, batch.to_string(), &headers);
        assert_eq!(status, 400, "{problem}");
        assert_eq!(problem["field"], "Idempotency-Key", "{problem}");
    }
    let refused = caller.platform.submit(task).await.unwrap_err();
    assert_eq!(refused.code(), tonic::Code::InvalidArgument, "{refused}");
}

fn bodies(caller: &Caller<'_>) {
    caller.assert_problem("", 400, Value::Null, "");
    caller.assert_problem("{\"prompt\": ", 400, Value::Null, "line 1");
    let deep = "[".repeat(100_000);
    caller.assert_problem(deep, 400, Value::Null, "");
    let (status, problem) = caller.post("/v1/tasks", vec![b' '; 2 << 20]);
    assert_eq!(status, 413, "{problem}");
    assert!(
        problem["detail"].as_str().unwrap().contains("1 MiB"),
        "{problem}"
    );
    let authorization = caller.platform.authorization();
    let mut answer = agent()
        .post(format!("{}/v1/tasks", caller.platform.url()))
        .header("authorization", &authorization)
        .header("content-type", "text/plain")
        .send("a cat")
        .unwrap();
    let problem: Value = answer.body_mut().read_json().unwrap();
    assert_eq!(answer.status(), 415, "{problem}");
}

fn batches(caller: &Caller<'_>) {
    let tasks = |value: Value| json!({"tasks": value});
    for (body, field, text) in [
        (tasks(json!(5)), "tasks", "1 to 100 tasks, not 5"),
        (tasks(json!("x")), "tasks", "1 to 100 tasks, not \"x\""),
        (tasks(json!({})), "tasks", "1 to 100 tasks, not an object"),
        (tasks(json!(null)), "tasks", "1 to 100 tasks, not 0"),
        (
            json!({"tasks": [{"prompt": "a cat"}], "foo": 1}),
            "foo",
            "it takes tasks",
        ),
    ] {
        let (status, problem) = caller.post("/v1/tasks/batch", body.to_string());
        assert_eq!(status, 400, "{body}: {problem}");
        assert_eq!(problem["field"], field, "{body}: {problem}");
        let detail = problem["detail"].as_str().unwrap();
        assert!(detail.contains(text), "{detail:?} does not say {text:?}");
    }
}

/// By the name that was sent, wherever it is refused: by the gateway as no URL, by the orchestrator as none that it may call.
fn webhooks(caller: &Caller<'_>) {
    for url in ["example.com", "https://10.0.0.1/hook"] {
        let short = json!({"prompt": "a cat", "webhook_url": url});
        let full = json!({"prompt": "a cat", "webhook": {"url": url}});
        let (status, answer) = caller.post(
            "/v1/tasks/batch",
            json!({"tasks": [short, full]}).to_string(),
        );
        assert_eq!(status, 200, "{answer}");
        for (index, (body, field, place)) in [
            (short, "webhook_url", "webhook_url"),
            (full, "webhook", "webhook.url"),
        ]
        .into_iter()
        .enumerate()
        {
            caller.assert_problem(body.to_string(), 400, json!(field), place);
            let error = &answer["results"][index]["error"];
            assert_eq!(error["field"], field, "{answer}");
            assert!(
                error["detail"].as_str().unwrap().starts_with(place),
                "{answer}"
            );
        }
    }
}

fn openai(caller: &Caller<'_>) {
    let with = |field: &str, value: Value| json!({"prompt": "a cat", field: value});
    caller.assert_openai(json!({}), 400, json!("prompt"), "prompt");
    caller.assert_openai(with("size", json!("100x128")), 400, json!("size"), "32");
    caller.assert_openai(with("size", json!("big")), 400, json!("size"), "size");
    caller.assert_openai(with("n", json!(0)), 400, json!("n"), "1");
    caller.assert_openai(with("n", json!(11)), 400, json!("n"), "10");
    caller.assert_openai(with("model", json!("nope")), 404, json!("model"), "nope");
    caller.assert_openai(with("steps", json!(100_000)), 400, json!("steps"), "100");
    caller.assert_openai(
        with("scheduler", json!("plms")),
        400,
        json!("scheduler"),
        "euler-ancestral",
    );
}

async fn credentials(caller: &Caller<'_>) {
    let body = json!({"prompt": "a cat"}).to_string();
    let refused = |headers: &[(&str, &str)]| {
        let (status, problem) = caller.post_with("/v1/tasks", &body, headers);
        assert_eq!(status, 401, "{problem}");
        problem["detail"].as_str().unwrap().to_owned()
    };
    refused(&[]);
    refused(&[("authorization", "Bearer nonsense")]);
    let (app_key, secret) = &caller.platform.signing;
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap()
        .as_secs();
    let sign = |time: u64| {
        let key = hmac::Key::new(hmac::HMAC_SHA256, secret.as_bytes());
        hex::encode(hmac::sign(&key, format!("{app_key}{time}").as_bytes()).as_ref())
    };
    let signed = |time: u64, signature: &str| {
        let time = time.to_string();
        let headers = [
            ("x-app-key", app_key.as_str()),
            ("x-timestamp", &time),
            ("x-signature", signature),
        ];
        caller.post_with("/v1/tasks", "{}", &headers)
    };
    // A good signature comes as far as the body's own fault.
    assert_eq!(signed(now, &sign(now)).0, 400);
    assert_eq!(signed(now, &sign(now + 1)).0, 401);
    let (status, problem) = signed(now - 301, &sign(now - 301));
    assert_eq!(status, 401, "{problem}");
    assert!(
        problem["detail"].as_str().unwrap().contains("300"),
        "{problem}"
    );
    // A policy's limits, by the key's prefix.
    let test = caller.platform.create_key("test-", "acme").await;
    let bearer = format!("Bearer {}", test.bearer);
    let hd = json!({"prompt": "a cat", "quality": "hd"}).to_string();
    let headers = [("authorization", bearer.as_str())];
    let deadline = std::time::Instant::now() + Duration::from_secs(5);
    let (status, problem) = loop {
        // A new key is known within a moment.
        let answer = caller.post_with("/v1/tasks", &hd, &headers);
        if answer.0 != 401 || std::time::Instant::now() > deadline {
            break answer;
        }
    };
    assert_eq!(
        (status, problem["field"].as_str()),
        (403, Some("quality")),
        "{problem}"
    );
    let data = ["a cat"; 6];
    let prompts = json!({"name": "PROMPT", "datatype": "BYTES", "shape": [6], "data": data});
    let six = json!({"inputs": [prompts]}).to_string();
    let (status, problem) = caller.post_with("/v2/models/inkstone-demo/infer", &six, &headers);
    let told = problem["error"].as_str().unwrap_or_default();
    assert_eq!(status, 400, "{problem}");
    assert!(
        told.contains("PROMPT must have at most 5 elements"),
        "{told}"
    );
    let limited = (0..20)
        .map(|_| caller.post_with("/v1/tasks", "{}", &headers))
        .find(|a| a.0 == 429);
    let (_, problem) = limited.expect("5 requests a second must be the limit of test- keys");
    assert!(
        problem["detail"].as_str().unwrap().contains('5'),
        "{problem}"
    );
}

/// Connections that stop half-way cost nothing that others need.
fn hang_ups(platform: &Platform) {
    let address = platform.url().replace("http://", "");
    for _ in 0..50 {
        let mut half = TcpStream::connect(&address).unwrap();
        half.write_all(b"POST /v1/tasks HTTP/1.1\r\nhost: x\r\ncontent-length: 1000\r\n\r\n{")
            .unwrap();
    }
    let mut garbage = TcpStream::connect(&address).unwrap();
    garbage.write_all(b"\x16\x03\x01garbage\r\n\r\n").unwrap();
    let mut answer = Vec::new();
    garbage
        .set_read_timeout(Some(Duration::from_secs(10)))
        .unwrap();
    let _ = garbage.read_to_end(&mut answer);
    let (status, _) = e2e::get(&format!("{}/healthz", platform.url()), &[]).unwrap();
    assert_eq!(status, 200);
}
