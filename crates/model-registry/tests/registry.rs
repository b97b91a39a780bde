//! The registry against a real broker and a real object store, over gRPC where that is what others see.
#![allow(
    clippy::unwrap_used,
    reason = "a test that cannot set itself up has failed"
)]

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use contract::registry as proto;
use contract::registry::registry_service_client::RegistryServiceClient;
use contract::{ErrorCode, Failure};
use lifecycle::Service;
use messaging::{Broker, BrokerSettings};
use model_registry::{Registry, Settings, StartError};
use nats_server::NatsServer;
use rpc::{Peer, PeerSettings};
use storage::{Key, Storage, sha256_hex};
use telemetry::Telemetry;

type Client = RegistryServiceClient<Peer>;

/// A broker and a store that go with the test.
struct Place {
    nats: NatsServer,
    folder: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        Self {
            nats: NatsServer::scratch().unwrap(),
            folder: tempfile::tempdir().unwrap(),
        }
    }

    fn settings(&self, more: &[(&str, String)]) -> Settings {
        let store = format!("file://{}/store", self.folder.path().display());
        let mut overrides = vec![
            ("broker.url", self.nats.url()),
            ("storage.url", store),
            ("grpc.listen", "127.0.0.1:0".to_owned()),
            ("process.admin_listen", "127.0.0.1:0".to_owned()),
        ];
        overrides.extend_from_slice(more);
        settings::load(None, &overrides).unwrap()
    }

    async fn start(&self, more: &[(&str, String)]) -> Result<Service, StartError> {
        let settings = self.settings(more);
        // One a process: each test has its own under nextest.
        let telemetry = Telemetry::start("test", &settings.telemetry).unwrap();
        model_registry::start(settings, telemetry).await
    }

    async fn registry(&self) -> Registry {
        let settings = self.settings(&[]);
        let broker: &BrokerSettings = &settings.broker;
        let broker = Broker::connect(broker, "test").await.unwrap();
        let storage = Storage::open(&settings.storage).unwrap();
        Registry::open(&broker, storage).await.unwrap()
    }

    fn storage(&self) -> Storage {
        Storage::open(&self.settings(&[]).storage).unwrap()
    }

    /// A small model folder with these aliases, whose index holds `content`.
    fn model(&self, name: &str, version: &str, aliases: &[&str], content: &str) -> PathBuf {
        let folder = self
            .folder
            .path()
            .join(format!("{name}-{version}-{content}"));
        fs::create_dir_all(&folder).unwrap();
        let manifest = serde_json::json!({
            "name": name, "version": version, "aliases": aliases,
            "defaults": {"width": 128, "height": 128, "steps": 12, "guidance_scale": 2.0},
            "limits": {"min_side": 64, "max_side": 256, "multiple": 32, "max_steps": 100,
                       "max_guidance_scale": 20.0}
        });
        fs::write(folder.join("inkstone.json"), manifest.to_string()).unwrap();
        let index = serde_json::json!({ "_class_name": content });
        fs::write(folder.join("model_index.json"), index.to_string()).unwrap();
        folder
    }
}

fn demo() -> PathBuf {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../assets/models/inkstone-demo");
    folder.canonicalize().unwrap()
}

fn client(service: &Service) -> Client {
    let url = format!("http://{}", service.address("grpc"));
    let settings = PeerSettings::new(url, "30s".parse().unwrap());
    let peer = rpc::peer("registry", &settings).unwrap();
    rpc::with_limits!(RegistryServiceClient::new(peer))
}

async fn register(client: &mut Client, folder: &Path) -> Result<proto::Model, Failure> {
    let folder = folder.to_str().unwrap().to_owned();
    let request = proto::RegisterVersionRequest { folder };
    let response = client.register_version(request).await;
    response
        .map(|r| r.into_inner().model.unwrap())
        .map_err(Failure::from)
}

async fn list(client: &mut Client) -> Vec<proto::Model> {
    let models = client
        .list_models(proto::ListModelsRequest {})
        .await
        .unwrap();
    models.into_inner().models
}

fn weights(model: &proto::Model) -> Vec<(&str, u32)> {
    let versions = model.versions.iter();
    versions.map(|v| (v.version.as_str(), v.weight)).collect()
}

