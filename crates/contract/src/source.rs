//! How much of the way a picture that a task begins from is led through, and what few steps leave of that.
//!
//! The engine knows the same by itself (`diffusion`, which knows no contract); a test of the worker holds both together, so that nothing is
//! admitted of which the engine finds no step left.

use crate::v1::Source;

/// Where a request does not say, as in diffusers' pipelines.
const STRENGTH: f32 = 0.3;
/// The same under a mask.
const STRENGTH_UNDER_MASK: f32 = 0.9999;

/// The share of the way that a picture is led through: the request's, or the default.
pub fn strength(source: &Source) -> f32 {
    let default = match source.mask_key.as_str() {
        "" => STRENGTH,
        _ => STRENGTH_UNDER_MASK,
    };
    source.strength.unwrap_or(default)
}

/// Of so many steps of the whole way, those that a picture is led through. The engine rounds down as well.
pub fn steps_led(steps: u32, strength: f32) -> u32 {
    (f64::from(steps) * as_written(strength)) as u32
}

/// The fewest steps of the whole way of which one at least is left.
pub fn fewest_steps(strength: f32) -> u32 {
    let about = (1.0 / as_written(strength)).ceil() as u32;
    match steps_led(about, strength) {
        0 => about.saturating_add(1),
        _ => about,
    }
}

/// The number that was meant: 0.7 in f32 is a little less, and would lose a step.
fn as_written(value: f32) -> f64 {
    value.to_string().parse().unwrap_or(f64::from(value))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_strength_that_is_not_given_is_the_pipelines() {
        let source = |mask: &str, strength| Source {
            mask_key: mask.to_owned(),
            strength,
            ..Source::default()
        };
        assert_eq!(strength(&source("", None)), 0.3);
        assert_eq!(strength(&source("x", None)), 0.9999);
        assert_eq!(strength(&source("x", Some(0.5))), 0.5);
    }

    #[test]
    fn steps_are_rounded_down_from_the_strength_that_was_written() {
        let led = [(3, 0.3), (4, 0.3), (10, 0.7), (1, 0.9999), (1, 1.0)];
        let led = led.map(|(steps, strength)| steps_led(steps, strength));
        assert_eq!(led, [0, 1, 7, 0, 1]);
        assert_eq!([0.3, 0.9999, 0.1, 1.0].map(fewest_steps), [4, 2, 10, 1]);
    }

    proptest! {
        #[test]
        fn the_fewest_steps_leave_one_and_fewer_leave_none(strength in 1e-6f32..=1.0) {
            let fewest = fewest_steps(strength);
            prop_assert_eq!(steps_led(fewest, strength), 1);
            prop_assert_eq!(steps_led(fewest - 1, strength), 0);
        }
    }
}
