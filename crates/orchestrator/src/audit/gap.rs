//! What the log has let go of before it was recorded.
//!
//! Most places of the log that hold nothing are no loss: a state goes when the next one of its task comes. So a place that is missing says nothing
//! by itself. But the log lets go of what is old from its beginning, and whoever purges it, or gives it a limit, does so, too. Therefore the
//! event that was recorded last stays in the log ([`hold`](super::hold)): while this witness is there nothing behind it has gone from
//! the log's beginning. Where it has gone, so has what lay between it and the log's first event and was not read: a [`Gap`].
//!
//! The log itself lets go of the witness in one case, when the id of its task comes again. Then it is noted up to where nothing was missing.
//!
//! Where TASKS itself was made anew there is no witness either, and its places begin anew: that is told by [when it was made](super::identity), and a gap
//! as well.
//!
//! Not seen is who removes single events behind the witness, in the milliseconds before they are read.

use ::audit::Event;
use messaging::{Bucket, Extent};

use super::{AuditError, hold};

/// The log held it for as long as it may.
const EXPIRED: &str = "expired";
/// Who removed it is not known here.
const REMOVED: &str = "removed";

/// Places of the log that were removed before they were recorded; or that another log stands in its place ([`Event::ANEW`]).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Gap {
    /// The first.
    pub(super) from: u64,
    /// The last.
    pub(super) to: u64,
    /// As its record says it.
    pub(super) why: &'static str,
}

/// The event that was recorded last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Witness {
    /// Nothing is recorded: the chain begins with what the log has, and lacks only what is noted as [let go of](hold::Released) for it.
    Begin,
    /// It lies here.
    At(u64),
    /// A gap was recorded last, and no event lies at its end. The log's beginning may go on from there as states go, with no loss.
    Gap,
}

/// What is missing behind place `after` of a log that has let go of all before place `first` by now. `read` was read since, in order.
pub(super) fn missing(
    witness: Witness,
    after: u64,
    read: &[u64],
    first: u64,
) -> Option<(u64, u64)> {
    match witness {
        Witness::At(place) if first <= place => return None,
        // It is told in front of what comes next, and not of each state that goes.
        Witness::Gap if read.is_empty() => return None,
        Witness::Begin | Witness::At(_) | Witness::Gap => {}
    }
    let before = read.iter().rev().find(|place| **place < first);
    let read = before.copied().unwrap_or(0).max(after);
    (first > read + 1).then(|| (read + 1, first - 1))
}

/// The gap behind place `after`, if there is one, as the log is since `read` was read.
pub(super) async fn find(
    witness: Witness,
    after: u64,
    read: &[u64],
    (log, released): (&Extent, &Bucket<hold::Released>),
) -> Result<Option<Gap>, AuditError> {
    let first = match witness {
        Witness::Begin => log.first.min(let_go_before(log, released).await?),
        Witness::At(_) | Witness::Gap => log.first,
    };
    let after = match witness {
        Witness::At(place) if first > place => {
            let before = hold::whole_before(log, released, place).await?;
            after.max(before.saturating_sub(1))
        }
        _ => after,
    };
    let Some((from, to)) = missing(witness, after, read, first) else {
        return Ok(None);
    };
    let is_expired = to < let_go_before(log, released).await?;
    let why = if is_expired { EXPIRED } else { REMOVED };
    Ok(Some(Gap { from, to, why }))
}

/// The gap between a log that was recorded up to this place, and the one that was made anew in its place.
pub(super) fn anew(recorded: u64, log: &Extent) -> Gap {
    Gap {
        from: recorded + 1,
        to: log.first.saturating_sub(1),
        why: Event::ANEW,
    }
}

/// Before which place this log has let go of some that was not recorded, as is noted; 0 where it never did.
async fn let_go_before(log: &Extent, released: &Bucket<hold::Released>) -> Result<u64, AuditError> {
    let found = released.get(hold::RELEASED).await?;
    let found = found.filter(|found| found.value.is_of(log));
    Ok(found.map_or(0, |found| found.value.before))
}

/// Says that there is a gap in the chain now.
pub(super) fn tell(gap: &Gap) {
    let Gap { from, to, why } = *gap;
    metrics::counter!("inkstone_orchestrator_audit_gaps_total").increment(1);
    if why == Event::ANEW {
        tracing::error!(
            from,
            to,
            "TASKS was made anew, or restored from a backup: what the log before had from a place on was not recorded, the new one is recorded from its beginning, and between the two the audit chain has a gap, which `inkstone audit verify` tells of; write down what is known of it (docs/OPERATIONS.md, \"Audit\")"
        );
        return;
    }
    tracing::error!(
        from,
        to,
        why,
        "events of the task log were removed before they were recorded: the audit chain has a gap, which `inkstone audit verify` tells of; find out who removed them, and write down what is known of that time (docs/OPERATIONS.md, \"Audit\")"
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_behind_a_witness_that_is_there_is_no_gap() {
        for first in 1..=5 {
            assert_eq!(missing(Witness::At(5), 7, &[9, 12], first), None);
            assert_eq!(missing(Witness::At(5), 5, &[], first), None);
        }
        // All was read that has gone, witness or not.
        assert_eq!(missing(Witness::At(5), 7, &[8, 9], 8), None);
        assert_eq!(missing(Witness::At(5), 7, &[8, 9, 12], 10), None);
        assert_eq!(missing(Witness::At(5), 7, &[], 8), None);
    }

    #[test]
    fn without_the_witness_what_has_gone_from_the_beginning_and_was_not_read_is_a_gap() {
        assert_eq!(missing(Witness::At(5), 5, &[], 21), Some((6, 20)));
        assert_eq!(missing(Witness::At(5), 7, &[21, 24], 21), Some((8, 20)));
        // What was read before it went is none.
        assert_eq!(missing(Witness::At(5), 5, &[6, 7, 21], 21), Some((8, 20)));
        assert_eq!(missing(Witness::At(5), 5, &[6, 7], 21), Some((8, 20)));
        // Behind a gap only with what comes next.
        assert_eq!(missing(Witness::Gap, 20, &[], 25), None);
        assert_eq!(missing(Witness::Gap, 20, &[25], 25), Some((21, 24)));
        assert_eq!(missing(Witness::Gap, 20, &[21], 21), None);
    }

    #[test]
    fn a_chain_begins_with_what_the_log_has_not_let_go_of_for_it() {
        assert_eq!(missing(Witness::Begin, 0, &[7, 8], 0), None);
        assert_eq!(missing(Witness::Begin, 0, &[7, 8], 5), Some((1, 4)));
        assert_eq!(missing(Witness::Begin, 0, &[], 5), Some((1, 4)));
    }
}
