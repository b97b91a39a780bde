//! gRPC between services: one way to serve, one way to call.
//!
//! Every call carries a deadline (`grpc-timeout`) and the trace context; every message has a size limit; every
//! connection is kept alive, so a peer that vanished is noticed in seconds.

use std::net::SocketAddr;
use std::time::Duration;

use contract::limits::MAX_GRPC_MESSAGE_BYTES;
use lifecycle::Service;
use settings::Millis;
use tokio::net::TcpListener;
use tonic::metadata::{MetadataKey, MetadataMap, MetadataValue};
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::server::TcpIncoming;
use tonic::transport::{Channel, Endpoint, Server};
use tonic::{Request, Status};

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
    /// The peer's URL is not one.
    #[error("{url:?} is not a URL such as http://127.0.0.1:7001")]
    Url {
        /// What was given.
        url: String,
        /// What is wrong with it.
        #[source]
        source: tonic::transport::Error,
    },
}

/// Where a peer is and how long it may take.
#[derive(Debug, Clone, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PeerSettings {
    /// Such as `http://127.0.0.1:7001`.
    pub url: String,
    /// The longest that a unary call may take.
    pub timeout: Millis,
}

/// A connection to a peer, made when first used and again when lost. Cheap to clone.
pub type Peer = InterceptedService<Channel, Outgoing>;

/// Adds the deadline and the trace context to each call.
#[derive(Debug, Clone)]
pub struct Outgoing {
    timeout: Duration,
}

/// Marks a call that streams for as long as it likes: no deadline is added.
#[derive(Debug, Clone, Copy)]
pub struct NoDeadline;

impl Interceptor for Outgoing {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        let streams = request.extensions().get::<NoDeadline>().is_some();
        if !streams && request.metadata().get("grpc-timeout").is_none() {
            request.set_timeout(self.timeout);
        }
        let metadata = request.metadata_mut();
        telemetry::inject(|name, value| insert(metadata, name, &value));
        Ok(request)
    }
}

fn insert(metadata: &mut MetadataMap, name: &str, value: &str) {
    let name = MetadataKey::from_bytes(name.as_bytes());
    if let (Ok(name), Ok(value)) = (name, MetadataValue::try_from(value)) {
        metadata.insert(name, value);
    }
}

/// A request for a call that streams without a deadline.
pub fn streaming<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.extensions_mut().insert(NoDeadline);
    request
}

/// A lazy channel to a peer.
///
/// # Errors
/// When the URL cannot be understood. That the peer is not there is an error of each call, not of this.
pub fn peer(settings: &PeerSettings) -> Result<Peer, RpcError> {
    let endpoint = Endpoint::from_shared(settings.url.clone())
        .map_err(|source| RpcError::Url {
            url: settings.url.clone(),
            source,
        })?
        .connect_timeout(CONNECT_TIMEOUT)
        .tcp_nodelay(true)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(MAX_STREAMS_PER_CONNECTION * STREAM_WINDOW)
        .http2_keep_alive_interval(KEEPALIVE)
        .keep_alive_timeout(KEEPALIVE_TIMEOUT)
        .keep_alive_while_idle(true);
    let outgoing = Outgoing {
        timeout: settings.timeout.duration(),
    };
    Ok(InterceptedService::new(endpoint.connect_lazy(), outgoing))
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

/// Serves `routes` on `address` until the service stops, and notes the address as `grpc`.
///
/// # Errors
/// When the address cannot be listened on.
pub async fn serve(
    service: &mut Service,
    address: SocketAddr,
    routes: tonic::service::Routes,
) -> Result<SocketAddr, RpcError> {
    let failed = |source| RpcError::Listen { address, source };
    let listener = TcpListener::bind(address).await.map_err(failed)?;
    let bound = listener.local_addr().map_err(failed)?;
    service.listens("grpc", bound);
    let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
    let server = Server::builder()
        .trace_fn(span)
        .max_concurrent_streams(MAX_STREAMS_PER_CONNECTION)
        .http2_keepalive_interval(Some(KEEPALIVE))
        .http2_keepalive_timeout(Some(KEEPALIVE_TIMEOUT))
        .add_routes(routes);
    let stopping = service.tasks.stopping();
    service.tasks.critical("grpc", async move {
        server
            .serve_with_incoming_shutdown(incoming, stopping)
            .await
    });
    Ok(bound)
}

/// The span of one call, continuing the caller's trace.
pub fn span(request: &http::Request<()>) -> tracing::Span {
    let span = tracing::info_span!("grpc", "otel.kind" = "server", path = request.uri().path());
    telemetry::continue_trace(&span, |name| {
        request.headers().get(name).and_then(|v| v.to_str().ok())
    });
    span
}
