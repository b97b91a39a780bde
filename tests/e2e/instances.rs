//! What several instances of a service have in common: here, who may call.

// What was measured, for whoever runs them by hand.
#![allow(clippy::print_stdout)]

use std::time::{Duration, Instant};

use e2e::{LIMIT, Platform, SECOND};

/// In what time a revocation is in force at every gateway.
const PROMISED: Duration = Duration::from_secs(1);
/// What a busy machine may add to that, of which neither the broker nor the services know.
const MARGIN: Duration = Duration::from_secs(1);
/// Between two requests: two gateways and two proofs, of a key that may send 50 a second through each auth.
const PAUSE: Duration = Duration::from_millis(20);

fn status(platform: &Platform, gateway: &str, bearer: &str) -> u16 {
    let url = format!("{}/v1/models", platform.url_of(gateway));
    let bearer = format!("Bearer {bearer}");
    e2e::get(&url, &[("authorization", &bearer)]).unwrap().0
}

async fn until_refused(platform: &Platform, gateway: &str, bearers: [&str; 2], since: Instant) {
    for (proof, bearer) in ["key", "token"].into_iter().zip(bearers) {
        // Over the limit is not refused yet.
        while status(platform, gateway, bearer) != 401 {
            assert!(since.elapsed() < LIMIT, "{gateway} still takes the {proof}");
            tokio::time::sleep(PAUSE).await;
        }
        let took = since.elapsed();
        println!("{gateway} refuses the {proof} {took:?} after its revocation");
        assert!(
            took < PROMISED + MARGIN,
            "{gateway} took the {proof} for {took:?}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_revoked_at_one_auth_is_refused_by_every_gateway_within_a_second_and_so_are_its_tokens()
 {
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
    let both = ["gateway-2", "gateway"]
        .map(|gateway| until_refused(&platform, gateway, [&key.bearer, token], revoked));
    for refused in both {
        refused.await;
    }
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
