//! The service as its own process, logging everything that it can log.

use std::fs::{self, File};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use aws_lc_rs::hmac;
use contract::auth::auth_service_client::AuthServiceClient;
use contract::auth::authenticate_request::Proof;
use contract::auth::key_service_client::KeyServiceClient;
use contract::auth::{AuthenticateRequest, IssueTokenRequest};
use rustix::process::{Pid, Signal, kill_process};

use crate::bench::{Bench, bearer, new_key, now, peer, read_token, signed, until, with_token};
use crate::signatures::signed_v2;

/// Ends with the test, whichever way that ends.
pub(crate) struct Process(pub(crate) Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

pub(crate) fn start(bench: &Bench, log: &Path, level: &str) -> Process {
    let set = |key: &str, value: &str| (format!("INKSTONE_AUTH__{key}"), value.to_owned());
    let settings = bench.settings();
    let child = Command::new(env!("CARGO_BIN_EXE_inkstone-auth"))
        .envs([
            set("PROCESS__ADMIN_LISTEN", "127.0.0.1:0"),
            set("TELEMETRY__LOG", level),
            set("TELEMETRY__FORMAT", "json"),
            set("BROKER__URL", &settings.broker.url),
            set("GRPC__LISTEN", "127.0.0.1:0"),
            set("KEYS__KEY_FILE", settings.keys.key_file.to_str().unwrap()),
            set(
                "KEYS__ADMIN_TOKEN_FILE",
                settings.keys.admin_token_file.to_str().unwrap(),
            ),
        ])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(File::create(log).unwrap())
        .spawn();
    Process(child.unwrap())
}

/// Where the log says that gRPC listens.
pub(crate) fn address(log: &Path) -> Option<SocketAddr> {
    let text = fs::read_to_string(log).ok()?;
    let line = text.lines().find(|l| l.contains("grpc listens"))?;
    let line: serde_json::Value = serde_json::from_str(line).ok()?;
    line["address"].as_str()?.parse().ok()
}

#[tokio::test]
async fn no_secret_is_in_anything_that_a_process_logs_and_sigterm_ends_it_well() {
    let bench = Bench::new();
    let log = bench.folder.path().join("log");
    let mut process = start(&bench, &log, "trace");
    let (address, _) = until(Duration::from_secs(20), async || address(&log)).await;
    let peer = peer(&format!("http://{address}"));
    let token = read_token(&bench.token_file());
    let mut keys = KeyServiceClient::new(peer.clone());
    let made = keys.create_key(with_token(new_key("prod-"), &token)).await;
    let made = made.unwrap().into_inner();
    let mut auth = AuthServiceClient::new(peer);
    let v2 = signed_v2(&made, now(), "a-nonce-of-this-run");
    for proof in [
        bearer(&made),
        signed(&made, now()),
        signed(&made, 0),
        v2.clone(),
        v2,
    ] {
        let _ = auth
            .authenticate(AuthenticateRequest {
                proof: Some(proof),
                receipt: None,
            })
            .await;
    }
    let issue = |proof| IssueTokenRequest {
        caller: Some(AuthenticateRequest {
            proof: Some(proof),
            receipt: None,
        }),
        lifetime_seconds: 0,
    };
    let issued = auth.issue_token(issue(bearer(&made))).await.unwrap();
    let issued = issued.into_inner().token;
    for token in [issued.clone(), format!("{issued}x")] {
        let proof = Some(Proof::Bearer(token.clone()));
        let _ = auth
            .authenticate(AuthenticateRequest {
                proof,
                receipt: None,
            })
            .await;
        let _ = auth.issue_token(issue(Proof::Bearer(token))).await;
    }
    let (_, signature) = issued.rsplit_once('.').unwrap();
    let pid = Pid::from_raw(process.0.id() as i32).unwrap();
    kill_process(pid, Signal::TERM).unwrap();
    let ended = async || process.0.try_wait().unwrap();
    let (status, _) = until(Duration::from_secs(10), ended).await;
    assert!(status.success(), "{status}");

    let logged = fs::read_to_string(&log).unwrap();
    assert!(logged.contains("key made"), "it does log");
    let kek = fs::read_to_string(bench.key_file()).unwrap();
    let random = &made.bearer[made.bearer.len() - 43..];
    let day = jiff::Timestamp::now().strftime("%Y%m%d");
    let secret = hmac::Key::new(hmac::HMAC_SHA256, made.secret.as_bytes());
    let day_key = hex::encode(hmac::sign(&secret, format!("inkstone-v2:{day}").as_bytes()));
    for (what, secret) in [
        ("day key", day_key.as_str()),
        ("caller's token", signature),
        ("secret", made.secret.as_str()),
        ("bearer", random),
        ("token", &token),
        ("kek", kek.trim()),
    ] {
        if let Some(line) = logged.lines().find(|l| l.contains(secret)) {
            panic!("the {what} is in the log: {line}");
        }
    }
}
