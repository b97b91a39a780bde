//! Who is connected: how many in all, how many from one address, and who makes way when everyone wants to be.
//!
//! A full house costs those who want nothing: the connections that have been without a request for longest are closed, so
//! that clients which open thousands and say nothing, or dribble, keep nobody out. Where nobody is quiet, whoever has the most
//! connections gives one up to a newcomer that has fewer, so that clients which keep thousands busy keep nobody out either. Who has
//! some already waits for it beside the door, for a bounded time, and not in it.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::answers::{Answers, MOST_LEFT};

/// How many make way at once.
const LEAVERS: usize = 32;
/// The quiet that no connection is closed for: a request is on its way in less.
const LEAST_QUIET: Duration = Duration::from_secs(1);
/// What one that was quiet needs to be gone.
const GOES_WITHIN: Duration = Duration::from_millis(100);
/// How long one that was asked to leave has for it before another is, and how long a newcomer waits for whom nobody was asked.
const ASK_AGAIN: Duration = Duration::from_secs(1);
/// How long a newcomer waits for whom someone was asked: that one's request may take a while.
const PATIENCE: Duration = Duration::from_secs(10);
/// Newcomers that wait aside, in all and of one site.
const MOST_ASIDE: u32 = 128;
const MOST_ASIDE_OF_A_SITE: u32 = 16;
/// Of an IPv6 address, what tells networks apart: one holder has all that follows.
const IPV6_NETWORK_BITS: u32 = 64;
/// … and what tells sites apart: one holder may have all networks of one.
const IPV6_SITE_BITS: u32 = 48;
/// Connections of one site, in those that one network may have. Several holders may share one.
const NETWORKS_PER_SITE: u32 = 2;

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
    lines: HashMap<u64, Held>,
    addresses: HashMap<Network, u32>,
    sites: HashMap<Network, u32>,
    /// Newcomers that wait aside.
    aside: HashMap<Network, u32>,
}

/// A connection and where it comes from.
struct Held {
    site: Network,
    line: Arc<Line>,
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
    /// Those that were given up, of these.
    pub(crate) left: AtomicU64,
    /// What is on its way out.
    pub(crate) answers: Answers,
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

/// What a newcomer finds.
pub(crate) enum Place {
    Room(OwnedSemaphorePermit),
    Aside(Aside),
}

/// A newcomer that waits and keeps nobody behind it waiting, for as long as it lives.
pub(crate) struct Aside {
    crowd: Arc<Crowd>,
    site: Network,
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
        let may = self.has_share(&self.inside(), Network::of(address));
        if !may {
            refused();
        }
        may
    }

    /// Whether a network has fewer connections than one may have, and so has its site.
    fn has_share(&self, inside: &Inside, network: Network) -> bool {
        let most_per_site = self.most_per_address.saturating_mul(NETWORKS_PER_SITE);
        count(&inside.addresses, network) < self.most_per_address
            && count(&inside.sites, network.site()) < most_per_site
    }

    /// Room for one more from an address, or a place to wait for it. Who has none inside waits here, and those behind it as well: nobody who
    /// comes later could do better. None where too many wait already.
    pub(crate) async fn place(self: &Arc<Self>, address: IpAddr) -> Option<Place> {
        if let Ok(room) = self.room.clone().try_acquire_owned() {
            return Some(Place::Room(room));
        }
        let site = Network::of(address).site();
        let has_none = self.inside().has_none(site);
        if has_none {
            return self.room(site).await.map(Place::Room);
        }
        let quiet = self.inside().quiet_leave(self.began.elapsed());
        if quiet {
            let room = self.room.clone().acquire_owned();
            if let Ok(Ok(room)) = tokio::time::timeout(GOES_WITHIN, room).await {
                return Some(Place::Room(room));
            }
        }
        let aside = self.aside(site);
        if aside.is_none() {
            refused();
        }
        aside.map(Place::Aside)
    }

    /// A place to wait for one more from a site.
    fn aside(self: &Arc<Self>, site: Network) -> Option<Aside> {
        let mut inside = self.inside();
        let all: u32 = inside.aside.values().sum();
        if all >= MOST_ASIDE || count(&inside.aside, site) >= MOST_ASIDE_OF_A_SITE {
            return None;
        }
        *inside.aside.entry(site).or_insert(0) += 1;
        let crowd = self.clone();
        Some(Aside { crowd, site })
    }

    /// Waits for room for one more from a site, in turn, and has others make way for it, one after the other. None where the site has some
    /// inside and its time is over.
    async fn room(&self, site: Network) -> Option<OwnedSemaphorePermit> {
        let began = Instant::now();
        let mut room = pin!(self.room.clone().acquire_owned());
        // Nobody is asked where there is room.
        let (mut wait, mut patience) = (Duration::ZERO, ASK_AGAIN);
        loop {
            if let Ok(room) = tokio::time::timeout(wait, room.as_mut()).await {
                // Only closing the semaphore could fail it, and nobody does.
                return room.ok();
            }
            // Also when its time is over: some may have been quiet for long enough just now.
            if self.make_way(self.began.elapsed(), site) {
                patience = PATIENCE;
            }
            if began.elapsed() >= patience && !self.inside().has_none(site) {
                refused();
                return None;
            }
            wait = ASK_AGAIN;
        }
    }

