//! Producers over NATS, and what they and webhooks hear: over the whole platform, and over a kill -9 in the middle.

use std::collections::BTreeMap;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use contract::TaskId;
use contract::v1::{Outcome, SubmitTask, Task, TaskEvent, Webhook, outcome};
use e2e::{LIMIT, Platform};
use messaging::{Broker, BrokerError, Outgoing, Puller};
use serde_json::{Value, json};

use crate::hook::Hook;
use crate::signing::headers as sign_v2;

/// So that what a killed orchestrator held comes back soon.
pub(crate) const SOON: [(&str, &str); 1] = [("INKSTONE_ORCHESTRATOR__INTAKE__ACK_WAIT", "2s")];

/// Outcomes by reference and type.
pub(crate) type Heard = BTreeMap<(String, String), Value>;

pub(crate) struct Producer {
    pub(crate) broker: Broker,
    outcomes: Puller,
    pub(crate) authorization: String,
}

impl Producer {
    pub(crate) async fn new(platform: &Platform) -> Self {
        let broker = platform.connect().await;
        let outcomes = broker.queue("OUTCOMES");
        let wait = Duration::from_secs(30);
        let outcomes = outcomes.puller("producer", "inkstone.outcome.acme.*", wait, 4096);
        Self {
            outcomes: outcomes.await.unwrap(),
            broker,
            authorization: platform.authorization(),
        }
    }

    pub(crate) fn message(&self, id: &str, payload: Vec<u8>, json: bool) -> Outgoing {
        let kind = if json {
            "application/json"
        } else {
            "application/protobuf"
        };
        Outgoing {
            subject: "inkstone.intake.acme".to_owned(),
            id: Some(id.to_owned()),
            headers: vec![
                ("Authorization", self.authorization.clone()),
                ("Content-Type", kind.to_owned()),
            ],
            payload: payload.into(),
        }
    }

    pub(crate) async fn publish(&self, message: Outgoing) -> Result<u64, BrokerError> {
        self.broker.queue("INTAKE").send(message).await
    }

    /// Adds outcomes in JSON until `enough` says so.
    pub(crate) async fn hear(&self, heard: &mut Heard, enough: impl Fn(&Heard) -> bool) {
        let deadline = Instant::now() + LIMIT;
        while Instant::now() < deadline {
            for delivery in self.outcomes.pull(256).await.unwrap_or_default() {
                let told: Value = serde_json::from_slice(delivery.payload()).unwrap();
                let text = |field: &str| told[field].as_str().unwrap().to_owned();
                heard.insert((text("reference"), text("type")), told);
                delivery.ack().await.unwrap();
            }
            if enough(heard) {
                return;
            }
        }
        panic!("not heard in time: {heard:?}");
    }
}

pub(crate) fn picture(seed: u64) -> Value {
    json!({"prompt": "a 3d cat", "steps": 4, "seed": seed})
}

/// Publishes a request in JSON, and says its place in INTAKE.
async fn send(producer: &Producer, id: &str, body: &Value) -> u64 {
    let message = producer.message(id, body.to_string().into_bytes(), true);
    producer.publish(message).await.unwrap()
}

/// A token for the platform's key.
pub(crate) fn token(platform: &Platform) -> String {
    let request = e2e::agent().post(format!("{}/v1/token", platform.url()));
    let request = request.header("authorization", platform.authorization());
    let mut answer = request.send_json(json!({})).unwrap();
    let issued: Value = answer.body_mut().read_json().unwrap();
    issued["access_token"].as_str().unwrap().to_owned()
}

/// A request in JSON that the platform's key signs with v2.
pub(crate) fn signed(
    platform: &Platform,
    producer: &Producer,
    id: &str,
    nonce: &str,
    body: &Value,
) -> Outgoing {
    let body = body.to_string().into_bytes();
    let target = ["PUBLISH", "inkstone.intake.acme", ""];
    let signature = sign_v2(&platform.signing, nonce, target, &body);
    let mut message = producer.message(id, body, true);
    message.headers.retain(|(name, _)| *name != "Authorization");
    message.headers.extend(signature);
    message
}

