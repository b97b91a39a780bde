//! 3×3 convolutions over `(batch, height, width, channels)`.

use candle_core::{Result, Tensor};

use super::matmul::{Epilogue, matmul};
use super::operand::{Operand, Rows};
use super::simd::{Gather, Isa};
use super::stored::Stored;
use super::{Place, map_values_with, threads, with_values};

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
    /// The same, padded at the end only: what the VAE's encoder has.
    DownPadEnd,
    /// Each pixel is doubled both ways (nearest neighbour) before the convolution.
    Up,
}

impl Kind {
    fn stride(self) -> usize {
        match self {
            Self::Down | Self::DownPadEnd => 2,
            Self::Same | Self::Up => 1,
        }
    }
}

#[derive(Debug)]
enum Weight {
    /// Depth is (tap, input channel).
    Operand(Operand),
    /// The weight (out × in × 3 × 3) and the bias.
    Plain(Tensor, Tensor),
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

impl Conv3x3 {
    /// From weights as stored: `output × input × 3 × 3`.
    pub(crate) fn new(
        weight: impl Into<Stored>,
        bias: Vec<f32>,
        input: usize,
        output: usize,
        kind: Kind,
        place: &Place,
    ) -> Result<Self> {
        let weight = weight.into();
        let weight = if place.fast.is_on() {
            let rows = Rows::convolution(place.rounded(weight)?, output, input, 9);
            Weight::Operand(Operand::new(rows, place.mapped))
        } else {
            let bias = place.tensor(bias.clone(), &[output])?;
            let shape = [output, input, 3, 3];
            Weight::Plain(place.tensor(weight.values(), &shape)?, bias)
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
            Weight::Operand(weight) => self.forward_packed(x, weight, added),
            Weight::Plain(weight, bias) => self.forward_plain(x, weight, bias, added),
        }
    }

    fn forward_packed(&self, x: &Tensor, weight: &Operand, added: Added<'_>) -> Result<Tensor> {
        let (batch, height, width, channels) = x.dims4()?;
        let scale = if self.kind == Kind::Up { 2 } else { 1 };
        let stride = self.kind.stride();
        // Without padding at the beginning the first tap stands on the first pixel.
        let first = usize::from(self.kind == Kind::DownPadEnd);
        let (tall, wide) = (height * scale, width * scale);
        let rows = tall.saturating_sub(first).div_ceil(stride);
        let columns = wide.saturating_sub(first).div_ceil(stride);
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
            (0..batch).flat_map(|b| (0..rows).map(move |y| b * (tall + 2) + y * stride + first))
        {
            let start = line_number * line + first * channels;
            starts.extend((0..columns).map(|x| start + x * stride * channels));
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
        let mut padding = 1;
        if self.kind == Kind::DownPadEnd {
            x = x.pad_with_zeros(2, 0, 1)?.pad_with_zeros(3, 0, 1)?;
            padding = 0;
        }
        let y = x
            .conv2d(weight, padding, self.kind.stride(), 1, 1)?
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
            (Kind::DownPadEnd, 8, 6),
            (Kind::DownPadEnd, 7, 5),
            (Kind::Up, 5, 4),
        ] {
            for (input, output) in [(4, 40), (33, 3), (16, 64)] {
                let x = tensor(1, &[2, height, width, input]);
                let weight: Vec<f32> = tensor(2, &[output * input * 9]).to_vec1().unwrap();
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
