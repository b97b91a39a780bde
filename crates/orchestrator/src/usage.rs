//! What a day's use is, and how much of it may be set aside at once. Pure.

use std::num::NonZeroU64;

use contract::ErrorCode;
use contract::Failure;
use contract::auth::Policy;
use contract::v1::SubmitTask;
use serde::{Deserialize, Serialize};

/// Beside what is asked for, one part in so many of what is left is set aside: few writes while there is much, exact at the end.
const PART_SET_ASIDE: u64 = 256;

/// Pictures, and the work in them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Use {
    pub(crate) images: u64,
    /// Pixels times steps, over all pictures.
    pub(crate) pixel_steps: u64,
}

/// A day's record.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Day {
    /// What is used or set aside. Once all that the record held, so it stands beside the rest.
    #[serde(flatten)]
    pub(crate) used: Use,
    /// The refunds that are taken from it and may not be known elsewhere so far.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) refunds: Vec<String>,
    /// What is used for tasks of which it is not known whether they were stored.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) doubts: Vec<Doubt>,
}

/// One charge, for whichever of some attempts to make a task was stored, if one was.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Doubt {
    pub(crate) task: String,
    pub(crate) charged: Use,
    /// When each attempt was submitted, in nanoseconds since 1970.
    pub(crate) at: Vec<u64>,
}

/// What a day may hold; none is no limit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct DayLimit {
    pub(crate) images: Option<NonZeroU64>,
    pub(crate) pixel_steps: Option<NonZeroU64>,
}

/// The limit that a request would pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Exceeded {
    /// By its name in the policy.
    pub(crate) name: &'static str,
    pub(crate) limit: u64,
    /// What the request asks for.
    pub(crate) asked: u64,
}

impl Use {
    /// What a request with every default filled in will use.
    pub(crate) fn of(request: &SubmitTask) -> Self {
        let images = u64::from(request.images);
        let pixels = u64::from(request.width) * u64::from(request.height);
        let steps = u64::from(request.steps);
        Self {
            images,
            pixel_steps: pixels.saturating_mul(steps).saturating_mul(images),
        }
    }

    pub(crate) fn plus(self, other: Self) -> Self {
        Self {
            images: self.images.saturating_add(other.images),
            pixel_steps: self.pixel_steps.saturating_add(other.pixel_steps),
        }
    }

    /// What is left without the other; never less than nothing.
    pub(crate) fn less(self, other: Self) -> Self {
        Self {
            images: self.images.saturating_sub(other.images),
            pixel_steps: self.pixel_steps.saturating_sub(other.pixel_steps),
        }
    }

    /// Whether the other fits into this.
    pub(crate) fn holds(self, other: Self) -> bool {
        other.less(self) == Self::default()
    }
}

impl DayLimit {
    pub(crate) fn of(policy: &Policy) -> Self {
        let limit = |limit: Option<u64>| limit.and_then(NonZeroU64::new);
        Self {
            images: limit(policy.images_per_day),
            pixel_steps: limit(policy.pixel_steps_per_day),
        }
    }

    /// Whether nothing needs to be counted.
    pub(crate) fn is_none(self) -> bool {
        self == Self::default()
    }

    /// Whether the request could never pass, on no day.
    pub(crate) fn never(self, ask: Use) -> Option<Exceeded> {
        self.set_aside(Use::default(), ask).err()
    }

    /// How much to set aside for `ask` when `used` is set aside already: what is asked for, and a little more if there is much.
    pub(crate) fn set_aside(self, used: Use, ask: Use) -> Result<Use, Exceeded> {
        let part = |name, limit: Option<NonZeroU64>, used: u64, ask: u64| {
            // There is enough of it already: what is asked for is the other one.
            if ask == 0 {
                return Ok(0);
            }
            // Counted all the same: a limit may be set in the middle of a day.
            let Some(limit) = limit else { return Ok(ask) };
            let limit = limit.get();
            let left = limit.checked_sub(used).and_then(|l| l.checked_sub(ask));
            let exceeded = Exceeded {
                name,
                limit,
                asked: ask,
            };
            match left {
                Some(left) => Ok(ask + left / PART_SET_ASIDE),
                None => Err(exceeded),
            }
        };
        Ok(Use {
            images: part("images_per_day", self.images, used.images, ask.images)?,
            pixel_steps: part(
                "pixel_steps_per_day",
                self.pixel_steps,
                used.pixel_steps,
                ask.pixel_steps,
            )?,
        })
    }
}

impl Exceeded {
    /// For a day that is used up.
    pub(crate) fn today(self, until_midnight: std::time::Duration) -> Failure {
        let Self { name, limit, asked } = self;
        let what = match name {
            "images_per_day" => "images",
            _ => "pixels times steps",
        };
        let text = format!(
            "the {limit} {what} that the policy of your key allows in a day ({name}) are used up, or nearly: this asks for {asked}; a \
             new day begins at 00:00 UTC"
        );
        Failure {
            retry_after: Some(until_midnight),
            ..Failure::new(ErrorCode::QuotaExceeded, text)
        }
    }

