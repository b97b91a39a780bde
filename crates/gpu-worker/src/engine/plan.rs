//! Which pictures take part in the next denoising step.
//!
//! A pure function, so that what decides about latency, memory and fairness can be tested by itself. Whose turn it is say
//! the [shares](super::shares): the picture whose task has had least for its weight leads, and among those of one task the
//! one that has waited longest. Others of its bucket (one model, one size: that is what one forward pass can hold) join it in
//! the same order, as far as the batch's limit, the memory that is free and the time that a step may take allow.
//!
//! The leader is never passed over. When there is no room for it just now, because a picture is being decoded, there
//! is no step: a smaller one that slipped in would keep it waiting for as long as smaller ones come.

use std::time::Duration;

/// What one forward pass can hold: latents of one size, for one model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Bucket {
    /// The number under which the model was loaded.
    pub(crate) model: u64,
    /// Pixels.
    pub(crate) width: u32,
    /// Pixels.
    pub(crate) height: u32,
}

impl Bucket {
    /// Latent pixels, which is what a row's work and memory grow with.
    pub(crate) fn latent_pixels(self) -> u64 {
        (u64::from(self.width) * u64::from(self.height)).div_ceil(64)
    }
}

/// A picture that could be taken a step further.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Candidate {
    /// Which picture; later ones have larger numbers.
    pub(crate) id: u64,
    pub(crate) bucket: Bucket,
    /// Its rows of a forward pass: 2 with guidance, else 1.
    pub(crate) rows: usize,
    /// What its task has had for its weight.
    pub(crate) pass: u64,
    /// The number of the step that it last took part in; 0 before its first.
    pub(crate) last_step: u64,
}

/// What a step must keep to.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    /// Pictures in one step, at least 1.
    pub(crate) max_batch: usize,
    /// How long a step of several pictures may take.
    pub(crate) max_step: Option<Duration>,
    /// Bytes that the step may take for its activations.
    pub(crate) room: u64,
}

/// What a step of so many rows is expected to take.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Cost {
    /// Of activations.
    pub(crate) bytes: u64,
    /// `None`: nothing is known so far.
    pub(crate) time: Option<Duration>,
}

