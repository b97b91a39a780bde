//! From stored floating point types to f32, and from stored rows to packed panels, without a copy between.
//!
//! Every value of f16 and bf16 is one of f32, so all forms give the same bits.
//!
//! One of the crate's few files with `unsafe` in them: a function compiled for a processor feature may be called only
//! where the feature was found, and vector loads take pointers.
#![allow(unsafe_code)]

use super::simd::PANEL;

/// A floating point type that weights are stored in, little-endian.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Element {
    F16,
    Bf16,
    F32,
    F64,
}

impl Element {
    /// Bytes of a value.
    pub(crate) fn size(self) -> usize {
        match self {
            Element::F16 | Element::Bf16 => 2,
            Element::F32 => 4,
            Element::F64 => 8,
        }
    }

    /// The value in the first bytes of `bytes`.
    fn read(self, bytes: &[u8]) -> f32 {
        match self {
            Element::F16 => from_f16(u16::from_le_bytes(first(bytes))),
            Element::Bf16 => from_bf16(u16::from_le_bytes(first(bytes))),
            Element::F32 => f32::from_le_bytes(first(bytes)),
            Element::F64 => f64::from_le_bytes(first(bytes)) as f32,
        }
    }
}

fn first<const N: usize>(bytes: &[u8]) -> [u8; N] {
    let mut value = [0; N];
    value.copy_from_slice(&bytes[..N]);
    value
}

/// IEEE 754 binary16. A signalling NaN becomes the quiet one of the same payload, as in hardware.
#[inline(always)]
fn from_f16(half: u16) -> f32 {
    let sign = u32::from(half & 0x8000) << 16;
    let (exponent, fraction) = (half >> 10 & 0x1f, u32::from(half & 0x3ff));
    match exponent {
        // Fractions of 2^-24, which f32 has as normal numbers.
        0 => f32::from_bits(sign | (fraction as f32 * f32::from_bits(0x3380_0000)).to_bits()),
        0x1f if fraction == 0 => f32::from_bits(sign | 0x7f80_0000),
        0x1f => f32::from_bits(sign | 0x7fc0_0000 | fraction << 13),
        _ => f32::from_bits(sign | (u32::from(exponent) + 112) << 23 | fraction << 13),
    }
}

/// The upper half of an f32.
#[inline(always)]
fn from_bf16(half: u16) -> f32 {
    f32::from_bits(u32::from(half) << 16)
}

/// Widens as many values as `out` has; `bytes` are theirs.
pub(crate) fn widen(element: Element, bytes: &[u8], out: &mut [f32]) {
    assert_eq!(bytes.len(), out.len() * element.size());
    #[cfg(target_arch = "x86_64")]
    if x86::found() {
        // SAFETY: `found` says that the processor has AVX2 and F16C.
        return unsafe { x86::widen(element, bytes, out) };
    }
    widen_portable(element, bytes, out);
}

fn widen_portable(element: Element, bytes: &[u8], out: &mut [f32]) {
    for (out, bytes) in out.iter_mut().zip(bytes.chunks_exact(element.size())) {
        *out = element.read(bytes);
    }
}

/// One row of weights as stored.
#[derive(Clone, Copy)]
pub(crate) struct Row<'a> {
    pub(crate) element: Element,
    pub(crate) bytes: &'a [u8],
}

