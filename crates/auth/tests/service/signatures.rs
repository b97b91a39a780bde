//! Signature v2 over several instances, and what happens when the cache of nonces cannot be asked.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, UNIX_EPOCH};

use aws_lc_rs::{digest, hmac};
use contract::ErrorCode;
use contract::auth::authenticate_request::Proof;
use contract::auth::{CreateKeyRequest, CreateKeyResponse, Receipt, SignatureV2};
use messaging::{Broker, BrokerSettings};

use crate::bench::{Bench, Instance, app_key, new_key, now, until};

const MINUTES_10: Duration = Duration::from_secs(600);
/// For how long a nonce is kept, and the ten seconds that are forgotten together.
const MINUTES_11: Duration = Duration::from_secs(670);

static NEXT: AtomicU64 = AtomicU64::new(0);

fn nonce() -> String {
    format!("nonce-{:016}", NEXT.fetch_add(1, Ordering::Relaxed))
}

fn mac(key: &[u8], text: &str) -> hmac::Tag {
    hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key), text.as_bytes())
}

/// What a client sends for `GET /v1/models` at `at` (Unix seconds).
pub(crate) fn signed_v2(made: &CreateKeyResponse, at: i64, nonce: &str) -> Proof {
    let digest = hex::encode(digest::digest(&digest::SHA256, b""));
    let day = jiff::Timestamp::from_second(at).unwrap().strftime("%Y%m%d");
    let day = mac(made.secret.as_bytes(), &format!("inkstone-v2:{day}"));
    let signed = format!("INKSTONE-HMAC-SHA256-V2\n{at}\n{nonce}\nGET\n/v1/models\n\n{digest}");
    Proof::SignatureV2(SignatureV2 {
        app_key: app_key(made),
        timestamp: at.to_string(),
        nonce: nonce.to_owned(),
        content_sha256: digest,
        signature: hex::encode(mac(day.as_ref(), &signed)),
        method: "GET".to_owned(),
        path: "/v1/models".to_owned(),
        query: String::new(),
    })
}

async fn create_for(instance: &mut Instance, tenant: &str) -> CreateKeyResponse {
    let request = instance.admin(CreateKeyRequest {
        tenant: tenant.to_owned(),
        ..new_key("dev-")
    });
    instance
        .keys
        .create_key(request)
        .await
        .unwrap()
        .into_inner()
}

#[tokio::test]
async fn the_same_signed_request_at_two_instances_is_accepted_once() {
    let bench = Bench::new();
    let (mut one, mut two) = tokio::join!(bench.instance(), bench.instance());
    let made = one.create("dev-").await;
    let there = async || {
        let fresh = signed_v2(&made, now(), &nonce());
        two.authenticate(fresh).await.ok()
    };
    until(Duration::from_secs(2), there).await;
    for _ in 0..10 {
        let proof = signed_v2(&made, now(), &nonce());
        let both = tokio::join!(
            one.authenticate(proof.clone()),
            two.authenticate(proof.clone())
        );
        let refused = match both {
            (Ok(_), Err(refused)) | (Err(refused), Ok(_)) => refused,
            other => panic!("one of the two must be let in: {other:?}"),
        };
        assert_eq!(refused.code, ErrorCode::Unauthenticated);
        assert_eq!(refused.field.as_deref(), Some("X-Nonce"), "{refused}");
        for instance in [&mut one, &mut two] {
            let refused = instance.authenticate(proof.clone()).await.unwrap_err();
            assert!(refused.message.contains("used before"), "{refused}");
        }
    }
    // A nonce is a key's own, and the clock's window is as for v1.
    let other = one.create("dev-").await;
    let shared = nonce();
    one.authenticate(signed_v2(&made, now(), &shared))
        .await
        .unwrap();
    one.authenticate(signed_v2(&other, now() - 290, &shared))
        .await
        .unwrap();
    let refused = one
        .authenticate(signed_v2(&made, now() - 310, &nonce()))
        .await;
    assert_eq!(refused.unwrap_err().field.as_deref(), Some("X-Timestamp"));
    one.stop().await;
    two.stop().await;
}

#[tokio::test]
async fn nonces_survive_a_restart_of_the_instance_and_of_the_broker() {
    let mut bench = Bench::new();
    let mut instance = bench.instance().await;
    let made = instance.create("dev-").await;
    let proof = signed_v2(&made, now(), &nonce());
    instance.authenticate(proof.clone()).await.unwrap();
    instance.stop().await;
    bench.broker.kill();
    bench.broker.restart().unwrap();
    let mut again = bench.instance().await;
    let refused = again.authenticate(proof).await.unwrap_err();
    assert!(refused.message.contains("used before"), "{refused}");
}

