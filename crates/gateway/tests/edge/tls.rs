//! The public port with a certificate of its own.

use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http_body_util::{BodyExt as _, Empty};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::Edge;

/// How long anything that must happen may take.
const LIMIT: Duration = Duration::from_secs(30);

fn make(folder: &Path, renew: bool) {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../../scripts/dev-certs.sh");
    let mut command = Command::new(script);
    command
        .arg(folder)
        .env("RENEW", if renew { "1" } else { "" });
    let made = command.output().unwrap();
    assert!(made.status.success(), "{made:?}");
}

/// A gateway with TLS, and the folder of its certificates.
async fn start(overrides: &[(&str, &str)]) -> (Edge, tempfile::TempDir) {
    let folder = tempfile::tempdir().unwrap();
    make(folder.path(), false);
    let path = |name: &str| {
        folder
            .path()
            .join("public")
            .join(name)
            .display()
            .to_string()
    };
    let (cert, key) = (path("cert.pem"), path("key.pem"));
    let mut all = vec![
        ("http.tls.cert", cert.as_str()),
        ("http.tls.key", key.as_str()),
        ("http.tls.check_every", "20ms"),
    ];
    all.extend(overrides);
    (Edge::start(&all).await, folder)
}

/// Shakes hands as a client that speaks these protocols.
async fn shake(edge: &Edge, folder: &Path, protocols: &[&str]) -> TlsStream<TcpStream> {
    let mut roots = RootCertStore::empty();
    let ca = CertificateDer::from_pem_file(folder.join("ca/ca.pem")).unwrap();
    roots.add(ca).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider);
    let config = config.with_safe_default_protocol_versions().unwrap();
    let mut config = config.with_root_certificates(roots).with_no_client_auth();
    config.alpn_protocols = protocols.iter().map(|p| p.as_bytes().to_vec()).collect();
    let stream = TcpStream::connect(edge.address).await.unwrap();
    let name = ServerName::try_from("localhost").unwrap();
    let connector = TlsConnector::from(Arc::new(config));
    connector.connect(name, stream).await.unwrap()
}

fn chosen(stream: &TlsStream<TcpStream>) -> Option<&[u8]> {
    stream.get_ref().1.alpn_protocol()
}

#[tokio::test]
async fn over_tls_a_client_has_the_protocol_that_it_chooses_and_in_the_clear_none() {
    let (edge, folder) = start(&[]).await;
    let stream = shake(&edge, folder.path(), &["h2", "http/1.1"]).await;
    assert_eq!(chosen(&stream), Some(&b"h2"[..]));
    let io = TokioIo::new(stream);
    let shaken = hyper::client::conn::http2::handshake(TokioExecutor::new(), io).await;
    let (mut sender, connection) = shaken.unwrap();
    edge.service.tasks.job("client", async move {
        let _ = connection.await;
    });
    let request = hyper::Request::get("https://localhost/healthz");
    let request = request.body(Empty::<bytes::Bytes>::new()).unwrap();
    let response = sender.send_request(request).await.unwrap();
    assert_eq!(response.status(), 200);
    let body = response.into_body().collect().await.unwrap().to_bytes();
    assert!(body.starts_with(br#"{"status":"ok""#));
    drop(sender);

    let hello = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
    let mut stream = shake(&edge, folder.path(), &["http/1.1"]).await;
    assert_eq!(chosen(&stream), Some(&b"http/1.1"[..]));
    stream.write_all(hello).await.unwrap();
    let mut answer = String::new();
    // Not every client says good-bye in TLS's own words.
    let _ = stream.read_to_string(&mut answer).await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");

    let mut clear = TcpStream::connect(edge.address).await.unwrap();
    clear.write_all(hello).await.unwrap();
    let mut answer = Vec::new();
    let _ = clear.read_to_end(&mut answer).await;
    assert!(!answer.starts_with(b"HTTP"), "{answer:?}");
    edge.stop().await;
}

#[tokio::test]
async fn a_handshake_that_does_not_come_is_cut_off_and_takes_a_connections_place_meanwhile() {
    let (edge, folder) = start(&[
        ("http.max_connections", "1"),
        ("http.tls.handshake_timeout", "300ms"),
    ])
    .await;
    let mut silent = TcpStream::connect(edge.address).await.unwrap();
    // Waits for the only place there is, and gets it.
    let next = tokio::time::timeout(LIMIT, shake(&edge, folder.path(), &["h2"])).await;
    let mut byte = [0];
    assert_eq!(
        silent.read(&mut byte).await.unwrap_or(0),
        0,
        "it is cut off"
    );
    drop(next.unwrap());
    edge.stop().await;
}

#[tokio::test]
async fn a_new_certificate_is_shown_without_a_restart() {
    let (edge, folder) = start(&[]).await;
    let shown = || async {
        let stream = shake(&edge, folder.path(), &["h2"]).await;
        let chain = stream.get_ref().1.peer_certificates().unwrap();
        chain[0].as_ref().to_vec()
    };
    let first = shown().await;
    make(folder.path(), true);
    let file = CertificateDer::from_pem_file(folder.path().join("public/cert.pem")).unwrap();
    assert_ne!(file.as_ref(), first);
    let deadline = Instant::now() + LIMIT;
    while shown().await != file.as_ref() {
        assert!(Instant::now() < deadline, "the old one is still shown");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    edge.stop().await;
}
