//! A hundred thousand connections with half a head each, by someone with many addresses who comes back at once: `make test-siege`.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use e2e::Platform;
use tokio::io::AsyncReadExt as _;
use tokio::task::JoinSet;

use super::connections::{FULL_HOUSE_MIB, MOST, closed, dribble, metric};
use super::{FRONT, PAUSE, address, under_attack};

/// Connections that the gateway has taken and closed when the siege ends. Those that it still holds come on top.
const CONNECTIONS: u64 = 100_000;
/// The attacker's sockets at once, each held by the gateway, in its queue, or knocking at that: more than both have room for (4096 and 1024),
/// so that they are full throughout. All of 100,000 at once would be in the same place as the last of these: outside.
const SOCKETS: usize = 5_500;
/// One address, with many more than it may have.
const GREEDY: Ipv4Addr = Ipv4Addr::new(127, 0, 2, 1);
/// The first of the others: the next connection comes from the next one. For whoever has no connection yet the gateway does most.
const OTHERS: Ipv4Addr = Ipv4Addr::new(127, 16, 0, 0);
/// After an attempt that came to nothing.
const COME_BACK: Duration = Duration::from_millis(200);
/// For all of it. Nobody makes way before a second, so a full house lets in 4096 others a second at most.
const LONGEST: Duration = Duration::from_secs(240);

/// Every second connection comes from the greedy address, …
fn source(number: u32) -> Ipv4Addr {
    if number.is_multiple_of(2) {
        GREEDY
    } else {
        // … and no address of the others comes twice.
        Ipv4Addr::from_bits(OTHERS.to_bits() + number / 2)
    }
}

/// Opens a connection, sends half a head, says no more until the gateway closes it, and opens the next.
async fn insist(to: SocketAddr, numbers: Arc<AtomicU32>) {
    loop {
        let number = numbers.fetch_add(1, Ordering::Relaxed);
        match dribble(to, source(number)).await {
            Some(mut stream) => while let Ok(1..) = stream.read(&mut [0; 64]).await {},
            None => tokio::time::sleep(COME_BACK).await,
        }
    }
}

/// Waits until the gateway has closed as many as are asked for, and gives how many for having too many, how many for being quiet, and the most
/// that it had at once.
fn outlast(platform: &Platform) -> (u64, u64, u64) {
    let (began, mut most) = (Instant::now(), 0);
    loop {
        let too_many = closed(platform, "address");
        let quiet = closed(platform, "crowded");
        most = most.max(metric(platform, "inkstone_gateway_connections"));
        if too_many + quiet >= CONNECTIONS {
            return (too_many, quiet, most);
        }
        let waited = began.elapsed();
        assert!(
            waited < LONGEST,
            "{too_many} and {quiet} were closed in {waited:?}"
        );
        std::thread::sleep(PAUSE);
    }
}

#[ignore = "takes both processors for half a minute: make test-siege"]
#[tokio::test(flavor = "multi_thread")]
async fn a_hundred_thousand_connections_with_half_a_head_each_take_no_more_room_than_a_full_house_and_keep_nobody_out()
 {
    let platform = Platform::start_services(&FRONT, &[], false).await;
    let to = address(&platform);
    under_attack(&platform, "a siege", FULL_HOUSE_MIB, async {
        let (numbers, mut attackers) = (Arc::new(AtomicU32::new(0)), JoinSet::new());
        for _ in 0..SOCKETS {
            attackers.spawn(insist(to, numbers.clone()));
        }
        let began = Instant::now();
        let (too_many, quiet, most) = tokio::task::block_in_place(|| outlast(&platform));
        let opened = numbers.load(Ordering::Relaxed);
        let took = began.elapsed();
        println!(
            "{opened} connections were tried in {took:.1?}: {too_many} closed for having too many, {quiet} for being quiet, {most} held at the most"
        );
        // The house was full, and no fuller; and both kinds came.
        let full = MOST as u64;
        assert!((full * 9 / 10..=full).contains(&most), "{most} were held");
        assert!(quiet > CONNECTIONS / 4, "{quiet} were let in and made way");
        assert!(too_many > 0, "nobody had too many");
    })
    .await;
}
