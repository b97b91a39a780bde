//! What was handed over of the queues here and has not ended, as far as is known. Pure.
//!
//! A task that is here and not in WORK has ended a moment ago, or its dispatch was lost.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::ops::Range;
use std::time::{Duration, Instant};

use contract::TaskId;
use task_log::{Missed, Queue, TaskRef};

use crate::backlog::line::REST;

/// A task that a worker had begun is handed to another when its dispatch was missed for so long: the worker may be at it, and as a rule
/// ends it. About what the broker waits for a worker that is dead.
const BEGUN: Duration = Duration::from_secs(30);
/// A task whose dispatch is lost again and again is handed over less and less often, at least so often.
const LONGEST_REST: Duration = Duration::from_secs(300);
/// A task whose dispatch was lost more often than this, or that could not be read more often, keeps no place while it is not known what became of
/// it: what takes dispatches off the queue again and again holds nobody else up.
const LOST_WITH_A_PLACE: u32 = 3;
/// With more tasks here, those of earlier times wait to be read.
const MAX_TASKS: usize = 65_536;

#[derive(Debug)]
struct One {
    queue: Queue,
    sequence: u64,
    /// Its dispatch was there.
    since: Instant,
    /// When it was first seen to be there no more.
    missed: Option<Instant>,
    /// The log is being asked.
    asked: bool,
    /// Nor is it before then.
    not_before: Instant,
    /// Times that it was handed over again.
    again: u32,
    /// Times in a row that it could not be read.
    unreadable: u32,
}

#[derive(Debug, Default)]
struct Kept {
    /// By the places of their submissions.
    tasks: BTreeMap<u64, TaskId>,
    /// Submissions that were handed over before the queue was opened here: whether they have ended is not known.
    unread: Range<u64>,
}

/// A task whose dispatch is missed.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Missing {
    pub(super) task: TaskRef,
    /// For so long that it is handed over although a worker had begun it.
    pub(super) though_running: bool,
}

/// All such tasks.
#[derive(Debug, Default)]
pub(super) struct Unended {
    tasks: HashMap<TaskId, One>,
    queues: HashMap<Queue, Kept>,
    /// Queues of which something is unread.
    to_read: VecDeque<Queue>,
    /// Tasks that the last look found to be asked for, and for which there was no room.
    to_ask: VecDeque<TaskId>,
}

impl Unended {
    /// A task was handed over whose submission lies at `sequence`.
    pub(super) fn add(&mut self, task: TaskId, queue: &Queue, sequence: u64, now: Instant) {
        self.end(task);
        let one = One {
            queue: queue.clone(),
            sequence,
            since: now,
            missed: None,
            asked: false,
            not_before: now,
            again: 0,
            unreadable: 0,
        };
        self.tasks.insert(task, one);
        let kept = self.queues.entry(queue.clone()).or_default();
        kept.tasks.insert(sequence, task);
    }

    /// A task has ended.
    pub(super) fn end(&mut self, task: TaskId) {
        let Some(one) = self.tasks.remove(&task) else {
            return;
        };
        if let Some(kept) = self.queues.get_mut(&one.queue) {
            kept.tasks.remove(&one.sequence);
            if kept.tasks.is_empty() && kept.unread.is_empty() {
                self.queues.remove(&one.queue);
            }
        }
    }

    /// Of these submissions of a queue some may have been handed over and not have ended.
    pub(super) fn open(&mut self, queue: &Queue, unread: Range<u64>) {
        if !unread.is_empty() {
            self.queues.entry(queue.clone()).or_default().unread = unread;
            self.to_read.push_back(queue.clone());
        }
    }

    /// What is to be read next, if there is room. It is handed out again until it [was read](Self::read).
    pub(super) fn unread(&mut self) -> Option<(Queue, Range<u64>)> {
        if self.tasks.len() >= MAX_TASKS {
            return None;
        }
        while let Some(queue) = self.to_read.pop_front() {
            let unread = self.queues.get(&queue).map(|kept| kept.unread.clone());
            if let Some(unread) = unread.filter(|unread| !unread.is_empty()) {
                self.to_read.push_back(queue.clone());
                return Some((queue, unread));
            }
        }
        None
    }

