//! One decision and what follows from it.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::{Duration, Instant, UNIX_EPOCH};

use futures::FutureExt as _;
use task_log::{Handed, Handover, Queue, Record, TaskLog, TaskLogError, TaskRef};
use tracing::Instrument as _;

use super::out::Own;
use super::{Answer, Dispatcher};
use crate::backlog::Standing;
use crate::backlog::line::{REST, Waiting};
use crate::partitions::{Mandate, Served, share};
use crate::schedule::{self, Head, Room, Version};

/// Dispatches under way at once; with more the next round waits.
const MAX_HANDS: usize = 256;

/// Telling how things stand takes at most one part in so many of the time.
const STAND_PART: u32 = 50;

/// What came of handing a task over.
pub(super) struct HandedOver {
    queue: Queue,
    head: Waiting,
    result: Result<Handed, TaskLogError>,
}

impl Dispatcher {
    /// Decides, and begins to carry it out.
    pub(super) fn round(&mut self) {
        let now = Instant::now();
        let mandate = self.mandate.borrow().clone();
        if !mandate.is_sure(now) || !self.out.is_known() || self.hands >= MAX_HANDS {
            return;
        }
        // Where it is not known, nothing is too late.
        let today = mandate.time(now).unwrap_or(UNIX_EPOCH);
        let today = today.duration_since(UNIX_EPOCH).unwrap_or_default();
        let (heads, queues) = self.candidates(&mandate, now, today);
        if heads.is_empty() {
            return;
        }
        let room = Room {
            versions: self.rooms(&heads, &mandate),
            tenants: self.out.by_tenant().clone(),
        };
        let decision = schedule::decide(&heads, &self.policy, &room, today, &mut self.turns);
        let schedule::Decision { dispatch, expired } = decision;
        for id in dispatch {
            if let Some(queue) = queues.get(&id) {
                self.hand_over(queue, id, now);
            }
        }
        // Those that are left come with the next round.
        for id in expired
            .into_iter()
            .take(MAX_HANDS.saturating_sub(self.hands))
        {
            if let Some(queue) = queues.get(&id) {
                self.end_expired(queue, id);
            }
        }
        metrics::gauge!("inkstone_orchestrator_heads").set(self.held as f64);
    }

    /// The heads that may go, and the queue of each.
    fn candidates(
        &self,
        mandate: &Mandate,
        now: Instant,
        today: Duration,
    ) -> (Vec<Head>, HashMap<u64, Queue>) {
        let (mut heads, mut queues) = (Vec::new(), HashMap::new());
        let mut lines = self.backlog.lines();
        let mut rooms: BTreeMap<Version, bool> = BTreeMap::new();
        for queue in &self.active {
            let partition = self.partitions.of(&queue.tenant);
            let may = mandate.partitions.contains(&partition) && !self.closing.contains(&partition);
            let Some(line) = lines.get_mut(queue).filter(|_| may) else {
                continue;
            };
            if line.not_before.is_some_and(|at| at > now) {
                continue;
            }
            let mut any = false;
            for head in &line.heads {
                let has_room = match rooms.get(&head.version) {
                    Some(room) => *room,
                    None => {
                        let room = self.room(&head.version, mandate) > 0;
                        rooms.insert(head.version.clone(), room);
                        room
                    }
                };
                let begin_by = head.begin_by();
                let is_late = begin_by.is_some_and(|by| by <= today);
                if !has_room && !is_late {
                    continue;
                }
                any = true;
                queues.insert(head.sequence, queue.clone());
                heads.push(Head {
                    id: head.sequence,
                    lane: queue.lane.clone(),
                    tenant: queue.tenant.clone(),
                    version: head.version.clone(),
                    cost: head.cost,
                    submitted_at: head.submitted_at,
                    deadline: begin_by,
                    limit: head.limit,
                });
            }
            line.stuck = !any && !line.heads.is_empty();
        }
        (heads, queues)
    }

    fn rooms(&self, heads: &[Head], mandate: &Mandate) -> BTreeMap<Version, usize> {
        let versions: BTreeSet<&Version> = heads.iter().map(|head| &head.version).collect();
        let room = |version: &Version| (version.clone(), self.room(version, mandate));
        versions.into_iter().map(room).collect()
    }

    /// How many more dispatches of a version this orchestrator may make: up to its share of the window, and all together no more than
    /// the window, or one for each who wants one.
    fn room(&self, version: &Version, mandate: &Mandate) -> usize {
        let window = self.settings.window;
        let none = Vec::new();
        let others = mandate.others.get(version).unwrap_or(&none);
        let mine = self.demand.get(version).copied().unwrap_or(0).max(1);
        let wanting = 1 + others.iter().filter(|demand| **demand > 0).count();
        let left = window.max(wanting);
        let left = left.saturating_sub(self.out.of_version(version));
        let share = share(window, mine, others);
        let mine = self.out.of_partitions(version, &self.own);
        share.saturating_sub(mine).min(left)
    }

