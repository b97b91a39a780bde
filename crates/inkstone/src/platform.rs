//! All five services in this process, beside a nats-server child.

use std::future::Future;
use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::time::Duration;

use contract::auth::auth_service_client::AuthServiceClient;
use contract::auth::authenticate_request::Proof;
use contract::auth::key_service_client::KeyServiceClient;
use contract::auth::{AuthenticateRequest, CreateKeyRequest};
use lifecycle::{Service, TaskFailure};
use nats_server::NatsServer;
use rpc::Identity;
use telemetry::{LogFormat, Telemetry, TelemetrySettings};
use tokio::sync::oneshot;
use tokio::time::Instant;

use crate::broker::Watch;
use crate::callee::Callee;
use crate::cli::TlsArgs;
use crate::client::{service_peer, with_bearer};
use crate::environment;
use crate::error::CliError;
use crate::keys::AUTH_URL;
use crate::place::{Held, Place, Running};
use crate::starting::Starting;

/// How long everything may take to become ready.
const READY_LIMIT: Duration = Duration::from_secs(60);
/// How long each service may take to end its work when the platform stops.
const STOP_GRACE: Duration = Duration::from_secs(20);
/// Before a broker that would not start is tried again.
const RESTART_PAUSE: Duration = Duration::from_secs(5);
/// Between looks at the broker's process and at the data's folders.
const LOOK: Duration = Duration::from_millis(250);

/// How to run it.
#[derive(Debug, Clone)]
pub(crate) struct Options {
    pub(crate) listen: SocketAddr,
    pub(crate) models: Vec<PathBuf>,
    pub(crate) sync_always: bool,
    pub(crate) log: String,
    pub(crate) otlp_endpoint: String,
}

/// A running platform. [`stop`](Platform::stop) it; dropping it leaves files behind.
pub(crate) struct Platform {
    place: Place,
    /// Held for as long as the platform runs: two on one folder would ruin each other's data.
    _lock: std::fs::File,
    /// Without these nothing that is accepted is stored.
    held: Vec<Held>,
    broker: NatsServer,
    telemetry: Telemetry,
    /// In order of start.
    services: Vec<Service>,
    pub(crate) running: Running,
    pub(crate) key: String,
}

impl Platform {
    /// Starts the broker and the services, waits until all are ready, and makes sure that there is a key.
    pub(crate) async fn start(place: Place, options: &Options) -> Result<Self, CliError> {
        may_start(&place, options)?;
        // All services are in this process, and so is what they keep secret.
        lifecycle::forbid_core_dumps().map_err(CliError::Runtime)?;
        environment::refuse_certificates(
            std::env::vars_os()
                .filter_map(|(name, value)| Some((name.into_string().ok()?, value.is_empty()))),
        )?;
        let models = model_folders(&options.models, &place)?;
        let folder = place.folder();
        std::fs::create_dir_all(folder).map_err(CliError::file("make", folder))?;
        let lock = place.lock()?;
        let telemetry = start_telemetry(options)?;
        warn_of_what_is_without_effect();
        let broker = start_broker(&place, options.sync_always).await?;
        let held = [place.folder().to_owned(), place.join("nats")];
        let held = held.into_iter().map(Held::of);
        let held = held.collect::<Result<Vec<_>, _>>()?;
        let mut starting = Starting {
            place: &place,
            broker_url: broker.url(),
            telemetry: &telemetry,
            services: Vec::new(),
            scheme: "http",
            listen: options.listen,
            sync_always: options.sync_always,
        };
        if let Err(error) = starting.all(&models).await {
            stop_services(&starting.services).await;
            return Err(error);
        }
        let services = starting.services;
        let running = running(&services, &broker, options.listen, starting.scheme);
        let mut platform = Self {
            place,
            _lock: lock,
            held,
            broker,
            telemetry,
            services,
            running,
            key: String::new(),
        };
        match platform.finish_start().await {
            Ok(()) => Ok(platform),
            Err(error) => {
                platform.stop().await;
                Err(error)
            }
        }
    }

    async fn finish_start(&mut self) -> Result<(), CliError> {
        self.wait_until_ready().await?;
        self.key = self.ensure_key().await?;
        self.place.announce(&self.running)
    }

