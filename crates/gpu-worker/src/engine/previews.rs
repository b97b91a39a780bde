//! When a picture is shown on the way.
//!
//! Steps are a job's own ([`Progress`](diffusion::Progress)), evaluations of the model: some schedulers take two for each that was
//! asked for.

/// After which of its steps a picture is shown: `count` times, evenly spaced, never at its end. Fewer where there are fewer steps.
pub(super) fn preview_steps(steps: u32, count: u32) -> Vec<u32> {
    let parts = u64::from(count) + 1;
    // At most `steps`, so the cast loses nothing.
    let after = |part: u64| (u64::from(steps) * part).div_ceil(parts) as u32;
    let mut all: Vec<u32> = (1..parts).map(after).filter(|&step| step < steps).collect();
    all.dedup();
    all
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn previews_are_evenly_spaced() {
        assert_eq!(preview_steps(20, 0), [] as [u32; 0]);
        assert_eq!(preview_steps(20, 1), [10]);
        assert_eq!(preview_steps(20, 3), [5, 10, 15]);
        assert_eq!(preview_steps(12, 2), [4, 8]);
        assert_eq!(preview_steps(7, 3), [2, 4, 6]);
    }

    #[test]
    fn a_picture_of_few_steps_is_shown_less_often() {
        assert_eq!(preview_steps(1, 3), [] as [u32; 0]);
        assert_eq!(preview_steps(2, 3), [1]);
    }

    proptest! {
        #[test]
        fn previews_come_in_order_after_the_first_step_and_before_the_end(steps in 1u32..2000, count in 0u32..4) {
            let all = preview_steps(steps, count);
            prop_assert!(all.len() <= count as usize);
            prop_assert!(all.windows(2).all(|pair| pair[0] < pair[1]));
            prop_assert!(all.iter().all(|&step| (1..steps).contains(&step)));
            prop_assert!(steps <= count || all.len() == count as usize);
        }
    }
}