/// Packs up to [`PANEL`] rows of `depth` values, the columns of a panel, into `out` (depth × PANEL); columns that there
/// are no rows for become zeros.
///
/// A row is stored as (channel, tap) and packed as (tap, channel): `taps` is 9 for a 3×3 convolution and 1 for a matrix,
/// where nothing changes places. It divides the depth.
pub(crate) fn pack(rows: &[Row<'_>], taps: usize, out: &mut [f32]) {
    let depth = out.len() / PANEL;
    assert!(rows.len() <= PANEL && depth * PANEL == out.len() && depth.is_multiple_of(taps));
    for row in rows {
        assert_eq!(row.bytes.len(), depth * row.element.size());
    }
    if rows.len() < PANEL {
        out.fill(0.0);
    }
    #[allow(unused_mut)]
    let mut done = 0;
    #[cfg(target_arch = "x86_64")]
    if x86::found() && rows.iter().all(|row| row.element == rows[0].element) {
        let (eights, _) = rows.as_chunks::<8>();
        // SAFETY: `found` says that the processor has AVX2 and F16C.
        unsafe { x86::pack(eights, taps, out) };
        done = 8 * eights.len();
    }
    pack_portable(&rows[done..], done, taps, out);
}

fn pack_portable(rows: &[Row<'_>], first: usize, taps: usize, out: &mut [f32]) {
    let channels = out.len() / PANEL / taps;
    for (column, row) in rows.iter().enumerate() {
        let size = row.element.size();
        for (channel, bytes) in row.bytes.chunks_exact(taps * size).enumerate() {
            for (tap, bytes) in bytes.chunks_exact(size).enumerate() {
                out[(tap * channels + channel) * PANEL + first + column] = row.element.read(bytes);
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::{Element, PANEL, Row, pack_portable, widen_portable};
    use std::arch::x86_64::*;
    use std::sync::OnceLock;

    /// Whether the processor has what this module is compiled for.
    pub(super) fn found() -> bool {
        static FOUND: OnceLock<bool> = OnceLock::new();
        *FOUND.get_or_init(|| is_x86_feature_detected!("avx2") && is_x86_feature_detected!("f16c"))
    }

    /// Types by number, for functions compiled for one type.
    const F16: u8 = 0;
    const BF16: u8 = 1;
    const F32: u8 = 2;

    /// Eight values of the type `E`.
    ///
    /// # Safety
    ///
    /// They must be there.
    #[target_feature(enable = "avx2,f16c")]
    unsafe fn load<const E: u8>(from: *const u8) -> __m256 {
        // SAFETY: the caller's.
        unsafe {
            match E {
                F16 => _mm256_cvtph_ps(_mm_loadu_si128(from.cast())),
                BF16 => _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(
                    _mm_loadu_si128(from.cast()),
                ))),
                _ => _mm256_loadu_ps(from.cast()),
            }
        }
    }

    #[target_feature(enable = "avx2,f16c")]
    pub(super) fn widen(element: Element, bytes: &[u8], out: &mut [f32]) {
        match element {
            Element::F16 => widen_type::<F16, 16>(element, bytes, out),
            Element::Bf16 => widen_type::<BF16, 16>(element, bytes, out),
            Element::F32 => widen_type::<F32, 32>(element, bytes, out),
            Element::F64 => widen_portable(element, bytes, out),
        }
    }

    /// `EIGHT` is the size of eight values in bytes.
    #[target_feature(enable = "avx2,f16c")]
    fn widen_type<const E: u8, const EIGHT: usize>(
        element: Element,
        bytes: &[u8],
        out: &mut [f32],
    ) {
        let (eights, bytes_left) = bytes.as_chunks::<EIGHT>();
        let (out_eights, out_left) = out.as_chunks_mut::<8>();
        for (out, bytes) in out_eights.iter_mut().zip(eights) {
            // SAFETY: the references are to eight values each.
            unsafe { _mm256_storeu_ps(out.as_mut_ptr(), load::<E>(bytes.as_ptr())) };
        }
        widen_portable(element, bytes_left, out_left);
    }

    /// Packs rows of one type, eight by eight. The sizes are the caller's to check.
    #[target_feature(enable = "avx2,f16c")]
    pub(super) fn pack(eights: &[[Row<'_>; 8]], taps: usize, out: &mut [f32]) {
        match eights.first().map(|rows| rows[0].element) {
            None => {}
            Some(Element::F16) => pack_type::<F16>(eights, taps, out),
            Some(Element::Bf16) => pack_type::<BF16>(eights, taps, out),
            Some(Element::F32) => pack_type::<F32>(eights, taps, out),
            Some(Element::F64) => pack_portable(eights.as_flattened(), 0, taps, out),
        }
    }

    #[target_feature(enable = "avx2,f16c")]
    fn pack_type<const E: u8>(eights: &[[Row<'_>; 8]], taps: usize, out: &mut [f32]) {
        let size = eights[0][0].element.size();
        let depth = out.len() / PANEL;
        assert!(eights.len() * 8 <= PANEL && depth.is_multiple_of(taps));
        for row in eights.as_flattened() {
            assert_eq!(row.bytes.len(), depth * size);
        }
        let (channels, whole) = (depth / taps, depth / 8 * 8);
        // Where the next value of each row goes: taps first, then channels.
        let (mut tap, mut channel) = (0, 0);
        let mut places = [0; 8];
        for k in (0..depth).step_by(8) {
            for place in &mut places[..8.min(depth - k)] {
                *place = (tap * channels + channel) * PANEL;
                tap += 1;
                if tap == taps {
                    (tap, channel) = (0, channel + 1);
                }
            }
            for (rows, first) in eights.iter().zip((0..).step_by(8)) {
                if k == whole {
                    for (place, k) in places.iter().zip(k..depth) {
                        for (out, row) in out[place + first..][..8].iter_mut().zip(rows) {
                            *out = row.element.read(&row.bytes[k * size..]);
                        }
                    }
                    continue;
                }
                let mut values = [_mm256_setzero_ps(); 8];
                for (value, row) in values.iter_mut().zip(rows) {
                    // SAFETY: each row has `depth` values of this type, and k + 8 is not more.
                    *value = unsafe { load::<E>(row.bytes.as_ptr().wrapping_add(k * size)) };
                }
                for (column, place) in transpose(values).into_iter().zip(places) {
                    let to = out.as_mut_ptr().wrapping_add(place + first);
                    // SAFETY: a place begins one of the panel's `depth` rows, which has eight values behind `first`.
                    unsafe { _mm256_storeu_ps(to, column) };
                }
            }
        }
    }

    /// Eight rows of eight become eight columns.
    #[inline]
    #[target_feature(enable = "avx2")]
    fn transpose(rows: [__m256; 8]) -> [__m256; 8] {
        let [a, b, c, d, e, f, g, h] = rows;
        let (upper, lower) = (fours(a, b, c, d), fours(e, f, g, h));
        let mut columns = [_mm256_setzero_ps(); 8];
        for index in 0..4 {
            columns[index] = _mm256_permute2f128_ps::<0x20>(upper[index], lower[index]);
            columns[index + 4] = _mm256_permute2f128_ps::<0x31>(upper[index], lower[index]);
        }
        columns
    }

    /// Of four rows, columns 0 and 4, 1 and 5, 2 and 6, 3 and 7.
    #[inline]
    #[target_feature(enable = "avx2")]
    fn fours(a: __m256, b: __m256, c: __m256, d: __m256) -> [__m256; 4] {
        let (ab, cd) = (_mm256_unpacklo_ps(a, b), _mm256_unpacklo_ps(c, d));
        let (ab_above, cd_above) = (_mm256_unpackhi_ps(a, b), _mm256_unpackhi_ps(c, d));
        [
            _mm256_shuffle_ps::<0x44>(ab, cd),
            _mm256_shuffle_ps::<0xee>(ab, cd),
            _mm256_shuffle_ps::<0x44>(ab_above, cd_above),
            _mm256_shuffle_ps::<0xee>(ab_above, cd_above),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::noise::Generator;

    /// What the value is by definition, computed in f64.
    fn defined(half: u16) -> f64 {
        let sign = if half & 0x8000 == 0 { 1.0 } else { -1.0 };
        let (exponent, fraction) = (i32::from(half >> 10 & 31), f64::from(half & 1023));
        match exponent {
            0 => sign * fraction * (-24_f64).exp2(),
            31 if fraction == 0.0 => sign * f64::INFINITY,
            31 => f64::NAN,
            _ => sign * (1.0 + fraction / 1024.0) * f64::from(exponent - 15).exp2(),
        }
    }

    fn halves() -> Vec<u8> {
        (0..=u16::MAX).flat_map(u16::to_le_bytes).collect()
    }

    fn bits(values: &[f32]) -> Vec<u32> {
        values.iter().map(|x| x.to_bits()).collect()
    }

    #[test]
    fn every_f16_is_widened_to_what_it_means() {
        let (mut best, mut portable) = (vec![0.0; 65536], vec![0.0; 65536]);
        widen(Element::F16, &halves(), &mut best);
        widen_portable(Element::F16, &halves(), &mut portable);
        assert_eq!(bits(&best), bits(&portable));
        for (half, value) in (0..=u16::MAX).zip(best) {
            let expected = defined(half);
            if expected.is_nan() {
                assert!(value.is_nan(), "{half:#x}");
            } else {
                assert_eq!(f64::from(value).to_bits(), expected.to_bits(), "{half:#x}");
            }
        }
    }

    #[test]
    fn every_bf16_is_the_upper_half_of_its_f32() {
        let (mut best, mut portable) = (vec![0.0; 65536], vec![0.0; 65536]);
        widen(Element::Bf16, &halves(), &mut best);
        widen_portable(Element::Bf16, &halves(), &mut portable);
        let expected: Vec<u32> = (0..=u16::MAX).map(|half| u32::from(half) << 16).collect();
        assert_eq!((bits(&best), bits(&portable)), (expected.clone(), expected));
    }

    #[test]
    fn lengths_that_fill_no_vector_are_widened_too() {
        for length in 0..40 {
            for element in [Element::F16, Element::Bf16, Element::F32, Element::F64] {
                let bytes: Vec<u8> = (0..length * element.size()).map(|x| x as u8).collect();
                let (mut best, mut portable) = (vec![0.0; length], vec![0.0; length]);
                widen(element, &bytes, &mut best);
                widen_portable(element, &bytes, &mut portable);
                assert_eq!(bits(&best), bits(&portable), "{element:?} {length}");
            }
        }
    }

    #[test]
    fn a_packed_panel_has_each_value_in_its_place() {
        for (count, channels, taps) in [(32, 40, 1), (32, 7, 9), (13, 33, 9), (8, 5, 1), (1, 1, 1)]
        {
            let depth = channels * taps;
            let values = Generator::new(3).normal(count * depth);
            for mixed in [false, true] {
                let stored: Vec<(Element, Vec<u8>)> = values
                    .chunks_exact(depth)
                    .enumerate()
                    .map(|(row, values)| {
                        let upper = |x: &f32| ((x.to_bits() >> 16) as u16).to_le_bytes();
                        if mixed && row % 3 == 0 {
                            let wide =
                                |x: &f32| from_bf16((x.to_bits() >> 16) as u16).to_le_bytes();
                            (Element::F32, values.iter().flat_map(wide).collect())
                        } else {
                            (Element::Bf16, values.iter().flat_map(upper).collect())
                        }
                    })
                    .collect();
                let rows: Vec<Row<'_>> = stored
                    .iter()
                    .map(|(element, bytes)| Row {
                        element: *element,
                        bytes,
                    })
                    .collect();
                let mut out = vec![f32::NAN; depth * PANEL];
                pack(&rows, taps, &mut out);
                for (k, column) in (0..depth).flat_map(|k| (0..PANEL).map(move |n| (k, n))) {
                    let (tap, channel) = (k / channels, k % channels);
                    let expected = if column < count {
                        let x = values[column * depth + channel * taps + tap];
                        from_bf16((x.to_bits() >> 16) as u16)
                    } else {
                        0.0
                    };
                    assert_eq!(out[k * PANEL + column], expected);
                }
            }
        }
    }
}
