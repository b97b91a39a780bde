//! Eight values at once, for kernels that the compiler does not vectorise by itself or that want fused multiply-add.
//!
//! All instruction sets with fused multiply-add use the same eight lanes and so give the same bits; the portable form
//! rounds products.
#![allow(unsafe_code)]

/// Values in a vector.
pub(crate) const LANES: usize = 8;

/// Eight values. The methods of a type may be called only where the processor has what the type needs, which
/// [`by_eight!`] sees to.
pub(crate) trait Eight: Copy {
    fn splat(x: f32) -> Self;
    fn load(from: &[f32; LANES]) -> Self;
    fn store(self, to: &mut [f32; LANES]);
    fn add(self, other: Self) -> Self;
    fn sub(self, other: Self) -> Self;
    fn mul(self, other: Self) -> Self;
    fn div(self, other: Self) -> Self;
    /// `self · factor + term`, rounded once where the processor can.
    fn mul_add(self, factor: Self, term: Self) -> Self;
    /// The lesser; `other` where either is not a number.
    fn min(self, other: Self) -> Self;
    /// The greater; `other` where either is not a number.
    fn max(self, other: Self) -> Self;
    /// 2ⁿ, where a value is 1.5 · 2²³ + n.
    fn power_of_two(self) -> Self;
}

/// 1.5 · 2²³: adding it rounds to an integer and leaves that in the low bits.
const ROUND: f32 = 12_582_912.0;
const EXPONENT_BITS: i32 = 23;
const BIAS: i32 = 127;

/// The portable form.
impl Eight for [f32; LANES] {
    #[inline(always)]
    fn splat(x: f32) -> Self {
        [x; LANES]
    }
    #[inline(always)]
    fn load(from: &[f32; LANES]) -> Self {
        *from
    }
    #[inline(always)]
    fn store(self, to: &mut [f32; LANES]) {
        *to = self;
    }
    #[inline(always)]
    fn add(self, other: Self) -> Self {
        std::array::from_fn(|lane| self[lane] + other[lane])
    }
    #[inline(always)]
    fn sub(self, other: Self) -> Self {
        std::array::from_fn(|lane| self[lane] - other[lane])
    }
    #[inline(always)]
    fn mul(self, other: Self) -> Self {
        std::array::from_fn(|lane| self[lane] * other[lane])
    }
    #[inline(always)]
    fn div(self, other: Self) -> Self {
        std::array::from_fn(|lane| self[lane] / other[lane])
    }
    #[inline(always)]
    fn mul_add(self, factor: Self, term: Self) -> Self {
        std::array::from_fn(|lane| self[lane] * factor[lane] + term[lane])
    }
    #[inline(always)]
    fn min(self, other: Self) -> Self {
        std::array::from_fn(|lane| {
            if self[lane] < other[lane] {
                self[lane]
            } else {
                other[lane]
            }
        })
    }
    #[inline(always)]
    fn max(self, other: Self) -> Self {
        std::array::from_fn(|lane| {
            if self[lane] > other[lane] {
                self[lane]
            } else {
                other[lane]
            }
        })
    }
    #[inline(always)]
    fn power_of_two(self) -> Self {
        self.map(|x| {
            let whole = (x.to_bits() as i32).wrapping_sub(ROUND.to_bits() as i32);
            f32::from_bits((whole.wrapping_add(BIAS) << EXPONENT_BITS) as u32)
        })
    }
}

/// Eight values in a register of a processor with AVX2 and FMA.
#[cfg(target_arch = "x86_64")]
#[derive(Clone, Copy)]
pub(crate) struct Fused(std::arch::x86_64::__m256);

#[cfg(target_arch = "x86_64")]
macro_rules! fused {
    ($name:ident($($argument:ident),*) = $intrinsic:ident($($value:expr),*)) => {
        #[inline(always)]
        fn $name(self, $($argument: Self),*) -> Self {
            // SAFETY: `by_eight!` names this type only inside functions compiled for AVX2 and FMA.
            Self(unsafe { std::arch::x86_64::$intrinsic(self.0, $($value),*) })
        }
    };
}

