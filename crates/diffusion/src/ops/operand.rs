//! The right operand of a product, as panels of [`PANEL`] columns: packed once and kept, or left as it is stored and
//! packed anew, panel by panel, for each product.
//!
//! Both give the same panels and so the same bits: the kept ones are made by the same [`Pack::fill`].

use std::fmt::Debug;
use std::ops::Range;

use super::simd::PANEL;
use super::stored::Stored;
use super::threads;
use super::widen::{self, Element, Row};

/// Panels of a mapped operand that are made at once, in f32 values: they stay in the processor's cache (2 MiB) while all
/// rows meet them.
const SCRATCH: usize = 512 * 1024;
/// However deep, so many are made at once that these threads each have one to make.
const MAKERS: usize = 8;
/// Below this many values panels are made on the caller's thread.
const WORTH_THREADS: usize = 64 * 1024;

/// Makes the panels of an operand.
pub(crate) trait Pack: Debug + Send + Sync {
    /// Rows of the operand: values along each column.
    fn depth(&self) -> usize;

    /// Columns.
    fn width(&self) -> usize;

    /// Writes each value of panel `index` (depth × [`PANEL`]); columns behind the last become zeros.
    fn fill(&self, index: usize, out: &mut [f32]);

    /// Panels of [`PANEL`] columns.
    fn panels(&self) -> usize {
        self.width().div_ceil(PANEL)
    }
}

/// Tensors of `output × depth`, one above the other: each row becomes a column.
#[derive(Debug)]
pub(crate) struct Rows {
    parts: Vec<Stored>,
    /// Rows of each part.
    output: usize,
    depth: usize,
    taps: usize,
}

impl Rows {
    /// Matrices of `output × depth`.
    pub(crate) fn new(parts: Vec<Stored>, output: usize, depth: usize) -> Self {
        Self {
            parts,
            output,
            depth,
            taps: 1,
        }
    }

    /// A convolution's `output × input × taps`; depth becomes (tap, input).
    pub(crate) fn convolution(weight: Stored, output: usize, input: usize, taps: usize) -> Self {
        Self {
            parts: vec![weight],
            output,
            depth: taps * input,
            taps,
        }
    }
}

impl Pack for Rows {
    fn depth(&self) -> usize {
        self.depth
    }

    fn width(&self) -> usize {
        self.output * self.parts.len()
    }

    fn fill(&self, index: usize, out: &mut [f32]) {
        let first = index * PANEL;
        let mut rows = [Row {
            element: Element::F32,
            bytes: &[],
        }; PANEL];
        let count = PANEL.min(self.width() - first);
        for (row, n) in rows.iter_mut().zip(first..first + count) {
            let part = &self.parts[n / self.output];
            *row = Row {
                element: part.element(),
                bytes: part.bytes(n % self.output * self.depth, self.depth),
            };
        }
        widen::pack(&rows[..count], self.taps, out);
    }
}

/// Panels in memory, each contiguous along depth.
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

    fn all(source: &dyn Pack) -> Self {
        let mut values = Vec::new();
        fill(source, 0..source.panels(), &mut values);
        Self {
            values,
            depth: source.depth(),
            width: source.width(),
        }
    }

    /// Columns.
    pub(crate) fn width(&self) -> usize {
        self.width
    }

    /// Panels of [`PANEL`] columns.
    pub(crate) fn panels(&self) -> usize {
        self.width.div_ceil(PANEL)
    }

    /// All panels.
    pub(crate) fn run(&self) -> Run<'_> {
        Run {
            values: &self.values,
            first: 0,
            depth: self.depth,
            width: self.width,
        }
    }
}

/// Neighbouring panels, one after the other.
#[derive(Clone, Copy)]
pub(crate) struct Run<'a> {
    values: &'a [f32],
    /// The number of the first.
    pub(crate) first: usize,
    pub(crate) depth: usize,
    /// Columns of the whole operand.
    pub(crate) width: usize,
}

impl<'a> Run<'a> {
    /// One panel, by its number in the whole operand.
    pub(crate) fn panel(self, number: usize) -> &'a [f32] {
        let size = self.depth * PANEL;
        &self.values[(number - self.first) * size..][..size]
    }

    /// How many there are.
    pub(crate) fn len(self) -> usize {
        self.values.len() / (self.depth * PANEL).max(1)
    }

    /// The columns that these panels really have.
    pub(crate) fn columns(self) -> Range<usize> {
        let start = self.first * PANEL;
        start..self.width.min(start + self.len() * PANEL)
    }
}

