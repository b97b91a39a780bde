//! Names to addresses that were checked, handed to the connection as they are.

use std::net::{SocketAddr, ToSocketAddrs as _};
use std::sync::Arc;

use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use tokio::sync::Semaphore;

use crate::EgressSettings;
use crate::error::Refusal;
use crate::rules::Rules;

/// Look-ups at once, for each request at once. One goes on when its request has given up, until the operating system does.
const LOOKUPS_PER_REQUEST: u32 = 4;
/// Addresses of one name that are looked at.
const MAX_ADDRESSES: usize = 64;

/// How a name is looked up: blocking, as the operating system does it.
pub(crate) type Lookup = Arc<dyn Fn(&str) -> std::io::Result<Vec<SocketAddr>> + Send + Sync>;

/// The operating system's own look-up.
pub(crate) fn system() -> Lookup {
    Arc::new(|name| {
        let found = (name, 0).to_socket_addrs()?;
        Ok(found.take(MAX_ADDRESSES).collect())
    })
}

/// Resolves for the client.
pub(crate) struct Resolver {
    rules: Arc<Rules>,
    lookup: Lookup,
    room: Arc<Semaphore>,
}

impl Resolver {
    pub(crate) fn new(settings: &EgressSettings, rules: Arc<Rules>, lookup: Lookup) -> Self {
        let room = settings.max_concurrent.saturating_mul(LOOKUPS_PER_REQUEST);
        Self {
            rules,
            lookup,
            room: Arc::new(Semaphore::new(room as usize)),
        }
    }
}

impl Resolve for Resolver {
    fn resolve(&self, name: Name) -> Resolving {
        let (rules, lookup, room) = (self.rules.clone(), self.lookup.clone(), self.room.clone());
        Box::pin(async move {
            let room = room.acquire_owned().await?;
            let work = move || {
                let _room = room;
                lookup(name.as_str())
            };
            let found = tokio::task::spawn_blocking(work).await?;
            let addresses = checked(&rules, found)?;
            Ok(Box::new(addresses.into_iter()) as Addrs)
        })
    }
}

/// The addresses, if all of them may be connected to: a name that has one inside as well is up to something.
fn checked(
    rules: &Rules,
    found: std::io::Result<Vec<SocketAddr>>,
) -> Result<Vec<SocketAddr>, Refusal> {
    let found = found.map_err(Refusal::NotFound)?;
    if found.is_empty() {
        let nothing = std::io::Error::new(std::io::ErrorKind::NotFound, "no addresses");
        return Err(Refusal::NotFound(nothing));
    }
    match found.iter().all(|address| rules.permit(address.ip())) {
        true => Ok(found),
        false => Err(Refusal::NotPublic),
    }
}
