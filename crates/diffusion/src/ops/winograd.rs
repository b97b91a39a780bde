//! 3×3 convolutions by Winograd's minimal filtering, F(4×4, 3×3): 36 multiplications for sixteen pixels, not 144.
//! Sources: Lavin and Gray, "Fast algorithms for convolutional neural networks" (2015); the points ±2/3 and ±3/2 from
//! Barabasz et al., "Error analysis and improving the accuracy of Winograd convolution" (2020): on random values the
//! result is as near to the exact one as the direct sum is (docs/adr/0015).
//!
//! The picture is cut into tiles of 4×4 results, each of which sees 6×6 pixels. Pixels and weights are transformed,
//! multiplied point by point (36 products of matrices, on the same kernel as everything else) and transformed back.
//! Weights are transformed anew in each call, a panel at a time: kept, they would take four times their memory. The work
//! is a few percent of the products', and above some 300 channels, where a band holds one group of tiles, about 8 %.
//!
//! A tile's result depends on the picture and the tile alone, so neither company nor threads change a bit.
#![allow(unsafe_code)]

mod transform;

use super::matmul::{Epilogue, finish, multiply};
use super::operand::{Operand, Run};
use super::simd::{Gather, Isa, PANEL, Sums};
use super::vector::LANES;
use super::{pool, threads};
use transform::{gather, spread, spread_weights};

/// Results along a tile's side.
const TILE: usize = 4;
/// Pixels along the side of what a tile sees.
const SPAN: usize = TILE + 2;
const POINTS: usize = SPAN * SPAN;
/// Tiles that are transformed and multiplied together: a multiple of every kernel's rows.
const GROUP: usize = 24;
/// Groups that a thread takes at once, for which it transforms a panel of weights once.
const GROUPS: usize = 4;
/// Input channels for which weights are transformed at once.
const DEPTH: usize = 64;
/// Values of one cache line. Points lie a line further apart than they must: the 36 values that a transform touches at
/// once would otherwise fall into the same few sets of the cache and drive each other out.
const LINE: usize = 16;
/// From a point's sums to the next, in rows.
const SUMS: usize = GROUP + 1;
/// Transformed pixels that are kept at once, in values.
const BAND: usize = 1 << 19;

/// What is convolved.
#[derive(Clone, Copy)]
pub(crate) struct Shape {
    pub(crate) batch: usize,
    /// Of the result.
    pub(crate) height: usize,
    pub(crate) width: usize,
    /// Input channels.
    pub(crate) channels: usize,
    /// 2 where each pixel of the input stands for 2×2, else 1.
    pub(crate) scale: usize,
}

impl Shape {
    fn across(self) -> usize {
        self.width.div_ceil(TILE)
    }

    /// From a point of a group of transformed tiles to the next, in values.
    fn stride(self) -> usize {
        GROUP * self.channels + LINE
    }

    fn tiles(self) -> usize {
        self.height.div_ceil(TILE) * self.across()
    }

    /// Whether this way is the faster one for a picture: tiles that hang over its edge and the weights' transform cost
    /// too. Asks nothing of the batch: company must not change a picture.
    pub(crate) fn is_worth_it(self) -> bool {
        let direct = self.height * self.width * 9;
        let ours = self.tiles() * POINTS + 100;
        self.channels >= 16 && self.channels.is_multiple_of(LANES) && ours + ours / 5 < direct
    }
}

/// Convolves `x`, `(batch, height / scale, width / scale, channels)`, with `weight`, whose depth is (tap, channel).
pub(crate) fn convolve(
    isa: Isa,
    x: &[f32],
    shape: Shape,
    weight: &Operand,
    epilogue: Epilogue<'_>,
    out: &mut [f32],
) {
    convolve_by(threads::count(), isa, x, shape, weight, epilogue, out);
}

/// [`convolve`], the work cut for that many threads.
fn convolve_by(
    workers: usize,
    isa: Isa,
    x: &[f32],
    shape: Shape,
    weight: &Operand,
    epilogue: Epilogue<'_>,
    out: &mut [f32],
) {
    debug_assert_eq!(
        out.len(),
        shape.batch * shape.height * shape.width * weight.width()
    );
    let out = threads::Shared::new(out);
    weight.for_runs(|run| convolve_run(workers, isa, x, shape, run, epilogue, &out));
}

