//! The decoder of `AutoencoderKL`: from latents to pixels. Source: `autoencoder_kl.py` and `vae.py` of diffusers.

use std::path::Path;

use candle_core::{Result, Tensor};

use crate::config::Fields;
use crate::error::LoadError;
use crate::ops::Place;
use crate::ops::attention::{self, Heads};
use crate::ops::conv::{Conv3x3, Kind};
use crate::ops::linear::Linear;
use crate::ops::norm::GroupNorm;
use crate::resnet::{Resnet, ResnetShape};
use crate::weights::sgm::Names;
use crate::weights::{DIFFUSERS, Scope, Weights};

/// diffusers fixes this for the whole autoencoder.
const EPS: f64 = 1e-6;

/// `vae/config.json`.
#[derive(Clone, Debug)]
pub(crate) struct VaeConfig {
    channels: Vec<usize>,
    /// Channels of the latents.
    pub(crate) latent: usize,
    layers: usize,
    groups: usize,
    scaling_factor: f32,
    /// Mean and deviation of each latent channel.
    moments: Option<(Vec<f32>, Vec<f32>)>,
    post_quant: bool,
    mid_attention: bool,
}

impl VaeConfig {
    /// Reads and checks.
    pub(crate) fn read(mut fields: Fields) -> std::result::Result<Self, LoadError> {
        fields.only("_class_name", ["AutoencoderKL"])?;
        let ups = fields.texts("up_block_types")?;
        if let Some(other) = ups.iter().find(|name| *name != "UpDecoderBlock2D") {
            return Err(fields.refuse(
                "up_block_types",
                &other.as_str().into(),
                "only UpDecoderBlock2D is supported",
            ));
        }
        let latent = fields.size_or("latent_channels", 4)?;
        let (mean, deviation) = (
            fields.numbers("latents_mean")?,
            fields.numbers("latents_std")?,
        );
        let moments = match (mean, deviation) {
            (Some(mean), Some(deviation)) if mean.len() == latent && deviation.len() == latent => {
                let narrow = |all: Vec<f64>| all.into_iter().map(|x| x as f32).collect();
                Some((narrow(mean), narrow(deviation)))
            }
            (None, None) => None,
            (mean, _) => {
                let reason = "latents_mean and latents_std go together, one value for each of latent_channels";
                return Err(fields.refuse("latents_mean", &format!("{mean:?}").into(), reason));
            }
        };
        let config = Self {
            channels: fields.sizes("block_out_channels", Some(ups.len()))?,
            latent,
            layers: fields.size_or("layers_per_block", 1)?,
            groups: fields.size_or("norm_num_groups", 32)?,
            scaling_factor: fields.number_or("scaling_factor", 0.18215)? as f32,
            moments,
            post_quant: fields.flag_or("use_post_quant_conv", true)?,
            mid_attention: fields.flag_or("mid_block_add_attention", true)?,
        };
        fields.only("out_channels", [3])?;
        fields.only("act_fn", ["silu", "swish"])?;
        // diffusers' pipeline for this architecture does not read it, so a model that has one expects another.
        fields.only("shift_factor", [0.0])?;
        // Of the encoder, of training, and of where to compute: everything here is in f32 where it must be.
        fields.ignore(&[
            "down_block_types",
            "force_upcast",
            "in_channels",
            "sample_size",
            "use_quant_conv",
        ]);
        fields.finish()?;
        Ok(config)
    }

    /// Channels of each level, the finest first; at least one.
    pub(crate) fn channels(&self) -> &[usize] {
        &self.channels
    }

    /// Pixels along a side for one latent.
    pub(crate) fn factor(&self) -> usize {
        1 << (self.channels.len() - 1)
    }
}

/// The decoder.
#[derive(Debug)]
pub(crate) struct Vae {
    config: VaeConfig,
    post_quant: Option<Linear>,
    conv_in: Conv3x3,
    mid: (Resnet, Option<Attention>, Resnet),
    blocks: Vec<(Vec<Resnet>, Option<Conv3x3>)>,
    norm_out: GroupNorm,
    conv_out: Conv3x3,
    place: Place,
}

impl Vae {
    /// Reads `folder`.
    pub(crate) fn load(
        folder: &Path,
        place: &Place,
    ) -> std::result::Result<(Self, Weights), LoadError> {
        let config = VaeConfig::read(Fields::open(&folder.join("config.json"))?)?;
        let names = Names::vae(config.channels.len(), config.layers);
        let weights = Weights::open(folder, DIFFUSERS, names, place)?;
        let vae = Self::from_weights(config, &weights.root())?;
        Ok((vae, weights))
    }

