//! Weights as a file stores them: bytes of a floating point type, kept where they are until somebody needs them in f32.

use std::ops::Range;
use std::sync::Arc;

use super::widen::{self, Element};

/// A tensor's values as they are stored, in memory of our own or in a mapped file.
#[derive(Clone)]
pub(crate) struct Stored {
    bytes: Arc<dyn AsRef<[u8]> + Send + Sync>,
    range: Range<usize>,
    element: Element,
}

impl std::fmt::Debug for Stored {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Stored")
            .field("range", &self.range)
            .field("element", &self.element)
            .finish_non_exhaustive()
    }
}

impl Stored {
    /// The values in `range` (in bytes) of what holds them. Bytes behind the last whole value are left out.
    pub(crate) fn new(
        bytes: Arc<dyn AsRef<[u8]> + Send + Sync>,
        range: Range<usize>,
        element: Element,
    ) -> Self {
        let end = range.end.min((*bytes).as_ref().len());
        let start = range.start.min(end);
        let whole = (end - start) / element.size() * element.size();
        Self {
            bytes,
            range: start..start + whole,
            element,
        }
    }

    /// The type.
    pub(crate) fn element(&self) -> Element {
        self.element
    }

    /// How many values there are.
    pub(crate) fn len(&self) -> usize {
        self.range.len() / self.element.size()
    }

    /// The bytes of `count` values from the one numbered `first` on.
    pub(crate) fn bytes(&self, first: usize, count: usize) -> &[u8] {
        let size = self.element.size();
        &(*self.bytes).as_ref()[self.range.clone()][first * size..][..count * size]
    }

    /// All values.
    pub(crate) fn values(&self) -> Vec<f32> {
        let mut values = vec![0.0; self.len()];
        self.widen(0, &mut values);
        values
    }

    /// Writes the values from the one numbered `first` on, as many as `out` has.
    pub(crate) fn widen(&self, first: usize, out: &mut [f32]) {
        widen::widen(self.element, self.bytes(first, out.len()), out);
    }

    /// `count` values from the one numbered `first` on; shares the bytes.
    pub(crate) fn part(&self, first: usize, count: usize) -> Self {
        let size = self.element.size();
        let start = self.range.start + first * size;
        debug_assert!(start + count * size <= self.range.end);
        Self {
            range: start..start + count * size,
            ..self.clone()
        }
    }

    /// The transposed matrix of `rows` × `columns`, in memory of its own.
    pub(crate) fn transposed(&self, rows: usize, columns: usize) -> Self {
        let size = self.element.size();
        let bytes = self.bytes(0, rows * columns);
        let mut turned = Vec::with_capacity(bytes.len());
        for column in 0..columns {
            for row in 0..rows {
                turned.extend_from_slice(&bytes[(row * columns + column) * size..][..size]);
            }
        }
        let range = 0..turned.len();
        Self::new(Arc::new(turned), range, self.element)
    }
}

impl From<Vec<f32>> for Stored {
    fn from(values: Vec<f32>) -> Self {
        let bytes: Vec<u8> = values.iter().flat_map(|x| x.to_le_bytes()).collect();
        let range = 0..bytes.len();
        Self::new(Arc::new(bytes), range, Element::F32)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_and_transposes_hold_the_same_values() {
        let stored = Stored::from((0..12).map(|x| x as f32).collect::<Vec<_>>());
        assert_eq!(stored.part(3, 4).part(1, 2).values(), [4.0, 5.0]);
        let turned = stored.transposed(3, 4);
        assert_eq!(
            turned.values(),
            [0.0, 4.0, 8.0, 1.0, 5.0, 9.0, 2.0, 6.0, 10.0, 3.0, 7.0, 11.0]
        );
        assert_eq!(turned.transposed(4, 3).values(), stored.values());
    }
}
