//! What was given up, as an operator finds it and has it tried again: with the real command, on real processes.

use std::process::Command;
use std::time::{Duration, Instant};

use contract::task::{DeadLetter, Submitted};
use contract::v1::{TaskPhase, Webhook};
use e2e::{LIMIT, Platform, binary, printed};
use prost::Message as _;
use serde_json::{Value, json};

use crate::hook::Hook;
use crate::{digests, long_picture, short_picture};

/// Runs `inkstone dead`; what it printed, or its complaint.
fn dead(platform: &Platform, arguments: &[&str]) -> Result<String, String> {
    let mut command = Command::new(binary("inkstone"));
    command
        .arg("dead")
        .args(arguments)
        .args(["--orchestrator-url", &platform.url_of("orchestrator")]);
    printed(&mut command)
}

fn dead_json(platform: &Platform, arguments: &[&str]) -> Value {
    let printed = dead(platform, &[arguments, &["--json"]].concat()).unwrap();
    serde_json::from_str(&printed).unwrap()
}

fn ids(platform: &Platform, filters: &[&str]) -> Vec<String> {
    let listed = dead_json(platform, &[&["list"], filters].concat());
    let letters = listed["letters"].as_array().unwrap();
    let id = |letter: &Value| letter["id"].as_str().unwrap().to_owned();
    letters.iter().map(id).collect()
}

