//! 3×3 convolutions over `(batch, height, width, channels)`.

use candle_core::{Result, Tensor};

use super::matmul::{Epilogue, Packed, matmul};
use super::simd::{Gather, Isa};
use super::{Place, map_values_with, threads, with_values};
#[cfg(feature = "cudnn")]
use crate::cuda;

/// A 3×3 convolution with one pixel of padding.
#[derive(Debug)]
pub(crate) struct Conv3x3 {
    weight: Weight,
    bias: Vec<f32>,
    input: usize,
    output: usize,
    kind: Kind,
}

/// What becomes of height and width.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// They stay.
    Same,
    /// Stride 2: they are halved.
    Down,
    /// Each pixel is doubled both ways (nearest neighbour) before the convolution.
    Up,
}

#[derive(Debug)]
enum Weight {
    /// Depth is (tap, input channel).
    Packed(Packed),
    /// The weight (out × in × 3 × 3) and the bias.
    Plain(Tensor, Tensor),
    /// The weight as cuDNN reads it, (out × 3 × 3 × in), the bias, and whether factors may be rounded to TF32.
    #[cfg(feature = "cudnn")]
    ChannelsLast(Tensor, Tensor, bool),
}

/// What is added to a convolution's result.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Added<'a> {
    /// Nothing.
    Nothing,
    /// `(batch, channels)`, to every pixel.
    PerChannel(&'a Tensor),
    /// A tensor of the result's shape.
    Picture(&'a Tensor),
}

#[cfg(feature = "cudnn")]
impl<'a> Added<'a> {
    fn terms(self) -> cuda::elementwise::Terms<'a> {
        let (channel, picture) = match self {
            Added::Nothing => (None, None),
            Added::PerChannel(added) => (Some(added), None),
            Added::Picture(added) => (None, Some(added)),
        };
        cuda::elementwise::Terms {
            bias: None,
            channel,
            picture,
        }
    }
}

impl Weight {
    #[cfg_attr(not(feature = "cudnn"), expect(unused_variables))]
    fn on_device(weight: Tensor, bias: Tensor, place: &Place) -> Result<Self> {
        #[cfg(feature = "cudnn")]
        if place.device.is_cuda() {
            let filter = weight.permute((0, 2, 3, 1))?.contiguous()?;
            return Ok(Self::ChannelsLast(filter, bias, place.tf32));
        }
        Ok(Self::Plain(weight, bias))
    }
}

impl Conv3x3 {
    /// From weights as stored: `output × input × 3 × 3`.
    pub(crate) fn new(
        weight: Vec<f32>,
        bias: Vec<f32>,
        input: usize,
        output: usize,
        kind: Kind,
        place: &Place,
    ) -> Result<Self> {
        let weight = if place.fast.is_on() {
            Weight::Packed(Packed::new(9 * input, output, |k, n| {
                weight[(n * input + k % input) * 9 + k / input]
            }))
        } else {
            let bias = place.tensor(bias.clone(), &[output])?;
            let weight = place.tensor(weight, &[output, input, 3, 3])?;
            Weight::on_device(weight, bias, place)?
        };
        Ok(Self {
            weight,
            bias,
            input,
            output,
            kind,
        })
    }

