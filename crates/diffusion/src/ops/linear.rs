//! Linear layers (and 1×1 convolutions, which are the same thing here).

use candle_core::{D, Result, Tensor};

use super::matmul::{Epilogue, matmul};
use super::operand::{Operand, Rows};
use super::simd::{Gather, Isa};
use super::stored::Stored;
use super::{Place, map_values_with};
#[cfg(feature = "cuda")]
use crate::cuda;

/// `y = x Wᵀ + b` over the last axis.
#[derive(Debug)]
pub(crate) struct Linear {
    weight: Weight,
    bias: Option<Vec<f32>>,
    input: usize,
    output: usize,
}

#[derive(Debug)]
enum Weight {
    /// One column an output.
    Operand(Operand),
    /// The weight (out × in) and the bias.
    Plain(Tensor, Option<Tensor>),
}

impl Linear {
    /// From weights as stored: `output` rows of `input`.
    pub(crate) fn new(
        weight: impl Into<Stored>,
        bias: Option<Vec<f32>>,
        input: usize,
        output: usize,
        place: &Place,
    ) -> Result<Self> {
        Self::stacked(vec![weight.into()], bias, input, output, place)
    }

    /// Several layers of the same input as one, their outputs side by side: each part is `output` rows of `input`.
    pub(crate) fn stacked(
        parts: Vec<Stored>,
        bias: Option<Vec<f32>>,
        input: usize,
        output: usize,
        place: &Place,
    ) -> Result<Self> {
        let all = output * parts.len();
        let weight = if place.fast.is_on() {
            let parts = (parts.into_iter())
                .map(|part| place.rounded(part))
                .collect::<Result<_>>()?;
            Weight::Operand(Operand::new(Rows::new(parts, output, input), place.mapped))
        } else {
            let bias = bias
                .clone()
                .map(|bias| place.tensor(bias, &[all]))
                .transpose()?;
            let weight = parts.iter().flat_map(Stored::values).collect();
            Weight::Plain(place.tensor(weight, &[all, input])?, bias)
        };
        Ok(Self {
            weight,
            bias,
            input,
            output: all,
        })
    }

    /// `(…, input)` to `(…, output)`.
    pub(crate) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.forward_add(x, None)
    }

    /// [`Linear::forward`], plus `residual` of the result's shape.
    pub(crate) fn forward_add(&self, x: &Tensor, residual: Option<&Tensor>) -> Result<Tensor> {
        let mut shape = x.dims().to_vec();
        match shape.last_mut() {
            Some(last) if *last == self.input => *last = self.output,
            _ => candle_core::bail!("linear layer of {} inputs given {:?}", self.input, x.dims()),
        }
        match &self.weight {
            Weight::Operand(weight) => {
                let rows = x.elem_count() / self.input;
                map_values_with(
                    x,
                    residual,
                    &shape,
                    rows * self.output,
                    |x, residual, out| {
                        let starts: Vec<usize> = (0..rows).map(|row| row * self.input).collect();
                        let left = Gather {
                            data: x,
                            rows: &starts,
                            taps: &[0],
                            run: self.input,
                        };
                        let epilogue = Epilogue {
                            bias: self.bias.as_deref(),
                            residual,
                            ..Epilogue::default()
                        };
                        matmul(Isa::best(), left, weight, epilogue, out);
                    },
                )
            }
            Weight::Plain(weight, bias) => {
                let mut y = x.flatten_to(D::Minus2)?.matmul(&weight.t()?)?;
                #[cfg(feature = "cuda")]
                if bias.is_some() || residual.is_some() {
                    let terms = cuda::elementwise::Terms {
                        bias: bias.as_ref(),
                        channel: None,
                        picture: residual,
                    };
                    if let Some(y) = cuda::elementwise::add(&y, terms)? {
                        return y.reshape(shape);
                    }
                }
                if let Some(bias) = bias {
                    y = y.broadcast_add(bias)?;
                }
                let y = y.reshape(shape)?;
                residual.map_or(Ok(y.clone()), |residual| y + residual)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::tests::{assert_close, places, tensor};

    #[test]
    fn the_fast_form_agrees_with_candle() {
        for (rows, input, output) in [(2, 48, 40), (150, 130, 200)] {
            let (x, residual) = (tensor(1, &[3, rows, input]), tensor(4, &[3, rows, output]));
            let weight: Vec<f32> = tensor(2, &[output * input]).to_vec1().unwrap();
            let bias = tensor(3, &[output]).to_vec1().unwrap();
            let [ours, reference] = places().map(|place| {
                let layer =
                    Linear::new(weight.clone(), Some(bias.clone()), input, output, &place).unwrap();
                layer.forward_add(&x, Some(&residual)).unwrap()
            });
            assert_close(&ours, &reference, 1e-4);
        }
    }
}
