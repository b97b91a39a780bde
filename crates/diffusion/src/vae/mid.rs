//! The middle that encoder and decoder share: two residual blocks with attention between. Source: `UNetMidBlock2D` in
//! `unet_2d_blocks.py` of diffusers.

use candle_core::{Result, Tensor};

use super::config::VaeConfig;
use super::{EPS, resnet_shape};
use crate::error::LoadError;
use crate::ops::Place;
use crate::ops::attention::{self, Heads};
use crate::ops::linear::Linear;
use crate::ops::norm::GroupNorm;
use crate::ops::pool::spend;
use crate::resnet::Resnet;
use crate::weights::Scope;

/// The middle.
#[derive(Debug)]
pub(super) struct Mid {
    before: Resnet,
    attention: Option<Attention>,
    after: Resnet,
}

impl Mid {
    /// Of `channels`, from the tensors under `scope`.
    pub(super) fn load(
        scope: &Scope<'_>,
        channels: usize,
        config: &VaeConfig,
    ) -> std::result::Result<Self, LoadError> {
        let resnet = |index: usize| {
            let scope = scope.pp("resnets").pp(index);
            Resnet::load(&scope, channels, channels, resnet_shape(config))
        };
        let attention = if config.mid_attention {
            let scope = scope.pp("attentions").pp(0);
            Some(Attention::load(&scope, channels, config.groups)?)
        } else {
            None
        };
        Ok(Self {
            before: resnet(0)?,
            attention,
            after: resnet(1)?,
        })
    }

    /// `(batch, height, width, channels)`, in and out.
    pub(super) fn forward(&self, x: &Tensor, place: &Place) -> Result<Tensor> {
        let mut x = self.before.forward(x, None)?;
        if let Some(attention) = &self.attention {
            x = spend(x, |x| attention.forward(x, place))?;
        }
        spend(x, |x| self.after.forward(x, None))
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
        let qkv = spend(self.norm.forward(x)?, |h| self.qkv.forward(h))?;
        let qkv = qkv.reshape((batch, height * width, 3 * channels))?;
        let heads = Heads {
            count: 1,
            causal: false,
        };
        let seen = spend(qkv, |qkv| attention::own(place.fast, qkv, heads))?;
        spend(seen.reshape(x.shape())?, |seen| {
            self.out.forward_add(seen, Some(x))
        })
    }
}
