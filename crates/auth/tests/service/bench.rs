//! A real broker and any number of auth instances on it, called over gRPC.

use std::path::{Path, PathBuf};
use std::sync::LazyLock;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use aws_lc_rs::hmac;
use contract::Failure;
use contract::auth::auth_service_client::AuthServiceClient;
use contract::auth::authenticate_request::Proof;
use contract::auth::key_service_client::KeyServiceClient;
use contract::auth::policy_service_client::PolicyServiceClient;
use contract::auth::{
    AuthenticateCall, AuthenticateMessagesRequest, AuthenticateRequest, AuthenticateResponse,
    CreateKeyRequest, CreateKeyResponse, Receipt, SignatureV1, authenticate_answer,
};
use lifecycle::Service;
use nats_server::NatsServer;
use telemetry::{LogFormat, Telemetry, TelemetrySettings};
use tonic::{Request, Status};

/// One for the whole test process, as one process has one.
static TELEMETRY: LazyLock<Telemetry> = LazyLock::new(|| {
    let settings = TelemetrySettings {
        log: "warn".to_owned(),
        format: LogFormat::Text,
        otlp_endpoint: String::new(),
    };
    Telemetry::start("auth", &settings).unwrap()
});

pub(crate) fn telemetry() -> Telemetry {
    TELEMETRY.clone()
}

/// A broker, and the folder where instances have their files.
pub(crate) struct Bench {
    pub(crate) broker: NatsServer,
    pub(crate) folder: tempfile::TempDir,
}

/// One running instance.
pub(crate) struct Instance {
    pub(crate) service: Service,
    pub(crate) auth: AuthServiceClient<rpc::Peer>,
    pub(crate) keys: KeyServiceClient<rpc::Peer>,
    pub(crate) policies: PolicyServiceClient<rpc::Peer>,
    token: String,
}

impl Bench {
    pub(crate) fn new() -> Self {
        Self {
            broker: NatsServer::scratch().unwrap(),
            folder: tempfile::tempdir().unwrap(),
        }
    }

    pub(crate) fn key_file(&self) -> PathBuf {
        self.folder.path().join("auth/kek")
    }

    pub(crate) fn token_file(&self) -> PathBuf {
        self.folder.path().join("auth/admin-token")
    }

    pub(crate) fn settings(&self) -> auth::Settings {
        let text = |path: PathBuf| path.to_str().unwrap().to_owned();
        let overrides = [
            ("process.admin_listen", "127.0.0.1:0".to_owned()),
            ("grpc.listen", "127.0.0.1:0".to_owned()),
            ("broker.url", self.broker.url()),
            ("keys.key_file", text(self.key_file())),
            ("keys.admin_token_file", text(self.token_file())),
        ];
        settings::load(None, &overrides).unwrap()
    }

    pub(crate) async fn instance(&self) -> Instance {
        self.instance_with(self.settings()).await
    }

    pub(crate) async fn instance_with(&self, settings: auth::Settings) -> Instance {
        let service = auth::start(settings, telemetry()).await.unwrap();
        let url = format!("http://{}", service.address("grpc"));
        Instance::over(service, &url, &self.token_file())
    }
}

pub(crate) fn peer(url: &str) -> rpc::Peer {
    let settings = rpc::PeerSettings::new(url, "20s".parse().unwrap());
    rpc::peer("auth", &settings).unwrap()
}

impl Instance {
    fn over(service: Service, url: &str, token_file: &Path) -> Self {
        Self {
            service,
            auth: AuthServiceClient::new(peer(url)),
            keys: KeyServiceClient::new(peer(url)),
            policies: PolicyServiceClient::new(peer(url)),
            token: read_token(token_file),
        }
    }

    /// A request that carries the admin token.
    pub(crate) fn admin<T>(&self, message: T) -> Request<T> {
        with_token(message, &self.token)
    }

    pub(crate) async fn create(&mut self, prefix: &str) -> CreateKeyResponse {
        let request = self.admin(new_key(prefix));
        self.keys.create_key(request).await.unwrap().into_inner()
    }

    pub(crate) async fn authenticate(
        &mut self,
        proof: Proof,
    ) -> Result<AuthenticateResponse, Failure> {
        let request = AuthenticateRequest {
            proof: Some(proof),
            receipt: None,
        };
        let answer = self.auth.authenticate(request).await;
        answer
            .map(tonic::Response::into_inner)
            .map_err(Failure::from)
    }

    /// A message's, as the orchestrator shows it.
    pub(crate) async fn authenticate_message(
        &mut self,
        proof: Proof,
        receipt: Receipt,
    ) -> Result<AuthenticateResponse, Failure> {
        let request = AuthenticateRequest {
            proof: Some(proof),
            receipt: Some(receipt),
        };
        let calls = vec![AuthenticateCall {
            request: Some(request),
            timeout_ms: 5000,
            traceparent: String::new(),
        }];
        let asked = AuthenticateMessagesRequest { calls };
        let mut answers = self.auth.authenticate_messages(asked).await?.into_inner();
        let mut answers = answers.message().await?.unwrap().answers;
        match answers.pop().unwrap().answer.unwrap() {
            authenticate_answer::Answer::Admitted(admitted) => Ok(admitted),
            authenticate_answer::Answer::Refused(refusal) => Err(refusal.into()),
        }
    }

    pub(crate) async fn stop(self) {
        assert!(self.service.stop(Duration::from_secs(5)).await);
    }
}

pub(crate) fn read_token(file: &Path) -> String {
    std::fs::read_to_string(file).unwrap().trim().to_owned()
}

pub(crate) fn with_token<T>(message: T, token: &str) -> Request<T> {
    let mut request = Request::new(message);
    let value = format!("Bearer {token}").parse().unwrap();
    request.metadata_mut().insert("authorization", value);
    request
}

pub(crate) fn new_key(prefix: &str) -> CreateKeyRequest {
    CreateKeyRequest {
        prefix: prefix.to_owned(),
        tenant: "acme".to_owned(),
        name: "a laptop".to_owned(),
        allow_signature_v1: true,
    }
}

pub(crate) fn app_key(made: &CreateKeyResponse) -> String {
    made.key.as_ref().unwrap().app_key.clone()
}

pub(crate) fn bearer(made: &CreateKeyResponse) -> Proof {
    Proof::Bearer(made.bearer.clone())
}

pub(crate) fn now() -> i64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap()
        .as_secs() as i64
}

/// What an existing client sends at `at` (Unix seconds).
pub(crate) fn signed(made: &CreateKeyResponse, at: i64) -> Proof {
    let app_key = app_key(made);
    let key = hmac::Key::new(hmac::HMAC_SHA256, made.secret.as_bytes());
    let signature = hmac::sign(&key, format!("{app_key}{at}").as_bytes());
    Proof::SignatureV1(SignatureV1 {
        app_key,
        timestamp: at.to_string(),
        signature: hex::encode(signature),
    })
}

/// Tries until `attempt` gives something, `limit` at most; says how long it took.
pub(crate) async fn until<T>(
    limit: Duration,
    mut attempt: impl AsyncFnMut() -> Option<T>,
) -> (T, Duration) {
    let began = Instant::now();
    loop {
        if let Some(found) = attempt().await {
            return (found, began.elapsed());
        }
        assert!(began.elapsed() < limit, "not within {limit:?}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

pub(crate) fn failure<T: std::fmt::Debug>(answer: Result<T, Status>) -> Failure {
    answer.unwrap_err().into()
}
