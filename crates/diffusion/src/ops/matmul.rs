//! Products with packed weights: linear layers, convolutions and attention all end here.

use super::simd::{Gather, Isa, MAX_ROWS, PANEL, Tile, tile};
use super::threads;

/// Below this many multiplications a product stays on the caller's thread.
const WORTH_THREADS: usize = 200_000;
/// Above this many rows threads share rows; below it they share panels, so that each reads a part of the weights.
const ROWS_TO_SHARE: usize = 96;
/// Rows that a thread takes at once.
const ROW_BLOCK: usize = 64;

/// A right operand of `depth × width`, as panels of [`PANEL`] columns, each contiguous along depth.
#[derive(Clone, Debug)]
pub(crate) struct Packed {
    values: Vec<f32>,
    depth: usize,
    width: usize,
}

impl Packed {
    /// Packs so that value (k, n) is `at(k, n)`.
    pub(crate) fn new(depth: usize, width: usize, at: impl Fn(usize, usize) -> f32) -> Self {
        let panels = width.div_ceil(PANEL);
        let mut values = vec![0.0; panels * depth * PANEL];
        for (panel, values) in values.chunks_exact_mut((depth * PANEL).max(1)).enumerate() {
            let first = panel * PANEL;
            let columns = PANEL.min(width - first);
            for (k, row) in values.chunks_exact_mut(PANEL).enumerate() {
                for (column, value) in row[..columns].iter_mut().enumerate() {
                    *value = at(k, first + column);
                }
            }
        }
        Self {
            values,
            depth,
            width,
        }
    }

    /// Packs weights as they are stored: `width` rows of `depth`.
    pub(crate) fn transposed(weights: &[f32], width: usize, depth: usize) -> Self {
        Self::new(depth, width, |k, n| weights[n * depth + k])
    }

    /// Columns.
    pub(crate) fn width(&self) -> usize {
        self.width
    }

    /// Panels of [`PANEL`] columns.
    pub(crate) fn panels(&self) -> usize {
        self.width.div_ceil(PANEL)
    }

    fn panel(&self, index: usize) -> &[f32] {
        &self.values[index * self.depth * PANEL..][..self.depth * PANEL]
    }
}

/// What is added to a product before it is stored.
#[derive(Clone, Copy, Default)]
pub(crate) struct Epilogue<'a> {
    /// One value a column.
    pub(crate) bias: Option<&'a [f32]>,
    /// Values a column for each group of that many rows (a time embedding for each picture).
    pub(crate) group_bias: Option<(&'a [f32], usize)>,
    /// One value for each of the result.
    pub(crate) residual: Option<&'a [f32]>,
}

/// Where a product goes: `stride` values from row to row, beginning at column `column`.
pub(crate) struct Target<'a> {
    pub(crate) values: &'a mut [f32],
    pub(crate) stride: usize,
    pub(crate) column: usize,
}

/// `left × right + epilogue` into `out` (rows × width), over all threads.
pub(crate) fn matmul(
    isa: Isa,
    left: Gather<'_>,
    right: &Packed,
    epilogue: Epilogue<'_>,
    out: &mut [f32],
) {
    let (rows, width) = (left.rows.len(), right.width);
    debug_assert_eq!(out.len(), rows * width);
    debug_assert_eq!(right.depth, left.taps.len() * left.run);
    if rows * width * right.depth < WORTH_THREADS || threads::count() == 1 {
        let target = Target {
            values: out,
            stride: width,
            column: 0,
        };
        return block(isa, left, right, 0..right.panels(), epilogue, 0, target);
    }
    if rows >= ROWS_TO_SHARE || right.panels() == 1 {
        let size = ROW_BLOCK.min(rows.div_ceil(threads::count()).next_multiple_of(isa.rows()));
        threads::for_chunks(out, size * width, |index, chunk| {
            let first = index * size;
            let part = Gather {
                rows: &left.rows[first..first + chunk.len() / width],
                ..left
            };
            let target = Target {
                values: chunk,
                stride: width,
                column: 0,
            };
            block(isa, part, right, 0..right.panels(), epilogue, first, target);
        });
        return;
    }
    let parts = threads::map(right.panels(), |panel| {
        let columns = PANEL.min(width - panel * PANEL);
        let mut part = vec![0.0; rows * columns];
        let target = Target {
            values: &mut part,
            stride: columns,
            column: 0,
        };
        block(isa, left, right, panel..panel + 1, epilogue, 0, target);
        part
    });
    for (panel, part) in parts.iter().enumerate() {
        let columns = PANEL.min(width - panel * PANEL);
        for (row, values) in part.chunks_exact(columns).enumerate() {
            out[row * width + panel * PANEL..][..columns].copy_from_slice(values);
        }
    }
}