/// The columns of some panels.
fn convolve_run(
    workers: usize,
    isa: Isa,
    x: &[f32],
    shape: Shape,
    weight: Run<'_>,
    epilogue: Epilogue<'_>,
    out: &threads::Shared<'_>,
) {
    let group = POINTS * shape.stride();
    let all = shape.batch * shape.tiles();
    let groups = (BAND / group).max(1).min(all.div_ceil(GROUP));
    let panels = weight.columns().len().div_ceil(PANEL);
    let mut band = pool::take(groups * group);
    for first in (0..all).step_by(groups * GROUP) {
        let tiles = (groups * GROUP).min(all - first);
        let used = tiles.div_ceil(GROUP);
        threads::for_chunks(&mut band[..used * group], group, |index, spread| {
            let first = first + index * GROUP;
            for tile in 0..GROUP.min(all - first) {
                spread_tile(isa, x, shape, first + tile, tile, spread);
            }
        });
        // A part of the tiles costs a transform of the weights, so there are no more parts than keep everybody busy.
        let wanted = match workers {
            1 => 1,
            _ => (3 * workers).div_ceil(panels),
        };
        let size = used.div_ceil(wanted).min(GROUPS);
        let parts = used.div_ceil(size);
        threads::each(parts * panels, |index| {
            let (panel, part) = (index / parts, index % parts);
            let begin = part * size * GROUP;
            let work = Part {
                isa,
                shape,
                weight,
                epilogue,
                panel: weight.first + panel,
                first: first + begin,
                tiles: (size * GROUP).min(tiles - begin),
            };
            work.run(&band[part * size * group..], out);
        });
    }
}

/// The pixels of tile number `tile` of all, transformed, as number `slot` of `out`: (point, slot, channel).
fn spread_tile(isa: Isa, x: &[f32], shape: Shape, tile: usize, slot: usize, out: &mut [f32]) {
    let Shape {
        height,
        width,
        channels,
        scale,
        ..
    } = shape;
    let (picture, top, left) = place(shape, tile);
    let (lines, line) = (height / scale, width / scale);
    let mut pixels: [&[f32]; POINTS] = [&[]; POINTS];
    for (point, pixel) in pixels.iter_mut().enumerate() {
        // One pixel of padding: what is outside counts as zero.
        let (y, x_) = (top + point / SPAN, left + point % SPAN);
        if (1..=height).contains(&y) && (1..=width).contains(&x_) {
            let at = (picture * lines + (y - 1) / scale) * line + (x_ - 1) / scale;
            *pixel = &x[at * channels..][..channels];
        }
    }
    spread(
        isa,
        &pixels,
        channels,
        &mut out[slot * channels..],
        shape.stride(),
    );
}

/// Picture, first row and first column of a tile.
fn place(shape: Shape, tile: usize) -> (usize, usize, usize) {
    let (picture, tile) = (tile / shape.tiles(), tile % shape.tiles());
    (
        picture,
        tile / shape.across() * TILE,
        tile % shape.across() * TILE,
    )
}

/// Some tiles with one panel of weights.
struct Part<'a> {
    isa: Isa,
    shape: Shape,
    weight: Run<'a>,
    epilogue: Epilogue<'a>,
    panel: usize,
    first: usize,
    tiles: usize,
}

