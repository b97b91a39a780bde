//! From the backlog to the workers' queue.
//!
//! The backlog stays in TASKS: one durable consumer a lane hands over a few heads at a time (invariant I6), the pure
//! [`schedule`](crate::schedule) picks among them, and what it picks goes to WORK as long as the version's window has room. A head
//! is acknowledged only when its dispatch is stored, so an orchestrator that dies loses nothing.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use contract::Lane;
use contract::task::{Phase, State, Submitted};
use futures::StreamExt as _;
use lifecycle::Service;
use messaging::{Broker, Delivery};
use prost::Message as _;
use task_log::{Record, TaskLog, TaskLogError, TaskRef};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};

use crate::aside::Aside;
use crate::schedule::{self, Head, Room, Turns};
use crate::settings::SchedulingSettings;
use crate::waiting::Waiting;

/// Heads of one lane in memory.
const HEADS_PER_LANE: usize = 64;
/// How often to look again though nothing was heard: notices may be lost.
const LOOK_AGAIN: Duration = Duration::from_millis(500);
/// Before a head that could not be dispatched is seen again.
const GIVE_BACK: Duration = Duration::from_secs(5);
/// Between two times that heads are given back because they block others: each costs the broker a redelivery.
const GIVE_BACK_EVERY: Duration = Duration::from_secs(5);
/// Dispatches under way at once.
const CONCURRENCY: usize = 16;

/// A head that is held: nobody else has it until it is acknowledged, given back or its ack wait passes.
struct Held {
    delivery: Delivery,
    submitted: Submitted,
    task: TaskRef,
    _room: OwnedSemaphorePermit,
}

/// Starts a puller for each lane and the dispatcher that they feed.
///
/// # Errors
/// When the lanes' consumers cannot be opened.
pub(crate) async fn start(
    service: &Service,
    broker: &Broker,
    log: &TaskLog,
    waiting: Arc<Waiting>,
    settings: &SchedulingSettings,
) -> Result<(), TaskLogError> {
    let (heads, arrivals) = mpsc::channel(HEADS_PER_LANE);
    for lane in settings.lanes.keys() {
        start_lane(service, log, lane, settings, heads.clone()).await?;
    }
    let ends = broker
        .listen("inkstone.event.*.*.*.done".to_owned())
        .await?;
    let mut dispatcher = Dispatcher {
        log: log.clone(),
        waiting,
        settings: settings.clone(),
        held: BTreeMap::new(),
        next_id: 0,
        turns: Turns::default(),
        gave_back: None,
        aside: Aside::new(Instant::now()),
    };
    let stopping = service.tasks.stopping();
    service.tasks.critical("dispatcher", async move {
        tokio::select! {
            () = stopping => {}
            () = dispatcher.run(arrivals, ends) => {}
        }
        dispatcher.give_all_back().await;
        Ok::<(), TaskLogError>(())
    });
    Ok(())
}

async fn start_lane(
    service: &Service,
    log: &TaskLog,
    lane: &Lane,
    settings: &SchedulingSettings,
    heads: mpsc::Sender<Held>,
) -> Result<(), TaskLogError> {
    let puller = log.submissions(lane, settings.ack_wait.duration()).await?;
    let log = log.clone();
    let room = Arc::new(Semaphore::new(HEADS_PER_LANE));
    let stopping = service.tasks.stopping();
    let pull = async move {
        loop {
            // Ask for as much as can be held, at least one.
            let first = room.clone().acquire_owned().await;
            let Ok(mut permits) = first else { return };
            let more = room.available_permits();
            if let Some(more) = u32::try_from(more).ok().filter(|&n| n > 0)
                && let Ok(more) = room.clone().try_acquire_many_owned(more)
            {
                permits.merge(more);
            }
            match puller.pull(permits.num_permits()).await {
                Ok(deliveries) => {
                    for delivery in deliveries {
                        let Some(permit) = permits.split(1) else {
                            break;
                        };
                        if !hold(delivery, permit, &heads, &log).await {
                            return;
                        }
                    }
                }
                Err(error) => {
                    tracing::debug!(%error, "pulling the backlog again");
                    drop(permits);
                    tokio::time::sleep(LOOK_AGAIN).await;
                }
            }
        }
    };
    service.tasks.critical("backlog", async move {
        tokio::select! {
            () = stopping => {}
            () = pull => {}
        }
        Ok::<(), TaskLogError>(())
    });
    Ok(())
}