#[tokio::test]
async fn a_full_cache_of_nonces_refuses_v2_with_a_wait_and_nothing_else() {
    let bench = Bench::new();
    let mut settings = bench.settings();
    settings.signatures.replay_cache_size = "4KiB".parse().unwrap();
    let mut instance = bench.instance_with(settings).await;
    let made = instance.create("dev-").await;
    let newcomer = create_for(&mut instance, "umbra").await;
    let first = signed_v2(&made, now(), &nonce());
    instance.authenticate(first.clone()).await.unwrap();
    // No tenant can, so all the others together have filled it.
    let settings = BrokerSettings::new(bench.broker.url(), "10s".parse().unwrap());
    let broker = Broker::connect(&settings, "test").await.unwrap();
    let log = broker.log("NONCES");
    let mut fitted = 0;
    loop {
        let subject = format!("inkstone.nonce.{fitted}");
        if log.put(&subject, vec![0; 64].into()).await.is_err() {
            break;
        }
        fitted += 1;
        assert!(fitted < 100, "it must be full by now");
    }
    let fresh = signed_v2(&newcomer, now(), &nonce());
    let refused = instance.authenticate(fresh).await.unwrap_err();
    assert_eq!(refused.code, ErrorCode::Unavailable, "{refused}");
    // The oldest is seconds old, of the eleven minutes that it is kept.
    let wait = refused.retry_after.unwrap();
    assert!(MINUTES_10 < wait && wait <= MINUTES_11, "{wait:?}");
    assert!(refused.message.contains("no room"), "{refused}");
    // Nothing was forgotten to make room, and those who need no nonce go on.
    let refused = instance.authenticate(first).await.unwrap_err();
    assert!(refused.message.contains("used before"), "{refused}");
    let bearer = async || {
        let bearer = crate::bench::bearer(&made);
        instance.authenticate(bearer).await.ok()
    };
    until(Duration::from_secs(5), bearer).await;
}

#[tokio::test]
async fn a_tenant_fills_half_of_the_cache_hears_when_its_nonces_are_forgotten_and_another_is_let_in()
 {
    let bench = Bench::new();
    let mut settings = bench.settings();
    settings.signatures.replay_cache_size = "8KiB".parse().unwrap();
    let mut instance = bench.instance_with(settings).await;
    // A tenant has the keys that it has: each within its rate, and together too many.
    let mut keys = Vec::new();
    for _ in 0..4 {
        keys.push(instance.create("dev-").await);
    }
    let other = create_for(&mut instance, "umbra").await;
    let (mut let_in, mut next) = (0, 0);
    let full = async || {
        let key = &keys[next % keys.len()];
        next += 1;
        match instance.authenticate(signed_v2(key, now(), &nonce())).await {
            Ok(_) => let_in += 1,
            // A key's own limit is over within a second.
            Err(refused) if refused.retry_after < Some(Duration::from_secs(10)) => {}
            Err(refused) => return Some(refused),
        }
        None
    };
    let (refused, _) = until(Duration::from_secs(20), full).await;
    assert_eq!(refused.code, ErrorCode::RateLimited, "{refused}");
    assert_eq!(refused.rate_limit, None, "it is no key's rate");
    let wait = refused.retry_after.unwrap();
    assert!(MINUTES_10 < wait && wait <= MINUTES_11, "{wait:?}");
    // Half of those that fit, which are about 23.
    assert!((9..=16).contains(&let_in), "{let_in}");
    for key in &keys {
        // What they take is measured meanwhile, so that a few more may fit.
        let refused = async || {
            let signed = signed_v2(key, now(), &nonce());
            let refused = instance.authenticate(signed).await.err()?;
            refused.message.contains("your tenant").then_some(())
        };
        until(Duration::from_secs(20), refused).await;
    }
    // Others find room, and so does the tenant itself by what leaves no nonce.
    for _ in 0..3 {
        let signed = signed_v2(&other, now(), &nonce());
        instance.authenticate(signed).await.unwrap();
    }
    let bearer = async || {
        let bearer = crate::bench::bearer(&keys[0]);
        instance.authenticate(bearer).await.ok()
    };
    until(Duration::from_secs(5), bearer).await;
    // It is charged for what is refused, so a key's own rate, of five a second here, is the most that it can ask.
    let slow = instance.create("test-").await;
    let limited = async || {
        let signed = signed_v2(&slow, now(), &nonce());
        let refused = instance.authenticate(signed).await.err()?;
        refused.rate_limit
    };
    let (rate, _) = until(Duration::from_secs(20), limited).await;
    assert_eq!(rate, 5);
}

