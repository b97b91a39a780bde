//! Room for the bytes of bodies that arrive: so many of all, and of these so many from one address and of one tenant.
//!
//! Where a body comes from is known from the first. Whose it is, before any of it is read: auth goes by the head alone, and what is read
//! before is so short that it needs no room.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};
use std::time::Duration;

use contract::{ErrorCode, Failure};
use settings::ByteSize;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::crowd::Network;
use crate::room::refused;
use crate::settings::HttpSettings;

/// Suggested wait when there is no room: bodies come and go in seconds.
const BUSY_WAIT: Duration = Duration::from_secs(1);
/// What is refused for want of room.
const WHAT: &str = "bytes of requests are under way";

/// The bytes that there may be, and who has how many of them.
#[derive(Debug)]
pub(crate) struct BodyRoom {
    bytes: Arc<Semaphore>,
    /// How many that is.
    all: u64,
    address_share: ByteSize,
    tenant_share: ByteSize,
    /// Those who have none are not in it.
    held: Mutex<HashMap<Whose, u64>>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Whose {
    Address(Network),
    Tenant(Arc<str>),
}

/// Whose a body is, once auth has vouched for its sender. Among the extensions of its request.
#[derive(Debug, Clone, Default)]
pub(crate) struct Sender(Arc<OnceLock<Arc<str>>>);

/// What one body has of the room, until it is dropped.
#[derive(Debug)]
pub(crate) struct BodyBytes {
    room: Arc<BodyRoom>,
    from: Option<Network>,
    sender: Sender,
    permit: Option<OwnedSemaphorePermit>,
    of_address: Option<Part>,
    of_tenant: Option<Part>,
}

/// Bytes of someone's share.
#[derive(Debug)]
struct Part {
    room: Arc<BodyRoom>,
    whose: Whose,
    bytes: u64,
}

impl BodyRoom {
    /// One address may have as much of all of it as of connections, one tenant its share in percent; each of them at least what
    /// one body may have.
    pub(crate) fn new(http: &HttpSettings) -> Self {
        let all = http.max_body_bytes.bytes();
        let share = |some: u32, of: u32| {
            let part = u128::from(all) * u128::from(some) / u128::from(of.max(1));
            let part = u64::try_from(part).unwrap_or(all);
            ByteSize::of(part.max(http.max_upload.bytes()).min(all))
        };
        let address = share(http.max_connections_per_address, http.max_connections);
        Self::shared(all, address, share(http.tenant_share, 100))
    }

    /// So many bytes, of which one address and one tenant may have these.
    pub(crate) fn shared(all: u64, address_share: ByteSize, tenant_share: ByteSize) -> Self {
        // Validated to be no more than a semaphore counts.
        let bytes = usize::try_from(all).unwrap_or(usize::MAX);
        Self {
            bytes: Arc::new(Semaphore::new(bytes)),
            all,
            address_share,
            tenant_share,
            held: Mutex::default(),
        }
    }

    /// For a body that begins to arrive: nothing of the room yet.
    pub(crate) fn body(self: &Arc<Self>, from: Option<Network>, sender: Sender) -> BodyBytes {
        BodyBytes {
            room: self.clone(),
            from,
            sender,
            permit: None,
            of_address: None,
            of_tenant: None,
        }
    }

    fn held(&self) -> MutexGuard<'_, HashMap<Whose, u64>> {
        // Every change leaves it whole.
        self.held.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// Nothing where the share is all that there is: who finds no room there is told that all of it is taken.
    fn part(self: &Arc<Self>, whose: Whose, bytes: u32) -> Result<Option<Part>, Failure> {
        let (share, of) = match whose {
            Whose::Address(_) => (self.address_share, "address"),
            Whose::Tenant(_) => (self.tenant_share, "tenant"),
        };
        if share.bytes() >= self.all {
            return Ok(None);
        }
        let bytes = u64::from(bytes);
        let mut held = self.held();
        let before = held.get(&whose).copied().unwrap_or_default();
        if before + bytes > share.bytes() {
            drop(held);
            refused(WHAT, "share");
            let message = format!(
                "too many {WHAT} for one {of}, which may have {share} at this gateway; try again"
            );
            return Err(Failure {
                retry_after: Some(BUSY_WAIT),
                ..Failure::new(ErrorCode::RateLimited, message)
            });
        }
        held.insert(whose.clone(), before + bytes);
        drop(held);
        let room = self.clone();
        Ok(Some(Part { room, whose, bytes }))
    }
}

impl Sender {
    /// Says whose it is. Whoever was named first is.
    pub(crate) fn is(&self, tenant: &str) {
        let _ = self.0.set(tenant.into());
    }