#[tokio::test]
async fn the_demo_model_is_there_from_the_start_and_its_files_read_back() {
    let place = Place::new();
    let bootstrap = demo().display().to_string();
    let service = place
        .start(&[("models.bootstrap", bootstrap)])
        .await
        .unwrap();
    assert!(
        service.health.problem().is_none(),
        "{:?}",
        service.health.problem()
    );
    let mut client = client(&service);
    let models = list(&mut client).await;
    assert_eq!(models.len(), 1);
    let model = &models[0];
    assert_eq!(model.name, "inkstone-demo");
    assert!(model.aliases.contains(&"t2i-basic".to_owned()));
    assert_eq!(weights(model), [("1", 100)]);
    let version = &model.versions[0];
    assert_eq!(version.profile.as_ref().unwrap().multiple, 32);
    for artifact in &version.artifacts {
        let key = Key::stored(&artifact.key).unwrap();
        let bytes = place
            .storage()
            .get(&key, artifact.size_bytes)
            .await
            .unwrap();
        assert_eq!(sha256_hex(&bytes), artifact.sha256, "{}", artifact.path);
    }
    let has = |path: &str| version.artifacts.iter().any(|a| a.path == path);
    assert!(has("unet/config.json") && !has("MODEL_CARD.md"));
    let again = register(&mut client, &demo()).await.unwrap();
    assert_eq!(again, *model, "the same files again change nothing");
    assert!(service.stop(Duration::from_secs(5)).await);
}

