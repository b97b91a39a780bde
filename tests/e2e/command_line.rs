//! `inkstone up` and its client commands, as someone at a terminal meets them.

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use e2e::{LIMIT, binary, repository};
use nats_server::free_port;

/// Exit codes, as docs/OPERATIONS.md has them.
const USAGE: i32 = 2;
const CANCELLED: i32 = 4;
const UNREACHABLE: i32 = 5;
const HAD_ENDED: i32 = 6;

/// An engine that takes a known time for its steps.
pub(crate) const SLOW: [(&str, &str); 2] = [
    ("INKSTONE_GPU_WORKER__ENGINE__KIND", "simulated"),
    ("INKSTONE_GPU_WORKER__ENGINE__SIMULATED__STEP", "200ms"),
];

/// A platform that someone runs, with its log in a file.
pub(crate) struct Up {
    child: Child,
    pub(crate) data: tempfile::TempDir,
    listen: String,
    environment: Vec<(String, String)>,
    /// How often this process has said that it is up.
    ups: Arc<AtomicUsize>,
}

impl Up {
    pub(crate) fn start() -> Self {
        Self::start_with(&[])
    }

    /// The same with variables of its own.
    pub(crate) fn start_with(environment: &[(&str, &str)]) -> Self {
        Self::start_at("127.0.0.1:0", environment)
    }

    /// On a port that it keeps over restarts.
    pub(crate) fn start_on_its_port(environment: &[(&str, &str)]) -> Self {
        let port = free_port().unwrap();
        Self::start_at(&format!("127.0.0.1:{port}"), environment)
    }

    fn start_at(listen: &str, environment: &[(&str, &str)]) -> Self {
        let own = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
        let environment: Vec<_> = environment.iter().map(own).collect();
        let data = tempfile::tempdir().unwrap();
        let (child, ups) = launch(up_command(data.path(), listen, &environment), data.path());
        Self {
            child,
            data,
            listen: listen.to_owned(),
            environment,
            ups,
        }
    }

    /// Starts it anew, where it was, after an end.
    fn start_again(&mut self) {
        let data = self.data.path();
        (self.child, self.ups) = launch(up_command(data, &self.listen, &self.environment), data);
    }

    /// How often the process that runs has said that it is up.
    pub(crate) fn ups(&self) -> usize {
        self.ups.load(Ordering::Relaxed)
    }

    pub(crate) fn runs(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(log_of(self.data.path())).unwrap()
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(binary("inkstone"));
        command
            .arg("--data")
            .arg(self.data.path())
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    pub(crate) fn inkstone(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    pub(crate) fn ok(&self, arguments: &[&str]) -> String {
        let output = self.inkstone(arguments);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{arguments:?}: {errors}");
        String::from_utf8(output.stdout).unwrap()
    }

    fn broker_process(&self) -> String {
        let pid = std::fs::read_to_string(self.data.path().join("nats/nats-server.pid")).unwrap();
        pid.trim().to_owned()
    }

    pub(crate) fn interrupt(&mut self) -> std::process::ExitStatus {
        press_ctrl_c(&self.child);
        self.child.wait().unwrap()
    }
}

pub(crate) fn press_ctrl_c(child: &Child) {
    let pid = rustix::process::Pid::from_child(child);
    rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
}

pub(crate) fn log_of(data: &Path) -> std::path::PathBuf {
    data.join("up.log")
}

/// `inkstone up` in the repository, with its log in a file.
pub(crate) fn up_command(data: &Path, listen: &str, environment: &[(String, String)]) -> Command {
    let log = std::fs::OpenOptions::new()
        .create(true)
        .append(true)
        .open(log_of(data))
        .unwrap();
    let mut command = Command::new(binary("inkstone"));
    command
        .args(["up", "--listen", listen, "--data"])
        .arg(data)
        .current_dir(repository())
        .envs(environment.iter().map(|(name, value)| (name, value)))
        .stdout(Stdio::piped())
        .stderr(log);
    command
}

/// Runs it and waits until it says that it is up.
fn launch(mut command: Command, data: &Path) -> (Child, Arc<AtomicUsize>) {
    let mut child = command.spawn().unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut lines = lines.map_while(Result::ok);
    let is_up = |line: &String| line.contains("Inkstone is up");
    let up = lines.by_ref().find(is_up);
    let log = || std::fs::read_to_string(log_of(data)).unwrap_or_default();
    assert!(
        up.is_some(),
        "inkstone up ended before it was up:\n{}",
        log()
    );
    let ups = Arc::new(AtomicUsize::new(1));
    let counted = Arc::clone(&ups);
    // Someone must read on, or a full pipe would stop it.
    std::thread::spawn(move || {
        for _ in lines.filter(is_up) {
            counted.fetch_add(1, Ordering::Relaxed);
        }
    });
    (child, ups)
}

/// What a command that runs has written to one of its outputs up to the first such line, which comes back.
pub(crate) fn line_of(output: &mut impl std::io::BufRead, wanted: &str) -> String {
    let mut lines = output.lines().map_while(Result::ok);
    let line = lines.find(|line| line.contains(wanted));
    line.unwrap_or_else(|| panic!("it ended and never wrote {wanted:?}"))
}

pub(crate) fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

pub(crate) fn ended(child: &mut Child) -> ExitStatus {
    let deadline = Instant::now() + LIMIT;
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return status;
        }
        assert!(Instant::now() < deadline, "it does not end");
        std::thread::sleep(Duration::from_millis(50));
    }
}

