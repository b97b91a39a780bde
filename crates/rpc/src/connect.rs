//! Connections to a peer: in the clear, or with the certificates that are good at that moment.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tonic::transport::{Channel, Endpoint};
use tower_service::Service;

use crate::tls::{Identity, Mutual, Security};

/// The connection that calls to a peer go out over. Cheap to clone; clones share it.
#[derive(Clone)]
pub(crate) enum Connection {
    /// One for ever, made again when it is lost.
    Same(Channel),
    /// One after the other.
    Renewed(Arc<Renewed>),
}

/// A connection that is replaced when the certificates have changed, and when it is old. Streams stay on the one that they
/// began on, which ends with the last of them.
pub(crate) struct Renewed {
    endpoint: Endpoint,
    connector: Connector,
    age: Duration,
    current: Mutex<Current>,
}

struct Current {
    channel: Channel,
    /// Tells whether the certificates have changed since.
    certificates: watch::Receiver<Arc<Mutual>>,
    since: Instant,
}

impl Connection {
    pub(crate) fn new(endpoint: Endpoint, security: &Security, peer: Identity) -> Self {
        let Some(certificates) = security.mutual.clone() else {
            let https = endpoint.uri().scheme_str() == Some("https");
            return Self::Same(match security.public.clone().filter(|_| https) {
                None => endpoint.connect_lazy(),
                Some(config) => endpoint.connect_with_connector_lazy(Connector::Public(config)),
            });
        };
        let connector = Connector::Mutual {
            certificates: certificates.clone(),
            peer: peer.server_name(),
        };
        let current = Current {
            channel: endpoint.connect_with_connector_lazy(connector.clone()),
            certificates,
            since: Instant::now(),
        };
        Self::Renewed(Arc::new(Renewed {
            endpoint,
            connector,
            age: security.renew_after,
            current: Mutex::new(current),
        }))
    }

    /// Where the next call goes.
    pub(crate) fn channel(&self) -> Channel {
        match self {
            Self::Same(channel) => channel.clone(),
            Self::Renewed(renewed) => renewed.channel(),
        }
    }
}

impl Renewed {
    fn channel(&self) -> Channel {
        // Every change leaves it whole.
        let mut current = self.current.lock().unwrap_or_else(|e| e.into_inner());
        // Once the service stops nobody follows the files any more, and nothing changes.
        let changed = current.certificates.has_changed().unwrap_or(false);
        if changed || current.since.elapsed() >= self.age {
            current.certificates.mark_unchanged();
            current.since = Instant::now();
            let connector = self.connector.clone();
            current.channel = self.endpoint.connect_with_connector_lazy(connector);
        }
        current.channel.clone()
    }
}

/// Makes one connection with TLS.
#[derive(Clone)]
enum Connector {
    /// With the certificates of the moment, whatever the address's scheme says.
    Mutual {
        certificates: watch::Receiver<Arc<Mutual>>,
        /// Who must be there, whatever the address.
        peer: ServerName<'static>,
    },
    /// To whoever has a certificate for the address's host.
    Public(Arc<ClientConfig>),
}

impl Connector {
    /// With what to connect to a host, and who must be there.
    fn with(&self, host: &str) -> io::Result<(Arc<ClientConfig>, ServerName<'static>)> {
        match self {
            Self::Mutual { certificates, peer } => {
                Ok((certificates.borrow().client.clone(), peer.clone()))
            }
            Self::Public(config) => {
                let name = ServerName::try_from(host.to_owned()).map_err(io::Error::other)?;
                Ok((config.clone(), name))
            }
        }
    }
}

type Connecting = Pin<Box<dyn Future<Output = io::Result<TokioIo<TlsStream<TcpStream>>>> + Send>>;

impl Service<http::Uri> for Connector {
    type Response = TokioIo<TlsStream<TcpStream>>;
    type Error = io::Error;
    type Future = Connecting;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: http::Uri) -> Connecting {
        let connector = self.clone();
        Box::pin(async move {
            let host = uri.host().unwrap_or_default();
            // An address of IPv6 stands in brackets in a URL and nowhere else.
            let host = host.trim_start_matches('[').trim_end_matches(']');
            let (config, peer) = connector.with(host)?;
            let default = if uri.scheme_str() == Some("https") {
                443
            } else {
                80
            };
            let port = uri.port_u16().unwrap_or(default);
            let stream = TcpStream::connect((host, port)).await?;
            stream.set_nodelay(true)?;
            let shaken = TlsConnector::from(config).connect(peer, stream).await?;
            Ok(TokioIo::new(shaken))
        })
    }
}
