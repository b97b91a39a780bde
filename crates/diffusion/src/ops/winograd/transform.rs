//! The three transforms of F(4×4, 3×3) at the points 0, ±A, ±B and infinity, each along rows and then along columns.
#![allow(unsafe_code)]

use super::{LINE, POINTS, SPAN, SUMS, TILE};
use crate::ops::simd::{PANEL, Sums};
use crate::ops::vector::{Eight, LANES, by_eight};

const A: f32 = 2.0 / 3.0;
const B: f32 = 3.0 / 2.0;
/// A² + B²; A · B is one.
const S: f32 = 97.0 / 36.0;

by_eight! {
    /// Bᵀ d B of 6×6 pixels (an empty one counts as zeros), `stride` values between the points of `out`.
    pub(super) fn spread<V>(pixels: &[&[f32]; POINTS], channels: usize, out: &mut [f32], stride: usize) {
        assert!(pixels.iter().all(|pixel| pixel.is_empty() || pixel.len() == channels));
        assert!(channels.is_multiple_of(LANES) && out.len() >= (POINTS - 1) * stride + channels);
        let mut half = [[V::splat(0.0); SPAN]; SPAN];
        for channel in (0..channels).step_by(LANES) {
            for column in 0..SPAN {
                let mut line = [V::splat(0.0); SPAN];
                for (row, line) in line.iter_mut().enumerate() {
                    let pixel = pixels[row * SPAN + column];
                    if !pixel.is_empty() {
                        // SAFETY: it has `channels` values, and LANES of them follow `channel`.
                        *line = V::load(unsafe { &*pixel.as_ptr().add(channel).cast() });
                    }
                }
                for (half, lanes) in half.iter_mut().zip(spread_line(line)) {
                    half[column] = lanes;
                }
            }
            for (row, line) in half.into_iter().enumerate() {
                for (column, lanes) in spread_line(line).into_iter().enumerate() {
                    let at = (row * SPAN + column) * stride + channel;
                    // SAFETY: `out` reaches to `channels` values after the last point.
                    lanes.store(unsafe { &mut *out.as_mut_ptr().add(at).cast() });
                }
            }
        }
    }
}

/// Bᵀ d.
#[inline(always)]
fn spread_line<V: Eight>([d0, d1, d2, d3, d4, d5]: [V; SPAN]) -> [V; SPAN] {
    let even_a = d2.mul_add(V::splat(-B * B), d4);
    let odd_a = d1.mul_add(V::splat(-B), d3.mul(V::splat(A)));
    let even_b = d2.mul_add(V::splat(-A * A), d4);
    let odd_b = d1.mul_add(V::splat(-A), d3.mul(V::splat(B)));
    [
        d2.mul_add(V::splat(-S), d0.add(d4)),
        even_a.add(odd_a),
        even_a.sub(odd_a),
        even_b.add(odd_b),
        even_b.sub(odd_b),
        d3.mul_add(V::splat(-S), d1.add(d5)),
    ]
}