    /// Takes a head out of its queue, to do something about it.
    fn take_head(&mut self, queue: &Queue, sequence: u64) -> Option<Waiting> {
        let head = self.backlog.lines().get_mut(queue)?.take(sequence)?;
        self.held = self.held.saturating_sub(1);
        self.hands += 1;
        Some(head)
    }

    /// Ends a task that has waited too long to be of use.
    fn end_expired(&mut self, queue: &Queue, sequence: u64) {
        let Some(head) = self.take_head(queue, sequence) else {
            return;
        };
        let weight = self.settings.lanes.get(&queue.lane).copied().unwrap_or(1);
        let (log, queue) = (self.log.clone(), queue.clone());
        let end = async move {
            let result = end_expired(&log, &head, weight).await;
            Answer::HandedOver(Box::new(HandedOver {
                queue,
                head,
                result,
            }))
        };
        self.answers.push(end.boxed());
    }

    fn hand_over(&mut self, queue: &Queue, sequence: u64, now: Instant) {
        let Some(head) = self.take_head(queue, sequence) else {
            return;
        };
        let place = (head.version.clone(), head.task.tenant.clone());
        let own = Own {
            lane: queue.lane.clone(),
            cost: head.cost,
            size: head.size,
        };
        self.out.add(head.task.task, place, Some(own), now);
        self.has_moved = true;
        let weight = self.settings.lanes.get(&queue.lane).copied().unwrap_or(1);
        let (log, queue) = (self.log.clone(), queue.clone());
        let hand = async move {
            let result = hand_over(&log, &head, weight).await;
            Answer::HandedOver(Box::new(HandedOver {
                queue,
                head,
                result,
            }))
        };
        self.answers.push(hand.boxed());
    }

    pub(super) fn handed_over(&mut self, handed: HandedOver) {
        // A round may wait for this.
        self.is_due |= self.hands >= MAX_HANDS;
        self.hands -= 1;
        let HandedOver {
            queue,
            head,
            result,
        } = handed;
        let task = head.task.task;
        let now = Instant::now();
        let mut lines = self.backlog.lines();
        let line = lines.get_mut(&queue);
        match result {
            Ok(outcome) => {
                let is_here = line.is_some();
                if let Some(line) = line {
                    line.done(head.sequence);
                }
                drop(lines);
                let is_open = outcome != Handed::Ended && !self.out.has_ended(task);
                if is_here && is_open {
                    self.unended.add(task, &queue, head.sequence, now);
                }
                match outcome {
                    Handed::Dispatched => {
                        metrics::counter!("inkstone_orchestrator_dispatched_total").increment(1);
                        self.numbers.left(&head.task.tenant);
                    }
                    // It counts until WORK is looked at: it may be there.
                    Handed::Already => {}
                    Handed::Ended => self.is_due |= self.out.remove(task, now),
                }
                self.saving.changed(&queue);
            }
            Err(error) => {
                let error = lifecycle::chain(&error);
                tracing::warn!(%task, error, "not dispatched; again soon");
                if let Some(line) = line {
                    line.put_back(head, now + REST);
                    self.held += 1;
                }
                drop(lines);
                self.out.remove(task, now);
            }
        }
        self.consider(&queue);
    }

    /// Tells the others how much there is to do here.
    pub(super) fn tell_demand(&mut self) {
        let mut demand: BTreeMap<Version, u64> = BTreeMap::new();
        let lines = self.backlog.lines();
        for line in self.active.iter().filter_map(|queue| lines.get(queue)) {
            let weight = self.settings.lanes.get(&line.queue.lane).copied();
            let versions: BTreeSet<&Version> = line.heads.iter().map(|h| &h.version).collect();
            for version in versions {
                *demand.entry(version.clone()).or_default() += u64::from(weight.unwrap_or(1));
            }
        }
        drop(lines);
        self.demand = demand;
        self.tell_served();
    }

    /// Tells estimates how things stand, if they have moved; after a time that is long against what that takes.
    pub(super) fn stand(&mut self) {
        let began = Instant::now();
        if !self.has_moved || self.stand_after.is_some_and(|at| began < at) {
            return;
        }
        self.has_moved = false;
        // Until all queues that are known of are open, one that is not there may yet have tasks.
        let is_settled = self.known_to > 0 && self.opening.is_empty();
        let settled = self.own.difference(&self.closing).copied();
        self.backlog.stand(Standing {
            at: Some(began),
            turns: self.turns.clone(),
            handed: self.out.handed(&self.own, began),
            tally: self.out.tally(),
            changes: self.costed,
            share: self.share(),
            settled: settled.filter(|_| is_settled).collect(),
        });
        self.stand_after = Some(began + began.elapsed() * STAND_PART);
    }

