//! A key-encryption key that a key management service holds: a real server of that protocol, in a process of its own.

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use contract::ErrorCode;

use crate::bench::{Bench, bearer, now, signed, telemetry, until};

/// Ends with the test, whichever way that ends.
struct Moto {
    process: Child,
    port: u16,
}

impl Drop for Moto {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Moto {
    /// Starts one, if the test was started with it; says so loudly if not.
    #[allow(clippy::print_stdout)]
    async fn start() -> Option<Self> {
        let Some(program) = std::env::var_os("INKSTONE_TEST_KMS") else {
            println!("SKIPPED: no server that speaks KMS's protocol is installed; run `make kms`");
            return None;
        };
        let port = nats_server::free_port().unwrap();
        let process = Command::new(PathBuf::from(program))
            .args(["-H", "127.0.0.1", "-p", &port.to_string()])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let moto = Self { process, port };
        let listens = async || {
            let address = ("127.0.0.1", moto.port);
            tokio::net::TcpStream::connect(address).await.ok()
        };
        until(Duration::from_secs(60), listens).await;
        Some(moto)
    }

    fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// Makes a key, as an operator does with a tool of AWS's.
    async fn create_key(&self) -> String {
        let request = reqwest::Client::new().post(self.url());
        let answer = request
            .header("content-type", "application/x-amz-json-1.1")
            .header("x-amz-target", "TrentService.CreateKey")
            .header(
                "authorization",
                "AWS4-HMAC-SHA256 Credential=test/20260101/us-east-1/kms/aws4_request, \
                 SignedHeaders=host, Signature=00",
            )
            .body("{}")
            .send()
            .await
            .unwrap();
        let answer: serde_json::Value =
            serde_json::from_slice(&answer.bytes().await.unwrap()).unwrap();
        answer["KeyMetadata"]["KeyId"].as_str().unwrap().to_owned()
    }
}

fn settings(bench: &Bench, moto: &Moto, key_id: &str) -> auth::Settings {
    let mut settings = bench.settings();
    settings.kms.key_id = key_id.to_owned();
    settings.kms.endpoint = moto.url();
    settings.kms.access_key_id = "test".to_owned();
    settings.kms.secret_access_key = "test-secret".into();
    settings
}

#[tokio::test]
async fn keys_move_from_a_file_into_a_kms_while_everyone_is_let_in() {
    let Some(moto) = Moto::start().await else {
        return;
    };
    let bench = Bench::new();
    let mut first = bench.instance().await;
    let made = first.create("dev-").await;
    let key_id = moto.create_key().await;

    let mut by_kms = settings(&bench, &moto, &key_id);
    by_kms.keys.old_key_files = vec![bench.key_file()];
    let mut second = bench.instance_with(by_kms).await;
    second.authenticate(bearer(&made)).await.unwrap();
    first.stop().await;
    let also = second.create("dev-").await;
    // Without the file, once nothing needs it any more.
    let mut third = None;
    let alone = async || {
        second.authenticate(signed(&made, now())).await.unwrap();
        let started = auth::start(settings(&bench, &moto, &key_id), telemetry()).await;
        started.ok().map(|service| third = Some(service))
    };
    until(Duration::from_secs(20), alone).await;
    assert!(third.unwrap().stop(Duration::from_secs(5)).await);
    let rewrapped = async || {
        let mut last = bench.instance_with(settings(&bench, &moto, &key_id)).await;
        let all = last.authenticate(bearer(&made)).await.is_ok()
            && last.authenticate(bearer(&also)).await.is_ok();
        last.stop().await;
        all.then_some(())
    };
    until(Duration::from_secs(20), rewrapped).await;
    second.stop().await;
}

#[tokio::test]
async fn without_its_kms_auth_goes_on_with_what_it_knows_and_refuses_the_rest_with_a_wait() {
    let Some(moto) = Moto::start().await else {
        return;
    };
    let bench = Bench::new();
    let key_id = moto.create_key().await;
    let mut settings = settings(&bench, &moto, &key_id);
    settings.kms.timeout = "500ms".parse().unwrap();
    let mut instance = bench.instance_with(settings.clone()).await;
    let made = instance.create("dev-").await;
    instance.authenticate(bearer(&made)).await.unwrap();
    drop(moto);
    instance.authenticate(bearer(&made)).await.unwrap();
    let request = instance.admin(crate::bench::new_key("dev-"));
    let refused = crate::bench::failure(instance.keys.create_key(request).await);
    assert_eq!(refused.code, ErrorCode::Unavailable, "{refused}");
    assert!(refused.retry_after.is_some());
    // One that starts now has nothing to seal with, and says so.
    assert!(auth::start(settings, telemetry()).await.is_err());
}