/// Sends a head to the dispatcher; false when that is gone. A head that cannot be read can never run: it is buried.
async fn hold(
    delivery: Delivery,
    room: OwnedSemaphorePermit,
    heads: &mpsc::Sender<Held>,
    log: &TaskLog,
) -> bool {
    let submitted = Submitted::decode(delivery.payload().clone());
    let held = submitted.ok().and_then(|submitted| {
        let task = TaskRef::of(&submitted).ok()?;
        Some((submitted, task))
    });
    let Some((submitted, task)) = held else {
        bury_unreadable(&delivery, log).await;
        return true;
    };
    let held = Held {
        delivery,
        submitted,
        task,
        _room: room,
    };
    heads.send(held).await.is_ok()
}

async fn bury_unreadable(delivery: &Delivery, log: &TaskLog) {
    // inkstone.task.<tenant>.<lane>.<task>.submitted
    let mut tokens = delivery.subject().split('.').skip(2);
    let mut token = || tokens.next().unwrap_or("unknown").to_owned();
    let letter = contract::task::DeadLetter {
        tenant: token(),
        lane: token(),
        task_id: token(),
        code: contract::ErrorCode::Internal.to_string(),
        reason: "the submission cannot be decoded".to_owned(),
        at: Some(contract::now()),
        subject: delivery.subject().to_owned(),
        payload: delivery.payload().to_vec(),
        kind: String::new(),
    };
    tracing::error!(
        subject = delivery.subject(),
        "a submission cannot be decoded; see DEAD"
    );
    // Kept in the backlog until the copy in DEAD is stored.
    if log.bury(&letter).await.is_ok() {
        let _ = delivery.ack().await;
    }
}

struct Dispatcher {
    log: TaskLog,
    waiting: Arc<Waiting>,
    settings: SchedulingSettings,
    held: BTreeMap<u64, Held>,
    next_id: u64,
    turns: Turns,
    gave_back: Option<Instant>,
    aside: Aside,
}

impl Dispatcher {
    async fn run<S>(&mut self, mut arrivals: mpsc::Receiver<Held>, mut ends: S)
    where
        S: futures::Stream<Item = (String, bytes::Bytes)> + Unpin,
    {
        let mut look_again = tokio::time::interval(LOOK_AGAIN);
        let mut beat = tokio::time::interval(self.settings.ack_wait.duration() / 3);
        loop {
            tokio::select! {
                Some(head) = arrivals.recv() => {
                    self.take(head);
                    while let Ok(head) = arrivals.try_recv() {
                        self.take(head);
                    }
                }
                Some(_) = ends.next() => {}
                _ = look_again.tick() => {}
                _ = beat.tick() => self.keep_held().await,
            }
            if !self.held.is_empty()
                && let Err(error) = self.round().await
            {
                tracing::warn!(error = lifecycle::chain(&error), "dispatching again soon");
                tokio::time::sleep(LOOK_AGAIN).await;
            }
            metrics::gauge!("inkstone_orchestrator_heads").set(self.held.len() as f64);
        }
    }

    fn take(&mut self, head: Held) {
        self.held.insert(self.next_id, head);
        self.next_id += 1;
    }

    async fn keep_held(&self) {
        for held in self.held.values() {
            held.delivery.still_working().await;
        }
    }

