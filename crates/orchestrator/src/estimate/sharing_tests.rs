//! Waits that are told as tasks come to slots that share devices, against those that they have.

use std::collections::VecDeque;
use std::time::Instant;

use contract::TaskId;

use super::*;
use crate::ahead::Handed;
use crate::schedule::simulation::policy;

const STEP: Duration = Duration::from_millis(5);
/// Tasks that are handed to workers, those that run included.
const WINDOW: usize = 16;
/// A wait is told honestly that is off by a quarter at most, or by this.
const FLOOR: Duration = Duration::from_millis(250);

/// Devices, each divided evenly among those that run there, and one queue.
struct Workers {
    start: Instant,
    now: Instant,
    slots: usize,
    /// What runs on each, and what is left of it.
    devices: Vec<Vec<(Handed, f64)>>,
    waiting: VecDeque<Handed>,
    /// What each was told and had that has begun, in order.
    told: Vec<Duration>,
    had: Vec<Duration>,
}

impl Workers {
    fn new(devices: usize, slots: usize) -> Self {
        let start = Instant::now();
        Self {
            start,
            now: start,
            slots,
            devices: vec![Vec::new(); devices],
            waiting: VecDeque::new(),
            told: Vec::new(),
            had: Vec::new(),
        }
    }

    fn fleet(&self) -> Fleet {
        let devices = self.devices.len() as f64;
        Fleet {
            slots: devices * self.slots as f64,
            rate: devices * 1e6,
            speed: 1e6 / self.slots as f64,
            alone: 1e6,
        }
    }

    /// What the next task is told.
    fn tell(&self, usual: u64) -> Duration {
        let running = self.devices.iter().flatten().map(|(one, _)| one);
        let mut handed: Vec<Handed> = running.cloned().collect();
        let room = WINDOW - handed.len();
        handed.extend(self.waiting.iter().take(room).cloned());
        handed.sort_unstable_by_key(|one| one.order);
        let behind: Vec<u64> = self.waiting.iter().skip(room).map(cost).collect();
        let waiting = behind.len() as u64;
        let queue = QueueLoad {
            lane: "a".parse().unwrap(),
            tenant: "t".parse().unwrap(),
            waiting,
            mean_cost: behind.iter().sum::<u64>().checked_div(waiting).unwrap_or(0),
        };
        let place = Place {
            lane: &queue.lane,
            tenant: &queue.tenant,
            position: waiting,
            cost: usual,
            limit: None,
            handed: 0,
        };
        let (fleet, turns) = (self.fleet(), Turns::default());
        let ahead = Ahead::of(&handed, None, &fleet, (self.now, self.now));
        let queues = std::slice::from_ref(&queue);
        let outlook = Outlook::new(queues, &policy([("a", 1)], 100_000), &turns, fleet);
        outlook.wait(place, &ahead).unwrap()
    }

    fn begin(&mut self, submitted: &[Duration]) {
        while let Some(device) = self.devices.iter_mut().min_by_key(|device| device.len())
            && device.len() < self.slots
            && let Some(mut one) = self.waiting.pop_front()
        {
            one.begun = Some(self.now);
            let waited = (self.now - self.start).saturating_sub(submitted[one.order as usize]);
            self.had.push(waited);
            let left = cost(&one) as f64;
            device.push((one, left));
        }
    }

    fn work(&mut self) {
        let running = self.devices.iter().flatten().count() as u32;
        for device in &mut self.devices {
            let share = STEP.as_micros() as f64 / device.len().max(1) as f64;
            for (one, left) in device.iter_mut() {
                *left -= share;
                one.had += STEP / running;
            }
            device.retain(|(_, left)| *left > 0.0);
        }
        self.now += STEP;
    }

