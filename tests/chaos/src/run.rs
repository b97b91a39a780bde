//! One run: the platform is started, used and damaged, left in peace until every task has ended, and judged.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use lifecycle::Service;
use messaging::Broker;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::checker::{self, Calm, Evidence, Logged, Verdict};
use crate::clients::{CALLERS, CALM, Caller, POLITE};
use crate::cluster::Cluster;
use crate::error::ChaosError;
use crate::evidence::{gather, used};
use crate::history::{Happened, History, What};
use crate::link::Flow;
use crate::plan::{Fault, INSTANCES, Plan, STREAMS};
use crate::random::Random;
use crate::{calm, recorder, settings};

/// How often it is looked whether something is to begin or to end.
const TICK: Duration = Duration::from_millis(50);
/// How long tasks may take to end once nothing is damaged any more.
const DRAIN: Duration = Duration::from_secs(300);
const POLL: Duration = Duration::from_secs(1);
/// The longest that a setting may take to be in force everywhere.
const IN_FORCE: Duration = Duration::from_secs(60);
const GRACE: Duration = Duration::from_secs(2);

/// The files of a run, in its folder.
pub const PLAN: &str = "plan.json";
/// What was seen, an entry a line.
pub const HISTORY: &str = "history.jsonl";
/// All that was judged.
pub const EVIDENCE: &str = "evidence.json";

/// What came of a run.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Outcome {
    /// What was done.
    pub plan: Plan,
    /// What was found.
    pub verdict: Verdict,
    /// Where everything about it lies.
    pub folder: PathBuf,
}

/// Carries out a plan. Everything about it is kept in `folder`.
///
/// # Errors
/// When the run could not be made.
pub async fn run(plan: Plan, folder: &Path) -> Result<Outcome, ChaosError> {
    let file = |path: PathBuf| move |source| ChaosError::File { path, source };
    std::fs::create_dir_all(folder).map_err(file(folder.to_owned()))?;
    write(&folder.join(PLAN), &plan)?;
    let path = folder.join(HISTORY);
    let history = Arc::new(History::create(&path).map_err(file(path))?);
    let service = Service::new("chaos");
    let mut cluster = Cluster::start(folder, &plan, &service.tasks).await?;
    let broker = cluster.brokers.connection().await?;
    set_policy(&broker, plan.length_ms).await?;
    let day = calm::day();
    let stop = Arc::new(AtomicBool::new(false));
    let mut callers = Vec::new();
    for (part, (tenant, manner)) in (1..).zip(CALLERS) {
        let bearer = cluster.create_key(tenant).await?;
        in_force(&cluster.gateways(), &bearer).await?;
        let random = || Random::part(plan.seed, part);
        let caller = || {
            let (gateways, history) = (cluster.gateways(), history.clone());
            Caller::new(
                tenant,
                bearer.clone(),
                gateways,
                history,
                random(),
                stop.clone(),
            )
        };
        callers.push((tenant, manner, caller(), caller()));
    }
    let mut peaceful = peaceful(&cluster, plan.seed, history.clone()).await?;
    recorder::listen(&cluster.brokers.urls(), &service.tasks, &history).await?;
    let (mut threads, mut lookers) = (Vec::new(), BTreeMap::new());
    for (tenant, manner, caller, looker) in callers {
        threads.push(caller.start(manner).map_err(ChaosError::Spawn)?);
        lookers.insert(tenant, looker);
    }
    damage(&plan, &mut cluster, &history).await?;
    if plan.rolling {
        settle(&mut cluster).await?;
        restart_all(plan.strikes.len(), &mut cluster, &history).await?;
    }
    stop.store(true, Ordering::Relaxed);
    // They end with the request that they are at.
    for thread in threads {
        tokio::task::block_in_place(|| thread.join())
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    }
    drain(&broker, &mut cluster, &history).await?;
    settle(&mut cluster).await?;
    // Days are judged to the picture where it is the same day for all.
    let calm_phase = match day.is_some() && day == calm::day() {
        true => Some(in_peace(&broker, &mut peaceful).await?),
        false => None,
    };
    look_at_all(&history, &mut lookers);
    let over_midnight = day.is_none() || day != calm::day();
    let evidence = Evidence {
        calm: calm_phase,
        over_midnight,
        rules: settings::rules(POLITE, plan.length_ms),
        ..gather(&broker, &cluster, &history).await?
    };
    write(&folder.join(EVIDENCE), &evidence)?;
    service.stop(GRACE).await;
    Ok(Outcome {
        verdict: checker::check(&evidence),
        plan,
        folder: folder.to_owned(),
    })
}

