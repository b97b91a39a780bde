//! The residual block that UNet and VAE share. Source: `models/resnet.py` of diffusers.

use candle_core::{Result, Tensor};

use crate::error::LoadError;
use crate::ops::conv::{Added, Conv3x3, Kind};
use crate::ops::linear::Linear;
use crate::ops::norm::GroupNorm;
use crate::ops::pool::spend;
use crate::weights::Scope;

/// Numbers that all of a model's residual blocks share.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ResnetShape {
    /// Groups of the norms.
    pub(crate) groups: usize,
    /// Epsilon of the norms.
    pub(crate) eps: f64,
    /// Width of the time embedding, if the model has one.
    pub(crate) time: Option<usize>,
}

/// norm, SiLU, convolution, plus time; norm, SiLU, convolution, plus the input.
#[derive(Debug)]
pub(crate) struct Resnet {
    norm1: GroupNorm,
    conv1: Conv3x3,
    time: Option<Linear>,
    norm2: GroupNorm,
    conv2: Conv3x3,
    shortcut: Option<Linear>,
}

impl Resnet {
    /// A block from `input` to `output` channels.
    pub(crate) fn load(
        scope: &Scope<'_>,
        input: usize,
        output: usize,
        shape: ResnetShape,
    ) -> std::result::Result<Self, LoadError> {
        let time = match shape.time {
            Some(width) => Some(scope.pp("time_emb_proj").linear(width, output)?),
            None => None,
        };
        let shortcut = if input == output {
            None
        } else {
            Some(scope.pp("conv_shortcut").conv1x1(input, output)?)
        };
        Ok(Self {
            norm1: scope
                .pp("norm1")
                .group_norm(input, shape.groups, shape.eps)?,
            conv1: scope.pp("conv1").conv3x3(input, output, Kind::Same)?,
            time,
            norm2: scope
                .pp("norm2")
                .group_norm(output, shape.groups, shape.eps)?,
            conv2: scope.pp("conv2").conv3x3(output, output, Kind::Same)?,
            shortcut,
        })
    }

    /// `x` is `(batch, height, width, input)`; `time` the time embedding after SiLU, `(batch, width)`.
    pub(crate) fn forward(&self, x: &Tensor, time: Option<&Tensor>) -> Result<Tensor> {
        let h = self.norm1.forward_silu(x)?;
        let h = spend(h, |h| match (&self.time, time) {
            (Some(layer), Some(time)) => self
                .conv1
                .forward_add(h, Added::PerChannel(&layer.forward(time)?)),
            _ => self.conv1.forward(h),
        })?;
        let h = spend(h, |h| self.norm2.forward_silu(h))?;
        spend(h, |h| match &self.shortcut {
            Some(layer) => spend(layer.forward(x)?, |x| {
                self.conv2.forward_add(h, Added::Picture(x))
            }),
            None => self.conv2.forward_add(h, Added::Picture(x)),
        })
    }
}
