//! From latents to pixels. Source: `Decoder` in `autoencoders/vae.py` of diffusers.

use candle_core::{Result, Tensor};

use super::config::VaeConfig;
use super::mid::Mid;
use super::{EPS, ends, resnet_shape};
use crate::error::LoadError;
use crate::ops::Place;
use crate::ops::conv::{Conv3x3, Kind};
use crate::ops::linear::Linear;
use crate::ops::norm::GroupNorm;
use crate::ops::pool::spend;
use crate::resnet::Resnet;
use crate::weights::Scope;

/// The decoder, with the 1×1 convolution before it.
#[derive(Debug)]
pub(super) struct Decoder {
    post_quant: Option<Linear>,
    conv_in: Conv3x3,
    mid: Mid,
    blocks: Vec<(Vec<Resnet>, Option<Conv3x3>)>,
    norm_out: GroupNorm,
    conv_out: Conv3x3,
    place: Place,
}

impl Decoder {
    /// From the autoencoder's tensors.
    pub(super) fn load(
        config: &VaeConfig,
        root: &Scope<'_>,
    ) -> std::result::Result<Self, LoadError> {
        let scope = root.pp("decoder");
        let (first, last) = ends(config)?;
        let post_quant = if config.post_quant {
            let scope = root.pp("post_quant_conv");
            Some(scope.conv1x1(config.latent, config.latent)?)
        } else {
            None
        };
        Ok(Self {
            post_quant,
            conv_in: scope
                .pp("conv_in")
                .conv3x3(config.latent, last, Kind::Same)?,
            mid: Mid::load(&scope.pp("mid_block"), last, config)?,
            blocks: blocks(config, &scope.pp("up_blocks"), last)?,
            norm_out: scope
                .pp("conv_norm_out")
                .group_norm(first, config.groups, EPS)?,
            conv_out: scope.pp("conv_out").conv3x3(first, 3, Kind::Same)?,
            place: root.place().clone(),
        })
    }

    /// `(batch, height, width, latent channels)` to `(batch, factor · height, factor · width, 3)`, about -1 to 1.
    pub(super) fn forward(&self, latents: &Tensor) -> Result<Tensor> {
        let mut x = latents.clone();
        if let Some(layer) = &self.post_quant {
            x = layer.forward(&x)?;
        }
        x = self.conv_in.forward(&x)?;
        x = spend(x, |x| self.mid.forward(x, &self.place))?;
        for (resnets, up) in &self.blocks {
            for resnet in resnets {
                x = spend(x, |x| resnet.forward(x, None))?;
            }
            if let Some(up) = up {
                x = spend(x, |x| up.forward(x))?;
            }
        }
        x = spend(x, |x| self.norm_out.forward_silu(x))?;
        spend(x, |x| self.conv_out.forward(x))
    }
}

type Blocks = Vec<(Vec<Resnet>, Option<Conv3x3>)>;

fn blocks(
    config: &VaeConfig,
    scope: &Scope<'_>,
    last: usize,
) -> std::result::Result<Blocks, LoadError> {
    let mut blocks = Vec::new();
    let mut before = last;
    for (index, &channels) in config.channels.iter().rev().enumerate() {
        let scope = scope.pp(index);
        let resnets = (0..=config.layers)
            .map(|layer| {
                let input = if layer == 0 { before } else { channels };
                let scope = scope.pp("resnets").pp(layer);
                Resnet::load(&scope, input, channels, resnet_shape(config))
            })
            .collect::<std::result::Result<_, _>>()?;
        let up = if index + 1 < config.channels.len() {
            let scope = scope.pp("upsamplers").pp(0).pp("conv");
            Some(scope.conv3x3(channels, channels, Kind::Up)?)
        } else {
            None
        };
        blocks.push((resnets, up));
        before = channels;
    }
    Ok(blocks)
}
