//! gRPC between services: one way to serve, one way to call.
//!
//! Every call carries what is left of its caller's deadline (`grpc-timeout`) and the trace context; every message has a size
//! limit; every connection is kept alive, so a peer that vanished is noticed in seconds. A peer that fails is left alone by
//! its breaker, and calls that may be carried out twice are sent again within a budget (`docs/adr/0020`).
//!
//! With `[tls]`, every connection has a certificate on both sides, and each call is let in by the name in its caller's
//! (`docs/adr/0026`).
//!
//! Everything a peer can make grow has a limit: connections, handshakes, calls under way, open streams, messages.

mod admit;
mod breaker;
mod budget;
mod client;
mod connect;
pub mod deadline;
mod each;
mod gather;
mod health;
mod limit;
mod listen;
mod metrics;
mod server;
pub mod tls;

use std::net::SocketAddr;
use std::time::Duration;

use contract::limits::MAX_GRPC_MESSAGE_BYTES;
use lifecycle::Service;
use settings::Millis;
use tokio::net::TcpListener;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Endpoint, Server};

use admit::{Admission, Limits};
use connect::Connection;

pub use breaker::{BreakerSettings, BreakerState};
pub use budget::RetrySettings;
pub use client::{NoDeadline, Peer, idempotent, streaming};
pub use each::each;
pub use gather::{Answers, Asked, Gather, Gatherer, MAX_GROUP, UnderWay};
pub use tls::{Identity, Security, TlsError, TlsSettings};

/// Streams that one connection may have open.
const MAX_STREAMS_PER_CONNECTION: u32 = 4096;
const KEEPALIVE: Duration = Duration::from_secs(10);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(5);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// Bytes that a peer may send ahead on one stream. A stream that nobody reads holds no more than this, and the
/// connection's window has room for as many such streams as there may be, so that they hold up no one else.
const STREAM_WINDOW: u32 = 64 * 1024;

/// A server or channel that could not be made.
#[derive(Debug, thiserror::Error)]
pub enum RpcError {
    /// The address cannot be listened on.
    #[error("cannot listen on {address} for gRPC")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// A setting cannot be.
    #[error("{peer}.{key} must be {must}")]
    Setting {
        /// The section.
        peer: &'static str,
        /// The key in it.
        key: &'static str,
        /// What would do.
        must: &'static str,
    },
    /// The peer's URL is not one.
    #[error("{url:?} is not a URL such as http://127.0.0.1:7001")]
    Url {
        /// What was given.
        url: String,
        /// What is wrong with it.
        #[source]
        source: tonic::transport::Error,
    },
    /// The peer's URL asks for TLS and there are no certificates.
    #[error("{peer}.url is {url}, which needs certificates: set tls.dir")]
    NoCertificates {
        /// The section.
        peer: &'static str,
        /// What was given.
        url: String,
    },
}

/// Where a service is called, under `[grpc]`.
#[derive(Debug, Clone, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GrpcSettings {
    /// Address and port; port 0 takes a free one.
    pub listen: SocketAddr,
}

/// Where a peer is and how long it may take.
#[derive(Debug, Clone, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PeerSettings {
    /// Such as `http://127.0.0.1:7001`.
    pub url: String,
    /// The longest that a unary call may take.
    pub timeout: Millis,
    /// When it is left alone.
    #[serde(default)]
    pub breaker: BreakerSettings,
    /// How often calls to it are sent again.
    #[serde(default)]
    pub retries: RetrySettings,
}

impl PeerSettings {
    /// A peer with the default breaker and retries.
    pub fn new(url: impl Into<String>, timeout: Millis) -> Self {
        Self {
            url: url.into(),
            timeout,
            breaker: BreakerSettings::default(),
            retries: RetrySettings::default(),
        }
    }

    /// The first setting that cannot be, and what it must be.
    fn problem(&self) -> Option<(&'static str, &'static str)> {
        let (breaker, retries) = (&self.breaker, &self.retries);
        let percent = |value: u32| (1..=100).contains(&value);
        let some = |time: Millis| !time.duration().is_zero();
        let rules = [
            (some(self.timeout), "timeout", "longer than nothing"),
            (percent(breaker.percent), "breaker.percent", "1 to 100"),
            (
                some(breaker.window),
                "breaker.window",
                "longer than nothing",
            ),
            (
                some(breaker.open_for),
                "breaker.open_for",
                "longer than nothing",
            ),
            (breaker.probes > 0, "breaker.probes", "at least 1"),
            (retries.attempts > 0, "retries.attempts", "at least 1"),
            (retries.percent <= 100, "retries.percent", "0 to 100"),
        ];
        let broken = rules.into_iter().find(|(holds, ..)| !holds);
        broken.map(|(_, key, must)| (key, must))
    }
}