    fn from_weights(config: VaeConfig, root: &Scope<'_>) -> std::result::Result<Self, LoadError> {
        let scope = root.pp("decoder");
        let shape = ResnetShape {
            groups: config.groups,
            eps: EPS,
            time: None,
        };
        let (Some(&first), Some(&last)) = (config.channels.first(), config.channels.last()) else {
            return Err(LoadError::Config {
                file: "vae/config.json".into(),
                key: "block_out_channels".to_owned(),
                value: "[]".to_owned(),
                reason: "expected at least one".to_owned(),
            });
        };
        let mid = scope.pp("mid_block");
        let resnet = |index: usize| Resnet::load(&mid.pp("resnets").pp(index), last, last, shape);
        let attention = if config.mid_attention {
            Some(Attention::load(
                &mid.pp("attentions").pp(0),
                last,
                config.groups,
            )?)
        } else {
            None
        };
        let mut blocks = Vec::new();
        let mut before = last;
        for (index, &channels) in config.channels.iter().rev().enumerate() {
            let scope = scope.pp("up_blocks").pp(index);
            let resnets = (0..=config.layers)
                .map(|layer| {
                    let input = if layer == 0 { before } else { channels };
                    Resnet::load(&scope.pp("resnets").pp(layer), input, channels, shape)
                })
                .collect::<std::result::Result<_, _>>()?;
            let up = if index + 1 < config.channels.len() {
                Some(scope.pp("upsamplers").pp(0).pp("conv").conv3x3(
                    channels,
                    channels,
                    Kind::Up,
                )?)
            } else {
                None
            };
            blocks.push((resnets, up));
            before = channels;
        }
        let post_quant = if config.post_quant {
            Some(
                root.pp("post_quant_conv")
                    .conv1x1(config.latent, config.latent)?,
            )
        } else {
            None
        };
        Ok(Self {
            post_quant,
            conv_in: scope
                .pp("conv_in")
                .conv3x3(config.latent, last, Kind::Same)?,
            mid: (resnet(0)?, attention, resnet(1)?),
            blocks,
            norm_out: scope
                .pp("conv_norm_out")
                .group_norm(first, config.groups, EPS)?,
            conv_out: scope.pp("conv_out").conv3x3(first, 3, Kind::Same)?,
            place: root.place().clone(),
            config,
        })
    }

    /// The configuration.
    pub(crate) fn config(&self) -> &VaeConfig {
        &self.config
    }

    /// Undoes the scaling under which the UNet works; `latents` is channels × pixels.
    pub(crate) fn unscale(&self, latents: &mut [f32]) {
        let plane = (latents.len() / self.config.latent).max(1);
        for (channel, values) in latents.chunks_mut(plane).enumerate() {
            match &self.config.moments {
                Some((mean, deviation)) => {
                    for x in values {
                        *x = *x * deviation[channel] / self.config.scaling_factor + mean[channel];
                    }
                }
                None => values
                    .iter_mut()
                    .for_each(|x| *x /= self.config.scaling_factor),
            }
        }
    }

    /// `(batch, height, width, latent channels)` to `(batch, factor · height, factor · width, 3)`, about -1 to 1.
    pub(crate) fn decode(&self, latents: &Tensor) -> Result<Tensor> {
        let mut x = latents.clone();
        if let Some(layer) = &self.post_quant {
            x = layer.forward(&x)?;
        }
        x = self.conv_in.forward(&x)?;
        x = self.mid.0.forward(&x, None)?;
        if let Some(attention) = &self.mid.1 {
            x = attention.forward(&x, &self.place)?;
        }
        x = self.mid.2.forward(&x, None)?;
        for (resnets, up) in &self.blocks {
            for resnet in resnets {
                x = resnet.forward(&x, None)?;
            }
            if let Some(up) = up {
                x = up.forward(&x)?;
            }
        }
        self.conv_out.forward(&self.norm_out.forward_silu(&x)?)
    }
}

/// Single-head attention of every latent to every other.
#[derive(Debug)]
struct Attention {
    norm: GroupNorm,
    qkv: Linear,
    out: Linear,
}

impl Attention {
    fn load(
        scope: &Scope<'_>,
        channels: usize,
        groups: usize,
    ) -> std::result::Result<Self, LoadError> {
        Ok(Self {
            norm: scope.pp("group_norm").group_norm(channels, groups, EPS)?,
            qkv: scope.linears(&["to_q", "to_k", "to_v"], channels, channels)?,
            out: scope.pp("to_out").pp(0).linear(channels, channels)?,
        })
    }

    fn forward(&self, x: &Tensor, place: &Place) -> Result<Tensor> {
        let (batch, height, width, channels) = x.dims4()?;
        let qkv = self.qkv.forward(&self.norm.forward(x)?)?.reshape((
            batch,
            height * width,
            3 * channels,
        ))?;
        let seen = attention::own(
            place.fast,
            &qkv,
            Heads {
                count: 1,
                causal: false,
            },
        )?;
        self.out.forward_add(&seen.reshape(x.shape())?, Some(x))
    }
}