/// Weights as the right operand of a product.
#[derive(Debug)]
pub(crate) enum Operand {
    /// All panels, kept.
    Packed(Packed),
    /// What makes them, each time.
    Mapped(Box<dyn Pack>),
}

impl Operand {
    /// Keeps `source` as it is if `mapped`, or else its panels.
    pub(crate) fn new(source: impl Pack + 'static, mapped: bool) -> Self {
        if mapped {
            Self::Mapped(Box::new(source))
        } else {
            Self::Packed(Packed::all(&source))
        }
    }

    /// Values along each column.
    pub(crate) fn depth(&self) -> usize {
        match self {
            Self::Packed(packed) => packed.depth,
            Self::Mapped(source) => source.depth(),
        }
    }

    /// Columns.
    pub(crate) fn width(&self) -> usize {
        match self {
            Self::Packed(packed) => packed.width,
            Self::Mapped(source) => source.width(),
        }
    }

    /// Gives `work` all panels in order, in as few runs as memory allows.
    pub(crate) fn for_runs(&self, mut work: impl FnMut(Run<'_>)) {
        let source = match self {
            Self::Packed(packed) => return work(packed.run()),
            Self::Mapped(source) => &**source,
        };
        let (depth, width, panels) = (source.depth(), source.width(), source.panels());
        let makers = threads::count().min(MAKERS);
        let at_once = (SCRATCH / (depth * PANEL).max(1)).max(makers);
        with_scratch(|scratch| {
            for first in (0..panels).step_by(at_once) {
                fill(source, first..panels.min(first + at_once), scratch);
                work(Run {
                    values: scratch,
                    first,
                    depth,
                    width,
                });
            }
        });
    }
}

/// Makes `panels` one after the other in `out`, over all threads where that is worth it.
fn fill(source: &dyn Pack, panels: Range<usize>, out: &mut Vec<f32>) {
    let size = source.depth() * PANEL;
    let count = panels.len() * size;
    // What is left of another operand is written over.
    out.resize(count, 0.0);
    if size == 0 {
        return;
    }
    if count < WORTH_THREADS {
        for (index, out) in panels.zip(out.chunks_exact_mut(size)) {
            source.fill(index, out);
        }
    } else {
        threads::for_chunks(out, size, |index, out| {
            source.fill(panels.start + index, out)
        });
    }
}

/// Lends a buffer that this thread keeps.
fn with_scratch(work: impl FnOnce(&mut Vec<f32>)) {
    thread_local! {
        static BUFFER: std::cell::Cell<Vec<f32>> = const { std::cell::Cell::new(Vec::new()) };
    }
    // Taken, not borrowed: a product inside of a product gets another one.
    let mut scratch = BUFFER.take();
    work(&mut scratch);
    BUFFER.set(scratch);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::noise::Generator;
    use std::sync::Arc;

    fn half(values: &[f32]) -> Stored {
        let bytes: Vec<u8> = (values.iter())
            .flat_map(|x| ((x.to_bits() >> 16) as u16).to_le_bytes())
            .collect();
        let range = 0..bytes.len();
        Stored::new(Arc::new(bytes), range, Element::Bf16)
    }

    #[test]
    fn kept_panels_and_panels_made_anew_are_the_same() {
        for (parts, output, input, taps) in [(1, 70, 33, 1), (3, 24, 40, 1), (1, 40, 7, 9)] {
            let source = || {
                let mut noise = Generator::new(5);
                let mut part = || half(&noise.normal(output * input * taps));
                if taps > 1 {
                    Rows::convolution(part(), output, input, taps)
                } else {
                    Rows::new((0..parts).map(|_| part()).collect(), output, input)
                }
            };
            let (kept, made) = (Operand::new(source(), false), Operand::new(source(), true));
            assert_eq!((kept.depth(), kept.width()), (made.depth(), made.width()));
            let all = [kept, made].map(|operand| {
                let mut all = Vec::new();
                operand.for_runs(|run| all.extend_from_slice(run.values));
                all
            });
            assert_eq!(all[0], all[1]);
        }
    }

    #[test]
    fn an_operand_larger_than_the_scratch_comes_in_several_runs() {
        let (output, depth) = (PANEL * MAKERS + 4, SCRATCH / PANEL / 2 + 1);
        let weight = half(&vec![1.0; output * depth]);
        let made = Operand::new(Rows::new(vec![weight], output, depth), true);
        let mut runs = Vec::new();
        made.for_runs(|run| runs.push(run.columns()));
        assert!(runs.len() > 1, "{runs:?}");
        assert!(runs.windows(2).all(|two| two[0].end == two[1].start));
        assert_eq!((runs[0].start, runs[runs.len() - 1].end), (0, output));
    }
}
