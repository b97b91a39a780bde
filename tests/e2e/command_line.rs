//! `inkstone up` and its client commands, as someone at a terminal meets them.

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};

use e2e::{binary, repository};

/// A platform that someone runs at a terminal.
pub(crate) struct Up {
    child: Child,
    pub(crate) data: tempfile::TempDir,
}

impl Up {
    fn start() -> Self {
        Self::start_with(&[])
    }

    /// The same with variables of its own.
    pub(crate) fn start_with(environment: &[(&str, &str)]) -> Self {
        let data = tempfile::tempdir().unwrap();
        let mut child = Command::new(binary("inkstone"))
            .args(["up", "--listen", "127.0.0.1:0", "--data"])
            .arg(data.path())
            .current_dir(repository())
            .envs(environment.iter().copied())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let up = lines.find(|line| line.as_ref().is_ok_and(|l| l.contains("Inkstone is up")));
        assert!(up.is_some(), "inkstone up ended before it was up");
        // Someone must read on, or a full pipe would stop it.
        std::thread::spawn(move || lines.for_each(drop));
        Self { child, data }
    }

    fn inkstone(&self, arguments: &[&str]) -> Output {
        Command::new(binary("inkstone"))
            .arg("--data")
            .arg(self.data.path())
            .args(arguments)
            .output()
            .unwrap()
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
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
        self.child.wait().unwrap()
    }
}

impl Drop for Up {
    fn drop(&mut self) {
        if self.child.try_wait().is_ok_and(|status| status.is_none()) {
            self.interrupt();
        }
    }
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
    assert!(!output.status.success());
    for part in ["http://127.0.0.1:1", "inkstone up", "--url"] {
        assert!(message.contains(part), "{message}");
    }
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
    let child = Command::new(binary("inkstone"))
        .args(["up", "--listen", "127.0.0.1:0", "--data"])
        .arg(up.data.path())
        .current_dir(repository())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    up.child = child;
    let deadline = std::time::Instant::now() + e2e::LIMIT;
    while !up.data.path().join("run.json").exists() {
        assert!(
            std::time::Instant::now() < deadline,
            "the second start did not come up"
        );
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    assert_eq!(
        std::fs::read_to_string(up.data.path().join("key")).unwrap(),
        key
    );
    up.ok(&["models", "list"]);
}
