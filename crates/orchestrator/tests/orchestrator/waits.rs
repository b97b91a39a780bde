//! What is told of tasks that wait, whichever of several orchestrators is asked.

use std::collections::BTreeSet;
use std::time::Duration;

use contract::orchestrator::GetRequest;
use contract::orchestrator::orchestrator_service_client::OrchestratorServiceClient;
use contract::v1::{Task, TaskPhase};
use nats_server::free_port;
use task_log::TaskRef;
use tonic::transport::{Channel, Endpoint};

use crate::support::{Platform, stop, until};

const PARTITIONS: usize = 16;
const TASKS: usize = 30;

/// A client of an orchestrator that listens there.
fn client(port: &str) -> OrchestratorServiceClient<Channel> {
    let endpoint = Endpoint::from_shared(format!("http://127.0.0.1:{port}"));
    OrchestratorServiceClient::new(endpoint.unwrap().connect_lazy())
}

async fn get(client: &OrchestratorServiceClient<Channel>, task: &TaskRef) -> Task {
    let request = GetRequest {
        tenant: task.tenant.to_string(),
        task_id: task.task.to_string(),
        ..GetRequest::default()
    };
    let answer = client.clone().get(request).await.unwrap();
    answer.into_inner().task.unwrap()
}

/// Waits until so many orchestrators share all partitions evenly.
async fn shared_by(platform: &Platform, members: usize) {
    let leases = platform
        .broker
        .bucket::<serde_json::Value>("LEASES", Duration::ZERO);
    let leases = leases.await.unwrap();
    until("the partitions are shared", async || {
        let all = leases.all().await.unwrap();
        let owners = all.values().filter_map(|lease| lease["owner"].as_str());
        let owners: Vec<&str> = owners.filter(|owner| !owner.is_empty()).collect();
        let even = |name: &&str| {
            let theirs = owners.iter().filter(|owner| *owner == name).count();
            theirs == PARTITIONS / members
        };
        let names: BTreeSet<&str> = owners.iter().copied().collect();
        names.len() == members && names.iter().all(even)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn whichever_orchestrator_is_asked_tells_the_same_place_in_the_queue() {
    let platform = Platform::start().await;
    let ports = [(); 2].map(|()| free_port().unwrap().to_string());
    let mut orchestrators = Vec::new();
    for port in &ports {
        let address = format!("127.0.0.1:{port}");
        let settings = [
            ("grpc.listen", address.as_str()),
            ("scheduling.window", "4"),
        ];
        orchestrators.push(platform.orchestrator(&settings).await);
    }
    shared_by(&platform, 2).await;
    let clients = ports.each_ref().map(|port| client(port));
    // No worker takes any: they stay where they are.
    for tenant in ["a", "b", "c", "d", "e", "f"] {
        let tasks = platform.submit_many(tenant, TASKS).await;
        for client in &clients {
            let mut places = BTreeSet::new();
            until("all places are told", async || {
                places.clear();
                for task in &tasks {
                    let task = get(client, task).await;
                    let waits = [TaskPhase::Queued, TaskPhase::Scheduled];
                    assert!(waits.contains(&task.phase()));
                    // What no end has taught is not told.
                    assert_eq!(task.estimated_wait_ms, None);
                    places.extend(task.queue_position);
                }
                places.len() == TASKS
            })
            .await;
            let expected: BTreeSet<u64> = (0..TASKS as u64).collect();
            assert_eq!(places, expected, "of {tenant}");
        }
    }
    for orchestrator in orchestrators {
        stop(orchestrator).await;
    }
}