/// Who submits [in peace](calm).
async fn peaceful(
    cluster: &Cluster,
    seed: u64,
    history: Arc<History>,
) -> Result<Caller, ChaosError> {
    let bearer = cluster.create_key(CALM).await?;
    let (gateways, never) = (cluster.gateways(), Arc::new(AtomicBool::new(false)));
    in_force(&gateways, &bearer).await?;
    let random = Random::part(seed, 0);
    Ok(Caller::new(CALM, bearer, gateways, history, random, never))
}

fn write(path: &Path, value: &impl Serialize) -> Result<(), ChaosError> {
    let file = |source| ChaosError::File {
        path: path.to_owned(),
        source,
    };
    let text = serde_json::to_vec_pretty(value).map_err(|e| file(e.into()))?;
    std::fs::write(path, text).map_err(file)
}

/// Sets the callers' policy: requests enough, and a limit on the day, so that days are counted.
async fn set_policy(broker: &Broker, length_ms: u64) -> Result<(), ChaosError> {
    let bucket = broker.bucket::<Value>("POLICIES", Duration::ZERO).await?;
    let deadline = Instant::now() + IN_FORCE;
    loop {
        if let Some(mut entry) = bucket.get(settings::POLICY).await? {
            entry.value["requests_per_second"] = settings::REQUESTS_PER_SECOND.into();
            entry.value["burst"] = settings::REQUESTS_PER_SECOND.into();
            entry.value["images_per_day"] = settings::images_per_day(length_ms).into();
            bucket.put(settings::POLICY, &entry.value).await?;
            return Ok(());
        }
        // Auth fills an empty bucket when it starts; a copy of it may be behind.
        if Instant::now() >= deadline {
            return Err(ChaosError::Key("there are no policies".to_owned()));
        }
        tokio::time::sleep(TICK).await;
    }
}

/// Waits until every gateway knows a key and its policy.
async fn in_force(gateways: &[String], bearer: &str) -> Result<(), ChaosError> {
    let expected = settings::REQUESTS_PER_SECOND.to_string();
    let agent = e2e::agent();
    let deadline = Instant::now() + IN_FORCE;
    for gateway in gateways {
        loop {
            let asked = agent
                .get(format!("{gateway}/v1/models"))
                .header("authorization", bearer);
            let known = asked.call().is_ok_and(|answer| {
                let limit = answer.headers().get("ratelimit-limit");
                answer.status() == 200 && limit.is_some_and(|l| l.as_bytes() == expected.as_bytes())
            });
            if known {
                break;
            }
            if Instant::now() >= deadline {
                return Err(ChaosError::Key(format!("{gateway} does not know it")));
            }
            tokio::time::sleep(TICK).await;
        }
    }
    Ok(())
}