    async fn round(&mut self) -> Result<(), TaskLogError> {
        let heads: Vec<Head> = self.held.iter().map(|(&id, held)| held.head(id)).collect();
        let room = self.room(&heads).await?;
        let lanes = &self.settings.lanes;
        let decision = schedule::decide(&heads, lanes, &room, HEADS_PER_LANE, &mut self.turns);
        if self
            .gave_back
            .is_none_or(|at| at.elapsed() >= GIVE_BACK_EVERY)
            && !decision.give_back.is_empty()
        {
            self.gave_back = Some(Instant::now());
            let blocked = decision
                .give_back
                .iter()
                .filter_map(|id| self.held.remove(id));
            futures::stream::iter(blocked.collect::<Vec<_>>())
                .for_each_concurrent(CONCURRENCY, async |held| held.give_back(GIVE_BACK).await)
                .await;
        }
        let delays = self.aside.delays(decision.put_aside.len(), Instant::now());
        let aside = decision.put_aside.iter().zip(delays);
        let aside = aside.filter_map(|(id, delay)| Some((self.held.remove(id)?, delay)));
        futures::stream::iter(aside.collect::<Vec<_>>())
            .for_each_concurrent(CONCURRENCY, async |(held, delay)| {
                held.give_back(delay).await
            })
            .await;
        let chosen: Vec<Held> = decision
            .dispatch
            .iter()
            .filter_map(|id| self.held.remove(id))
            .collect();
        let (log, waiting) = (&self.log, &self.waiting);
        futures::stream::iter(chosen)
            .for_each_concurrent(CONCURRENCY, async |held| {
                let weight = lanes.get(&held.task.lane).copied().unwrap_or(1);
                held.dispatch(log, waiting, weight).await;
            })
            .await;
        Ok(())
    }

    /// What there is room for, of what these heads are.
    async fn room(&self, heads: &[Head]) -> Result<Room, TaskLogError> {
        let window = self.settings.window;
        let work = self.log.work().await?;
        let left = |head: &Head| {
            let out = work.by_version.get(&head.version).copied().unwrap_or(0);
            (head.version.clone(), window.saturating_sub(out))
        };
        Ok(Room {
            versions: heads.iter().map(left).collect(),
            tenants: work.by_tenant,
        })
    }

    async fn give_all_back(&mut self) {
        for (_, held) in std::mem::take(&mut self.held) {
            if let Err(error) = held.delivery.give_back(Duration::ZERO).await {
                tracing::debug!(%error, "a head comes back after its ack wait");
            }
        }
    }
}

impl Held {
    fn head(&self, id: u64) -> Head {
        let Submitted {
            model,
            model_version,
            ..
        } = &self.submitted;
        Head {
            id,
            lane: self.task.lane.clone(),
            tenant: self.task.tenant.clone(),
            version: (model.clone(), model_version.clone()),
            limit: match self.submitted.tasks_running {
                0 => None,
                limit => usize::try_from(limit).ok(),
            },
        }
    }

    async fn give_back(&self, delay: Duration) {
        if let Err(error) = self.delivery.give_back(delay).await {
            tracing::debug!(%error, "a head comes back after its ack wait");
        }
    }

    async fn dispatch(self, log: &TaskLog, waiting: &Waiting, weight: u32) {
        let span = tracing::info_span!("dispatch", task = %self.task.task);
        self.delivery.continue_trace(&span);
        let handed_over = tracing::Instrument::instrument(self.hand_over(log, weight), span).await;
        if let Err(error) = handed_over {
            let error = lifecycle::chain(&error);
            tracing::warn!(task = %self.task.task, error, "not dispatched; again soon");
            self.give_back(GIVE_BACK).await;
        } else {
            waiting.left(&self.task.tenant);
        }
    }

    async fn hand_over(&self, log: &TaskLog, weight: u32) -> Result<(), TaskLogError> {
        let record = log.read(&self.task.tenant, self.task.task).await?;
        // A record that is not seen may lie on another replica: what is held says enough.
        if record.as_ref().is_none_or(needs_dispatch) {
            // Before the dispatch, so that a fast worker's "running" is not overwritten; and never over a state that is there,
            // which may name a checkpoint.
            if record.is_none_or(|record| record.state.is_none()) {
                let now = contract::now();
                let state = State {
                    phase: Phase::Scheduled.into(),
                    scheduled_at: Some(now),
                    at: Some(now),
                    ..State::default()
                };
                log.set_state(&self.task, &state).await?;
            }
            log.dispatch(&self.submitted, 0, weight).await?;
            metrics::counter!("inkstone_orchestrator_dispatched_total").increment(1);
        }
        Ok(self.delivery.ack().await?)
    }
}

/// False when the task has ended, or a worker has it: a head that comes again after its dispatch was stored.
fn needs_dispatch(record: &Record) -> bool {
    let running = |state: &State| state.phase() == Phase::Running;
    record.done.is_none() && !record.state.as_ref().is_some_and(running)
}
