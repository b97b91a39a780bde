//! Group and layer normalisation.

use candle_core::{D, DType, Result, Tensor};

use super::activation;
use super::simd::{Isa, vectorised};
use super::vector::{Affine, by_eight, for_each};
use super::{Fast, Place, map_values, threads};
#[cfg(feature = "cuda")]
use crate::cuda;

/// Pixels whose sums are taken together before they are added in f64: part of the result's definition, so that it
/// does not depend on the threads.
const PIXELS: usize = 128;
/// Below this many values a picture is normalised by one thread.
const WORTH_THREADS: usize = 64 * 1024;
const LANES: usize = 16;

/// Group normalisation over `(batch, …, channels)`, optionally followed by SiLU.
#[derive(Debug)]
pub(crate) struct GroupNorm {
    weight: Vec<f32>,
    bias: Vec<f32>,
    groups: usize,
    eps: f64,
    place: Place,
    #[cfg(feature = "cuda")]
    there: cuda::norm::Affine,
}

impl GroupNorm {
    /// `weight` and `bias` have one value a channel; `groups` divides the channels.
    pub(crate) fn new(
        weight: Vec<f32>,
        bias: Vec<f32>,
        groups: usize,
        eps: f64,
        place: &Place,
    ) -> Self {
        Self {
            weight,
            bias,
            groups,
            eps,
            place: place.clone(),
            #[cfg(feature = "cuda")]
            there: cuda::norm::Affine::default(),
        }
    }

    /// Normalised, of the same shape.
    pub(crate) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.run(x, false)
    }

    /// Normalised and then through SiLU.
    pub(crate) fn forward_silu(&self, x: &Tensor) -> Result<Tensor> {
        self.run(x, true)
    }

    fn run(&self, x: &Tensor, silu: bool) -> Result<Tensor> {
        if !self.place.fast.is_on() {
            #[cfg(feature = "cuda")]
            if let Some(y) = cuda::norm::group_norm(x, self.groups, &self.learnt(), silu)? {
                return Ok(y);
            }
            let y = self.plain(x)?;
            return if silu {
                activation::silu(self.place.fast, &y)
            } else {
                Ok(y)
            };
        }
        let channels = self.weight.len();
        let batch = x.dim(0)?;
        let picture = x.elem_count() / batch.max(1);
        let size = PIXELS * channels;
        map_values(x, x.dims(), x.elem_count(), |x, out| {
            if picture < WORTH_THREADS {
                threads::for_chunks(out, picture, |index, out| {
                    let x = &x[index * picture..][..picture];
                    let parts = x
                        .chunks(size)
                        .map(|x| Moments::of(x, channels))
                        .collect::<Vec<_>>();
                    let (scale, shift) = self.scale(&parts);
                    apply(Isa::best(), x, &scale, &shift, silu, out);
                });
                return;
            }
            let parts = picture.div_ceil(size);
            for (x, out) in x.chunks_exact(picture).zip(out.chunks_exact_mut(picture)) {
                let part = |index: usize| &x[index * size..x.len().min((index + 1) * size)];
                let moments = threads::map(parts, |index| Moments::of(part(index), channels));
                let (scale, shift) = self.scale(&moments);
                threads::for_chunks(out, size, |index, out| {
                    apply(Isa::best(), part(index), &scale, &shift, silu, out);
                });
            }
        })
    }

    #[cfg(feature = "cuda")]
    fn learnt(&self) -> cuda::norm::Norm<'_> {
        cuda::norm::Norm {
            weight: &self.weight,
            bias: &self.bias,
            eps: self.eps,
            there: &self.there,
        }
    }

    /// What each channel is to be multiplied with, and what to be added then.
    fn scale(&self, parts: &[Moments]) -> (Vec<f32>, Vec<f32>) {
        let size = self.weight.len() / self.groups;
        let pixels: f64 = parts.iter().map(|part| part.pixels).sum();
        let (mut scales, mut shifts) = (self.weight.clone(), self.bias.clone());
        for group in 0..self.groups {
            let channels = group * size..(group + 1) * size;
            let count = pixels * size as f64;
            let mean = total(parts, |part| &part.sums[channels.clone()]) / count;
            // Each part knows its channels' squared distances from their own means there.
            let mut squares = total(parts, |part| &part.squares[channels.clone()]);
            for part in parts {
                for sum in &part.sums[channels.clone()] {
                    squares += part.pixels * (f64::from(*sum) / part.pixels - mean).powi(2);
                }
            }
            let factor = 1.0 / (squares / count + self.eps).sqrt();
            for channel in channels {
                let scale = f64::from(self.weight[channel]) * factor;
                scales[channel] = scale as f32;
                shifts[channel] = (f64::from(self.bias[channel]) - scale * mean) as f32;
            }
        }
        (scales, shifts)
    }

    fn plain(&self, x: &Tensor) -> Result<Tensor> {
        let channels = self.weight.len();
        let batch = x.dim(0)?;
        let wide =
            x.to_dtype(DType::F32)?
                .reshape((batch, (), self.groups, channels / self.groups))?;
        let mean = wide.mean_keepdim(D::Minus1)?.mean_keepdim(1)?;
        let centred = wide.broadcast_sub(&mean)?;
        let variance = centred.sqr()?.mean_keepdim(D::Minus1)?.mean_keepdim(1)?;
        let normal = centred
            .broadcast_div(&(variance + self.eps)?.sqrt()?)?
            .reshape(x.shape())?;
        let weight = Tensor::new(self.weight.as_slice(), x.device())?;
        let bias = Tensor::new(self.bias.as_slice(), x.device())?;
        normal
            .broadcast_mul(&weight)?
            .broadcast_add(&bias)?
            .to_dtype(x.dtype())
    }
}

