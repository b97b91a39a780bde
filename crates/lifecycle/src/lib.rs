//! The life of a process: start, signals, drain.
//!
//! A service's `main` is one call of [`run`]; its library builds a [`Service`] out of supervised
//! [tasks](Tasks), [health checks](Health) and an [admin port](admin), and hands it back as a value that can
//! be stopped. Several services live in one process the same way (`inkstone up`).
//!
//! Invariants: no task runs without a name and an owner; a critical task that ends takes its service down with
//! a message, so no process lives on half-dead; stopping is bounded by a grace time.

pub mod admin;
mod background;
mod core_dump;
mod health;
mod process;
mod tasks;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

pub use core_dump::forbid_core_dumps;
pub use health::{Check, Health};
pub use process::{
    HUNG, Process, ProcessSettings, RunError, interrupt, run, shutdown_signal, threads,
};
pub use tasks::{TaskFailure, Tasks, chain, panic_text};

/// A running service. Who lets go of it waits for it no more: what its checks say from then on is part of its end, and no warning.
pub struct Service {
    /// Its name, as in its binary's.
    pub name: &'static str,
    /// Its tasks.
    pub tasks: Tasks,
    /// Whether it can do its work.
    pub health: Health,
    addresses: BTreeMap<&'static str, SocketAddr>,
}

impl Service {
    /// A service that runs nothing yet.
    pub fn new(name: &'static str) -> Self {
        Self {
            name,
            tasks: Tasks::new(name),
            health: Health::default(),
            addresses: BTreeMap::new(),
        }
    }

    /// Notes where the service listens, for logs and for those who started it on port 0.
    pub fn listens(&mut self, what: &'static str, address: SocketAddr) {
        tracing::info!(service = self.name, %address, "{what} listens");
        self.addresses.insert(what, address);
    }

    /// Where the service listens for `what`.
    ///
    /// # Panics
    /// When it does not: which addresses a service has is part of its code.
    pub fn address(&self, what: &str) -> SocketAddr {
        match self.addresses.get(what) {
            Some(address) => *address,
            None => panic!("{} has no address called {what}", self.name),
        }
    }

    /// Says that everything has been started and every check added: `/readyz` answers 503 before, whatever the checks say.
    #[must_use]
    pub fn started(self) -> Self {
        self.tasks.started();
        self.health.started();
        self
    }

    /// Asks every task to stop and waits until all have, `grace` at most. False when some had to be left.
    pub async fn stop(&self, grace: Duration) -> bool {
        self.health.stopping();
        self.tasks.stop(grace).await
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        // Not every end is a stop: a start may be broken off, and so may a stop. The tasks end with the runtime then, and what they let go of
        // fails its checks.
        self.health.stopping();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_service_that_was_let_go_of_is_not_ready_and_stops() {
        let service = Service::new("test").started();
        let health = service.health.clone();
        assert_eq!(health.not_ready(), None);
        drop(service);
        assert_eq!(health.not_ready().unwrap(), "stopping");
    }
}