/// Over gRPC, what a message of the id `both` with [`picture`] 7 asks for.
async fn submit_both(platform: &Platform) -> Task {
    let task = SubmitTask {
        prompt: "a 3d cat".to_owned(),
        steps: 4,
        seed: Some(7),
        idempotency_key: "both".to_owned(),
        ..SubmitTask::default()
    };
    platform.submit(task).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_producer_hears_what_became_of_each_message_and_a_webhook_of_the_end() {
    let hook = Hook::start();
    let settings = [
        Hook::REACHABLE[0],
        Hook::REACHABLE[1],
        Hook::SOON_AGAIN,
        (
            "INKSTONE_ORCHESTRATOR__NOTICES__PUBLIC_URL",
            "http://images.test",
        ),
    ];
    let platform = Platform::start_with(&settings).await;
    let producer = Producer::new(&platform).await;
    let mut with_hook = picture(7);
    with_hook["webhook_url"] = hook.url().into();
    let sequence = send(&producer, "good", &with_hook).await;
    let typo = json!({"prompt": "a cat", "promt": "a dog"});
    send(&producer, "typo", &typo).await;
    let unreadable = producer.message("unreadable", b"{\"prompt\": ".to_vec(), true);
    producer.publish(unreadable).await.unwrap();
    let mut stranger = producer.message("stranger", picture(7).to_string().into_bytes(), true);
    stranger.headers[0].1 = "Bearer ink_dev-0000000000_nonsense".to_owned();
    producer.publish(stranger).await.unwrap();
    let mut private = picture(8);
    private["webhook_url"] = "http://10.0.0.1/hook".into();
    send(&producer, "private", &private).await;
    // Published twice, more than the broker's own memory apart: one task.
    tokio::time::sleep(Duration::from_millis(200)).await;
    let again = send(&producer, "good", &with_hook).await;
    assert_ne!(sequence, again);

    let mut heard = Heard::new();
    producer.hear(&mut heard, |heard| heard.len() >= 6).await;
    let of = |reference: &str, event: &str| {
        let found = heard.get(&(reference.to_owned(), event.to_owned()));
        found.unwrap_or_else(|| panic!("{reference} {event}: {heard:?}"))
    };
    let refused = |reference: &str| {
        let error = &of(reference, "task.refused")["error"];
        (
            error["code"].as_str().unwrap().to_owned(),
            error["field"].clone(),
        )
    };
    let invalid = "invalid_argument".to_owned();
    assert_eq!(refused("typo"), (invalid.clone(), "promt".into()));
    assert_eq!(refused("unreadable"), (invalid.clone(), Value::Null));
    assert_eq!(refused("private"), (invalid, "webhook_url".into()));
    assert_eq!(refused("stranger").0, "unauthenticated");
    let outcomes = producer.broker.queue("OUTCOMES");
    let unproven = outcomes.depth("inkstone.outcome.acme.unproven").await;
    assert_eq!(unproven.unwrap().len(), 1, "not under the id that it named");
    let accepted = of("good", "task.accepted");
    let task = accepted["task_id"].as_str().unwrap();
    let known = TaskId::derived(&"acme".parse().unwrap(), "good");
    assert_eq!(task, known.to_string());
    let done = of("good", "task.succeeded");
    assert!(done["sequence"] == sequence || done["sequence"] == again);
    let picture = &done["task"]["images"][0];
    let url = picture["url"].as_str().unwrap();
    assert!(url.starts_with("http://images.test/v1/tasks/"), "{url}");
    assert_eq!(platform.list().await.len(), 1);
    // What could not be read is kept with its reason; whoever shows no key leaves nothing.
    let dead = producer.broker.log("DEAD");
    let dead = dead.last_of_each("inkstone.dead.acme.>").await.unwrap();
    let dead: Vec<&str> = dead.iter().map(|letter| letter.subject.as_str()).collect();
    assert_eq!(dead.len(), 2, "{dead:?}");
    assert!(
        dead.iter().all(|subject| subject.ends_with(".intake")),
        "{dead:?}"
    );

    // The receiver fails first, and is told again; the message is the same, and signed anew.
    let told = hook.wait_for(2);
    let secret = platform.webhook_secret(&platform.signing.0).await;
    for one in &told[..2] {
        assert_eq!(one.header("webhook-id"), format!("{task}-task-succeeded"));
        assert!(one.is_signed_with(&secret), "{one:?}");
        let body: Value = serde_json::from_slice(&one.body).unwrap();
        assert_eq!(body["type"], "task.succeeded");
        assert_eq!(body["data"]["id"], task);
        assert_eq!(body["data"]["images"][0]["sha256"], picture["sha256"]);
    }
    assert!(!told[0].is_signed_with("whsec_AAAA"));
    // A second publication of the same message was no second end: another's that began and ended later is told by now.
    let mut later = self::picture(9);
    later["webhook_url"] = hook.url().into();
    send(&producer, "later", &later).await;
    let later = TaskId::derived(&"acme".parse().unwrap(), "later");
    let told = hook.wait_for_id(&format!("{later}-task-succeeded"));
    let first = format!("{task}-task-succeeded");
    let of_first = told.iter().filter(|one| one.header("webhook-id") == first);
    assert_eq!(of_first.count(), 2, "{told:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_orchestrator_whose_clock_is_ahead_gives_no_webhook_up_and_signs_it_in_time() {
    let hook = Hook::start();
    let settings = [
        Hook::REACHABLE[0],
        Hook::REACHABLE[1],
        Hook::SOON_AGAIN,
        ("INKSTONE_ORCHESTRATOR__WEBHOOKS__GIVE_UP_AFTER", "1h"),
        ("INKSTONE_ORCHESTRATOR__PROCESS__CLOCK_OFFSET", "7200"),
    ];
    let platform = Platform::start_with(&settings).await;
    let mut request = crate::short_picture();
    request.webhook = Some(Webhook {
        url: hook.url().to_owned(),
        events: Vec::new(),
    });
    platform.submit(request).await.unwrap();
    // The receiver fails first.
    let told = hook.wait_for(2);
    assert_eq!(told[0].header("webhook-id"), told[1].header("webhook-id"));
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    for one in told {
        let signed: u64 = one.header("webhook-timestamp").parse().unwrap();
        assert!(now.as_secs().abs_diff(signed) < 600, "{signed}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_of_a_task_that_has_ended_already_hears_its_end() {
    let platform = Platform::start_with(&SOON).await;
    let producer = Producer::new(&platform).await;
    let task = submit_both(&platform).await;
    platform.wait_ended(&task.id).await;
    let sequence = send(&producer, "both", &picture(7)).await;
    let mut heard = Heard::new();
    producer.hear(&mut heard, |heard| heard.len() >= 2).await;
    for event in ["task.accepted", "task.succeeded"] {
        let told = &heard[&("both".to_owned(), event.to_owned())];
        assert_eq!(told["task_id"], task.id, "{told}");
        assert_eq!(told["sequence"], sequence, "{told}");
        assert_eq!(told["task"]["phase"], "succeeded", "{told}");
    }
    let end = &heard[&("both".to_owned(), "task.succeeded".to_owned())];
    assert_eq!(end["at"], end["task"]["ended_at"], "{end}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_of_a_task_that_goes_on_hears_its_end_over_a_kill() {
    // Nobody draws so far, so the task goes on for as long as it must.
    let services = ["auth", "model-registry", "orchestrator", "gateway"];
    let mut platform = Platform::start_services(&services, &SOON, false).await;
    let producer = Producer::new(&platform).await;
    let task = submit_both(&platform).await;
    let sequence = send(&producer, "both", &picture(7)).await;
    let listeners = producer.broker.queue("LISTENERS");
    let waits_for = async |count: usize| {
        let deadline = Instant::now() + LIMIT;
        loop {
            let waiting = listeners.depth("inkstone.listener.acme").await.unwrap();
            if waiting.len() == count {
                return;
            }
            let late = Instant::now() >= deadline;
            assert!(!late, "{waiting:?}, and not of {count} tenants");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    waits_for(1).await;
    platform.kill("orchestrator");
    platform.run("orchestrator");
    platform.run("gpu-worker");
    let mut heard = Heard::new();
    producer.hear(&mut heard, |heard| heard.len() >= 2).await;
    let accepted = &heard[&("both".to_owned(), "task.accepted".to_owned())];
    assert!(accepted["task"]["ended_at"].is_null(), "{accepted}");
    let end = &heard[&("both".to_owned(), "task.succeeded".to_owned())];
    assert_eq!(end["task_id"], task.id, "{end}");
    assert_eq!(end["sequence"], sequence, "{end}");
    assert_eq!(end["at"], end["task"]["ended_at"], "{end}");
    waits_for(0).await;
}

/// Times that a message was put back to wait.
fn waits(metrics: &str) -> f64 {
    let waits = metrics.lines().find(|line| {
        line.starts_with("inkstone_orchestrator_intake_total") && line.contains("waits")
    });
    let waits = waits.and_then(|line| line.rsplit(' ').next()?.parse().ok());
    waits.unwrap_or(0.0)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_that_waits_for_a_place_is_charged_once_however_often_it_comes_again() {
    const BURST: u64 = 20;
    let services = ["auth", "model-registry", "orchestrator", "gateway"];
    // One goes to the workers' queue, and two may wait.
    let window = ("INKSTONE_ORCHESTRATOR__SCHEDULING__WINDOW", "1");
    let platform = Platform::start_services(&services, &[SOON[0], window], false).await;
    let few = |policy: &mut Value| {
        policy["burst"] = BURST.into();
        policy["tasks_waiting"] = 2.into();
    };
    platform.allow_with("dev", 2, few).await;
    let producer = Producer::new(&platform).await;
    for number in 0..12 {
        send(&producer, &format!("w-{number}"), &picture(number)).await;
    }
    let mut heard = Heard::new();
    producer.hear(&mut heard, |heard| heard.len() >= 3).await;
    // Those that wait come again.
    let deadline = Instant::now() + LIMIT;
    let url = format!("{}/v1/models", platform.url());
    loop {
        let answer = e2e::agent().get(&url);
        let answer = answer.header("authorization", platform.authorization());
        let answer = answer.call().unwrap();
        let left = answer.headers()["ratelimit-remaining"].to_str().unwrap();
        // Nine wait: with more waits than that some have come again. How often they do depends on how they are paced.
        let waits = waits(&platform.metrics("orchestrator"));
        if waits > 9.0 && left.parse::<u64>().unwrap() >= BURST - 4 {
            break;
        }
        assert!(
            Instant::now() < deadline,
            "{left} are left after {waits} waits"
        );
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    // And they are still there.
    let tasks = producer.broker.queue("INTAKE");
    let waiting = tasks.depth("inkstone.intake.*").await.unwrap();
    assert_eq!(waiting, [("inkstone.intake.acme".to_owned(), 9)]);
    assert_eq!(heard.len(), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn where_no_key_is_to_lie_on_the_brokers_disk_who_sends_one_hears_what_to_show_instead() {
    let services = ["auth", "model-registry", "orchestrator", "gateway"];
    let no_keys = ("INKSTONE_ORCHESTRATOR__INTAKE__BEARER_KEYS", "false");
    let platform = Platform::start_services(&services, &[SOON[0], no_keys], false).await;
    let mut producer = Producer::new(&platform).await;
    send(&producer, "key", &picture(1)).await;
    producer.authorization = format!("Bearer {}", token(&platform));
    send(&producer, "token", &picture(2)).await;
    let message = signed(
        &platform,
        &producer,
        "signed",
        "nonce-of-a-producer",
        &picture(3),
    );
    producer.publish(message).await.unwrap();
    let mut heard = Heard::new();
    producer.hear(&mut heard, |heard| heard.len() >= 3).await;
    for reference in ["token", "signed"] {
        let accepted = (reference.to_owned(), "task.accepted".to_owned());
        assert!(heard.contains_key(&accepted), "{heard:?}");
    }
    let refused = &heard[&("key".to_owned(), "task.refused".to_owned())]["error"];
    assert_eq!(refused["code"], "unauthenticated", "{refused}");
    assert_eq!(refused["field"], "Authorization", "{refused}");
    let told = refused["message"].as_str().unwrap();
    assert!(told.contains("v2") && told.contains("/v1/token"), "{told}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_orchestrator_killed_among_messages_that_wait_doubles_none_and_loses_none() {
    const MESSAGES: usize = 600;
    let services = ["auth", "model-registry", "orchestrator", "gateway"];
    let mut platform = Platform::start_services(&services, &SOON, false).await;
    // So that there is a middle to be killed in.
    platform.allow("dev", 150).await;
    let producer = Producer::new(&platform).await;
    for number in 0..MESSAGES {
        let body = picture(number as u64);
        send(&producer, &format!("m-{number}"), &body).await;
    }
    let mut heard = Heard::new();
    for killed in 1..=2 {
        let enough = MESSAGES * killed / 3;
        producer
            .hear(&mut heard, |heard| heard.len() >= enough)
            .await;
        platform.kill("orchestrator");
        platform.run("orchestrator");
    }
    platform.wait_ready("orchestrator");
    producer
        .hear(&mut heard, |heard| heard.len() >= MESSAGES)
        .await;
    let all: Vec<_> = (0..MESSAGES).map(|number| format!("m-{number}")).collect();
    for reference in all {
        let accepted = (reference, "task.accepted".to_owned());
        assert!(heard.contains_key(&accepted), "{accepted:?}");
    }
    let tasks = producer.broker.queue("TASKS");
    let submitted = tasks.depth("inkstone.task.*.*.*.submitted").await.unwrap();
    assert_eq!(submitted.len(), MESSAGES);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_over_the_rate_waits_and_is_accepted_and_protobuf_is_answered_in_protobuf() {
    let services = ["auth", "model-registry", "orchestrator", "gateway"];
    let platform = Platform::start_services(&services, &SOON, false).await;
    platform.allow("dev", 20).await;
    let producer = Producer::new(&platform).await;
    for number in 0..60 {
        let request = contract::v1::SubmitTask {
            prompt: "a cat".to_owned(),
            seed: Some(number),
            ..Default::default()
        };
        let payload = prost::Message::encode_to_vec(&request);
        let message = producer.message(&format!("p-{number}"), payload, false);
        producer.publish(message).await.unwrap();
    }
    let deadline = Instant::now() + LIMIT;
    let mut accepted = std::collections::BTreeSet::new();
    while accepted.len() < 60 && Instant::now() < deadline {
        for delivery in producer.outcomes.pull(64).await.unwrap() {
            let told: Outcome = prost::Message::decode(delivery.payload().clone()).unwrap();
            assert_eq!(told.r#type(), TaskEvent::Accepted, "{told:?}");
            assert!(matches!(told.result, Some(outcome::Result::Task(_))));
            accepted.insert(told.reference);
            delivery.ack().await.unwrap();
        }
    }
    assert_eq!(accepted.len(), 60);
}
