//! Certificates on both sides: who is let in, what happens when they change, and that nobody without one is heard.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use contract::registry::registry_service_client::RegistryServiceClient;
use contract::registry::registry_service_server::{RegistryService, RegistryServiceServer};
use contract::registry::{
    ListModelsRequest, ListModelsResponse, RegisterVersionRequest, RegisterVersionResponse,
    SetTrafficRequest, SetTrafficResponse, WatchModelsRequest, WatchModelsResponse,
};
use lifecycle::Service;
use rpc::{Identity, Peer, PeerSettings, Security, TlsError, TlsSettings};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::broadcast;
use tokio_rustls::TlsConnector;
use tokio_stream::wrappers::BroadcastStream;
use tokio_stream::{Stream, StreamExt as _};
use tonic::{Code, Request, Response, Status};

/// How long anything that must happen may take.
const LIMIT: Duration = Duration::from_secs(30);
const LOOK: Duration = Duration::from_millis(10);

/// A CA of its own with everyone's certificates.
struct Certificates(tempfile::TempDir);

impl Certificates {
    fn make() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../../scripts/dev-certs.sh");
        let made = Command::new(script).arg(folder.path()).output().unwrap();
        assert!(made.status.success(), "{made:?}");
        Self(folder)
    }

    fn of(&self, who: Identity) -> PathBuf {
        let name = who.name().strip_suffix(".inkstone").unwrap();
        self.0.path().join(name)
    }

    fn ca(&self) -> PathBuf {
        self.0.path().join("ca")
    }

    /// Puts what another CA has issued where someone's own are, as a person would who replaces one file after the other.
    fn replace(&self, who: Identity, other: &Self) {
        for file in ["ca.pem", "cert.pem", "key.pem"] {
            let (from, to) = (other.of(who).join(file), self.of(who).join(file));
            std::fs::copy(from, to).unwrap();
        }
    }

    /// A certificate of the gateway that ended years ago.
    fn ended(&self) -> PathBuf {
        let folder = self.0.path().join("ended");
        std::fs::create_dir(&folder).unwrap();
        let own = self.of(Identity::Gateway);
        std::fs::copy(own.join("ca.pem"), folder.join("ca.pem")).unwrap();
        std::fs::copy(own.join("key.pem"), folder.join("key.pem")).unwrap();
        let config = "[ca]\ndefault_ca=own\n[own]\ndatabase=index\nnew_certs_dir=.\nrand_serial=yes\ndefault_md=sha256\n\
                      policy=any\nx509_extensions=names\n[any]\ncommonName=optional\n\
                      [names]\nsubjectAltName=DNS:gateway.inkstone\nextendedKeyUsage=serverAuth,clientAuth\n";
        std::fs::write(folder.join("config"), config).unwrap();
        std::fs::write(folder.join("index"), "").unwrap();
        let openssl = |arguments: &str| {
            let mut command = Command::new("openssl");
            command.args(arguments.split(' ')).current_dir(&folder);
            let ran = command.output().unwrap();
            assert!(ran.status.success(), "{ran:?}");
        };
        openssl("req -new -key key.pem -subj /CN=gateway -out request.pem");
        openssl(
            "ca -batch -notext -config config -cert ../ca/ca.pem -keyfile ../ca/key.pem -in request.pem -out cert.pem \
             -startdate 20200101000000Z -enddate 20200201000000Z",
        );
        folder
    }
}

fn settings(dir: PathBuf) -> TlsSettings {
    TlsSettings {
        dir,
        check_every: "20ms".parse().unwrap(),
        renew_after: "1h".parse().unwrap(),
        cut_after: "24h".parse().unwrap(),
    }
}

/// A registry whose streams say what the test says.
#[derive(Clone)]
struct Registry(broadcast::Sender<()>);

#[tonic::async_trait]
impl RegistryService for Registry {
    type WatchModelsStream =
        std::pin::Pin<Box<dyn Stream<Item = Result<WatchModelsResponse, Status>> + Send>>;

    async fn list_models(
        &self,
        _: Request<ListModelsRequest>,
    ) -> Result<Response<ListModelsResponse>, Status> {
        Ok(Response::new(ListModelsResponse::default()))
    }