impl Drop for Up {
    fn drop(&mut self) {
        if self.child.try_wait().is_ok_and(|status| status.is_none()) {
            self.interrupt();
        }
    }
}

/// Has a picture inspected whose inspection is told to `stdout`.
fn inspect_to(stdout: impl Into<Stdio>) -> (ExitStatus, String) {
    let mut command = Command::new(binary("inkstone"));
    command
        .current_dir(repository())
        .args(["inspect", "docs/images/fox.png"]);
    command
        .stdin(Stdio::null())
        .stdout(stdout)
        .stderr(Stdio::piped());
    let output = command.output().unwrap();
    let errors = String::from_utf8(output.stderr).unwrap();
    (output.status, errors)
}

#[test]
fn a_command_whose_output_nobody_reads_goes_on_to_its_end() {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let (status, errors) = inspect_to(writer);
    assert!(status.success(), "{errors}");
    assert_eq!(errors, "");
}

#[test]
fn a_command_whose_output_cannot_be_written_does_not_end_as_if_it_could() {
    let full = std::fs::File::create("/dev/full").unwrap();
    let (status, errors) = inspect_to(full);
    assert_eq!(status.code(), Some(1), "{errors}");
    assert!(errors.contains("standard output"), "{errors}");
}

#[test]
fn generate_writes_a_picture_and_the_same_seed_writes_the_same_bytes() {
    let up = Up::start();
    let out = tempfile::tempdir().unwrap();
    let path = |name: &str| out.path().join(name).display().to_string();
    let draw = |name: &str, seed: &str| {
        let prompt = "a 3d cat on a blue background";
        up.ok(&[
            "generate",
            prompt,
            "--steps",
            "4",
            "--seed",
            seed,
            "-o",
            &path(name),
        ]);
        std::fs::read(path(name)).unwrap()
    };
    let (first, again, other) = (draw("a.png", "1"), draw("b.png", "1"), draw("c.png", "2"));
    assert!(first.starts_with(b"\x89PNG"));
    assert_eq!(first, again);
    assert_ne!(first, other);
    assert!(draw("d.jpg", "1").starts_with(&[0xff, 0xd8]));
    assert!(
        up.ok(&["inspect", &path("a.png")])
            .contains("label             1")
    );
    let refused = up.inkstone(&[
        "generate",
        "a cat",
        "--size",
        "100x100",
        "-o",
        &path("e.png"),
    ]);
    let message = String::from_utf8(refused.stderr).unwrap();
    assert!(
        !refused.status.success() && message.contains("multiple of 32"),
        "{message}"
    );
}

#[test]
fn a_platform_that_is_not_there_is_answered_with_what_to_do() {
    let output = Command::new(binary("inkstone"))
        .args([
            "generate",
            "a cat",
            "--url",
            "127.0.0.1:1",
            "--key",
            "ink_x",
        ])
        .output()
        .unwrap();
    let message = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(UNREACHABLE));
    for part in ["http://127.0.0.1:1", "inkstone up", "--url"] {
        assert!(message.contains(part), "{message}");
    }
}