    /// What was `unread` was read up to before `next`, and these have no end. False when others have read it, or the queue was let go.
    pub(super) fn read(
        &mut self,
        queue: &Queue,
        unread: Range<u64>,
        next: u64,
        open: Vec<(u64, TaskId)>,
        now: Instant,
    ) -> bool {
        let Some(kept) = self.queues.get_mut(queue) else {
            return false;
        };
        if kept.unread != unread {
            return false;
        }
        kept.unread = next..unread.end;
        if kept.tasks.is_empty() && kept.unread.is_empty() {
            self.queues.remove(queue);
        }
        for (sequence, task) in open {
            self.add(task, queue, sequence, now);
        }
        true
    }

    /// Every task of the queue that was handed over and lies before this has ended; `None` when all have.
    pub(super) fn first(&self, queue: &Queue) -> Option<u64> {
        let kept = self.queues.get(queue)?;
        let first = kept.tasks.keys().next().copied();
        let unread = Some(kept.unread.start).filter(|_| !kept.unread.is_empty());
        first.into_iter().chain(unread).min()
    }

    /// Lets go of queues.
    pub(super) fn retain(&mut self, keep: impl Fn(&Queue) -> bool) {
        self.tasks.retain(|_, one| keep(&one.queue));
        self.queues.retain(|queue, _| keep(queue));
    }

    /// Whether a task whose dispatch is not in WORK keeps its place there: its end was not heard, so it is either heard of in a moment, or was
    /// lost and is handed over again, and whoever is given its place meanwhile would be one too many then.
    pub(super) fn keeps_its_place(&self, task: TaskId) -> bool {
        let one = self.tasks.get(&task);
        one.is_some_and(|one| one.again.max(one.unreadable) <= LOST_WITH_A_PLACE)
    }

    /// How many there are whose dispatches were lost and that cannot be read, as far as was asked.
    pub(super) fn unreadable(&self) -> usize {
        let all = self.tasks.values();
        all.filter(|one| one.unreadable > 0).count()
    }

    /// WORK held these at some time after `began`. Up to `room` tasks of which it is to be asked whether they have ended: those that were
    /// missed the time before, too, so that what ends just now is not asked for. What there is no room for [comes next](Self::next).
    pub(super) fn look(
        &mut self,
        there: &HashSet<TaskId>,
        began: Instant,
        now: Instant,
        room: usize,
    ) -> Vec<Missing> {
        self.to_ask.clear();
        for (task, one) in &mut self.tasks {
            if there.contains(task) {
                one.missed = None;
                continue;
            }
            if one.since >= began {
                continue;
            }
            let missed = *one.missed.get_or_insert(now);
            if missed < began && one.not_before <= now && !one.asked {
                self.to_ask.push_back(*task);
            }
        }
        let due = std::iter::from_fn(|| self.next(now));
        due.take(room).collect()
    }

    /// Another task that the last look found to be asked for.
    pub(super) fn next(&mut self, now: Instant) -> Option<Missing> {
        while let Some(task) = self.to_ask.pop_front() {
            // It may have ended since.
            let Some(one) = self.tasks.get_mut(&task) else {
                continue;
            };
            let Some(missed) = one.missed.filter(|_| !one.asked) else {
                continue;
            };
            one.asked = true;
            let Queue { lane, tenant } = one.queue.clone();
            return Some(Missing {
                task: TaskRef { tenant, lane, task },
                though_running: now.saturating_duration_since(missed) >= BEGUN,
            });
        }
        None
    }

    /// What came of asking; `None` when there was no answer.
    pub(super) fn asked(&mut self, task: TaskId, missed: Option<Missed>, now: Instant) {
        let Some(one) = self.tasks.get_mut(&task) else {
            return;
        };
        one.asked = false;
        if missed.is_some() {
            one.unreadable = 0;
        }
        match missed {
            Some(Missed::Over) => self.end(task),
            Some(Missed::Dispatched) => {
                (one.since, one.missed) = (now, None);
                one.not_before = now + rest_after(one.again);
                one.again += 1;
            }
            Some(Missed::There) => (one.since, one.missed) = (now, None),
            Some(Missed::Running) | None => one.not_before = now + REST,
        }
    }

