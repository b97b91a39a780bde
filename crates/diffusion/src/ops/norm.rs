//! Group and layer normalisation.

use candle_core::{D, DType, Result, Tensor};

use super::activation::{self, sigmoid_times};
use super::simd::vectorised;
use super::{Fast, Place, map_values, threads, with_values};
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
        if picture < WORTH_THREADS {
            return map_values(x, x.dims(), x.elem_count(), |x, out| {
                threads::for_chunks(out, picture, |index, out| {
                    let x = &x[index * picture..][..picture];
                    let sums = x.chunks(PIXELS * channels).map(|x| sum(x, channels));
                    let means = self.means(sums, picture);
                    let squares = x
                        .chunks(PIXELS * channels)
                        .map(|x| squared_distance(x, &means));
                    let (scale, shift) = self.scale(&means, squares, picture);
                    apply(x, &scale, &shift, silu, out);
                });
            });
        }
        let scales = with_values(x, |x| self.scales_over_threads(x, batch, picture))?;
        map_values(x, x.dims(), x.elem_count(), |x, out| {
            let size = PIXELS * channels;
            for (index, out) in out.chunks_mut(picture).enumerate() {
                let (scale, shift) = &scales[index];
                let x = &x[index * picture..][..picture];
                threads::for_chunks(out, size, |part, out| {
                    apply(&x[part * size..][..out.len()], scale, shift, silu, out);
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

    fn scales_over_threads(
        &self,
        x: &[f32],
        batch: usize,
        picture: usize,
    ) -> Vec<(Vec<f32>, Vec<f32>)> {
        let channels = self.weight.len();
        let size = PIXELS * channels;
        (0..batch)
            .map(|index| {
                let x = &x[index * picture..][..picture];
                let parts = picture.div_ceil(size);
                let part = |index: usize| &x[index * size..x.len().min((index + 1) * size)];
                let sums = threads::map(parts, |index| sum(part(index), channels));
                let means = self.means(sums.into_iter(), picture);
                let squares = threads::map(parts, |index| squared_distance(part(index), &means));
                self.scale(&means, squares.into_iter(), picture)
            })
            .collect()
    }

    /// Each channel's group's mean, from sums per channel of parts of a picture.
    fn means(&self, sums: impl Iterator<Item = Vec<f32>>, picture: usize) -> Vec<f32> {
        self.per_group(sums, picture)
            .iter()
            .map(|mean| *mean as f32)
            .collect()
    }

    fn scale(
        &self,
        means: &[f32],
        squares: impl Iterator<Item = Vec<f32>>,
        picture: usize,
    ) -> (Vec<f32>, Vec<f32>) {
        let variances = self.per_group(squares, picture);
        let scale: Vec<f32> = (self.weight.iter().zip(&variances))
            .map(|(weight, variance)| (f64::from(*weight) / (variance + self.eps).sqrt()) as f32)
            .collect();
        let shift = (self.bias.iter().zip(&scale).zip(means))
            .map(|((bias, scale), mean)| {
                (f64::from(*bias) - f64::from(*scale) * f64::from(*mean)) as f32
            })
            .collect();
        (scale, shift)
    }

    fn per_group(&self, parts: impl Iterator<Item = Vec<f32>>, picture: usize) -> Vec<f64> {
        let size = self.weight.len() / self.groups;
        let mut totals = vec![0.0_f64; self.groups];
        for part in parts {
            for (total, channels) in totals.iter_mut().zip(part.chunks_exact(size)) {
                for value in channels {
                    *total += f64::from(*value);
                }
            }
        }
        let count = (picture / self.groups) as f64;
        totals
            .iter()
            .flat_map(|total| std::iter::repeat_n(total / count, size))
            .collect()
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

vectorised! {
    fn add_rows(x: &[f32], sums: &mut [f32]) {
        for row in x.chunks_exact(sums.len()) {
            for (sum, x) in sums.iter_mut().zip(row) {
                *sum += x;
            }
        }
    }
}

vectorised! {
    fn add_squares(x: &[f32], means: &[f32], sums: &mut [f32]) {
        for row in x.chunks_exact(sums.len()) {
            for ((sum, x), mean) in sums.iter_mut().zip(row).zip(means) {
                *sum += (x - mean) * (x - mean);
            }
        }
    }
}

fn sum(x: &[f32], channels: usize) -> Vec<f32> {
    let mut sums = vec![0.0; channels];
    add_rows(x, &mut sums);
    sums
}

fn squared_distance(x: &[f32], means: &[f32]) -> Vec<f32> {
    let mut sums = vec![0.0; means.len()];
    add_squares(x, means, &mut sums);
    sums
}

vectorised! {
    fn apply(x: &[f32], scale: &[f32], shift: &[f32], silu: bool, out: &mut [f32]) {
        let channels = scale.len();
        for (out, x) in out.chunks_exact_mut(channels).zip(x.chunks_exact(channels)) {
            if silu {
                for (((out, x), scale), shift) in out.iter_mut().zip(x).zip(scale).zip(shift) {
                    *out = sigmoid_times(x * scale + shift, 1.0);
                }
            } else {
                for (((out, x), scale), shift) in out.iter_mut().zip(x).zip(scale).zip(shift) {
                    *out = x * scale + shift;
                }
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
}
