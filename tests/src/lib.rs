//! A whole platform for tests: nats-server and the five services, each a real process of its own that can be killed with
//! SIGKILL and started again on the same ports and data.

// A test harness fails by panicking; that is what its callers want.
#![allow(clippy::unwrap_used, clippy::missing_panics_doc)]

mod calls;
mod secure;
pub mod small_disk;
mod users;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use contract::auth::key_service_client::KeyServiceClient;
use contract::auth::{
    CreateKeyRequest, CreateKeyResponse, GetWebhookSecretRequest, RevokeKeyRequest,
};
use contract::v1::{Task, TaskPhase};
use messaging::{Broker, BrokerSettings};
use nats_server::{NatsServer, free_port};
use tonic::Request;

pub use users::{broker_with_users, password};

/// The five services in the order in which they need each other.
pub const SERVICES: [&str; 5] = [
    "auth",
    "model-registry",
    "orchestrator",
    "gpu-worker",
    "gateway",
];

/// A second auth and a second gateway that asks it, on the same broker and with the same secrets; started by
/// [`Platform::run`], for tests of what instances have in common.
pub const SECOND: [&str; 2] = ["auth-2", "gateway-2"];

/// A third of each, likewise.
pub const THIRD: [&str; 2] = ["auth-3", "gateway-3"];

/// The service that an instance is one of, and what stands behind its name in the instance's.
fn service_of(instance: &str) -> (&str, &str) {
    let at = instance.len().saturating_sub(2);
    match instance.get(at..) {
        Some("-2" | "-3") => instance.split_at(at),
        _ => (instance, ""),
    }
}

/// How long anything that must happen may take.
pub const LIMIT: Duration = Duration::from_secs(90);
const POLL: Duration = Duration::from_millis(50);

/// A running platform; everything is stopped and removed when it is dropped.
pub struct Platform {
    /// The broker, to kill and restart.
    pub broker: NatsServer,
    folder: tempfile::TempDir,
    ports: BTreeMap<&'static str, (u16, u16)>,
    children: BTreeMap<&'static str, Child>,
    settings: Vec<(String, String)>,
    bearer: String,
    /// App key and secret, for signatures.
    pub signing: (String, String),
}

impl Platform {
    /// Starts everything and waits until every service is ready.
    pub async fn start() -> Self {
        Self::start_with(&[]).await
    }

    /// The same with settings of its own, such as `("INKSTONE_GPU_WORKER__WORKER__SLOTS", "1")`.
    pub async fn start_with(settings: &[(&str, &str)]) -> Self {
        Self::start_services(&SERVICES, settings, false).await
    }

