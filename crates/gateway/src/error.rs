//! Why the gateway did not start.

use std::net::SocketAddr;

/// Why the gateway did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The public address cannot be listened on.
    #[error("cannot listen on {address} (setting http.listen)")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// The certificates for TLS between services are not good.
    #[error("setting tls.dir")]
    Tls(#[from] rpc::TlsError),
    /// The certificate of the public port is not good.
    #[error("settings http.tls.cert and http.tls.key")]
    HttpTls(#[source] rpc::TlsError),
    /// A service's URL is not one.
    #[error("cannot make a channel to {peer}")]
    Peer {
        /// The section of the settings.
        peer: &'static str,
        /// What is wrong.
        #[source]
        source: rpc::RpcError,
    },
    /// The object store cannot be opened as it is set up.
    #[error("cannot open the object store")]
    Storage(#[from] storage::StorageError),
    /// Nothing can be fetched from addresses that callers name.
    #[error(transparent)]
    Egress(#[from] egress::EgressSetupError),
    /// The admin port could not be opened.
    #[error(transparent)]
    Admin(#[from] lifecycle::admin::AdminError),
    /// The contract's own descriptors cannot be read: this build is broken.
    #[error("cannot serve gRPC reflection")]
    Reflection(#[source] tonic_reflection::server::Error),
}