/// Sums over some pixels, per channel. Both are taken while the pixels are in the cache: memory is read once.
struct Moments {
    pixels: f64,
    sums: Vec<f32>,
    /// Of the distances from the channel's mean over these pixels.
    squares: Vec<f32>,
}

impl Moments {
    fn of(x: &[f32], channels: usize) -> Self {
        let pixels = x.len() / channels;
        let (mut sums, mut squares) = (vec![0.0; channels], vec![0.0; channels]);
        add_moments(x, &mut sums, &mut squares);
        Self {
            pixels: pixels as f64,
            sums,
            squares,
        }
    }
}

fn total<'a>(parts: &'a [Moments], of: impl Fn(&'a Moments) -> &'a [f32]) -> f64 {
    parts.iter().flat_map(of).map(|x| f64::from(*x)).sum()
}

/// Channels whose sums stay in registers from pixel to pixel.
const COLUMNS: usize = 32;

vectorised! {
    fn add_moments(x: &[f32], sums: &mut [f32], squares: &mut [f32]) {
        let channels = sums.len();
        let pixels = (x.len() / channels) as f32;
        let whole = channels / COLUMNS * COLUMNS;
        for first in (0..whole).step_by(COLUMNS) {
            let mut sum = [0.0; COLUMNS];
            for row in x.chunks_exact(channels) {
                for (sum, x) in sum.iter_mut().zip(&row[first..first + COLUMNS]) {
                    *sum += x;
                }
            }
            let mean = sum.map(|sum| sum / pixels);
            let mut square = [0.0; COLUMNS];
            for row in x.chunks_exact(channels) {
                let row = &row[first..first + COLUMNS];
                for ((square, x), mean) in square.iter_mut().zip(row).zip(mean) {
                    *square += (x - mean) * (x - mean);
                }
            }
            sums[first..first + COLUMNS].copy_from_slice(&sum);
            squares[first..first + COLUMNS].copy_from_slice(&square);
        }
        if whole < channels {
            for row in x.chunks_exact(channels) {
                for (sum, x) in sums[whole..].iter_mut().zip(&row[whole..]) {
                    *sum += x;
                }
            }
            for row in x.chunks_exact(channels) {
                let sums = &sums[whole..];
                for ((square, x), sum) in squares[whole..].iter_mut().zip(&row[whole..]).zip(sums) {
                    *square += (x - sum / pixels) * (x - sum / pixels);
                }
            }
        }
    }
}

