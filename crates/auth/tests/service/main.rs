//! Auth as others meet it: over gRPC, on a real broker, with more than one instance.

// In helpers as in tests: a step that fails is a test that fails.
#![allow(clippy::unwrap_used)]

mod bench;
mod keys;
mod kms;
mod leases;
mod policies;
mod process;
mod rotation;
mod signatures;
mod tokens;

use std::collections::BTreeMap;
use std::time::Duration;

use bench::{Bench, app_key, bearer, new_key, now, signed, until};
use contract::ErrorCode;
use contract::auth::authenticate_request::Proof;
use contract::auth::{AuthenticateRequest, RevokeKeyRequest, SignatureV1};
use messaging::{Broker, Bucket};

#[tokio::test]
async fn a_key_works_both_ways_on_every_instance_until_a_second_after_it_is_revoked() {
    let bench = Bench::new();
    let (mut one, mut two) = tokio::join!(bench.instance(), bench.instance());
    let made = one.create("prod-").await;
    for proof in [bearer(&made), signed(&made, now())] {
        let answer = one.authenticate(proof.clone()).await.unwrap();
        let caller = answer.caller.unwrap();
        assert_eq!(
            (caller.tenant.as_str(), caller.app_key),
            ("acme", app_key(&made))
        );
        let policy = caller.policy.unwrap();
        assert_eq!(policy.models, ["i2v", "t2i-v2"]);
        assert_eq!((policy.hd, policy.requests_per_second), (true, 50));
        let limit = answer.rate_limit.unwrap();
        assert_eq!(limit.limit, 50);
        assert!(limit.remaining < 50 && limit.reset_ms > 0, "{limit:?}");
        let seen = async || two.authenticate(proof.clone()).await.ok();
        until(Duration::from_secs(1), seen).await;
    }
    let revoke = RevokeKeyRequest {
        app_key: app_key(&made),
    };
    let revoked = one.keys.revoke_key(one.admin(revoke)).await.unwrap();
    assert!(revoked.into_inner().key.unwrap().revoked_at.is_some());
    for proof in [bearer(&made), signed(&made, now())] {
        // Where it was revoked the answer is true at once, elsewhere within a second.
        let refused = one.authenticate(proof.clone()).await.unwrap_err();
        assert_eq!(
            refused.message,
            "the key, the token or the signature is not valid"
        );
        let seen = async || two.authenticate(proof.clone()).await.err();
        let (refused, _) = until(Duration::from_secs(1), seen).await;
        assert_eq!(refused.code, ErrorCode::Unauthenticated);
    }
    one.stop().await;
    two.stop().await;
}

#[tokio::test]
async fn a_clock_that_is_off_hears_the_limit_and_the_servers_time() {
    let bench = Bench::new();
    let mut instance = bench.instance().await;
    let made = instance.create("prod-").await;
    instance
        .authenticate(signed(&made, now() - 290))
        .await
        .unwrap();
    for off in [-310, 310] {
        let refused = instance
            .authenticate(signed(&made, now() + off))
            .await
            .unwrap_err();
        assert_eq!(refused.code, ErrorCode::Unauthenticated);
        assert_eq!(refused.field.as_deref(), Some("X-Timestamp"));
        assert!(refused.message.contains("300 s"), "{refused}");
        let server = (now() - 2..=now()).any(|t| refused.message.contains(&t.to_string()));
        assert!(server, "{refused}");
    }
}

#[tokio::test]
async fn a_caller_that_shows_nothing_or_nonsense_hears_which_header_is_at_fault() {
    let bench = Bench::new();
    let mut instance = bench.instance().await;
    let nothing = instance
        .auth
        .authenticate(AuthenticateRequest::default())
        .await;
    let refused = bench::failure(nothing);
    assert_eq!(refused.code, ErrorCode::Unauthenticated);
    assert!(refused.message.contains("X-Signature"), "{refused}");
    let nonsense = Proof::Bearer("x".repeat(1 << 20));
    let refused = instance.authenticate(nonsense).await.unwrap_err();
    assert_eq!(refused.field.as_deref(), Some("Authorization"));
    let unknown = Proof::SignatureV1(SignatureV1 {
        app_key: "prod-a234567bcd".to_owned(),
        timestamp: now().to_string(),
        signature: "00".repeat(32),
    });
    let refused = instance.authenticate(unknown).await.unwrap_err();
    assert_eq!(refused.field.as_deref(), Some("X-Signature"));
    assert_eq!(
        refused.message,
        "the key, the token or the signature is not valid"
    );
}

