//! What this crate's tests keep their events in.

use std::time::Duration;

use bytes::Bytes;
use nats_server::{Cluster, NatsServer, Routes, free_port};

use crate::{Broker, BrokerSettings, EventLog, NewEvent, RetentionPolicy, StreamSpec};

/// A stream for events, alone or together.
pub(crate) const SPEC: StreamSpec = StreamSpec {
    name: "TEST",
    subjects: &["test.>"],
    retention: RetentionPolicy::Limits,
    max_messages: -1,
    max_messages_per_subject: 1,
    shares: false,
    max_message_size: -1,
    max_age: Duration::ZERO,
    max_bytes: 1 << 24,
    refuse_when_full: true,
    batches: true,
    duplicate_window: Duration::from_secs(120),
    republish: None,
};

/// As a submission is: kept out by whatever there is of its task.
pub(crate) fn event(task: &str, payload: &'static str) -> NewEvent {
    let subject = format!("test.{task}.made");
    let payload = Bytes::from_static(payload.as_bytes());
    NewEvent::new(subject.clone(), subject, payload).barred_by(format!("test.{task}.*"))
}

/// A log that three servers keep together, as whoever is connected to one of them and whoever is to another have it.
pub(crate) async fn two_writers() -> (Cluster, EventLog, EventLog) {
    let ports: Vec<u16> = (0..3).map(|_| free_port().unwrap()).collect();
    let routes = ports.iter().map(|&listen| Routes {
        listen,
        to: ports.iter().copied().filter(|&to| to != listen).collect(),
    });
    let cluster = Cluster::scratch(routes.collect()).unwrap();
    let connected = async |node: &NatsServer| {
        let settings = BrokerSettings {
            replicas: 3,
            ..BrokerSettings::new(node.url(), "120s".parse().unwrap())
        };
        Broker::connect(&settings, "test").await.unwrap()
    };
    let one = connected(&cluster.nodes[0]).await;
    let two = connected(&cluster.nodes[1]).await;
    one.patiently(|| one.ensure_stream(&SPEC)).await.unwrap();
    let logs = (one.log("TEST"), two.log("TEST"));
    // It has a leader by now.
    let ready = one.patiently(|| logs.0.put("test.ready.now", Bytes::new()));
    ready.await.unwrap();
    (cluster, logs.0, logs.1)
}
