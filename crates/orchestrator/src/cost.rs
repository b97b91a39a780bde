//! What a task costs: the time that it takes of a device, as learned from tasks that ended. Pure.
//!
//! A task's size is known before it runs, in pixel-steps. How long a pixel-step takes differs by model version and by canvas, and
//! is measured: a running median, so that a task that was interrupted, or was the first on a cold device, moves it by one small
//! step only. What nothing has been heard of costs what its neighbours do.

use std::collections::BTreeMap;
use std::time::Duration;

use contract::source;
use contract::task::{Done, Submitted, done};
use contract::v1::{Quality, Scheduler, SubmitTask};

use crate::schedule::Version;

/// What decoding a picture takes, in steps of its canvas.
const DECODE_STEPS: u64 = 2;
/// Pixels of the smallest bucket; each further one holds canvases of up to four times as many.
const SMALLEST_BUCKET: u64 = 128 * 128;
/// Buckets of canvas sizes.
const BUCKETS: u8 = 8;
/// Rates that are kept; the one unheard of for longest goes.
const MAX_RATES: usize = 1024;
/// Picoseconds of a pixel-step, as long as nothing at all was measured: about that of SDXL on a data-centre GPU.
const FIRST_GUESS: f64 = 70_000.0;
/// A rate moves by this share towards each measurement, at first …
const FIRST_MOVE: f64 = 0.5;
/// … and by this when many were heard.
const LAST_MOVE: f64 = 0.05;
/// What tasks cost has changed much when a rate is by so much another than the one that they were costed by.
const MUCH: f64 = 1.5;
/// The longest that one task is taken to cost.
const MAX_COST: Duration = Duration::from_secs(24 * 60 * 60);

/// Canvases of about one size, from 0 for the smallest.
pub(crate) fn canvas_bucket(pixels: u64) -> u8 {
    let mut limit = SMALLEST_BUCKET;
    let mut bucket = 0;
    while pixels > limit && bucket + 1 < BUCKETS {
        limit *= 4;
        bucket += 1;
    }
    bucket
}

/// How much there is to compute for a request with every default filled in: pixels times passes through the model, over all pictures,
/// with the decode as a few steps more. 1 at least.
pub(crate) fn pixel_steps(request: &SubmitTask) -> u64 {
    let pixels = u64::from(request.width) * u64::from(request.height);
    let steps = passes(request).saturating_add(DECODE_STEPS);
    let images = u64::from(request.images.max(1));
    pixels.saturating_mul(steps).saturating_mul(images).max(1)
}

/// Times that a picture passes through the model.
fn passes(request: &SubmitTask) -> u64 {
    let steps = match &request.source {
        Some(from) => source::steps_led(request.steps, source::strength(from)),
        None => request.steps,
    };
    let steps = u64::from(steps.max(1));
    match request.scheduler() {
        // They ask the model twice a step, but for the last.
        Scheduler::Heun | Scheduler::HeunKarras => steps.saturating_mul(2) - 1,
        _ => steps,
    }
}

/// What a task's cost goes by, beside its version: kept of tasks that wait, whose requests are not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Size {
    pixel_steps: u64,
    bucket: u8,
    hd: bool,
}

impl Size {
    /// Of a request with every default filled in.
    pub(crate) fn of(request: &SubmitTask) -> Self {
        let pixels = u64::from(request.width) * u64::from(request.height);
        Self {
            pixel_steps: pixel_steps(request),
            bucket: canvas_bucket(pixels),
            hd: request.quality() == Quality::Hd,
        }
    }
}

/// What a rate holds for.
type Key = (Version, u8, bool);

/// How long pixel-steps take, as learned.
#[derive(Debug, Clone, Default)]
pub(crate) struct Costs {
    rates: BTreeMap<Key, Rate>,
    heard: u64,
    changes: u64,
}

/// A running median.
#[derive(Debug, Clone, Copy)]
struct Rate {
    /// Picoseconds of a pixel-step.
    value: f64,
    /// Measurements so far.
    count: u32,
    /// When it was last heard of, in measurements.
    heard: u64,
    /// What tasks of its kind were costed by when costs last changed much.
    told: f64,
}

impl Rate {
    /// Moves towards a measurement by a share of itself: by the same way however far the measurement is.
    fn learn(&mut self, measured: f64) {
        let share = (FIRST_MOVE / f64::from(self.count.max(1))).max(LAST_MOVE);
        let (low, high) = (self.value / (1.0 + share), self.value * (1.0 + share));
        self.value = measured.clamp(low, high);
        self.count = self.count.saturating_add(1);
    }
}

