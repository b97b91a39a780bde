//! What is counted of calls between services. Labels are names of peers and words of short closed lists.

use jiff::Timestamp;
use metrics::{counter, gauge, histogram};

use crate::breaker::BreakerState;

/// 0 closed, 1 half-open, 2 open.
pub(crate) fn breaker(peer: &'static str, state: BreakerState) {
    let value = match state {
        BreakerState::Closed => 0.0,
        BreakerState::HalfOpen => 1.0,
        BreakerState::Open => 2.0,
    };
    gauge!("inkstone_rpc_breaker_state", "peer" => peer).set(value);
}

/// A call that an open breaker kept back.
pub(crate) fn kept_back(peer: &'static str) {
    counter!("inkstone_rpc_kept_back_total", "peer" => peer).increment(1);
}

/// A call that could be sent again: `sent`, or `over_budget`.
pub(crate) fn retry(peer: &'static str, outcome: &'static str, left: u64) {
    counter!("inkstone_rpc_retries_total", "peer" => peer, "outcome" => outcome).increment(1);
    gauge!("inkstone_rpc_retry_budget", "peer" => peer).set(left as f64);
}

/// Work that was dropped because its caller's deadline passed.
pub(crate) fn too_late() {
    counter!("inkstone_rpc_deadlines_passed_total").increment(1);
}

/// Calls that were sent in one.
pub(crate) fn group(peer: &'static str, calls: usize) {
    histogram!("inkstone_rpc_group_size", "peer" => peer).record(calls as f64);
}

/// How many calls may be under way.
pub(crate) fn limit(peer: &'static str, calls: usize) {
    gauge!("inkstone_rpc_limit", "peer" => peer).set(calls as f64);
}

/// A call that was refused because too many were under way for how long they took.
pub(crate) fn over_limit(peer: &'static str) {
    counter!("inkstone_rpc_over_limit_total", "peer" => peer).increment(1);
}

/// A call for which there was no room.
pub(crate) fn shed() {
    counter!("inkstone_rpc_shed_total").increment(1);
}

/// A call whose caller's certificate does not allow it.
pub(crate) fn forbidden() {
    counter!("inkstone_rpc_forbidden_total").increment(1);
}

/// A handshake of a caller: `done`, `failed`, `slow`, or `nameless`.
pub(crate) fn handshake(outcome: &'static str) {
    counter!("inkstone_tls_handshakes_total", "outcome" => outcome).increment(1);
}

/// The last moment at which a certificate is good, as a Unix time. `certificate`: `service`, or `public`.
pub(crate) fn certificate_ends(certificate: &'static str, ends: Timestamp) {
    gauge!("inkstone_tls_certificate_ends_seconds", "certificate" => certificate)
        .set(ends.as_second() as f64);
}

/// Files that changed: `taken`, or `refused`.
pub(crate) fn certificate_reload(certificate: &'static str, outcome: &'static str) {
    counter!("inkstone_tls_reloads_total", "certificate" => certificate, "outcome" => outcome)
        .increment(1);
}
