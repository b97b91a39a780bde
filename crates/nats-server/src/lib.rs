//! Finds and runs a real `nats-server` with JetStream as a child process: beside `inkstone up` on a laptop, and in
//! tests, which kill it and start it again.
//!
//! There is no in-memory imitation of the broker anywhere in Inkstone; this is the alternative.

mod api;
mod cluster;
mod lagging;
mod writes;

use std::fs;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal};

pub use cluster::{Cluster, Node, Routes};

/// The oldest version with what we use: batched direct get came with 2.11.
const OLDEST: (u32, u32) = (2, 11);
const START_LIMIT: Duration = Duration::from_secs(15);
const STOP_LIMIT: Duration = Duration::from_secs(10);

/// Why there is no server.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// No binary was found that is new enough.
    #[error(
        "no nats-server {}.{} or newer found in $INKSTONE_NATS_SERVER, .tools/bin or $PATH; \
         `make tools` installs one",
        OLDEST.0, OLDEST.1
    )]
    NotFound,
    /// The one that was named is none, or too old: another in its place would not be what was asked for.
    #[error(
        "INKSTONE_NATS_SERVER is {}, which is no nats-server {}.{} or newer that can be run; name one, or unset it",
        binary.display(), OLDEST.0, OLDEST.1
    )]
    Unfit {
        /// What was named.
        binary: PathBuf,
    },
    /// Its data folder or log cannot be used.
    #[error("cannot use {} for the broker's data", path.display())]
    Folder {
        /// The folder or file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The process could not be started.
    #[error("cannot start {}", binary.display())]
    Spawn {
        /// The binary.
        binary: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// It ended, or did not answer in time.
    #[error("nats-server did not come up; its log is {}", log.display())]
    NotUp {
        /// Where it says why.
        log: PathBuf,
    },
}

/// How to run it.
#[derive(Debug, Clone)]
pub struct Options {
    /// Where streams, the log and the process id are kept.
    pub folder: PathBuf,
    /// The client port; `None` picks a free one, and keeps it over restarts.
    pub port: Option<u16>,
    /// Whether every write is flushed to the disk before it is acknowledged: survives power loss, costs throughput.
    pub sync_always: bool,
    /// How many bytes all streams together may hold; `None` goes by the room on the disk.
    pub max_store: Option<u64>,
    /// Speaks TLS only, and takes nobody without a certificate: a folder with `ca.pem`, `cert.pem` and `key.pem`.
    pub tls: Option<PathBuf>,
    /// Its part in a cluster, if it is one of several.
    pub node: Option<Node>,
    /// The name of a file in `folder` that it takes in at the end of its configuration: users, for instance.
    pub include: Option<String>,
}

/// A running server; stopped when dropped.
pub struct NatsServer {
    options: Options,
    binary: PathBuf,
    address: SocketAddr,
    /// Where it tells how it is.
    monitor: SocketAddr,
    child: Child,
    /// Keeps a temporary folder for as long as the server.
    _scratch: Option<tempfile::TempDir>,
}

impl NatsServer {
    /// Starts a server and waits until it takes connections. One that an earlier process left behind on the same folder
    /// is stopped first: two servers on one store would ruin it.
    ///
    /// # Errors
    /// See [`ServerError`].
    pub fn start(options: Options) -> Result<Self, ServerError> {
        let binary = find()?;
        let folder = |source| ServerError::Folder {
            path: options.folder.clone(),
            source,
        };
        fs::create_dir_all(&options.folder).map_err(folder)?;
        stop_leftover(&options.folder);
        let port = match options.port {
            Some(port) => port,
            None => free_port().map_err(folder)?,
        };
        let monitor = free_port().map_err(folder)?;
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let monitor = SocketAddr::from((Ipv4Addr::LOCALHOST, monitor));
        let child = spawn(&binary, &options, address, monitor)?;
        let mut server = Self {
            options,
            binary,
            address,
            monitor,
            child,
            _scratch: None,
        };
        server.wait_until_up()?;
        Ok(server)
    }

    /// A server on a free port with a folder of its own that goes with it. For tests.
    ///
    /// # Errors
    /// See [`ServerError`].
    pub fn scratch() -> Result<Self, ServerError> {
        Self::scratch_with(false)
    }

    /// The same; with `sync_always`, every write is flushed to the disk before it is acknowledged.
    ///
    /// # Errors
    /// See [`ServerError`].
    pub fn scratch_with(sync_always: bool) -> Result<Self, ServerError> {
        Self::scratch_of(sync_always, None)
    }

    /// The same; with `tls`, as [`Options`] has it.
    ///
    /// # Errors
    /// See [`ServerError`].
    pub fn scratch_of(sync_always: bool, tls: Option<PathBuf>) -> Result<Self, ServerError> {
        Self::scratch_as(|folder| Options {
            folder,
            port: None,
            sync_always,
            max_store: None,
            tls,
            node: None,
            include: None,
        })
    }

    /// The same; all streams together hold `max_store` bytes at most, and with more it takes no message.
    ///
    /// # Errors
    /// See [`ServerError`].
    pub fn scratch_with_room(max_store: u64) -> Result<Self, ServerError> {
        Self::scratch_as(|folder| Options {
            folder,
            port: None,
            sync_always: false,
            max_store: Some(max_store),
            tls: None,
            node: None,
            include: None,
        })
    }

    fn scratch_as(options: impl FnOnce(PathBuf) -> Options) -> Result<Self, ServerError> {
        let scratch = tempfile::tempdir().map_err(|source| ServerError::Folder {
            path: std::env::temp_dir(),
            source,
        })?;
        let mut server = Self::start(options(scratch.path().to_owned()))?;
        server._scratch = Some(scratch);
        Ok(server)
    }

    /// Its `nats://` address.
    pub fn url(&self) -> String {
        format!("nats://{}", self.address)
    }

    /// Its client port.
    pub fn port(&self) -> u16 {
        self.address.port()
    }

    /// Where it tells how it is, `http://…`.
    pub fn monitor_url(&self) -> String {
        format!("http://{}", self.monitor)
    }

    /// The folder with its streams and its log.
    pub fn folder(&self) -> &Path {
        &self.options.folder
    }

    /// Its process id.
    pub fn process_id(&self) -> u32 {
        self.child.id()
    }

    /// True while the process runs.
    pub fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Kills it as a crash would (SIGKILL).
    pub fn kill(&mut self) {
        // Fails only when it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Starts it again on the same port and folder, after [`kill`](Self::kill) or an end of its own.
    ///
    /// # Errors
    /// See [`ServerError`].
    pub fn restart(&mut self) -> Result<(), ServerError> {
        self.kill();
        self.child = spawn(&self.binary, &self.options, self.address, self.monitor)?;
        self.wait_until_up()
    }

    fn wait_until_up(&mut self) -> Result<(), ServerError> {
        let deadline = Instant::now() + START_LIMIT;
        while Instant::now() < deadline && self.is_running() {
            if TcpStream::connect_timeout(&self.address, Duration::from_millis(200)).is_ok() {
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        let log = self.options.folder.join("nats-server.log");
        self.kill();
        Err(ServerError::NotUp { log })
    }
}

impl Drop for NatsServer {
    fn drop(&mut self) {
        if let Some(pid) = Pid::from_raw(self.child.id() as i32) {
            let _ = rustix::process::kill_process(pid, Signal::TERM);
        }
        let deadline = Instant::now() + STOP_LIMIT;
        while self.is_running() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(10));
        }
        self.kill();
        let _ = fs::remove_file(self.options.folder.join("nats-server.pid"));
    }
}

fn spawn(
    binary: &Path,
    options: &Options,
    address: SocketAddr,
    monitor: SocketAddr,
) -> Result<Child, ServerError> {
    let config = options.folder.join("nats-server.conf");
    let log = options.folder.join("nats-server.log");
    let folder = |source| ServerError::Folder {
        path: options.folder.clone(),
        source,
    };
    fs::write(&config, configuration(options, address, monitor)).map_err(folder)?;
    let mut command = Command::new(binary);
    command.arg("-c").arg(&config).arg("-l").arg(&log);
    command
        .arg("-P")
        .arg(options.folder.join("nats-server.pid"));
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    // Ctrl-C goes to the whole terminal group; the broker must outlive those who still drain.
    std::os::unix::process::CommandExt::process_group(&mut command, 0);
    command.spawn().map_err(|source| ServerError::Spawn {
        binary: binary.to_owned(),
        source,
    })
}

fn configuration(options: &Options, address: SocketAddr, monitor: SocketAddr) -> String {
    let store = options.folder.join("jetstream");
    // In quotes below: without them the server takes 2m for two million seconds.
    let sync = if options.sync_always { "always" } else { "2m" };
    let room = options.max_store.map_or(String::new(), |bytes| {
        format!("  max_file_store: {bytes}\n")
    });
    let tls = options.tls.as_ref().map_or(String::new(), |folder| {
        let [ca, cert, key] = ["ca.pem", "cert.pem", "key.pem"].map(|name| folder.join(name));
        format!("tls {{\n  ca_file: {ca:?}\n  cert_file: {cert:?}\n  key_file: {key:?}\n  verify: true\n}}\n")
    });
    let plain = format!(
        "host: \"{}\"\nport: {}\nhttp: \"{monitor}\"\nmax_payload: 8MB\n\
         jetstream {{\n  store_dir: {:?}\n  sync_interval: \"{sync}\"\n{room}}}\n",
        address.ip(),
        address.port(),
        store,
    );
    let node = options
        .node
        .as_ref()
        .map_or(String::new(), Node::configuration);
    let include = options
        .include
        .as_ref()
        .map_or(String::new(), |file| format!("include {file:?}\n"));
    plain + &tls + &node + &include
}

/// Ends the server that `folder`'s pid file names, if that process runs on this very folder.
fn stop_leftover(folder: &Path) {
    let Ok(text) = fs::read_to_string(folder.join("nats-server.pid")) else {
        return;
    };
    let Some(pid) = text.trim().parse().ok().and_then(Pid::from_raw) else {
        return;
    };
    let proc = PathBuf::from(format!("/proc/{pid}"));
    let ours = |line: String| line.contains(&*folder.join("nats-server.conf").to_string_lossy());
    if !fs::read_to_string(proc.join("cmdline")).is_ok_and(ours) {
        return;
    }
    tracing::info!(%pid, "stopping the broker that an earlier run left behind");
    let _ = rustix::process::kill_process(pid, Signal::TERM);
    let deadline = Instant::now() + STOP_LIMIT;
    // A process that has ended and was not waited for has an empty command line.
    let gone = || !fs::read_to_string(proc.join("cmdline")).is_ok_and(|line| !line.is_empty());
    while !gone() {
        if Instant::now() >= deadline {
            let _ = rustix::process::kill_process(pid, Signal::KILL);
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// A port that nobody listens on, from below those that the system gives to outgoing connections: a server that is killed
/// finds its port free again when it is restarted, however many connections were made meanwhile.
///
/// # Errors
/// When a thousand ports are taken.
pub fn free_port() -> io::Result<u16> {
    const FIRST: u32 = 10_000;
    const COUNT: u32 = 22_000;
    const TRIES: u32 = 1_000;
    // More than a process needs lie between the first ports of two processes of neighbouring numbers.
    const APART: u32 = 101;
    static TAKEN: AtomicU32 = AtomicU32::new(0);
    let own = std::process::id().wrapping_mul(APART);
    for _ in 0..TRIES {
        let next = own.wrapping_add(TAKEN.fetch_add(1, Ordering::Relaxed));
        // Below 32,000, which a port holds.
        let port = (FIRST + next % COUNT) as u16;
        if TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            return Ok(port);
        }
    }
    Err(io::Error::from(io::ErrorKind::AddrInUse))
}

/// The binary that would be run.
///
/// # Errors
/// [`ServerError::Unfit`] when the one that `INKSTONE_NATS_SERVER` names is none or too old, [`ServerError::NotFound`] when none is
/// named and none is new enough.
pub fn find() -> Result<PathBuf, ServerError> {
    find_from(std::env::var_os("INKSTONE_NATS_SERVER").map(PathBuf::from))
}

/// `named`: what the environment says, which may be empty.
fn find_from(named: Option<PathBuf>) -> Result<PathBuf, ServerError> {
    let is_fit =
        |binary: &PathBuf| binary.is_file() && version(binary).is_some_and(|v| v >= OLDEST);
    if let Some(binary) = named.filter(|named| !named.as_os_str().is_empty()) {
        return match is_fit(&binary) {
            true => Ok(binary),
            false => Err(ServerError::Unfit { binary }),
        };
    }
    let here = std::env::current_dir().unwrap_or_default();
    let tools = here.ancestors().map(|d| d.join(".tools/bin/nats-server"));
    let path = std::env::var_os("PATH").unwrap_or_default();
    let path: Vec<PathBuf> = std::env::split_paths(&path)
        .map(|d| d.join("nats-server"))
        .collect();
    tools.chain(path).find(is_fit).ok_or(ServerError::NotFound)
}

/// `nats-server: v2.15.1` → (2, 15).
fn version(binary: &Path) -> Option<(u32, u32)> {
    let output = Command::new(binary).arg("--version").output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    let numbers = text.split_once('v')?.1;
    // "nats-server: v2.15.1": the first v is the one in "server".
    let numbers = numbers.rsplit_once('v').map_or(numbers, |(_, n)| n);
    let mut parts = numbers.trim().split('.');
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_comes_back_on_the_same_address_after_a_kill() {
        let mut server = NatsServer::scratch().unwrap();
        let (url, first) = (server.url(), server.process_id());
        server.kill();
        assert!(!server.is_running());
        server.restart().unwrap();
        assert_eq!(server.url(), url);
        assert_ne!(server.process_id(), first);
    }

    #[test]
    fn a_server_that_is_named_and_unfit_is_refused_and_no_other_is_taken() {
        let there = find_from(None).unwrap();
        assert_eq!(find_from(Some(PathBuf::new())).unwrap(), there);
        assert_eq!(find_from(Some(there.clone())).unwrap(), there);
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("nats-server");
        fs::write(&file, "not a program").unwrap();
        for unfit in [file, folder.path().join("none")] {
            let refused = find_from(Some(unfit.clone())).unwrap_err().to_string();
            assert!(refused.contains("INKSTONE_NATS_SERVER"), "{refused}");
            assert!(refused.contains(&*unfit.to_string_lossy()), "{refused}");
        }
    }

    #[test]
    fn a_server_understands_all_of_its_configuration() {
        for server in [
            NatsServer::scratch(),
            NatsServer::scratch_with_room(1 << 20),
        ] {
            let server = server.unwrap();
            let mut check = Command::new(find().unwrap());
            check.args(["-t", "-c"]);
            check.arg(server.folder().join("nats-server.conf"));
            let checked = check.output().unwrap();
            let said = String::from_utf8_lossy(&checked.stderr);
            assert!(checked.status.success(), "{said}");
        }
    }

    #[test]
    fn a_server_left_behind_on_the_same_folder_is_stopped_first() {
        let folder = tempfile::tempdir().unwrap();
        let options = Options {
            folder: folder.path().to_owned(),
            port: None,
            sync_always: false,
            max_store: None,
            tls: None,
            node: None,
            include: None,
        };
        let mut first = NatsServer::start(options.clone()).unwrap();
        let second = NatsServer::start(options).unwrap();
        assert!(!first.is_running());
        drop(second);
    }
}
