//! What someone at a terminal meets who stops `inkstone up`, looks away, or stands elsewhere.

use std::io::BufReader;
use std::process::{Child, Command};

use crate::command_line::{ended, line_of, press_ctrl_c, up_command};

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
