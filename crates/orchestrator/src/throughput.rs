//! How fast the workers get through work, measured from ends while they were busy all the time. Pure.
//!
//! What a task costs is learned ([`crate::cost`]), in time of a device that it has to itself. How much of that the workers get through in
//! a second is not known from it: slots share a device, pictures share steps, and between two tasks there are uploads and the
//! broker. So it is counted: the cost of what ended, and of what runs as far as it should have come, while something waited that no
//! worker had. The rate is kept by capacity (devices that announce themselves, and the part of them that serves the queues here), so that
//! it holds when workers come and go. Before anything was measured a device is taken to do a second's work in a second; that
//! guess counts as much as one second's measurement, and less and less.

use std::time::{Duration, Instant};

use crate::ahead::Handed;

/// What a device does in a second, in units of work, as long as nothing was measured.
const FIRST_GUESS: f64 = 1e6;
/// What that guess counts for, in seconds of a device.
const GUESS_COUNTS: f64 = 1.0;
/// Of what was measured so long ago a half counts.
const HALF_LIFE: Duration = Duration::from_secs(60);
/// Capacities of which one is no more than this part of the larger away from the other count as the same.
const SAME: f64 = 0.25;

/// What became of dispatches, since the beginning.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    /// What those cost that ended after a worker had begun them, in units of work …
    pub(crate) served: u64,
    /// … and how long workers had them, added up.
    pub(crate) ran: Duration,
    /// How often there was none left that no worker had.
    pub(crate) dry: u64,
}

impl Tally {
    /// One has ended that cost so much and that a worker had for so long.
    pub(crate) fn add(&mut self, cost: u64, ran: Duration) {
        self.served = self.served.saturating_add(cost);
        self.ran = self.ran.saturating_add(ran);
    }
}

/// What is seen at a moment.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sample<'a> {
    pub(crate) at: Instant,
    pub(crate) tally: Tally,
    pub(crate) handed: &'a [Handed],
    /// Devices that serve the queues here.
    pub(crate) capacity: f64,
    /// How often the measure of costs has changed.
    pub(crate) changes: u64,
}

/// What was measured.
#[derive(Debug, Clone, Default)]
pub(crate) struct Throughput {
    last: Option<Point>,
    /// Work that was done while the workers were busy, in units …
    work: f64,
    /// … and for how long they were, in seconds of a device.
    seconds: f64,
    /// The same of single tasks: their cost, and the seconds for which workers had them.
    run: (f64, f64),
}

#[derive(Debug, Clone, Copy)]
struct Point {
    at: Instant,
    tally: Tally,
    /// Work done by then; `None` where it is not known how far tasks come that run.
    done: Option<f64>,
    busy: bool,
    capacity: f64,
    changes: u64,
}

impl Throughput {
    /// Takes in how things stand. Often: what lies between two samples counts if the workers were busy at both and all the time between.
    pub(crate) fn note(&mut self, sample: Sample<'_>) {
        let Sample {
            at,
            tally,
            handed,
            capacity,
            changes,
        } = sample;
        let last = self.last;
        if last.is_some_and(|last| last.changes != changes) {
            // Of another measure.
            *self = Self::default();
        } else if let Some(last) = last {
            let passed = at.saturating_duration_since(last.at);
            let kept = 0.5_f64.powf(passed.as_secs_f64() / HALF_LIFE.as_secs_f64());
            self.run = (self.run.0 * kept, self.run.1 * kept);
            // A task that has its device to itself is faster, and says nothing of those that share.
            if last.busy {
                self.run.0 += tally.served.saturating_sub(last.tally.served) as f64;
                self.run.1 += tally.ran.saturating_sub(last.tally.ran).as_secs_f64();
            }
        }
        let point = Point {
            at,
            tally,
            done: self.done(sample),
            busy: is_busy(handed) && capacity > 0.0,
            capacity,
            changes,
        };
        if let Some(last) = self.last {
            self.measure(last, point);
        }
        self.last = Some(point);
    }