    /// For what is more than a whole day's.
    pub(crate) fn on_any_day(self) -> Failure {
        let Self { name, limit, asked } = self;
        let policy = format!("the policy of your key allows no more in a whole day ({name})");
        match name {
            "images_per_day" => {
                let text = format!("images must be at most {limit}, not {asked}: {policy}");
                Failure::invalid("images", text)
            }
            _ => {
                let text = format!(
                    "steps times the pixels of all pictures must be at most {limit}, not {asked}: {policy}"
                );
                Failure::invalid("steps", text)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn limit(images: u64, pixel_steps: u64) -> DayLimit {
        DayLimit {
            images: NonZeroU64::new(images),
            pixel_steps: NonZeroU64::new(pixel_steps),
        }
    }

    fn used(images: u64, pixel_steps: u64) -> Use {
        Use {
            images,
            pixel_steps,
        }
    }

    #[test]
    fn a_days_record_is_read_by_and_from_versions_that_name_no_refunds_and_no_doubts() {
        let old = serde_json::to_string(&used(3, 400)).unwrap();
        let mut day: Day = serde_json::from_str(&old).unwrap();
        assert_eq!((day.used, day.refunds.len()), (used(3, 400), 0));
        assert!(day.doubts.is_empty());
        assert_eq!(serde_json::to_string(&day).unwrap(), old);
        day.refunds.push("task.1".to_owned());
        day.doubts.push(Doubt {
            task: "task".to_owned(),
            charged: used(1, 100),
            at: vec![u64::MAX],
        });
        let new = serde_json::to_string(&day).unwrap();
        assert_eq!(serde_json::from_str::<Day>(&new).unwrap(), day);
        assert_eq!(serde_json::from_str::<Use>(&new).unwrap(), used(3, 400));
    }

    #[test]
    fn work_is_pixels_times_steps_over_all_pictures() {
        let request = SubmitTask {
            width: 128,
            height: 64,
            steps: 10,
            images: 3,
            ..SubmitTask::default()
        };
        assert_eq!(Use::of(&request), used(3, 128 * 64 * 10 * 3));
    }

    #[test]
    fn the_limit_that_would_be_passed_is_named() {
        let exceeded = limit(10, 0).set_aside(used(9, 0), used(2, 5)).unwrap_err();
        assert_eq!(exceeded.name, "images_per_day");
        let exceeded = limit(10, 100)
            .set_aside(used(0, 90), used(1, 11))
            .unwrap_err();
        assert_eq!(exceeded.name, "pixel_steps_per_day");
        assert!(limit(10, 100).never(used(1, 101)).is_some());
        assert!(limit(10, 100).never(used(10, 100)).is_none());
    }

    #[test]
    fn a_day_that_is_used_up_is_told_with_what_was_counted() {
        let told = |limit: DayLimit, ask| {
            let exceeded = limit.set_aside(Use::default(), ask).unwrap_err();
            exceeded.today(std::time::Duration::ZERO).message
        };
        let images = told(limit(10, 0), used(11, 0));
        assert!(images.starts_with("the 10 images that"), "{images}");
        let work = told(limit(0, 100), used(0, 101));
        assert!(
            work.starts_with("the 100 pixels times steps that"),
            "{work}"
        );
    }

    #[test]
    fn of_what_is_not_asked_for_nothing_is_set_aside() {
        // As when pictures are limited and set aside already, and work is not limited and has to be counted.
        let more = limit(1000, 0).set_aside(used(9, 0), used(0, 5)).unwrap();
        assert_eq!(more, used(0, 5));
        // Neither where the limit was lowered below what is used.
        let more = limit(5, 0).set_aside(used(9, 0), used(0, 5)).unwrap();
        assert_eq!(more, used(0, 5));
    }

    #[test]
    fn the_last_picture_of_a_day_can_be_had() {
        let (limit, mut all) = (limit(1000, 0), Use::default());
        let mut drawn = 0;
        let mut spare = 0;
        while spare > 0 || limit.set_aside(all, used(1, 0)).is_ok() {
            if spare == 0 {
                let more = limit.set_aside(all, used(1, 0)).unwrap();
                all = all.plus(more);
                spare += more.images;
            }
            spare -= 1;
            drawn += 1;
        }
        assert_eq!((drawn, all.images), (1000, 1000));
    }

    proptest! {
        #[test]
        fn no_more_is_ever_set_aside_than_the_limit_and_never_less_than_was_asked(
            most in (0..2000u64, 0..u64::MAX), asks in prop::collection::vec((0..50u64, any::<u64>()), 1..50),
        ) {
            let limit = limit(most.0, most.1);
            let mut all = Use::default();
            for (images, work) in asks {
                let ask = used(images, work);
                if let Ok(more) = limit.set_aside(all, ask) {
                    prop_assert!(more.holds(ask));
                    all = all.plus(more);
                    prop_assert!(limit.images.is_none_or(|most| all.images <= most.get()));
                    prop_assert!(limit.pixel_steps.is_none_or(|most| all.pixel_steps <= most.get()));
                }
            }
        }
    }
}
