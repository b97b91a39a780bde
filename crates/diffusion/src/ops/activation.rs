//! Elementwise functions: SiLU, GELU (exact and quick), GEGLU, softmax.

use candle_core::{Result, Tensor};

use super::simd::vectorised;
use super::{Fast, map_values, threads};

/// Values that a thread takes at once.
const BLOCK: usize = 16 * 1024;
/// Sums are kept in this many lanes, so that their order is the same at every vector width.
const LANES: usize = 16;

/// `e^x`: Cephes' polynomial after reduction by ln 2; relative error below 2e-7.
#[inline(always)]
pub(crate) fn exp(x: f32) -> f32 {
    let x = x.clamp(-87.3, 88.3);
    // Adding 1.5 · 2^23 rounds to an integer and leaves it in the low bits.
    let shifted = x * std::f32::consts::LOG2_E + 12_582_912.0;
    let whole = shifted - 12_582_912.0;
    let rest = x - whole * 0.693_359_4 - whole * -2.121_944_4e-4;
    let mut sum = 1.987_569_1e-4;
    sum = sum * rest + 1.398_199_9e-3;
    sum = sum * rest + 8.333_452e-3;
    sum = sum * rest + 4.166_579_6e-2;
    sum = sum * rest + 1.666_666_5e-1;
    sum = sum * rest + 0.5;
    let fraction = sum * rest * rest + rest + 1.0;
    let exponent = shifted
        .to_bits()
        .wrapping_sub(12_582_912_f32.to_bits())
        .wrapping_add(127)
        << 23;
    fraction * f32::from_bits(exponent)
}

/// The error function: a rational approximation on [-4, 4], error a few units in the last place.
#[inline(always)]
pub(crate) fn erf(x: f32) -> f32 {
    let x = x.clamp(-4.0, 4.0);
    let z = x * x;
    let mut top = -2.726_142e-10;
    top = top * z + 2.770_681_5e-8;
    top = top * z + -2.101_024e-6;
    top = top * z + -5.692_506_6e-5;
    top = top * z + -7.349_906_4e-4;
    top = top * z + -2.954_6e-3;
    top = top * z + -1.609_603_3e-2;
    let mut bottom = -1.456_607_2e-5;
    bottom = bottom * z + -2.133_740_6e-4;
    bottom = bottom * z + -1.682_827e-3;
    bottom = bottom * z + -7.373_329e-3;
    bottom = bottom * z + -1.426_473_9e-2;
    x * top / bottom
}

#[inline(always)]
pub(crate) fn sigmoid_times(x: f32, slope: f32) -> f32 {
    x / (1.0 + exp(-slope * x))
}

#[inline(always)]
fn gelu_value(x: f32) -> f32 {
    0.5 * x * (1.0 + erf(x * std::f32::consts::FRAC_1_SQRT_2))
}

vectorised! {
    fn silu_values(from: &[f32], to: &mut [f32]) {
        for (to, &x) in to.iter_mut().zip(from) {
            *to = sigmoid_times(x, 1.0);
        }
    }
}

vectorised! {
    fn quick_gelu_values(from: &[f32], to: &mut [f32]) {
        for (to, &x) in to.iter_mut().zip(from) {
            *to = sigmoid_times(x, 1.702);
        }
    }
}

vectorised! {
    fn gelu_values(from: &[f32], to: &mut [f32]) {
        for (to, &x) in to.iter_mut().zip(from) {
            *to = gelu_value(x);
        }
    }
}

vectorised! {
    fn geglu_values(values: &[f32], gates: &[f32], to: &mut [f32]) {
        for ((to, &value), &gate) in to.iter_mut().zip(values).zip(gates) {
            *to = value * gelu_value(gate);
        }
    }
}

vectorised! {
    /// Softmax of `row · scale`, in place.
    pub(crate) fn softmax_row(row: &mut [f32], scale: f32) {
        let mut most = [f32::NEG_INFINITY; LANES];
        let (chunks, rest) = row.as_chunks::<LANES>();
        for chunk in chunks {
            for (most, &x) in most.iter_mut().zip(chunk) {
                *most = if x > *most { x } else { *most };
            }
        }
        let mut top = f32::NEG_INFINITY;
        for &x in most.iter().chain(rest) {
            top = if x > top { x } else { top };
        }
        let mut sums = [0.0; LANES];
        let (chunks, rest) = row.as_chunks_mut::<LANES>();
        for chunk in chunks {
            for (sum, x) in sums.iter_mut().zip(chunk) {
                *x = exp((*x - top) * scale);
                *sum += *x;
            }
        }
        for (sum, x) in sums.iter_mut().zip(rest) {
            *x = exp((*x - top) * scale);
            *sum += *x;
        }
        let mut total = 0.0;
        for sum in sums {
            total += sum;
        }
        let factor = 1.0 / total;
        for x in row {
            *x *= factor;
        }
    }
}

