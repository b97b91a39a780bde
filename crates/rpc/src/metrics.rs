//! What is counted of calls between services. Labels are names of peers and words of short closed lists.

use metrics::{counter, gauge};

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