    /// Tells anew what tasks cost, once that has changed much: what was told before is of another measure.
    pub(super) fn cost_anew(&mut self) {
        let changes = self.learned.changes();
        if self.costed == changes {
            return;
        }
        self.costed = changes;
        let learned = &self.learned;
        let cost = |version: &Version, size| learned.cost_of(version, size);
        let mut lines = self.backlog.lines();
        for queue in &self.active {
            if let Some(line) = lines.get_mut(queue) {
                line.cost_anew(cost);
            }
        }
        drop(lines);
        self.out.cost_anew(cost);
        self.has_moved = true;
    }

    /// The part of the workers' time that goes to the queues here.
    fn share(&self) -> f64 {
        let mandate = self.mandate.borrow();
        let mine: u64 = self.demand.values().sum();
        let wanted = |version: &Version| mandate.others.get(version);
        let others = self.demand.keys().filter_map(wanted).flatten();
        let all = mine + others.sum::<u64>();
        if all == 0 {
            1.0
        } else {
            mine as f64 / all as f64
        }
    }

    pub(super) fn tell_served(&self) {
        self.served.send_replace(Served {
            partitions: self.own.clone(),
            demand: self.demand.clone(),
        });
    }
}

/// Ends a task that did not begin in time. One that was handed over before, by whoever had the queue until its cursor was last kept, has
/// begun or is about to: it goes on.
async fn end_expired(log: &TaskLog, head: &Waiting, weight: u32) -> Result<Handed, TaskLogError> {
    let TaskRef { tenant, task, .. } = &head.task;
    // A replica that lags may not have heard of it: where it knows of nothing, the log's leader says whether there was nothing.
    if has_state(log.read(tenant, *task).await)?
        || has_state(log.read_at_leader(tenant, *task).await)?
    {
        return hand_over(log, head, weight).await;
    }
    let end = head.too_late(log.now());
    log.end(&head.task, &end).await.map(|_| Handed::Ended)
}

/// Whether a task that was read was handed over before.
fn has_state(read: Result<Option<Record>, TaskLogError>) -> Result<bool, TaskLogError> {
    match read {
        Ok(record) => Ok(record.is_some_and(|record| record.state.is_some())),
        // Its submission could be, or it were no head. Whoever takes it up gives it up, or its age does.
        Err(error) if error.is_unreadable() => Ok(true),
        Err(error) => Err(error),
    }
}

async fn hand_over(log: &TaskLog, head: &Waiting, weight: u32) -> Result<Handed, TaskLogError> {
    let span = tracing::info_span!("dispatch", task = %head.task.task);
    telemetry::continue_trace(&span, |name| {
        head.trace.as_deref().filter(|_| name == "traceparent")
    });
    let (model, version) = head.version.clone();
    let to = Handover {
        task: head.task.clone(),
        model,
        version,
        weight,
        submitted: head.submitted.clone(),
        sequence: head.sequence,
    };
    log.hand_over(to).instrument(span).await
}

#[cfg(test)]
mod tests {
    use task_log::deadline::{self, Kept};

    use super::*;
    use crate::sweeps::tests::{expiring, place};

    #[tokio::test]
    async fn a_task_that_was_handed_over_goes_on_though_a_replica_has_not_heard_of_it() {
        let (log, _storage, (server, _folder)) = place().await;
        let at = log.time().await.unwrap();
        let mut heads = Vec::new();
        for sequence in [1, 2] {
            let event = expiring(at);
            log.submit(&event).await.unwrap();
            let kept = Kept::new(Duration::ZERO);
            heads.push(Waiting::of(&event, sequence, 1, None, kept).unwrap());
        }
        let handed = hand_over(&log, &heads[0], 1).await.unwrap();
        assert_eq!(handed, Handed::Dispatched);
        server
            .lag("TASKS", "inkstone.task.*.*.*.submitted")
            .unwrap();
        let mut ends = Vec::new();
        for (head, outcome) in heads.iter().zip([Handed::Already, Handed::Ended]) {
            let came_out = end_expired(&log, head, 1).await.unwrap();
            assert_eq!(came_out, outcome);
            let TaskRef { tenant, task, .. } = &head.task;
            let record = log.read_at_leader(tenant, *task).await.unwrap();
            ends.push(record.unwrap().done);
        }
        assert_eq!(ends[0], None);
        assert!(ends[1].as_ref().is_some_and(deadline::has_expired));
    }
}