/// The product on this thread: `panels` of `right`, stored from `target.column` on; `first` is the number of
/// `left`'s first row in the whole product.
pub(crate) fn block(
    isa: Isa,
    left: Gather<'_>,
    right: &Packed,
    panels: std::ops::Range<usize>,
    epilogue: Epilogue<'_>,
    first: usize,
    target: Target<'_>,
) {
    let mut sums: Tile = [[0.0; PANEL]; MAX_ROWS];
    let start = panels.start * PANEL;
    for panel in panels {
        let weights = right.panel(panel);
        let column = panel * PANEL;
        let columns = PANEL.min(right.width - column);
        for (group, rows) in left.rows.chunks(isa.rows()).enumerate() {
            tile(isa, Gather { rows, ..left }, weights, columns, &mut sums);
            for (r, sums) in sums.iter_mut().take(rows.len()).enumerate() {
                let row = group * isa.rows() + r;
                finish(
                    &mut sums[..columns],
                    epilogue,
                    first + row,
                    column,
                    right.width,
                );
                let at = row * target.stride + target.column + column - start;
                target.values[at..at + columns].copy_from_slice(&sums[..columns]);
            }
        }
    }
}

fn finish(sums: &mut [f32], epilogue: Epilogue<'_>, row: usize, column: usize, width: usize) {
    let add = |sums: &mut [f32], from: &[f32]| {
        for (sum, value) in sums.iter_mut().zip(from) {
            *sum += value;
        }
    };
    if let Some(bias) = epilogue.bias {
        add(sums, &bias[column..]);
    }
    if let Some((bias, rows)) = epilogue.group_bias {
        add(sums, &bias[row / rows * width + column..]);
    }
    if let Some(residual) = epilogue.residual {
        add(sums, &residual[row * width + column..]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::noise::Generator;

    fn plain(left: &[f32], right: &[f32], rows: usize, depth: usize, width: usize) -> Vec<f64> {
        let mut out = vec![0.0; rows * width];
        for (row, n) in (0..rows).flat_map(|row| (0..width).map(move |n| (row, n))) {
            out[row * width + n] = (0..depth)
                .map(|k| f64::from(left[row * depth + k]) * f64::from(right[n * depth + k]))
                .sum();
        }
        out
    }

    #[test]
    fn each_instruction_set_computes_the_plain_product() {
        for (rows, depth, width) in [
            (1, 7, 3),
            (6, 64, 32),
            (13, 33, 70),
            (200, 130, 96),
            (40, 300, 129),
        ] {
            let mut noise = Generator::new(1);
            let (left, right) = (noise.normal(rows * depth), noise.normal(width * depth));
            let expected = plain(&left, &right, rows, depth, width);
            let packed = Packed::transposed(&right, width, depth);
            let offsets: Vec<usize> = (0..rows).map(|row| row * depth).collect();
            for isa in Isa::supported() {
                let mut out = vec![0.0; rows * width];
                let gather = Gather {
                    data: &left,
                    rows: &offsets,
                    taps: &[0],
                    run: depth,
                };
                matmul(isa, gather, &packed, Epilogue::default(), &mut out);
                for (ours, expected) in out.iter().zip(&expected) {
                    assert!(
                        (f64::from(*ours) - expected).abs() < 1e-4,
                        "{isa:?}: {ours} is not {expected}"
                    );
                }
            }
        }
    }

    #[test]
    fn a_row_does_not_depend_on_its_neighbours() {
        let (rows, depth, width) = (150, 200, 80);
        let mut noise = Generator::new(2);
        let (left, right) = (noise.normal(rows * depth), noise.normal(width * depth));
        let packed = Packed::transposed(&right, width, depth);
        let offsets: Vec<usize> = (0..rows).map(|row| row * depth).collect();
        for isa in Isa::supported() {
            let run = |offsets: &[usize]| {
                let mut out = vec![0.0; offsets.len() * width];
                let gather = Gather {
                    data: &left,
                    rows: offsets,
                    taps: &[0],
                    run: depth,
                };
                matmul(isa, gather, &packed, Epilogue::default(), &mut out);
                out
            };
            let together = run(&offsets);
            for row in [0, 5, 77, 149] {
                assert_eq!(
                    run(&offsets[row..=row]),
                    together[row * width..(row + 1) * width]
                );
            }
        }
    }
}