    /// `(batch, height, width, input)` to `(batch, height', width', output)`.
    pub(crate) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.forward_add(x, Added::Nothing)
    }

    /// [`Conv3x3::forward`], plus what is to be added.
    pub(crate) fn forward_add(&self, x: &Tensor, added: Added<'_>) -> Result<Tensor> {
        let (_, _, _, channels) = x.dims4()?;
        if channels != self.input {
            candle_core::bail!(
                "convolution of {} channels given {:?}",
                self.input,
                x.dims()
            );
        }
        match &self.weight {
            Weight::Packed(weight) => self.forward_packed(x, weight, added),
            Weight::Plain(weight, bias) => self.forward_plain(x, weight, bias, added),
            #[cfg(feature = "cudnn")]
            Weight::ChannelsLast(filter, bias, tf32) => {
                let weights = cuda::conv::Weights {
                    filter,
                    bias,
                    tf32: *tf32,
                };
                let stride = if self.kind == Kind::Down { 2 } else { 1 };
                let up = self.kind == Kind::Up;
                match cuda::conv::forward(x, weights, up, stride, added.terms())? {
                    Some(y) => Ok(y),
                    None => {
                        let weight = filter.permute((0, 3, 1, 2))?.contiguous()?;
                        self.forward_plain(x, &weight, bias, added)
                    }
                }
            }
        }
    }

    fn forward_packed(&self, x: &Tensor, weight: &Packed, added: Added<'_>) -> Result<Tensor> {
        let (batch, height, width, channels) = x.dims4()?;
        let scale = if self.kind == Kind::Up { 2 } else { 1 };
        let stride = if self.kind == Kind::Down { 2 } else { 1 };
        let (tall, wide) = (height * scale, width * scale);
        let (rows, columns) = (tall.div_ceil(stride), wide.div_ceil(stride));
        let line = (wide + 2) * channels;
        let mut padded = vec![0.0_f32; batch * (tall + 2) * line];
        with_values(x, |x| {
            threads::for_chunks(&mut padded, (tall + 2) * line, |picture, padded| {
                let x = &x[picture * height * width * channels..];
                for (y, line) in padded[line..(tall + 1) * line]
                    .chunks_exact_mut(line)
                    .enumerate()
                {
                    let from = &x[y / scale * width * channels..][..width * channels];
                    let to = &mut line[channels..(wide + 1) * channels];
                    if scale == 1 {
                        to.copy_from_slice(from);
                    } else {
                        for (two, one) in to
                            .chunks_exact_mut(2 * channels)
                            .zip(from.chunks_exact(channels))
                        {
                            two[..channels].copy_from_slice(one);
                            two[channels..].copy_from_slice(one);
                        }
                    }
                }
            });
        })?;
        let mut starts = Vec::with_capacity(batch * rows * columns);
        for line_number in
            (0..batch).flat_map(|b| (0..rows).map(move |y| b * (tall + 2) + y * stride))
        {
            starts.extend((0..columns).map(|x| line_number * line + x * stride * channels));
        }
        let taps: Vec<usize> = (0..9)
            .map(|tap| tap / 3 * line + tap % 3 * channels)
            .collect();
        let left = Gather {
            data: &padded,
            rows: &starts,
            taps: &taps,
            run: channels,
        };
        let shape = [batch, rows, columns, self.output];
        let bias = Some(self.bias.as_slice());
        let other = match added {
            Added::Nothing => None,
            Added::PerChannel(added) | Added::Picture(added) => Some(added),
        };
        map_values_with(
            x,
            other,
            &shape,
            starts.len() * self.output,
            |_, other, out| {
                let epilogue = match added {
                    Added::PerChannel(_) => Epilogue {
                        bias,
                        group_bias: other.map(|values| (values, rows * columns)),
                        residual: None,
                    },
                    _ => Epilogue {
                        bias,
                        group_bias: None,
                        residual: other,
                    },
                };
                matmul(Isa::best(), left, weight, epilogue, out);
            },
        )
    }

    fn forward_plain(
        &self,
        x: &Tensor,
        weight: &Tensor,
        bias: &Tensor,
        added: Added<'_>,
    ) -> Result<Tensor> {
        let (_, height, width, _) = x.dims4()?;
        let mut x = x.permute((0, 3, 1, 2))?.contiguous()?;
        if self.kind == Kind::Up {
            x = x.upsample_nearest2d(2 * height, 2 * width)?;
        }
        let stride = if self.kind == Kind::Down { 2 } else { 1 };
        let y = x
            .conv2d(weight, 1, stride, 1, 1)?
            .permute((0, 2, 3, 1))?
            .broadcast_add(bias)?;
        match added {
            Added::Nothing => Ok(y),
            Added::PerChannel(added) => y.broadcast_add(&added.unsqueeze(1)?.unsqueeze(1)?),
            Added::Picture(added) => y + added,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::tests::{assert_close, places, tensor};

    #[test]
    fn the_fast_form_agrees_with_candle() {
        for (kind, height, width) in [
            (Kind::Same, 9, 14),
            (Kind::Down, 8, 6),
            (Kind::Down, 7, 5),
            (Kind::Up, 5, 4),
        ] {
            for (input, output) in [(4, 40), (33, 3), (16, 64)] {
                let x = tensor(1, &[2, height, width, input]);
                let weight = tensor(2, &[output * input * 9]).to_vec1().unwrap();
                let bias = tensor(3, &[output]).to_vec1().unwrap();
                let layers = places().map(|place| {
                    Conv3x3::new(weight.clone(), bias.clone(), input, output, kind, &place).unwrap()
                });
                let [ours, reference] = layers.each_ref().map(|layer| layer.forward(&x).unwrap());
                assert_close(&ours, &reference, 1e-4);
                let picture = tensor(4, ours.dims());
                let channels = tensor(5, &[2, output]);
                for added in [Added::Picture(&picture), Added::PerChannel(&channels)] {
                    let [ours, reference] = layers
                        .each_ref()
                        .map(|layer| layer.forward_add(&x, added).unwrap());
                    assert_close(&ours, &reference, 1e-4);
                }
            }
        }
    }
}
