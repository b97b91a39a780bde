//! The broker of the platform under test: three servers that keep every stream together, and a link from each to each other.
//!
//! Two servers are connected several times, by whichever of them is first, so that each has a link of its own to the other: whoever is to
//! be cut off is cut off when all links from it and all links to it are.

use std::collections::BTreeMap;
use std::time::Duration;

use lifecycle::Tasks;
use messaging::{Broker, BrokerSettings};
use nats_server::{Cluster, NatsServer, Routes, free_port};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::error::ChaosError;
use crate::link::{Flow, Link};
use crate::plan::NODES;

/// How long it may take to answer on a machine that has little to give.
const ANSWERS: Duration = Duration::from_secs(180);

/// The servers and the links between them; everything is ended when it is dropped.
pub(crate) struct Brokers {
    servers: Cluster,
    /// By who reaches whom.
    links: BTreeMap<(usize, usize), Link>,
}

impl Brokers {
    /// Starts the servers.
    ///
    /// # Errors
    /// When one does not start, or no port can be had.
    pub(crate) async fn start(tasks: &Tasks) -> Result<Self, ChaosError> {
        let free = (0..NODES).map(|_| free_port());
        let listen = free.collect::<Result<Vec<u16>, _>>();
        let listen = listen.map_err(ChaosError::Port)?;
        let (mut links, mut routes) = (BTreeMap::new(), Vec::new());
        for (from, &own) in listen.iter().enumerate() {
            let mut to = Vec::new();
            for (other, &port) in listen.iter().enumerate() {
                if other == from {
                    continue;
                }
                let link = Link::open(tasks, port).await.map_err(ChaosError::Port)?;
                to.push(link.port);
                links.insert((from, other), link);
            }
            routes.push(Routes { listen: own, to });
        }
        Ok(Self {
            servers: Cluster::scratch(routes)?,
            links,
        })
    }

    /// The client ports of the servers.
    pub(crate) fn ports(&self) -> Vec<u16> {
        self.servers.nodes.iter().map(NatsServer::port).collect()
    }

    /// The client addresses of the servers, past all links.
    pub(crate) fn urls(&self) -> Vec<String> {
        self.servers.nodes.iter().map(NatsServer::url).collect()
    }

    /// A connection to whichever server, past all links.
    ///
    /// # Errors
    /// When none can be reached.
    pub(crate) async fn connection(&self) -> Result<Broker, ChaosError> {
        connect(&self.servers.urls()).await
    }

    /// Kills a server.
    pub(crate) fn kill(&mut self, node: usize) {
        self.servers.nodes[node].kill();
    }

    /// Starts one that was killed.
    ///
    /// # Errors
    /// When it does not come up.
    pub(crate) fn restart(&mut self, node: usize) -> Result<(), ChaosError> {
        Ok(self.servers.nodes[node].restart()?)
    }

    /// Stops a server where it stands, or lets it go on.
    pub(crate) fn freeze(&self, node: usize, stopped: bool) {
        signal(self.servers.nodes[node].process_id(), stopped);
    }

    /// Cuts a server off from the two others, or mends that. Whoever else is connected to it stays so.
    pub(crate) fn cut(&self, node: usize, flow: Flow) {
        for (&(from, to), link) in &self.links {
            if from == node || to == node {
                link.set(flow);
            }
        }
    }

    /// Whether a stream has a leader that knows all the others to have what it has.
    pub(crate) fn is_whole(&self, stream: &str) -> bool {
        let Some(leader) = self.leader(stream) else {
            return false;
        };
        let told = self.servers.nodes.get(leader);
        let told = told.and_then(|node| cluster_of(node, stream));
        let replicas = told.as_ref().and_then(|told| told["replicas"].as_array());
        replicas.is_some_and(|replicas| {
            let current = replicas.iter().filter(|one| one["current"] == true);
            current.count() + 1 == NODES
        })
    }

    /// Which server leads a stream; none where none that answers knows.
    pub(crate) fn leader(&self, stream: &str) -> Option<usize> {
        self.servers.nodes.iter().find_map(|node| {
            let cluster = cluster_of(node, stream)?;
            let leader = cluster["leader"].as_str()?;
            let number: usize = leader.rsplit_once('-')?.1.parse().ok()?;
            number.checked_sub(1)
        })
    }
}

/// What a server says of who has a stream.
fn cluster_of(node: &NatsServer, stream: &str) -> Option<Value> {
    let url = format!("{}/jsz?streams=true", node.monitor_url());
    let mut answer = e2e::agent().get(url).call().ok()?;
    let told: Value = answer.body_mut().read_json().ok()?;
    let accounts = told["account_details"].as_array()?;
    let mut streams = accounts
        .iter()
        .filter_map(|account| account["stream_detail"].as_array())
        .flatten();
    let found = streams.find(|found| found["name"] == stream)?;
    Some(found["cluster"].clone())
}

/// A connection to the broker at one or more addresses.
///
/// # Errors
/// When it cannot be reached.
pub(crate) async fn connect(urls: &str) -> Result<Broker, ChaosError> {
    let settings = BrokerSettings {
        replicas: NODES,
        ..BrokerSettings::new(urls, ANSWERS.into())
    };
    Ok(Broker::connect(&settings, "chaos").await?)
}

/// Stops a process where it stands, or lets it go on.
pub(crate) fn signal(process: u32, stopped: bool) {
    let signal = if stopped { Signal::STOP } else { Signal::CONT };
    if let Some(pid) = Pid::from_raw(process as i32) {
        // Fails only when it has ended.
        let _ = kill_process(pid, signal);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use messaging::Bucket;

    use super::*;

    /// More than an election takes.
    const LIMIT: Duration = Duration::from_secs(90);
    const POLL: Duration = Duration::from_millis(100);

    /// Writes until it is stored, or until it is not.
    async fn until(stored: bool, bucket: &Bucket<u32>) {
        let deadline = Instant::now() + LIMIT;
        while bucket.put("key", &1).await.is_ok() != stored {
            assert!(Instant::now() < deadline, "waited for {stored}");
            tokio::time::sleep(POLL).await;
        }
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_server_that_is_cut_off_stores_nothing_and_the_two_others_go_on() {
        let service = lifecycle::Service::new("test");
        let brokers = Brokers::start(&service.tasks).await.unwrap();
        let mut buckets = Vec::new();
        for url in brokers.urls() {
            let broker = connect(&url).await.unwrap();
            let open = || broker.bucket::<u32>("TEST", Duration::ZERO);
            buckets.push(broker.patiently(open).await.unwrap());
        }
        for flow in [Flow::Closed, Flow::Silent] {
            // The leader, so that the two others must choose another.
            let leader = tokio::task::block_in_place(|| brokers.leader("KV_TEST"));
            let alone = leader.unwrap_or(0);
            brokers.cut(alone, flow);
            until(false, &buckets[alone]).await;
            until(true, &buckets[(alone + 1) % NODES]).await;
            // There is no way round the links, not even one that the others could have told it of meanwhile.
            assert!(buckets[alone].put("key", &1).await.is_err(), "{flow:?}");
            brokers.cut(alone, Flow::Open);
            until(true, &buckets[alone]).await;
        }
    }
}
