//! From pixels to the distribution of their latents. Source: `Encoder` and `DiagonalGaussianDistribution` in
//! `autoencoders/vae.py` of diffusers.

use candle_core::{Result, Tensor};

use super::config::VaeConfig;
use super::mid::Mid;
use super::{EPS, ends, resnet_shape};
use crate::error::LoadError;
use crate::noise::Generator;
use crate::ops::Place;
use crate::ops::conv::{Conv3x3, Kind};
use crate::ops::linear::Linear;
use crate::ops::norm::GroupNorm;
use crate::resnet::Resnet;
use crate::weights::Scope;

/// Between these a logarithm of a variance is believed.
const LOG_VARIANCE: (f32, f32) = (-30.0, 20.0);

/// The encoder, with the 1×1 convolution behind it.
#[derive(Debug)]
pub(super) struct Encoder {
    conv_in: Conv3x3,
    blocks: Vec<(Vec<Resnet>, Option<Conv3x3>)>,
    mid: Mid,
    norm_out: GroupNorm,
    conv_out: Conv3x3,
    quant: Option<Linear>,
    place: Place,
}

impl Encoder {
    /// From the autoencoder's tensors.
    pub(super) fn load(
        config: &VaeConfig,
        root: &Scope<'_>,
    ) -> std::result::Result<Self, LoadError> {
        let scope = root.pp("encoder");
        let (first, last) = ends(config)?;
        let moments = 2 * config.latent;
        let quant = if config.quant {
            Some(root.pp("quant_conv").conv1x1(moments, moments)?)
        } else {
            None
        };
        let mut blocks = Vec::new();
        let mut before = first;
        for (index, &channels) in config.channels.iter().enumerate() {
            let scope = scope.pp("down_blocks").pp(index);
            let resnets = (0..config.layers)
                .map(|layer| {
                    let input = if layer == 0 { before } else { channels };
                    let scope = scope.pp("resnets").pp(layer);
                    Resnet::load(&scope, input, channels, resnet_shape(config))
                })
                .collect::<std::result::Result<_, _>>()?;
            let down = if index + 1 < config.channels.len() {
                let scope = scope.pp("downsamplers").pp(0).pp("conv");
                Some(scope.conv3x3(channels, channels, Kind::DownPadEnd)?)
            } else {
                None
            };
            blocks.push((resnets, down));
            before = channels;
        }
        Ok(Self {
            conv_in: scope.pp("conv_in").conv3x3(3, first, Kind::Same)?,
            blocks,
            mid: Mid::load(&scope.pp("mid_block"), last, config)?,
            norm_out: scope
                .pp("conv_norm_out")
                .group_norm(last, config.groups, EPS)?,
            conv_out: scope.pp("conv_out").conv3x3(last, moments, Kind::Same)?,
            quant,
            place: root.place().clone(),
        })
    }

    /// `(batch, height, width, 3)` of -1 to 1 to `(batch, height / factor, width / factor, 2 · latent channels)`: the
    /// means, then the logarithms of the variances.
    pub(super) fn forward(&self, pixels: &Tensor) -> Result<Tensor> {
        let mut x = self.conv_in.forward(pixels)?;
        for (resnets, down) in &self.blocks {
            for resnet in resnets {
                x = resnet.forward(&x, None)?;
            }
            if let Some(down) = down {
                x = down.forward(&x)?;
            }
        }
        x = self.mid.forward(&x, &self.place)?;
        x = self.conv_out.forward(&self.norm_out.forward_silu(&x)?)?;
        match &self.quant {
            Some(layer) => layer.forward(&x),
            None => Ok(x),
        }
    }
}

/// What the encoder says of one picture: a mean and a variance for each latent.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Posterior {
    /// Channels × pixels.
    mean: Vec<f32>,
    pub(super) log_variance: Vec<f32>,
}

impl Posterior {
    /// From the encoder's output for one picture, channels × pixels: the means before the logarithms of the variances.
    pub(super) fn new(mut moments: Vec<f32>) -> Self {
        let (least, most) = LOG_VARIANCE;
        let mut log_variance = moments.split_off(moments.len() / 2);
        log_variance
            .iter_mut()
            .for_each(|x| *x = x.clamp(least, most));
        Self {
            mean: moments,
            log_variance,
        }
    }

    /// The most probable latents.
    #[cfg(test)]
    pub(crate) fn mode(&self) -> Vec<f32> {
        self.mean.clone()
    }

    /// Latents drawn with the next noise of `generator`.
    pub(crate) fn sample(&self, generator: &mut Generator) -> Vec<f32> {
        let noise = generator.normal(self.mean.len());
        let moments = self.mean.iter().zip(&self.log_variance);
        (moments.zip(noise))
            .map(|((mean, log_variance), noise)| mean + (0.5 * log_variance).exp() * noise)
            .collect()
    }
}

/// The encoder's tensors with their shapes, so that a file can be refused at load although they are read later.
pub(super) fn tensors(config: &VaeConfig) -> Vec<(String, Vec<usize>)> {
    let mut list = Tensors(Vec::new());
    let (Some(&first), Some(&last)) = (config.channels.first(), config.channels.last()) else {
        return list.0;
    };
    let moments = 2 * config.latent;
    list.conv("encoder.conv_in", (3, first), &[3, 3]);
    let mut before = first;
    for (index, &channels) in config.channels.iter().enumerate() {
        let block = format!("encoder.down_blocks.{index}");
        for layer in 0..config.layers {
            let input = if layer == 0 { before } else { channels };
            list.resnet(&format!("{block}.resnets.{layer}"), input, channels);
        }
        if index + 1 < config.channels.len() {
            let conv = format!("{block}.downsamplers.0.conv");
            list.conv(&conv, (channels, channels), &[3, 3]);
        }
        before = channels;
    }
    for index in 0..2 {
        list.resnet(&format!("encoder.mid_block.resnets.{index}"), last, last);
    }
    if config.mid_attention {
        let attention = "encoder.mid_block.attentions.0";
        list.norm(&format!("{attention}.group_norm"), last);
        for part in ["to_q", "to_k", "to_v", "to_out.0"] {
            list.conv(&format!("{attention}.{part}"), (last, last), &[]);
        }
    }
    list.norm("encoder.conv_norm_out", last);
    list.conv("encoder.conv_out", (last, moments), &[3, 3]);
    if config.quant {
        list.conv("quant_conv", (moments, moments), &[1, 1]);
    }
    list.0
}

struct Tensors(Vec<(String, Vec<usize>)>);

impl Tensors {
    fn norm(&mut self, name: &str, channels: usize) {
        for part in ["weight", "bias"] {
            self.0.push((format!("{name}.{part}"), vec![channels]));
        }
    }

    /// A convolution with this kernel; a linear layer has none.
    fn conv(&mut self, name: &str, (input, output): (usize, usize), kernel: &[usize]) {
        let weight = [&[output, input], kernel].concat();
        self.0.push((format!("{name}.weight"), weight));
        self.0.push((format!("{name}.bias"), vec![output]));
    }

    fn resnet(&mut self, name: &str, input: usize, output: usize) {
        self.norm(&format!("{name}.norm1"), input);
        self.conv(&format!("{name}.conv1"), (input, output), &[3, 3]);
        self.norm(&format!("{name}.norm2"), output);
        self.conv(&format!("{name}.conv2"), (output, output), &[3, 3]);
        if input != output {
            self.conv(&format!("{name}.conv_shortcut"), (input, output), &[1, 1]);
        }
    }
}
