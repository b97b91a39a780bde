//! TLS: between services with certificates on both sides, and at the public port with one.
//!
//! Certificates are files that are followed ([`follow`]); each new connection is made with what they hold then, so none
//! needs a restart. Sessions are never resumed between services: a certificate that is good no more would go on being.

mod files;
mod follow;
mod names;
mod public;
mod validity;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use lifecycle::Service;
use rustls::client::Resumption;
use rustls::crypto::CryptoProvider;
use rustls::server::NoServerSessionStorage;
use rustls::sign::SingleCertAndKey;
use rustls::version::TLS13;
use rustls::{ClientConfig, ServerConfig};
use settings::Millis;
use tokio::sync::watch;

use files::{Pem, Verifiers};
use follow::{Certified, Source};

pub use files::TlsError;
pub use names::Identity;
pub(crate) use names::may_call;
pub use public::Public;

const ALPN_HTTP2: &[u8] = b"h2";
const ALPN_HTTP1: &[u8] = b"http/1.1";

/// TLS between services, under `[tls]`.
#[derive(Debug, Clone, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TlsSettings {
    /// Holds `ca.pem`, `cert.pem` and `key.pem`; empty is no TLS.
    pub dir: PathBuf,
    /// How often the files are looked at.
    pub check_every: Millis,
    /// After this time, and after a change of the certificates, calls go out over a new connection.
    pub renew_after: Millis,
    /// No connection lives longer, whatever streams over it.
    pub cut_after: Millis,
}

impl TlsSettings {
    /// The first setting that cannot be, and what it must be.
    pub fn problem(&self) -> Option<(&'static str, &'static str)> {
        let some = |time: Millis| !time.duration().is_zero();
        if !some(self.check_every) {
            return Some(("tls.check_every", "must be longer than nothing"));
        }
        if !some(self.renew_after) {
            return Some(("tls.renew_after", "must be longer than nothing"));
        }
        if self.cut_after.duration() < self.renew_after.duration() {
            return Some(("tls.cut_after", "must be at least tls.renew_after"));
        }
        None
    }
}

/// What a service shows and trusts at present.
pub(crate) struct Mutual {
    pub(crate) client: Arc<ClientConfig>,
    pub(crate) server: Arc<ServerConfig>,
    ends: Timestamp,
}

impl Certified for Mutual {
    fn ends(&self) -> Timestamp {
        self.ends
    }
}

/// How a service speaks with others: in the clear, or with certificates. Cheap to clone.
#[derive(Clone)]
pub struct Security {
    pub(crate) mutual: Option<watch::Receiver<Arc<Mutual>>>,
    /// For addresses with https.
    pub(crate) public: Option<Arc<ClientConfig>>,
    pub(crate) renew_after: Duration,
    pub(crate) cut_after: Duration,
}

impl Security {
    /// In the clear, and nobody is asked who they are.
    pub fn off() -> Self {
        Self {
            mutual: None,
            public: None,
            renew_after: Duration::MAX,
            cut_after: Duration::MAX,
        }
    }

    /// As the settings of a service say; `who` it is must stand in its certificate. The files are followed until the service
    /// stops.
    ///
    /// # Errors
    /// When there should be certificates and they are not good.
    pub fn start(
        service: &Service,
        who: Identity,
        settings: &TlsSettings,
    ) -> Result<Self, TlsError> {
        if settings.dir.as_os_str().is_empty() {
            return Ok(Self::off());
        }
        let source = mutual(&settings.dir, who);
        let every = settings.check_every.duration();
        Ok(Self {
            mutual: Some(source.follow(service, every)?),
            public: None,
            renew_after: settings.renew_after.duration(),
            cut_after: settings.cut_after.duration(),
        })
    }

    /// With the certificates of a folder as they are now, for a program that ends soon.
    ///
    /// # Errors
    /// When they are not good.
    pub fn of_folder(dir: &Path, who: Identity) -> Result<Self, TlsError> {
        let (mutual, _) = mutual(dir, who).load()?;
        // The last value stays, although nobody can change it.
        let (_, mutual) = watch::channel(Arc::new(mutual));
        Ok(Self {
            mutual: Some(mutual),
            ..Self::off()
        })
    }

    /// Whether addresses with https can be reached.
    pub(crate) fn speaks_tls(&self) -> bool {
        self.mutual.is_some() || self.public.is_some()
    }
}

fn mutual(dir: &Path, who: Identity) -> Source<Mutual> {
    let (certificate, key, ca) = (
        dir.join("cert.pem"),
        dir.join("key.pem"),
        dir.join("ca.pem"),
    );
    let files = vec![certificate.clone(), key.clone(), ca.clone()];
    let provider = provider();
    let parse = move |contents: &[Vec<u8>]| {
        // As many as there are files.
        let [of_certificate, of_key, of_ca] = contents else {
            unreachable!("three files were read")
        };
        let certificate = pem(&certificate, of_certificate);
        let (key, ca) = (pem(&key, of_key), pem(&ca, of_ca));
        parse_mutual(&certificate, &key, &ca, who, &provider)
    };
    Source {
        name: "service",
        files,
        parse: Box::new(parse),
    }
}

fn parse_mutual(
    certificate: &Pem<'_>,
    key: &Pem<'_>,
    ca: &Pem<'_>,
    who: Identity,
    provider: &Arc<CryptoProvider>,
) -> Result<Mutual, TlsError> {
    let refused = |source| TlsError::Refused {
        path: ca.path.to_owned(),
        source,
    };
    let own = files::credentials(certificate, key, provider)?;
    let verifiers = Verifiers::new(files::roots(ca)?, provider).map_err(refused)?;
    let checked = verifiers.check(&own.key, who);
    checked.map_err(|source| TlsError::Untrusted {
        certificate: certificate.path.to_owned(),
        ca: ca.path.to_owned(),
        who,
        source,
    })?;
    let shown = Arc::new(SingleCertAndKey::from(own.key));
    let client = ClientConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(&[&TLS13])
        .map_err(refused)?
        .with_webpki_verifier(verifiers.of_servers);
    let mut client = client.with_client_cert_resolver(shown.clone());
    client.alpn_protocols = vec![ALPN_HTTP2.to_vec()];
    client.resumption = Resumption::disabled();
    let server = ServerConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(&[&TLS13])
        .map_err(refused)?
        .with_client_cert_verifier(verifiers.of_clients);
    let mut server = server.with_cert_resolver(shown);
    server.alpn_protocols = vec![ALPN_HTTP2.to_vec()];
    server.session_storage = Arc::new(NoServerSessionStorage {});
    server.send_tls13_tickets = 0;
    Ok(Mutual {
        client: Arc::new(client),
        server: Arc::new(server),
        ends: own.ends,
    })
}

fn pem<'a>(path: &'a Path, text: &'a [u8]) -> Pem<'a> {
    Pem { path, text }
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}
