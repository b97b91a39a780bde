//! `models.load = "demand"`: looks again and again who waits for which version, and loads or unloads one.

use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant};

use contract::fleet::WorkerRecord;
use messaging::BrokerError;
use task_log::{TaskLog, TaskLogError};

use super::demand::{Here, Need, Step, decide};
use super::{Lives, VersionKey, files_of_weights};
use crate::worker::Worker;
use lifecycle::chain;

/// Between two looks. One version at most is loaded or unloaded at each.
const LOOK: Duration = Duration::from_secs(2);

/// Why a look came to nothing.
#[derive(Debug, thiserror::Error)]
enum LookError {
    #[error("it is not known what waits")]
    Work(#[from] TaskLogError),
    #[error("the fleet is not known")]
    Fleet(#[from] BrokerError),
}

/// What is remembered between looks.
#[derive(Default)]
struct Seen {
    /// Since when a version is waited for that nobody has.
    wanted: HashMap<VersionKey, Instant>,
    /// When there was last work of a version.
    worked: HashMap<VersionKey, Instant>,
}

/// Looks until the worker stops.
pub(super) async fn keep_looking(lives: Lives) {
    let worker = lives.keeper.worker.clone();
    let mut looks = tokio::time::interval(LOOK);
    looks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut seen = Seen::default();
    loop {
        tokio::select! {
            () = worker.stop.cancelled() => return,
            _ = looks.tick() => {}
        }
        if let Err(error) = look(&lives, &worker, &mut seen).await {
            tracing::debug!(error = chain(&error), "nothing is loaded or unloaded now");
        }
    }
}

async fn look(lives: &Lives, worker: &Worker, seen: &mut Seen) -> Result<(), LookError> {
    let work = waiting(&worker.log).await?;
    let others = worker.fleet.others().await?;
    let needs = needs(lives, worker, &work, &others, seen);
    let names: Vec<String> = others.into_iter().map(|other| other.name).collect();
    match decide(
        &worker.name,
        &names,
        &needs,
        worker.engine.room_for_weights(),
    ) {
        Some(Step::Load(key)) => {
            tracing::info!(name = %key.0, version = %key.1, "loaded by need");
            lives.begin(&key);
        }
        Some(Step::Unload(key)) => {
            tracing::info!(name = %key.0, version = %key.1, "unloaded: another needs its room");
            lives.end(&key);
        }
        None => {}
    }
    Ok(())
}

/// How much is waited for or being drawn, by version. WORK holds the orchestrator's window of each version; what waits behind
/// it is not seen here.
async fn waiting(log: &TaskLog) -> Result<BTreeMap<(String, String), usize>, TaskLogError> {
    Ok(log.work().await?.by_version)
}

fn needs(
    lives: &Lives,
    worker: &Worker,
    work: &BTreeMap<(String, String), usize>,
    others: &[WorkerRecord],
    seen: &mut Seen,
) -> BTreeMap<VersionKey, Need> {
    let now = Instant::now();
    let listed = lives.listed();
    seen.wanted.retain(|key, _| listed.contains_key(key));
    seen.worked.retain(|key, _| listed.contains_key(key));
    let mut needs = BTreeMap::new();
    for (key, (version, since)) in listed {
        let name = format!("{}/{}", key.0, key.1);
        let asked = (key.0.to_string(), key.1.to_string());
        let work = work.get(&asked).copied().unwrap_or(0);
        let has =
            |other: &&WorkerRecord| other.models.contains(&name) || other.loading.contains(&name);
        let holders = others.iter().filter(has).map(|other| other.name.clone());
        let holders: Vec<String> = holders.collect();
        if work > 0 {
            seen.worked.insert(key.clone(), now);
        }
        let nobody_has = since.is_none() && holders.is_empty();
        let wanted_for = if work > 0 && nobody_has {
            now - *seen.wanted.entry(key.clone()).or_insert(now)
        } else {
            seen.wanted.remove(&key);
            Duration::ZERO
        };
        let here = since.map(|since| Here {
            since: now.saturating_duration_since(since),
            unused: now.saturating_duration_since(
                seen.worked.get(&key).copied().unwrap_or(since).max(since),
            ),
        });
        let need = Need {
            bytes: files_of_weights(&version),
            work,
            wanted_for,
            task: worker.learned.task(&name),
            loading: worker.learned.loading(&name),
            holders,
            here,
        };
        needs.insert(key, need);
    }
    needs
}
