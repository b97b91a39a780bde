//! A broker with the users of docker/nats: what each service and each tenant's producers may do there, and what the broker refuses them.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use async_nats::{Client, ConnectOptions, Event, HeaderMap, Subscriber};
use contract::TaskId;
use contract::v1::{CancelRequest, SubmitTask};
use e2e::{LIMIT, Platform, broker_with_users, password, repository};
use futures::StreamExt as _;
use serde_json::{Value, json};
use tokio::sync::mpsc;

use crate::signing::headers;
use crate::{assert_whole, long_picture, short_picture};

/// How long the broker may take to refuse something.
const REFUSED_WITHIN: Duration = Duration::from_secs(10);
/// Refusals that are kept until a test looks at them.
const MAX_REFUSALS: usize = 64;

/// One of the broker's users as any program may be, and what the broker refuses it.
struct User {
    client: Client,
    refusals: mpsc::Receiver<String>,
}

impl User {
    async fn new(url: &str, folder: &Path, name: &str) -> Self {
        let (sender, refusals) = mpsc::channel(MAX_REFUSALS);
        let options =
            ConnectOptions::with_user_and_password(name.to_owned(), password(folder, name));
        let options = options.event_callback(move |event| {
            if let Event::ServerError(error) = event {
                // One that finds no room is missed by whoever waits for it.
                let _ = sender.try_send(error.to_string());
            }
            std::future::ready(())
        });
        let client = options.connect(url).await.unwrap();
        Self { client, refusals }
    }

    /// Publishes a submission through JetStream; what the broker says to it.
    async fn submit(&self, tenant: &str, authorization: &str, reference: &str) -> Value {
        let mut headers = HeaderMap::new();
        headers.insert("Authorization", authorization);
        headers.insert("Content-Type", "application/json");
        headers.insert("Nats-Msg-Id", reference);
        let body = json!({"prompt": "a 3d cat", "steps": 4, "seed": 7}).to_string();
        let subject = format!("inkstone.intake.{tenant}");
        let answer = self
            .client
            .request_with_headers(subject, headers, body.into());
        serde_json::from_slice(&answer.await.unwrap().payload).unwrap()
    }

    async fn may_not_publish(&mut self, subject: &str) {
        let published = self.client.publish(subject.to_owned(), "x".into());
        published.await.unwrap();
        self.is_refused(&format!("Publish to \"{subject}\"")).await;
    }

    async fn may_not_hear(&mut self, subject: &str) {
        let subscribed = self.client.subscribe(subject.to_owned()).await;
        // Kept: to drop it would take it back.
        let _subscription = subscribed.unwrap();
        self.is_refused(&format!("Subscription to \"{subject}\""))
            .await;
    }

    async fn is_refused(&mut self, what: &str) {
        self.client.flush().await.unwrap();
        loop {
            let next = tokio::time::timeout(REFUSED_WITHIN, self.refusals.recv()).await;
            let Ok(Some(refusal)) = next else {
                panic!("{what} was not refused");
            };
            if refusal.contains("Permissions Violation") && refusal.contains(what) {
                return;
            }
        }
    }
}

