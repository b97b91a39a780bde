//! The account of memory: what may begin, and who makes way for whom.
//!
//! Pure arithmetic on what the model says that it takes. Accounted are the weights of all models that are loaded; of
//! every picture that is being drawn its latents, history and keys and values of its prompt; the activations of one
//! step; those of one decoding; and pictures that were put aside as bytes. What may begin is decided so that, whoever has
//! begun, *one step of any of them alone, and decoding any of them by itself, always fits*: then work in progress never
//! waits for anything but itself, and nothing has to be taken back. Steps of several pictures, and steps beside a
//! decoding, take place as far as there is room.

use std::fmt;
use std::time::Duration;

/// Of the limit, what is set aside for pictures that were put aside as bytes: a part, and the most that it can be.
const ASIDE_PART: u64 = 32;
const ASIDE_MOST: u64 = 128 << 20;
/// How long a picture of weight 1 lets later ones of more weight go first.
const PATIENCE: Duration = Duration::from_secs(8 * 60);

/// What one picture takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Needs {
    /// While it is begun: its image, if it has one, is encoded then.
    pub(crate) begin: u64,
    /// While it is being drawn.
    pub(crate) job: u64,
    /// During a step of its own.
    pub(crate) step: u64,
    /// While it is decoded.
    pub(crate) decode: u64,
}

impl Needs {
    /// The most that it takes for a while.
    pub(crate) fn peak(self) -> u64 {
        self.begin.max(self.step).max(self.decode)
    }

    /// With nobody else there.
    pub(crate) fn alone(self) -> u64 {
        self.job.saturating_add(self.peak())
    }
}

/// It cannot fit, whoever makes way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "it needs {} beside {} of weights, and there is room for {} in all", Bytes(*needs), Bytes(*weights), Bytes(*room)
)]
pub(crate) struct DoesNotFit {
    /// What it takes by itself.
    pub(crate) needs: u64,
    /// Of all models that are loaded.
    pub(crate) weights: u64,
    /// For weights and pictures together.
    pub(crate) room: u64,
}

/// What there is to be shared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Budget {
    limit: u64,
}

impl Budget {
    pub(crate) fn new(limit: u64) -> Self {
        Self { limit }
    }

    /// All of it.
    pub(crate) fn limit(self) -> u64 {
        self.limit
    }

    /// For pictures put aside as bytes.
    pub(crate) fn aside(self) -> u64 {
        (self.limit / ASIDE_PART).min(ASIDE_MOST)
    }

    /// For weights and pictures.
    pub(crate) fn room(self) -> u64 {
        self.limit - self.aside()
    }

    /// Whether a picture can fit at all beside so much of weights.
    pub(crate) fn can_ever_fit(self, weights: u64, new: Needs) -> Result<(), DoesNotFit> {
        let needs = new.alone();
        let room = self.room();
        if weights.saturating_add(needs) <= room {
            return Ok(());
        }
        Err(DoesNotFit {
            needs,
            weights,
            room,
        })
    }

    /// Whether a picture may begin beside those that have begun. `taken` is all that does not belong to them: weights,
    /// and what the decoder holds of others.
    pub(crate) fn fits(self, taken: u64, begun: impl Iterator<Item = Needs>, new: Needs) -> bool {
        let (jobs, peak) = begun.fold((new.job, new.peak()), |(jobs, peak), one| {
            (jobs.saturating_add(one.job), peak.max(one.peak()))
        });
        taken.saturating_add(jobs).saturating_add(peak) <= self.room()
    }
}

/// A picture that has begun, as far as it matters for making way.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Begun {
    pub(crate) id: u64,
    pub(crate) needs: Needs,
    pub(crate) rank: Rank,
    /// False while something else holds on to its memory too.
    pub(crate) can_go: bool,
}

/// How urgent a picture is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Rank {
    /// Its lane's.
    pub(crate) weight: u32,
    /// Since the engine was started: pictures begin in this order, and nobody who comes after it goes first.
    pub(crate) due: Duration,
}

