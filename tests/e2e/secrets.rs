//! A platform that logs all that it can, callers that prove themselves in every way there is, rightly and wrongly, and then a
//! search through everything that was written for every secret that was used, in every form that it could have been written in.

mod search;

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use aws_lc_rs::hmac;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use contract::v1::{ListModelsRequest, SubmitTask};
use e2e::{LIMIT, Platform, SERVICES};
use serde_json::{Value, json};

use self::search::{Kept, Search, Secret, assert_none, secret};
use crate::hook::Hook;
use crate::intake::{Heard, Producer, picture, signed, token};
use crate::signing::headers as sign_v2;
use crate::{assert_whole, short_picture};

/// A receiver of traces that keeps whatever is sent to it, and answers only so much that all of it is sent.
struct Traces {
    address: SocketAddr,
    received: Arc<Mutex<Vec<u8>>>,
}

impl Traces {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let received = Arc::<Mutex<Vec<u8>>>::default();
        let kept = received.clone();
        // They end with the test's process.
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let (mut stream, kept) = (stream.unwrap(), kept.clone());
                std::thread::spawn(move || {
                    // HTTP/2: settings with the largest window for each stream, and the same for all of them.
                    let mut hello = b"\0\0\x06\x04\0\0\0\0\0\0\x04\x7f\xff\xff\xff".to_vec();
                    hello.extend(b"\0\0\x04\x08\0\0\0\0\0\x7f\xff\0\0");
                    let _ = stream.write_all(&hello);
                    let mut piece = [0; 64 * 1024];
                    while let Ok(read @ 1..) = stream.read(&mut piece) {
                        kept.lock().unwrap().extend_from_slice(&piece[..read]);
                    }
                });
            }
        });
        Self { address, received }
    }

    /// All that came, once spans of each of these services are among it.
    fn wait(&self, services: &[&str]) -> Vec<u8> {
        let deadline = Instant::now() + LIMIT;
        loop {
            let received = self.received.lock().unwrap().clone();
            let text = String::from_utf8_lossy(&received);
            if services.iter().all(|service| text.contains(service)) {
                return received;
            }
            assert!(
                Instant::now() < deadline,
                "no traces of all of {services:?}"
            );
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

/// A caller that keeps all that it is answered.
struct Caller<'a> {
    platform: &'a Platform,
    answers: Vec<u8>,
}

impl Caller<'_> {
    /// Sends a request with these headers, and gives the status of the answer.
    fn send(
        &mut self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &str,
    ) -> (u16, Value) {
        let url = format!("{}{path}", self.platform.url());
        let mut request = ureq::http::Request::builder().method(method).uri(url);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let mut answer = if body.is_empty() {
            e2e::agent().run(request.body(()).unwrap()).unwrap()
        } else {
            let request = request.header("content-type", "application/json");
            e2e::agent()
                .run(request.body(body.to_owned()).unwrap())
                .unwrap()
        };
        for (name, value) in answer.headers() {
            self.answers.extend(format!("{name}: ").bytes());
            self.answers.extend(value.as_bytes());
        }
        let text = answer.body_mut().read_to_vec().unwrap();
        self.answers.extend_from_slice(&text);
        let body = serde_json::from_slice(&text).unwrap_or(Value::Null);
        (answer.status().as_u16(), body)
    }

    fn bearer(&mut self, bearer: &str) -> u16 {
        let authorization = format!("Bearer {bearer}");
        self.send(
            "GET",
            "/v1/models",
            &[("authorization", &authorization)],
            "",
        )
        .0
    }
}

fn hmac_hex(key: &[u8], text: &str) -> String {
    hex::encode(hmac::sign(
        &hmac::Key::new(hmac::HMAC_SHA256, key),
        text.as_bytes(),
    ))
}

