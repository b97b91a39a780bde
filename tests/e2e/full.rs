//! A broker that has no room left, by its own limit or because its disk is full: what is new is refused until there is some, and nothing that
//! was accepted is lost.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Child;
use std::time::{Duration, Instant};

use contract::v1::Task;
use e2e::small_disk::{self, NEEDS_NAMESPACES, NEEDS_UNSHARE, unshared};
use e2e::{LIMIT, Platform, SERVICES, agent};
use messaging::{Broker, Outgoing, RetentionPolicy, StreamSpec};
use nats_server::{NatsServer, Options};
use serde_json::{Value, json};

use crate::{assert_whole, long_picture, short_picture};

/// What the broker may hold: somewhat more than the streams set aside.
const ROOM: u64 = 288 << 20;
/// How much of it one message takes.
const MESSAGE: usize = 4 << 20;
const FILLER: &str = "FILLER";

/// Takes all the room that is left, and more: what the streams have set aside for themselves is no use to them then, as on a disk that others
/// have filled. The sequence of the last message.
async fn fill(broker: &Broker) -> u64 {
    let filler = StreamSpec {
        name: FILLER,
        subjects: &["filler"],
        retention: RetentionPolicy::Limits,
        max_messages: -1,
        max_messages_per_subject: -1,
        shares: false,
        max_message_size: -1,
        max_age: Duration::ZERO,
        max_bytes: -1,
        refuse_when_full: true,
        batches: false,
        duplicate_window: Duration::from_secs(1),
        republish: None,
    };
    broker.ensure_stream(&filler).await.unwrap();
    let mut last = 0;
    let refused = loop {
        let message = Outgoing {
            subject: "filler".to_owned(),
            id: None,
            headers: Vec::new(),
            payload: vec![0; MESSAGE].into(),
        };
        match broker.queue(FILLER).send(message).await {
            Ok(sequence) => last = sequence,
            Err(error) => break format!("{error:?}"),
        }
        assert!(last <= ROOM / MESSAGE as u64, "it must be full by now");
    };
    assert!(refused.contains("insufficient resources"), "{refused}");
    last
}

fn assert_refused(platform: &Platform) {
    let mut refused = agent()
        .post(format!("{}/v1/tasks", platform.url()))
        .header("authorization", platform.authorization())
        .send_json(json!({"prompt": "a 3d cat"}))
        .unwrap();
    let problem: Value = refused.body_mut().read_json().unwrap();
    assert_eq!(refused.status(), 503, "{problem}");
    assert_eq!(problem["code"], "unavailable", "{problem}");
    assert!(refused.headers().contains_key("retry-after"), "{problem}");
}