    /// Work done by now, that of tasks which run included.
    fn done(&self, sample: Sample<'_>) -> Option<f64> {
        let speed = self.speed()?;
        let part = |one: &Handed| {
            let age = sample.at.saturating_duration_since(one.begun?);
            Some((age.as_secs_f64() * speed).min(one.cost? as f64))
        };
        let under_way: f64 = sample.handed.iter().filter_map(part).sum();
        Some(sample.tally.served as f64 + under_way)
    }

    fn measure(&mut self, last: Point, now: Point) {
        let same = (last.capacity - now.capacity).abs() <= SAME * last.capacity.max(now.capacity);
        let all_the_time = last.busy && now.busy && last.tally.dry == now.tally.dry;
        let (Some(before), Some(done)) = (last.done, now.done) else {
            return;
        };
        if !(same && all_the_time) {
            return;
        }
        let seconds = now.at.saturating_duration_since(last.at).as_secs_f64();
        let kept = 0.5_f64.powf(seconds / HALF_LIFE.as_secs_f64());
        // What was handed back is undone.
        self.work = (self.work * kept + done - before).max(0.0);
        self.seconds = self.seconds * kept + seconds * (last.capacity + now.capacity) / 2.0;
    }

    /// What so many devices do in a second while they are busy, in units of work.
    pub(crate) fn rate(&self, capacity: f64) -> f64 {
        let work = self.work + FIRST_GUESS * GUESS_COUNTS;
        capacity * work / (self.seconds + GUESS_COUNTS)
    }

    /// What one task that runs gets of that; `None` before any has ended while others waited.
    pub(crate) fn speed(&self) -> Option<f64> {
        let (work, seconds) = self.run;
        (work > 0.0 && seconds > 0.0).then(|| work / seconds)
    }

    /// The same of one that has a device to itself: a second's work in a second at most, for so costs are measured, however much more a
    /// device gets through when pictures share its steps.
    pub(crate) fn alone(&self) -> f64 {
        let alone = self.rate(1.0).min(FIRST_GUESS);
        alone.max(self.speed().unwrap_or(0.0))
    }
}

/// Whether some of these run, and others could begin if there were room.
fn is_busy(handed: &[Handed]) -> bool {
    let own = || handed.iter().filter(|one| one.cost.is_some());
    own().any(|one| one.begun.is_some()) && own().any(|one| one.begun.is_none())
}

#[cfg(test)]
mod tests {
    use contract::TaskId;
    use proptest::prelude::*;

    use super::*;

    /// Between two samples.
    const STEP: Duration = Duration::from_millis(100);

    /// A device that its slots share, and a queue before it.
    struct Device {
        now: Instant,
        slots: usize,
        /// Units of work a second.
        rate: f64,
        /// With what is left of each.
        handed: Vec<(Handed, f64)>,
        tally: Tally,
    }

    impl Device {
        fn new(slots: usize, rate: f64, costs: impl IntoIterator<Item = u64>) -> Self {
            let one = |(order, cost): (usize, u64)| {
                let handed = Handed {
                    task: TaskId::random(),
                    tenant: "acme".parse().unwrap(),
                    lane: None,
                    cost: Some(cost),
                    order: order as u64,
                    begun: None,
                    had: Duration::ZERO,
                };
                (handed, cost as f64)
            };
            Self {
                now: Instant::now(),
                slots,
                rate,
                handed: costs.into_iter().enumerate().map(one).collect(),
                tally: Tally::default(),
            }
        }

        /// A millisecond's work, divided among the slots.
        fn tick(&mut self) {
            let now = self.now;
            for (one, _) in self.handed.iter_mut().take(self.slots) {
                one.begun = one.begun.or(Some(now));
            }
            let running = self.handed.len().min(self.slots);
            let share = self.rate / 1000.0 / running.max(1) as f64;
            self.now += Duration::from_millis(1);
            for (_, left) in self.handed.iter_mut().take(running) {
                *left -= share;
            }
            let was_ready = self.handed.iter().any(|(one, _)| one.begun.is_none());
            let (tally, now) = (&mut self.tally, self.now);
            self.handed.retain(|(one, left)| {
                if *left <= 0.0 {
                    tally.add(one.cost.unwrap(), now - one.begun.unwrap());
                }
                *left > 0.0
            });
            let is_ready = self.handed.len() > self.slots;
            self.tally.dry += u64::from(was_ready && !is_ready);
        }