by_eight! {
    fn apply<V>(x: &[f32], scale: &[f32], shift: &[f32], silu: bool, out: &mut [f32]) {
        let channels = scale.len();
        for (out, x) in out.chunks_exact_mut(channels).zip(x.chunks_exact(channels)) {
            let values = [x, scale, shift];
            if silu {
                for_each::<V, 3>(values, out, Affine::<true>);
            } else {
                for_each::<V, 3>(values, out, Affine::<false>);
            }
        }
    }
}

/// Layer normalisation over the last axis.
#[derive(Debug)]
pub(crate) struct LayerNorm {
    weight: Vec<f32>,
    bias: Vec<f32>,
    eps: f64,
    fast: Fast,
    #[cfg(feature = "cuda")]
    there: cuda::norm::Affine,
}

impl LayerNorm {
    /// `weight` and `bias` have one value a channel.
    pub(crate) fn new(weight: Vec<f32>, bias: Vec<f32>, eps: f64, place: &Place) -> Self {
        Self {
            weight,
            bias,
            eps,
            fast: place.fast,
            #[cfg(feature = "cuda")]
            there: cuda::norm::Affine::default(),
        }
    }

    /// Normalised, of the same shape.
    pub(crate) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        if !self.fast.is_on() {
            return self.plain(x);
        }
        let channels = self.weight.len();
        let rows = (WORTH_THREADS / 4 / channels).max(1);
        map_values(x, x.dims(), x.elem_count(), |x, out| {
            threads::for_chunks(out, rows * channels, |index, out| {
                let x = &x[index * rows * channels..][..out.len()];
                layer_norm_rows(x, &self.weight, &self.bias, self.eps as f32, out);
            });
        })
    }

    fn plain(&self, x: &Tensor) -> Result<Tensor> {
        #[cfg(feature = "cuda")]
        if let Some(y) = cuda::norm::layer_norm(
            x,
            &cuda::norm::Norm {
                weight: &self.weight,
                bias: &self.bias,
                eps: self.eps,
                there: &self.there,
            },
        )? {
            return Ok(y);
        }
        let weight = Tensor::new(self.weight.as_slice(), x.device())?;
        let bias = Tensor::new(self.bias.as_slice(), x.device())?;
        let wide = x.to_dtype(DType::F32)?;
        let centred = wide.broadcast_sub(&wide.mean_keepdim(D::Minus1)?)?;
        let variance = centred.sqr()?.mean_keepdim(D::Minus1)?;
        let normal = centred.broadcast_div(&(variance + self.eps)?.sqrt()?)?;
        normal
            .broadcast_mul(&weight)?
            .broadcast_add(&bias)?
            .to_dtype(x.dtype())
    }
}

