//! The public port with nobody behind it: what callers hear before any other service has a say.

// Helpers of tests fail by panicking, like the tests themselves.
#![allow(clippy::unwrap_used)]

mod client;
mod document;
mod grpc;
mod heads;
mod http;
mod patience;
mod tls;

use std::net::SocketAddr;
use std::time::Duration;

use lifecycle::Service;

/// A gateway whose services are not there.
pub(crate) struct Edge {
    pub(crate) service: Service,
    pub(crate) address: SocketAddr,
    _storage: tempfile::TempDir,
}

impl Edge {
    /// Starts one on a free port, with `overrides` of its settings.
    pub(crate) async fn start(overrides: &[(&str, &str)]) -> Self {
        let storage = tempfile::tempdir().unwrap();
        let mut all = vec![
            ("http.listen", "127.0.0.1:0".to_owned()),
            (
                "storage.url",
                format!("file://{}", storage.path().display()),
            ),
            ("health.start_timeout", "0ms".to_owned()),
        ];
        // Port 1 answers nobody.
        for key in ["auth.url", "orchestrator.url", "registry.url"] {
            all.push((key, "http://127.0.0.1:1".to_owned()));
        }
        all.extend(
            overrides
                .iter()
                .map(|(key, value)| (*key, (*value).to_owned())),
        );
        let settings: gateway::Settings = settings::load(None, &all).unwrap();
        let mut service = Service::new("test");
        gateway::serve(&mut service, &settings).await.unwrap();
        Self {
            address: service.address("http"),
            service,
            _storage: storage,
        }
    }

    /// Stops it; it must not need its grace.
    pub(crate) async fn stop(self) {
        assert!(self.service.stop(Duration::from_secs(10)).await);
    }
}