/// A lazy channel to a peer in the clear; see [`Security::peer`].
///
/// # Errors
/// As there.
pub fn peer(name: &'static str, settings: &PeerSettings) -> Result<Peer, RpcError> {
    // Nobody looks for a name where there are no certificates.
    Security::off().peer(name, Identity::Gateway, settings)
}

impl Security {
    /// A lazy channel to a peer; with certificates, only to one whose own says that it is `who`.
    ///
    /// # Errors
    /// When the URL cannot be understood or a setting cannot be. That the peer is not there is an error of each call, not of
    /// this. `name` is the section of the settings; logs and metrics call it so.
    pub fn peer(
        &self,
        name: &'static str,
        who: Identity,
        settings: &PeerSettings,
    ) -> Result<Peer, RpcError> {
        if let Some((key, must)) = settings.problem() {
            let peer = name;
            return Err(RpcError::Setting { peer, key, must });
        }
        let url = settings.url.clone();
        let endpoint = Endpoint::from_shared(url.clone());
        let endpoint = endpoint.map_err(|source| RpcError::Url {
            url: url.clone(),
            source,
        })?;
        if endpoint.uri().scheme_str() == Some("https") && !self.speaks_tls() {
            return Err(RpcError::NoCertificates { peer: name, url });
        }
        let endpoint = endpoint
            .connect_timeout(CONNECT_TIMEOUT)
            .tcp_nodelay(true)
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(MAX_STREAMS_PER_CONNECTION * STREAM_WINDOW)
            .http2_keep_alive_interval(KEEPALIVE)
            .keep_alive_timeout(KEEPALIVE_TIMEOUT)
            .keep_alive_while_idle(true);
        let connection = Connection::new(endpoint, self, who);
        Ok(Peer::new(name, connection, settings))
    }

    /// Serves `routes` on `address` until the service stops, and beside them whether it is ready (`grpc.health.v1`); notes the
    /// address as `grpc`. With certificates, who may call what stands in `tls/names.rs`.
    ///
    /// # Errors
    /// When the address cannot be listened on.
    pub async fn serve(
        &self,
        service: &mut Service,
        address: SocketAddr,
        routes: tonic::service::Routes,
    ) -> Result<SocketAddr, RpcError> {
        let failed = |source| RpcError::Listen { address, source };
        let listener = TcpListener::bind(address).await.map_err(failed)?;
        let bound = listener.local_addr().map_err(failed)?;
        service.listens("grpc", bound);
        let routes = routes.add_service(health::Told::server(service.health.clone()));
        let callers = listen::accept(&service.tasks, listener, self.clone());
        let server = Server::builder()
            .trace_fn(span)
            .max_concurrent_streams(MAX_STREAMS_PER_CONNECTION)
            .http2_keepalive_interval(Some(KEEPALIVE))
            .http2_keepalive_timeout(Some(KEEPALIVE_TIMEOUT))
            // Outermost, so that nothing is done for those who may not or for whom there is no room.
            .layer(Admission::new(Limits::default()))
            .layer(server::Deadlines)
            .add_routes(routes);
        let stopping = service.tasks.stopping();
        service.tasks.critical("grpc", async move {
            server
                .serve_with_incoming_shutdown(ReceiverStream::new(callers), stopping)
                .await
        });
        Ok(bound)
    }
}

/// Sets the message limits that all our generated clients and servers share.
#[macro_export]
macro_rules! with_limits {
    ($endpoint:expr) => {
        $endpoint
            .max_decoding_message_size($crate::MAX_MESSAGE_BYTES)
            .max_encoding_message_size($crate::MAX_MESSAGE_BYTES)
    };
}

/// The largest message that a service sends or takes.
pub const MAX_MESSAGE_BYTES: usize = MAX_GRPC_MESSAGE_BYTES;

/// Serves `routes` in the clear; see [`Security::serve`].
///
/// # Errors
/// As there.
pub async fn serve(
    service: &mut Service,
    address: SocketAddr,
    routes: tonic::service::Routes,
) -> Result<SocketAddr, RpcError> {
    Security::off().serve(service, address, routes).await
}

/// The span of one call, continuing the caller's trace.
pub fn span(request: &http::Request<()>) -> tracing::Span {
    let span = tracing::info_span!("grpc", "otel.kind" = "server", path = request.uri().path());
    telemetry::continue_trace(&span, |name| {
        request.headers().get(name).and_then(|v| v.to_str().ok())
    });
    span
}