/// Carries out what the plan says, and starts again what ends by itself.
async fn damage(plan: &Plan, cluster: &mut Cluster, history: &History) -> Result<(), ChaosError> {
    let began = Instant::now();
    let mut waiting = plan.strikes.iter().enumerate().peekable();
    // When each that has begun ends, and the server of the broker that it is about.
    let mut open: Vec<(u64, usize, Option<usize>)> = Vec::new();
    loop {
        let now = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
        let is_over = |strike: &(u64, usize, Option<usize>)| {
            let instance = plan.strikes[strike.1].fault.instance();
            strike.0 <= now && !instance.is_some_and(|name| cluster.is_ending(name))
        };
        let (over, still): (Vec<_>, Vec<_>) = open.into_iter().partition(is_over);
        open = still;
        for (_, number, node) in over {
            let of = plan.strikes[number].fault.clone();
            if let (Some(&by), Some(instance)) = (plan.jumps.get(&number), of.instance()) {
                cluster.set_clock(instance, by);
            }
            end(&of, node, cluster)?;
            history.note(
                "chaos",
                What::Strike {
                    number,
                    begins: false,
                    of,
                },
            );
        }
        while let Some((number, strike)) = waiting.next_if(|(_, strike)| strike.at_ms <= now) {
            let of = strike.fault.clone();
            history.note(
                "chaos",
                What::Strike {
                    number,
                    begins: true,
                    of: of.clone(),
                },
            );
            let node = begin(&of, cluster)?;
            open.push((strike.at_ms + strike.for_ms, number, node));
        }
        supervise(cluster, history)?;
        if now >= plan.length_ms && open.is_empty() {
            return Ok(());
        }
        tokio::time::sleep(TICK).await;
    }
}