impl Rank {
    /// Of a picture that came at `at`. The heavier it is, the sooner it is due; since that never changes, only as many can
    /// go before it as come while its patience lasts.
    pub(crate) fn new(weight: u32, at: Duration) -> Self {
        Self {
            weight,
            due: at + PATIENCE / weight.max(1),
        }
    }

    /// Whether the other makes way for this one.
    fn goes_before(self, other: Self) -> bool {
        self.weight > other.weight && self.due < other.due
    }
}

/// Who is put aside so that a picture may begin: those that are due last, no more than it takes. `None` if that does
/// not help.
pub(crate) fn make_way(
    budget: Budget,
    taken: u64,
    begun: &[Begun],
    new: Needs,
    rank: Rank,
) -> Option<Vec<u64>> {
    let mut staying = begun.to_vec();
    staying.sort_by_key(|one| (one.rank.due, one.id));
    let mut aside = Vec::new();
    while !budget.fits(taken, staying.iter().map(|one| one.needs), new) {
        let last = staying
            .iter()
            .rposition(|one| one.can_go && rank.goes_before(one.rank))?;
        aside.push(staying.remove(last).id);
    }
    // Someone who went early may not have had to: the large one after it made all the room.
    aside.retain(|&id| {
        let back = begun.iter().find(|one| one.id == id);
        let Some(back) = back else { return true };
        let with = staying.iter().chain([back]).map(|one| one.needs);
        let stays = budget.fits(taken, with, new);
        if stays {
            staying.push(*back);
        }
        !stays
    });
    Some(aside)
}

/// Where memory is, as last accounted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Account {
    /// Of all models that are loaded or being loaded.
    pub(crate) weights: u64,
    /// Of the pictures that have begun.
    pub(crate) jobs: u64,
    /// Of the step that is being taken.
    pub(crate) step: u64,
    /// Of what is being decoded.
    pub(crate) decoder: u64,
    /// Of pictures that were put aside, or are done.
    pub(crate) aside: u64,
    /// The most that all of it together has been.
    pub(crate) most: u64,
}

impl Account {
    /// All of it, as it is now.
    pub(crate) fn total(self) -> u64 {
        self.weights + self.jobs + self.step + self.decoder + self.aside
    }
}