    /// What each of the tasks that come is told and has, in order.
    fn run(mut self, coming: &[(Duration, u64)]) -> Vec<(Duration, Duration)> {
        let submitted: Vec<Duration> = coming.iter().map(|(at, _)| *at).collect();
        let usual = coming.iter().map(|(_, cost)| cost).sum::<u64>() / coming.len() as u64;
        let mut next = coming.iter().enumerate().peekable();
        while self.had.len() < coming.len() {
            let now = self.now - self.start;
            while let Some((order, &(_, cost))) = next.next_if(|(_, (at, _))| *at <= now) {
                let told = self.tell(usual);
                self.told.push(told);
                self.waiting.push_back(Handed {
                    task: TaskId::random(),
                    tenant: "t".parse().unwrap(),
                    lane: None,
                    cost: Some(cost),
                    order: order as u64,
                    begun: None,
                    had: Duration::ZERO,
                });
                self.begin(&submitted);
            }
            self.begin(&submitted);
            self.work();
        }
        self.told.into_iter().zip(self.had).collect()
    }
}

fn cost(one: &Handed) -> u64 {
    one.cost.unwrap()
}

fn honest(waits: &[(Duration, Duration)]) -> usize {
    let is_honest =
        |(told, had): &&(Duration, Duration)| told.abs_diff(*had) <= FLOOR.max(*had / 4);
    waits.iter().filter(is_honest).count()
}

/// Tasks that come to so many devices with so many slots each, and take so long on one that they have to themselves.
struct Case {
    devices: usize,
    slots: usize,
    length: Duration,
    are_alike: bool,
}

impl Case {
    /// `count` tasks, the first of them `from` the beginning and each so long after the one before.
    fn come(
        &self,
        count: u32,
        from: Duration,
        gap: impl Fn(u32) -> Duration,
    ) -> Vec<(Duration, u64)> {
        let cost = |i: u32| match self.are_alike {
            true => self.length,
            // 0.7 to 1.3 of it.
            false => self.length * (70 + i * 17 % 61) / 100,
        };
        let mut at = from;
        let one = |i: u32| {
            let this = at;
            at += gap(i);
            (this, cost(i).as_micros() as u64)
        };
        (0..count).map(one).collect()
    }
}

/// Nine of ten are told honestly in each case, and `least` of the first dozen that wait.
fn assert_told_honestly(least: usize, scenario: impl Fn(&Case) -> Vec<(Duration, u64)>) {
    for devices in 1..=3 {
        for slots in 2..=4 {
            for (length, are_alike) in [(200, true), (200, false), (1000, true), (1000, false)] {
                let case = Case {
                    devices,
                    slots,
                    length: Duration::from_millis(length),
                    are_alike,
                };
                let waits = Workers::new(devices, slots).run(&scenario(&case));
                let waiting = waits.iter().filter(|(_, had)| *had > STEP * 2);
                let dozen: Vec<_> = waiting.take(12).copied().collect();
                let (all, first) = (honest(&waits), honest(&dozen));
                let what = format!("{devices} devices, {slots} slots, {length} ms, {are_alike}");
                assert_eq!(dozen.len(), 12, "{what}");
                assert!(first >= least, "{first} of the first dozen; {what}");
                assert!(all * 10 >= waits.len() * 9, "{all} in all; {what}");
            }
        }
    }
}

/// As fast as they are submitted.
fn at_once(_: u32) -> Duration {
    STEP
}

#[test]
fn waits_are_told_honestly_in_a_burst_onto_idle_workers() {
    assert_told_honestly(11, |case| case.come(60, Duration::ZERO, at_once));
}

#[test]
fn waits_are_told_honestly_in_a_burst_onto_workers_that_have_something_to_do() {
    assert_told_honestly(11, |case| {
        let slots = (case.devices * case.slots) as u32;
        let mut coming = case.come(slots + 2, Duration::ZERO, at_once);
        let from = case.length * case.slots as u32 * 7 / 10;
        coming.extend(case.come(40, from, at_once));
        coming
    });
}

#[test]
fn waits_are_told_honestly_in_a_burst_onto_a_task_that_had_its_device_to_itself() {
    assert_told_honestly(11, |case| {
        let mut coming = case.come(1, Duration::ZERO, at_once);
        coming.extend(case.come(60, case.length * 6 / 10, at_once));
        coming
    });
}

#[test]
fn waits_are_told_honestly_to_tasks_that_come_a_little_too_fast() {
    assert_told_honestly(9, |case| {
        let mean = case.length * 10 / 13 / case.devices as u32;
        case.come(100, Duration::ZERO, |i| mean * (i * 37 % 100) / 50)
    });
}
