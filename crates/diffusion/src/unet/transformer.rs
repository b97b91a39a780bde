//! The transformer between residual blocks. Sources: `transformer_2d.py` and `attention.py` of diffusers.

use candle_core::{Result, Tensor};

use crate::error::LoadError;
use crate::ops::attention::{self, Heads, KeyValue};
use crate::ops::linear::Linear;
use crate::ops::norm::{GroupNorm, LayerNorm};
use crate::ops::pool::spend;
use crate::ops::{Fast, activation};
use crate::weights::Scope;

/// Fixed in diffusers, whatever the UNet's own epsilon.
const GROUP_EPS: f64 = 1e-6;
const LAYER_EPS: f64 = 1e-5;
/// The feed-forward's inner width, in channels.
const WIDENING: usize = 4;

/// Numbers of a transformer.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shape {
    pub(super) channels: usize,
    pub(super) heads: usize,
    pub(super) layers: usize,
    pub(super) context: usize,
    pub(super) groups: usize,
    pub(super) linear_projection: bool,
}

/// Norm, projection, blocks, projection, plus the input.
#[derive(Debug)]
pub(super) struct Transformer {
    norm: GroupNorm,
    proj_in: Linear,
    blocks: Vec<Block>,
    proj_out: Linear,
}

impl Transformer {
    pub(super) fn load(scope: &Scope<'_>, shape: Shape) -> std::result::Result<Self, LoadError> {
        let channels = shape.channels;
        let projection = |name: &str| {
            let scope = scope.pp(name);
            if shape.linear_projection {
                scope.linear(channels, channels)
            } else {
                scope.conv1x1(channels, channels)
            }
        };
        Ok(Self {
            norm: scope
                .pp("norm")
                .group_norm(channels, shape.groups, GROUP_EPS)?,
            proj_in: projection("proj_in")?,
            blocks: (0..shape.layers)
                .map(|index| Block::load(&scope.pp("transformer_blocks").pp(index), shape))
                .collect::<std::result::Result<_, _>>()?,
            proj_out: projection("proj_out")?,
        })
    }

    /// Keys and values of one text, `(tokens, width)`, for each block in order.
    pub(super) fn prepare(&self, text: &Tensor, out: &mut Vec<KeyValue>) -> Result<()> {
        for block in &self.blocks {
            out.push(block.prepare(text)?);
        }
        Ok(())
    }

    /// `x` is `(batch, height, width, channels)`; `contexts` gives each next block its rows' keys and values.
    pub(super) fn forward<'a>(
        &self,
        x: &Tensor,
        contexts: &mut impl Iterator<Item = Vec<&'a KeyValue>>,
    ) -> Result<Tensor> {
        let (batch, height, width, channels) = x.dims4()?;
        let h = spend(self.norm.forward(x)?, |h| self.proj_in.forward(h))?;
        let mut h = h.reshape((batch, height * width, channels))?;
        for block in &self.blocks {
            let Some(context) = contexts.next() else {
                candle_core::bail!("a text was prepared for another model")
            };
            h = spend(h, |h| block.forward(h, &context))?;
        }
        spend(h.reshape(x.shape())?, |h| {
            self.proj_out.forward_add(h, Some(x))
        })
    }
}

/// Attention to the picture, attention to the text, feed-forward; each after a norm and added to its input.
#[derive(Debug)]
struct Block {
    norm1: LayerNorm,
    qkv: Linear,
    own_out: Linear,
    norm2: LayerNorm,
    query: Linear,
    key: Linear,
    value: Linear,
    cross_out: Linear,
    norm3: LayerNorm,
    gated: Linear,
    narrow: Linear,
    heads: usize,
    fast: Fast,
}

impl Block {
    fn load(scope: &Scope<'_>, shape: Shape) -> std::result::Result<Self, LoadError> {
        let channels = shape.channels;
        let (own, cross, ff) = (
            scope.pp("attn1"),
            scope.pp("attn2"),
            scope.pp("ff").pp("net"),
        );
        Ok(Self {
            norm1: scope.pp("norm1").layer_norm(channels, LAYER_EPS)?,
            qkv: own.linears(&["to_q", "to_k", "to_v"], channels, channels)?,
            own_out: own.pp("to_out").pp(0).linear(channels, channels)?,
            norm2: scope.pp("norm2").layer_norm(channels, LAYER_EPS)?,
            query: cross.pp("to_q").linear_no_bias(channels, channels)?,
            key: cross.pp("to_k").linear_no_bias(shape.context, channels)?,
            value: cross.pp("to_v").linear_no_bias(shape.context, channels)?,
            cross_out: cross.pp("to_out").pp(0).linear(channels, channels)?,
            norm3: scope.pp("norm3").layer_norm(channels, LAYER_EPS)?,
            gated: ff
                .pp(0)
                .pp("proj")
                .linear(channels, 2 * WIDENING * channels)?,
            narrow: ff.pp(2).linear(WIDENING * channels, channels)?,
            heads: shape.heads,
            fast: scope.place().fast,
        })
    }

    fn prepare(&self, text: &Tensor) -> Result<KeyValue> {
        KeyValue::new(
            self.fast,
            &self.key.forward(text)?,
            &self.value.forward(text)?,
            self.heads,
        )
    }

    fn forward(&self, x: &Tensor, context: &[&KeyValue]) -> Result<Tensor> {
        let heads = Heads {
            count: self.heads,
            causal: false,
        };
        let qkv = spend(self.norm1.forward(x)?, |h| self.qkv.forward(h))?;
        let seen = spend(qkv, |qkv| attention::own(self.fast, qkv, heads))?;
        let x = spend(seen, |seen| self.own_out.forward_add(seen, Some(x)))?;
        let query = spend(self.norm2.forward(&x)?, |h| self.query.forward(h))?;
        let seen = spend(query, |query| {
            attention::cross(self.fast, query, context, heads)
        })?;
        let x = spend(x, |x| {
            spend(seen, |seen| self.cross_out.forward_add(seen, Some(x)))
        })?;
        let wide = spend(self.norm3.forward(&x)?, |h| self.gated.forward(h))?;
        let gated = spend(wide, |wide| activation::geglu(self.fast, wide))?;
        spend(x, |x| {
            spend(gated, |gated| self.narrow.forward_add(gated, Some(x)))
        })
    }
}