/// Submits a task as a caller does who tries again when it is told that it may.
async fn submit_patiently(platform: &Platform) -> Task {
    let deadline = Instant::now() + LIMIT;
    loop {
        match platform.submit(short_picture()).await {
            Ok(task) => return task,
            Err(status) if Instant::now() >= deadline => panic!("{status:?}"),
            Err(_) => tokio::time::sleep(Duration::from_millis(200)).await,
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_without_room_refuses_submissions_and_loses_nothing_that_was_accepted() {
    let settings = [
        ("INKSTONE_ORCHESTRATOR__REFUNDS__MAX_SIZE", "1MiB"),
        ("INKSTONE_AUTH__SIGNATURES__REPLAY_CACHE_SIZE", "16MiB"),
    ];
    let broker = NatsServer::scratch_with_room(ROOM).unwrap();
    let mut platform = Platform::start_on(broker, &SERVICES, &settings).await;
    let mut accepted = Vec::new();
    for _ in 0..3 {
        accepted.push(platform.submit(long_picture()).await.unwrap().id);
    }
    platform.wait_running(&accepted[0]).await;
    let broker = platform.connect().await;
    let last = fill(&broker).await;
    for _ in 0..3 {
        assert_refused(&platform);
    }
    // Who has accepted it still knows it.
    for id in &accepted {
        platform.get(id).await.unwrap();
    }
    broker.log(FILLER).remove_before(last + 1).await.unwrap();
    for id in &accepted {
        assert_whole(&platform, &platform.wait_ended(id).await);
    }
    let later = submit_patiently(&platform).await;
    assert_whole(&platform, &platform.wait_ended(&later.id).await);
    let known = platform.list().await.len();
    assert_eq!(known, 4, "a refused submission must not be a task");
    for service in ["orchestrator", "gpu-worker", "gateway"] {
        platform.wait_ready(service);
    }
}

/// A small file system, mounted in a namespace that a process of its own keeps. It is reached through that process.
struct SmallDisk {
    keeper: Child,
    root: PathBuf,
    _folder: tempfile::TempDir,
}

impl SmallDisk {
    /// Mounts a file system of `$1` bytes at `$2` and keeps it, no longer than a test may take.
    const SCRIPT: &str =
        r#"mount -t tmpfs -o "size=$1" tmpfs "$2" && touch "$2/mounted" && exec sleep 600"#;

    async fn start(bytes: u64) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let complaint = folder.path().join("complaint");
        let mount = folder.path().join("disk");
        fs::create_dir(&mount).unwrap();
        let mut keeper = unshared(Self::SCRIPT)
            .arg(bytes.to_string())
            .arg(&mount)
            .stderr(File::create(&complaint).unwrap())
            .spawn()
            .expect(NEEDS_UNSHARE);
        let inside = Path::new("/proc").join(keeper.id().to_string());
        let root = inside.join("root").join(mount.strip_prefix("/").unwrap());
        while !root.join("mounted").exists() {
            assert!(
                keeper.try_wait().unwrap().is_none(),
                "{NEEDS_NAMESPACES}: {}",
                fs::read_to_string(&complaint).unwrap()
            );
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Self {
            keeper,
            root,
            _folder: folder,
        }
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.keeper.kill();
        let _ = self.keeper.wait();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_whose_disk_is_full_accepts_nothing_and_loses_nothing_when_it_is_started_again_with_room()
 {
    // Goes last: the broker's folder is in it.
    let disk = SmallDisk::start(64 << 20).await;
    let options = Options {
        folder: disk.root.join("nats"),
        port: None,
        sync_always: false,
        // More than there is, and enough for what streams set aside.
        max_store: Some(1 << 30),
        tls: None,
        node: None,
        include: None,
    };
    let broker = NatsServer::start(options).unwrap();
    let mut platform = Platform::start_on(broker, &SERVICES, &[]).await;
    let mut accepted = Vec::new();
    for _ in 0..2 {
        accepted.push(platform.submit(long_picture()).await.unwrap().id);
    }
    let filler = small_disk::fill(&disk.root);
    let deadline = Instant::now() + LIMIT;
    // What is left of a page may still take some.
    let refused = loop {
        match platform.submit(short_picture()).await {
            Ok(task) => accepted.push(task.id),
            Err(status) if status.code() == tonic::Code::ResourceExhausted => {
                assert!(Instant::now() < deadline, "{status:?}");
            }
            Err(status) => break status,
        }
        assert!(accepted.len() < 100, "the disk must be full by now");
        tokio::time::sleep(Duration::from_millis(100)).await;
    };
    assert_eq!(refused.code(), tonic::Code::Unavailable, "{refused:?}");
    assert_refused(&platform);
    fs::remove_file(filler).unwrap();
    // Room alone does not help, as it says itself to whoever asks.
    let problem = platform.broker.write_problem().unwrap();
    assert!(problem.contains("write error"), "{problem}");
    platform.broker.restart().unwrap();
    assert_eq!(platform.broker.write_problem(), None);
    platform.wait_ready("orchestrator");
    for id in &accepted {
        assert_whole(&platform, &platform.wait_ended(id).await);
    }
    let later = submit_patiently(&platform).await;
    assert_whole(&platform, &platform.wait_ended(&later.id).await);
    drop(platform);
    drop(disk);
}
