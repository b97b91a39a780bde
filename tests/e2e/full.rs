//! A broker that has no room left: what is new is refused until there is some, and nothing that was accepted is lost.

use std::time::{Duration, Instant};

use contract::v1::Task;
use e2e::{LIMIT, Platform, SERVICES, agent};
use messaging::{Broker, Outgoing, RetentionPolicy, StreamSpec};
use nats_server::NatsServer;
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
