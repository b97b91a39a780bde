//! What the processor has, chosen at run time, and the one kernel that everything heavy runs on.
//!
//! This is the only file of the crate with `unsafe` in it: a function compiled for a processor feature may be called
//! only where the feature was found, and vector loads take pointers.
#![allow(unsafe_code)]

use std::sync::OnceLock;

/// Columns of a panel of packed weights; each tile is this wide.
pub(crate) const PANEL: usize = 32;
/// The most rows that any kernel computes at once.
pub(crate) const MAX_ROWS: usize = 8;
/// A computed tile: rows of one panel's columns.
pub(crate) type Tile = [[f32; PANEL]; MAX_ROWS];

/// An instruction set. Values come only from [`Isa::supported`], so holding one proves that the processor has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Isa(Level);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Level {
    Portable,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    #[cfg(target_arch = "x86_64")]
    Avx512,
}

impl Isa {
    /// Everything that this processor can run, the best last.
    pub(crate) fn supported() -> Vec<Isa> {
        #[allow(unused_mut)]
        let mut found = vec![Isa(Level::Portable)];
        #[cfg(target_arch = "x86_64")]
        {
            if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
                found.push(Isa(Level::Avx2));
                if is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512dq")
                    && is_x86_feature_detected!("avx512vl")
                {
                    found.push(Isa(Level::Avx512));
                }
            }
        }
        found
    }

    /// The best that this processor can run.
    pub(crate) fn best() -> Isa {
        static BEST: OnceLock<Isa> = OnceLock::new();
        *BEST.get_or_init(|| *Isa::supported().last().unwrap_or(&Isa(Level::Portable)))
    }

    /// Rows that [`tile`] computes at once at full speed.
    pub(crate) fn rows(self) -> usize {
        match self.0 {
            Level::Portable => 4,
            #[cfg(target_arch = "x86_64")]
            Level::Avx2 => 6,
            #[cfg(target_arch = "x86_64")]
            Level::Avx512 => 8,
        }
    }
}

/// The left operand of a product: row `i` is the concatenation, over `taps`, of `run` values from
/// `data[rows[i] + tap]`. A plain matrix has one tap; a convolution has one for each cell of its kernel, so that
/// no im2col copy is ever made.
#[derive(Clone, Copy)]
pub(crate) struct Gather<'a> {
    /// The values.
    pub(crate) data: &'a [f32],
    /// Where each row begins.
    pub(crate) rows: &'a [usize],
    /// Offsets from a row's beginning.
    pub(crate) taps: &'a [usize],
    /// Values at each tap.
    pub(crate) run: usize,
}

