//! Whether the broker of `inkstone up` is to be started again.

use std::path::Path;
use std::time::{Duration, Instant};

use nats_server::NatsServer;

/// Between two questions whether it can store.
const ASK: Duration = Duration::from_secs(2);
/// Free bytes on its disk with which it is started again when it could not store: with fewer it would only fail anew.
const ROOM: u64 = 16 << 20;

/// What is known of it.
pub(crate) struct Watch {
    asked: Instant,
    /// Whether it was said that it waits for room.
    is_told: bool,
}

impl Watch {
    pub(crate) fn new() -> Self {
        Self {
            asked: Instant::now(),
            is_told: false,
        }
    }

    /// Whether it has ended, or stores nothing until it is started again and has the room for that; the log says which. It takes a second at most.
    pub(crate) fn must_restart(&mut self, broker: &mut NatsServer) -> bool {
        if !broker.is_running() {
            tracing::error!("nats-server ended; starting it again");
            return true;
        }
        if self.asked.elapsed() < ASK {
            return false;
        }
        self.asked = Instant::now();
        let Some(problem) = broker.write_problem() else {
            self.is_told = false;
            return false;
        };
        if has_room(broker.folder()) {
            tracing::error!(
                problem,
                "nats-server could not store, and does not try again; starting it again"
            );
            return true;
        }
        if !std::mem::replace(&mut self.is_told, true) {
            let folder = broker.folder().display();
            tracing::error!(
                problem,
                %folder,
                "nats-server cannot store: it is started again as soon as there is room on its disk"
            );
        }
        false
    }
}

/// Whether there is room on the disk of this folder. Where that cannot be told, trying will.
fn has_room(folder: &Path) -> bool {
    rustix::fs::statvfs(folder).map_or(true, |disk| {
        disk.f_bavail.saturating_mul(disk.f_frsize) >= ROOM
    })
}
