//! Signature v2 over the whole platform: one request, one time, over HTTP and gRPC.

use std::time::{SystemTime, UNIX_EPOCH};

use aws_lc_rs::{digest, hmac};
use contract::v1::ListModelsRequest;
use e2e::Platform;
use serde_json::{Value, json};

use crate::assert_whole;

/// The five headers, as a caller makes them who has read docs/API.md.
pub(crate) fn headers(
    (app_key, secret): &(String, String),
    nonce: &str,
    target: [&str; 3],
    body: &[u8],
) -> [(&'static str, String); 5] {
    let at = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    let at = i64::try_from(at.as_secs()).unwrap();
    let mac = |key: &[u8], text: &str| {
        hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key), text.as_bytes())
    };
    let day = jiff::Timestamp::from_second(at).unwrap().strftime("%Y%m%d");
    let key = mac(secret.as_bytes(), &format!("inkstone-v2:{day}"));
    let [method, path, query] = target;
    let digest = hex::encode(digest::digest(&digest::SHA256, body));
    let at = at.to_string();
    let signed = [
        "INKSTONE-HMAC-SHA256-V2",
        &at,
        nonce,
        method,
        path,
        query,
        &digest,
    ]
    .join("\n");
    [
        ("x-app-key", app_key.clone()),
        ("x-nonce", nonce.to_owned()),
        ("x-signature", hex::encode(mac(key.as_ref(), &signed))),
        ("x-timestamp", at),
        ("x-content-sha256", digest),
    ]
}

fn post(platform: &Platform, path: &str, headers: &[(&str, String)], body: &str) -> (u16, Value) {
    let url = format!("{}{path}", platform.url());
    let mut request = e2e::agent().post(url).content_type("application/json");
    for (name, value) in headers {
        request = request.header(*name, value);
    }
    let mut answer = request.send(body).unwrap();
    let text = answer.body_mut().read_to_string().unwrap();
    let body = serde_json::from_str(&text).unwrap();
    (answer.status().as_u16(), body)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_signed_submission_is_let_in_once_and_only_as_it_was_signed() {
    let platform = Platform::start().await;
    let body = json!({"prompt": "a 3d cat", "steps": 4, "seed": 7}).to_string();
    let sign = |nonce| {
        headers(
            &platform.signing,
            nonce,
            ["POST", "/v1/tasks", ""],
            body.as_bytes(),
        )
    };

    let signed = sign("nonce-of-the-first");
    let (status, task) = post(&platform, "/v1/tasks", &signed, &body);
    assert_eq!(status, 202, "{task}");
    let (status, again) = post(&platform, "/v1/tasks", &signed, &body);
    assert_eq!(
        (status, &again["field"]),
        (401, &json!("X-Nonce")),
        "{again}"
    );

    let other = body.replace("cat", "dog");
    let (status, swapped) = post(
        &platform,
        "/v1/tasks",
        &sign("nonce-of-the-swapped"),
        &other,
    );
    assert_eq!(
        (status, &swapped["field"]),
        (401, &json!("X-Content-SHA256")),
        "{swapped}"
    );
    let (status, moved) = post(
        &platform,
        "/v1/tasks?a=1",
        &sign("nonce-of-the-moved"),
        &body,
    );
    assert_eq!(
        (status, &moved["field"]),
        (401, &json!("X-Signature")),
        "{moved}"
    );

    let task = platform.wait_ended(task["id"].as_str().unwrap()).await;
    assert_whole(&platform, &task);
    assert_eq!(
        platform.list().await.len(),
        1,
        "what was refused left no task"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_is_exchanged_for_a_token_that_works_in_every_dialect_until_the_key_is_revoked() {
    let platform = Platform::start().await;
    let body = json!({"lifetime_seconds": 60}).to_string();
    let sign = |body: &str| {
        let nonce = format!("nonce-for-a-token-{}", body.len());
        headers(
            &platform.signing,
            &nonce,
            ["POST", "/v1/token", ""],
            body.as_bytes(),
        )
    };
    let (status, refused) = post(&platform, "/v1/token", &sign("{}"), &body);
    assert_eq!(
        (status, &refused["field"]),
        (401, &json!("X-Content-SHA256"))
    );
    let (status, issued) = post(&platform, "/v1/token", &sign(&body), &body);
    assert_eq!(status, 200, "{issued}");
    assert_eq!(
        (&issued["token_type"], &issued["expires_in"]),
        (&json!("Bearer"), &json!(60))
    );
    let token = issued["access_token"].as_str().unwrap();
    let (_, keys) = e2e::get(&format!("{}/.well-known/jwks.json", platform.url()), &[]).unwrap();
    let keys: Value = serde_json::from_str(&keys).unwrap();
    assert_eq!(keys["keys"][0]["crv"], "Ed25519");

    let bearer = format!("Bearer {token}");
    let models = || {
        let url = format!("{}/v1/models", platform.url());
        e2e::get(&url, &[("authorization", bearer.as_str())])
            .unwrap()
            .0
    };
    assert_eq!(models(), 200);
    let mut call = tonic::Request::new(ListModelsRequest {});
    call.metadata_mut()
        .insert("authorization", bearer.parse().unwrap());
    platform.client().list_models(call).await.unwrap();
    let again = [("authorization", bearer.clone())];
    assert_eq!(post(&platform, "/v1/token", &again, "{}").0, 403);

    platform.revoke_key(&platform.signing.0).await;
    assert_eq!(models(), 401);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_grpc_call_signs_the_bytes_of_its_frames() {
    let platform = Platform::start().await;
    let path = "/inkstone.v1.ImageService/ListModels";
    let call = async |nonce: &str, frames: &[u8]| {
        let mut request = tonic::Request::new(ListModelsRequest {});
        for (name, value) in headers(&platform.signing, nonce, ["POST", path, ""], frames) {
            request.metadata_mut().insert(name, value.parse().unwrap());
        }
        platform.client().list_models(request).await
    };
    // An empty message: the prefix alone.
    let models = call("nonce-of-the-call-1", &[0; 5]).await.unwrap();
    assert_eq!(models.into_inner().models.len(), 1);
    for (nonce, frames, field) in [
        ("nonce-of-the-call-1", &[0; 5][..], "X-Nonce"),
        ("nonce-of-the-call-2", &[0; 4], "X-Content-SHA256"),
    ] {
        let refused = contract::Failure::from(call(nonce, frames).await.unwrap_err());
        assert_eq!(refused.code, contract::ErrorCode::Unauthenticated);
        assert_eq!(refused.field.as_deref(), Some(field), "{refused}");
    }
}