    async fn watch_models(
        &self,
        _: Request<WatchModelsRequest>,
    ) -> Result<Response<Self::WatchModelsStream>, Status> {
        let news = BroadcastStream::new(self.0.subscribe());
        let news = news.map(|_| Ok(WatchModelsResponse::default()));
        Ok(Response::new(Box::pin(news)))
    }

    async fn register_version(
        &self,
        _: Request<RegisterVersionRequest>,
    ) -> Result<Response<RegisterVersionResponse>, Status> {
        Ok(Response::new(RegisterVersionResponse::default()))
    }

    async fn set_traffic(
        &self,
        _: Request<SetTrafficRequest>,
    ) -> Result<Response<SetTrafficResponse>, Status> {
        Ok(Response::new(SetTrafficResponse::default()))
    }
}

/// The registry with its certificates.
struct Server {
    service: Service,
    address: SocketAddr,
    news: broadcast::Sender<()>,
}

impl Server {
    async fn start(certificates: &Certificates, settings: TlsSettings) -> Self {
        let mut service = Service::new("test");
        let security = Security::start(&service, Identity::ModelRegistry, &settings).unwrap();
        assert_eq!(settings.dir, certificates.of(Identity::ModelRegistry));
        let (news, _) = broadcast::channel(16);
        let server = RegistryServiceServer::new(Registry(news.clone()));
        let routes = tonic::service::Routes::new(server);
        let any = "127.0.0.1:0".parse().unwrap();
        let address = security.serve(&mut service, any, routes).await.unwrap();
        Self {
            service,
            address,
            news,
        }
    }

    async fn stop(self) {
        assert!(self.service.stop(Duration::from_secs(10)).await);
    }
}

fn peer(security: &Security, address: SocketAddr) -> Peer {
    let mut settings = PeerSettings::new(format!("http://{address}"), "5s".parse().unwrap());
    settings.breaker.failures = 10_000;
    let peer = security.peer("registry", Identity::ModelRegistry, &settings);
    peer.unwrap()
}

/// The peer of a program that ends soon.
fn peer_of(dir: &Path, who: Identity, address: SocketAddr) -> Peer {
    peer(&Security::of_folder(dir, who).unwrap(), address)
}

async fn list(peer: &Peer) -> Result<(), Status> {
    let mut client = RegistryServiceClient::new(peer.clone());
    client.list_models(ListModelsRequest {}).await.map(drop)
}

/// Waits until `wanted` holds.
async fn until<F: Future<Output = bool>>(what: &str, mut wanted: impl FnMut() -> F) {
    let deadline = Instant::now() + LIMIT;
    while !wanted().await {
        assert!(Instant::now() < deadline, "never: {what}");
        tokio::time::sleep(LOOK).await;
    }
}

/// What a server says to someone with these certificates, or with none: whether it is anything at all.
async fn is_heard(address: SocketAddr, ca: &Path, own: Option<&Path>) -> bool {
    let mut roots = RootCertStore::empty();
    for root in CertificateDer::pem_file_iter(ca.join("ca.pem")).unwrap() {
        roots.add(root.unwrap()).unwrap();
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider);
    let config = config.with_safe_default_protocol_versions().unwrap();
    let config = config.with_root_certificates(roots);
    let mut config = match own {
        None => config.with_no_client_auth(),
        Some(own) => {
            let chain = CertificateDer::pem_file_iter(own.join("cert.pem")).unwrap();
            let key = PrivateKeyDer::from_pem_file(own.join("key.pem")).unwrap();
            let chain = chain.map(Result::unwrap).collect();
            config.with_client_auth_cert(chain, key).unwrap()
        }
    };
    config.alpn_protocols = vec![b"h2".to_vec()];
    let name = ServerName::try_from("model-registry.inkstone").unwrap();
    let stream = TcpStream::connect(address).await.unwrap();
    let shaking = TlsConnector::from(Arc::new(config)).connect(name, stream);
    let Ok(mut stream) = shaking.await else {
        return false;
    };
    // HTTP/2's first words (RFC 9113, 3.4), and no settings.
    let hello = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
    if stream.write_all(hello).await.is_err() {
        return false;
    }
    let mut answer = [0; 9];
    stream.read_exact(&mut answer).await.is_ok()
}