#[cfg(target_arch = "x86_64")]
impl Eight for Fused {
    #[inline(always)]
    fn splat(x: f32) -> Self {
        // SAFETY: as in `fused!`.
        Self(unsafe { std::arch::x86_64::_mm256_set1_ps(x) })
    }
    #[inline(always)]
    fn load(from: &[f32; LANES]) -> Self {
        // SAFETY: as in `fused!`, and the reference is to eight values.
        Self(unsafe { std::arch::x86_64::_mm256_loadu_ps(from.as_ptr()) })
    }
    #[inline(always)]
    fn store(self, to: &mut [f32; LANES]) {
        // SAFETY: as in `fused!`, and the reference is to eight values.
        unsafe { std::arch::x86_64::_mm256_storeu_ps(to.as_mut_ptr(), self.0) }
    }
    fused!(add(other) = _mm256_add_ps(other.0));
    fused!(sub(other) = _mm256_sub_ps(other.0));
    fused!(mul(other) = _mm256_mul_ps(other.0));
    fused!(div(other) = _mm256_div_ps(other.0));
    fused!(mul_add(factor, term) = _mm256_fmadd_ps(factor.0, term.0));
    fused!(min(other) = _mm256_min_ps(other.0));
    fused!(max(other) = _mm256_max_ps(other.0));
    #[inline(always)]
    fn power_of_two(self) -> Self {
        use std::arch::x86_64::*;
        // SAFETY: as in `fused!`.
        Self(unsafe {
            let offset = _mm256_set1_epi32(BIAS.wrapping_sub(ROUND.to_bits() as i32));
            let exponent = _mm256_add_epi32(_mm256_castps_si256(self.0), offset);
            _mm256_castsi256_ps(_mm256_slli_epi32::<EXPONENT_BITS>(exponent))
        })
    }
}

/// `e^x`: Cephes' polynomial after reduction by ln 2; relative error below 2e-7. NaN stays NaN.
#[inline(always)]
pub(crate) fn exp<V: Eight>(x: V) -> V {
    // The constant comes first: where `x` is not a number it is what remains.
    let x = V::splat(88.3).min(V::splat(-87.3).max(x));
    let shifted = x.mul_add(V::splat(std::f32::consts::LOG2_E), V::splat(ROUND));
    let whole = shifted.sub(V::splat(ROUND));
    let rest = whole.mul_add(V::splat(-0.693_359_4), x);
    let rest = whole.mul_add(V::splat(2.121_944_4e-4), rest);
    let mut sum = V::splat(1.987_569_1e-4);
    for term in [
        1.398_199_9e-3,
        8.333_452e-3,
        4.166_579_6e-2,
        1.666_666_5e-1,
        0.5,
    ] {
        sum = sum.mul_add(rest, V::splat(term));
    }
    let fraction = sum.mul_add(rest.mul(rest), rest).add(V::splat(1.0));
    fraction.mul(shifted.power_of_two())
}

/// `x · sigmoid(slope · x)`.
#[inline(always)]
pub(crate) fn sigmoid_times<V: Eight>(x: V, slope: f32) -> V {
    x.div(exp(x.mul(V::splat(-slope))).add(V::splat(1.0)))
}

/// The error function: a rational approximation on [-4, 4], error a few units in the last place. NaN stays NaN.
#[inline(always)]
pub(crate) fn erf<V: Eight>(x: V) -> V {
    let x = V::splat(4.0).min(V::splat(-4.0).max(x));
    let z = x.mul(x);
    let mut top = V::splat(-2.726_142e-10);
    for term in [
        2.770_681_5e-8,
        -2.101_024e-6,
        -5.692_506_6e-5,
        -7.349_906_4e-4,
        -2.954_6e-3,
        -1.609_603_3e-2,
    ] {
        top = top.mul_add(z, V::splat(term));
    }
    let mut bottom = V::splat(-1.456_607_2e-5);
    for term in [
        -2.133_740_6e-4,
        -1.682_827e-3,
        -7.373_329e-3,
        -1.426_473_9e-2,
    ] {
        bottom = bottom.mul_add(z, V::splat(term));
    }
    x.mul(top).div(bottom)
}

