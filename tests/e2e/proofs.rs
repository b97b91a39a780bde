//! How producers over NATS show who they are: signature v2, signature v1, and a token; `intake.rs` has keys.

use std::time::{Duration, Instant};

use aws_lc_rs::hmac;
use e2e::{LIMIT, Platform};
use messaging::Outgoing;
use serde_json::{Value, json};

use crate::intake::{Heard, Producer, SOON, picture};
use crate::signing::headers;

#[tokio::test(flavor = "multi_thread")]
async fn a_signed_message_is_taken_once_and_a_copy_of_it_is_refused() {
    let services = ["auth", "model-registry", "orchestrator"];
    let platform = Platform::start_services(&services, &SOON, false).await;
    let producer = Producer::new(&platform).await;
    let body = picture(7).to_string().into_bytes();
    let subject = "inkstone.intake.acme";
    let nonce = "nonce-of-the-message";
    let signed = headers(&platform.signing, nonce, ["PUBLISH", subject, ""], &body);
    let message = Outgoing {
        subject: subject.to_owned(),
        id: None,
        headers: [
            &signed[..],
            &[("Content-Type", "application/json".to_owned())],
        ]
        .concat(),
        payload: body.into(),
    };
    let first = producer.publish(message.clone()).await.unwrap();
    let second = producer.publish(message).await.unwrap();
    let mut heard = Heard::new();
    producer.hear(&mut heard, |heard| heard.len() >= 2).await;
    let of = |event: &str| &heard[&(String::new(), event.to_owned())];
    let refused = of("task.refused");
    // They are worked on side by side: either may have been first.
    let mut sequences = [&of("task.accepted")["sequence"], &refused["sequence"]];
    sequences.sort_by_key(|sequence| sequence.as_u64());
    assert_eq!(sequences, [&Value::from(first), &Value::from(second)]);
    assert_eq!(refused["error"]["field"], "X-Nonce");
    // Without a key of its own, it is known by what was signed.
    assert_eq!(refused["task_id"], of("task.accepted")["task_id"]);
}

/// A token in exchange for what `authorization` shows, once auth knows that.
async fn token(platform: &Platform, authorization: &str) -> String {
    let deadline = Instant::now() + LIMIT;
    loop {
        let mut answer = e2e::agent()
            .post(format!("{}/v1/token", platform.url()))
            .header("authorization", authorization)
            .send_json(json!({}))
            .unwrap();
        let issued: Value = answer.body_mut().read_json().unwrap();
        if let Some(token) = issued["access_token"].as_str() {
            return token.to_owned();
        }
        assert!(Instant::now() < deadline, "no token: {issued}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Code and field of a refusal.
fn refusal(heard: &Heard, reference: &str) -> (String, Value) {
    let refused = heard.get(&(reference.to_owned(), "task.refused".to_owned()));
    let refused = refused.unwrap_or_else(|| panic!("{reference} is not refused: {heard:?}"));
    let error = &refused["error"];
    let code = error["code"].as_str().unwrap().to_owned();
    (code, error["field"].clone())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_with_a_token_is_taken_for_the_tokens_tenant_alone_and_until_its_key_is_revoked()
{
    let services = ["auth", "model-registry", "orchestrator", "gateway"];
    let platform = Platform::start_services(&services, &SOON, false).await;
    let producer = Producer::new(&platform).await;
    let publish = async |id: &str, token: &str| {
        let mut message = producer.message(id, picture(7).to_string().into_bytes(), true);
        message.headers[0].1 = format!("Bearer {token}");
        producer.publish(message).await.unwrap()
    };
    let own = token(&platform, &producer.authorization).await;
    let other = platform.create_key("dev-", "other").await;
    let foreign = token(&platform, &format!("Bearer {}", other.bearer)).await;
    // The claims of one token under the signature of another.
    let (claims, _) = own.rsplit_once('.').unwrap();
    let (_, signature) = foreign.rsplit_once('.').unwrap();
    publish("own", &own).await;
    publish("foreign", &foreign).await;
    publish("forged", &format!("{claims}.{signature}")).await;

    let mut heard = Heard::new();
    producer.hear(&mut heard, |heard| heard.len() >= 3).await;
    let accepted = ("own".to_owned(), "task.accepted".to_owned());
    assert!(heard.contains_key(&accepted), "{heard:?}");
    assert_eq!(refusal(&heard, "foreign").0, "permission_denied");
    let unauthenticated = ("unauthenticated".to_owned(), Value::from("Authorization"));
    assert_eq!(refusal(&heard, "forged"), unauthenticated);

    platform.revoke_key(&platform.signing.0).await;
    publish("late", &own).await;
    producer.hear(&mut heard, |heard| heard.len() >= 4).await;
    assert_eq!(refusal(&heard, "late"), unauthenticated);
    // What was refused left nothing behind.
    let tasks = producer.broker.queue("TASKS");
    let submitted = tasks.depth("inkstone.task.*.*.*.submitted").await.unwrap();
    assert_eq!(submitted.len(), 1, "{submitted:?}");
}

/// The headers of signature v1 at a time, as a producer makes them who has read docs/API.md.
fn v1(app_key: &str, secret: &str, at: i64) -> Vec<(&'static str, String)> {
    let key = hmac::Key::new(hmac::HMAC_SHA256, secret.as_bytes());
    let signature = hmac::sign(&key, format!("{app_key}{at}").as_bytes());
    vec![
        ("X-App-Key", app_key.to_owned()),
        ("X-Timestamp", at.to_string()),
        ("X-Signature", hex::encode(signature)),
        ("Content-Type", "application/json".to_owned()),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_with_signature_v1_is_taken_and_one_with_a_wrong_or_an_old_signature_is_refused()
{
    // Older than the 300 s that the clocks may differ by, whatever the test takes.
    const OLD: i64 = 400;
    let services = ["auth", "model-registry", "orchestrator"];
    let platform = Platform::start_services(&services, &SOON, false).await;
    let producer = Producer::new(&platform).await;
    let (app_key, secret) = &platform.signing;
    let now = jiff::Timestamp::now().as_second();
    let wrong = "0".repeat(secret.len());
    for (id, headers) in [
        ("good", v1(app_key, secret, now)),
        // It has no nonce: while its time is good it may be shown again, for another message too.
        ("again", v1(app_key, secret, now)),
        ("wrong", v1(app_key, &wrong, now)),
        ("old", v1(app_key, secret, now - OLD)),
    ] {
        let mut message = producer.message(id, picture(7).to_string().into_bytes(), true);
        message.headers = headers;
        producer.publish(message).await.unwrap();
    }
    let mut heard = Heard::new();
    producer.hear(&mut heard, |heard| heard.len() >= 4).await;
    for id in ["good", "again"] {
        let accepted = (id.to_owned(), "task.accepted".to_owned());
        assert!(heard.contains_key(&accepted), "{heard:?}");
    }
    for (id, field) in [("wrong", "X-Signature"), ("old", "X-Timestamp")] {
        let expected = ("unauthenticated".to_owned(), Value::from(field));
        assert_eq!(refusal(&heard, id), expected);
    }
}