fn supervise(cluster: &mut Cluster, history: &History) -> Result<(), ChaosError> {
    for (instance, status) in cluster.supervise()? {
        let (instance, status) = (instance.to_owned(), status.to_string());
        history.note("chaos", What::Ended { instance, status });
    }
    for stopped in cluster.stopped() {
        let what = What::Stopped {
            instance: stopped.instance.to_owned(),
            took_ms: millis(stopped.took),
            within_ms: millis(stopped.within),
            by_itself: stopped.by_itself,
        };
        history.note("chaos", what);
    }
    Ok(())
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// Restarts everything, one after the other, each when the one before can do its work again. Told as strikes from `first` on.
async fn restart_all(
    first: usize,
    cluster: &mut Cluster,
    history: &History,
) -> Result<(), ChaosError> {
    history.note("chaos", What::Rolling { begins: true });
    for (number, name) in (first..).zip(INSTANCES) {
        let of = Fault::Terminate {
            instance: name.to_owned(),
        };
        let strike = |begins| {
            let of = of.clone();
            What::Strike { number, begins, of }
        };
        history.note("chaos", strike(true));
        cluster.terminate(name);
        while cluster.is_ending(name) {
            supervise(cluster, history)?;
            tokio::time::sleep(TICK).await;
        }
        cluster.resume(name)?;
        cluster.wait_ready(name).await?;
        history.note("chaos", strike(false));
    }
    history.note("chaos", What::Rolling { begins: false });
    Ok(())
}

/// The server of the broker that it is about, if it is about one.
fn begin(fault: &Fault, cluster: &mut Cluster) -> Result<Option<usize>, ChaosError> {
    match fault {
        Fault::Kill { instance } => cluster.kill(instance),
        Fault::Terminate { instance } => cluster.terminate(instance),
        Fault::Stop { instance } => cluster.freeze(instance, true),
        Fault::Cut { instance, silent } => cluster.cut(instance, Flow::cut(*silent)),
        Fault::KillLeader { stream } => {
            let leader = tokio::task::block_in_place(|| cluster.brokers.leader(stream));
            let node = leader.unwrap_or(0);
            cluster.brokers.kill(node);
            return Ok(Some(node));
        }
        Fault::KillNode { node } => {
            cluster.brokers.kill(*node);
            return Ok(Some(*node));
        }
        Fault::StopNode { node } => {
            cluster.brokers.freeze(*node, true);
            return Ok(Some(*node));
        }
        Fault::Partition { node, silent } => {
            cluster.brokers.cut(*node, Flow::cut(*silent));
            return Ok(Some(*node));
        }
        Fault::Store { plan } => cluster.disturb_store(Some(plan))?,
    }
    Ok(None)
}

fn end(fault: &Fault, node: Option<usize>, cluster: &mut Cluster) -> Result<(), ChaosError> {
    match fault {
        Fault::Kill { instance } | Fault::Terminate { instance } => cluster.resume(instance),
        Fault::Stop { instance } => {
            cluster.freeze(instance, false);
            Ok(())
        }
        Fault::Cut { instance, .. } => {
            cluster.cut(instance, Flow::Open);
            Ok(())
        }
        Fault::KillLeader { .. } | Fault::KillNode { .. } => {
            let node = node.unwrap_or(0);
            tokio::task::block_in_place(|| cluster.brokers.restart(node))
        }
        Fault::StopNode { node } => {
            cluster.brokers.freeze(*node, false);
            Ok(())
        }
        Fault::Partition { node, .. } => {
            cluster.brokers.cut(*node, Flow::Open);
            Ok(())
        }
        Fault::Store { .. } => cluster.disturb_store(None),
    }
}

/// Waits until every task has ended; those that have not in time are for the checker to find.
async fn drain(
    broker: &Broker,
    cluster: &mut Cluster,
    history: &History,
) -> Result<(), ChaosError> {
    let deadline = Instant::now() + DRAIN;
    while Instant::now() < deadline {
        supervise(cluster, history)?;
        // The broker may still be choosing a leader.
        if let Ok(log) = recorder::log(broker).await {
            let of = |wanted: fn(&Happened) -> bool| -> BTreeSet<&str> {
                let found = log.iter().filter(|logged| wanted(&logged.event.event));
                found.map(|logged| logged.event.task.as_str()).collect()
            };
            let submitted = of(|event| matches!(event, Happened::Submitted { .. }));
            let done = of(|event| matches!(event, Happened::Done { .. }));
            if submitted.is_subset(&done) {
                return Ok(());
            }
        }
        tokio::time::sleep(POLL).await;
    }
    Ok(())
}

/// Waits until everything is itself again: every process ready, every copy of the streams whole.
async fn settle(cluster: &mut Cluster) -> Result<(), ChaosError> {
    for name in INSTANCES {
        cluster.wait_ready(name).await?;
    }
    let deadline = Instant::now() + IN_FORCE;
    let whole = || {
        STREAMS
            .iter()
            .all(|stream| cluster.brokers.is_whole(stream))
    };
    while !tokio::task::block_in_place(whole) {
        if Instant::now() >= deadline {
            return Err(ChaosError::NotWhole);
        }
        tokio::time::sleep(POLL).await;
    }
    Ok(())
}

/// Has tasks submitted and cancelled in peace, and waits until the day is charged what was drawn, or should long have been.
async fn in_peace(broker: &Broker, caller: &mut Caller) -> Result<Calm, ChaosError> {
    let before = used(broker).await?.remove(CALM).unwrap_or(0);
    tokio::task::block_in_place(|| calm::pass(caller));
    let log = recorder::log(broker).await?;
    let of_it = |logged: &&Logged| logged.event.tenant == CALM;
    let (mut asked, mut cancelled) = (BTreeMap::new(), BTreeSet::new());
    for Logged { event, .. } in log.iter().filter(of_it) {
        match &event.event {
            Happened::Submitted { images, .. } => {
                asked.insert(event.task.as_str(), u64::from(*images));
            }
            Happened::Done { outcome, .. } if outcome == "cancelled" => {
                cancelled.insert(event.task.as_str());
            }
            _ => {}
        }
    }
    asked.retain(|task, _| !cancelled.contains(task));
    let expected = before + asked.values().sum::<u64>();
    let deadline = Instant::now() + IN_FORCE;
    while used(broker).await?.get(CALM).copied().unwrap_or(0) != expected {
        if Instant::now() >= deadline {
            // The checker finds it.
            break;
        }
        tokio::time::sleep(POLL).await;
    }
    Ok(Calm {
        tenant: CALM.to_owned(),
        before,
    })
}

/// Every caller looks at each task that it was promised.
fn look_at_all(history: &History, lookers: &mut BTreeMap<&str, Caller>) {
    let promised: BTreeSet<(String, String)> = history
        .entries()
        .into_iter()
        .filter_map(|entry| match entry.what {
            What::Accepted { tenant, task, .. } => Some((tenant, task)),
            _ => None,
        })
        .collect();
    tokio::task::block_in_place(|| {
        for (tenant, task) in promised {
            if let Some(looker) = lookers.get_mut(tenant.as_str()) {
                // What it sees is in the history; the checker compares.
                looker.has_ended(&task);
            }
        }
    });
}
