//! Tables of one row a token or position.

use candle_core::{DType, Device, Result, Tensor};

use super::Place;
use super::stored::Stored;

/// Rows that are looked up by number.
#[derive(Debug)]
pub(crate) struct Table {
    form: Form,
    rows: usize,
    width: usize,
}

#[derive(Debug)]
enum Form {
    /// `(rows, width)`.
    Tensor(Tensor),
    /// As stored, and the type of what is looked up: a vocabulary is large, and a prompt names few of its rows.
    Stored(Stored, DType),
}

impl Table {
    /// From `rows × width` values.
    pub(crate) fn new(
        values: impl Into<Stored>,
        rows: usize,
        width: usize,
        place: &Place,
    ) -> Result<Self> {
        let values = values.into();
        let form = if place.fast.is_on() && place.mapped {
            Form::Stored(values, place.dtype)
        } else {
            Form::Tensor(place.tensor(values.values(), &[rows, width])?)
        };
        Ok(Self { form, rows, width })
    }

    /// `(numbers, width)`: the rows of these numbers.
    pub(crate) fn look_up(&self, numbers: &[u32]) -> Result<Tensor> {
        if let Some(number) = numbers.iter().find(|number| **number as usize >= self.rows) {
            candle_core::bail!("row {number} of a table of {}", self.rows);
        }
        match &self.form {
            Form::Tensor(table) => table.index_select(&Tensor::new(numbers, table.device())?, 0),
            Form::Stored(values, dtype) => {
                let mut out = vec![0.0; numbers.len() * self.width];
                for (out, number) in out.chunks_exact_mut(self.width).zip(numbers) {
                    values.widen(*number as usize * self.width, out);
                }
                Tensor::from_vec(out, (numbers.len(), self.width), &Device::Cpu)?.to_dtype(*dtype)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_the_same_stored_and_not_and_a_wrong_number_is_refused() {
        let place = Place::new(&Device::Cpu, DType::F32);
        let mapped = Place {
            mapped: true,
            ..place.clone()
        };
        let values: Vec<f32> = (0..15).map(|x| x as f32).collect();
        for place in [place, mapped] {
            let table = Table::new(values.clone(), 5, 3, &place).unwrap();
            let rows = table.look_up(&[4, 0, 4]).unwrap().to_vec2::<f32>().unwrap();
            assert_eq!(
                rows,
                [[12.0, 13.0, 14.0], [0.0, 1.0, 2.0], [12.0, 13.0, 14.0]]
            );
            assert!(table.look_up(&[5]).is_err());
        }
    }
}
