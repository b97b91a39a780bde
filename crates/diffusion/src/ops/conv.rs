//! 3×3 convolutions over `(batch, height, width, channels)`.

use candle_core::{Result, Tensor};

use super::matmul::{Epilogue, matmul};
use super::operand::{Operand, Rows};
use super::simd::{Gather, Isa};
use super::stored::Stored;
use super::{Place, map_values_with, pool, threads, winograd};
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

    /// On which pixel of the padded picture the first tap stands at first, and the result's rows and columns.
    fn grid(self, tall: usize, wide: usize) -> (usize, usize, usize) {
        // Without padding at the beginning it stands on the first real one.
        let first = usize::from(self == Self::DownPadEnd);
        let count = |side: usize| side.saturating_sub(first).div_ceil(self.stride());
        (first, count(tall), count(wide))
    }
}

#[derive(Debug)]
enum Weight {
    /// Depth is (tap, input channel).
    Operand(Operand),
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
            let weight = place.tensor(weight.values(), &shape)?;
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
            Weight::Operand(weight) => self.forward_packed(x, weight, added),
            Weight::Plain(weight, bias) => self.forward_plain(x, weight, bias, added),
            #[cfg(feature = "cudnn")]
            Weight::ChannelsLast(filter, bias, tf32) => {
                let weights = cuda::conv::Weights {
                    filter,
                    bias,
                    tf32: *tf32,
                };
                let up = self.kind == Kind::Up;
                let done = match self.kind {
                    // Only the encoder has it, once a picture.
                    Kind::DownPadEnd => None,
                    kind => cuda::conv::forward(x, weights, up, kind.stride(), added.terms())?,
                };
                match done {
                    Some(y) => Ok(y),
                    None => {
                        let weight = filter.permute((0, 3, 1, 2))?.contiguous()?;
                        self.forward_plain(x, &weight, bias, added)
                    }
                }
            }
        }
    }

    fn forward_packed(&self, x: &Tensor, weight: &Operand, added: Added<'_>) -> Result<Tensor> {
        let (batch, height, width, channels) = x.dims4()?;
        let scale = if self.kind == Kind::Up { 2 } else { 1 };
        let stride = self.kind.stride();
        let (tall, wide) = (height * scale, width * scale);
        let (_, rows, columns) = self.kind.grid(tall, wide);
        let other = match added {
            Added::Nothing => None,
            Added::PerChannel(added) | Added::Picture(added) => Some(added),
        };
        let shape = [batch, rows, columns, self.output];
        let count = batch * rows * columns * self.output;
        map_values_with(x, other, &shape, count, |x, other, out| {
            let bias = Some(self.bias.as_slice());
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
            let shape = winograd::Shape {
                batch,
                height: tall,
                width: wide,
                channels,
                scale,
            };
            if stride == 1 && shape.is_worth_it() {
                winograd::convolve(Isa::best(), x, shape, weight, epilogue, out);
            } else {
                direct(x, shape, self.kind, weight, epilogue, out);
            }
        })
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

/// The convolution as one product: each row's values are gathered from where they lie in a padded copy of the picture.
fn direct(
    x: &[f32],
    shape: winograd::Shape,
    kind: Kind,
    weight: &Operand,
    epilogue: Epilogue<'_>,
    out: &mut [f32],
) {
    let winograd::Shape {
        batch,
        height: tall,
        width: wide,
        channels,
        scale,
    } = shape;
    let stride = kind.stride();
    let (first, rows, columns) = kind.grid(tall, wide);
    let line = (wide + 2) * channels;
    let mut padded = pool::take(batch * (tall + 2) * line);
    let from = wide / scale * channels;
    threads::for_chunks(&mut padded, (tall + 2) * line, |picture, padded| {
        let x = &x[picture * tall / scale * from..];
        for (y, line) in padded.chunks_exact_mut(line).enumerate() {
            if y == 0 || y > tall {
                line.fill(0.0);
                continue;
            }
            line[..channels].fill(0.0);
            line[(wide + 1) * channels..].fill(0.0);
            let from = &x[(y - 1) / scale * from..][..from];
            let to = &mut line[channels..(wide + 1) * channels];
            for (to, from) in
                (to.chunks_exact_mut(scale * channels)).zip(from.chunks_exact(channels))
            {
                to.chunks_exact_mut(channels)
                    .for_each(|to| to.copy_from_slice(from));
            }
        }
    });
    let mut starts = Vec::with_capacity(batch * rows * columns);
    for line_number in
        (0..batch).flat_map(|b| (0..rows).map(move |y| b * (tall + 2) + y * stride + first))
    {
        let start = line_number * line + first * channels;
        starts.extend((0..columns).map(|x| start + x * stride * channels));
    }
    let taps: [usize; 9] = std::array::from_fn(|tap| tap / 3 * line + tap % 3 * channels);
    let left = Gather {
        data: &padded,
        rows: &starts,
        taps: &taps,
        run: channels,
    };
    matmul(Isa::best(), left, weight, epilogue, out);
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
            (Kind::Same, 33, 18),
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

    #[test]
    fn many_channels_agree_with_candle() {
        for kind in [Kind::Same, Kind::Down, Kind::Up] {
            let (input, output) = (136, 70);
            let x = tensor(1, &[2, 10, 13, input]);
            let weight = (tensor(2, &[output * input * 9]) / 35.0).unwrap();
            let weight: Vec<f32> = weight.to_vec1().unwrap();
            let [ours, reference] = places().map(|place| {
                let bias = vec![0.5; output];
                let layer =
                    Conv3x3::new(weight.clone(), bias, input, output, kind, &place).unwrap();
                layer.forward(&x).unwrap()
            });
            assert_close(&ours, &reference, 5e-5);
        }
    }
}
