//! numpy's natural logarithm of f32.
//!
//! diffusers looks a sigma's training step up among such logarithms, and cuts some of what it finds to whole numbers:
//! where the last place of a logarithm decides between two training steps, it must be numpy's.

/// Coefficients of the numerator and of the denominator, lowest first, and the polynomial ratio itself: numpy's
/// `loops_exponent_log`, as x86-64 with AVX2 or AVX-512 runs it; its error is below four units in the last place.
const NUMERATOR: [f32; 6] = [
    0.0,
    1.0,
    2.112_677_6,
    1.480_000_6,
    0.380_883_78,
    0.025_899_792,
];
const DENOMINATOR: [f32; 6] = [
    1.0,
    2.612_677_6,
    2.453_006,
    0.986_494_3,
    0.154_647_63,
    5.875_095_3e-3,
];

/// The logarithm of a normal positive number; of any other what Rust has for it.
pub(super) fn ln(x: f32) -> f32 {
    if !x.is_normal() || x < 0.0 {
        return x.ln();
    }
    // x = mantissa · 2^exponent, the mantissa between √½ and √2.
    let bits = x.to_bits();
    let mut exponent = (bits >> 23) as i32 - 126;
    let mut mantissa = f32::from_bits((bits & 0x007f_ffff) | (126 << 23));
    if mantissa <= std::f32::consts::FRAC_1_SQRT_2 {
        exponent -= 1;
        mantissa += mantissa;
    }
    let above = mantissa - 1.0;
    let polynomial = |coefficients: [f32; 6]| {
        let [lower @ .., highest] = coefficients;
        (lower.iter().rev()).fold(highest, |sum, coefficient| sum.mul_add(above, *coefficient))
    };
    let ratio = polynomial(NUMERATOR) / polynomial(DENOMINATOR);
    (exponent as f32).mul_add(std::f32::consts::LN_2, ratio)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::golden;

    #[test]
    fn logarithms_are_numpys_to_the_last_bit() {
        let recorded = golden::read("schedulers_noise");
        let (inputs, expected) = (
            recorded.values("log.inputs"),
            recorded.values("log.outputs"),
        );
        assert!(inputs.len() > 1000);
        for (input, expected) in inputs.into_iter().zip(expected) {
            assert_eq!(ln(input).to_bits(), expected.to_bits(), "{input}");
        }
    }

    #[test]
    fn what_has_no_logarithm_gets_none() {
        assert!(ln(-1.0).is_nan() && ln(f32::NAN).is_nan());
        assert_eq!(ln(0.0), f32::NEG_INFINITY);
        assert_eq!(ln(f32::INFINITY), f32::INFINITY);
        assert_eq!(ln(1.0), 0.0);
    }
}
