//! Who is connected: how many in all, how many from one address, and who makes way when everyone wants to be.
//!
//! A full house costs those who want nothing: the connections that have been without a request for longest are closed, so
//! that clients which open thousands and say nothing, or dribble, keep nobody out.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// How many make way at once.
const LEAVERS: usize = 32;
/// The quiet that no connection is closed for: a request is on its way in less.
const LEAST_QUIET: Duration = Duration::from_secs(1);
/// Between two looks at who could make way.
const LOOK_AGAIN: Duration = Duration::from_millis(100);
/// Of an IPv6 address, what tells networks apart: one holder has all that follows.
const IPV6_NETWORK_BITS: u32 = 64;

/// All connections.
pub(crate) struct Crowd {
    most: u32,
    most_per_address: u32,
    room: Arc<Semaphore>,
    inside: Mutex<Inside>,
    began: Instant,
}

#[derive(Default)]
struct Inside {
    next: u64,
    lines: HashMap<u64, Arc<Line>>,
    addresses: HashMap<Network, u32>,
}

/// What counts as one address: of IPv6, a whole network, because one holder has all of it. Among the extensions of each
/// request from a connection. Behind a proxy it is the proxy's: who is behind it, only headers say, and anyone can write those.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Network(IpAddr);

/// One connection, as those see it who decide about it.
pub(crate) struct Line {
    began: Instant,
    asked: AtomicU64,
    under_way: AtomicU32,
    /// Since when no request is under way, in milliseconds after `began`.
    quiet_since: AtomicU64,
    /// Bytes that the socket has taken.
    pub(crate) written: AtomicU64,
    /// Bytes of answers that it has not taken yet.
    pub(crate) unread: AtomicU64,
    /// The socket takes no more for now.
    pub(crate) blocked: AtomicBool,
    /// Cancelled when it has to make way.
    pub(crate) makes_way: CancellationToken,
}

/// The right to be connected, for as long as it lives.
pub(crate) struct Member {
    crowd: Arc<Crowd>,
    number: u64,
    network: Network,
    pub(crate) line: Arc<Line>,
    _room: OwnedSemaphorePermit,
}

/// A request of a connection, until its answer has left; of someone who is not known, until it begins.
pub(crate) struct UnderWay(Arc<Line>);

impl Crowd {
    pub(crate) fn new(most: u32, most_per_address: u32) -> Self {
        Self {
            most,
            most_per_address,
            room: Arc::new(Semaphore::new(most as usize)),
            inside: Mutex::default(),
            began: Instant::now(),
        }
    }

    /// Whether an address has fewer connections than one may have. Cheap, and without a say in whether there is room.
    pub(crate) fn may_join(&self, address: IpAddr) -> bool {
        let network = Network::of(address);
        let count = self.inside().addresses.get(&network).copied();
        let may = count.unwrap_or(0) < self.most_per_address;
        if !may {
            refused();
        }
        may
    }

    /// Waits for room for one more; where there is none, makes some.
    pub(crate) async fn room(&self) -> OwnedSemaphorePermit {
        loop {
            if let Ok(room) = self.room.clone().try_acquire_owned() {
                return room;
            }
            self.make_way(self.began.elapsed());
            let room = self.room.clone().acquire_owned();
            // Only closing the semaphore could fail it, and nobody does.
            if let Ok(Ok(room)) = tokio::time::timeout(LOOK_AGAIN, room).await {
                return room;
            }
        }
    }

    /// Asks those to leave that have been quiet for longest; `now` is the time since the crowd began.
    fn make_way(&self, now: Duration) {
        let inside = self.inside();
        let quiet = inside
            .lines
            .values()
            .filter_map(|line| Some((line.quiet_for(now)?, line)));
        let quiet =
            quiet.filter(|(quiet, line)| *quiet >= LEAST_QUIET && !line.makes_way.is_cancelled());
        let mut quiet: Vec<_> = quiet.collect();
        quiet.sort_unstable_by_key(|(quiet, _)| std::cmp::Reverse(*quiet));
        for (_, line) in quiet.into_iter().take(LEAVERS) {
            metrics::counter!("inkstone_gateway_connections_closed_total", "reason" => "crowded")
                .increment(1);
            line.makes_way.cancel();
        }
    }