    fn tenant(&self) -> Option<Arc<str>> {
        self.0.get().cloned()
    }
}

impl BodyBytes {
    /// Takes room for so many bytes more: of the sender's shares, and of all.
    ///
    /// # Errors
    /// Over the limit when its address or its tenant has its share already; unavailable when all is taken. Then it has what it had.
    pub(crate) fn more(&mut self, bytes: usize) -> Result<(), Failure> {
        let bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
        let part = |whose| self.room.part(whose, bytes);
        let of_address = self.from.map(Whose::Address).map(part).transpose()?;
        let of_tenant = self.sender.tenant().map(Whose::Tenant).map(part);
        let (of_address, of_tenant) = (of_address.flatten(), of_tenant.transpose()?.flatten());
        let permit = self.room.bytes.clone().try_acquire_many_owned(bytes);
        let permit = permit.map_err(|_| {
            refused(WHAT, "full");
            Failure::unavailable(format!("too many {WHAT}; try again"), BUSY_WAIT)
        })?;
        metrics::gauge!("inkstone_gateway_body_bytes").increment(f64::from(bytes));
        Part::add(&mut self.of_address, of_address);
        Part::add(&mut self.of_tenant, of_tenant);
        match &mut self.permit {
            Some(held) => held.merge(permit),
            None => self.permit = Some(permit),
        }
        Ok(())
    }
}

impl Drop for BodyBytes {
    fn drop(&mut self) {
        if let Some(permit) = &self.permit {
            metrics::gauge!("inkstone_gateway_body_bytes").decrement(permit.num_permits() as f64);
        }
    }
}

impl Part {
    /// Puts what was taken to what is held by the same.
    fn add(held: &mut Option<Self>, more: Option<Self>) {
        let Some(mut more) = more else { return };
        match held {
            Some(held) => held.bytes += std::mem::take(&mut more.bytes),
            None => *held = Some(more),
        }
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        if self.bytes == 0 {
            // Another has them now.
            return;
        }
        let mut held = self.room.held();
        match held.get_mut(&self.whose) {
            Some(bytes) if *bytes > self.bytes => *bytes -= self.bytes,
            _ => {
                held.remove(&self.whose);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    impl BodyRoom {
        /// Bytes that nobody has.
        pub(crate) fn left(&self) -> usize {
            self.bytes.available_permits()
        }
    }

    /// Of 1000 bytes one address may have 250, and one tenant 500.
    fn room() -> Arc<BodyRoom> {
        let (address, tenant) = (ByteSize::of(250), ByteSize::of(500));
        Arc::new(BodyRoom::shared(1000, address, tenant))
    }

    fn from(address: &str) -> Option<Network> {
        Some(Network::of(address.parse().unwrap()))
    }

    fn sender(tenant: &str) -> Sender {
        let sender = Sender::default();
        sender.is(tenant);
        sender
    }

    #[test]
    fn an_address_that_withholds_the_ends_of_its_bodies_leaves_room_for_those_of_another() {
        let room = room();
        let mut withheld = room.body(from("2001:db8::1"), Sender::default());
        withheld.more(100).unwrap();
        withheld.more(150).unwrap();
        // One holder has a whole network.
        let mut more = room.body(from("2001:db8::2"), Sender::default());
        let refused = more.more(1).unwrap_err();
        assert_eq!(refused.code, ErrorCode::RateLimited);
        assert!(refused.retry_after.is_some(), "{refused}");
        let why = "for one address, which may have 250 B";
        assert!(refused.message.contains(why), "{refused}");
        let mut other = room.body(from("2001:db8:0:1::1"), Sender::default());
        other.more(250).unwrap();
        assert_eq!(room.left(), 500);
        drop(withheld);
        more.more(250).unwrap();
        drop((more, other));
        assert_eq!(room.left(), 1000);
        assert!(room.held().is_empty());
    }

    #[test]
    fn a_tenant_that_withholds_the_ends_of_its_bodies_leaves_room_for_those_of_another() {
        let room = room();
        let withhold = |address: &str, tenant: &str| {
            let mut body = room.body(from(address), sender(tenant));
            body.more(250).map(|()| body)
        };
        let one = withhold("10.0.0.1", "one").unwrap();
        let two = withhold("10.0.0.2", "one").unwrap();
        let refused = withhold("10.0.0.3", "one").unwrap_err();
        assert_eq!(refused.code, ErrorCode::RateLimited);
        let why = "for one tenant, which may have 500 B";
        assert!(refused.message.contains(why), "{refused}");
        // What it was refused counts for nobody.
        let other = withhold("10.0.0.3", "other").unwrap();
        let last = withhold("10.0.0.4", "other").unwrap();
        let full = withhold("10.0.0.5", "third").unwrap_err();
        assert_eq!(full.code, ErrorCode::Unavailable);
        drop((one, two, other, last));
        assert_eq!(room.left(), 1000);
        assert!(room.held().is_empty());
    }

    #[test]
    fn whose_share_is_all_there_is_is_told_that_all_is_taken() {
        let all = ByteSize::of(1000);
        let room = Arc::new(BodyRoom::shared(1000, all, all));
        let mut one = room.body(from("10.0.0.1"), sender("one"));
        one.more(1000).unwrap();
        let mut more = room.body(from("10.0.0.1"), sender("one"));
        assert_eq!(more.more(1).unwrap_err().code, ErrorCode::Unavailable);
        assert!(room.held().is_empty());
    }

    #[test]
    fn what_arrives_before_its_sender_is_known_counts_for_its_address_alone() {
        let room = room();
        let sender = Sender::default();
        let mut body = room.body(from("10.0.0.1"), sender.clone());
        body.more(100).unwrap();
        sender.is("one");
        body.more(100).unwrap();
        let tenant = Whose::Tenant("one".into());
        assert_eq!(room.held().get(&tenant), Some(&100));
        drop(body);
        assert!(room.held().is_empty());
    }

    #[test]
    fn the_largest_body_has_room_in_every_share_and_behind_a_proxy_an_address_may_have_all() {
        let shares = |overrides: &[(&'static str, &str)]| {
            let all: Vec<_> = overrides
                .iter()
                .map(|(key, value)| (*key, (*value).to_owned()))
                .collect();
            let settings = settings::load::<crate::Settings>(None, &all).unwrap();
            let room = BodyRoom::new(&settings.http);
            [room.address_share, room.tenant_share].map(|share| share.bytes() >> 20)
        };
        assert_eq!(shares(&[]), [128, 256]);
        let proxy = ("http.max_connections_per_address", "4096");
        assert_eq!(shares(&[proxy]), [512, 256]);
        let small = ("http.max_body_bytes", "20MiB");
        assert_eq!(shares(&[small]), [20, 20]);
    }
}
