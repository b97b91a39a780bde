//! Several servers that keep each stream together.

use std::net::Ipv4Addr;

use crate::{NatsServer, Options, ServerError};

/// Where a server of a cluster is reached by the others, and where it reaches them.
#[derive(Debug, Clone)]
pub struct Routes {
    /// Where it listens for the others.
    pub listen: u16,
    /// Where it reaches each of the others: where that one listens, or what stands between the two.
    pub to: Vec<u16>,
}

/// What one server must know of the others.
#[derive(Debug, Clone)]
pub struct Node {
    /// Its name, which tells it apart.
    pub name: String,
    /// The ways to and from the others.
    pub routes: Routes,
}

/// Where servers tell each other that a third is reached: nobody listens there.
const NOWHERE: u16 = 1;

impl Node {
    /// Its part of the configuration. Clients are not told of the other nodes: they know the addresses that they were given, and
    /// whoever stands between them and a node goes on standing there. Nodes tell each other of a third, and nothing turns that off; what
    /// is told leads nowhere, so that the ways that each was given are the only ones.
    pub(crate) fn configuration(&self) -> String {
        let host = Ipv4Addr::LOCALHOST;
        let Routes { listen, to } = &self.routes;
        let routes: Vec<String> = to
            .iter()
            .map(|port| format!("nats://{host}:{port}"))
            .collect();
        format!(
            "server_name: {:?}\n\
             cluster {{\n  name: inkstone\n  listen: \"{host}:{listen}\"\n  no_advertise: true\n  \
             advertise: \"{host}:{NOWHERE}\"\n  routes: {routes:?}\n}}\n",
            self.name,
        )
    }
}

/// Servers of one cluster, each on free ports with a folder of its own. For tests.
pub struct Cluster {
    /// The servers, to kill and restart.
    pub nodes: Vec<NatsServer>,
    _scratch: tempfile::TempDir,
}

impl Cluster {
    /// Starts a server for each of `routes`. They take connections when this returns; they store when more than half of them have found
    /// each other, seconds later.
    ///
    /// # Errors
    /// See [`ServerError`].
    pub fn scratch(routes: Vec<Routes>) -> Result<Self, ServerError> {
        let scratch = tempfile::tempdir().map_err(|source| ServerError::Folder {
            path: std::env::temp_dir(),
            source,
        })?;
        let mut nodes = Vec::new();
        for (number, routes) in (1..).zip(routes) {
            let name = format!("node-{number}");
            nodes.push(NatsServer::start(Options {
                folder: scratch.path().join(&name),
                port: None,
                sync_always: false,
                max_store: None,
                tls: None,
                node: Some(Node { name, routes }),
                include: None,
            })?);
        }
        Ok(Self {
            nodes,
            _scratch: scratch,
        })
    }

    /// All client addresses, separated by commas.
    pub fn urls(&self) -> String {
        let urls: Vec<String> = self.nodes.iter().map(NatsServer::url).collect();
        urls.join(",")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_knows_the_ways_that_it_was_given_and_tells_of_none() {
        let node = Node {
            name: "node-1".to_owned(),
            routes: Routes {
                listen: 7001,
                to: vec![7002, 7003],
            },
        };
        let text = node.configuration();
        for line in [
            "  listen: \"127.0.0.1:7001\"\n",
            "  advertise: \"127.0.0.1:1\"\n",
            "  routes: [\"nats://127.0.0.1:7002\", \"nats://127.0.0.1:7003\"]\n",
        ] {
            assert!(text.contains(line), "{line} is not in {text}");
        }
    }
}
