//! Several servers that keep each stream together.

use std::net::Ipv4Addr;

use crate::{NatsServer, Options, ServerError, free_port};

/// What one server must know of the others.
#[derive(Debug, Clone)]
pub struct Node {
    /// Its name, which tells it apart.
    pub name: String,
    /// Where it answers HTTP about itself.
    pub monitor: u16,
    /// Where the others reach it.
    pub route: u16,
    /// Where each of the cluster is reached, itself included.
    pub routes: Vec<u16>,
}

impl Node {
    /// Its part of the configuration. Clients are not told of the other nodes: they know the addresses that they were given, and
    /// whoever stands between them and a node goes on standing there.
    pub(crate) fn configuration(&self) -> String {
        let host = Ipv4Addr::LOCALHOST;
        let routes: Vec<String> = self
            .routes
            .iter()
            .map(|port| format!("nats://{host}:{port}"))
            .collect();
        format!(
            "server_name: {:?}\nhttp: \"{host}:{}\"\n\
             cluster {{\n  name: inkstone\n  listen: \"{host}:{}\"\n  no_advertise: true\n  routes: {routes:?}\n}}\n",
            self.name, self.monitor, self.route,
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
    /// Starts so many servers. They take connections when this returns; they store when more than half of them have found each
    /// other, seconds later.
    ///
    /// # Errors
    /// See [`ServerError`].
    pub fn scratch(size: usize) -> Result<Self, ServerError> {
        let scratch = tempfile::tempdir().map_err(|source| ServerError::Folder {
            path: std::env::temp_dir(),
            source,
        })?;
        let folder = |source| ServerError::Folder {
            path: scratch.path().to_owned(),
            source,
        };
        let ports = || free_port().map_err(folder);
        let routes = (0..size).map(|_| ports()).collect::<Result<Vec<_>, _>>()?;
        let mut nodes = Vec::new();
        for (index, &route) in routes.iter().enumerate() {
            let name = format!("node-{}", index + 1);
            nodes.push(NatsServer::start(Options {
                folder: scratch.path().join(&name),
                port: None,
                sync_always: false,
                tls: None,
                node: Some(Node {
                    name,
                    monitor: ports()?,
                    route,
                    routes: routes.clone(),
                }),
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