    /// It was asked for, and cannot be read, so it cannot be handed over: it is asked for less and less often, until somebody has ended it. Where
    /// its submission lies, and how long it rests.
    pub(super) fn cannot_be_read(&mut self, task: TaskId, now: Instant) -> Option<(u64, Duration)> {
        let one = self.tasks.get_mut(&task)?;
        one.asked = false;
        let rest = rest_after(one.unreadable);
        one.not_before = now + rest;
        one.unreadable = one.unreadable.saturating_add(1);
        Some((one.sequence, rest))
    }
}

/// How long a task rests with which it went wrong so many times before.
fn rest_after(times: u32) -> Duration {
    let rest = REST.saturating_mul(2_u32.saturating_pow(times));
    rest.min(LONGEST_REST)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn queue() -> Queue {
        Queue {
            lane: "standard-image".parse().unwrap(),
            tenant: "acme".parse().unwrap(),
        }
    }

    fn tasks(missing: &[Missing]) -> Vec<(TaskId, bool)> {
        let of = |one: &Missing| (one.task.task, one.though_running);
        missing.iter().map(of).collect()
    }

    #[test]
    fn a_task_is_asked_for_that_was_missed_twice_and_less_and_less_often() {
        let (mut all, start) = (Unended::default(), Instant::now());
        let at = |seconds| start + SECOND * seconds;
        let task = TaskId::random();
        let (none, there) = (HashSet::new(), HashSet::from([task]));
        all.add(task, &queue(), 7, start);
        assert!(
            all.look(&none, start, at(1), 8).is_empty(),
            "it may be newer"
        );
        assert!(all.look(&none, at(1), at(1), 8).is_empty());
        assert!(all.look(&there, at(2), at(2), 8).is_empty());
        assert!(all.look(&none, at(3), at(3), 8).is_empty());
        assert!(
            all.look(&none, at(4), at(4), 0).is_empty(),
            "there is no room"
        );
        let asked = all.look(&none, at(4), at(4), 8);
        assert_eq!(tasks(&asked), [(task, false)]);
        assert!(
            all.look(&none, at(5), at(5), 8).is_empty(),
            "it is being asked"
        );
        all.asked(task, None, at(5));
        assert_eq!(all.look(&none, at(6), at(6), 8).len(), 1);
        // Lost for ever: it rests for one second, for two, for four.
        let mut now = 6;
        for rest in [1, 2, 4] {
            all.asked(task, Some(Missed::Dispatched), at(now));
            let due = (now + 1..now + 20).find(|&second| {
                let asked = all.look(&none, at(second), at(second), 8);
                !asked.is_empty()
            });
            assert_eq!(due, Some(now + rest.max(2)));
            now = due.unwrap();
        }
        all.asked(task, Some(Missed::Over), at(now));
        assert_eq!(all.first(&queue()), None);
        assert!(all.tasks.is_empty() && all.queues.is_empty());
    }

    #[test]
    fn a_task_that_cannot_be_read_is_asked_for_less_and_less_often_and_holds_no_place() {
        let (mut all, start) = (Unended::default(), Instant::now());
        let (task, none) = (TaskId::random(), HashSet::new());
        all.add(task, &queue(), 7, start);
        let (mut rests, mut second) = (Vec::new(), 0);
        while rests.len() < 12 {
            second += 1;
            let now = start + SECOND * second;
            for _ in all.look(&none, now, now, 8) {
                let (sequence, rest) = all.cannot_be_read(task, now).unwrap();
                assert_eq!(sequence, 7);
                rests.push(rest.as_secs());
                assert_eq!(all.keeps_its_place(task), rests.len() <= 3);
            }
        }
        assert_eq!(rests, [1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300, 300]);
        assert_eq!(all.unreadable(), 1);
        let now = start + SECOND * (second + 400);
        assert_eq!(all.look(&none, now, now, 8).len(), 1);
        all.asked(task, Some(Missed::Running), now);
        assert_eq!(all.unreadable(), 0, "who wrote it was started");
        all.asked(task, Some(Missed::Over), now);
        assert_eq!(all.cannot_be_read(task, now), None);
    }

    #[test]
    fn a_task_that_a_worker_had_begun_goes_to_another_only_after_a_while() {
        let (mut all, start) = (Unended::default(), Instant::now());
        let at = |seconds| start + SECOND * seconds;
        let (task, none) = (TaskId::random(), HashSet::new());
        all.add(task, &queue(), 7, start);
        let mut waited = Vec::new();
        for second in 1..=40 {
            for one in all.look(&none, at(second), at(second), 8) {
                waited.push(one.though_running);
                all.asked(task, Some(Missed::Running), at(second));
            }
        }
        assert_eq!(waited.first(), Some(&false));
        assert_eq!(waited.last(), Some(&true));
        let patient = waited.iter().filter(|though| !**though).count();
        assert!((25..=30).contains(&patient), "{patient}");
    }

    #[test]
    fn all_that_are_missed_are_asked_for_as_there_is_room_and_those_that_have_ended_are_not() {
        let (mut all, start) = (Unended::default(), Instant::now());
        let at = |seconds| start + SECOND * seconds;
        let none = HashSet::new();
        let ids = [0; 5].map(|_| TaskId::random());
        for (task, sequence) in ids.into_iter().zip(7..) {
            all.add(task, &queue(), sequence, start);
        }
        assert!(all.look(&none, at(1), at(1), 2).is_empty());
        let mut asked = tasks(&all.look(&none, at(2), at(2), 2));
        assert_eq!(asked.len(), 2);
        let was_asked = |task: &TaskId| asked.iter().any(|(one, _)| one == task);
        let ended = ids.into_iter().find(|task| !was_asked(task)).unwrap();
        all.end(ended);
        while let Some(one) = all.next(at(2)) {
            asked.extend(tasks(&[one]));
        }
        let different: HashSet<TaskId> = asked.iter().map(|(task, _)| *task).collect();
        assert_eq!((asked.len(), different.len()), (4, 4));
        assert!(!different.contains(&ended));
        assert!(
            all.look(&none, at(3), at(3), 8).is_empty(),
            "all are being asked for"
        );
    }

    #[test]
    fn a_task_keeps_its_place_until_it_is_known_to_have_ended_or_was_lost_too_often() {
        let (mut all, start) = (Unended::default(), Instant::now());
        let ids = [0; 2].map(|_| TaskId::random());
        for (task, sequence) in ids.into_iter().zip(7..) {
            all.add(task, &queue(), sequence, start);
        }
        all.asked(ids[0], Some(Missed::Running), start);
        assert!(all.keeps_its_place(ids[0]));
        all.asked(ids[0], Some(Missed::Over), start);
        assert!(!all.keeps_its_place(ids[0]));
        for _ in 0..LOST_WITH_A_PLACE {
            all.asked(ids[1], Some(Missed::Dispatched), start);
            assert!(all.keeps_its_place(ids[1]));
        }
        all.asked(ids[1], Some(Missed::Dispatched), start);
        assert!(!all.keeps_its_place(ids[1]));
        assert!(!all.keeps_its_place(TaskId::random()));
    }

    #[test]
    fn what_is_told_to_have_ended_reaches_up_to_the_first_that_has_not() {
        let (mut all, now) = (Unended::default(), Instant::now());
        let queue = queue();
        let ids = [0; 3].map(|_| TaskId::random());
        assert_eq!((all.first(&queue), all.unread()), (None, None));
        all.open(&queue, 5..9);
        all.add(ids[2], &queue, 9, now);
        assert_eq!(all.first(&queue), Some(5));
        assert_eq!(all.unread(), Some((queue.clone(), 5..9)));
        assert!(!all.read(&queue, 4..9, 8, Vec::new(), now), "another's");
        assert!(all.read(&queue, 5..9, 8, vec![(6, ids[0])], now));
        assert_eq!(all.first(&queue), Some(6));
        all.end(ids[0]);
        assert_eq!(all.first(&queue), Some(8));
        assert_eq!(all.unread(), Some((queue.clone(), 8..9)));
        assert!(all.read(&queue, 8..9, 9, vec![(8, ids[1])], now));
        assert_eq!(all.unread(), None);
        all.end(ids[1]);
        assert_eq!(all.first(&queue), Some(9));
        all.retain(|_| false);
        assert!(!all.read(&queue, 8..9, 9, Vec::new(), now));
        assert_eq!(all.first(&queue), None);
    }
}