    async fn wait_until_ready(&self) -> Result<(), CliError> {
        let deadline = Instant::now() + READY_LIMIT;
        loop {
            let problem = self.services.iter().find_map(|service| {
                let problem = service.health.problem()?;
                Some(format!("{}: {problem}", service.name))
            });
            let Some(problem) = problem else {
                return Ok(());
            };
            if Instant::now() >= deadline {
                let limit = READY_LIMIT;
                return Err(CliError::NotReady { limit, problem });
            }
            tokio::select! {
                failure = self.failure() => return Err(failure.into()),
                () = tokio::time::sleep(Duration::from_millis(20)) => {}
            }
        }
    }

    /// The laptop's key: the one from before if it is still good, else a new one.
    async fn ensure_key(&self) -> Result<String, CliError> {
        let clear = TlsArgs { tls_dir: None };
        let callee = Callee::service(&self.running.auth, AUTH_URL, &clear);
        let auth = service_peer(&callee, Identity::Auth, &clear)?;
        if let Ok(Some(key)) = self.place.key() {
            let proof = Some(Proof::Bearer(key.clone()));
            let mut client = AuthServiceClient::new(auth.clone());
            if client
                .authenticate(AuthenticateRequest {
                    proof,
                    receipt: None,
                })
                .await
                .is_ok()
            {
                return Ok(key);
            }
        }
        let token = self.place.admin_token_file();
        let token = std::fs::read_to_string(&token).map_err(CliError::file("read", &token))?;
        let request = CreateKeyRequest {
            prefix: "dev-".to_owned(),
            tenant: "local".to_owned(),
            name: "made by inkstone up".to_owned(),
            allow_signature_v1: true,
        };
        let mut client = KeyServiceClient::new(auth);
        let created = client.create_key(with_bearer(request, token.trim())?);
        let bearer = callee.call(created).await?.bearer;
        self.place.keep_key(&bearer)?;
        Ok(bearer)
    }

    /// Keeps the broker running, and storing, until a service fails or a folder is gone, and says which.
    pub(crate) async fn keep(&mut self) -> CliError {
        let mut look = tokio::time::interval(LOOK);
        let mut watch = Watch::new();
        loop {
            tokio::select! {
                failure = failure_of(&self.services) => return failure.into(),
                _ = look.tick() => {}
            }
            if let Some(gone) = self.held.iter().find(|held| held.is_gone()) {
                let path = gone.path().to_owned();
                return CliError::FolderGone { path };
            }
            self.telemetry.upkeep();
            if tokio::task::block_in_place(|| watch.must_restart(&mut self.broker)) {
                // Some 100 ms, mostly; the services run on meanwhile.
                let restarted = tokio::task::block_in_place(|| self.broker.restart());
                if let Err(error) = restarted {
                    tracing::error!(error = lifecycle::chain(&error), "it did not start");
                    look.reset_after(RESTART_PAUSE);
                }
            }
        }
    }

    async fn failure(&self) -> TaskFailure {
        failure_of(&self.services).await
    }

    /// Stops everything in the order in which requests flow, the broker last.
    pub(crate) async fn stop(self) {
        self.stop_unless(std::future::pending()).await;
    }

    /// The same until `hurry` resolves: then nothing but the broker is waited for, and what was under way breaks off, as in a crash. Whether
    /// all services had their end.
    pub(crate) async fn stop_unless(self, hurry: impl Future<Output = ()>) -> bool {
        self.place.withdraw();
        tokio::pin!(hurry);
        let whole = tokio::select! {
            () = stop_services(&self.services) => true,
            () = &mut hurry => false,
        };
        let Self {
            telemetry,
            broker,
            services,
            ..
        } = self;
        // Before the broker: what is left of them and misses it has nothing to warn of.
        drop(services);
        if whole {
            // What takes the spans may be silent, which is borne for seconds.
            tokio::select! {
                () = flush(telemetry) => {}
                () = hurry => {}
            }
        }
        // It only fails when the runtime is going down, and then the broker was dropped all the same.
        let _ = tokio::task::spawn_blocking(move || drop(broker)).await;
        whole
    }
}

