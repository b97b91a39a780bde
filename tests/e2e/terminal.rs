//! What someone at a terminal meets who stops `inkstone up`, looks away, or stands elsewhere.

use std::io::BufReader;
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use e2e::binary;

use crate::command_line::{SLOW, Up, ended, line_of, log_of, press_ctrl_c, text, up_command};

const ANY_PORT: &str = "127.0.0.1:0";

/// A process that is killed when a test fails before its end.
struct Running(Child);

impl Running {
    fn of(mut command: Command) -> Self {
        Self(command.spawn().unwrap())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if self.0.try_wait().is_ok_and(|status| status.is_none()) {
            press_ctrl_c(&self.0);
            let _ = self.0.wait();
        }
    }
}

#[test]
fn a_platform_whose_log_nobody_reads_starts_and_stops_as_any() {
    let data = tempfile::tempdir().unwrap();
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let mut command = up_command(data.path(), ANY_PORT, &[]);
    command.stderr(writer);
    let mut platform = Running::of(command);
    let mut told = BufReader::new(platform.0.stdout.take().unwrap());
    line_of(&mut told, "Inkstone is up");
    press_ctrl_c(&platform.0);
    line_of(&mut told, "stopped");
    assert!(ended(&mut platform.0).success());
}

#[test]
fn elsewhere_than_in_the_repository_a_platform_goes_on_with_the_models_of_its_data() {
    let mut before = Up::start();
    assert!(before.interrupt().success());
    let elsewhere = tempfile::tempdir().unwrap();
    let broker = nats_server::find().unwrap();
    let command = |data: &Path| {
        let mut command = up_command(data, ANY_PORT, &[]);
        command
            .current_dir(elsewhere.path())
            .env("INKSTONE_NATS_SERVER", &broker);
        command
    };
    let mut platform = Running::of(command(before.data.path()));
    let mut told = BufReader::new(platform.0.stdout.take().unwrap());
    line_of(&mut told, "Inkstone is up");
    assert!(before.ok(&["models", "list"]).contains("inkstone-demo"));
    press_ctrl_c(&platform.0);
    assert!(ended(&mut platform.0).success());

    // Where nothing was published, nothing is started either.
    let data = tempfile::tempdir().unwrap();
    let refused = command(data.path()).stderr(Stdio::piped()).output();
    let refused = refused.unwrap();
    let said = text(&refused.stderr);
    assert!(
        !refused.status.success() && said.contains("--model"),
        "{said}"
    );
    assert!(!data.path().join("nats").exists());
}

#[test]
fn who_stops_a_platform_hears_what_it_waits_for_and_ends_it_at_once_with_a_second_ctrl_c() {
    let data = tempfile::tempdir().unwrap();
    // Long enough to be sure that it was not over.
    let drain = ("INKSTONE_GATEWAY__HTTP__DRAIN", "15s");
    let environment = SLOW.into_iter().chain([drain]);
    let environment: Vec<_> = environment
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect();
    let mut platform = Running::of(up_command(data.path(), ANY_PORT, &environment));
    let mut told = BufReader::new(platform.0.stdout.take().unwrap());
    line_of(&mut told, "Inkstone is up");
    let mut draw = Command::new(binary("inkstone"));
    draw.args(["generate", "a cat", "--steps", "100", "--patience", "0s"])
        .arg("--data")
        .arg(data.path())
        .arg("-o")
        .arg(data.path().join("a.png"))
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    let mut drawing = Running::of(draw);
    let mut heard = BufReader::new(drawing.0.stderr.take().unwrap());
    line_of(&mut heard, "running");

    let log = || std::fs::read_to_string(log_of(data.path())).unwrap();
    let before = log().len();
    press_ctrl_c(&platform.0);
    let stopping = line_of(&mut told, "stopping");
    assert!(
        stopping.contains("15 s") && stopping.contains("Ctrl-C again"),
        "{stopping}"
    );
    let pressed = Instant::now();
    press_ctrl_c(&platform.0);
    line_of(&mut told, "stopped at once");
    assert!(ended(&mut platform.0).success());
    // Some 0.2 s on an idle machine, where what is under way may take 15.
    let took = pressed.elapsed();
    assert!(took < Duration::from_secs(10), "{took:?}");
    assert!(!data.path().join("run.json").exists());
    assert!(!data.path().join("nats/nats-server.pid").exists());
    // What goes down with the platform is well enough for that.
    let after = &log()[before..];
    assert!(!after.contains(" fails: "), "{after}");
}

#[test]
fn who_ends_a_platform_at_once_does_not_wait_for_a_silent_receiver_of_spans_either() {
    let data = tempfile::tempdir().unwrap();
    // The system takes connections for it, and nobody answers.
    let silent = TcpListener::bind(ANY_PORT).unwrap();
    let mut command = up_command(data.path(), ANY_PORT, &[]);
    command
        .arg("--otlp-endpoint")
        .arg(format!("http://{}", silent.local_addr().unwrap()));
    let mut platform = Running::of(command);
    let mut told = BufReader::new(platform.0.stdout.take().unwrap());
    line_of(&mut told, "Inkstone is up");
    let running = std::fs::read(data.path().join("run.json")).unwrap();
    let running: serde_json::Value = serde_json::from_slice(&running).unwrap();
    let auth = running["auth"].as_str().unwrap();
    let auth = auth.strip_prefix("http://").unwrap();
    press_ctrl_c(&platform.0);
    line_of(&mut told, "stopping");
    // The last that stops; then the spans are sent, for 5 s.
    let pressed = Instant::now();
    while TcpStream::connect(auth).is_ok() {
        assert!(pressed.elapsed() < Duration::from_secs(30), "auth is there");
        std::thread::sleep(Duration::from_millis(10));
    }
    silent.accept().unwrap();
    let pressed = Instant::now();
    press_ctrl_c(&platform.0);
    line_of(&mut told, "stopped");
    assert!(ended(&mut platform.0).success());
    let took = pressed.elapsed();
    assert!(took < Duration::from_secs(3), "{took:?}");
    assert!(!data.path().join("nats/nats-server.pid").exists());
}

#[test]
fn a_list_with_nothing_in_it_says_so_and_what_is_not_in_one_is_answered_with_what_is() {
    let up = Up::start();
    let said = |arguments: &[&str]| up.ok(arguments).trim_end().to_owned();
    assert_eq!(said(&["dead", "list"]), "There are no dead letters.");
    assert_eq!(
        said(&["dead", "list", "--kind", "webhook"]),
        "There are no such dead letters."
    );
    assert_eq!(
        said(&["keys", "list", "--tenant", "nobody"]),
        "The tenant nobody has no keys."
    );
    for command in ["show", "remove"] {
        let absent = up.inkstone(&["policies", command, "gold-"]);
        let told = text(&absent.stderr);
        assert_eq!(absent.status.code(), Some(1), "{told}");
        assert!(
            told.contains("there are dev-, prod-, test-"),
            "{command}: {told}"
        );
    }
    for prefix in ["dev-", "test-", "prod-"] {
        up.ok(&["policies", "remove", prefix, "--even-if-used"]);
    }
    let absent = text(&up.inkstone(&["policies", "remove", "dev-"]).stderr);
    assert!(absent.contains("there are none"), "{absent}");
    let none = "There are no policies: every key is turned away.";
    assert_eq!(said(&["policies", "list"]), none);
    // For programs nothing is different.
    let listed = up.ok(&["dead", "list", "--json"]);
    let listed: serde_json::Value = serde_json::from_str(&listed).unwrap();
    assert_eq!(listed["letters"], serde_json::json!([]));
}
