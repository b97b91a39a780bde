//! Clients that want the gateway to fall over, one kind a module. Each attack runs beside a neighbour who behaves and must be
//! served throughout; the gateway's memory has a stated bound, and its log tells of no panic.

// What was measured, for whoever runs them by hand.
#![allow(clippy::print_stdout)]

mod answers;
mod bodies;
mod connections;
mod flate;
mod frames;
mod heads;
mod messages;
mod neighbour;
mod pictures;
mod siege;
mod ssrf;

use std::future::Future;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use e2e::Platform;

use self::neighbour::{Heard, Neighbour};

/// All but the worker: nobody draws here.
const FRONT: [&str; 4] = ["auth", "model-registry", "orchestrator", "gateway"];
/// Between two looks.
const PAUSE: Duration = Duration::from_millis(50);
/// For an answer of the gateway's to arrive.
const PATIENCE: Duration = Duration::from_secs(30);

/// Lets an attack run. The most memory that the gateway has had grows by `mib` at most, all is well with it afterwards, and the
/// neighbour is served meanwhile.
async fn under_attack(platform: &Platform, name: &str, mib: u64, attack: impl Future<Output = ()>) {
    let memory = |field| platform.process_status("gateway", field) / 1024;
    let before = memory("VmHWM");
    let neighbour = Neighbour::start(platform).await;
    attack.await;
    let Heard {
        served,
        accepted,
        slowest,
        ..
    } = neighbour.finish();
    let grown = memory("VmHWM").saturating_sub(before);
    println!(
        "{name}: {grown} MiB more at most, the neighbour was served {served} times, {slowest:.1?} at the slowest, and {accepted} of its tasks accepted"
    );
    assert!(
        grown <= mib,
        "{name}: memory grew by {grown} MiB, which may be {mib}"
    );
    let log = platform.whole_log("gateway");
    assert!(
        !log.contains("panicked"),
        "{name}: {}",
        platform.log("gateway")
    );
}

/// The gateway's address.
fn address(platform: &Platform) -> SocketAddr {
    platform
        .url()
        .strip_prefix("http://")
        .unwrap()
        .parse()
        .unwrap()
}

fn connect(platform: &Platform) -> TcpStream {
    let stream = TcpStream::connect(address(platform)).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.set_write_timeout(Some(PATIENCE)).unwrap();
    stream
}

/// Sends these bytes on a connection of their own, and gives all that comes back until the gateway closes it or, after the
/// first bytes, says nothing for a moment.
fn exchange(platform: &Platform, bytes: &[u8]) -> String {
    let mut stream = connect(platform);
    // What the gateway does not want to hear, it may close the connection under.
    let _ = stream.write_all(bytes);
    read_answers(&mut stream)
}

fn read_answers(stream: &mut TcpStream) -> String {
    const MOMENT: Duration = Duration::from_millis(300);
    let (mut all, mut piece) = (Vec::new(), [0; 16 * 1024]);
    while let Ok(read @ 1..) = stream.read(&mut piece) {
        all.extend_from_slice(&piece[..read]);
        stream.set_read_timeout(Some(MOMENT)).unwrap();
    }
    String::from_utf8_lossy(&all).into_owned()
}

/// The statuses of the HTTP/1.1 answers in a text, in their order.
fn statuses(answers: &str) -> Vec<u16> {
    let lines = answers.split("HTTP/1.1 ").skip(1);
    lines.map(|line| line[..3].parse().unwrap()).collect()
}

/// A POST's head, complete, for a body that these headers describe.
fn head(platform: &Platform, path: &str, headers: &str) -> String {
    let bearer = platform.authorization();
    format!("POST {path} HTTP/1.1\r\nhost: x\r\nauthorization: {bearer}\r\n{headers}\r\n\r\n")
}
