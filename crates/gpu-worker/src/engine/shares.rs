//! Whose turn it is to lead a step, by what each task has had for its weight.
//!
//! Start-time fair queueing (Goyal, Vin and Cheng, 1996), of which stride scheduling is the case of equal pieces: a
//! task's *pass* grows by the work of each step that it leads, divided by the task's weight, and whoever has the smallest
//! pass leads next. Two tasks that always have something to draw lead in proportion to their weights, however large
//! their pictures are; a task that comes, or comes back, begins at the pass of whoever leads just then, so that it neither
//! catches up on what it did not want nor pays for what it did not have.
//!
//! Only the leader pays. Those that join its step take places that would be left empty; if they paid, a task of which
//! one picture can often join would never lead, and another picture of it, of a size that nobody else has, would starve.

use std::collections::{BTreeMap, BTreeSet};

/// So that the division by a weight (at most [`MAX_WEIGHT`]) keeps three digits.
const SCALE: u64 = 1000;
/// The largest weight that a lane can have.
pub(crate) const MAX_WEIGHT: u32 = 1000;

/// A task as the engine knows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Flow {
    number: u64,
    weight: u32,
}

impl Flow {
    /// `weight` is its lane's; one that is out of range is taken for the nearest that is not.
    pub(crate) fn new(number: u64, weight: u32) -> Self {
        Self {
            number,
            weight: weight.clamp(1, MAX_WEIGHT),
        }
    }

    /// 1 to [`MAX_WEIGHT`].
    pub(crate) fn weight(self) -> u32 {
        self.weight
    }
}

/// What every task has had.
#[derive(Debug, Default)]
pub(crate) struct Shares {
    passes: BTreeMap<Flow, u64>,
    /// Tasks that had something to draw at the last look.
    ready: BTreeSet<Flow>,
    /// The pass of the last leader.
    now: u64,
}

impl Shares {
    /// These have something to draw now. Those that had not at the last look begin where the last leader was.
    pub(crate) fn look(&mut self, ready: BTreeSet<Flow>) {
        for &flow in ready.difference(&self.ready) {
            let pass = self.passes.entry(flow).or_default();
            *pass = (*pass).max(self.now);
        }
        self.ready = ready;
    }

    /// What a task that is ready has had.
    pub(crate) fn pass(&self, flow: Flow) -> u64 {
        self.passes.get(&flow).copied().unwrap_or(self.now)
    }

    /// A step is taken that a picture of this task leads; `work` is that of all its pictures in it, in rows × latent pixels.
    pub(crate) fn lead(&mut self, flow: Flow, work: u64) {
        let pass = self.pass(flow);
        self.now = self.now.max(pass);
        let stride = (work.saturating_mul(SCALE) / u64::from(flow.weight)).max(1);
        self.passes.insert(flow, pass.saturating_add(stride));
    }

