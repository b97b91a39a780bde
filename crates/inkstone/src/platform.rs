//! All five services in this process, beside a nats-server child.

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
use tokio::time::Instant;

use crate::callee::Callee;
use crate::cli::TlsArgs;
use crate::client::{service_peer, with_bearer};
use crate::environment;
use crate::error::CliError;
use crate::keys::AUTH_URL;
use crate::place::{Held, Place, Running};

/// How long everything may take to become ready.
const READY_LIMIT: Duration = Duration::from_secs(60);
/// How long each service may take to end its work when the platform stops.
const STOP_GRACE: Duration = Duration::from_secs(20);
/// Before a broker that would not start is tried again.
const RESTART_PAUSE: Duration = Duration::from_secs(5);
/// Where an operator says what callers know the platform by.
const PUBLIC_URL: &str = "INKSTONE_ORCHESTRATOR__NOTICES__PUBLIC_URL";
/// Where an operator says how submissions are stored. Here nobody has to: the broker is our own.
const COMMIT: &str = "INKSTONE_ORCHESTRATOR__COMMIT__MANNER";
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
        if let Some(running) = place.running() {
            return Err(CliError::AlreadyRunning {
                data: place.folder().to_owned(),
                process: running.process,
            });
        }
        // Before five services start that would go down again with the one that cannot listen.
        drop(TcpListener::bind(options.listen).map_err(|source| {
            let address = options.listen;
            CliError::Listen { address, source }
        })?);
        // All services are in this process, and so is what they keep secret.
        lifecycle::forbid_core_dumps().map_err(CliError::Runtime)?;
        environment::refuse_certificates(
            std::env::vars_os()
                .filter_map(|(name, value)| Some((name.into_string().ok()?, value.is_empty()))),
        )?;
        let models = model_folders(&options.models)?;
        let folder = place.folder();
        std::fs::create_dir_all(folder).map_err(CliError::file("make", folder))?;
        let lock = place.lock()?;
        let telemetry = Telemetry::start(
            "inkstone",
            &TelemetrySettings {
                log: options.log.clone(),
                format: LogFormat::Text,
                otlp_endpoint: options.otlp_endpoint.clone(),
            },
        )?;
        let names = std::env::vars_os().filter_map(|(name, _)| name.into_string().ok());
        for variable in environment::of_no_service(names) {
            let services = environment::SERVICES.join(", ");
            tracing::warn!(
                variable,
                services,
                "no service has this name; the variable is without effect"
            );
        }
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
            sync_always: options.sync_always,
        };
        if let Err(error) = starting.all(options.listen, &models).await {
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
                let seconds = READY_LIMIT.as_secs();
                return Err(CliError::NotReady { seconds, problem });
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
        if let Some(key) = self.place.key() {
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

    /// Keeps the broker running until a service fails or a folder is gone, and says which.
    pub(crate) async fn keep(&mut self) -> CliError {
        let mut look = tokio::time::interval(LOOK);
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
            if !self.broker.is_running() {
                tracing::error!("nats-server ended; starting it again");
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
        self.place.withdraw();
        stop_services(&self.services).await;
        let Self {
            telemetry, broker, ..
        } = self;
        let blocking = move || {
            telemetry.flush();
            drop(broker);
        };
        // It only fails when the runtime is going down, and then the broker was dropped all the same.
        let _ = tokio::task::spawn_blocking(blocking).await;
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

/// The model folders to publish: those named, else the demo model of the repository that we are in.
fn model_folders(named: &[PathBuf]) -> Result<Vec<PathBuf>, CliError> {
    const DEMO: &str = "assets/models/inkstone-demo";
    let folders = if named.is_empty() {
        let here = std::env::current_dir().unwrap_or_default();
        let found = here.ancestors().map(|d| d.join(DEMO)).find(|d| d.is_dir());
        vec![found.unwrap_or_else(|| PathBuf::from(DEMO))]
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

/// The services that run so far, and what each needs to start.
struct Starting<'a> {
    place: &'a Place,
    broker_url: String,
    telemetry: &'a Telemetry,
    services: Vec<Service>,
    /// What the public port speaks, once its settings are read.
    scheme: &'static str,
    /// Of the broker.
    sync_always: bool,
}

impl Starting<'_> {
    async fn all(&mut self, listen: SocketAddr, models: &[PathBuf]) -> Result<(), CliError> {
        let telemetry = self.telemetry;
        let path = |name: &str| self.place.join(name).display().to_string();
        let free = || "127.0.0.1:0".to_owned();
        let broker = || ("broker.url", self.broker_url.clone());
        let admin = || ("process.admin_listen", free());
        let storage = || ("storage.url", format!("file://{}", path("objects")));

        let auth = settings::load(
            None,
            &[
                broker(),
                admin(),
                ("grpc.listen", free()),
                ("keys.key_file", path("auth/kek")),
                ("keys.admin_token_file", path("auth/admin-token")),
            ],
        )?;
        let bootstrap: Vec<String> = models
            .iter()
            .map(|m| format!("{:?}", m.display().to_string()))
            .collect();
        let registry = settings::load(
            None,
            &[
                broker(),
                admin(),
                storage(),
                ("grpc.listen", free()),
                ("models.bootstrap", format!("[{}]", bootstrap.join(", "))),
            ],
        )?;
        let common = [broker(), admin(), storage()];
        let cache = path("cache");

        let auth = started("auth", auth::start(auth, telemetry.clone()).await)?;
        let auth_url = format!("http://{}", auth.address("grpc"));
        self.services.push(auth);
        let registry = model_registry::start(registry, telemetry.clone()).await;
        let registry = started("model-registry", registry)?;
        let registry_url = (
            "registry.url",
            format!("http://{}", registry.address("grpc")),
        );
        self.services.push(registry);

        let [broker, admin, storage] = common;
        let mut of_orchestrator = vec![
            broker.clone(),
            admin.clone(),
            storage.clone(),
            registry_url.clone(),
            ("auth.url", auth_url.clone()),
            ("grpc.listen", free()),
            // The broker sets these aside on the disk; a laptop's may be small.
            ("streams.task_max_size", "1GiB".to_owned()),
            ("streams.dead_max_size", "64MiB".to_owned()),
            ("intake.max_size", "64MiB".to_owned()),
            ("notices.outcomes_max_size", "64MiB".to_owned()),
            ("webhooks.max_size", "64MiB".to_owned()),
            ("refunds.max_size", "16MiB".to_owned()),
            ("audit.max_size", "64MiB".to_owned()),
        ];
        // What the environment says holds. A port that the system picks is not known before the gateway has it.
        self.scheme = scheme_of(&settings::load(None, &[])?);
        let given = std::env::var_os(PUBLIC_URL).is_some();
        of_orchestrator.extend(public_url(self.scheme, listen, given));
        if std::env::var_os(COMMIT).is_none() {
            let manner = match self.sync_always {
                true => "together",
                false => "one_by_one",
            };
            of_orchestrator.push(("commit.manner", manner.to_owned()));
        }
        let orchestrator = settings::load(None, &of_orchestrator)?;
        let orchestrator = orchestrator::start(orchestrator, telemetry.clone()).await;
        let orchestrator = started("orchestrator", orchestrator)?;
        let orchestrator_url = format!("http://{}", orchestrator.address("grpc"));
        self.services.push(orchestrator);

        let of_worker = [
            broker,
            admin.clone(),
            storage.clone(),
            registry_url.clone(),
            ("worker.cache_dir", cache),
        ];
        let worker = settings::load(None, &of_worker)?;
        let worker = started(
            "gpu-worker",
            gpu_worker::start(worker, telemetry.clone()).await,
        )?;
        self.services.push(worker);

        let of_gateway = [
            admin,
            storage,
            registry_url,
            ("auth.url", auth_url),
            ("orchestrator.url", orchestrator_url),
            ("http.listen", listen.to_string()),
        ];
        let gateway = settings::load(None, &of_gateway)?;
        let gateway = started("gateway", gateway::start(gateway, telemetry.clone()).await)?;
        self.services.push(gateway);
        Ok(())
    }
}

/// What webhooks and notices call the platform by, where the operator says nothing and it is known.
fn public_url(scheme: &str, listen: SocketAddr, given: bool) -> Option<(&'static str, String)> {
    let known = !given && listen.port() != 0;
    known.then(|| ("notices.public_url", format!("{scheme}://{listen}")))
}

fn scheme_of(gateway: &gateway::Settings) -> &'static str {
    match gateway.http.tls.is_on() {
        true => "https",
        false => "http",
    }
}

fn started<E>(service: &'static str, result: Result<Service, E>) -> Result<Service, CliError>
where
    E: std::error::Error + Send + Sync + 'static,
{
    result.map_err(|source| CliError::Start {
        service,
        source: Box::new(source),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_public_port_with_a_certificate_is_announced_as_https() {
        let gateway = |overrides: &[(&str, String)]| settings::load(None, overrides).unwrap();
        assert_eq!(scheme_of(&gateway(&[])), "http");
        let tls = [
            ("http.tls.cert", "/c.pem".to_owned()),
            ("http.tls.key", "/k.pem".to_owned()),
        ];
        assert_eq!(scheme_of(&gateway(&tls)), "https");
    }

    #[test]
    fn what_the_operator_calls_the_platform_by_is_not_overruled() {
        let listen = "127.0.0.1:8080".parse().unwrap();
        let own = ("notices.public_url", "https://127.0.0.1:8080".to_owned());
        assert_eq!(public_url("https", listen, false), Some(own));
        assert_eq!(public_url("https", listen, true), None);
        // Which port it will be is not known yet.
        assert_eq!(
            public_url("http", "127.0.0.1:0".parse().unwrap(), false),
            None
        );
    }
}