/// What is better said before five services start that would go down again.
fn may_start(place: &Place, options: &Options) -> Result<(), CliError> {
    if let Some(running) = place.running() {
        return Err(CliError::AlreadyRunning {
            data: place.folder().to_owned(),
            process: running.process,
        });
    }
    let address = options.listen;
    TcpListener::bind(address)
        .map(drop)
        .map_err(|source| CliError::Listen { address, source })
}

fn start_telemetry(options: &Options) -> Result<Telemetry, CliError> {
    let settings = TelemetrySettings {
        log: options.log.clone(),
        format: LogFormat::Text,
        otlp_endpoint: options.otlp_endpoint.clone(),
    };
    Ok(Telemetry::start("inkstone", &settings)?)
}

fn warn_of_what_is_without_effect() {
    let names = std::env::vars_os().filter_map(|(name, _)| name.into_string().ok());
    for variable in environment::of_no_service(names) {
        let services = environment::SERVICES.join(", ");
        tracing::warn!(
            variable,
            services,
            "no service has this name; the variable is without effect"
        );
    }
}

async fn failure_of(services: &[Service]) -> TaskFailure {
    let failures = services
        .iter()
        .map(|service| Box::pin(service.tasks.failed()));
    futures::future::select_all(failures).await.0
}

async fn stop_services(services: &[Service]) {
    for service in services.iter().rev() {
        service.stop(STOP_GRACE).await;
    }
}

/// Sends the spans that wait, on a thread that the end of the runtime does not wait for.
async fn flush(telemetry: Telemetry) {
    let (done, flushed) = oneshot::channel::<()>();
    let thread = std::thread::Builder::new().name("last spans".to_owned());
    let started = thread.spawn(move || {
        telemetry.flush();
        drop(done);
    });
    if let Err(error) = started {
        tracing::debug!(%error, "the last spans are not sent");
    }
    // It is only ever dropped, by a thread that did not start too.
    let _ = flushed.await;
}

async fn start_broker(place: &Place, sync_always: bool) -> Result<NatsServer, CliError> {
    let options = nats_server::Options {
        folder: place.join("nats"),
        port: None,
        sync_always,
        max_store: None,
        tls: None,
        node: None,
        include: None,
    };
    let started = tokio::task::spawn_blocking(|| NatsServer::start(options)).await;
    match started {
        Ok(started) => Ok(started?),
        Err(panic) => std::panic::resume_unwind(panic.into_panic()),
    }
}

fn running(services: &[Service], broker: &NatsServer, listen: SocketAddr, scheme: &str) -> Running {
    let find = |name: &str| services.iter().find(|service| service.name == name);
    let grpc =
        |name: &str| find(name).map_or(String::new(), |s| format!("http://{}", s.address("grpc")));
    let public = find("gateway").map_or(listen, |gateway| gateway.address("http"));
    let admin = |service: &Service| {
        let address = format!("http://{}", service.address("admin"));
        (service.name.to_owned(), address)
    };
    Running {
        process: std::process::id() as i32,
        gateway: format!("{scheme}://{public}"),
        auth: grpc("auth"),
        registry: grpc("model-registry"),
        orchestrator: grpc("orchestrator"),
        broker: broker.url(),
        admin: services.iter().map(admin).collect(),
    }
}

/// The model folders to publish: those named, else the demo model of the repository that we are in, else none, where a platform ran
/// before: whether it left a model, its registry knows.
fn model_folders(named: &[PathBuf], place: &Place) -> Result<Vec<PathBuf>, CliError> {
    const DEMO: &str = "assets/models/inkstone-demo";
    let folders: Vec<PathBuf> = if named.is_empty() {
        let here = std::env::current_dir().unwrap_or_default();
        let found = here.ancestors().map(|d| d.join(DEMO)).find(|d| d.is_dir());
        if found.is_none() && !place.join("nats").is_dir() {
            let data = place.folder().to_owned();
            return Err(CliError::NoModels { data });
        }
        found.into_iter().collect()
    } else {
        named.to_vec()
    };
    for path in &folders {
        if !path.join("model_index.json").is_file() {
            return Err(CliError::NoModel { path: path.clone() });
        }
    }
    let absolute = |path: &PathBuf| std::path::absolute(path).unwrap_or_else(|_| path.clone());
    Ok(folders.iter().map(absolute).collect())
}
