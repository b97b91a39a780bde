//! Which pictures take part in the next denoising step.
//!
//! A pure function, so that what decides about latency and fairness can be tested by itself. For now: round robin. The
//! picture that has waited longest for a step gets one, and others of the same model join it, longest wait first, up
//! to the batch's limit. Priorities, deadlines, shapes and memory belong here too, once there are such.

/// A picture that could be taken a step further.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Candidate {
    /// Which picture; later ones have larger numbers.
    pub(crate) id: u64,
    /// Which model draws it. One step is of one model.
    pub(crate) model: usize,
    /// The number of the step that it last took part in; 0 before its first.
    pub(crate) last_step: u64,
}

/// What a step must keep to.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    /// Pictures in one step, at least 1.
    pub(crate) max_batch: usize,
}

/// The pictures of the next step: of one model, `max_batch` at most, none only if there are no candidates.
pub(crate) fn plan(candidates: &[Candidate], limits: Limits) -> Vec<u64> {
    let mut waiting = candidates.to_vec();
    waiting.sort_unstable_by_key(|candidate| (candidate.last_step, candidate.id));
    let Some(first) = waiting.first().copied() else {
        return Vec::new();
    };
    let same_model = waiting
        .iter()
        .filter(|candidate| candidate.model == first.model);
    same_model
        .take(limits.max_batch.max(1))
        .map(|candidate| candidate.id)
        .collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn candidates() -> impl Strategy<Value = Vec<Candidate>> {
        let one = (0usize..4, 0u64..50);
        proptest::collection::vec(one, 0..24).prop_map(|all| {
            let numbered = all.into_iter().enumerate();
            let candidate = |(id, (model, last_step))| Candidate {
                id: id as u64,
                model,
                last_step,
            };
            numbered.map(candidate).collect()
        })
    }

    proptest! {
        #[test]
        fn a_step_is_of_one_model_and_within_its_limit(all in candidates(), max_batch in 1usize..9) {
            let planned = plan(&all, Limits { max_batch });
            prop_assert!(planned.len() <= max_batch);
            prop_assert_eq!(planned.is_empty(), all.is_empty());
            let chosen: Vec<_> = all.iter().filter(|c| planned.contains(&c.id)).collect();
            prop_assert_eq!(chosen.len(), planned.len(), "no picture twice, none made up");
            prop_assert!(chosen.windows(2).all(|pair| pair[0].model == pair[1].model));
        }

        #[test]
        fn nobody_waits_for_more_steps_than_there_are_pictures(
            mut all in candidates(),
            max_batch in 1usize..9,
            newcomers in proptest::collection::vec(0usize..4, 0..40),
        ) {
            let limits = Limits { max_batch };
            let first_step = 50;
            let mut newcomers = newcomers.into_iter();
            let old: Vec<u64> = all.iter().map(|candidate| candidate.id).collect();
            let mut stepped = std::collections::BTreeSet::new();
            for round in 0..old.len() as u64 {
                let planned = plan(&all, limits);
                for candidate in all.iter_mut().filter(|c| planned.contains(&c.id)) {
                    candidate.last_step = first_step + round;
                }
                stepped.extend(planned);
                // A newcomer counts as having just been stepped: it cannot push in before those who wait.
                if let Some(model) = newcomers.next() {
                    let id = all.len() as u64;
                    all.push(Candidate { id, model, last_step: first_step + round });
                }
            }
            prop_assert!(old.iter().all(|id| stepped.contains(id)));
        }
    }

    #[test]
    fn others_of_the_same_model_join_whoever_has_waited_longest() {
        let candidate = |id, model, last_step| Candidate {
            id,
            model,
            last_step,
        };
        let all = [
            candidate(1, 0, 9),
            candidate(2, 1, 3),
            candidate(3, 0, 5),
            candidate(4, 1, 8),
        ];
        assert_eq!(plan(&all, Limits { max_batch: 4 }), [2, 4]);
        assert_eq!(plan(&all, Limits { max_batch: 1 }), [2]);
    }
}