    /// Lets a client in, unless its address has as many connections as one may have.
    pub(crate) fn join(
        self: &Arc<Self>,
        room: OwnedSemaphorePermit,
        address: IpAddr,
    ) -> Option<Member> {
        let network = Network::of(address);
        let line = Arc::new(Line::new(self.began));
        let mut inside = self.inside();
        let count = inside.addresses.entry(network).or_insert(0);
        if *count >= self.most_per_address {
            refused();
            return None;
        }
        *count += 1;
        let number = inside.next;
        inside.next += 1;
        inside.lines.insert(number, line.clone());
        metrics::gauge!("inkstone_gateway_connections").increment(1);
        Some(Member {
            crowd: self.clone(),
            number,
            network,
            line,
            _room: room,
        })
    }

    /// Waits until everyone is gone.
    pub(crate) async fn empty(&self) {
        // All the room there is means that nobody has any.
        let _ = self.room.acquire_many(self.most).await;
    }

    fn inside(&self) -> MutexGuard<'_, Inside> {
        // A poisoned lock holds whole values: each change is one call.
        self.inside.lock().unwrap_or_else(|e| e.into_inner())
    }
}

/// Counts a connection that its address is not let have.
fn refused() {
    metrics::counter!("inkstone_gateway_connections_closed_total", "reason" => "address")
        .increment(1);
}

impl Member {
    /// Where it comes from.
    pub(crate) fn network(&self) -> Network {
        self.network
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        metrics::gauge!("inkstone_gateway_connections").decrement(1);
        let mut inside = self.crowd.inside();
        inside.lines.remove(&self.number);
        if let Some(count) = inside.addresses.get_mut(&self.network) {
            *count -= 1;
            if *count == 0 {
                inside.addresses.remove(&self.network);
            }
        }
    }
}

impl Line {
    fn new(began: Instant) -> Self {
        Self {
            began,
            asked: AtomicU64::new(0),
            under_way: AtomicU32::new(0),
            quiet_since: AtomicU64::new(millis(began.elapsed())),
            written: AtomicU64::new(0),
            unread: AtomicU64::new(0),
            blocked: AtomicBool::new(false),
            makes_way: CancellationToken::new(),
        }
    }

    /// Notes that a request has come.
    pub(crate) fn begin(self: &Arc<Self>) -> UnderWay {
        self.asked.fetch_add(1, Ordering::Relaxed);
        self.under_way.fetch_add(1, Ordering::Relaxed);
        UnderWay(self.clone())
    }

    /// Requests so far.
    pub(crate) fn asked(&self) -> u64 {
        self.asked.load(Ordering::Relaxed)
    }

    /// Whether the client has answers to read that it does not read, as far as can be seen from here.
    pub(crate) fn owes(&self) -> bool {
        self.unread.load(Ordering::Relaxed) > 0 || self.blocked.load(Ordering::Relaxed)
    }

    /// Whether no request is under way.
    pub(crate) fn is_quiet(&self) -> bool {
        self.under_way.load(Ordering::Relaxed) == 0
    }

    /// For how long nothing has been under way; none if something is. `now` is the time since the crowd began.
    fn quiet_for(&self, now: Duration) -> Option<Duration> {
        if !self.is_quiet() {
            return None;
        }
        let since = Duration::from_millis(self.quiet_since.load(Ordering::Relaxed));
        Some(now.saturating_sub(since))
    }
}