#[test]
fn what_cannot_be_had_is_said_before_anything_starts() {
    let data = tempfile::tempdir().unwrap();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let output = Command::new(binary("inkstone"))
        .args(["up", "--listen", &address, "--data"])
        .arg(data.path())
        .output()
        .unwrap();
    let said = text(&output.stderr);
    assert!(!output.status.success());
    assert_eq!(said.lines().count(), 1, "{said}");
    assert!(
        said.contains(&address) && said.contains("--listen"),
        "{said}"
    );
    // A folder where the picture is to be.
    let output = Command::new(binary("inkstone"))
        .args(["generate", "a cat", "-o"])
        .arg(data.path())
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(USAGE));
    assert!(text(&output.stderr).contains("is a folder"));
    // In a folder that is not there.
    let output = Command::new(binary("inkstone"))
        .args(["generate", "a cat", "-o"])
        .arg(data.path().join("nope/cat.png"))
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(USAGE));
    assert!(text(&output.stderr).contains("there is no folder"));
    // Left behind is nothing: neither a broker's folder nor a key.
    assert_eq!(std::fs::read_dir(data.path()).unwrap().count(), 0);
}

#[test]
fn keys_are_created_listed_and_revoked_and_a_doctor_finds_nothing() {
    let up = Up::start();
    let created = up.ok(&["keys", "create", "--tenant", "acme", "--prefix", "test-"]);
    let app_key = created
        .lines()
        .next()
        .unwrap()
        .split_whitespace()
        .last()
        .unwrap();
    assert!(app_key.starts_with("test-"), "{created}");
    assert!(up.ok(&["keys", "list"]).contains(app_key));
    assert!(up.ok(&["keys", "revoke", app_key]).contains("revoked"));
    // It has no TLS, and says so to whoever thinks otherwise.
    let url = std::fs::read_to_string(up.data.path().join("run.json")).unwrap();
    let url: serde_json::Value = serde_json::from_str(&url).unwrap();
    let secure = url["gateway"]
        .as_str()
        .unwrap()
        .replace("http://", "https://");
    let refused = up.inkstone(&["models", "list", "--url", &secure]);
    let message = String::from_utf8(refused.stderr).unwrap();
    assert!(
        message.contains("does not speak TLS; say http://"),
        "{message}"
    );
    let refused = up.inkstone(&["keys", "create", "--tenant", "acme", "--prefix", "vip-"]);
    let message = String::from_utf8(refused.stderr).unwrap();
    assert!(
        !refused.status.success() && message.contains("prod-"),
        "{message}"
    );
    assert!(up.ok(&["models", "list"]).contains("inkstone-demo"));
    up.ok(&["doctor"]);
    let gold = [
        "policies",
        "set",
        "gold-",
        "--models",
        "t2i-basic,sdlx",
        "--requests-per-second",
        "5",
        "--tier",
        "gold",
    ];
    let set = up.inkstone(&gold);
    let warning = String::from_utf8(set.stderr).unwrap();
    assert!(
        set.status.success() && warning.contains("no lanes for the tier"),
        "{warning}"
    );
    assert!(warning.contains("no model sdlx:"), "{warning}");
}

#[test]
fn an_interrupt_stops_everything_the_broker_included_and_a_second_start_finds_its_data() {
    let mut up = Up::start();
    let broker = up.broker_process();
    assert!(Path::new(&format!("/proc/{broker}")).exists());
    let key = std::fs::read_to_string(up.data.path().join("key")).unwrap();
    assert!(up.interrupt().success());
    assert!(!Path::new(&format!("/proc/{broker}")).exists());
    assert!(!up.data.path().join("run.json").exists());
    let stopped = up.inkstone(&["models", "list"]);
    let message = String::from_utf8(stopped.stderr).unwrap();
    assert!(
        !stopped.status.success() && message.contains("no platform runs"),
        "{message}"
    );
    up.start_again();
    assert_eq!(
        std::fs::read_to_string(up.data.path().join("key")).unwrap(),
        key
    );
    up.ok(&["models", "list"]);
}

#[test]
fn a_platform_whose_folder_is_taken_away_says_so_and_ends() {
    let mut up = Up::start();
    let folder = up.data.path().join("nats");
    std::fs::rename(&folder, up.data.path().join("elsewhere")).unwrap();
    assert_eq!(ended(&mut up.child).code(), Some(1));
    let said = format!("{} was removed or replaced", folder.display());
    assert!(up.log().contains(&said), "{}", up.log());
}