#[tokio::test]
async fn a_caller_is_let_in_by_the_name_in_its_certificate_and_to_what_that_name_may_call() {
    let certificates = Certificates::make();
    let own = settings(certificates.of(Identity::ModelRegistry));
    let server = Server::start(&certificates, own).await;
    let of = |who: Identity| peer_of(&certificates.of(who), who, server.address);
    for who in [Identity::Gateway, Identity::GpuWorker, Identity::Operator] {
        list(&of(who)).await.unwrap();
    }
    let refused = list(&of(Identity::Auth)).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied);
    let path = "auth.inkstone may not call /inkstone.registry.v1.RegistryService/ListModels";
    assert_eq!(refused.message(), path);
    let set = |peer: Peer| async move {
        let mut client = RegistryServiceClient::new(peer);
        client.set_traffic(SetTrafficRequest::default()).await
    };
    set(of(Identity::Operator)).await.unwrap();
    let refused = set(of(Identity::Gateway)).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied);
    server.stop().await;
}

#[tokio::test]
async fn without_a_certificate_with_a_foreign_one_and_with_one_that_has_ended_nobody_is_heard() {
    let certificates = Certificates::make();
    let foreign = Certificates::make();
    let own = settings(certificates.of(Identity::ModelRegistry));
    let server = Server::start(&certificates, own).await;
    let (address, ca) = (server.address, certificates.ca());
    let good = certificates.of(Identity::Gateway);
    assert!(is_heard(address, &ca, Some(&good)).await);
    assert!(!is_heard(address, &ca, None).await);
    let bad = foreign.of(Identity::Gateway);
    assert!(!is_heard(address, &ca, Some(&bad)).await);
    // Of the right CA, but for no service.
    let nameless = certificates.of(Identity::Gateway).with_file_name("public");
    assert!(!is_heard(address, &ca, Some(&nameless)).await);
    let ended = certificates.ended();
    assert!(!is_heard(address, &ca, Some(&ended)).await);
    let refused = Security::of_folder(&ended, Identity::Gateway);
    assert!(matches!(refused.err().unwrap(), TlsError::Ended { .. }));

    // In the clear.
    let clear = PeerSettings::new(format!("http://{address}"), "5s".parse().unwrap());
    let clear = rpc::peer("registry", &clear).unwrap();
    let unheard = list(&clear).await.unwrap_err();
    assert!(!contract::error::is_of_a_service(&unheard), "{unheard:?}");
    // And who is called is looked at as well.
    let fooled = list(&peer_of(&bad, Identity::Gateway, address)).await;
    assert_eq!(fooled.unwrap_err().code(), Code::Unavailable);
    let security = Security::of_folder(&good, Identity::Gateway).unwrap();
    let settings = PeerSettings::new(format!("http://{address}"), "5s".parse().unwrap());
    let other = security.peer("auth", Identity::Auth, &settings).unwrap();
    assert_eq!(list(&other).await.unwrap_err().code(), Code::Unavailable);
    server.stop().await;
}

#[tokio::test]
async fn new_certificates_are_in_use_without_a_restart_and_a_stream_goes_on() {
    let (before, after) = (Certificates::make(), Certificates::make());
    let own = settings(before.of(Identity::ModelRegistry));
    let server = Server::start(&before, own).await;
    let (road, connections) = counting_road(&server).await;
    let of_client = settings(before.of(Identity::Orchestrator));
    let security = Security::start(&server.service, Identity::Orchestrator, &of_client).unwrap();
    let client = peer(&security, road);
    let mut registry = RegistryServiceClient::new(client.clone());
    let watch = registry.watch_models(rpc::streaming(WatchModelsRequest {}));
    let mut stream = watch.await.unwrap().into_inner();
    server.news.send(()).unwrap();
    assert!(stream.message().await.unwrap().is_some());
    list(&client).await.unwrap();
    assert_eq!(connections.load(Ordering::SeqCst), 1);

    // Another CA altogether, so that neither side can go on with what it had.
    before.replace(Identity::ModelRegistry, &after);
    before.replace(Identity::Orchestrator, &after);
    let newcomer = after.of(Identity::Gateway);
    until("the server shows its new certificate", || async {
        list(&peer_of(&newcomer, Identity::Gateway, server.address))
            .await
            .is_ok()
    })
    .await;
    until("the client calls over a new connection", || async {
        let called = list(&client).await;
        called.is_ok() && connections.load(Ordering::SeqCst) >= 2
    })
    .await;
    server.news.send(()).unwrap();
    let heard = tokio::time::timeout(LIMIT, stream.message()).await;
    assert!(heard.unwrap().unwrap().is_some(), "the stream goes on");
    drop(stream);
    server.stop().await;
}

