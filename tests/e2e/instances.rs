//! What several instances of a service have in common: here, who may call.

// What was measured, for whoever runs them by hand.
#![allow(clippy::print_stdout)]

use std::time::{Duration, Instant};

use contract::auth::CreateKeyResponse;
use e2e::{LIMIT, Platform, SECOND};

/// In what time a revocation is in force at every gateway.
///
/// What bounds it: a gateway keeps no answer of auth's and asks for each request, and every auth follows the bucket KEYS. The auth that
/// revokes answers once the broker has stored the record; the broker sends it to the others at that moment, so it is in force there a message later,
/// some milliseconds. An auth whose watch breaks in just that moment reads the bucket anew half a second later.
const PROMISED: Duration = Duration::from_secs(1);
/// Between two rounds of requests: two gateways and two proofs.
const PAUSE: Duration = Duration::from_millis(20);

fn status(platform: &Platform, gateway: &str, bearer: &str) -> u16 {
    let url = format!("{}/v1/models", platform.url_of(gateway));
    let bearer = format!("Bearer {bearer}");
    e2e::get(&url, &[("authorization", &bearer)]).unwrap().0
}

/// Two gateways, each with its auth, and a key that both know. Nobody draws.
pub(crate) async fn two_gateways() -> (Platform, CreateKeyResponse) {
    let front = ["auth", "model-registry", "orchestrator", "gateway"];
    let mut platform = Platform::start_services(&front, &[], false).await;
    for instance in SECOND {
        platform.run(instance);
        platform.wait_ready(instance);
    }
    let key = platform.create_key("dev-", "acme").await;
    let began = Instant::now();
    for gateway in ["gateway", "gateway-2"] {
        while status(&platform, gateway, &key.bearer) != 200 {
            assert!(began.elapsed() < LIMIT, "{gateway} does not know the key");
            tokio::time::sleep(PAUSE).await;
        }
    }
    (platform, key)
}

/// Asks both gateways with both proofs, round after round, until each has been refused and the promised time is over. What counts is when a
/// request was sent: how long a busy machine then takes to answer it says nothing of when the revocation was in force.
async fn assert_refused_from_then_on(platform: &Platform, bearers: [&str; 2], since: Instant) {
    let proofs = ["key", "token"].into_iter().zip(bearers);
    let asked = proofs.flat_map(|proof| ["gateway-2", "gateway"].map(|gateway| (gateway, proof)));
    // Each with the time of the first request that was refused.
    let mut asked: Vec<_> = asked.map(|who| (who, None::<Duration>)).collect();
    while since.elapsed() < PROMISED || asked.iter().any(|(_, refused)| refused.is_none()) {
        for ((gateway, (proof, bearer)), refused) in &mut asked {
            let sent = since.elapsed();
            let answer = status(platform, gateway, bearer);
            let what = format!("{gateway} answered {answer} to the {proof} sent after {sent:?}");
            let late = sent >= PROMISED || refused.is_some();
            assert!(!(late && answer == 200), "{what}");
            // Over the limit is not refused yet.
            if answer == 401 && refused.is_none() {
                println!("{what}");
                *refused = Some(sent);
            }
        }
        assert!(since.elapsed() < LIMIT, "not refused: {asked:?}");
        tokio::time::sleep(PAUSE).await;
    }
    for ((gateway, (proof, _)), refused) in asked {
        let refused = refused.unwrap();
        assert!(
            refused < PROMISED,
            "{gateway} took the {proof} for {refused:?}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_revoked_at_one_auth_is_refused_by_every_gateway_within_a_second_and_so_are_its_tokens()
 {
    let (platform, key) = two_gateways().await;
    let bearer = format!("Bearer {}", key.bearer);
    let mut answer = e2e::agent()
        .post(format!("{}/v1/token", platform.url()))
        .header("authorization", &bearer)
        .send_json(serde_json::json!({}))
        .unwrap();
    let issued: serde_json::Value = answer.body_mut().read_json().unwrap();
    let token = issued["access_token"].as_str().unwrap();
    // One auth has made it; what the other knows of it is the signing key that both have.
    assert_eq!(status(&platform, "gateway-2", token), 200);

    platform.revoke_key(&key.key.unwrap().app_key).await;
    let revoked = Instant::now();
    assert_refused_from_then_on(&platform, [&key.bearer, token], revoked).await;
    // Others are served as before.
    let bearer = platform.authorization();
    let bearer = bearer.strip_prefix("Bearer ").unwrap();
    assert_eq!(status(&platform, "gateway-2", bearer), 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_orchestrator_whose_clock_is_behind_accepts_tasks_that_have_their_time() {
    let behind = ("INKSTONE_ORCHESTRATOR__PROCESS__CLOCK_OFFSET", "-90");
    let platform = Platform::start_with(&[behind]).await;
    let in_time = contract::v1::SubmitTask {
        expires_after_seconds: 60,
        ..crate::short_picture()
    };
    let task = platform.submit(in_time).await.unwrap();
    crate::assert_whole(&platform, &platform.wait_ended(&task.id).await);
}