#[tokio::test]
async fn refusals_over_grpc_name_the_field() {
    let place = Place::new();
    let service = place.start(&[]).await.unwrap();
    let mut client = client(&service);
    register(&mut client, &place.model("a", "1", &["fast"], "X"))
        .await
        .unwrap();

    let other_bytes = place.model("a", "1", &["fast"], "Y");
    let alias_taken = place.model("b", "1", &["fast"], "X");
    let alias_is_a_model = place.model("c", "1", &["a"], "X");
    let model_is_an_alias = place.model("fast", "1", &[], "X");
    let damaged = place.model("d", "1", &[], "X");
    fs::write(damaged.join("inkstone.json"), r#"{"name": 3}"#).unwrap();
    let cases = [
        (other_bytes, "version", "immutable"),
        (alias_taken, "aliases", "fast already means the model a"),
        (alias_is_a_model, "aliases", "a already means the model a"),
        (
            model_is_an_alias,
            "aliases",
            "fast already means the model a",
        ),
        (damaged, "folder", "inkstone.json"),
        (PathBuf::from("models/a"), "folder", "absolute"),
        (PathBuf::from("/nowhere"), "folder", "/nowhere"),
    ];
    for (folder, field, word) in cases {
        let failure = register(&mut client, &folder).await.unwrap_err();
        assert_eq!(failure.code, ErrorCode::InvalidArgument, "{failure}");
        assert_eq!(failure.field.as_deref(), Some(field), "{failure}");
        assert!(failure.message.contains(word), "{failure}");
    }
    assert_eq!(list(&mut client).await.len(), 1, "nothing was published");

    let request = proto::SetTrafficRequest {
        model: "nobody".to_owned(),
        weights: Vec::new(),
    };
    let failure = Failure::from(client.set_traffic(request).await.unwrap_err());
    assert_eq!(failure.code, ErrorCode::ModelNotFound);
}

#[tokio::test]
async fn who_watches_sees_a_new_version_and_its_traffic_and_the_end() {
    let place = Place::new();
    let service = place.start(&[]).await.unwrap();
    let mut client = client(&service);
    register(&mut client, &place.model("a", "1", &[], "X"))
        .await
        .unwrap();
    let watched = client
        .watch_models(rpc::streaming(proto::WatchModelsRequest {}))
        .await;
    let mut watched = watched.unwrap().into_inner();
    register(&mut client, &place.model("a", "2", &[], "Y"))
        .await
        .unwrap();
    let traffic = proto::VersionWeight {
        version: "2".to_owned(),
        weight: 5,
    };
    let request = proto::SetTrafficRequest {
        model: "a".to_owned(),
        weights: vec![traffic],
    };
    client.set_traffic(request).await.unwrap();

    let mut seen = Vec::new();
    let reading = async {
        while let Some(now) = watched.message().await.unwrap() {
            let model = now.models.into_iter().find(|m| m.name == "a");
            seen.extend(model);
            if seen
                .last()
                .is_some_and(|m| weights(m) == [("1", 0), ("2", 5)])
            {
                break;
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(10), reading)
        .await
        .unwrap();
    assert!(
        seen.windows(2).all(|w| w[0] != w[1]),
        "only changes are sent"
    );

    assert!(service.stop(Duration::from_secs(5)).await);
    let rest = async { while let Ok(Some(_)) = watched.message().await {} };
    tokio::time::timeout(Duration::from_secs(5), rest)
        .await
        .unwrap();
}

#[tokio::test]
async fn two_registries_that_race_end_with_one_record() {
    let place = Place::new();
    let (one, two) = (place.registry().await, place.registry().await);
    let folder = place.model("a", "1", &["fast"], "X");
    let (first, second) = tokio::join!(one.register(folder.clone()), two.register(folder));
    let (first, second) = (first.unwrap().0, second.unwrap().0);
    assert_eq!(first, second);
    assert_eq!(first.versions.len(), 1);

    // Different versions at the same moment: both are there, and one alone takes the traffic.
    let (v2, v3) = (
        place.model("a", "2", &[], "Y"),
        place.model("a", "3", &[], "Z"),
    );
    let (second, third) = tokio::join!(one.register(v2), two.register(v3));
    second.unwrap();
    third.unwrap();
    let models = one.models().await.unwrap();
    let versions = &models["a"].versions;
    assert_eq!(versions.len(), 3);
    assert_eq!(versions.iter().filter(|v| v.weight > 0).count(), 1);
}

#[tokio::test]
async fn two_models_that_race_for_an_alias_do_not_both_get_it() {
    let place = Place::new();
    let (one, two) = (place.registry().await, place.registry().await);
    let (a, b) = (
        place.model("a", "1", &["fast"], "X"),
        place.model("b", "1", &["fast"], "X"),
    );
    let (a, b) = tokio::join!(one.register(a), two.register(b));
    assert_eq!(usize::from(a.is_ok()) + usize::from(b.is_ok()), 1);
    assert_eq!(one.models().await.unwrap().len(), 1);
}

#[tokio::test]
async fn registering_again_puts_back_an_object_that_went_missing() {
    let place = Place::new();
    let registry = place.registry().await;
    let folder = place.model("a", "1", &[], "X");
    let (model, _) = registry.register(folder.clone()).await.unwrap();
    let key = Key::artifact(&model.versions[0].artifacts[0].sha256).unwrap();
    place.storage().delete(&key).await.unwrap();
    registry.register(folder).await.unwrap();
    assert!(place.storage().size(&key).await.unwrap().is_some());
}

#[tokio::test]
async fn registering_again_puts_back_an_object_that_was_damaged_without_changing_its_size() {
    let place = Place::new();
    let registry = place.registry().await;
    let folder = place.model("a", "1", &[], "X");
    let (model, _) = registry.register(folder.clone()).await.unwrap();
    let artifact = &model.versions[0].artifacts[0];
    let key = Key::artifact(&artifact.sha256).unwrap();
    let damaged = vec![0; artifact.size_bytes as usize];
    place.storage().put(&key, damaged.into()).await.unwrap();
    registry.register(folder).await.unwrap();
    let stored = place.storage().get(&key, artifact.size_bytes).await;
    assert_eq!(sha256_hex(&stored.unwrap()), artifact.sha256);
}

#[tokio::test]
async fn a_damaged_bootstrap_folder_stops_the_start_with_folder_and_file() {
    let place = Place::new();
    let folder = place.model("a", "1", &[], "X");
    let manifest = fs::read_to_string(folder.join("inkstone.json")).unwrap();
    let damaged = manifest.replace("\"width\":128", "\"width\":100");
    fs::write(folder.join("inkstone.json"), damaged).unwrap();
    let bootstrap = [("models.bootstrap", folder.display().to_string())];
    let Err(error) = place.start(&bootstrap).await else {
        panic!("it started");
    };
    let cause = std::error::Error::source(&error).unwrap().to_string();
    assert!(
        error.to_string().contains(&*folder.display().to_string()),
        "{error}"
    );
    assert!(
        cause.contains("inkstone.json") && cause.contains("defaults.width"),
        "{cause}"
    );
}

#[tokio::test]
async fn a_stopped_broker_is_unavailable_and_registering_works_after_it_is_back() {
    let mut place = Place::new();
    let service = place.start(&[]).await.unwrap();
    let mut client = client(&service);
    let folder = place.model("a", "1", &[], "X");
    place.nats.kill();
    let failure = register(&mut client, &folder).await.unwrap_err();
    assert_eq!(failure.code, ErrorCode::Unavailable, "{failure}");
    assert!(failure.retry_after.is_some());
    place.nats.restart().unwrap();
    let deadline = tokio::time::Instant::now() + Duration::from_secs(20);
    while let Err(failure) = register(&mut client, &folder).await {
        assert!(tokio::time::Instant::now() < deadline, "{failure}");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}