    /// Forgets all others: memory is bounded by the tasks there are.
    pub(crate) fn retain(&mut self, alive: &BTreeSet<Flow>) {
        self.passes.retain(|flow, _| alive.contains(flow));
        self.ready.retain(|flow| alive.contains(flow));
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::super::plan::{Bucket, Candidate, Cost, Limits, plan};
    use super::*;

    /// A picture that never ends.
    #[derive(Debug, Clone)]
    struct Endless {
        flow: Flow,
        bucket: Bucket,
        rows: usize,
        last_step: u64,
        /// Steps that it took part in, and the longest that it waited between two.
        steps: u64,
        longest: u64,
    }

    fn endless(number: u64, weight: u32, size: u32, rows: usize) -> Endless {
        Endless {
            flow: Flow::new(number, weight),
            bucket: Bucket {
                model: 0,
                width: size,
                height: size,
            },
            rows,
            last_step: 0,
            steps: 0,
            longest: 0,
        }
    }

    fn work(picture: &Endless) -> u64 {
        picture.rows as u64 * picture.bucket.latent_pixels()
    }

    fn free(_: Bucket, _: usize) -> Cost {
        Cost {
            bytes: 0,
            time: Some(Duration::ZERO),
        }
    }

    /// As the engine does it; `ready` says who can be stepped in which round.
    fn draw(
        pictures: &mut [Endless],
        shares: &mut Shares,
        rounds: std::ops::Range<u64>,
        max_batch: usize,
        ready: impl Fn(usize, u64) -> bool,
    ) {
        let limits = Limits {
            max_batch,
            max_step: None,
            room: 0,
        };
        for round in rounds {
            let now: Vec<usize> = (0..pictures.len()).filter(|&i| ready(i, round)).collect();
            shares.look(now.iter().map(|&i| pictures[i].flow).collect());
            let candidates: Vec<Candidate> = now
                .iter()
                .map(|&i| Candidate {
                    id: i as u64,
                    bucket: pictures[i].bucket,
                    rows: pictures[i].rows,
                    pass: shares.pass(pictures[i].flow),
                    last_step: pictures[i].last_step,
                })
                .collect();
            let planned = plan(&candidates, limits, free);
            let leader = planned
                .first()
                .map(|&leader| pictures[leader as usize].flow);
            let mut led = 0;
            for id in planned {
                let picture = &mut pictures[id as usize];
                if Some(picture.flow) == leader {
                    led += work(picture);
                }
                picture.longest = picture.longest.max(round - picture.last_step);
                picture.last_step = round;
                picture.steps += 1;
            }
            if let Some(leader) = leader {
                shares.lead(leader, led);
            }
        }
    }

    #[test]
    fn tasks_share_the_work_in_proportion_to_their_weights_whatever_the_size_of_their_pictures() {
        let mut pictures = [
            endless(1, 8, 128, 2),
            endless(2, 4, 128, 2),
            endless(3, 2, 256, 1),
        ];
        draw(&mut pictures, &mut Shares::default(), 1..4001, 1, |_, _| {
            true
        });
        let had: Vec<f64> = pictures
            .iter()
            .map(|p| (p.steps * work(p)) as f64 / f64::from(p.flow.weight()))
            .collect();
        for pair in had.windows(2) {
            assert!((pair[0] / pair[1] - 1.0).abs() < 0.02, "{had:?}");
        }
    }

    #[test]
    fn a_task_of_many_pictures_has_no_more_than_one_of_one() {
        let mut pictures: Vec<Endless> = (0..9).map(|_| endless(1, 4, 128, 2)).collect();
        pictures.push(endless(2, 4, 128, 2));
        draw(&mut pictures, &mut Shares::default(), 1..1001, 1, |_, _| {
            true
        });
        assert!(
            pictures[9].steps.abs_diff(500) <= 1,
            "{}",
            pictures[9].steps
        );
    }

    #[test]
    fn who_was_away_does_not_catch_up() {
        let mut pictures = [endless(1, 4, 128, 2), endless(2, 4, 128, 2)];
        let away = |i: usize, round: u64| i == 0 || round <= 10 || round > 1000;
        draw(&mut pictures, &mut Shares::default(), 1..1101, 1, away);
        // 5 of the first 10, and half of the last 100.
        assert!(pictures[1].steps.abs_diff(55) <= 2, "{}", pictures[1].steps);
    }

    #[test]
    fn a_picture_of_a_size_of_its_own_is_drawn_though_others_of_its_task_join_others() {
        let mut pictures = [
            endless(1, 8, 256, 2),
            endless(2, 1, 256, 2),
            endless(2, 1, 128, 1),
        ];
        draw(&mut pictures, &mut Shares::default(), 1..1001, 2, |_, _| {
            true
        });
        assert!(pictures[2].steps >= 50, "{}", pictures[2].steps);
        assert!(pictures[2].longest <= 40, "{}", pictures[2].longest);
    }

    #[test]
    fn who_rode_along_with_a_heavy_task_does_not_stand_still_once_that_is_gone() {
        let mut pictures = [
            endless(1, 8, 128, 2),
            endless(2, 1, 128, 2),
            endless(3, 1, 256, 2),
        ];
        // The light one shares the heavy one's steps; then that one goes, and one of another size comes.
        let there = |i: usize, round: u64| [round <= 1000, true, round > 1000][i];
        draw(&mut pictures, &mut Shares::default(), 1..1101, 2, there);
        // Of the last hundred steps four in five, for its pictures are a quarter of the other's.
        let steps = pictures[1].steps - 1000;
        assert!(steps.abs_diff(80) <= 8, "{steps}");
    }

    fn pictures() -> impl Strategy<Value = Vec<Endless>> {
        let weights = prop::sample::select(vec![1u32, 2, 4, 8]);
        let sizes = prop::sample::select(vec![128u32, 256]);
        prop::collection::vec((0u64..4, weights, sizes, 1usize..3), 1..8).prop_map(|all| {
            let one = |(flow, weight, size, rows)| endless(flow, weight, size, rows);
            all.into_iter().map(one).collect()
        })
    }

    proptest! {
        #[test]
        fn nobody_starves(
            mut pictures in pictures(),
            max_batch in 1usize..5,
            comings in prop::collection::vec(0u64..60, 8),
            stays in prop::collection::vec(any::<bool>(), 8),
        ) {
            let mut shares = Shares::default();
            // They come at any time, and some go.
            let there = |i: usize, round: u64| round > comings[i] && (stays[i] || round < 1500);
            draw(&mut pictures, &mut shares, 1..3001, max_batch, there);
            // A task that has led with a whole batch leads again once each other has had as much for its weight, and a
            // piece more; and so many pictures of its own may be before a picture.
            let share = |p: &Endless| work(p) * SCALE / u64::from(p.flow.weight());
            let largest = pictures.iter().map(share).max().unwrap();
            let smallest = pictures.iter().map(share).min().unwrap();
            let turns = (largest * max_batch as u64).div_ceil(smallest) + 1;
            let bound = turns * (pictures.len() as u64).pow(2) + 60;
            for (picture, stays) in pictures.iter().zip(stays) {
                let end = if stays { 3000 } else { 1499 };
                prop_assert!(picture.longest <= bound, "{} of {bound}", picture.longest);
                prop_assert!(end - picture.last_step <= bound, "{picture:?} of {bound}");
            }
        }

        #[test]
        fn what_is_remembered_is_bounded_by_the_tasks_there_are(flows in prop::collection::vec(0u64..50, 0..50)) {
            let mut shares = Shares::default();
            for &number in &flows {
                let flow = Flow::new(number, 1);
                shares.look(BTreeSet::from([flow]));
                shares.lead(flow, 5);
            }
            let alive: BTreeSet<Flow> = flows.iter().take(3).map(|&n| Flow::new(n, 1)).collect();
            shares.retain(&alive);
            prop_assert!(shares.passes.len() <= alive.len() && shares.ready.len() <= alive.len());
        }
    }

    #[test]
    fn a_weight_out_of_range_is_the_nearest_in_it() {
        assert_eq!(Flow::new(1, 0).weight(), 1);
        assert_eq!(Flow::new(1, u32::MAX).weight(), MAX_WEIGHT);
    }
}