/// Returns what a kernel of the GPU answers, where it takes this.
macro_rules! on_gpu {
    ($call:expr) => {
        #[cfg(feature = "cuda")]
        {
            #[allow(unused_imports)]
            use crate::cuda::elementwise::{Function, activate, geglu};
            if let Some(y) = $call? {
                return Ok(y);
            }
        }
    };
}

fn each(
    fast: Fast,
    x: &Tensor,
    work: fn(&[f32], &mut [f32]),
    plain: fn(&Tensor) -> Result<Tensor>,
) -> Result<Tensor> {
    if !fast.is_on() {
        return plain(x);
    }
    map_values(x, x.dims(), x.elem_count(), |from, to| {
        threads::for_chunks(to, BLOCK, |index, to| {
            work(&from[index * BLOCK..][..to.len()], to)
        });
    })
}

/// `x · sigmoid(x)`.
pub(crate) fn silu(fast: Fast, x: &Tensor) -> Result<Tensor> {
    each(fast, x, silu_values, |x| {
        on_gpu!(activate(x, Function::Silu));
        x.silu()
    })
}

/// GELU by the error function.
pub(crate) fn gelu(fast: Fast, x: &Tensor) -> Result<Tensor> {
    each(fast, x, gelu_values, |x| {
        on_gpu!(activate(x, Function::Gelu));
        x.gelu_erf()
    })
}

/// `x · sigmoid(1.702 x)`.
pub(crate) fn quick_gelu(fast: Fast, x: &Tensor) -> Result<Tensor> {
    each(fast, x, quick_gelu_values, |x| {
        on_gpu!(activate(x, Function::QuickGelu));
        x * candle_nn::ops::sigmoid(&(x * 1.702)?)?
    })
}

/// The gated unit: of each row's two halves, the first times GELU of the second.
pub(crate) fn geglu(fast: Fast, x: &Tensor) -> Result<Tensor> {
    let mut dims = x.dims().to_vec();
    let Some(last) = dims.last_mut() else {
        candle_core::bail!("geglu of a scalar")
    };
    let (both, half) = (*last, *last / 2);
    *last = half;
    if !fast.is_on() {
        on_gpu!(geglu(x));
        let axis = dims.len() - 1;
        return x.narrow(axis, 0, half)? * x.narrow(axis, half, half)?.gelu_erf()?;
    }
    let rows = (BLOCK / half.max(1)).max(1);
    map_values(x, &dims, x.elem_count() / 2, |from, to| {
        threads::for_chunks(to, rows * half, |index, to| {
            let from = &from[index * rows * both..];
            for (to, from) in to.chunks_exact_mut(half).zip(from.chunks_exact(both)) {
                geglu_values(&from[..half], &from[half..], to);
            }
        });
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::tests::{assert_close, tensor};

    #[test]
    fn vector_functions_agree_with_candle() {
        let x = (tensor(3, &[3, 5, 66]) * 4.0).unwrap();
        let (fast, plain) = (Fast::ON, Fast::OFF);
        assert_close(&silu(fast, &x).unwrap(), &silu(plain, &x).unwrap(), 1e-6);
        assert_close(&gelu(fast, &x).unwrap(), &gelu(plain, &x).unwrap(), 2e-6);
        assert_close(
            &quick_gelu(fast, &x).unwrap(),
            &quick_gelu(plain, &x).unwrap(),
            2e-6,
        );
        assert_close(&geglu(fast, &x).unwrap(), &geglu(plain, &x).unwrap(), 1e-5);
    }

    #[test]
    fn exp_and_erf_hold_their_bounds() {
        for index in -80_000..80_000 {
            let x = index as f32 * 1e-3;
            let exact = f64::from(x).exp();
            assert!(
                (f64::from(exp(x)) - exact).abs() <= 3e-7 * exact,
                "exp({x})"
            );
        }
        // erf(0.5), erf(1), erf(2), erf(-3) from tables.
        for (x, exact) in [
            (0.5, 0.520_499_9),
            (1.0, 0.842_700_8),
            (2.0, 0.995_322_3),
            (-3.0, -0.999_977_9),
        ] {
            assert!((erf(x) - exact).abs() < 3e-7, "erf({x}) = {}", erf(x));
        }
    }
}