/// Uses a key in every way, and lists what was secret about it.
async fn use_key(caller: &mut Caller<'_>, key: &(String, String), bearer: &str) -> Vec<Secret> {
    let (app_key, shared) = key;
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap()
        .as_secs();
    let time = now.to_string();
    let mut secrets = vec![
        secret("secret", shared),
        // What follows the key's name; it may have a `_` of its own.
        secret(
            "bearer key",
            bearer.split_once(&format!("{app_key}_")).unwrap().1,
        ),
    ];
    // Bearer, right and wrong: another secret of the same key, one letter more, another scheme, and in places of other things.
    assert_eq!(caller.bearer(bearer), 200);
    assert_eq!(caller.bearer(&format!("{bearer}x")), 401);
    assert_eq!(caller.bearer(&bearer[..bearer.len() - 1]), 401);
    for (name, value) in [
        ("authorization", format!("Basic {bearer}")),
        ("authorization", bearer.to_owned()),
        ("x-signature", bearer.to_owned()),
        ("x-app-key", bearer.to_owned()),
    ] {
        assert_eq!(
            caller.send("GET", "/v1/models", &[(name, &value)], "").0,
            401
        );
    }
    // Signature v1, which is good for minutes for whoever finds it.
    let v1 = hmac_hex(shared.as_bytes(), &format!("{app_key}{time}"));
    let signed = |signature: &str, time: &str| {
        [
            ("x-app-key", app_key.clone()),
            ("x-timestamp", time.to_owned()),
            ("x-signature", signature.to_owned()),
        ]
    };
    for (headers, status) in [
        (signed(&v1, &time), 200),
        (signed(&v1, &(now - 1).to_string()), 401),
        (signed(&v1, "no time"), 401),
        (signed(shared, &time), 401),
    ] {
        let headers = headers
            .each_ref()
            .map(|(name, value)| (*name, value.as_str()));
        assert_eq!(caller.send("GET", "/v1/models", &headers, "").0, status);
    }
    secrets.push(secret("signature v1", &v1));
    // Signature v2: used, used again, with another body, and not one at all.
    let body = json!({"prompt": "a 3d cat", "steps": 4}).to_string();
    let v2 = sign_v2(
        key,
        "nonce-of-the-secrets",
        ["POST", "/v1/tasks", ""],
        body.as_bytes(),
    );
    let sent = v2.each_ref().map(|(name, value)| (*name, value.as_str()));
    let mut wrong = sent;
    wrong[2].1 = shared;
    for (headers, body, status) in [
        (sent, &*body, 202),
        (sent, &*body, 401),
        (sent, "{}", 401),
        (wrong, "{}", 401),
    ] {
        assert_eq!(caller.send("POST", "/v1/tasks", &headers, body).0, status);
    }
    let day = jiff::Timestamp::now().strftime("%Y%m%d").to_string();
    let label = format!("inkstone-v2:{day}");
    secrets.push(secret(
        "key of the day",
        hex::decode(hmac_hex(shared.as_bytes(), &label)).unwrap(),
    ));
    // A token, in every dialect, and changed.
    let authorization = format!("Bearer {bearer}");
    let (status, issued) = caller.send(
        "POST",
        "/v1/token",
        &[("authorization", &authorization)],
        "{}",
    );
    assert_eq!(status, 200);
    let token = issued["access_token"].as_str().unwrap().to_owned();
    assert_eq!(caller.bearer(&token), 200);
    assert_eq!(caller.bearer(&format!("{token}x")), 401);
    assert_eq!(caller.bearer(&token.replace('.', ".x")), 401);
    secrets.push(secret("token", token.rsplit_once('.').unwrap().1));
    for bearer in [bearer, &token, "ink_nobody_0000000000000000"] {
        let mut call = tonic::Request::new(ListModelsRequest {});
        let value = format!("Bearer {bearer}").parse().unwrap();
        call.metadata_mut().insert("authorization", value);
        if let Err(status) = caller.platform.client().list_models(call).await {
            caller.answers.extend(format!("{status:?}").bytes());
        }
    }
    secrets
}

/// Submits over NATS in every way, is told of an end by a webhook, and lists what was secret about it. The platform's own key signs with
/// v2, so all of it must stay as secret as over HTTP; what another shows as it is lies in INTAKE.
async fn publish(platform: &Platform, hook: &Hook) -> Vec<Secret> {
    let mut producer = Producer::new(platform).await;
    let mut body = picture(9);
    body["webhook_url"] = hook.url().into();
    let nonce = "nonce-of-the-producer";
    let message = signed(platform, &producer, "signed", nonce, &body);
    producer.publish(message).await.unwrap();
    let other = platform.create_key("dev-", "acme").await;
    let other_token = token(platform);
    let send = async |producer: &Producer, id: &str| {
        let body = picture(10).to_string().into_bytes();
        let message = producer.message(id, body, true);
        producer.publish(message).await.unwrap();
    };
    producer.authorization = format!("Bearer {}", other.bearer);
    send(&producer, "bearer").await;
    producer.authorization = format!("Bearer {other_token}");
    send(&producer, "token").await;
    let mut heard = Heard::new();
    let ends = |heard: &Heard| {
        let ended = |id: &str| heard.contains_key(&(id.to_owned(), "task.succeeded".to_owned()));
        ["signed", "bearer", "token"].into_iter().all(ended)
    };
    producer.hear(&mut heard, ends).await;
    hook.wait_for(1);
    let app_key = other.key.unwrap().app_key;
    let webhook = platform.webhook_secret(&platform.signing.0).await;
    let webhook = webhook.strip_prefix("whsec_").unwrap();
    let webhook = STANDARD_NO_PAD.decode(webhook.trim_end_matches('='));
    let (_, bearer) = other.bearer.split_once(&format!("{app_key}_")).unwrap();
    let (_, token) = other_token.rsplit_once('.').unwrap();
    vec![
        secret("webhook secret", webhook.unwrap()),
        secret("secret of a producer's key", other.secret),
        secret("bearer key of a producer", bearer).kept(Kept::InIntake),
        secret("token of a producer", token).kept(Kept::InIntake),
    ]
}