impl Costs {
    /// What a task will take of a device, in microseconds; 1 at least.
    pub(crate) fn of(&self, submitted: &Submitted) -> u64 {
        let Some(request) = &submitted.request else {
            return 1;
        };
        let version = (submitted.model.clone(), submitted.model_version.clone());
        self.of_size(&version, Size::of(request))
    }

    /// The same of a task of which no more is known.
    pub(crate) fn of_size(&self, version: &Version, size: Size) -> u64 {
        let rate = self.rate(&(version.clone(), size.bucket, size.hd));
        let picoseconds = size.pixel_steps as f64 * rate;
        let most = MAX_COST.as_micros() as f64;
        ((picoseconds / 1e6).clamp(1.0, most)) as u64
    }

    /// Whether anything was measured at all.
    pub(crate) fn is_measured(&self) -> bool {
        self.heard > 0
    }

    /// How often what some tasks cost has changed much. Costs that were told before are of another measure then.
    pub(crate) fn changes(&self) -> u64 {
        self.changes
    }

    /// Takes in how long a task took. Ends that tell no time, and those of other kinds, teach nothing.
    pub(crate) fn learn(&mut self, submitted: &Submitted, done: &Done) {
        let (Some(request), Some(done::Outcome::Succeeded(success))) =
            (&submitted.request, &done.outcome)
        else {
            return;
        };
        // A later attempt goes on from a checkpoint: its time is that of a part.
        if success.engine_ms == 0 || done.attempt > 1 {
            return;
        }
        let measured = success.engine_ms as f64 * 1e9 / pixel_steps(request) as f64;
        self.heard += 1;
        let heard = self.heard;
        let size = Size::of(request);
        let version = (submitted.model.clone(), submitted.model_version.clone());
        let key = (version, size.bucket, size.hd);
        let new = Rate {
            value: measured,
            count: 0,
            heard,
            told: self.rate(&key),
        };
        let rate = self.rates.entry(key).or_insert(new);
        rate.learn(measured);
        rate.heard = heard;
        if rate.value > rate.told * MUCH || rate.told > rate.value * MUCH {
            rate.told = rate.value;
            self.changes += 1;
        }
        self.forget();
    }

    fn forget(&mut self) {
        if self.rates.len() > MAX_RATES {
            let oldest = self.rates.iter().min_by_key(|(_, rate)| rate.heard);
            if let Some(key) = oldest.map(|(key, _)| key.clone()) {
                self.rates.remove(&key);
            }
        }
    }

    /// Picoseconds of a pixel-step: of the same kind, else of the version's nearest canvas, else of all.
    fn rate(&self, wanted: &Key) -> f64 {
        if let Some(rate) = self.rates.get(wanted) {
            return rate.value;
        }
        let (version, bucket, hd) = wanted;
        let whole = (version.clone(), 0, false)..=(version.clone(), u8::MAX, true);
        let far = |(_, other, other_hd): &Key| (bucket.abs_diff(*other), hd != other_hd);
        let nearest = self.rates.range(whole).min_by_key(|(key, _)| far(key));
        if let Some((_, rate)) = nearest {
            return rate.value;
        }
        let mut all: Vec<f64> = self.rates.values().map(|rate| rate.value).collect();
        let middle = all.len() / 2;
        if all.is_empty() {
            return FIRST_GUESS;
        }
        *all.select_nth_unstable_by(middle, f64::total_cmp).1
    }
}

#[cfg(test)]
mod tests {
    use contract::task::Succeeded;
    use contract::v1::Source;
    use proptest::prelude::*;

    use super::*;

    fn submitted(model: &str, side: u32, steps: u32, images: u32) -> Submitted {
        Submitted {
            model: model.to_owned(),
            model_version: "1".to_owned(),
            request: Some(SubmitTask {
                width: side,
                height: side,
                steps,
                images,
                ..SubmitTask::default()
            }),
            ..Submitted::default()
        }
    }

    fn ended(engine_ms: u64) -> Done {
        let success = Succeeded {
            engine_ms,
            ..Succeeded::default()
        };
        Done {
            attempt: 1,
            outcome: Some(done::Outcome::Succeeded(success)),
            ..Done::default()
        }
    }

    #[test]
    fn size_counts_pixels_passes_pictures_and_the_decode() {
        let request = |change: fn(&mut SubmitTask)| {
            let mut request = submitted("m", 64, 10, 1).request.unwrap();
            change(&mut request);
            pixel_steps(&request) / (64 * 64)
        };
        assert_eq!(request(|_| ()), 12);
        assert_eq!(request(|r| r.images = 3), 36);
        assert_eq!(request(|r| r.set_scheduler(Scheduler::Heun)), 21);
        let half = |r: &mut SubmitTask| {
            r.source = Some(Source {
                image_key: "x".to_owned(),
                strength: Some(0.5),
                ..Source::default()
            });
        };
        assert_eq!(request(half), 7);
        // As many as the engine takes of them.
        let most = |r: &mut SubmitTask| {
            r.source = Some(Source {
                image_key: "x".to_owned(),
                strength: Some(0.79),
                ..Source::default()
            });
        };
        assert_eq!(request(most), 9);
        assert_eq!(pixel_steps(&SubmitTask::default()), 1);
    }