/// Bytes, for people.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bytes(pub(crate) u64);

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bytes = self.0 as f64;
        match self.0 {
            0..=1023 => write!(f, "{} bytes", self.0),
            1024..=1_048_575 => write!(f, "{:.1} KiB", bytes / 1024.0),
            1_048_576..=1_073_741_823 => write!(f, "{:.1} MiB", bytes / 1_048_576.0),
            u64::MAX => f.write_str("no limit"),
            _ => write!(f, "{:.1} GiB", bytes / 1_073_741_824.0),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn needs() -> impl Strategy<Value = Needs> {
        (0u64..100, 1u64..50, 1u64..100, 1u64..100).prop_map(|(begin, job, step, decode)| Needs {
            begin,
            job,
            step,
            decode,
        })
    }

    fn rank() -> impl Strategy<Value = Rank> {
        let weights = prop::sample::select(vec![1u32, 2, 4, 8]);
        (weights, 0u64..600).prop_map(|(weight, at)| Rank::new(weight, Duration::from_secs(at)))
    }

    fn begun() -> impl Strategy<Value = Vec<Begun>> {
        let one = (needs(), rank(), prop::bool::weighted(0.9));
        prop::collection::vec(one, 0..10).prop_map(|all| {
            let numbered = all.into_iter().enumerate();
            let one = |(id, (needs, rank, can_go))| Begun {
                id: id as u64,
                needs,
                rank,
                can_go,
            };
            numbered.map(one).collect()
        })
    }

    /// Lets them begin one after the other, as far as they fit.
    fn admitted(budget: Budget, weights: u64, all: &[Begun]) -> Vec<Begun> {
        let mut admitted: Vec<Begun> = Vec::new();
        for one in all {
            if budget.fits(weights, admitted.iter().map(|a| a.needs), one.needs) {
                admitted.push(*one);
            }
        }
        admitted
    }

    proptest! {
        #[test]
        fn whoever_has_begun_any_one_of_them_can_be_stepped_and_any_be_decoded(
            all in begun(), limit in 0u64..600, weights in 0u64..100,
        ) {
            let budget = Budget::new(limit);
            let admitted = admitted(budget, weights, &all);
            let jobs: u64 = admitted.iter().map(|one| one.needs.job).sum();
            for one in &admitted {
                prop_assert!(weights + jobs + one.needs.begin + budget.aside() <= limit);
                prop_assert!(weights + jobs + one.needs.step + budget.aside() <= limit);
                prop_assert!(weights + jobs + one.needs.decode + budget.aside() <= limit);
            }
        }

        #[test]
        fn what_can_ever_fit_fits_once_nobody_else_is_there(new in needs(), limit in 0u64..300, weights in 0u64..100) {
            let budget = Budget::new(limit);
            let alone = budget.fits(weights, std::iter::empty(), new);
            prop_assert_eq!(budget.can_ever_fit(weights, new).is_ok(), alone);
        }

        #[test]
        fn those_who_make_way_are_lighter_and_due_later_and_no_more_than_it_takes(
            all in begun(), new in needs(), rank in rank(), limit in 0u64..600,
        ) {
            let budget = Budget::new(limit);
            let begun = admitted(budget, 0, &all);
            let Some(aside) = make_way(budget, 0, &begun, new, rank) else {
                return Ok(());
            };
            let stays = |one: &&Begun| !aside.contains(&one.id);
            let staying: Vec<&Begun> = begun.iter().filter(stays).collect();
            prop_assert!(budget.fits(0, staying.iter().map(|one| one.needs), new));
            for gone in begun.iter().filter(|one| aside.contains(&one.id)) {
                prop_assert!(gone.can_go);
                prop_assert!(gone.rank.weight < rank.weight && gone.rank.due > rank.due);
                let with = staying.iter().copied().chain([gone]).map(|one| one.needs);
                prop_assert!(!budget.fits(0, with, new), "{} need not have gone", gone.id);
            }
        }

        #[test]
        fn two_pictures_never_make_way_for_each_other(a in rank(), b in rank()) {
            prop_assert!(!(a.goes_before(b) && b.goes_before(a)));
        }
    }

    #[test]
    fn a_light_picture_is_passed_for_as_long_as_its_patience_lasts_and_no_longer() {
        let light = Rank::new(1, Duration::from_secs(100));
        let heavy = |at| Rank::new(8, Duration::from_secs(at));
        assert!(heavy(101).goes_before(light));
        assert!(heavy(100 + 480 - 60 - 1).goes_before(light));
        assert!(!heavy(100 + 480 - 60).goes_before(light));
    }

    #[test]
    fn a_refusal_names_the_numbers() {
        let needs = Needs {
            begin: 0,
            job: 12 << 20,
            step: 800 << 20,
            decode: 1 << 20,
        };
        let budget = Budget::new(2 << 30);
        let error = budget.can_ever_fit(3 << 29, needs).unwrap_err();
        assert_eq!(
            error.to_string(),
            "it needs 812.0 MiB beside 1.5 GiB of weights, and there is room for 1.9 GiB in all"
        );
    }

    #[test]
    fn sizes_are_read_at_a_glance() {
        let shown = |bytes| Bytes(bytes).to_string();
        assert_eq!(shown(17), "17 bytes");
        assert_eq!(shown(1536), "1.5 KiB");
        assert_eq!(shown(5 << 20), "5.0 MiB");
        assert_eq!(shown(5 << 29), "2.5 GiB");
        assert_eq!(shown(u64::MAX), "no limit");
    }
}