#[tokio::test]
async fn authentication_goes_on_while_the_broker_is_down_and_everything_after() {
    let mut bench = Bench::new();
    let mut instance = bench.instance().await;
    let made = instance.create("prod-").await;
    assert!(instance.service.health.problem().is_none());
    bench.broker.kill();
    let down = async || instance.service.health.problem();
    let (problem, _) = until(Duration::from_secs(20), down).await;
    assert!(problem.starts_with("broker"), "{problem}");
    instance.authenticate(bearer(&made)).await.unwrap();
    let request = instance.admin(new_key("prod-"));
    let refused = bench::failure(instance.keys.create_key(request).await);
    assert_eq!(refused.code, ErrorCode::Unavailable);
    assert!(refused.retry_after.is_some());
    bench.broker.restart().unwrap();
    let up = async || instance.service.health.problem().is_none().then_some(());
    until(Duration::from_secs(30), up).await;
    let again = instance.create("prod-").await;
    let seen = async || instance.authenticate(bearer(&again)).await.ok();
    let (_, took) = until(Duration::from_secs(10), seen).await;
    println!("the copy follows again {took:?} after the broker is back");
    let revoke = RevokeKeyRequest {
        app_key: app_key(&made),
    };
    instance
        .keys
        .revoke_key(instance.admin(revoke))
        .await
        .unwrap();
    let gone = async || instance.authenticate(bearer(&made)).await.err();
    until(Duration::from_secs(5), gone).await;
}

#[tokio::test]
async fn a_key_over_its_rate_hears_the_limit_and_is_let_in_when_told() {
    let bench = Bench::new();
    let mut instance = bench.instance().await;
    let (made, other) = (
        instance.create("test-").await,
        instance.create("test-").await,
    );
    let over = async || instance.authenticate(bearer(&made)).await.err();
    let (refused, _) = until(Duration::from_secs(5), over).await;
    assert_eq!(refused.code, ErrorCode::RateLimited);
    assert!(refused.message.contains("5 requests a second"), "{refused}");
    let wait = refused.retry_after.unwrap();
    assert!(
        wait > Duration::ZERO && wait <= Duration::from_millis(200),
        "{wait:?}"
    );
    instance.authenticate(bearer(&other)).await.unwrap();
    tokio::time::sleep(wait).await;
    instance.authenticate(bearer(&made)).await.unwrap();
}

async fn policies(bench: &Bench) -> Bucket<serde_json::Value> {
    let broker = Broker::connect(&bench.settings().broker, "test")
        .await
        .unwrap();
    broker.bucket("POLICIES", Duration::ZERO).await.unwrap()
}

#[tokio::test]
async fn a_changed_policy_is_in_force_without_a_restart_and_survives_one() {
    let bench = Bench::new();
    let mut instance = bench.instance().await;
    let made = instance.create("test-").await;
    let policies = policies(&bench).await;
    let seeded: BTreeMap<_, _> = policies.all().await.unwrap();
    assert_eq!(seeded.keys().collect::<Vec<_>>(), ["dev", "prod", "test"]);
    let mut policy = seeded["test"].clone();
    policy["requests_per_second"] = 1000.into();
    policy["burst"] = 1000.into();
    policy["hd"] = true.into();
    policies.put("test", &policy).await.unwrap();
    policies.delete("dev").await.unwrap();
    let changed = async || {
        let answer = instance.authenticate(bearer(&made)).await.ok()?;
        let policy = answer.caller?.policy?;
        (policy.hd && policy.requests_per_second == 1000).then_some(())
    };
    until(Duration::from_secs(2), changed).await;
    instance.stop().await;
    let mut again = bench.instance().await;
    let answer = again.authenticate(bearer(&made)).await.unwrap();
    assert_eq!(answer.rate_limit.unwrap().limit, 1000);
    let request = again.admin(new_key("dev-"));
    let refused = bench::failure(again.keys.create_key(request).await);
    assert_eq!(refused.field.as_deref(), Some("prefix"));
}