/// The pictures of the next step, the leader first. None if there are no candidates, or if there is no room for the one
/// whose turn it is.
///
/// One picture alone may take any time; several only what is known to be within the bound.
pub(crate) fn plan(
    candidates: &[Candidate],
    limits: Limits,
    cost: impl Fn(Bucket, usize) -> Cost,
) -> Vec<u64> {
    let mut waiting = candidates.to_vec();
    waiting.sort_unstable_by_key(|one| (one.pass, one.last_step, one.id));
    let Some(&leader) = waiting.first() else {
        return Vec::new();
    };
    if cost(leader.bucket, leader.rows).bytes > limits.room {
        return Vec::new();
    }
    let mut rows = leader.rows;
    let mut planned = vec![leader.id];
    let others = waiting[1..]
        .iter()
        .filter(|one| one.bucket == leader.bucket);
    for other in others {
        if planned.len() >= limits.max_batch {
            break;
        }
        let together = cost(leader.bucket, rows + other.rows);
        let in_time = limits
            .max_step
            .is_none_or(|bound| together.time.is_some_and(|time| time <= bound));
        // One that is too much may be followed by one of fewer rows that is not.
        if together.bytes <= limits.room && in_time {
            rows += other.rows;
            planned.push(other.id);
        }
    }
    planned
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SIZES: [u32; 3] = [64, 128, 256];

    fn bucket(model: u64, size: usize) -> Bucket {
        Bucket {
            model,
            width: SIZES[size],
            height: SIZES[size],
        }
    }

    fn candidates() -> impl Strategy<Value = Vec<Candidate>> {
        let one = (0u64..3, 0usize..3, 1usize..3, 0u64..40, 0u64..50);
        proptest::collection::vec(one, 0..24).prop_map(|all| {
            let numbered = all.into_iter().enumerate();
            let candidate = |(id, (model, size, rows, pass, last_step))| Candidate {
                id: id as u64,
                bucket: bucket(model, size),
                rows,
                pass,
                last_step,
            };
            numbered.map(candidate).collect()
        })
    }

    /// A machine where bytes and milliseconds grow with the work, but not in one proportion.
    fn machine(bucket: Bucket, rows: usize) -> Cost {
        let work = bucket.latent_pixels() * rows as u64;
        Cost {
            bytes: 10 + work,
            time: Some(Duration::from_millis(5 + work / 16)),
        }
    }

    fn chosen<'a>(all: &'a [Candidate], planned: &[u64]) -> Vec<&'a Candidate> {
        all.iter().filter(|c| planned.contains(&c.id)).collect()
    }

    proptest! {
        #[test]
        fn a_step_is_of_one_model_and_one_size_and_within_every_limit(
            all in candidates(),
            max_batch in 1usize..9,
            room in 0u64..6000,
            bound in 0u64..400,
        ) {
            let max_step = Some(Duration::from_millis(bound));
            let limits = Limits { max_batch, max_step, room };
            let planned = plan(&all, limits, machine);
            let chosen = chosen(&all, &planned);
            prop_assert_eq!(chosen.len(), planned.len(), "no picture twice, none made up");
            prop_assert!(planned.len() <= max_batch);
            prop_assert!(chosen.windows(2).all(|pair| pair[0].bucket == pair[1].bucket));
            if let Some(first) = chosen.first() {
                let rows = chosen.iter().map(|c| c.rows).sum();
                let cost = machine(first.bucket, rows);
                prop_assert!(cost.bytes <= room, "{} of {room} bytes", cost.bytes);
                prop_assert!(chosen.len() == 1 || cost.time <= max_step);
            }
        }

        #[test]
        fn whoever_has_had_least_leads_and_is_only_kept_waiting_by_want_of_room(
            all in candidates(),
            room in 0u64..6000,
        ) {
            let limits = Limits { max_batch: 4, max_step: None, room };
            let planned = plan(&all, limits, machine);
            let first = all.iter().min_by_key(|c| (c.pass, c.last_step, c.id));
            let fits = first.is_some_and(|c| machine(c.bucket, c.rows).bytes <= room);
            prop_assert_eq!(planned.first().copied(), first.filter(|_| fits).map(|c| c.id));
        }

        #[test]
        fn nobody_who_fits_is_left_out_while_there_is_a_place(
            all in candidates(),
            max_batch in 1usize..9,
            room in 100u64..6000,
        ) {
            let limits = Limits { max_batch, max_step: Some(Duration::from_millis(200)), room };
            let planned = plan(&all, limits, machine);
            let chosen = chosen(&all, &planned);
            if let Some(first) = chosen.first().filter(|_| chosen.len() < max_batch) {
                let rows: usize = chosen.iter().map(|c| c.rows).sum();
                let left_out = all.iter().filter(|c| c.bucket == first.bucket && !planned.contains(&c.id));
                for other in left_out {
                    let cost = machine(first.bucket, rows + other.rows);
                    prop_assert!(cost.bytes > room || cost.time > limits.max_step);
                }
            }
        }
    }

    #[test]
    fn while_nothing_is_known_of_a_steps_time_a_picture_goes_alone_under_a_bound() {
        let candidate = |id| Candidate {
            id,
            bucket: bucket(0, 0),
            rows: 2,
            pass: 0,
            last_step: 0,
        };
        let all = [candidate(1), candidate(2)];
        let unknown = |_, _| Cost {
            bytes: 1,
            time: None,
        };
        let limits = |max_step| Limits {
            max_batch: 4,
            max_step,
            room: 1,
        };
        assert_eq!(
            plan(&all, limits(Some(Duration::from_secs(9))), unknown),
            [1]
        );
        assert_eq!(plan(&all, limits(None), unknown), [1, 2]);
    }

    #[test]
    fn one_of_fewer_rows_joins_where_one_of_more_does_not_fit() {
        let candidate = |id, rows| Candidate {
            id,
            bucket: bucket(0, 0),
            rows,
            pass: 0,
            last_step: id,
        };
        let all = [candidate(1, 2), candidate(2, 2), candidate(3, 1)];
        let by_rows = |_, rows: usize| Cost {
            bytes: rows as u64,
            time: None,
        };
        let limits = Limits {
            max_batch: 4,
            max_step: None,
            room: 3,
        };
        assert_eq!(plan(&all, limits, by_rows), [1, 3]);
    }
}