/// `x / 2 · (1 + erf(x / √2))`.
#[inline(always)]
pub(crate) fn gelu<V: Eight>(x: V) -> V {
    let bell = erf(x.mul(V::splat(std::f32::consts::FRAC_1_SQRT_2)));
    let half = x.mul(V::splat(0.5));
    bell.mul_add(half, half)
}

/// A function of the values of `N` rows. A trait and not a closure: what is not inlined into a function that was compiled
/// for the processor calls every instruction as a function of its own.
pub(crate) trait Each<const N: usize>: Copy {
    fn of<V: Eight>(self, values: [V; N]) -> V;
}

/// SiLU, and with another slope than 1 its quick stand-in for GELU.
#[derive(Clone, Copy)]
pub(crate) struct Sigmoid {
    pub(crate) slope: f32,
}

impl Each<1> for Sigmoid {
    #[inline(always)]
    fn of<V: Eight>(self, [x]: [V; 1]) -> V {
        sigmoid_times(x, self.slope)
    }
}

/// GELU.
#[derive(Clone, Copy)]
pub(crate) struct Gelu;

impl Each<1> for Gelu {
    #[inline(always)]
    fn of<V: Eight>(self, [x]: [V; 1]) -> V {
        gelu(x)
    }
}

/// The first times GELU of the second.
#[derive(Clone, Copy)]
pub(crate) struct Gated;

impl Each<2> for Gated {
    #[inline(always)]
    fn of<V: Eight>(self, [value, gate]: [V; 2]) -> V {
        value.mul(gelu(gate))
    }
}

/// A value, times a scale, plus a shift; then perhaps SiLU.
#[derive(Clone, Copy)]
pub(crate) struct Affine<const SILU: bool>;

impl<const SILU: bool> Each<3> for Affine<SILU> {
    #[inline(always)]
    fn of<V: Eight>(self, [x, scale, shift]: [V; 3]) -> V {
        let y = x.mul_add(scale, shift);
        if SILU { sigmoid_times(y, 1.0) } else { y }
    }
}

/// `to = work(from…)` for rows of one length, of which the last vector may be short.
#[inline(always)]
pub(crate) fn for_each<V: Eight, const N: usize>(
    from: [&[f32]; N],
    to: &mut [f32],
    work: impl Each<N>,
) {
    let whole = to.len() / LANES * LANES;
    let mut parts: [&[[f32; LANES]]; N] = [&[]; N];
    for (part, from) in parts.iter_mut().zip(from) {
        *part = &from.as_chunks::<LANES>().0[..whole / LANES];
    }
    for (index, to) in to.as_chunks_mut::<LANES>().0.iter_mut().enumerate() {
        let mut values = [V::splat(0.0); N];
        for (value, part) in values.iter_mut().zip(parts) {
            *value = V::load(&part[index]);
        }
        work.of(values).store(to);
    }
    let rest = to.len() - whole;
    if rest > 0 {
        let mut last = [V::splat(0.0); N];
        for (last, from) in last.iter_mut().zip(from) {
            let mut values = [0.0; LANES];
            values[..rest].copy_from_slice(&from[whole..whole + rest]);
            *last = V::load(&values);
        }
        let mut values = [0.0; LANES];
        work.of(last).store(&mut values);
        to[whole..].copy_from_slice(&values[..rest]);
    }
}