impl UnderWay {
    pub(crate) fn line(&self) -> &Arc<Line> {
        &self.0
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        let line = &self.0;
        line.quiet_since
            .store(millis(line.began.elapsed()), Ordering::Relaxed);
        line.under_way.fetch_sub(1, Ordering::Relaxed);
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

impl Network {
    /// The one of an address.
    pub(crate) fn of(address: IpAddr) -> Self {
        Self(match address.to_canonical() {
            IpAddr::V4(address) => address.into(),
            IpAddr::V6(address) => {
                let network =
                    address.to_bits() >> (128 - IPV6_NETWORK_BITS) << (128 - IPV6_NETWORK_BITS);
                std::net::Ipv6Addr::from_bits(network).into()
            }
        })
    }
}

impl std::fmt::Display for Network {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    async fn join(crowd: &Arc<Crowd>, from: &str) -> Option<Member> {
        let room = crowd.room().await;
        crowd.join(room, address(from))
    }

    #[tokio::test]
    async fn one_address_has_its_share_and_gets_it_back() {
        let crowd = Arc::new(Crowd::new(10, 2));
        let first = join(&crowd, "10.0.0.1").await;
        let second = join(&crowd, "::ffff:10.0.0.1").await;
        assert!(first.is_some() && second.is_some());
        assert!(join(&crowd, "10.0.0.1").await.is_none());
        assert!(join(&crowd, "10.0.0.2").await.is_some());
        drop(first);
        assert!(join(&crowd, "10.0.0.1").await.is_some());
        drop(second);
        assert!(crowd.inside().addresses.len() <= 2 && crowd.inside().lines.is_empty());
    }

    #[test]
    fn a_whole_network_of_ipv6_is_one_address() {
        let network = |text| Network::of(address(text));
        assert_eq!(network("2001:db8::1"), network("2001:db8::ffff:2"));
        assert_ne!(network("2001:db8::1"), network("2001:db8:0:1::1"));
        assert_ne!(network("10.0.0.1"), network("10.0.0.2"));
    }

    #[tokio::test]
    async fn in_a_full_house_the_longest_quiet_make_way_and_no_one_who_is_served() {
        let crowd = Arc::new(Crowd::new(3, 3));
        let served = join(&crowd, "10.0.0.1").await.unwrap();
        let _request = served.line.begin();
        let quiet = join(&crowd, "10.0.0.1").await.unwrap();
        let young = join(&crowd, "10.0.0.1").await.unwrap();
        young.line.quiet_since.store(9_500, Ordering::Relaxed);
        crowd.make_way(Duration::from_secs(10));
        let leaves = |member: &Member| member.line.makes_way.is_cancelled();
        assert_eq!(
            [leaves(&served), leaves(&quiet), leaves(&young)],
            [false, true, false]
        );
        drop(quiet);
        assert!(join(&crowd, "10.0.0.2").await.is_some());
    }

    #[tokio::test]
    async fn whoever_has_its_share_is_turned_away_from_a_full_house_before_anyone_makes_way() {
        let crowd = Arc::new(Crowd::new(2, 1));
        let one = join(&crowd, "10.0.0.1").await.unwrap();
        let two = join(&crowd, "10.0.0.2").await.unwrap();
        assert!(!crowd.may_join(address("10.0.0.1")));
        assert!(crowd.may_join(address("10.0.0.3")));
        assert!(!one.line.makes_way.is_cancelled() && !two.line.makes_way.is_cancelled());
        drop(one);
        assert!(crowd.may_join(address("10.0.0.1")));
    }

    #[tokio::test]
    async fn a_connection_is_quiet_from_the_end_of_its_last_request() {
        let crowd = Arc::new(Crowd::new(3, 3));
        let member = join(&crowd, "10.0.0.1").await.unwrap();
        member.line.quiet_since.store(7_000, Ordering::Relaxed);
        let later = Duration::from_secs(10);
        assert_eq!(member.line.quiet_for(later), Some(Duration::from_secs(3)));
        let (one, two) = (member.line.begin(), member.line.begin());
        drop(one);
        assert_eq!(member.line.quiet_for(later), None);
        drop(two);
        let quiet = member.line.quiet_for(later).unwrap();
        assert!(quiet > Duration::from_secs(3), "{quiet:?}");
        assert_eq!(member.line.asked(), 2);
    }
}
