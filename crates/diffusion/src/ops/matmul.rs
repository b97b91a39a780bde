//! Products with packed weights: linear layers, convolutions and attention all end here.

pub(crate) use super::operand::Packed;
use super::operand::{Operand, Run};
use super::simd::{Gather, Isa, MAX_ROWS, PANEL, Tile, tile};
use super::threads;

/// Below this many multiplications a product stays on the caller's thread.
const WORTH_THREADS: usize = 200_000;
/// Above this many rows threads share rows; below it they share panels, so that each reads a part of the weights.
const ROWS_TO_SHARE: usize = 96;
/// Rows that a thread takes at once.
const ROW_BLOCK: usize = 64;

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
    right: &Operand,
    epilogue: Epilogue<'_>,
    out: &mut [f32],
) {
    debug_assert_eq!(out.len(), left.rows.len() * right.width());
    debug_assert_eq!(right.depth(), left.taps.len() * left.run);
    right.for_runs(|run| product(isa, left, run, epilogue, out));
}

/// The columns of `right`, which may be some of those that `out` has, over all threads.
fn product(isa: Isa, left: Gather<'_>, right: Run<'_>, epilogue: Epilogue<'_>, out: &mut [f32]) {
    let (rows, width, columns) = (left.rows.len(), right.width, right.columns());
    if rows * columns.len() * right.depth < WORTH_THREADS || threads::count() == 1 {
        let target = Target {
            values: out,
            stride: width,
            column: columns.start,
        };
        return block_of(isa, left, right, epilogue, 0, target);
    }
    if rows >= ROWS_TO_SHARE || right.len() == 1 {
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
                column: columns.start,
            };
            block_of(isa, part, right, epilogue, first, target);
        });
        return;
    }
    let parts = threads::map(right.len(), |index| {
        let right = right.only(right.first + index);
        let columns = right.columns();
        let mut part = vec![0.0; rows * columns.len()];
        let target = Target {
            values: &mut part,
            stride: columns.len(),
            column: 0,
        };
        block_of(isa, left, right, epilogue, 0, target);
        (columns, part)
    });
    for (columns, part) in parts {
        for (row, values) in part.chunks_exact(columns.len()).enumerate() {
            out[row * width..][columns.clone()].copy_from_slice(values);
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
    block_of(isa, left, right.run(panels), epilogue, first, target);
}

fn block_of(
    isa: Isa,
    left: Gather<'_>,
    right: Run<'_>,
    epilogue: Epilogue<'_>,
    first: usize,
    target: Target<'_>,
) {
    let mut sums: Tile = [[0.0; PANEL]; MAX_ROWS];
    let start = right.first * PANEL;
    for (panel, weights) in right.panels() {
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
    use crate::ops::operand::Rows;

    fn operand(weights: &[f32], width: usize, depth: usize, mapped: bool) -> Operand {
        Operand::new(
            Rows::new(vec![weights.to_vec().into()], width, depth),
            mapped,
        )
    }

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
            let packed = operand(&right, width, depth, false);
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
        let packed = operand(&right, width, depth, false);
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

    #[test]
    fn mapped_weights_give_the_same_bits_as_packed_ones() {
        // Few rows and many, one run and several, the last panel full and not.
        for (rows, depth, width) in [(1, 64, 32), (5, 300, 130), (150, 200, 80), (97, 6000, 200)] {
            let mut noise = Generator::new(6);
            let (left, right) = (noise.normal(rows * depth), noise.normal(width * depth));
            let (bias, residual) = (noise.normal(width), noise.normal(rows * width));
            let offsets: Vec<usize> = (0..rows).map(|row| row * depth).collect();
            let gather = Gather {
                data: &left,
                rows: &offsets,
                taps: &[0],
                run: depth,
            };
            let epilogue = Epilogue {
                bias: Some(&bias),
                residual: Some(&residual),
                ..Epilogue::default()
            };
            for isa in Isa::supported() {
                let [packed, mapped] = [false, true].map(|mapped| {
                    let mut out = vec![f32::NAN; rows * width];
                    let right = operand(&right, width, depth, mapped);
                    matmul(isa, gather, &right, epilogue, &mut out);
                    out
                });
                assert_eq!(packed, mapped, "{isa:?} {rows} × {depth} × {width}");
            }
        }
    }
}