/// A way to the server on which connections are counted.
async fn counting_road(server: &Server) -> (SocketAddr, Arc<AtomicU32>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let road = listener.local_addr().unwrap();
    let connections = Arc::new(AtomicU32::new(0));
    let (count, address) = (connections.clone(), server.address);
    let tasks = server.service.tasks.clone();
    let stop = tasks.stop_token();
    server.service.tasks.job("road", async move {
        while let Some(Ok((mut from, _))) = stop.run_until_cancelled(listener.accept()).await {
            count.fetch_add(1, Ordering::SeqCst);
            let stop = stop.clone();
            tasks.job("connection", async move {
                let mut to = TcpStream::connect(address).await.unwrap();
                let copying = tokio::io::copy_bidirectional(&mut from, &mut to);
                // Either end may hang up as it likes.
                let _ = stop.run_until_cancelled(copying).await;
            });
        }
    });
    (road, connections)
}

#[tokio::test]
async fn callers_who_never_shake_hands_hold_nobody_up() {
    let certificates = Certificates::make();
    let own = settings(certificates.of(Identity::ModelRegistry));
    let server = Server::start(&certificates, own).await;
    let mut silent = Vec::new();
    for _ in 0..100 {
        silent.push(TcpStream::connect(server.address).await.unwrap());
    }
    let gateway = certificates.of(Identity::Gateway);
    list(&peer_of(&gateway, Identity::Gateway, server.address))
        .await
        .unwrap();
    // And when the service stops, nobody waits for them.
    server.stop().await;
}

#[tokio::test]
async fn no_connection_lives_longer_than_it_may_its_streams_included() {
    let certificates = Certificates::make();
    let own = TlsSettings {
        renew_after: "100ms".parse().unwrap(),
        cut_after: "300ms".parse().unwrap(),
        ..settings(certificates.of(Identity::ModelRegistry))
    };
    let server = Server::start(&certificates, own).await;
    let client = peer_of(
        &certificates.of(Identity::Orchestrator),
        Identity::Orchestrator,
        server.address,
    );
    let mut watch = RegistryServiceClient::new(client);
    let request = rpc::streaming(WatchModelsRequest {});
    let mut stream = watch.watch_models(request).await.unwrap().into_inner();
    let heard = tokio::time::timeout(LIMIT, stream.message()).await;
    assert!(heard.unwrap().is_err(), "the stream is cut");
    server.stop().await;
}

#[tokio::test]
async fn what_is_wrong_with_certificates_is_said_with_the_file_that_is_at_fault() {
    let certificates = Certificates::make();
    let own = certificates.of(Identity::Gateway);
    let problem = |who: Identity| {
        let error = Security::of_folder(&own, who).err().unwrap();
        lifecycle::chain(&error)
    };
    let other = problem(Identity::Auth);
    assert!(
        other.contains("cert.pem is not good for auth.inkstone"),
        "{other}"
    );
    let key = certificates.of(Identity::Auth).join("key.pem");
    std::fs::copy(key, own.join("key.pem")).unwrap();
    let key = problem(Identity::Gateway);
    assert!(key.contains("key.pem is not the key of"), "{key}");
    std::fs::write(own.join("key.pem"), "nothing").unwrap();
    let key = problem(Identity::Gateway);
    assert!(key.contains("key.pem must hold a private key"), "{key}");
    std::fs::write(own.join("cert.pem"), "").unwrap();
    let none = problem(Identity::Gateway);
    assert!(none.contains("cert.pem must hold a certificate"), "{none}");
    std::fs::remove_file(own.join("ca.pem")).unwrap();
    let missing = problem(Identity::Gateway);
    assert!(
        missing.contains("cannot read") && missing.contains("ca.pem"),
        "{missing}"
    );

    let https = PeerSettings::new("https://registry:7003", "5s".parse().unwrap());
    let error = rpc::peer("registry", &https).err().unwrap().to_string();
    assert!(
        error.contains("registry.url") && error.contains("tls.dir"),
        "{error}"
    );
}
