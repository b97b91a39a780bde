//! Elementwise functions: SiLU, GELU (exact and quick), GEGLU.

use candle_core::{Result, Tensor};

use super::simd::Isa;
use super::vector::{Gated, Gelu, Sigmoid, by_eight, for_each};
use super::{Fast, map_values, threads};

/// Values that a thread takes at once.
const BLOCK: usize = 16 * 1024;

by_eight! {
    fn silu_values<V>(from: &[f32], to: &mut [f32]) {
        for_each::<V, 1>([from], to, Sigmoid { slope: 1.0 });
    }
}

by_eight! {
    fn quick_gelu_values<V>(from: &[f32], to: &mut [f32]) {
        for_each::<V, 1>([from], to, Sigmoid { slope: 1.702 });
    }
}

by_eight! {
    fn gelu_values<V>(from: &[f32], to: &mut [f32]) {
        for_each::<V, 1>([from], to, Gelu);
    }
}

by_eight! {
    fn geglu_values<V>(values: &[f32], gates: &[f32], to: &mut [f32]) {
        for_each::<V, 2>([values, gates], to, Gated);
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
    work: fn(Isa, &[f32], &mut [f32]),
    plain: fn(&Tensor) -> Result<Tensor>,
) -> Result<Tensor> {
    if !fast.is_on() {
        return plain(x);
    }
    map_values(x, x.dims(), x.elem_count(), |from, to| {
        threads::for_chunks(to, BLOCK, |index, to| {
            work(Isa::best(), &from[index * BLOCK..][..to.len()], to)
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
                geglu_values(Isa::best(), &from[..half], &from[half..], to);
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
}