    /// Asks some to leave for one more from a site, and says whether there is anyone to ask; `now` is the time since the crowd began.
    fn make_way(&self, now: Duration, site: Network) -> bool {
        let inside = self.inside();
        inside.quiet_leave(now) || inside.largest_gives_one_up(site)
    }

    /// Lets a client in, unless its address has as many connections as one may have.
    pub(crate) fn join(
        self: &Arc<Self>,
        room: OwnedSemaphorePermit,
        address: IpAddr,
    ) -> Option<Member> {
        let network = Network::of(address);
        let line = Arc::new(Line::new(self.began));
        let site = network.site();
        let mut inside = self.inside();
        if !self.has_share(&inside, network) {
            refused();
            return None;
        }
        *inside.addresses.entry(network).or_insert(0) += 1;
        *inside.sites.entry(site).or_insert(0) += 1;
        let number = inside.next;
        inside.next += 1;
        let held = Held {
            site,
            line: line.clone(),
        };
        inside.lines.insert(number, held);
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

impl Inside {
    /// Asks those to leave that have been quiet for longest, and says whether there are any.
    fn quiet_leave(&self, now: Duration) -> bool {
        let lines = self.lines.values().map(|held| &held.line);
        let quiet = lines.filter_map(|line| Some((line.quiet_for(now)?, line)));
        let quiet =
            quiet.filter(|(quiet, line)| *quiet >= LEAST_QUIET && !line.makes_way.is_cancelled());
        let mut quiet: Vec<_> = quiet.collect();
        quiet.sort_unstable_by_key(|(quiet, _)| std::cmp::Reverse(*quiet));
        for (_, line) in quiet.iter().take(LEAVERS) {
            line.leave("crowded");
        }
        !quiet.is_empty()
    }

    /// Asks a connection of the site to leave that has the most, if it then still has as many as the newcomer's site: the one that was
    /// active longest ago, and one with a request under way only where all have.
    fn largest_gives_one_up(&self, newcomer: Network) -> bool {
        let fair = count(&self.sites, newcomer) + 1;
        // Mostly that is all there is to see, while one who has many wants more.
        if self.sites.values().all(|count| *count <= fair) {
            return false;
        }
        let mut staying: HashMap<Network, (u32, &Line)> = HashMap::new();
        for held in self.lines.values() {
            let line: &Line = &held.line;
            if line.makes_way.is_cancelled() {
                continue;
            }
            let (count, idlest) = staying.entry(held.site).or_insert((0, line));
            *count += 1;
            if line.activity() < idlest.activity() {
                *idlest = line;
            }
        }
        match staying.into_values().max_by_key(|(count, _)| *count) {
            Some((count, idlest)) if count > fair => {
                idlest.leave("crowded_busy");
                true
            }
            _ => false,
        }
    }

    /// Whether a site has no connection.
    fn has_none(&self, site: Network) -> bool {
        count(&self.sites, site) == 0
    }
}

fn count(counts: &HashMap<Network, u32>, of: Network) -> u32 {
    counts.get(&of).copied().unwrap_or(0)
}

/// Takes one away again.
fn uncount(counts: &mut HashMap<Network, u32>, of: Network) {
    if let Some(count) = counts.get_mut(&of) {
        *count -= 1;
        if *count == 0 {
            counts.remove(&of);
        }
    }
}

/// Counts a connection that its address is not let have.
fn refused() {
    metrics::counter!("inkstone_gateway_connections_closed_total", "reason" => "address")
        .increment(1);
}

impl Aside {
    /// Waits for the room: for a second, or longer where others have to make way for it.
    pub(crate) async fn room(self) -> Option<OwnedSemaphorePermit> {
        self.crowd.room(self.site).await
    }
}

impl Drop for Aside {
    fn drop(&mut self) {
        uncount(&mut self.crowd.inside().aside, self.site);
    }
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
        uncount(&mut inside.addresses, self.network);
        uncount(&mut inside.sites, self.network.site());
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
            left: AtomicU64::new(0),
            answers: Answers::default(),
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

    /// Whether the client has left more of answers that were given up than a connection is borne with.
    pub(crate) fn leaves_too_much(&self) -> bool {
        self.left.load(Ordering::Relaxed) > MOST_LEFT
    }

    /// Whether no request is under way.
    pub(crate) fn is_quiet(&self) -> bool {
        self.under_way.load(Ordering::Relaxed) == 0
    }

    /// The less, the sooner it may make way: whether a request is under way, and when the last one ended.
    fn activity(&self) -> (bool, u64) {
        (!self.is_quiet(), self.quiet_since.load(Ordering::Relaxed))
    }

    fn leave(&self, reason: &'static str) {
        metrics::counter!("inkstone_gateway_connections_closed_total", "reason" => reason)
            .increment(1);
        self.makes_way.cancel();
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
            IpAddr::V6(address) => first_bits(address, IPV6_NETWORK_BITS).into(),
        })
    }

    /// What it is a part of, and one holder may have all of; of IPv4 it is the address itself.
    fn site(self) -> Self {
        Self(match self.0 {
            IpAddr::V4(address) => address.into(),
            IpAddr::V6(address) => first_bits(address, IPV6_SITE_BITS).into(),
        })
    }
}

fn first_bits(address: Ipv6Addr, bits: u32) -> Ipv6Addr {
    Ipv6Addr::from_bits(address.to_bits() >> (128 - bits) << (128 - bits))
}

impl std::fmt::Display for Network {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.0)
    }
}

#[cfg(test)]
#[path = "crowd_tests.rs"]
mod tests;
