//! What every handler has at hand.

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::http::{HeaderMap, Uri, header};
use contract::Failure;
use lifecycle::{Health, Tasks};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;

use crate::platform::Platform;
use crate::settings::{HttpSettings, Settings};

/// Suggested wait when a limit of this gateway is reached: load moves in seconds.
const BUSY_WAIT: Duration = Duration::from_secs(1);

/// Pictures of callers that are decoded at once: one takes a core, and up to 16 bytes a pixel for a moment.
const MAX_DECODES: u32 = 4;

/// The gateway's own state: limits and clocks, nothing that a restart would lose.
pub(crate) struct Edge {
    pub(crate) http: HttpSettings,
    pub(crate) platform: Platform,
    pub(crate) tasks: Tasks,
    pub(crate) health: Health,
    /// Cancelled when waiting requests and streams have to end because the gateway does.
    pub(crate) drained: CancellationToken,
    started: Instant,
    requests: Arc<Semaphore>,
    streams: Arc<Semaphore>,
    uploads: Arc<Semaphore>,
    /// Turns at decoding pictures that callers have sent.
    pub(crate) decodes: Arc<Semaphore>,
}

/// The right to hold one stream of events open.
pub(crate) struct OpenStream {
    _permit: OwnedSemaphorePermit,
}

/// The right to hold one body with pictures in memory.
#[derive(Debug, Clone)]
pub(crate) struct Upload(#[expect(dead_code, reason = "it is held")] Arc<OwnedSemaphorePermit>);

impl Edge {
    pub(crate) fn new(
        settings: &Settings,
        platform: Platform,
        tasks: Tasks,
        health: Health,
    ) -> Self {
        let limit = |count: u32| Arc::new(Semaphore::new(count as usize));
        Self {
            platform,
            tasks,
            health,
            drained: CancellationToken::new(),
            started: Instant::now(),
            requests: limit(settings.http.max_concurrent_requests),
            streams: limit(settings.http.max_event_streams),
            uploads: limit(settings.http.max_uploads),
            decodes: limit(MAX_DECODES),
            http: settings.http.clone(),
        }
    }

    /// Whole seconds since the gateway started.
    pub(crate) fn uptime_seconds(&self) -> u64 {
        self.started.elapsed().as_secs()
    }

    /// Room for one more request, for as long as the permit lives.
    pub(crate) fn admit(&self) -> Result<OwnedSemaphorePermit, Failure> {
        let busy =
            |_| Failure::unavailable("too many requests are under way; try again", BUSY_WAIT);
        self.requests.clone().try_acquire_owned().map_err(busy)
    }

    /// Room for one more stream of events.
    pub(crate) fn open_stream(&self) -> Result<OpenStream, Failure> {
        let busy = |_| Failure::unavailable("too many streams are open; try again", BUSY_WAIT);
        let permit = self.streams.clone().try_acquire_owned().map_err(busy)?;
        metrics::gauge!("inkstone_gateway_event_streams").increment(1);
        Ok(OpenStream { _permit: permit })
    }

    /// Room for one more body with pictures, for as long as the permit lives.
    pub(crate) fn open_upload(&self) -> Result<Upload, Failure> {
        let busy =
            |_| Failure::unavailable("too many pictures arrive at once; try again", BUSY_WAIT);
        let permit = self.uploads.clone().try_acquire_owned().map_err(busy)?;
        Ok(Upload(Arc::new(permit)))
    }

    /// What goes in front of a path that an answer names: scheme and authority, no slash at the end.
    pub(crate) fn public_url(&self, uri: &Uri, headers: &HeaderMap) -> String {
        if !self.http.public_url.is_empty() {
            return self.http.public_url.clone();
        }
        // HTTP/2 has the authority in the URI, HTTP/1.1 in a header.
        let host = uri.authority().map(|a| a.as_str());
        let host = host.or_else(|| headers.get(header::HOST).and_then(|v| v.to_str().ok()));
        match host.filter(|host| is_host(host)) {
            Some(host) => format!("http://{host}"),
            None => format!("http://{}", self.http.listen),
        }
    }
}

impl Drop for OpenStream {
    fn drop(&mut self) {
        metrics::gauge!("inkstone_gateway_event_streams").decrement(1);
    }
}

/// Whether a text can stand between `http://` and a path without meaning anything else.
fn is_host(text: &str) -> bool {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b".-:[]_".contains(&b);
    (1..=255).contains(&text.len()) && text.bytes().all(plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_that_could_mean_something_else_is_not_repeated() {
        for good in ["localhost:8080", "[::1]:8080", "images.example.com"] {
            assert!(is_host(good), "{good}");
        }
        for bad in ["", "a/b", "user@host", "a b", "x\"y", "é"] {
            assert!(!is_host(bad), "{bad}");
        }
    }
}
