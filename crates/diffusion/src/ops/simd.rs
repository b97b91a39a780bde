//! What the processor has, chosen at run time, and the one kernel that everything heavy runs on.
//!
//! One of the crate's few files with `unsafe` in them: a function compiled for a processor feature may be called
//! only where the feature was found, and vector loads take pointers.
#![allow(unsafe_code)]

use std::sync::OnceLock;

/// Columns of a panel of packed weights; each tile is this wide.
pub(crate) const PANEL: usize = 32;
/// Sums of one row with one panel's columns.
pub(crate) type Sums = [f32; PANEL];

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

impl<'a> Gather<'a> {
    /// This operand in blocks of at most `most` along depth (but at least one value of one tap), in order, each with
    /// where it begins.
    pub(crate) fn blocks(self, most: usize) -> impl Iterator<Item = (usize, Gather<'a>)> {
        let pieces = self.run.div_ceil(most).max(1);
        let piece = self.run.div_ceil(pieces).max(1);
        // Either whole taps, as many as go, or pieces of a single one.
        let taps = if pieces == 1 {
            (most / piece).max(1)
        } else {
            1
        };
        self.taps
            .chunks(taps)
            .enumerate()
            .flat_map(move |(index, taps_of)| {
                (0..pieces).map(move |part| {
                    let from = part * piece;
                    let block = Gather {
                        data: self.data.get(from..).unwrap_or_default(),
                        taps: taps_of,
                        run: piece.min(self.run - from),
                        ..self
                    };
                    (index * taps * self.run + from, block)
                })
            })
    }
}