#[test]
fn where_nobody_looks_the_log_has_no_colours_and_generate_tells_how_far_it_is_in_lines() {
    let up = Up::start();
    let out = tempfile::tempdir().unwrap();
    let path = out.path().join("a.png").display().to_string();
    let drawn = up.inkstone(&["generate", "a cat", "--steps", "4", "-o", &path]);
    let told = text(&drawn.stderr);
    assert!(drawn.status.success(), "{told}");
    let lines: Vec<&str> = told.lines().collect();
    let task = lines[0].strip_prefix("task ").unwrap();
    assert_eq!(lines.last(), Some(&"succeeded"), "{told}");
    assert!(lines.len() > 2, "{told}");
    assert!(!told.contains('\u{1b}'), "{told:?}");
    let log = up.log();
    assert!(log.contains("INFO") && !log.contains('\u{1b}'), "{log:?}");

    // What has ended is followed to its end, and cannot be cancelled.
    assert!(up.ok(&["watch", task]).starts_with("succeeded"));
    let late = up.inkstone(&["cancel", task]);
    assert_eq!(late.status.code(), Some(HAD_ENDED));
    assert!(text(&late.stdout).contains("succeeded before, at 20"));
    assert!(text(&late.stderr).contains("had succeeded already"));
    let unknown = "0197c5a2-0000-7000-8000-000000000001";
    for command in ["watch", "cancel"] {
        assert_eq!(up.inkstone(&[command, unknown]).status.code(), Some(1));
        assert_eq!(up.inkstone(&[command]).status.code(), Some(USAGE));
    }
    let refused = up.inkstone(&["generate", "a cat", "--size", "100x100", "-o", &path]);
    assert_eq!(refused.status.code(), Some(USAGE));
}

#[test]
fn who_cancels_hears_whether_there_was_something_to_cancel_and_who_waits_that_it_was_cancelled() {
    let up = Up::start_with(&SLOW);
    let mut drawing = up.command(&["generate", "a cat", "--steps", "100"]);
    let mut drawing = drawing.spawn().unwrap();
    let mut told = BufReader::new(drawing.stderr.take().unwrap());
    let task = line_of(&mut told, "task ").replace("task ", "");
    line_of(&mut told, "running");
    assert_eq!(
        up.ok(&["cancel", &task]).trim_end(),
        format!("{task}  cancelled")
    );
    assert_eq!(ended(&mut drawing).code(), Some(CANCELLED));
    let again = up.inkstone(&["cancel", &task]);
    assert_eq!(again.status.code(), Some(HAD_ENDED));
    assert!(text(&again.stdout).contains("cancelled before, at 20"));
    assert!(text(&again.stderr).contains("had been cancelled already"));
    let watched = up.inkstone(&["watch", &task]);
    assert_eq!(watched.status.code(), Some(CANCELLED));
}

#[test]
fn a_watch_goes_on_when_the_platform_is_there_again_and_says_so_when_it_stays_away() {
    let mut up = Up::start_on_its_port(&SLOW);
    let out = tempfile::tempdir().unwrap();
    let path = out.path().join("a.png").display().to_string();
    let patience = ["--patience", "5m"];
    // Long enough to outlast what the gateway gives its callers when it stops.
    let draw = ["generate", "a cat", "--steps", "100", "-o", path.as_str()];
    let mut drawing = up.command(&[&draw[..], &patience].concat());
    let mut drawing = drawing.spawn().unwrap();
    let mut told = BufReader::new(drawing.stderr.take().unwrap());
    let task = line_of(&mut told, "task ").replace("task ", "");
    let watch = ["watch", task.as_str()];
    let mut watching = up.command(&[&watch[..], &patience].concat());
    let mut watching = watching.spawn().unwrap();
    let mut events = BufReader::new(watching.stdout.take().unwrap());
    let mut hasty = up.command(&[&watch[..], &["--patience", "1s"]].concat());
    let mut hasty = hasty.spawn().unwrap();
    let mut heard = BufReader::new(hasty.stdout.take().unwrap());
    line_of(&mut events, "step");
    line_of(&mut heard, "step");
    assert!(up.interrupt().success());
    assert_eq!(ended(&mut hasty).code(), Some(UNREACHABLE));
    up.start_again();
    line_of(&mut events, "succeeded");
    assert!(ended(&mut watching).success());
    line_of(&mut told, "away");
    line_of(&mut told, "there again");
    line_of(&mut told, "succeeded");
    assert!(ended(&mut drawing).success());
    assert!(std::fs::read(&path).unwrap().starts_with(b"\x89PNG"));
}
