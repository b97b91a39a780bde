//! The platform under test: a broker of three servers and every service several times, each a process of its own, and each connected to
//! the others by links that can be cut.

use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use contract::auth::CreateKeyRequest;
use contract::auth::key_service_client::KeyServiceClient;
use lifecycle::Tasks;
use nats_server::free_port;
use rustix::process::{Pid, Signal, kill_process};
use storage::FaultPlan;
use tonic::Request;

use crate::brokers::{Brokers, signal};
use crate::error::ChaosError;
use crate::link::{Flow, Link};
use crate::plan::{INSTANCES, Plan};
use crate::settings;

/// How long a process may take to be ready on a machine that has little to give.
const READY: Duration = Duration::from_secs(180);
const POLL: Duration = Duration::from_millis(100);

/// A running platform; everything is ended when it is dropped.
pub(crate) struct Cluster {
    /// The broker, to damage.
    pub(crate) brokers: Brokers,
    folder: PathBuf,
    instances: BTreeMap<&'static str, Instance>,
    tasks: Tasks,
}

/// One process and the ways from it.
struct Instance {
    /// Where it serves.
    main: u16,
    admin: u16,
    links: Vec<Link>,
    environment: Vec<(String, String)>,
    child: Option<Child>,
    /// One that was asked to end, and when.
    ending: Option<(Child, Instant)>,
}

/// A process that was asked to end and has ended.
pub(crate) struct Stopped {
    pub(crate) instance: &'static str,
    pub(crate) took: Duration,
    pub(crate) within: Duration,
    /// Else it was killed when its time was over.
    pub(crate) by_itself: bool,
}

/// The service that an instance is one of.
fn service_of(instance: &str) -> &str {
    instance
        .rsplit_once('-')
        .map_or(instance, |(service, _)| service)
}

impl Cluster {
    /// Starts everything in `folder`, with clocks as the plan has them, and waits until all of it is ready.
    ///
    /// # Errors
    /// What did not start, and where it says why.
    pub(crate) async fn start(
        folder: &Path,
        plan: &Plan,
        tasks: &Tasks,
    ) -> Result<Self, ChaosError> {
        let mut cluster = Self {
            brokers: Brokers::start(tasks).await?,
            folder: folder.to_owned(),
            instances: BTreeMap::new(),
            tasks: tasks.clone(),
        };
        for name in INSTANCES {
            let ports = || free_port().map_err(ChaosError::Port);
            let instance = Instance {
                main: ports()?,
                admin: ports()?,
                links: Vec::new(),
                environment: Vec::new(),
                child: None,
                ending: None,
            };
            cluster.instances.insert(name, instance);
        }
        for name in INSTANCES {
            let skew = plan.skews.get(name).copied().unwrap_or(0);
            cluster.prepare(name, skew).await?;
            cluster.run(name)?;
            // The next ones need it, and the first auth makes the secrets that the second reads.
            if matches!(service_of(name), "auth" | "model-registry") {
                cluster.wait_ready(name).await?;
            }
        }
        for name in INSTANCES {
            cluster.wait_ready(name).await?;
        }
        Ok(cluster)
    }

    /// Opens an instance's links and writes down its settings.
    async fn prepare(&mut self, name: &'static str, skew: i64) -> Result<(), ChaosError> {
        let mut urls = BTreeMap::new();
        let mut links = Vec::new();
        let service = service_of(name);
        if service != "gateway" {
            let mut brokers = Vec::new();
            for port in self.brokers.ports() {
                let link = self.link(port).await?;
                brokers.push(format!("nats://127.0.0.1:{}", link.port));
                links.push(link);
            }
            urls.insert("broker", brokers.join(","));
        }
        for &other in settings::callees(service) {
            // Of two, the one with its own number, or the first.
            let number = name.rsplit_once('-').map_or("1", |(_, number)| number);
            let own = format!("{other}-{number}");
            let first = format!("{other}-1");
            let callee = self.instances.get(own.as_str());
            let callee = callee.or_else(|| self.instances.get(first.as_str()));
            let port = callee.map_or(0, |callee| callee.main);
            let link = self.link(port).await?;
            urls.insert(other, format!("http://127.0.0.1:{}", link.port));
            links.push(link);
        }
        let folder = self.folder.clone();
        let instance = self.instance_mut(name);
        let (main, admin) = (instance.main, instance.admin);
        instance.links = links;
        instance.environment =
            settings::environment(name, service, (main, admin), &urls, &folder, skew);
        Ok(())
    }