/// Multiplies up to `isa.rows()` gathered rows with one packed panel (`taps × run × PANEL`), a row of `out` each. Only
/// the first `columns` are sure to be computed. With `go_on` the sums begin with what `out` holds: a product whose depth
/// is cut into blocks has the same bits as one that is not.
///
/// Each value is one chain of additions over taps and run, in that order, whatever the number of rows: a row's
/// result does not depend on its neighbours.
pub(crate) fn tile(
    isa: Isa,
    left: Gather<'_>,
    panel: &[f32],
    columns: usize,
    go_on: bool,
    out: &mut [Sums],
) {
    // For those sets that have vectors of more than one width.
    #[cfg(not(target_arch = "x86_64"))]
    let _ = columns;
    match isa.0 {
        Level::Portable => tile_portable(left, panel, go_on, out),
        #[cfg(target_arch = "x86_64")]
        // SAFETY: an `Isa` of this level exists only where `supported` found AVX2 and FMA.
        Level::Avx2 => unsafe { x86::tile_avx2(left, panel, columns, go_on, out) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: an `Isa` of this level exists only where `supported` found AVX-512F.
        Level::Avx512 => unsafe { x86::tile_avx512(left, panel, columns, go_on, out) },
    }
}

fn tile_portable(left: Gather<'_>, panel: &[f32], go_on: bool, out: &mut [Sums]) {
    for (&row, sums) in left.rows.iter().zip(out.iter_mut()) {
        if !go_on {
            *sums = [0.0; PANEL];
        }
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
    use super::{Gather, PANEL, Sums};
    use std::arch::x86_64::*;

    // Loads are written with intrinsics and `wrapping_add` that carry no check of their own: this loop is nearly all
    // of the engine's time, in builds with debug assertions too.

    /// All sixteen lanes.
    const ALL: __mmask16 = 0xffff;

    /// Calls `$rows::<ROWS, …>` for the number of rows that there are.
    macro_rules! by_rows {
        ($rows:ident, $left:ident, $panel:ident, $go_on:ident, $out:ident, $vectors:literal: $($count:literal)*) => {
            match $left.rows.len() {
                $($count => $rows::<$count, $vectors>($left, $panel, $go_on, $out),)*
                rows => unreachable!("a tile of {rows} rows"),
            }
        };
    }

    #[target_feature(enable = "avx512f")]
    pub(super) fn tile_avx512(
        left: Gather<'_>,
        panel: &[f32],
        columns: usize,
        go_on: bool,
        out: &mut [Sums],
    ) {
        if columns > 16 {
            by_rows!(rows_avx512, left, panel, go_on, out, 2: 1 2 3 4 5 6 7 8)
        } else {
            by_rows!(rows_avx512, left, panel, go_on, out, 1: 1 2 3 4 5 6 7 8)
        }
    }

    /// `V` vectors of sixteen columns.
    #[target_feature(enable = "avx512f")]
    fn rows_avx512<const R: usize, const V: usize>(
        left: Gather<'_>,
        panel: &[f32],
        go_on: bool,
        out: &mut [Sums],
    ) {
        let mut sums = [[_mm512_setzero_ps(); V]; R];
        if go_on {
            for (sums, out) in sums.iter_mut().zip(out.iter()) {
                for (sum, out) in sums.iter_mut().zip(out.as_chunks::<16>().0) {
                    // SAFETY: the reference is to sixteen values.
                    *sum = unsafe { _mm512_loadu_ps(out.as_ptr()) };
                }
            }
        }
        for (&tap, weights) in left.taps.iter().zip(panel.chunks_exact(left.run * PANEL)) {
            let values = starts::<R>(left, tap);
            let mut weights = weights.as_ptr();
            for index in 0..left.run {
                let mut columns = [_mm512_setzero_ps(); V];
                for (v, column) in columns.iter_mut().enumerate() {
                    // SAFETY: `weights` has run × PANEL values, and V × 16 is at most PANEL.
                    *column = unsafe { _mm512_maskz_loadu_ps(ALL, weights.wrapping_add(16 * v)) };
                }
                for r in 0..R {
                    // SAFETY: `starts` checked that `run` values follow.
                    let value = _mm512_broadcastss_ps(unsafe {
                        _mm_load_ss(values[r].wrapping_add(index))
                    });
                    for v in 0..V {
                        sums[r][v] = _mm512_fmadd_ps(value, columns[v], sums[r][v]);
                    }
                }
                weights = weights.wrapping_add(PANEL);
            }
        }
        for (sums, out) in sums.iter().zip(out.iter_mut()) {
            for (sum, out) in sums.iter().zip(out.as_chunks_mut::<16>().0) {
                // SAFETY: the reference is to sixteen values.
                unsafe { _mm512_storeu_ps(out.as_mut_ptr(), *sum) };
            }
        }
    }

    #[target_feature(enable = "avx2,fma")]
    pub(super) fn tile_avx2(
        left: Gather<'_>,
        panel: &[f32],
        columns: usize,
        go_on: bool,
        out: &mut [Sums],
    ) {
        by_rows!(rows_avx2, left, panel, go_on, out, 0: 1 2 3 4 5 6);
        // Sixteen registers hold six rows of half a panel.
        if columns > 16 {
            by_rows!(rows_avx2, left, panel, go_on, out, 16: 1 2 3 4 5 6);
        }
    }

    /// Sixteen columns, from `FIRST` on.
    #[target_feature(enable = "avx2,fma")]
    fn rows_avx2<const R: usize, const FIRST: usize>(
        left: Gather<'_>,
        panel: &[f32],
        go_on: bool,
        out: &mut [Sums],
    ) {
        let mut sums = [[_mm256_setzero_ps(); 2]; R];
        if go_on {
            for (sums, out) in sums.iter_mut().zip(out.iter()) {
                for (sum, out) in sums.iter_mut().zip(out[FIRST..].as_chunks::<8>().0) {
                    // SAFETY: the reference is to eight values.
                    *sum = unsafe { _mm256_loadu_ps(out.as_ptr()) };
                }
            }
        }
        for (&tap, weights) in left.taps.iter().zip(panel.chunks_exact(left.run * PANEL)) {
            let values = starts::<R>(left, tap);
            let mut weights = weights.as_ptr();
            for index in 0..left.run {
                // SAFETY: `weights` has run × PANEL values, and FIRST + 16 is at most PANEL.
                let (a, b) = unsafe {
                    (
                        _mm256_loadu_ps(weights.wrapping_add(FIRST)),
                        _mm256_loadu_ps(weights.wrapping_add(FIRST + 8)),
                    )
                };
                for r in 0..R {
                    // SAFETY: `starts` checked that `run` values follow.
                    let value = _mm256_broadcastss_ps(unsafe {
                        _mm_load_ss(values[r].wrapping_add(index))
                    });
                    sums[r][0] = _mm256_fmadd_ps(value, a, sums[r][0]);
                    sums[r][1] = _mm256_fmadd_ps(value, b, sums[r][1]);
                }
                weights = weights.wrapping_add(PANEL);
            }
        }
        for (sums, out) in sums.iter().zip(out.iter_mut()) {
            for (sum, out) in sums.iter().zip(out[FIRST..].as_chunks_mut::<8>().0) {
                // SAFETY: the reference is to eight values.
                unsafe { _mm256_storeu_ps(out.as_mut_ptr(), *sum) };
            }
        }
    }

    /// Where the values of each row at a tap begin, each checked to have `run` of them.
    fn starts<const R: usize>(left: Gather<'_>, tap: usize) -> [*const f32; R] {
        let mut starts = [std::ptr::null(); R];
        assert_eq!(left.rows.len(), R);
        for (start, &row) in starts.iter_mut().zip(left.rows) {
            *start = left.data[row + tap..][..left.run].as_ptr();
        }
        starts
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

#[cfg(target_arch = "x86_64")]
impl Isa {
    /// Width in bits of the vectors that [`vectorised!`] may use.
    pub(crate) fn vectors(self) -> u32 {
        match self.0 {
            Level::Portable => 128,
            Level::Avx2 => 256,
            Level::Avx512 => 512,
        }
    }
}
