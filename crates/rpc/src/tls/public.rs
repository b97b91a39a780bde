//! TLS with one certificate: the public port's, and those who call it.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use lifecycle::Service;
use rustls::crypto::CryptoProvider;
use rustls::sign::SingleCertAndKey;
use rustls::version::{TLS12, TLS13};
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use super::files::{self, Pem, TlsError};
use super::follow::{Certified, Source};
use super::{ALPN_HTTP1, ALPN_HTTP2, Security, pem, provider};

/// What a port shows to a public that has no certificates: HTTP/2 and HTTP/1.1 over TLS.
pub struct Public {
    config: Arc<ServerConfig>,
    ends: Timestamp,
}

impl Certified for Public {
    fn ends(&self) -> Timestamp {
        self.ends
    }
}

impl Public {
    /// The certificate in two files, followed until the service stops.
    ///
    /// # Errors
    /// When they are not good now.
    pub fn follow(
        service: &Service,
        certificate: &Path,
        key: &Path,
        every: Duration,
    ) -> Result<watch::Receiver<Arc<Self>>, TlsError> {
        let (certificate, key) = (certificate.to_owned(), key.to_owned());
        let files = vec![certificate.clone(), key.clone()];
        let provider = provider();
        let parse = move |contents: &[Vec<u8>]| {
            let [of_certificate, of_key] = contents else {
                unreachable!("two files were read")
            };
            let certificate = pem(&certificate, of_certificate);
            parse_public(&certificate, &pem(&key, of_key), &provider)
        };
        let source = Source {
            name: "public",
            files,
            parse: Box::new(parse),
        };
        source.follow(service, every)
    }

    /// Shakes hands with a caller, for as long as the caller takes: bound it.
    ///
    /// # Errors
    /// When the caller speaks no TLS, or none that is good.
    pub async fn accept(&self, stream: TcpStream) -> io::Result<TlsStream<TcpStream>> {
        let acceptor = TlsAcceptor::from(self.config.clone());
        acceptor.accept(stream).await
    }
}

fn parse_public(
    certificate: &Pem<'_>,
    key: &Pem<'_>,
    provider: &Arc<CryptoProvider>,
) -> Result<Public, TlsError> {
    let own = files::credentials(certificate, key, provider)?;
    let server = ServerConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(&[&TLS13, &TLS12])
        .map_err(|source| TlsError::Refused {
            path: certificate.path.to_owned(),
            source,
        })?;
    let shown = Arc::new(SingleCertAndKey::from(own.key));
    let mut config = server.with_no_client_auth().with_cert_resolver(shown);
    config.alpn_protocols = vec![ALPN_HTTP2.to_vec(), ALPN_HTTP1.to_vec()];
    Ok(Public {
        config: Arc::new(config),
        ends: own.ends,
    })
}

impl Security {
    /// For addresses with https: whoever is there must have a certificate for its host, issued by one of those in the file
    /// `ca`, or without it by one whom this machine trusts. Other addresses are reached in the clear.
    ///
    /// # Errors
    /// When the file is not good.
    pub fn of_public(ca: Option<&Path>) -> Result<Self, TlsError> {
        let roots = match ca {
            Some(path) => files::roots(&pem(path, &files::read(path)?))?,
            None => {
                let mut roots = RootCertStore::empty();
                // Those that cannot be read vouch for nobody.
                roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
                roots
            }
        };
        let client = ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&TLS13, &TLS12])
            .map_err(|source| TlsError::Refused {
                path: ca.map(Path::to_owned).unwrap_or_default(),
                source,
            })?;
        let mut client = client.with_root_certificates(roots).with_no_client_auth();
        client.alpn_protocols = vec![ALPN_HTTP2.to_vec()];
        Ok(Self {
            public: Some(Arc::new(client)),
            ..Self::off()
        })
    }
}