    /// Only these services, in this order; with a broker that flushes each write to the disk before it acknowledges it, or not.
    pub async fn start_services(
        services: &[&'static str],
        settings: &[(&str, &str)],
        sync_always: bool,
    ) -> Self {
        let broker = NatsServer::scratch_with(sync_always).unwrap();
        Self::start_on(broker, services, settings).await
    }

    /// The same on a broker that runs.
    pub async fn start_on(
        broker: NatsServer,
        services: &[&'static str],
        settings: &[(&str, &str)],
    ) -> Self {
        Self::on(broker, services, settings).with_key().await
    }

    /// The same with a key of the tenant `acme`.
    async fn with_key(mut self) -> Self {
        let key = self.create_key("dev-", "acme").await;
        self.bearer = key.bearer;
        self.signing = (key.key.unwrap().app_key, key.secret);
        self
    }

    fn on(broker: NatsServer, services: &[&'static str], settings: &[(&str, &str)]) -> Self {
        let all = SERVICES.into_iter().chain(SECOND).chain(THIRD);
        let ports = all.map(|service| (service, (free_port().unwrap(), free_port().unwrap())));
        let own = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
        let mut platform = Self {
            broker,
            folder: tempfile::tempdir().unwrap(),
            ports: ports.collect(),
            children: BTreeMap::new(),
            settings: settings.iter().map(own).collect(),
            bearer: String::new(),
            signing: Default::default(),
        };
        for service in services {
            platform.run(service);
        }
        for service in services {
            platform.wait_ready(service);
        }
        platform
    }

    /// Makes a key on auth's own address.
    pub async fn create_key(&self, prefix: &str, tenant: &str) -> CreateKeyResponse {
        let request = self.admin_request(CreateKeyRequest {
            prefix: prefix.to_owned(),
            tenant: tenant.to_owned(),
            name: "test".to_owned(),
            allow_signature_v1: true,
        });
        let mut keys = KeyServiceClient::new(self.channel("auth"));
        keys.create_key(request).await.unwrap().into_inner()
    }

    /// Sets how many requests a second a policy allows, and at once, and waits until that is in force.
    pub async fn allow(&self, policy: &'static str, per_second: u32) {
        let same = |policy: &mut serde_json::Value| policy["burst"] = per_second.into();
        self.allow_with(policy, per_second, same).await;
    }

    /// Sets how many requests a second a policy allows, and what else `change` does to it, and waits until that is in force.
    pub async fn allow_with(
        &self,
        policy: &'static str,
        per_second: u32,
        change: impl FnOnce(&mut serde_json::Value),
    ) {
        let broker = self.connect().await;
        let bucket = broker.bucket::<serde_json::Value>("POLICIES", Duration::ZERO);
        let bucket = bucket.await.unwrap();
        let mut entry = bucket.get(policy).await.unwrap().unwrap();
        entry.value["requests_per_second"] = per_second.into();
        change(&mut entry.value);
        bucket.put(policy, &entry.value).await.unwrap();
        let deadline = Instant::now() + LIMIT;
        while Instant::now() < deadline {
            let answer = agent()
                .get(format!("{}/v1/models", self.url()))
                .header("authorization", self.authorization())
                .call()
                .unwrap();
            let limit = answer.headers().get("ratelimit-limit").unwrap();
            if limit.to_str().unwrap() == per_second.to_string() {
                return;
            }
            tokio::time::sleep(POLL).await;
        }
        panic!("the policy {policy} is not in force");
    }

    /// Revokes a key on auth's own address.
    pub async fn revoke_key(&self, app_key: &str) {
        let request = self.admin_request(RevokeKeyRequest {
            app_key: app_key.to_owned(),
        });
        let mut keys = KeyServiceClient::new(self.channel("auth"));
        keys.revoke_key(request).await.unwrap();
    }

    /// What a key's webhooks are signed with.
    pub async fn webhook_secret(&self, app_key: &str) -> String {
        let request = self.admin_request(GetWebhookSecretRequest {
            app_key: app_key.to_owned(),
        });
        let mut keys = KeyServiceClient::new(self.channel("auth"));
        let found = keys.get_webhook_secret(request).await.unwrap();
        found.into_inner().secret
    }

    /// A connection to the broker, as a producer has one.
    pub async fn connect(&self) -> Broker {
        let settings = BrokerSettings::new(self.broker.url(), "10s".parse().unwrap());
        Broker::connect(&settings, "test").await.unwrap()
    }

    fn admin_request<T>(&self, message: T) -> Request<T> {
        let token = std::fs::read_to_string(self.path("auth/admin-token")).unwrap();
        let token = format!("Bearer {}", token.trim());
        let mut request = Request::new(message);
        request
            .metadata_mut()
            .insert("authorization", token.parse().unwrap());
        request
    }

    /// Runs `inkstone` with what an operator of this platform gives it; what it printed, or its complaint.
    ///
    /// # Errors
    /// What it wrote when it did not do as it was told.
    pub fn operate(&self, arguments: &[&str]) -> Result<String, String> {
        let auth = format!("http://127.0.0.1:{}", self.ports["auth"].0);
        let mut command = Command::new(binary("inkstone"));
        command
            .args(arguments)
            .args(["--auth-url", &auth, "--admin-token-file"])
            .arg(self.path("auth/admin-token"));
        printed(&mut command)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Where pictures and artifacts are kept.
    pub fn objects(&self) -> PathBuf {
        self.path("objects")
    }

    /// Where picture `index` of a task is kept. Panics if it is not there.
    pub fn picture(&self, task: &str, index: u32) -> PathBuf {
        let start = format!("{task}-{index}.");
        let listed = |folder: &Path| std::fs::read_dir(folder).into_iter().flatten().flatten();
        let minutes = listed(&self.objects().join("images"));
        let mut files = minutes.flat_map(|minute| listed(&minute.path()).map(|file| file.path()));
        let is_it = |file: &PathBuf| {
            let name = file.file_name().unwrap().to_string_lossy();
            name.starts_with(&start) && name.ends_with(".png")
        };
        files.find(is_it).expect("the picture is stored")
    }

    /// Starts a service that does not run.
    pub fn run(&mut self, service: &'static str) {
        let log = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.path(&format!("{service}.log")))
            .unwrap();
        let mut command = Command::new(binary(service_of(service).0));
        command.envs(self.environment(service));
        command.envs(self.settings.iter().map(|(k, v)| (k, v)));
        command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log);
        let child = command.spawn().unwrap();
        self.children.insert(service, child);
    }

    fn environment(&self, instance: &str) -> Vec<(String, String)> {
        let (service, which) = service_of(instance);
        let prefix = prefix(service);
        let (main, admin) = self.ports[instance];
        let url = |service: &str| format!("http://127.0.0.1:{}", self.ports[service].0);
        let text = |path: &str| self.path(path).display().to_string();
        let objects = format!("file://{}", text("objects"));
        let demo = repository().join("assets/models/inkstone-demo");
        let mut settings = vec![("PROCESS__ADMIN_LISTEN", format!("127.0.0.1:{admin}"))];
        if service != "gateway" {
            settings.push(("BROKER__URL", self.broker.url()));
        }
        if service != "auth" {
            settings.push(("STORAGE__URL", objects));
        }
        if matches!(service, "orchestrator" | "gpu-worker" | "gateway") {
            settings.push(("REGISTRY__URL", url("model-registry")));
        }
        match service {
            "auth" => {
                settings.push(("KEYS__KEY_FILE", text("auth/kek")));
                settings.push(("KEYS__ADMIN_TOKEN_FILE", text("auth/admin-token")));
            }
            "model-registry" => {
                settings.push((
                    "MODELS__BOOTSTRAP",
                    format!("[{:?}]", demo.display().to_string()),
                ));
            }
            "orchestrator" => {
                // The broker sets this aside on the disk.
                settings.push(("STREAMS__TASK_MAX_SIZE", "64MiB".to_owned()));
                settings.push(("STREAMS__DEAD_MAX_SIZE", "16MiB".to_owned()));
                for size in [
                    "INTAKE__MAX_SIZE",
                    "NOTICES__OUTCOMES_MAX_SIZE",
                    "WEBHOOKS__MAX_SIZE",
                ] {
                    settings.push((size, "16MiB".to_owned()));
                }
                settings.push(("AUDIT__MAX_SIZE", "32MiB".to_owned()));
                settings.push(("AUTH__URL", url("auth")));
            }
            "gpu-worker" => {
                settings.push(("WORKER__CACHE_DIR", text("cache")));
                settings.push(("WORKER__ACK_WAIT", "3s".to_owned()));
                settings.push(("ENGINE__CHECKPOINT_EVERY", "1s".to_owned()));
            }
            "gateway" => {
                settings.push(("HTTP__LISTEN", format!("127.0.0.1:{main}")));
                settings.push(("AUTH__URL", url(&format!("auth{which}"))));
                settings.push(("ORCHESTRATOR__URL", url("orchestrator")));
                settings.push(("HEALTH__INTERVAL", "500ms".to_owned()));
            }
            _ => {}
        }
        if !matches!(service, "gateway" | "gpu-worker") {
            settings.push(("GRPC__LISTEN", format!("127.0.0.1:{main}")));
        }
        let named = |(key, value)| (format!("{prefix}{key}"), value);
        settings.into_iter().map(named).collect()
    }

    /// Kills a service as a crash would (SIGKILL).
    pub fn kill(&mut self, service: &str) {
        let mut child = self.children.remove(service).unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
    }

    /// Has a service crash as a fault of its own would have it (SIGABRT), core dump and all where there is one.
    pub fn abort(&mut self, service: &str) {
        let mut child = self.children.remove(service).unwrap();
        let pid = rustix::process::Pid::from_child(&child);
        rustix::process::kill_process(pid, rustix::process::Signal::ABORT).unwrap();
        let status = child.wait().unwrap();
        assert!(
            !std::os::unix::process::ExitStatusExt::core_dumped(&status),
            "{service} left its memory behind"
        );
    }

    /// Asks a service to stop (SIGTERM) and waits until it has; true when it ended well.
    pub fn terminate(&mut self, service: &str) -> bool {
        let mut child = self.children.remove(service).unwrap();
        let pid = rustix::process::Pid::from_child(&child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        child.wait().unwrap().success()
    }

    /// Stops a service, starts it with another value of a setting, and waits until it is ready.
    pub fn restart_with(&mut self, service: &'static str, (key, value): (&str, &str)) {
        assert!(self.terminate(service), "{service} does not end well");
        self.settings.retain(|(set, _)| set != key);
        self.settings.push((key.to_owned(), value.to_owned()));
        self.run(service);
        self.wait_ready(service);
    }

    /// A service's process id.
    pub fn process_id(&self, service: &str) -> u32 {
        self.children[service].id()
    }

    /// Waits until a service's `/readyz` says so.
    pub fn wait_ready(&mut self, service: &'static str) {
        self.wait_readiness(service, 200);
    }

    /// Waits until a service's `/readyz` answers with this status.
    pub fn wait_readiness(&mut self, service: &'static str, status: u16) {
        self.wait_readiness_with(service, status, "");
    }

    /// The same, with these words in its body.
    pub fn wait_readiness_with(&mut self, service: &'static str, status: u16, words: &str) {
        let url = format!("http://127.0.0.1:{}/readyz", self.ports[service].1);
        let deadline = Instant::now() + LIMIT;
        let mut last = String::new();
        while Instant::now() < deadline {
            if let Ok((found, body)) = get(&url, &[]) {
                if found == status && body.contains(words) {
                    return;
                }
                last = body;
            }
            let child = self.children.get_mut(service).unwrap();
            assert!(
                matches!(child.try_wait(), Ok(None)),
                "{service} ended:\n{}",
                self.log(service)
            );
            std::thread::sleep(POLL);
        }
        panic!(
            "{service} is not at {status} {words}: {last}\n{}",
            self.log(service)
        );
    }

    /// All that a service has logged.
    pub fn whole_log(&self, service: &str) -> String {
        let log = self.path(&format!("{service}.log"));
        String::from_utf8_lossy(&std::fs::read(log).unwrap_or_default()).into_owned()
    }

    /// The folder with all that the services keep outside of the broker, their logs too.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// What Linux says of a service's process under `field`, such as `VmHWM` (the most memory that it has had), in KiB.
    pub fn process_status(&self, service: &str, field: &str) -> u64 {
        let status = format!("/proc/{}/status", self.process_id(service));
        let status = std::fs::read_to_string(status).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix(field));
        let value = line.and_then(|line| line.split_whitespace().nth(1));
        value.unwrap().parse().unwrap()
    }

    /// A service's metrics.
    pub fn metrics(&self, service: &str) -> String {
        let url = format!("http://127.0.0.1:{}/metrics", self.ports[service].1);
        get(&url, &[]).unwrap().1
    }

    /// The end of a service's log.
    pub fn log(&self, service: &str) -> String {
        let text = self.whole_log(service);
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(40)..].join("\n")
    }

    /// Where a service serves its metrics.
    pub fn metrics_url(&self, service: &str) -> String {
        format!("http://127.0.0.1:{}/metrics", self.ports[service].1)
    }

    /// The public address.
    pub fn url(&self) -> String {
        self.url_of("gateway")
    }

    /// Where an instance serves.
    pub fn url_of(&self, instance: &str) -> String {
        format!("http://127.0.0.1:{}", self.ports[instance].0)
    }

    /// `Authorization: Bearer …` of the tenant `acme`.
    pub fn authorization(&self) -> String {
        format!("Bearer {}", self.bearer)
    }
}

impl Drop for Platform {
    fn drop(&mut self) {
        for child in self.children.values_mut() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// What a service's settings begin with in the environment.
fn prefix(service: &str) -> String {
    format!("INKSTONE_{}__", service.to_uppercase().replace('-', "_"))
}

/// True when a task has ended in any way.
pub fn has_ended(task: &Task) -> bool {
    matches!(
        task.phase(),
        TaskPhase::Succeeded | TaskPhase::Failed | TaskPhase::Cancelled
    )
}

/// GETs over HTTP/1.1: status and body.
///
/// # Errors
/// When there is no answer.
pub fn get(url: &str, headers: &[(&str, &str)]) -> Result<(u16, String), ureq::Error> {
    let mut request = agent().get(url);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let mut answer = request.call()?;
    Ok((
        answer.status().as_u16(),
        answer.body_mut().read_to_string()?,
    ))
}

/// An HTTP client that takes every status as an answer.
pub fn agent() -> ureq::Agent {
    ureq::Agent::config_builder()
        .http_status_as_error(false)
        .timeout_global(Some(LIMIT))
        .build()
        .into()
}

/// The repository's root.
pub fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .unwrap()
        .to_owned()
}

/// Runs a command to its end; what it printed, or its complaint.
///
/// # Errors
/// What it wrote when it did not do as it was told.
pub fn printed(command: &mut Command) -> Result<String, String> {
    let output = command.output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    match output.status.success() {
        true => Ok(text(output.stdout)),
        false => Err(text(output.stderr)),
    }
}

/// A service's binary, next to this test's own; built by `cargo build --workspace --bins`.
pub fn binary(service: &str) -> PathBuf {
    let test = std::env::current_exe().unwrap();
    let folder = test.ancestors().find(|d| d.join("deps").is_dir()).unwrap();
    let name = if service == "inkstone" {
        service.to_owned()
    } else {
        format!("inkstone-{service}")
    };
    let binary = folder.join(name);
    assert!(
        binary.is_file(),
        "{} is missing: run `make e2e`, which builds the binaries first",
        binary.display()
    );
    binary
}