/// Hears outcomes up to this one; the references of all of them.
async fn hear(outcomes: &mut Subscriber, reference: &str, event: &str) -> Vec<String> {
    let mut heard = Vec::new();
    loop {
        let next = tokio::time::timeout(LIMIT, outcomes.next()).await;
        let message = next.unwrap_or_else(|_| panic!("{event} of {reference} was not heard"));
        let told: Value = serde_json::from_slice(&message.unwrap().payload).unwrap();
        heard.push(told["reference"].as_str().unwrap().to_owned());
        if told["reference"] == reference && told["type"] == event {
            return heard;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn all_services_as_users_of_their_own_draw_pictures_and_the_broker_refuses_them_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let mut platform = Platform::start_with_users(folder.path(), &["acme"]).await;
    // Its worker asks the broker whether it has begun in time.
    let picture = SubmitTask {
        expires_after_seconds: 600,
        ..short_picture()
    };
    let task = platform.submit(picture).await.unwrap();
    assert_whole(&platform, &platform.wait_ended(&task.id).await);
    // Nonces, and the audit's and the registry's records.
    let signed = headers(
        &platform.signing,
        "nonce-of-the-models",
        ["GET", "/v1/models", ""],
        b"",
    );
    let signed: Vec<_> = signed.iter().map(|(name, v)| (*name, v.as_str())).collect();
    let url = format!("{}/v1/models", platform.url());
    assert_eq!(e2e::get(&url, &signed).unwrap().0, 200);
    platform.operate(&["keys", "list"]).unwrap();
    platform.operate(&["policies", "list"]).unwrap();
    let task = platform.submit(long_picture()).await.unwrap();
    platform.wait_running(&task.id).await;
    let cancel = platform.request(CancelRequest { task_id: task.id });
    platform.client().cancel(cancel).await.unwrap();
    // An orchestrator that takes over what another left, while a worker draws.
    let task = platform.submit(long_picture()).await.unwrap();
    platform.wait_running(&task.id).await;
    platform.kill("orchestrator");
    platform.run("orchestrator");
    platform.wait_ready("orchestrator");
    assert_whole(&platform, &platform.wait_ended(&task.id).await);
    assert_eq!(platform.list().await.len(), 3);

    let log = std::fs::read_to_string(folder.path().join("nats-server.log")).unwrap();
    let refused: Vec<&str> = log.lines().filter(|l| l.contains("Violation")).collect();
    assert!(refused.is_empty(), "{refused:#?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_producer_submits_and_hears_for_its_tenant_and_can_neither_reach_another_nor_the_log_nor_keys()
 {
    let folder = tempfile::tempdir().unwrap();
    let platform = Platform::start_with_users(folder.path(), &["acme", "other"]).await;
    let url = platform.broker.url();
    let mut acme = User::new(&url, folder.path(), "producers-acme").await;
    let other = User::new(&url, folder.path(), "producers-other").await;
    let outcomes = acme.client.subscribe("inkstone.outcome.acme.*").await;
    let mut of_acme = outcomes.unwrap();
    let outcomes = other.client.subscribe("inkstone.outcome.other.*").await;
    let mut of_other = outcomes.unwrap();
    acme.client.flush().await.unwrap();
    other.client.flush().await.unwrap();
    let key = platform.create_key("dev-", "other").await;
    let key = format!("Bearer {}", key.bearer);

    let authorization = platform.authorization();
    let stored = acme.submit("acme", &authorization, "of-acme");
    assert_eq!(stored.await["stream"], "INTAKE");
    let stored = other.submit("other", &key, "of-other").await;
    assert_eq!(stored["stream"], "INTAKE", "{stored}");
    let heard = hear(&mut of_other, "of-other", "task.succeeded").await;
    assert!(heard.iter().all(|one| one == "of-other"), "{heard:?}");
    hear(&mut of_acme, "of-acme", "task.succeeded").await;
    // What was told to the other by now would have been heard before this.
    let again = acme.submit("acme", &authorization, "of-acme-again");
    again.await;
    let heard = hear(&mut of_acme, "of-acme-again", "task.accepted").await;
    assert!(
        heard.iter().all(|one| one.starts_with("of-acme")),
        "{heard:?}"
    );

    for subject in [
        "inkstone.intake.other",
        "inkstone.outcome.acme.x",
        "inkstone.outcome.other.x",
        "inkstone.task.acme.standard-image.x.submitted",
        "inkstone.work.inkstone-demo.1.standard-image.acme.x",
        "$JS.API.INFO",
        "$JS.API.STREAM.INFO.TASKS",
        "$JS.API.DIRECT.GET.TASKS",
        "$JS.API.STREAM.MSG.GET.TASKS",
        "$JS.API.CONSUMER.CREATE.TASKS.mine",
        "$JS.API.DIRECT.GET.OUTCOMES",
        "$JS.API.CONSUMER.CREATE.OUTCOMES.mine.inkstone.outcome.other.*",
        "$JS.API.CONSUMER.MSG.NEXT.OUTCOMES.producers_other",
        "$JS.ACK.OUTCOMES.producers_other.1.1.1.1.0",
        "$JS.API.DIRECT.GET.KV_KEYS",
        "$JS.API.STREAM.MSG.GET.KV_KEYS",
        "$JS.API.CONSUMER.CREATE.KV_KEYS.mine",
        "$JS.API.DIRECT.GET.KV_SIGNING_KEYS",
        "$JS.API.STREAM.MSG.GET.KV_SIGNING_KEYS",
        "$KV.KEYS.mine",
        "$KV.SIGNING_KEYS.1",
    ] {
        acme.may_not_publish(subject).await;
    }
    for subject in [
        "inkstone.outcome.other.*",
        "inkstone.outcome.>",
        "inkstone.intake.*",
        "inkstone.event.>",
        "inkstone.task.>",
        "$KV.>",
        "_INBOX_auth.>",
        ">",
    ] {
        acme.may_not_hear(subject).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_producer_that_was_away_hears_what_is_kept_for_it_through_the_consumer_that_an_operator_made()
 {
    let folder = tempfile::tempdir().unwrap();
    let platform = Platform::start_with_users(folder.path(), &["acme"]).await;
    let operator = platform.connect_as(folder.path(), "operator").await;
    let consumer = operator.queue("OUTCOMES");
    let wait = Duration::from_secs(30);
    let made = consumer.puller("producers_acme", "inkstone.outcome.acme.*", wait, 1000);
    made.await.unwrap();
    let acme = User::new(&platform.broker.url(), folder.path(), "producers-acme").await;
    acme.submit("acme", &platform.authorization(), "kept").await;
    let task = TaskId::derived(&"acme".parse().unwrap(), "kept");
    let task = task.to_string();
    platform.wait_ended(&task).await;

    let inbox = acme.client.new_inbox();
    let mut kept = acme.client.subscribe(inbox.clone()).await.unwrap();
    // In nanoseconds.
    let ask = json!({"batch": 2, "expires": 60_000_000_000_u64}).to_string();
    let next = "$JS.API.CONSUMER.MSG.NEXT.OUTCOMES.producers_acme";
    let asked = acme.client.publish_with_reply(next, inbox, ask.into());
    asked.await.unwrap();
    for event in ["task.accepted", "task.succeeded"] {
        let message = tokio::time::timeout(LIMIT, kept.next()).await;
        let message = message.unwrap().unwrap();
        let told: Value = serde_json::from_slice(&message.payload).unwrap();
        assert_eq!(told["type"], event, "{told}");
        assert_eq!(told["task_id"], task, "{told}");
        let acknowledged = acme.client.request(message.reply.unwrap(), "+ACK".into());
        acknowledged.await.unwrap();
    }
    let consumers = consumer.consumers().await.unwrap();
    let known = consumers.iter().find(|(name, _)| name == "producers_acme");
    assert!(known.is_some_and(|(_, floor)| *floor >= 2), "{consumers:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_can_neither_write_nor_read_what_is_anothers_and_without_a_password_nobody_is_let_in()
 {
    let folder = tempfile::tempdir().unwrap();
    let broker = broker_with_users(folder.path(), &["acme"]);
    let url = broker.url();
    let keys = "$JS.API.DIRECT.GET.KV_KEYS";
    let signing = "$JS.API.STREAM.MSG.GET.KV_SIGNING_KEYS";
    let submitted = "inkstone.task.acme.standard-image.x.submitted";
    let refused: [(&str, &[&str]); 4] = [
        (
            "auth",
            &[submitted, "$JS.API.DIRECT.GET.TASKS", "$KV.MODELS.x"],
        ),
        ("model-registry", &[submitted, keys, signing, "$KV.KEYS.x"]),
        (
            "gpu-worker",
            &[
                submitted,
                keys,
                signing,
                "$KV.KEYS.x",
                "$KV.POLICIES.dev",
                "inkstone.intake.acme",
                "inkstone.outcome.acme.x",
                "$JS.API.STREAM.PURGE.WORK",
            ],
        ),
        (
            "orchestrator",
            &[keys, signing, "$KV.KEYS.x", "inkstone.intake.acme"],
        ),
    ];
    for (name, subjects) in refused {
        let mut user = User::new(&url, folder.path(), name).await;
        for subject in subjects {
            user.may_not_publish(subject).await;
        }
        user.may_not_publish("$JS.API.STREAM.DELETE.TASKS").await;
        for subject in ["_INBOX.>", "_INBOX_operator.>", "$KV.>", "$JS.>", ">"] {
            user.may_not_hear(subject).await;
        }
    }
    assert!(async_nats::connect(&url).await.is_err());
    let wrong = ConnectOptions::with_user_and_password("auth".to_owned(), "x".to_owned());
    assert!(wrong.connect(&url).await.is_err());
}

#[test]
fn where_no_password_can_be_made_no_user_gets_an_empty_one() {
    let folder = tempfile::tempdir().unwrap();
    let tools = folder.path().join("tools");
    std::fs::create_dir(&tools).unwrap();
    std::os::unix::fs::symlink("/bin/false", tools.join("openssl")).unwrap();
    let path = format!("{}:{}", tools.display(), std::env::var("PATH").unwrap());
    let users = folder.path().join("users");
    let mut script = Command::new(repository().join("scripts/nats-users.sh"));
    script.arg(&users).arg("acme").env("PATH", path);
    let made = script.output().unwrap();
    assert!(!made.status.success(), "{made:?}");
    assert!(!users.join("passwords.conf").exists(), "{made:?}");
}
