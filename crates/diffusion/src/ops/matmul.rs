//! Products with packed weights: linear layers, convolutions and attention all end here.

pub(crate) use super::operand::Packed;
use super::operand::{Operand, Run};
use super::simd::{Gather, Isa, PANEL, Sums, tile};
use super::threads;
use super::vector::{LANES, by_eight};

/// Below this many multiplications a product stays on the caller's thread.
const WORTH_THREADS: usize = 200_000;
/// Above this many rows threads share rows; below it they share panels, so that each reads a part of the weights.
const ROWS_TO_SHARE: usize = 96;
/// Rows that a thread takes at once: their values stay in its second-level cache while it goes through the panels.
const ROW_BLOCK: usize = 96;
/// Depth that is gone through at once: so much of a panel stays in the first-level cache from row to row.
const DEPTH_BLOCK: usize = 320;

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

/// `left × right + epilogue` into `out` (rows × width), over all threads.
pub(crate) fn matmul(
    isa: Isa,
    left: Gather<'_>,
    right: &Operand,
    epilogue: Epilogue<'_>,
    out: &mut [f32],
) {
    matmul_by(threads::count(), isa, left, right, epilogue, out);
}

/// [`matmul`], the work cut for that many threads.
fn matmul_by(
    workers: usize,
    isa: Isa,
    left: Gather<'_>,
    right: &Operand,
    epilogue: Epilogue<'_>,
    out: &mut [f32],
) {
    debug_assert_eq!(out.len(), left.rows.len() * right.width());
    debug_assert_eq!(right.depth(), left.taps.len() * left.run);
    right.for_runs(|run| product(workers, isa, left, run, epilogue, out));
}

/// The columns of `right`, which may be some of those that `out` has.
fn product(
    workers: usize,
    isa: Isa,
    left: Gather<'_>,
    right: Run<'_>,
    epilogue: Epilogue<'_>,
    out: &mut [f32],
) {
    let (rows, columns) = (left.rows.len(), right.columns());
    let (tall, wide) = if rows * columns.len() * right.depth < WORTH_THREADS || workers == 1 {
        (rows, columns.len())
    } else if rows >= ROWS_TO_SHARE || columns.len() <= PANEL {
        let tall = rows.div_ceil(workers).next_multiple_of(isa.rows());
        (tall.min(ROW_BLOCK), columns.len())
    } else {
        (rows, PANEL)
    };
    threads::for_tiles(out, right.width, columns, tall, wide, |tile| {
        block(isa, left, right, epilogue, tile);
    });
}

/// A tile of the product on this thread.
fn block(
    isa: Isa,
    left: Gather<'_>,
    right: Run<'_>,
    epilogue: Epilogue<'_>,
    mut tile: threads::Tile<'_>,
) {
    let mut sums: [Sums; ROW_BLOCK] = [[0.0; PANEL]; ROW_BLOCK];
    let (start, end) = (tile.columns.start, tile.columns.end);
    for first in tile.rows.clone().step_by(ROW_BLOCK) {
        let rows = first..tile.rows.end.min(first + ROW_BLOCK);
        for column in (start..end).step_by(PANEL) {
            let columns = PANEL.min(end - column);
            let left = Gather {
                rows: &left.rows[rows.clone()],
                ..left
            };
            let weights = right.panel(column / PANEL);
            multiply(isa, left, weights, columns, false, &mut sums);
            for (sums, row) in sums.iter().zip(rows.clone()) {
                let out = &mut tile.row(row)[column - start..][..columns];
                finish(isa, sums, epilogue, row, column, right.width, out);
            }
        }
    }
}

/// The sums of each of `left`'s rows with one panel, a row of `sums` each; with `go_on` they are added to.
pub(crate) fn multiply(
    isa: Isa,
    left: Gather<'_>,
    panel: &[f32],
    columns: usize,
    go_on: bool,
    sums: &mut [Sums],
) {
    for (depth, block) in left.blocks(DEPTH_BLOCK) {
        let panel = &panel[depth * PANEL..][..block.taps.len() * block.run * PANEL];
        let rows = left.rows.chunks(isa.rows());
        for (rows, sums) in rows.zip(sums.chunks_mut(isa.rows())) {
            let left = Gather { rows, ..block };
            tile(isa, left, panel, columns, go_on || depth > 0, sums);
        }
    }
}

/// Stores the first columns of a row's sums, plus what belongs to them: columns of the product from `column` on.
pub(crate) fn finish(
    isa: Isa,
    sums: &Sums,
    epilogue: Epilogue<'_>,
    row: usize,
    column: usize,
    width: usize,
    out: &mut [f32],
) {
    let length = out.len();
    let mut added: [&[f32]; 3] = [&[]; 3];
    if let Some(bias) = epilogue.bias {
        added[0] = &bias[column..][..length];
    }
    if let Some((bias, rows)) = epilogue.group_bias {
        added[1] = &bias[row / rows * width + column..][..length];
    }
    if let Some(residual) = epilogue.residual {
        added[2] = &residual[row * width + column..][..length];
    }
    store(isa, sums, &added, out);
}

by_eight! {
    /// The sums and whichever of `added` are not empty, in that order.
    fn store<V>(sums: &[f32; PANEL], added: &[&[f32]; 3], out: &mut [f32]) {
        let (chunks, rest) = out.as_chunks_mut::<LANES>();
        let whole = chunks.len() * LANES;
        for (index, out) in chunks.iter_mut().enumerate() {
            let mut sum = V::load(&sums.as_chunks::<LANES>().0[index]);
            for added in added {
                if let Some(values) = added.as_chunks::<LANES>().0.get(index) {
                    sum = sum.add(V::load(values));
                }
            }
            sum.store(out);
        }
        for (index, out) in rest.iter_mut().enumerate() {
            *out = sums[whole + index];
            for added in added {
                if let Some(value) = added.get(whole + index) {
                    *out += value;
                }
            }
        }
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
    fn a_row_depends_neither_on_its_neighbours_nor_on_the_threads() {
        let (rows, depth, width) = (150, 900, 80);
        let mut noise = Generator::new(2);
        let (left, right) = (noise.normal(rows * depth), noise.normal(width * depth));
        let packed = operand(&right, width, depth, false);
        let offsets: Vec<usize> = (0..rows).map(|row| row * depth).collect();
        for isa in Isa::supported() {
            let run = |workers: usize, offsets: &[usize]| {
                let mut out = vec![0.0; offsets.len() * width];
                let gather = Gather {
                    data: &left,
                    rows: offsets,
                    taps: &[0],
                    run: depth,
                };
                matmul_by(workers, isa, gather, &packed, Epilogue::default(), &mut out);
                out
            };
            let together = run(1, &offsets);
            for workers in [2, 3, 16] {
                assert!(run(workers, &offsets) == together, "{workers} threads");
            }
            for row in [0, 5, 77, 149] {
                assert_eq!(
                    run(2, &offsets[row..=row]),
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