/// Every file below a folder, but for these.
fn files(folder: &Path, but: &[PathBuf], all: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files(&path, but, all);
        } else if path.is_file() && !but.contains(&path) {
            all.push(path);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_secret_is_in_logs_stores_metrics_answers_traces_or_crashes() {
    let (traces, hook) = (Traces::start(), Hook::start());
    let endpoint = format!("http://{}", traces.address);
    let mut settings = Vec::new();
    for service in SERVICES {
        let prefix = format!(
            "INKSTONE_{}__TELEMETRY__",
            service.to_uppercase().replace('-', "_")
        );
        settings.push((format!("{prefix}LOG"), "trace"));
        settings.push((format!("{prefix}OTLP_ENDPOINT"), endpoint.as_str()));
    }
    let settings = settings.iter().map(|(name, value)| (name.as_str(), *value));
    let settings: Vec<_> = settings.chain(Hook::REACHABLE).collect();
    let mut platform = Platform::start_with(&settings).await;
    let (key, bearer) = (platform.signing.clone(), platform.authorization());
    let bearer = bearer.strip_prefix("Bearer ").unwrap().to_owned();
    let mut caller = Caller {
        platform: &platform,
        answers: Vec::new(),
    };
    let mut secrets = use_key(&mut caller, &key, &bearer).await;
    let mut answers = caller.answers;
    secrets.extend(publish(&platform, &hook).await);
    let task = platform
        .submit(SubmitTask {
            seed: Some(8),
            ..short_picture()
        })
        .await
        .unwrap();
    let task = platform.wait_ended(&task.id).await;
    assert_whole(&platform, &task);
    // What a picture's address carries is kept with its task and told to its tenant, and is nobody else's.
    let (_, token) = task.images[0].path.split_once("token=").unwrap();
    secrets.push(secret("access token of a task", token).kept(Kept::Stored));
    let picture = format!("{}{}", platform.url(), task.images[0].path);
    assert_eq!(e2e::agent().get(picture).call().unwrap().status(), 200);

    // Where dependencies are missing, errors are told; and a process that dies tells nothing more, and leaves no core.
    for service in ["auth", "gateway", "orchestrator", "model-registry"] {
        let limits =
            fs::read_to_string(format!("/proc/{}/limits", platform.process_id(service))).unwrap();
        let core = limits
            .lines()
            .find(|line| line.starts_with("Max core file size"))
            .unwrap();
        let numbers: Vec<_> = core.split_whitespace().skip(4).take(2).collect();
        assert_eq!(numbers, ["0", "0"], "{service}");
    }
    let kek_file = platform.folder().join("auth/kek");
    let token_file = platform.folder().join("auth/admin-token");
    for (what, file) in [
        ("key-encryption key", &kek_file),
        ("admin token", &token_file),
    ] {
        secrets.push(secret(what, fs::read_to_string(file).unwrap().trim()));
    }
    platform.abort("auth");
    let mut caller = Caller {
        platform: &platform,
        answers: Vec::new(),
    };
    assert_eq!(caller.bearer(&bearer), 503);
    answers.extend(caller.answers);
    platform.run("auth");
    platform.wait_ready("auth");
    platform.broker.kill();
    let mut caller = Caller {
        platform: &platform,
        answers: Vec::new(),
    };
    assert_eq!(caller.bearer(&bearer), 200);
    let authorization = format!("Bearer {bearer}");
    let refused = caller.send(
        "POST",
        "/v1/tasks",
        &[("authorization", &authorization)],
        r#"{"prompt": "a cat"}"#,
    );
    assert_eq!(refused.0, 503, "{}", refused.1);
    answers.extend(caller.answers);
    platform.broker.restart().unwrap();

    let search = Search::new(&secrets);
    let mut all = Vec::new();
    files(platform.folder(), &[kek_file, token_file], &mut all);
    files(platform.broker.folder(), &[], &mut all);
    let mut bytes = 0;
    for path in &all {
        let text = fs::read(path).unwrap();
        bytes += text.len();
        let logs = path.extension().is_some_and(|extension| extension == "log");
        assert_none(&search, &path.display().to_string(), &text, !logs);
        let name = path.file_name().unwrap().to_string_lossy();
        assert!(!name.starts_with("core"), "{}", path.display());
    }
    for service in SERVICES {
        let log = platform.whole_log(service);
        assert!(
            log.contains("TRACE") && !log.contains("panicked"),
            "{service}"
        );
        assert_none(
            &search,
            &format!("{service}'s metrics"),
            platform.metrics(service).as_bytes(),
            false,
        );
    }
    assert_none(&search, "an answer", &answers_but_tokens(&answers), true);
    assert_none(
        &search,
        "a trace",
        &traces.wait(&["gateway", "auth", "orchestrator"]),
        false,
    );
    println!(
        "{} secrets were looked for in {} files, {bytes} bytes",
        secrets.len(),
        all.len()
    );
}

/// What was answered, but for the one answer that gives a token away because that is what it is for.
fn answers_but_tokens(answers: &[u8]) -> Vec<u8> {
    let text = String::from_utf8_lossy(answers);
    let mut rest = text.split("\"access_token\":\"");
    let mut kept = rest.next().unwrap_or_default().to_owned();
    for answer in rest {
        kept.push_str(answer.split_once('"').map_or("", |(_, after)| after));
    }
    kept.into_bytes()
}