    #[test]
    fn buckets_grow_by_four() {
        let side = |side: u64| canvas_bucket(side * side);
        assert_eq!([128, 129, 256, 512, 1024].map(side), [0, 1, 1, 2, 3]);
        assert_eq!(canvas_bucket(u64::MAX), BUCKETS - 1);
    }

    #[test]
    fn what_was_measured_is_told_and_its_neighbours_go_by_it() {
        let mut costs = Costs::default();
        let task = submitted("m", 1024, 30, 1);
        costs.learn(&task, &ended(2000));
        assert!((1_999_000..=2_001_000).contains(&costs.of(&task)));
        // Twice as much of the same is twice the time; another canvas, and another model, go by the same rate.
        let double = costs.of(&submitted("m", 1024, 62, 1));
        assert!((3_990_000..=4_010_000).contains(&double), "{double}");
        let quarter = costs.of(&submitted("n", 512, 30, 1));
        assert!((499_000..=501_000).contains(&quarter), "{quarter}");
    }

    #[test]
    fn an_outlier_moves_a_rate_by_little() {
        let mut costs = Costs::default();
        let task = submitted("m", 512, 20, 1);
        for _ in 0..20 {
            costs.learn(&task, &ended(100));
        }
        costs.learn(&task, &ended(60_000));
        let cost = costs.of(&task);
        assert!((99_000..=106_000).contains(&cost), "{cost}");
    }

    #[test]
    fn costs_that_change_much_are_said_to_have_changed() {
        let mut costs = Costs::default();
        let task = submitted("m", 512, 20, 1);
        let size = Size::of(task.request.as_ref().unwrap());
        let version = ("m".to_owned(), "1".to_owned());
        assert!(!costs.is_measured());
        // Far from what was guessed.
        costs.learn(&task, &ended(100_000));
        assert!(costs.is_measured());
        assert_eq!(costs.changes(), 1);
        assert_eq!(costs.of(&task), costs.of_size(&version, size));
        for _ in 0..20 {
            costs.learn(&task, &ended(110_000));
        }
        assert_eq!(costs.changes(), 1);
        for _ in 0..40 {
            costs.learn(&task, &ended(200_000));
        }
        assert_eq!(costs.changes(), 2);
    }

    #[test]
    fn what_tells_no_time_teaches_nothing() {
        let mut costs = Costs::default();
        let task = submitted("m", 512, 20, 1);
        let before = costs.of(&task);
        costs.learn(&task, &ended(0));
        costs.learn(&task, &Done::default());
        let resumed = Done {
            attempt: 2,
            ..ended(5)
        };
        costs.learn(&task, &resumed);
        assert_eq!(costs.of(&task), before);
    }

    #[test]
    fn rates_are_bounded() {
        let mut costs = Costs::default();
        for model in 0..MAX_RATES + 50 {
            costs.learn(&submitted(&model.to_string(), 512, 20, 1), &ended(100));
        }
        assert_eq!(costs.rates.len(), MAX_RATES);
    }

    proptest! {
        #[test]
        fn a_cost_is_within_its_bounds_whatever_is_asked(
            width in any::<u32>(), height in any::<u32>(), steps in any::<u32>(), images in any::<u32>(),
            ms in any::<u64>(),
        ) {
            let mut task = submitted("m", 1, steps, images);
            let request = task.request.as_mut().unwrap();
            (request.width, request.height) = (width, height);
            let mut costs = Costs::default();
            for _ in 0..2 {
                let cost = costs.of(&task);
                prop_assert!((1..=MAX_COST.as_micros() as u64).contains(&cost));
                costs.learn(&task, &ended(ms));
            }
        }

        #[test]
        fn a_rate_comes_to_what_is_measured_however_it_began(
            first in 10..10_000u64, then in 10..10_000u64, noise in prop::collection::vec(0.9..1.1f64, 8),
        ) {
            let mut costs = Costs::default();
            let task = submitted("m", 512, 20, 1);
            costs.learn(&task, &ended(first * 10));
            for noise in noise.iter().cycle().take(200) {
                let measured = (then * 10) as f64 * noise;
                costs.learn(&task, &ended(measured as u64));
            }
            let cost = costs.of(&task) as f64 / 1e3;
            let wanted = (then * 10) as f64;
            prop_assert!((0.85..1.15).contains(&(cost / wanted)), "{cost} of {wanted}");
        }
    }
}