#[tokio::test]
async fn without_a_broker_v2_is_refused_with_a_wait_and_works_again_with_it() {
    let mut bench = Bench::new();
    let mut instance = bench.instance().await;
    let made = instance.create("dev-").await;
    bench.broker.kill();
    let proof = signed_v2(&made, now(), &nonce());
    let refused = instance.authenticate(proof.clone()).await.unwrap_err();
    assert_eq!(refused.code, ErrorCode::Unavailable, "{refused}");
    assert!(refused.retry_after.is_some());
    instance
        .authenticate(crate::bench::bearer(&made))
        .await
        .unwrap();
    bench.broker.restart().unwrap();
    let back = async || {
        let fresh = signed_v2(&made, now(), &nonce());
        instance.authenticate(fresh).await.ok()
    };
    until(Duration::from_secs(20), back).await;
    // What was refused was not half accepted: it may still be used, once.
    instance.authenticate(proof.clone()).await.unwrap();
    instance.authenticate(proof).await.unwrap_err();
}

#[tokio::test]
async fn a_message_shown_again_is_let_in_again_and_another_with_its_nonce_is_not() {
    let bench = Bench::new();
    let mut auth = bench.instance().await;
    let made = auth.create("dev-").await;
    // It was signed and taken an hour ago, and waited.
    let taken = now() - 3600;
    let proof = signed_v2(&made, taken, &nonce());
    let receipt = |at: i64, claim: &str| {
        let at = UNIX_EPOCH + Duration::from_secs(u64::try_from(at).unwrap());
        Receipt {
            at: Some(at.into()),
            claim: claim.to_owned(),
            tenant: "acme".to_owned(),
            charged: false,
        }
    };
    for _ in 0..2 {
        auth.authenticate_message(proof.clone(), receipt(taken, "INTAKE 7"))
            .await
            .unwrap();
    }
    for other in [receipt(taken, "INTAKE 8"), receipt(taken, "")] {
        let refused = auth.authenticate_message(proof.clone(), other).await;
        let refused = refused.unwrap_err();
        assert_eq!(refused.field.as_deref(), Some("X-Nonce"), "{refused}");
    }
    // Whoever replays it later is late, whatever was forgotten meanwhile.
    let late = auth.authenticate_message(proof, receipt(now(), "INTAKE 9"));
    let late = late.await.unwrap_err();
    assert_eq!(late.field.as_deref(), Some("X-Timestamp"), "{late}");
}

#[tokio::test]
async fn a_message_that_was_charged_is_charged_no_more_and_its_key_must_be_of_its_tenant() {
    let bench = Bench::new();
    let mut auth = bench.instance().await;
    let made = auth.create("dev-").await;
    let proof = crate::bench::bearer(&made);
    let receipt = |tenant: &str, charged| Receipt {
        at: Some(std::time::SystemTime::now().into()),
        claim: "INTAKE 7".to_owned(),
        tenant: tenant.to_owned(),
        charged,
    };
    // More than any policy lets through at once: nothing of it is charged.
    for _ in 0..500 {
        auth.authenticate_message(proof.clone(), receipt("acme", true))
            .await
            .unwrap();
        let refused = auth.authenticate_message(proof.clone(), receipt("other", false));
        assert_eq!(refused.await.unwrap_err().code, ErrorCode::PermissionDenied);
    }
    let first = auth.authenticate_message(proof.clone(), receipt("acme", false));
    let limit = first.await.unwrap().rate_limit.unwrap();
    assert!(limit.remaining + 1 >= limit.limit.min(10), "{limit:?}");
    let again = auth.authenticate_message(proof.clone(), receipt("acme", false));
    assert!(again.await.unwrap().rate_limit.unwrap().remaining <= limit.remaining);
    // A key that was revoked meanwhile is not let in, whatever was charged.
    let app_key = crate::bench::app_key(&made);
    let revoke = auth.admin(contract::auth::RevokeKeyRequest { app_key });
    auth.keys.revoke_key(revoke).await.unwrap();
    let gone = async || {
        let answer = auth.authenticate_message(proof.clone(), receipt("acme", true));
        answer.await.err()
    };
    let (refused, _) = until(Duration::from_secs(20), gone).await;
    assert_eq!(refused.code, ErrorCode::Unauthenticated);
}

#[tokio::test]
async fn only_messages_have_receipts() {
    let bench = Bench::new();
    let mut auth = bench.instance().await;
    let made = auth.create("dev-").await;
    let request = contract::auth::AuthenticateRequest {
        proof: Some(crate::bench::bearer(&made)),
        receipt: Some(Receipt::default()),
    };
    let refused = auth.auth.authenticate(request.clone()).await;
    let refused = contract::Failure::from(refused.unwrap_err());
    assert_eq!(refused.field.as_deref(), Some("receipt"), "{refused}");
    let caller = Some(request);
    let token = contract::auth::IssueTokenRequest {
        caller,
        lifetime_seconds: 0,
    };
    let refused = contract::Failure::from(auth.auth.issue_token(token).await.unwrap_err());
    assert_eq!(refused.field.as_deref(), Some("receipt"), "{refused}");
}