vectorised! {
    fn layer_norm_rows(x: &[f32], weight: &[f32], bias: &[f32], eps: f32, out: &mut [f32]) {
        let channels = weight.len();
        for (out, x) in out.chunks_exact_mut(channels).zip(x.chunks_exact(channels)) {
            let (chunks, rest) = x.as_chunks::<LANES>();
            let mut sums = [0.0; LANES];
            for chunk in chunks {
                for (sum, x) in sums.iter_mut().zip(chunk) {
                    *sum += x;
                }
            }
            for (sum, x) in sums.iter_mut().zip(rest) {
                *sum += x;
            }
            let mean = sums.iter().sum::<f32>() / channels as f32;
            let mut sums = [0.0; LANES];
            for chunk in chunks {
                for (sum, x) in sums.iter_mut().zip(chunk) {
                    *sum += (x - mean) * (x - mean);
                }
            }
            for (sum, x) in sums.iter_mut().zip(rest) {
                *sum += (x - mean) * (x - mean);
            }
            let factor = 1.0 / (sums.iter().sum::<f32>() / channels as f32 + eps).sqrt();
            for (((out, x), weight), bias) in out.iter_mut().zip(x).zip(weight).zip(bias) {
                *out = (x - mean) * factor * weight + bias;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::tests::{assert_close, places, tensor};

    #[test]
    fn group_norm_agrees_with_candle() {
        for (height, width, channels, groups) in [(6, 7, 24, 4), (40, 50, 64, 32), (3, 3, 5, 5)] {
            let x = (tensor(1, &[2, height, width, channels]) + 3.0).unwrap();
            let weight: Vec<f32> = tensor(2, &[channels]).to_vec1().unwrap();
            let bias: Vec<f32> = tensor(3, &[channels]).to_vec1().unwrap();
            let [ours, candles] = places()
                .map(|place| GroupNorm::new(weight.clone(), bias.clone(), groups, 1e-5, &place));
            // Many values with a mean far from zero: only f64 is a fair reference.
            let exact = exact(&x, &weight, &bias, groups);
            assert_close(&ours.forward(&x).unwrap(), &exact, 1e-5);
            assert_close(&candles.forward(&x).unwrap(), &exact, 1e-4);
            assert_close(
                &ours.forward_silu(&x).unwrap(),
                &exact.silu().unwrap(),
                1e-5,
            );
        }
    }

    fn exact(x: &Tensor, weight: &[f32], bias: &[f32], groups: usize) -> Tensor {
        let (batch, channels) = (x.dim(0).unwrap(), weight.len());
        let wide = x
            .to_dtype(DType::F64)
            .unwrap()
            .reshape((batch, (), groups, channels / groups))
            .unwrap();
        let mean = wide.mean_keepdim(3).unwrap().mean_keepdim(1).unwrap();
        let centred = wide.broadcast_sub(&mean).unwrap();
        let variance = centred
            .sqr()
            .unwrap()
            .mean_keepdim(3)
            .unwrap()
            .mean_keepdim(1)
            .unwrap();
        let normal = centred
            .broadcast_div(&(variance + 1e-5).unwrap().sqrt().unwrap())
            .unwrap();
        let [weight, bias] = [weight, bias].map(|x| {
            Tensor::new(x, &candle_core::Device::Cpu)
                .unwrap()
                .to_dtype(DType::F64)
                .unwrap()
        });
        let normal = normal.reshape(x.shape()).unwrap();
        normal
            .broadcast_mul(&weight)
            .unwrap()
            .broadcast_add(&bias)
            .unwrap()
            .to_dtype(DType::F32)
            .unwrap()
    }

    #[test]
    fn layer_norm_agrees_with_candle() {
        for channels in [5, 16, 100] {
            let x = (tensor(1, &[3, 41, channels]) + 2.0).unwrap();
            let weight: Vec<f32> = tensor(2, &[channels]).to_vec1().unwrap();
            let bias: Vec<f32> = tensor(3, &[channels]).to_vec1().unwrap();
            let [ours, reference] = places().map(|place| {
                LayerNorm::new(weight.clone(), bias.clone(), 1e-5, &place)
                    .forward(&x)
                    .unwrap()
            });
            assert_close(&ours, &reference, 1e-5);
        }
    }

    #[test]
    fn a_picture_has_the_same_bits_alone_and_in_company() {
        let place = &places()[0];
        for side in [9, 48] {
            let x = tensor(4, &[3, side, side, 40]);
            let norm = GroupNorm::new(vec![1.5; 40], vec![0.5; 40], 8, 1e-5, place);
            let together = norm.forward_silu(&x).unwrap();
            for picture in 0..3 {
                let alone = norm
                    .forward_silu(&x.narrow(0, picture, 1).unwrap())
                    .unwrap();
                assert_close(&alone, &together.narrow(0, picture, 1).unwrap(), 0.0);
            }
        }
    }

    #[test]
    fn each_instruction_set_scales_alike() {
        let x: Vec<f32> = tensor(5, &[7 * 37]).to_vec1().unwrap();
        let [scale, shift] = [6, 7].map(|seed| tensor(seed, &[37]).to_vec1::<f32>().unwrap());
        for isa in Isa::supported() {
            for silu in [false, true] {
                let mut out = vec![0.0; x.len()];
                apply(isa, &x, &scale, &shift, silu, &mut out);
                for (index, ours) in out.into_iter().enumerate() {
                    let y = f64::from(x[index]) * f64::from(scale[index % 37]);
                    let y = y + f64::from(shift[index % 37]);
                    let exact = if silu { y / (1.0 + (-y).exp()) } else { y };
                    assert!((f64::from(ours) - exact).abs() < 2e-6, "{isa:?} {index}");
                }
            }
        }
    }
}