/// Multiplies up to `isa.rows()` gathered rows with one packed panel (`taps × run × PANEL`).
///
/// Each value is one chain of additions over taps and run, in that order, whatever the number of rows: a row's
/// result does not depend on its neighbours.
pub(crate) fn tile(isa: Isa, left: Gather<'_>, panel: &[f32], out: &mut Tile) {
    match isa.0 {
        Level::Portable => tile_portable(left, panel, out),
        #[cfg(target_arch = "x86_64")]
        // SAFETY: an `Isa` of this level exists only where `supported` found AVX2 and FMA.
        Level::Avx2 => unsafe { x86::tile_avx2(left, panel, out) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: an `Isa` of this level exists only where `supported` found AVX-512F.
        Level::Avx512 => unsafe { x86::tile_avx512(left, panel, out) },
    }
}

fn tile_portable(left: Gather<'_>, panel: &[f32], out: &mut Tile) {
    for (&row, sums) in left.rows.iter().zip(out.iter_mut()) {
        *sums = [0.0; PANEL];
        for (&tap, weights) in left.taps.iter().zip(panel.chunks_exact(left.run * PANEL)) {
            let values = &left.data[row + tap..][..left.run];
            for (&value, weights) in values.iter().zip(weights.as_chunks::<PANEL>().0) {
                for (sum, &weight) in sums.iter_mut().zip(weights) {
                    *sum += value * weight;
                }
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::{Gather, PANEL, Tile};
    use std::arch::x86_64::*;

    #[target_feature(enable = "avx512f")]
    pub(super) fn tile_avx512(left: Gather<'_>, panel: &[f32], out: &mut Tile) {
        match left.rows.len() {
            8 => rows_avx512::<8>(left, panel, out),
            7 => rows_avx512::<7>(left, panel, out),
            6 => rows_avx512::<6>(left, panel, out),
            5 => rows_avx512::<5>(left, panel, out),
            4 => rows_avx512::<4>(left, panel, out),
            3 => rows_avx512::<3>(left, panel, out),
            2 => rows_avx512::<2>(left, panel, out),
            _ => rows_avx512::<1>(left, panel, out),
        }
    }

    #[target_feature(enable = "avx512f")]
    fn rows_avx512<const R: usize>(left: Gather<'_>, panel: &[f32], out: &mut Tile) {
        let mut low = [_mm512_setzero_ps(); R];
        let mut high = [_mm512_setzero_ps(); R];
        let run = left.run;
        for (&tap, weights) in left.taps.iter().zip(panel.chunks_exact(run * PANEL)) {
            let mut values: [&[f32]; R] = [&[]; R];
            for (value, &row) in values.iter_mut().zip(left.rows) {
                *value = &left.data[row + tap..][..run];
            }
            let weights = &weights.as_chunks::<16>().0[..2 * run];
            for index in 0..run {
                // SAFETY: the references are to sixteen values each.
                let (w0, w1) = unsafe {
                    (_mm512_loadu_ps(weights[2 * index].as_ptr()), _mm512_loadu_ps(weights[2 * index + 1].as_ptr()))
                };
                for r in 0..R {
                    let value = _mm512_set1_ps(values[r][index]);
                    low[r] = _mm512_fmadd_ps(value, w0, low[r]);
                    high[r] = _mm512_fmadd_ps(value, w1, high[r]);
                }
            }
        }
        for r in 0..R {
            let (a, b) = out[r].split_at_mut(16);
            // SAFETY: PANEL is 32, so both halves have sixteen values.
            unsafe {
                _mm512_storeu_ps(a.as_mut_ptr(), low[r]);
                _mm512_storeu_ps(b.as_mut_ptr(), high[r]);
            }
        }
    }

    #[target_feature(enable = "avx2,fma")]
    pub(super) fn tile_avx2(left: Gather<'_>, panel: &[f32], out: &mut Tile) {
        match left.rows.len() {
            6 => rows_avx2::<6>(left, panel, out),
            5 => rows_avx2::<5>(left, panel, out),
            4 => rows_avx2::<4>(left, panel, out),
            3 => rows_avx2::<3>(left, panel, out),
            2 => rows_avx2::<2>(left, panel, out),
            _ => rows_avx2::<1>(left, panel, out),
        }
    }

    #[target_feature(enable = "avx2,fma")]
    fn rows_avx2<const R: usize>(left: Gather<'_>, panel: &[f32], out: &mut Tile) {
        let run = left.run;
        // Sixteen registers hold six rows of half a panel.
        for half in 0..2 {
            let mut low = [_mm256_setzero_ps(); R];
            let mut high = [_mm256_setzero_ps(); R];
            for (&tap, weights) in left.taps.iter().zip(panel.chunks_exact(run * PANEL)) {
                let mut values: [&[f32]; R] = [&[]; R];
                for (value, &row) in values.iter_mut().zip(left.rows) {
                    *value = &left.data[row + tap..][..run];
                }
                let weights = &weights.as_chunks::<8>().0[..4 * run];
                for index in 0..run {
                    let at = 4 * index + 2 * half;
                    // SAFETY: the references are to eight values each.
                    let (w0, w1) =
                        unsafe { (_mm256_loadu_ps(weights[at].as_ptr()), _mm256_loadu_ps(weights[at + 1].as_ptr())) };
                    for r in 0..R {
                        let value = _mm256_set1_ps(values[r][index]);
                        low[r] = _mm256_fmadd_ps(value, w0, low[r]);
                        high[r] = _mm256_fmadd_ps(value, w1, high[r]);
                    }
                }
            }
            for r in 0..R {
                let (a, b) = out[r][16 * half..16 * half + 16].split_at_mut(8);
                // SAFETY: both halves have eight values.
                unsafe {
                    _mm256_storeu_ps(a.as_mut_ptr(), low[r]);
                    _mm256_storeu_ps(b.as_mut_ptr(), high[r]);
                }
            }
        }
    }
}

/// Defines a function over slices whose body is compiled once for each instruction set and chosen at run time.
///
/// Bodies use no fused multiply-add, so each set gives the same bits.
macro_rules! vectorised {
    ($(#[$meta:meta])* $vis:vis fn $name:ident($($arg:ident: $ty:ty),* $(,)?) $(-> $ret:ty)? $body:block) => {
        $(#[$meta])*
        $vis fn $name($($arg: $ty),*) $(-> $ret)? {
            #[inline(always)]
            fn body($($arg: $ty),*) $(-> $ret)? $body
            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
                fn avx512($($arg: $ty),*) $(-> $ret)? { body($($arg),*) }
                #[target_feature(enable = "avx2,fma")]
                fn avx2($($arg: $ty),*) $(-> $ret)? { body($($arg),*) }
                match $crate::ops::simd::Isa::best().vectors() {
                    // SAFETY: `vectors` names a width only where the processor has its features.
                    #[allow(unsafe_code)]
                    512 => return unsafe { avx512($($arg),*) },
                    // SAFETY: as above.
                    #[allow(unsafe_code)]
                    256 => return unsafe { avx2($($arg),*) },
                    _ => {}
                }
            }
            body($($arg),*)
        }
    };
}
pub(crate) use vectorised;

impl Isa {
    /// Width in bits of the vectors that [`vectorised!`] may use.
    pub(crate) fn vectors(self) -> u32 {
        match self.0 {
            Level::Portable => 128,
            #[cfg(target_arch = "x86_64")]
            Level::Avx2 => 256,
            #[cfg(target_arch = "x86_64")]
            Level::Avx512 => 512,
        }
    }
}
