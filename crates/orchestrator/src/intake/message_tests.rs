use aws_lc_rs::digest;
use proptest::prelude::*;

use super::*;

const BEARER: (&str, &str) = ("Authorization", "Bearer ink_dev-a_b");
const JSON: (&str, &str) = ("Content-Type", "application/json");

fn read(headers: &[(&str, &str)], payload: &[u8]) -> Message {
    Message::read(&Raw {
        subject: "inkstone.intake.acme",
        headers: headers.to_vec(),
        payload,
        sequence: 7,
        taken: 1,
    })
    .unwrap()
}

fn request() -> SubmitTask {
    SubmitTask {
        prompt: "a cat".to_owned(),
        ..SubmitTask::default()
    }
}

#[test]
fn the_same_request_as_json_and_as_protobuf_is_the_same_request() {
    let json = read(&[BEARER, JSON], br#"{"prompt":"a cat"}"#);
    let protobuf = read(&[BEARER], &request().encode_to_vec());
    assert!(json.json && !protobuf.json);
    assert_eq!(json.request.unwrap(), protobuf.request.unwrap());
    assert_eq!(json.task, protobuf.task);
    assert!(matches!(json.proof, Ok(Proof::Bearer(_))));
}

#[test]
fn what_a_message_is_known_by_makes_its_task() {
    let payload = request().encode_to_vec();
    let acme: TenantId = "acme".parse().unwrap();
    let key = read(
        &[BEARER, ("Idempotency-Key", "k"), ("Nats-Msg-Id", "m")],
        &payload,
    );
    assert_eq!(key.reference, "k");
    assert_eq!(key.task, TaskId::derived(&acme, "k"));
    let id = read(&[BEARER, ("Nats-Msg-Id", "m")], &payload);
    assert_eq!(id.reference, "m");
    assert_eq!(id.task, TaskId::derived(&acme, "m"));
    let mut keyed = request();
    keyed.idempotency_key = "k".to_owned();
    let field = read(&[BEARER], &keyed.encode_to_vec());
    assert_eq!((field.task, field.reference), (key.task, key.reference));
    // Without any, each message makes one of its own, and the same one whenever it is delivered.
    let (none, again) = (read(&[BEARER], &payload), read(&[BEARER], &payload));
    assert_eq!((none.task, none.reference.as_str()), (again.task, ""));
    assert!(none.task != key.task && none.task != id.task);
    let two = read(
        &[BEARER, ("Idempotency-Key", "other")],
        &keyed.encode_to_vec(),
    );
    assert_eq!(
        two.request.unwrap_err().field.as_deref(),
        Some("idempotency_key")
    );
}

#[test]
fn a_key_may_be_of_any_visible_characters_wherever_it_stands() {
    let key = "заказ № 7";
    let payload = request().encode_to_vec();
    let mut keyed = request();
    keyed.idempotency_key = key.to_owned();
    for message in [
        read(&[BEARER, ("Idempotency-Key", key)], &payload),
        read(&[BEARER, ("Nats-Msg-Id", key)], &payload),
        read(&[BEARER], &keyed.encode_to_vec()),
    ] {
        assert_eq!(message.reference, key);
        assert_eq!(message.request.unwrap().idempotency_key, key);
    }
    let control = read(&[BEARER, ("Nats-Msg-Id", "a\u{85}b")], &payload);
    let refused = control.request.unwrap_err();
    assert_eq!(refused.field.as_deref(), Some("idempotency_key"));
}

#[test]
fn a_header_that_is_there_twice_is_refused_by_its_name_in_whatever_order_it_comes() {
    let payload = br#"{"prompt":"a cat"}"#;
    let none = read(&[BEARER, JSON], payload).task;
    for name in ONCE {
        let (lower, upper) = (name.to_ascii_lowercase(), name.to_ascii_uppercase());
        for [one, two] in [[&lower, &lower], [&lower, &upper], [&upper, &lower]] {
            for values in [["first", "second"], ["second", "first"], ["same", "same"]] {
                let twice = [(one.as_str(), values[0]), (two.as_str(), values[1])];
                let mut headers = vec![BEARER, twice[0], twice[1]];
                if name != "Content-Type" {
                    headers.push(JSON);
                }
                let message = read(&headers, payload);
                let known = (message.task, message.reference.as_str());
                assert_eq!(known, (none, ""), "{headers:?}");
                assert_eq!(message.json, name != "Content-Type");
                let refused = message.request.unwrap_err();
                assert_eq!(refused.code, ErrorCode::InvalidArgument);
                assert_eq!(refused.field.as_deref(), Some(name), "{headers:?}");
                assert!(refused.message.starts_with(name), "{refused}");
            }
        }
    }
}

#[test]
fn what_is_kept_of_a_header_that_is_there_twice_is_refused_again() {
    let sent = [
        BEARER,
        JSON,
        ("Idempotency-Key", "first"),
        ("idempotency-key", "second"),
    ];
    let kept = kept(sent.into_iter());
    assert_eq!(kept["content-type"], "application/json");
    assert_eq!(kept["idempotency-key"], "first\nsecond");
    assert!(!kept.contains_key("authorization"));
    let again = read(&as_sent(&kept), br#"{"prompt":"a cat"}"#);
    let refused = again.request.unwrap_err();
    assert_eq!(refused.field.as_deref(), Some("Idempotency-Key"));
}

#[test]
fn only_a_key_that_is_shown_as_it_is_is_one_that_the_broker_would_store() {
    let payload = request().encode_to_vec();
    let shown = |headers: &[(&str, &str)]| refuse_key(&read(headers, &payload).proof.unwrap());
    let refused = shown(&[BEARER]).unwrap_err();
    assert_eq!(refused.code, ErrorCode::Unauthenticated);
    assert_eq!(refused.field.as_deref(), Some("Authorization"));
    assert!(refused.message.contains("/v1/token"), "{refused}");
    // Nor by another name: whatever is no token may be a key.
    shown(&[("authorization", "bearer ink_dev.a_b")]).unwrap_err();
    shown(&[("Authorization", "Bearer head.claims.signature")]).unwrap();
    let signature = [
        ("X-App-Key", "dev-a"),
        ("X-Timestamp", "1"),
        ("X-Signature", "ff"),
    ];
    shown(&signature).unwrap();
}

#[test]
fn a_signed_message_is_the_same_task_however_often_it_is_published() {
    let payload = request().encode_to_vec();
    let digest = hex::encode(digest::digest(&digest::SHA256, &payload));
    let signed = |digest| {
        [
            ("x-app-key", "dev-a"),
            ("X-Timestamp", "1"),
            ("X-Nonce", "n"),
            ("X-Content-SHA256", digest),
            ("X-Signature", "ff"),
        ]
    };
    let message = |sequence, headers: &[(&str, &str)]| {
        Message::read(&Raw {
            subject: "inkstone.intake.acme",
            headers: headers.to_vec(),
            payload: &payload,
            sequence,
            taken: u128::from(sequence),
        })
        .unwrap()
    };
    let (one, two) = (message(1, &signed(&digest)), message(2, &signed(&digest)));
    assert_eq!(one.task, two.task);
    let Ok(Proof::SignatureV2(proof)) = one.proof else {
        panic!("not signed");
    };
    let target = (
        proof.method.as_str(),
        proof.path.as_str(),
        proof.query.as_str(),
    );
    assert_eq!(target, ("PUBLISH", "inkstone.intake.acme", ""));
    let other = message(1, &signed(&"0".repeat(64)));
    let refused = other.proof.unwrap_err();
    assert_eq!(refused.field.as_deref(), Some("X-Content-SHA256"));
}

#[test]
fn what_is_wrong_is_told_and_the_message_is_known_all_the_same() {
    let id = ("Nats-Msg-Id", "m");
    let known = read(&[BEARER, id], &request().encode_to_vec()).task;
    let code = |headers: &[(&str, &str)], payload: &[u8]| {
        let message = read(headers, payload);
        assert_eq!(message.task, known);
        message.request.unwrap_err().code
    };
    let invalid = ErrorCode::InvalidArgument;
    assert_eq!(code(&[BEARER, id], b"\xff\xff"), invalid);
    assert_eq!(code(&[BEARER, id], b""), invalid);
    assert_eq!(code(&[BEARER, id, JSON], b"{"), invalid);
    assert_eq!(
        code(&[BEARER, id, JSON], br#"{"prompt":"x","promt":"y"}"#),
        invalid
    );
    let text = ("Content-Type", "text/plain");
    assert_eq!(
        code(&[BEARER, id, text], b"x"),
        ErrorCode::UnsupportedMediaType
    );
    let without = read(&[id], &request().encode_to_vec()).proof.unwrap_err();
    assert_eq!(without.code, ErrorCode::Unauthenticated);
    let long = "x".repeat(257);
    let message = read(
        &[BEARER, ("Nats-Msg-Id", &long)],
        &request().encode_to_vec(),
    );
    assert_eq!(
        message.request.unwrap_err().field.as_deref(),
        Some("idempotency_key")
    );
}

#[test]
fn a_producer_hears_of_its_webhook_by_the_name_that_it_wrote() {
    let later = || Failure::invalid("webhook", "webhook.url must be public");
    for (payload, field) in [
        (&br#"{"prompt":"p","webhook_url":"x"}"#[..], "webhook_url"),
        (br#"{"prompt":"p","webhook":{"url":"x"}}"#, "webhook"),
    ] {
        let message = read(&[BEARER, JSON], payload);
        let refused = message.request.unwrap_err();
        assert_eq!(refused.field.as_deref(), Some(field), "{refused}");
        assert!(refused.message.starts_with(field), "{refused}");
        // Of one that is refused on its admission, and so of one that is good as far as it can be read.
        let told = message.names.tell(later());
        assert_eq!(told.field.as_deref(), Some(field), "{told}");
    }
    let mut protobuf = request();
    protobuf.webhook = Some(contract::v1::Webhook {
        url: "x".to_owned(),
        events: Vec::new(),
    });
    let message = read(&[BEARER], &protobuf.encode_to_vec());
    let refused = message.request.unwrap_err();
    assert_eq!(refused.field.as_deref(), Some("webhook"), "{refused}");
    assert_eq!(message.names.tell(later()), later());
}

#[test]
fn a_subject_without_a_tenant_is_nobodys() {
    for subject in [
        "inkstone.intake.ACME",
        "inkstone.intake.",
        "inkstone.intake.a.b",
        "x",
    ] {
        let raw = Raw {
            subject,
            headers: vec![BEARER],
            payload: b"",
            sequence: 1,
            taken: 1,
        };
        assert!(Message::read(&raw).is_none(), "{subject}");
    }
}

proptest! {
    #[test]
    fn no_message_makes_the_reader_panic_and_what_is_read_is_within_the_limits(
        names in prop::collection::vec("(?i)(idempotency-key|nats-msg-id|content-type|authorization|x-nonce|x-app-key|\\PC{0,8})", 0..6),
        value in "\\PC{0,20}|application/json|Bearer x",
        payload in prop::collection::vec(any::<u8>(), 0..200),
    ) {
        let headers: Vec<_> = names.iter().map(|name| (name.as_str(), value.as_str())).collect();
        let message = read(&headers, &payload);
        if let Ok(request) = message.request {
            prop_assert!(validate(&request).is_ok());
            prop_assert!(!request.idempotency_key.is_empty());
        }
    }
}