impl Part<'_> {
    /// `band` holds the transformed pixels of the tiles, by groups.
    fn run(&self, band: &[f32], out: &threads::Shared<'_>) {
        let channels = self.shape.channels;
        let columns = PANEL.min(self.weight.width - self.panel * PANEL);
        // The kernel computes half a panel or a whole one.
        let lanes = if columns > PANEL / 2 {
            PANEL
        } else {
            PANEL / 2
        };
        let panel = self.weight.panel(self.panel);
        let depth = DEPTH.min(channels);
        let mut weights = pool::take(POINTS * (depth * PANEL + LINE));
        let mut sums = pool::take(self.tiles.div_ceil(GROUP) * POINTS * SUMS * PANEL);
        let sums = sums.as_chunks_mut::<PANEL>().0;
        let rows: [usize; GROUP] = std::array::from_fn(|tile| tile * channels);
        for from in (0..channels).step_by(depth) {
            let run = depth.min(channels - from);
            spread_weights(self.isa, panel, channels, from, run, lanes, &mut weights);
            let groups = band.chunks_exact(POINTS * self.shape.stride());
            for (index, (group, sums)) in
                groups.zip(sums.chunks_exact_mut(POINTS * SUMS)).enumerate()
            {
                let count = GROUP.min(self.tiles - index * GROUP);
                for point in 0..POINTS {
                    let left = Gather {
                        data: &group[point * self.shape.stride()..],
                        rows: &rows[..count],
                        taps: &[from],
                        run,
                    };
                    let weights = &weights[point * (run * PANEL + LINE)..][..run * PANEL];
                    let sums = &mut sums[point * SUMS..][..GROUP];
                    multiply(self.isa, left, weights, columns, from > 0, sums);
                }
            }
        }
        for tile in 0..self.tiles {
            let group = &sums[tile / GROUP * POINTS * SUMS..];
            self.gather_tile(group, tile, columns, out);
        }
    }

    /// Transforms a tile's sums back and stores what lies inside the picture.
    fn gather_tile(&self, group: &[Sums], tile: usize, columns: usize, out: &threads::Shared<'_>) {
        let Shape { height, width, .. } = self.shape;
        let mut results = [[0.0; PANEL]; TILE * TILE];
        let lanes = columns.next_multiple_of(LANES);
        gather(self.isa, group, tile % GROUP, lanes, &mut results);
        let (picture, top, left) = place(self.shape, self.first + tile);
        let (column, all) = (self.panel * PANEL, self.weight.width);
        for (index, result) in results.iter().enumerate() {
            let (y, x) = (top + index / TILE, left + index % TILE);
            if y >= height || x >= width {
                continue;
            }
            let row = (picture * height + y) * width + x;
            // SAFETY: a pixel is in one tile, and a column of it in one panel: nobody else has these values.
            let to = unsafe { out.part(row * all + column, columns) };
            finish(self.isa, result, self.epilogue, row, column, all, to);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::noise::Generator;
    use crate::ops::operand::Rows;

    struct Case {
        shape: Shape,
        output: usize,
        x: Vec<f32>,
        weights: Vec<f32>,
    }

    fn cases() -> Vec<Case> {
        let mut noise = Generator::new(3);
        [
            (1, 8, 8, 16, 1, 40),
            (2, 9, 14, 24, 1, 3),
            (3, 24, 36, 72, 1, 64),
            (1, 10, 12, 136, 2, 33),
        ]
        .map(|(batch, height, width, channels, scale, output)| Case {
            shape: Shape {
                batch,
                height,
                width,
                channels,
                scale,
            },
            output,
            x: noise.normal(batch * height * width / scale / scale * channels),
            weights: noise.normal(9 * channels * output),
        })
        .into()
    }

    impl Case {
        fn run(&self, workers: usize, isa: Isa, mapped: bool) -> Vec<f32> {
            let Shape {
                batch,
                height,
                width,
                channels,
                ..
            } = self.shape;
            // Stored as output × input × tap; this case's are (tap, input) × output.
            let stored: Vec<f32> = (0..self.weights.len())
                .map(|index| {
                    let (n, rest) = (index / (9 * channels), index % (9 * channels));
                    self.weights[(rest % 9 * channels + rest / 9) * self.output + n]
                })
                .collect();
            let rows = Rows::convolution(stored.into(), self.output, channels, 9);
            let weight = Operand::new(rows, mapped);
            let mut out = vec![0.0; batch * height * width * self.output];
            let epilogue = Epilogue::default();
            convolve_by(
                workers, isa, &self.x, self.shape, &weight, epilogue, &mut out,
            );
            out
        }

        /// The sum as it is written, at (picture, y, x, channel).
        fn exact(&self, [picture, y, x, n]: [usize; 4]) -> f64 {
            let Shape {
                height,
                width,
                channels,
                scale,
                ..
            } = self.shape;
            let mut sum = 0.0;
            for (tap, c) in (0..9).flat_map(|tap| (0..channels).map(move |c| (tap, c))) {
                let (y, x) = (y + tap / 3, x + tap % 3);
                if (1..=height).contains(&y) && (1..=width).contains(&x) {
                    let line = picture * (height / scale) + (y - 1) / scale;
                    let at = (line * (width / scale) + (x - 1) / scale) * channels + c;
                    let weight = self.weights[(tap * channels + c) * self.output + n];
                    sum += f64::from(self.x[at]) * f64::from(weight);
                }
            }
            sum
        }
    }

    #[test]
    fn each_instruction_set_computes_the_convolution() {
        for case in cases() {
            let Shape {
                height,
                width,
                channels,
                ..
            } = case.shape;
            // Random weights of unit size: results grow with the root of the sum's length.
            let bar = 1e-5 * (9.0 * channels as f64).sqrt();
            for isa in Isa::supported() {
                for (index, ours) in case.run(1, isa, false).into_iter().enumerate() {
                    let pixel = index / case.output;
                    let [picture, y, x] = [
                        pixel / width / height,
                        pixel / width % height,
                        pixel % width,
                    ];
                    let exact = case.exact([picture, y, x, index % case.output]);
                    assert!(
                        (f64::from(ours) - exact).abs() < bar,
                        "{isa:?} {index}: {ours} is not {exact}"
                    );
                }
            }
        }
    }

    #[test]
    fn bits_depend_neither_on_company_nor_on_threads_nor_on_where_the_weights_lie() {
        for mut case in cases() {
            let together = case.run(1, Isa::best(), false);
            for workers in [2, 3, 16] {
                assert!(
                    case.run(workers, Isa::best(), true) == together,
                    "{workers} threads"
                );
            }
            let batch = case.shape.batch;
            let (pictures, size) = (std::mem::take(&mut case.x), together.len() / batch);
            case.shape.batch = 1;
            for (x, together) in pictures
                .chunks_exact(pictures.len() / batch)
                .zip(together.chunks_exact(size))
            {
                case.x = x.to_vec();
                assert!(case.run(2, Isa::best(), false) == together);
            }
        }
    }
}