by_eight! {
    /// G g Gᵀ of the weights of `run` input channels from `from` on: (point, channel, column), of which the first
    /// `lanes` columns are computed.
    pub(super) fn spread_weights<V>(
        panel: &[f32],
        channels: usize,
        from: usize,
        run: usize,
        lanes: usize,
        out: &mut [f32],
    ) {
        const PARTS: usize = PANEL / LANES;
        let (panel, out) = (panel.as_chunks::<LANES>().0, out.as_chunks_mut::<LANES>().0);
        assert!(panel.len() >= 9 * channels * PARTS && out.len() >= POINTS * (run * PARTS + LINE / LANES));
        assert!(from + run <= channels && lanes <= PANEL);
        for channel in 0..run {
            // Taps lie a multiple of the cache's period apart: each is read once, or they would drive each other out.
            let mut taps = [[[0.0; LANES]; 9]; PARTS];
            for tap in 0..9 {
                let at = (tap * channels + from + channel) * PARTS;
                for (part, taps) in taps.iter_mut().enumerate() {
                    taps[tap] = panel[at + part];
                }
            }
            for (part, taps) in taps.iter().enumerate().take(lanes / LANES) {
                let mut half = [[V::splat(0.0); 3]; SPAN];
                for column in 0..3 {
                    let mut line = [V::splat(0.0); 3];
                    for (row, line) in line.iter_mut().enumerate() {
                        *line = V::load(&taps[row * 3 + column]);
                    }
                    for (half, lanes) in half.iter_mut().zip(spread_weight_line(line)) {
                        half[column] = lanes;
                    }
                }
                for (row, line) in half.into_iter().enumerate() {
                    for (column, lanes) in spread_weight_line(line).into_iter().enumerate() {
                        let point = row * SPAN + column;
                        let at = point * (run * PARTS + LINE / LANES) + channel * PARTS + part;
                        lanes.store(&mut out[at]);
                    }
                }
            }
        }
    }
}

/// G g.
#[inline(always)]
fn spread_weight_line<V: Eight>([g0, g1, g2]: [V; 3]) -> [V; SPAN] {
    /// 1 / (2 A² (A² - B²)) and 1 / (2 B² (B² - A²)).
    const NEAR: f32 = -81.0 / 130.0;
    const FAR: f32 = 8.0 / 65.0;
    let even_a = g2.mul_add(V::splat(NEAR * A * A), g0.mul(V::splat(NEAR)));
    let even_b = g2.mul_add(V::splat(FAR * B * B), g0.mul(V::splat(FAR)));
    let (odd_a, odd_b) = (g1.mul(V::splat(NEAR * A)), g1.mul(V::splat(FAR * B)));
    [
        g0,
        even_a.add(odd_a),
        even_a.sub(odd_a),
        even_b.add(odd_b),
        even_b.sub(odd_b),
        g2,
    ]
}

by_eight! {
    /// Aᵀ m A: the 4×4 results of tile number `slot`, of which the first `lanes` columns are computed.
    pub(super) fn gather<V>(group: &[Sums], slot: usize, lanes: usize, results: &mut [Sums; TILE * TILE]) {
        assert!(group.len() > (POINTS - 1) * SUMS + slot && lanes <= PANEL);
        for part in 0..lanes / LANES {
            let mut half = [[V::splat(0.0); SPAN]; TILE];
            for column in 0..SPAN {
                let mut line = [V::splat(0.0); SPAN];
                for (row, line) in line.iter_mut().enumerate() {
                    let sums = &group[(row * SPAN + column) * SUMS + slot];
                    *line = V::load(&sums.as_chunks::<LANES>().0[part]);
                }
                for (half, lanes) in half.iter_mut().zip(gather_line(line)) {
                    half[column] = lanes;
                }
            }
            for (row, line) in half.into_iter().enumerate() {
                for (column, lanes) in gather_line(line).into_iter().enumerate() {
                    let result = &mut results[row * TILE + column];
                    lanes.store(&mut result.as_chunks_mut::<LANES>().0[part]);
                }
            }
        }
    }
}

/// Aᵀ m.
#[inline(always)]
fn gather_line<V: Eight>([m0, m1, m2, m3, m4, m5]: [V; SPAN]) -> [V; TILE] {
    let (even_a, odd_a) = (m1.add(m2), m1.sub(m2));
    let (even_b, odd_b) = (m3.add(m4), m3.sub(m4));
    [
        m0.add(even_a).add(even_b),
        odd_b.mul_add(V::splat(B), odd_a.mul(V::splat(A))),
        even_b.mul_add(V::splat(B * B), even_a.mul(V::splat(A * A))),
        odd_b.mul_add(V::splat(B * B * B), odd_a.mul_add(V::splat(A * A * A), m5)),
    ]
}