/// Defines a function over slices that is compiled once for each instruction set; its first argument is the set to use,
/// and inside, `V` is the set's [`Eight`].
macro_rules! by_eight {
    ($(#[$meta:meta])* $vis:vis fn $name:ident<$v:ident>($($arg:ident: $ty:ty),* $(,)?) $body:block) => {
        $(#[$meta])*
        $vis fn $name(isa: $crate::ops::simd::Isa, $($arg: $ty),*) {
            #[inline(always)]
            fn body<$v: $crate::ops::vector::Eight>($($arg: $ty),*) $body
            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
                fn avx512($($arg: $ty),*) { body::<$crate::ops::vector::Fused>($($arg),*) }
                #[target_feature(enable = "avx2,fma")]
                fn avx2($($arg: $ty),*) { body::<$crate::ops::vector::Fused>($($arg),*) }
                match isa.vectors() {
                    // SAFETY: an `Isa` with vectors of this width exists only where the processor has these features.
                    #[allow(unsafe_code)]
                    512 => return unsafe { avx512($($arg),*) },
                    // SAFETY: as above.
                    #[allow(unsafe_code)]
                    256 => return unsafe { avx2($($arg),*) },
                    _ => {}
                }
            }
            // Elsewhere there is one set.
            #[cfg(not(target_arch = "x86_64"))]
            let _ = isa;
            body::<[f32; $crate::ops::vector::LANES]>($($arg),*)
        }
    };
}
pub(crate) use by_eight;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::simd::Isa;

    #[derive(Clone, Copy)]
    struct Exp;

    impl Each<1> for Exp {
        fn of<V: Eight>(self, [x]: [V; 1]) -> V {
            exp(x)
        }
    }

    #[derive(Clone, Copy)]
    struct Erf;

    impl Each<1> for Erf {
        fn of<V: Eight>(self, [x]: [V; 1]) -> V {
            erf(x)
        }
    }

    by_eight! {
        fn exps<V>(from: &[f32], to: &mut [f32]) {
            for_each::<V, 1>([from], to, Exp);
        }
    }
    by_eight! {
        fn erfs<V>(from: &[f32], to: &mut [f32]) {
            for_each::<V, 1>([from], to, Erf);
        }
    }

    /// By each instruction set.
    fn all(work: fn(Isa, &[f32], &mut [f32]), x: &[f32]) -> Vec<Vec<f32>> {
        let run = |isa| {
            let mut values = vec![0.0; x.len()];
            work(isa, x, &mut values);
            values
        };
        Isa::supported().into_iter().map(run).collect()
    }

    #[test]
    fn exp_and_erf_hold_their_bounds() {
        let x: Vec<f32> = (-80_000..80_000).map(|index| index as f32 * 1e-3).collect();
        for values in all(exps, &x) {
            for (x, ours) in x.iter().zip(values) {
                let exact = f64::from(*x).exp();
                assert!((f64::from(ours) - exact).abs() <= 3e-7 * exact, "exp({x})");
            }
        }
        // erf(0.5), erf(1), erf(2), erf(-3) from tables.
        let (x, exact) = (
            [0.5, 1.0, 2.0, -3.0],
            [0.520_499_9, 0.842_700_8, 0.995_322_3, -0.999_977_9],
        );
        for values in all(erfs, &x) {
            for ((x, exact), ours) in x.iter().zip(exact).zip(values) {
                assert!((ours - exact).abs() < 3e-7, "erf({x}) = {ours}");
            }
        }
    }

    #[test]
    fn what_is_not_a_number_stays_so() {
        let (exps, erfs) = (all(exps, &[f32::NAN; 3]), all(erfs, &[f32::NAN; 9]));
        for values in exps.iter().chain(&erfs) {
            assert!(values.iter().all(|x| x.is_nan()));
        }
    }

    #[test]
    fn the_end_of_a_row_is_computed_like_the_rest() {
        let x: Vec<f32> = (0..LANES * 2).map(|index| index as f32 * 0.37).collect();
        let whole = all(exps, &x);
        for length in 1..x.len() {
            for (part, whole) in all(exps, &x[..length]).iter().zip(&whole) {
                assert_eq!(part[..], whole[..length]);
            }
        }
    }
}
