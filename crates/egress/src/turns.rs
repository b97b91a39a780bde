//! Requests at once, in all and to one host.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Hosts that are remembered before those to which nothing goes are forgotten.
const TIDY_AT: usize = 256;

/// Who may go, and who waits.
pub(crate) struct Turns {
    all: Arc<Semaphore>,
    per_host: usize,
    /// As long as a request to it is under way or waits.
    hosts: Mutex<HashMap<String, Weak<Semaphore>>>,
}

/// The right to make one request.
pub(crate) struct Turn {
    _host: Option<OwnedSemaphorePermit>,
    _all: Option<OwnedSemaphorePermit>,
}

impl Turns {
    pub(crate) fn new(max_concurrent: u32, max_per_host: u32) -> Self {
        Self {
            all: Arc::new(Semaphore::new(max_concurrent as usize)),
            per_host: max_per_host as usize,
            hosts: Mutex::default(),
        }
    }

    /// Waits for a turn: at its host first, so that those who wait for a slow host keep nobody else waiting.
    pub(crate) async fn take(&self, host: &str) -> Turn {
        let own = self.host(host);
        // Only closing them could fail, and nobody does.
        Turn {
            _host: own.acquire_owned().await.ok(),
            _all: self.all.clone().acquire_owned().await.ok(),
        }
    }

    fn host(&self, name: &str) -> Arc<Semaphore> {
        let mut hosts = self.hosts.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = hosts.get(name).and_then(Weak::upgrade) {
            return known;
        }
        if hosts.len() >= TIDY_AT {
            hosts.retain(|_, host| host.strong_count() > 0);
        }
        let host = Arc::new(Semaphore::new(self.per_host));
        hosts.insert(name.to_owned(), Arc::downgrade(&host));
        host
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_host_has_its_share_and_hosts_are_forgotten() {
        let turns = Turns::new(3, 2);
        let (_one, _two) = (turns.take("a").await, turns.take("a").await);
        assert_eq!(turns.host("a").available_permits(), 0);
        let other = turns.take("b").await;
        assert_eq!(turns.all.available_permits(), 0);
        drop(other);
        for i in 0..10 * TIDY_AT {
            drop(turns.take(&i.to_string()).await);
        }
        assert!(turns.hosts.lock().unwrap().len() <= TIDY_AT);
        assert_eq!(turns.all.available_permits(), 1);
    }
}
