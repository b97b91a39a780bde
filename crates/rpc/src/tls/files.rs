//! Certificates and keys out of PEM files, checked before anyone is shown them.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use jiff::Timestamp;
use rustls::RootCertStore;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::ServerCertVerifier as _;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::ClientCertVerifier;
use rustls::sign::CertifiedKey;

use super::names::Identity;
use super::validity;

/// The largest file that is read; a chain with its keys has a few KiB.
const MAX_FILE_BYTES: u64 = 1 << 20;

/// Why certificates cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// A file does not hold what it should.
    #[error("{} must hold {expected} in PEM", path.display())]
    Content {
        /// The file.
        path: PathBuf,
        /// What belongs in it.
        expected: &'static str,
    },
    /// The key is not that of the certificate, or of a kind that is not known.
    #[error("{} is not the key of {}", key.display(), certificate.display())]
    Key {
        /// The key's file.
        key: PathBuf,
        /// The certificate's file.
        certificate: PathBuf,
        /// What the library says.
        #[source]
        source: rustls::Error,
    },
    /// The certificate is not good any more.
    #[error("{} ended at {ended}", path.display())]
    Ended {
        /// The certificate's file.
        path: PathBuf,
        /// When.
        ended: Timestamp,
    },
    /// The certificate was not issued by one of those in the CA's file, or not for this.
    #[error("{} is not good for {who} by what is in {}", certificate.display(), ca.display())]
    Untrusted {
        /// The certificate's file.
        certificate: PathBuf,
        /// The CA's file.
        ca: PathBuf,
        /// Whom it should name.
        who: Identity,
        /// What is wrong with it.
        #[source]
        source: rustls::Error,
    },
    /// The library takes none of it.
    #[error("cannot set TLS up with {}", path.display())]
    Refused {
        /// The file, or the folder.
        path: PathBuf,
        /// Why not.
        #[source]
        source: rustls::Error,
    },
}

/// A file and what was in it.
pub(super) struct Pem<'a> {
    pub(super) path: &'a Path,
    pub(super) text: &'a [u8],
}

/// A certificate with its key.
pub(super) struct Credentials {
    pub(super) key: CertifiedKey,
    /// The last moment at which it is good.
    pub(super) ends: Timestamp,
}

/// Reads a file that should be small.
pub(super) fn read(path: &Path) -> Result<Vec<u8>, TlsError> {
    use std::io::Read as _;
    let failed = |source| TlsError::Read {
        path: path.to_owned(),
        source,
    };
    let file = std::fs::File::open(path).map_err(failed)?;
    let mut text = Vec::new();
    let mut file = file.take(MAX_FILE_BYTES);
    file.read_to_end(&mut text).map_err(failed)?;
    Ok(text)
}

/// The certificate with its intermediates, leaf first, and the key that goes with it.
pub(super) fn credentials(
    certificate: &Pem<'_>,
    key: &Pem<'_>,
    provider: &CryptoProvider,
) -> Result<Credentials, TlsError> {
    let content = |pem: &Pem<'_>, expected| TlsError::Content {
        path: pem.path.to_owned(),
        expected,
    };
    let no_chain = || {
        content(
            certificate,
            "a certificate, and the intermediate ones after it",
        )
    };
    let chain = certificates(certificate).ok_or_else(no_chain)?;
    let ends = chain.first().and_then(|leaf| validity::not_after(leaf));
    let ends = ends.ok_or_else(no_chain)?;
    if ends < Timestamp::now() {
        return Err(TlsError::Ended {
            path: certificate.path.to_owned(),
            ended: ends,
        });
    }
    let private = PrivateKeyDer::from_pem_slice(key.text);
    let private = private.map_err(|_| content(key, "a private key"))?;
    let pair = CertifiedKey::from_der(chain, private, provider);
    let key = pair.map_err(|source| TlsError::Key {
        key: key.path.to_owned(),
        certificate: certificate.path.to_owned(),
        source,
    })?;
    Ok(Credentials { key, ends })
}

/// The certificates of those who may issue others.
pub(super) fn roots(ca: &Pem<'_>) -> Result<RootCertStore, TlsError> {
    let path = || ca.path.to_owned();
    let found = certificates(ca).ok_or_else(|| TlsError::Content {
        path: path(),
        expected: "one or more certificates of a CA",
    })?;
    let mut roots = RootCertStore::empty();
    for one in found {
        let added = roots.add(one);
        added.map_err(|source| TlsError::Refused {
            path: path(),
            source,
        })?;
    }
    Ok(roots)
}

/// At least one certificate, and nothing that is broken.
fn certificates(pem: &Pem<'_>) -> Option<Vec<CertificateDer<'static>>> {
    let all = CertificateDer::pem_slice_iter(pem.text);
    let all = all.collect::<Result<Vec<_>, _>>().ok()?;
    Some(all).filter(|all| !all.is_empty())
}

/// Who verifies those that call, and those that are called.
pub(super) struct Verifiers {
    pub(super) of_clients: Arc<dyn ClientCertVerifier>,
    pub(super) of_servers: Arc<WebPkiServerVerifier>,
}

impl Verifiers {
    pub(super) fn new(
        roots: RootCertStore,
        provider: &Arc<CryptoProvider>,
    ) -> Result<Self, rustls::Error> {
        let roots = Arc::new(roots);
        // Both fail only for want of a root, or for revocation lists, of which there are none.
        let other =
            |error: rustls::server::VerifierBuilderError| rustls::Error::General(error.to_string());
        let clients =
            WebPkiClientVerifier::builder_with_provider(roots.clone(), provider.clone()).build();
        let servers = WebPkiServerVerifier::builder_with_provider(roots, provider.clone()).build();
        Ok(Self {
            of_clients: clients.map_err(other)?,
            of_servers: servers.map_err(other)?,
        })
    }

    /// Whether peers who trust the same CA will take this certificate for `who`, in both directions. Better to know before
    /// it is shown to all of them.
    pub(super) fn check(&self, key: &CertifiedKey, who: Identity) -> Result<(), rustls::Error> {
        let Some((leaf, intermediates)) = key.cert.split_first() else {
            return Err(rustls::Error::NoCertificatesPresented);
        };
        let (now, name) = (UnixTime::now(), who.server_name());
        self.of_servers
            .verify_server_cert(leaf, intermediates, &name, &[], now)?;
        self.of_clients
            .verify_client_cert(leaf, intermediates, now)?;
        Ok(())
    }
}
