//! Which version to load next, or to unload: a pure function.
//!
//! With `models.load = "demand"` a worker has in memory what its limit allows, by need:
//!
//! * Work goes to the workers that have its version. A version that nobody has and that is waited for is loaded by one worker at
//!   once: each version has its own order of the workers (rendezvous hashing: Thaler and Ravishankar, 1998), and each next
//!   one waits [`STAGGER`] longer for those before it.
//! * A version that others have is loaded here too only when waiting for them costs clearly more than loading it.
//! * Who needs room unloads what nobody waits for, the longest unused first; of the copies of a version that is waited for only
//!   those that are not the last. The holder whose name comes first counts its copy as the last, so that two never unload
//!   both.
//! * What was loaded stays for [`STAYS`] at least. When nothing else makes room for a version that nobody has, one that is waited for
//!   makes way after [`TURN`]: versions that do not fit together take turns.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::time::Duration;

use super::VersionKey;

/// How long each worker waits for those that come before it, of a version that nobody has.
pub(super) const STAGGER: Duration = Duration::from_secs(10);
/// What was loaded stays for so long.
pub(super) const STAYS: Duration = Duration::from_secs(60);
/// The turn of a version that is waited for, when another needs its room.
pub(super) const TURN: Duration = Duration::from_secs(300);
/// Waiting must cost so many times what loading does.
const CLEARLY: u32 = 2;

/// A version, as this worker sees it.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Need {
    /// Bytes of its weights.
    pub(super) bytes: u64,
    /// Tasks that wait for it or are being drawn.
    pub(super) work: usize,
    /// For how long there has been some while nobody had the version; zero otherwise.
    pub(super) wanted_for: Duration,
    /// What a task of it takes, as far as is known.
    pub(super) task: Duration,
    /// What loading it takes, as far as is known.
    pub(super) loading: Duration,
    /// Other workers that have it, or are loading it.
    pub(super) holders: Vec<String>,
    /// Whether this worker has it, or is loading it.
    pub(super) here: Option<Here>,
}

/// A version that this worker has.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Here {
    /// Since it was loaded, or began to be.
    pub(super) since: Duration,
    /// Since this worker last had work of it.
    pub(super) unused: Duration,
}

/// What to do next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Step {
    /// Load this one; there is room.
    Load(VersionKey),
    /// Unload this one; another needs its room.
    Unload(VersionKey),
}

/// `room`: bytes that all weights may take. `names`: the other workers.
pub(super) fn decide(
    me: &str,
    names: &[String],
    needs: &BTreeMap<VersionKey, Need>,
    room: u64,
) -> Option<Step> {
    let taken: u64 = here(needs).map(|(_, need, _)| need.bytes).sum();
    let mut wanted: Vec<_> = needs.iter().filter(|(_, need)| is_wanted(need)).collect();
    // Those that nobody has first, then those that are waited for longest.
    wanted.sort_by_key(|(_, need)| (!need.holders.is_empty(), std::cmp::Reverse(need.wanted_for)));
    for (key, need) in wanted {
        if need.bytes > room || !is_my_turn(me, names, key, need) {
            continue;
        }
        if taken.saturating_add(need.bytes) <= room {
            return Some(Step::Load(key.clone()));
        }
        if let Some(victim) = victim(me, needs, need) {
            return Some(Step::Unload(victim.clone()));
        }
    }
    None
}

fn here(needs: &BTreeMap<VersionKey, Need>) -> impl Iterator<Item = (&VersionKey, &Need, Here)> {
    needs
        .iter()
        .filter_map(|(key, need)| Some((key, need, need.here?)))
}

/// Whether it should be loaded here, room or not.
fn is_wanted(need: &Need) -> bool {
    if need.here.is_some() || need.work == 0 {
        return false;
    }
    let Some(holders) = u32::try_from(need.holders.len()).ok().filter(|&n| n > 0) else {
        return true;
    };
    let work = u32::try_from(need.work).unwrap_or(u32::MAX);
    need.task.saturating_mul(work) / holders > need.loading.saturating_mul(CLEARLY)
}

/// A version that nobody has is for one worker after the other.
fn is_my_turn(me: &str, names: &[String], key: &VersionKey, need: &Need) -> bool {
    if !need.holders.is_empty() {
        return true;
    }
    let place = |name: &str| {
        let mut hasher = DefaultHasher::new();
        (name, key).hash(&mut hasher);
        (hasher.finish(), name.to_owned())
    };
    let mine = place(me);
    let before = names.iter().filter(|name| place(name) < mine).count();
    let before = u32::try_from(before).unwrap_or(u32::MAX);
    need.wanted_for >= STAGGER.saturating_mul(before)
}

/// Which one makes way for `wanted`.
fn victim<'a>(
    me: &str,
    needs: &'a BTreeMap<VersionKey, Need>,
    wanted: &Need,
) -> Option<&'a VersionKey> {
    let nobody_has = wanted.holders.is_empty();
    let may_go = |need: &Need, here: Here| {
        let last = need.holders.iter().all(|holder| me < holder.as_str());
        let unwanted = need.work == 0 && (nobody_has || !last);
        let spare = need.work > 0 && !last && nobody_has;
        let turn_is_over = nobody_has && here.since >= TURN;
        here.since >= STAYS && (unwanted || spare || turn_is_over)
    };
    let candidates = here(needs).filter(|(_, need, here)| may_go(need, *here));
    // What nobody waits for before what is waited for, the longest unused first.
    let first = candidates.min_by_key(|(_, need, here)| {
        let since = std::cmp::Reverse(here.unused);
        (need.work > 0, since, std::cmp::Reverse(here.since))
    });
    first.map(|(key, ..)| key)
}

#[cfg(test)]
mod tests;