        /// Works, and is looked at, until all is done or `limit` is over.
        fn work(&mut self, throughput: &mut Throughput, capacity: f64, limit: Duration) {
            let end = self.now + limit;
            let mut next = self.now;
            while !self.handed.is_empty() && self.now < end {
                if self.now >= next {
                    next += STEP;
                    let handed: Vec<Handed> =
                        self.handed.iter().map(|(one, _)| one.clone()).collect();
                    throughput.note(Sample {
                        at: self.now,
                        tally: self.tally,
                        handed: &handed,
                        capacity,
                        changes: 0,
                    });
                }
                self.tick();
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]
        #[test]
        fn the_rate_is_that_of_the_device_however_many_slots_share_it(
            slots in 1usize..6,
            rate in 200_000.0..5_000_000.0f64,
            costs in prop::collection::vec(100_000u64..600_000, 40..60),
        ) {
            // As long a run whatever the rate.
            let costs = costs.into_iter().map(|cost| (cost as f64 * rate / 1e6) as u64);
            let mut device = Device::new(slots, rate, costs);
            let mut throughput = Throughput::default();
            device.work(&mut throughput, 1.0, Duration::from_secs(60));
            let off = throughput.rate(1.0) / rate;
            // The guess still counts for a second of some ten.
            let guess = 1.0 + (1e6 / rate - 1.0) / 6.0;
            let (low, high) = (guess.min(1.0) * 0.85, guess.max(1.0) * 1.15);
            prop_assert!((low..high).contains(&off), "{off}, {low} to {high}");
        }
    }

    #[test]
    fn before_anything_was_measured_a_device_does_a_seconds_work_in_a_second() {
        let throughput = Throughput::default();
        assert_eq!(throughput.rate(3.0), 3e6);
        assert_eq!(throughput.rate(0.0), 0.0);
        assert_eq!(throughput.speed(), None);
        assert_eq!(throughput.alone(), 1e6);
    }

    #[test]
    fn a_task_that_is_alone_gets_what_the_device_does_but_a_seconds_work_in_a_second_at_most() {
        let alone = |rate: f64| {
            let mut device = Device::new(4, rate, [200_000; 100]);
            let mut throughput = Throughput::default();
            device.work(&mut throughput, 1.0, Duration::from_secs(60));
            (throughput.alone(), throughput.rate(1.0))
        };
        let (slow, rate) = alone(500_000.0);
        assert_eq!(slow, rate);
        // Of such a device each of four gets three quarters of a second's work in a second.
        let (fast, rate) = alone(3_000_000.0);
        assert!(fast == 1e6 && rate > 2e6, "{fast}, {rate}");
    }

    #[test]
    fn the_rate_grows_and_shrinks_with_the_workers_that_announce_themselves() {
        let mut device = Device::new(4, 1_000_000.0, [200_000; 100]);
        let mut throughput = Throughput::default();
        device.work(&mut throughput, 2.0, Duration::from_secs(60));
        let (two, three) = (throughput.rate(2.0), throughput.rate(3.0));
        assert!((900_000.0..1_150_000.0).contains(&two), "{two}");
        assert!((three / two - 1.5).abs() < 1e-6);
    }

    #[test]
    fn what_the_workers_do_while_nothing_waits_says_nothing() {
        // As many slots as tasks: none waits.
        let mut device = Device::new(4, 100_000.0, [200_000; 4]);
        let mut throughput = Throughput::default();
        device.work(&mut throughput, 1.0, Duration::from_secs(60));
        assert_eq!(throughput.rate(1.0), FIRST_GUESS);
    }

    #[test]
    fn another_measure_of_costs_forgets_what_was_measured() {
        let mut device = Device::new(2, 300_000.0, [100_000; 100]);
        let mut throughput = Throughput::default();
        device.work(&mut throughput, 1.0, Duration::from_secs(20));
        assert!(throughput.rate(1.0) < 400_000.0);
        throughput.note(Sample {
            at: device.now,
            tally: device.tally,
            handed: &[],
            capacity: 1.0,
            changes: 1,
        });
        assert_eq!(throughput.rate(1.0), FIRST_GUESS);
    }
}