/// The only letter, once it is there.
async fn wait_for_letter(platform: &Platform) -> String {
    let deadline = Instant::now() + LIMIT;
    while Instant::now() < deadline {
        if let [id] = &ids(platform, &[])[..] {
            return id.clone();
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    panic!("no letter");
}

/// What a letter says.
async fn letter(platform: &Platform, id: &str) -> DeadLetter {
    let log = platform.connect().await.log("DEAD");
    let event = log.last(&format!("inkstone.dead.{id}")).await.unwrap();
    DeadLetter::decode(event.unwrap().payload).unwrap()
}

/// Writes a letter, as one whose removal a crash has prevented, or as another version wrote it.
async fn put(platform: &Platform, id: &str, letter: &DeadLetter) {
    let log = platform.connect().await.log("DEAD");
    let payload = letter.encode_to_vec().into();
    let put = log.put(&format!("inkstone.dead.{id}"), payload).await;
    put.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_task_that_was_given_up_is_submitted_again_once_however_often_it_is_asked_for() {
    let settings = [("INKSTONE_GPU_WORKER__WORKER__MAX_ATTEMPTS", "1")];
    let mut platform = Platform::start_with(&settings).await;
    let task = platform.submit(long_picture()).await.unwrap();
    platform.wait_running(&task.id).await;
    platform.kill("gpu-worker");
    platform.run("gpu-worker");
    let ended = platform.wait_ended(&task.id).await;
    assert_eq!(ended.error.unwrap().code, "attempts_exhausted");
    let id = wait_for_letter(&platform).await;
    assert_eq!(id, format!("acme.{}", task.id));

    let all = vec![id.clone()];
    for filters in [
        &["--tenant", "acme"][..],
        &["--kind", "task"],
        &["--code", "attempts_exhausted"],
        &["--since", "1h"],
    ] {
        assert_eq!(ids(&platform, filters), all, "{filters:?}");
    }
    for filters in [
        &["--tenant", "other"][..],
        &["--kind", "webhook"],
        &["--code", "internal"],
        &["--since", "2100-01-01T00:00:00Z"],
    ] {
        assert!(ids(&platform, filters).is_empty(), "{filters:?}");
    }
    let shown = dead(&platform, &["show", &id]).unwrap();
    assert!(shown.contains("attempts_exhausted"), "{shown}");
    let copy = letter(&platform, &id).await;

    let retried = dead_json(&platform, &["retry", &id]);
    let again = retried["task_id"].as_str().unwrap().to_owned();
    assert_ne!(again, task.id);
    assert_eq!(retried["existing"], false);
    assert!(ids(&platform, &[]).is_empty());
    let ended = platform.wait_ended(&again).await;
    let undisturbed = platform.submit(long_picture()).await.unwrap();
    let undisturbed = platform.wait_ended(&undisturbed.id).await;
    assert_eq!(digests(&ended), digests(&undisturbed));
    let log = platform.connect().await.log("TASKS");
    let subject = format!("inkstone.task.acme.*.{again}.submitted");
    let event = log.last(&subject).await.unwrap().unwrap();
    let submitted = Submitted::decode(event.payload).unwrap();
    assert_eq!(submitted.retry_of, task.id);

    // The letter is gone, as when the first answer was lost; then it is there once more.
    for _ in 0..2 {
        let once = dead(&platform, &["retry", &id]).unwrap();
        assert!(once.contains("had been submitted again") && once.contains(&again));
        put(&platform, &id, &copy).await;
    }
    assert_eq!(platform.list().await.len(), 3);
    let nonsense = dead(&platform, &["show", "acme.*"]).unwrap_err();
    assert!(nonsense.contains("TENANT.TASK"), "{nonsense}");
    let never = format!("other.{}", task.id);
    for command in ["show", "retry"] {
        let refused = dead(&platform, &[command, &never]).unwrap_err();
        for part in [
            "there is no dead letter",
            "never was",
            "`inkstone dead list`",
        ] {
            assert!(refused.contains(part), "{refused}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_tried_again_says_why_and_its_letter_stays() {
    let platform = Platform::start().await;
    let good = platform.submit(short_picture()).await.unwrap();
    platform.wait_ended(&good.id).await;
    let letter = |task: &str, tenant: &str| DeadLetter {
        task_id: task.to_owned(),
        tenant: tenant.to_owned(),
        ..DeadLetter::default()
    };
    let unknown = "0197c5a2-0000-7000-8000-000000000001";
    for (tenant, task, why) in [
        ("acme", good.id.as_str(), "has succeeded"),
        ("acme", unknown, "let go of its task"),
        ("unknown", "unreadable-0123", "names no task"),
    ] {
        let id = format!("{tenant}.{task}");
        put(&platform, &id, &letter(task, tenant)).await;
        let refused = dead(&platform, &["retry", &id]).unwrap_err();
        assert!(refused.contains(why), "{refused}");
        assert!(ids(&platform, &[]).contains(&id));
    }
    // A page at a time, and all of them.
    let first = dead_json(&platform, &["list", "--limit", "2"]);
    assert_eq!(first["letters"].as_array().unwrap().len(), 2);
    let after = first["after"].as_str().unwrap();
    assert_eq!(ids(&platform, &["--limit", "2", "--after", after]).len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_letter_that_is_of_no_use_any_more_is_removed_and_again_is_no_error() {
    let platform = Platform::start().await;
    let letter = |task: &str, reason: &str| DeadLetter {
        task_id: task.to_owned(),
        tenant: "acme".to_owned(),
        code: "attempts_exhausted".to_owned(),
        reason: reason.to_owned(),
        ..DeadLetter::default()
    };
    let (one, other) = (
        "0197c5a2-0000-7000-8000-000000000001",
        "0197c5a2-0000-7000-8000-000000000002",
    );
    let id = |task: &str| format!("acme.{task}");
    put(&platform, &id(one), &letter(one, "the worker ended")).await;
    put(&platform, &id(other), &letter(other, "once more")).await;
    let removed = dead(&platform, &["remove", &id(one)]).unwrap();
    for part in [
        id(one).as_str(),
        "removed: task",
        "attempts_exhausted",
        "the worker ended",
    ] {
        assert!(removed.contains(part), "{removed}");
    }
    assert_eq!(ids(&platform, &[]), [id(other)], "the other stays");
    let again = dead(&platform, &["remove", &id(one)]).unwrap();
    assert!(again.contains("was not there"), "{again}");
    let refused = dead(&platform, &["retry", &id(one)]).unwrap_err();
    assert!(refused.contains("or removed"), "{refused}");

    let removed = dead_json(&platform, &["remove", &id(other)]);
    assert_eq!(removed["removed"], true);
    assert_eq!(removed["letter"]["reason"], "once more");
    let again = dead_json(&platform, &["remove", &id(other)]);
    assert_eq!(again["removed"], false);
    assert_eq!(again["letter"], Value::Null);
    let nonsense = dead(&platform, &["remove", "acme.*"]).unwrap_err();
    assert!(nonsense.contains("TENANT.TASK"), "{nonsense}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_decoded_is_listed_by_its_place_says_why_and_can_be_removed() {
    let platform = Platform::start().await;
    let log = platform.connect().await.log("DEAD");
    let good = "acme.0197c5a2-0000-7000-8000-000000000001";
    let bad = "acme.0197c5a2-0000-7000-8000-000000000002.webhook";
    let letter = DeadLetter {
        tenant: "acme".to_owned(),
        code: "internal".to_owned(),
        ..DeadLetter::default()
    };
    put(&platform, good, &letter).await;
    for subject in [bad, "not-ours"] {
        let subject = format!("inkstone.dead.{subject}");
        log.put(&subject, "\u{7f}".into()).await.unwrap();
    }
    let all = ids(&platform, &[]);
    let [first, place, nameless] = &all[..] else {
        panic!("{all:?}");
    };
    assert_eq!(first, good);
    assert!(place.parse::<u64>().is_ok(), "{place}");
    assert_eq!(ids(&platform, &["--kind", "webhook"]), [place.as_str()]);
    assert_eq!(ids(&platform, &["--code", "internal"]), [good]);
    let listed = dead(&platform, &["list"]).unwrap();
    assert!(listed.contains("undecodable"), "{listed}");

    let shown = dead(&platform, &["show", place]).unwrap();
    for part in [bad, "cannot be decoded", "webhook", "acme"] {
        assert!(shown.contains(part), "{shown}");
    }
    let shown = dead(&platform, &["show", nameless]).unwrap();
    assert!(shown.contains("its subject"), "{shown}");
    // By its name it is found as well.
    let shown = dead_json(&platform, &["show", bad]);
    assert_eq!(shown["id"], place.as_str());
    assert_eq!(shown["undecodable"], true);
    assert_eq!(shown["payload_hex"], "7f");
    let refused = dead(&platform, &["retry", place]).unwrap_err();
    assert!(refused.contains("cannot be decoded"), "{refused}");

    // A number hits nothing that has a name.
    let removed = dead(&platform, &["remove", "1"]).unwrap_err();
    assert!(removed.contains(good), "{removed}");
    for place in [place, nameless] {
        let removed = dead(&platform, &["remove", place]).unwrap();
        assert!(removed.contains("undecodable"), "{removed}");
        let again = dead(&platform, &["remove", place]).unwrap();
        assert!(again.contains("was not there"), "{again}");
    }
    assert_eq!(ids(&platform, &[]), [good]);
    let gone = dead(&platform, &["retry", place]).unwrap_err();
    assert!(gone.contains("there is no dead letter"), "{gone}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_webhook_that_was_given_up_is_told_again() {
    let hook = Hook::start();
    let settings = [
        Hook::REACHABLE[0],
        Hook::REACHABLE[1],
        ("INKSTONE_ORCHESTRATOR__WEBHOOKS__PAUSES", "[\"2h\"]"),
        // The first pause would be longer: it is given up when it is not taken at once.
        ("INKSTONE_ORCHESTRATOR__WEBHOOKS__GIVE_UP_AFTER", "1h"),
    ];
    let platform = Platform::start_with(&settings).await;
    let mut request = short_picture();
    request.webhook = Some(Webhook {
        url: hook.url().to_owned(),
        events: Vec::new(),
    });
    let task = platform.submit(request).await.unwrap();
    let id = wait_for_letter(&platform).await;
    assert_eq!(id, format!("acme.{}.webhook", task.id));
    let told = dead(&platform, &["retry", &id]).unwrap();
    assert!(told.contains("told again"), "{told}");
    let told = hook.wait_for(2);
    assert_eq!(told[0].body, told[1].body);
    assert_eq!(told[0].header("webhook-id"), told[1].header("webhook-id"));
    let secret = platform.webhook_secret(&platform.signing.0).await;
    assert!(told[1].is_signed_with(&secret));
    assert!(ids(&platform, &[]).is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_submission_that_was_given_up_is_taken_in_again_if_it_can_be_read_now() {
    let platform = Platform::start().await;
    let producer = messaging::Outgoing {
        subject: "inkstone.intake.acme".to_owned(),
        id: None,
        headers: vec![
            ("Authorization", platform.authorization()),
            ("Content-Type", "application/json".to_owned()),
            ("Idempotency-Key", "order-1".to_owned()),
        ],
        payload: json!({"prompt": "a cat", "promt": "a dog"})
            .to_string()
            .into(),
    };
    let intake = platform.connect().await.queue("INTAKE");
    intake.send(producer).await.unwrap();
    let id = wait_for_letter(&platform).await;
    let mut copy = letter(&platform, &id).await;
    assert_eq!(copy.app_key, platform.signing.0);
    let bearer = platform.authorization();
    let kept = format!("{copy:?}");
    assert!(
        !kept.contains(bearer.trim_start_matches("Bearer ")),
        "{kept}"
    );
    // Nothing has changed: it is refused as before, and stays.
    let refused = dead(&platform, &["retry", &id]).unwrap_err();
    assert!(refused.contains("promt"), "{refused}");
    assert_eq!(ids(&platform, &[]), vec![id.clone()]);

    // Readable now, and refused for something else, by the name that its producer wrote.
    copy.payload = json!({"prompt": "a cat", "webhook_url": "https://10.0.0.1/hook"})
        .to_string()
        .into_bytes();
    put(&platform, &id, &copy).await;
    let refused = dead(&platform, &["retry", &id]).unwrap_err();
    assert!(refused.contains("webhook_url"), "{refused}");
    assert_eq!(ids(&platform, &[]), vec![id.clone()]);

    // As a later version would read it.
    copy.payload = json!({"prompt": "a cat", "steps": 4})
        .to_string()
        .into_bytes();
    for existing in [false, true] {
        put(&platform, &id, &copy).await;
        let retried = dead_json(&platform, &["retry", &id]);
        assert_eq!(retried["existing"], existing);
        let task = retried["task_id"].as_str().unwrap();
        assert_eq!(id, format!("acme.{task}.intake"));
        let ended = platform.wait_ended(task).await;
        assert_eq!(ended.phase(), TaskPhase::Succeeded);
    }
    assert_eq!(platform.list().await.len(), 1);

    // What its key may not do any more is not done in its name.
    platform.revoke_key(&copy.app_key).await;
    put(&platform, &id, &copy).await;
    let refused = dead(&platform, &["retry", &id]).unwrap_err();
    assert!(refused.contains(&copy.app_key), "{refused}");
}