    async fn link(&self, to: u16) -> Result<Link, ChaosError> {
        Link::open(&self.tasks, to).await.map_err(ChaosError::Port)
    }

    fn instance_mut(&mut self, name: &str) -> &mut Instance {
        self.instances
            .get_mut(name)
            .unwrap_or_else(|| panic!("there is no {name}"))
    }

    fn instance(&self, name: &str) -> &Instance {
        &self.instances[name]
    }

    /// Starts an instance that does not run.
    ///
    /// # Errors
    /// When it cannot be started.
    pub(crate) fn run(&mut self, name: &str) -> Result<(), ChaosError> {
        let path = self.folder.join(format!("{name}.log"));
        let log = OpenOptions::new().create(true).append(true).open(&path);
        let log = log.map_err(|source| ChaosError::File { path, source })?;
        let mut command = Command::new(e2e::binary(service_of(name)));
        let instance = self.instance_mut(name);
        command
            .envs(instance.environment.iter().map(|(k, v)| (k, v)))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log);
        let child = command.spawn().map_err(ChaosError::Spawn)?;
        instance.child = Some(child);
        Ok(())
    }

    /// Starts an instance unless it runs.
    ///
    /// # Errors
    /// When it cannot be started.
    pub(crate) fn resume(&mut self, name: &str) -> Result<(), ChaosError> {
        if self.instance(name).child.is_some() {
            return Ok(());
        }
        self.run(name)
    }

    /// Has the clock of an instance be wrong by so many seconds from its next start on.
    pub(crate) fn set_clock(&mut self, name: &str, skew: i64) {
        let environment = &mut self.instance_mut(name).environment;
        for (_, value) in environment
            .iter_mut()
            .filter(|(key, _)| key.ends_with(settings::CLOCK))
        {
            *value = skew.to_string();
        }
    }

    /// Asks an instance to end.
    pub(crate) fn terminate(&mut self, name: &str) {
        let instance = self.instance_mut(name);
        if let Some(child) = instance.child.take() {
            // Fails only when it has ended already.
            let _ = kill_process(Pid::from_child(&child), Signal::TERM);
            instance.ending = Some((child, Instant::now()));
        }
    }

    /// Whether an instance was asked to end and has not yet.
    pub(crate) fn is_ending(&self, name: &str) -> bool {
        self.instance(name).ending.is_some()
    }

    /// The instances that have ended since they were asked to; those whose time is over are killed.
    pub(crate) fn stopped(&mut self) -> Vec<Stopped> {
        let mut stopped = Vec::new();
        for (&name, instance) in &mut self.instances {
            let Some((mut child, since)) = instance.ending.take() else {
                continue;
            };
            let (took, within) = (since.elapsed(), settings::ends_within(service_of(name)));
            let by_itself = matches!(child.try_wait(), Ok(Some(_)));
            if !by_itself && took <= within {
                instance.ending = Some((child, since));
                continue;
            }
            if !by_itself {
                // Fails only when it has ended just now.
                let _ = child.kill();
                let _ = child.wait();
            }
            stopped.push(Stopped {
                instance: name,
                took,
                within,
                by_itself,
            });
        }
        stopped
    }

    /// Kills an instance as a crash would, also one that is about to end.
    pub(crate) fn kill(&mut self, name: &str) {
        let instance = self.instance_mut(name);
        let ending = instance.ending.take().map(|(child, _)| child);
        for mut child in instance.child.take().into_iter().chain(ending) {
            // Fails only when it has ended already.
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// Stops an instance where it stands, or lets it go on.
    pub(crate) fn freeze(&mut self, name: &str, stopped: bool) {
        if let Some(child) = &self.instance(name).child {
            signal(child.id(), stopped);
        }
    }

    /// Cuts an instance off from the broker and from other services, or mends that.
    pub(crate) fn cut(&self, name: &str, flow: Flow) {
        for link in &self.instance(name).links {
            link.set(flow);
        }
    }

    /// Has requests to the object store fail, or none.
    ///
    /// # Errors
    /// When the file that says so cannot be written.
    pub(crate) fn disturb_store(&self, plan: Option<&FaultPlan>) -> Result<(), ChaosError> {
        let path = self.folder.join(settings::FAULTS);
        let file = |source| ChaosError::File {
            path: path.clone(),
            source,
        };
        match plan {
            Some(plan) => {
                // In one go: readers take half a file for none.
                let draft = path.with_extension("draft");
                let text = serde_json::to_vec(plan).map_err(|e| file(e.into()))?;
                std::fs::write(&draft, text).map_err(file)?;
                std::fs::rename(&draft, &path).map_err(file)
            }
            None => match std::fs::remove_file(&path) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(file(error)),
                _ => Ok(()),
            },
        }
    }

    /// Instances that have ended although nobody killed them, and how; they are started again.
    ///
    /// # Errors
    /// When one cannot be started.
    pub(crate) fn supervise(&mut self) -> Result<Vec<(&'static str, ExitStatus)>, ChaosError> {
        let mut ended = Vec::new();
        for (&name, instance) in &mut self.instances {
            let Some(child) = &mut instance.child else {
                continue;
            };
            if let Ok(Some(status)) = child.try_wait() {
                ended.push((name, status));
            }
        }
        for (name, _) in &ended {
            self.run(name)?;
        }
        Ok(ended)
    }

    /// Waits until an instance says that it can do its work.
    ///
    /// # Errors
    /// When it does not in time; one that ends is started again.
    pub(crate) async fn wait_ready(&mut self, name: &'static str) -> Result<(), ChaosError> {
        let url = format!("http://127.0.0.1:{}/readyz", self.instance(name).admin);
        let deadline = Instant::now() + READY;
        while Instant::now() < deadline {
            if e2e::get(&url, &[]).is_ok_and(|(status, _)| status == 200) {
                return Ok(());
            }
            self.supervise()?;
            tokio::time::sleep(POLL).await;
        }
        let log = self.folder.join(format!("{name}.log"));
        Err(ChaosError::NotReady {
            name: name.to_owned(),
            log,
        })
    }

    /// The public addresses of all gateways.
    pub(crate) fn gateways(&self) -> Vec<String> {
        let all = INSTANCES.iter().filter(|name| name.starts_with("gateway"));
        all.map(|name| format!("http://127.0.0.1:{}", self.instance(name).main))
            .collect()
    }

    /// Where the object store keeps its files.
    pub(crate) fn objects(&self) -> PathBuf {
        self.folder.join(settings::OBJECTS)
    }

    /// Makes a key of a tenant: what callers show.
    ///
    /// # Errors
    /// When auth does not make it.
    pub(crate) async fn create_key(&self, tenant: &str) -> Result<String, ChaosError> {
        let path = self.folder.join("auth/admin-token");
        let token = std::fs::read_to_string(&path);
        let token = token.map_err(|source| ChaosError::File { path, source })?;
        let mut request = Request::new(CreateKeyRequest {
            prefix: format!("{}-", settings::POLICY),
            tenant: tenant.to_owned(),
            name: "chaos".to_owned(),
            allow_signature_v1: false,
        });
        let bearer = format!("Bearer {}", token.trim()).parse();
        let bearer =
            bearer.map_err(|_| ChaosError::Key("the admin token is no text".to_owned()))?;
        request.metadata_mut().insert("authorization", bearer);
        let url = format!("http://127.0.0.1:{}", self.instance("auth-1").main);
        let keys = KeyServiceClient::connect(url).await;
        let mut keys = keys.map_err(|error| ChaosError::Key(error.to_string()))?;
        let made = keys.create_key(request).await;
        let made = made.map_err(|status| ChaosError::Key(status.message().to_owned()))?;
        Ok(format!("Bearer {}", made.into_inner().bearer))
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for name in INSTANCES {
            self.kill(name);
        }
    }
}
