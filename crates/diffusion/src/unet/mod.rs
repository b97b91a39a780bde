//! `UNet2DConditionModel` as Stable Diffusion XL configures it. Source: `unet_2d_condition.py` of diffusers.
//!
//! Rows of a batch are independent: each has its own timestep and its own [`Conditioning`].

mod config;
mod memory;
mod transformer;

pub(crate) use config::UnetConfig;
pub(crate) use memory::resnet_values;
use transformer::{Shape, Transformer};

use std::path::Path;

use candle_core::{Result, Tensor};

use crate::config::Fields;
use crate::error::LoadError;
use crate::ops::attention::KeyValue;
use crate::ops::conv::{Conv3x3, Kind};
use crate::ops::linear::Linear;
use crate::ops::norm::GroupNorm;
use crate::ops::pool::spend;
use crate::ops::{Place, activation};
use crate::resnet::{Resnet, ResnetShape};
use crate::weights::{DIFFUSERS, Scope, Weights};

const MAX_PERIOD: f32 = 10_000.0;

/// All that a text says to the UNet, computed once a job.
#[derive(Clone, Debug)]
pub(crate) struct Conditioning {
    /// `(1, time width)`: pooled text and time ids, embedded.
    added: Tensor,
    /// Keys and values for each attention to the text, in the order in which the UNet comes to them.
    contexts: Vec<KeyValue>,
}

/// The UNet.
#[derive(Debug)]
pub(crate) struct Unet {
    config: UnetConfig,
    conv_in: Conv3x3,
    time: Embedding,
    added: Embedding,
    down: Vec<Block>,
    mid: (Resnet, Transformer, Resnet),
    up: Vec<Block>,
    norm_out: GroupNorm,
    conv_out: Conv3x3,
    place: Place,
}

/// Residual blocks, each with a transformer behind it where the level has attention; then a change of resolution.
#[derive(Debug)]
struct Block {
    layers: Vec<(Resnet, Option<Transformer>)>,
    resample: Option<Conv3x3>,
}

/// Two linear layers with SiLU between.
#[derive(Debug)]
struct Embedding(Linear, Linear);

impl Embedding {
    fn load(scope: &Scope<'_>, input: usize, width: usize) -> std::result::Result<Self, LoadError> {
        Ok(Self(
            scope.pp("linear_1").linear(input, width)?,
            scope.pp("linear_2").linear(width, width)?,
        ))
    }

    fn forward(&self, x: &Tensor, place: &Place) -> Result<Tensor> {
        self.1
            .forward(&activation::silu(place.fast, &self.0.forward(x)?)?)
    }
}

impl Unet {
    /// Reads `folder`.
    pub(crate) fn load(
        folder: &Path,
        place: &Place,
    ) -> std::result::Result<(Self, Weights), LoadError> {
        let config = UnetConfig::read(Fields::open(&folder.join("config.json"))?)?;
        let weights = Weights::open(folder, DIFFUSERS, config.names(), place)?;
        let unet = Self::from_weights(config, &weights.root())?;
        Ok((unet, weights))
    }

    fn from_weights(config: UnetConfig, root: &Scope<'_>) -> std::result::Result<Self, LoadError> {
        let (first, time) = (config.levels[0].channels, config.time_width());
        let last = config.levels[config.levels.len() - 1];
        let build = Build { config: &config };
        let mid = root.pp("mid_block");
        let resnet = |index: usize| {
            Resnet::load(
                &mid.pp("resnets").pp(index),
                last.channels,
                last.channels,
                build.resnet(),
            )
        };
        let attention = build.transformer(last.channels, last.heads, last.mid_layers);
        Ok(Self {
            conv_in: root
                .pp("conv_in")
                .conv3x3(config.input, first, Kind::Same)?,
            time: Embedding::load(&root.pp("time_embedding"), first, time)?,
            added: Embedding::load(&root.pp("add_embedding"), config.added_width, time)?,
            down: build.down(&root.pp("down_blocks"))?,
            mid: (
                resnet(0)?,
                Transformer::load(&mid.pp("attentions").pp(0), attention)?,
                resnet(1)?,
            ),
            up: build.up(&root.pp("up_blocks"))?,
            norm_out: root
                .pp("conv_norm_out")
                .group_norm(first, config.groups, config.eps)?,
            conv_out: root
                .pp("conv_out")
                .conv3x3(first, config.latent, Kind::Same)?,
            place: root.place().clone(),
            config,
        })
    }

    /// The configuration.
    pub(crate) fn config(&self) -> &UnetConfig {
        &self.config
    }

    /// Width of the pooled text that the configuration expects beside so many time ids.
    pub(crate) fn pooled_width(&self, time_ids: usize) -> Option<usize> {
        self.config
            .added_width
            .checked_sub(time_ids * self.config.time_id_width)
    }

    /// Computes what a text means to each layer: `text` is `(tokens, width)`, `pooled` is `(1, pooled width)`; the time
    /// ids are sizes in pixels (and a refiner's score).
    pub(crate) fn condition(
        &self,
        text: &Tensor,
        pooled: &Tensor,
        time_ids: &[f32],
    ) -> Result<Conditioning> {
        let ids = self.sinusoids(time_ids, self.config.time_id_width)?;
        let added = self.added.forward(
            &Tensor::cat(&[pooled, &ids.reshape((1, ()))?], 1)?,
            &self.place,
        )?;
        let mut contexts = Vec::new();
        let mid = std::iter::once(&self.mid.1);
        let down = self
            .down
            .iter()
            .flat_map(|block| &block.layers)
            .filter_map(|(_, layer)| layer.as_ref());
        let up = self
            .up
            .iter()
            .flat_map(|block| &block.layers)
            .filter_map(|(_, layer)| layer.as_ref());
        for transformer in down.chain(mid).chain(up) {
            transformer.prepare(text, &mut contexts)?;
        }
        Ok(Conditioning { added, contexts })
    }

    /// The model's output for `latents` `(batch, height, width, channels)`, one timestep and conditioning a row.
    pub(crate) fn forward(
        &self,
        latents: &Tensor,
        timesteps: &[f32],
        rows: &[&Conditioning],
    ) -> Result<Tensor> {
        self.forward_watched(latents, timesteps, rows, &mut |_, _| {})
    }

    /// [`Unet::forward`], which shows each block's result to `watch` under diffusers' name for it. What is to be kept must be
    /// copied: the memory of what is shown serves later blocks.
    pub(crate) fn forward_watched(
        &self,
        latents: &Tensor,
        timesteps: &[f32],
        rows: &[&Conditioning],
        watch: &mut dyn FnMut(&str, &Tensor),
    ) -> Result<Tensor> {
        let time = self.embed(timesteps, rows)?;
        let time = activation::silu(self.place.fast, &time)?;
        let count = rows.iter().map(|row| row.contexts.len()).min().unwrap_or(0);
        let mut contexts =
            (0..count).map(|index| rows.iter().map(|row| &row.contexts[index]).collect());
        let mut x = self.conv_in.forward(latents)?;
        let mut skips = vec![x.clone()];
        for (index, block) in self.down.iter().enumerate() {
            for (resnet, transformer) in &block.layers {
                x = resnet.forward(&x, Some(&time))?;
                if let Some(transformer) = transformer {
                    x = spend(x, |x| transformer.forward(x, &mut contexts))?;
                }
                skips.push(x.clone());
            }
            if let Some(down) = &block.resample {
                x = down.forward(&x)?;
                skips.push(x.clone());
            }
            watch(&format!("down.{index}"), &x);
        }
        x = self.mid.0.forward(&x, Some(&time))?;
        x = spend(x, |x| self.mid.1.forward(x, &mut contexts))?;
        x = spend(x, |x| self.mid.2.forward(x, Some(&time)))?;
        watch("mid", &x);
        for (index, block) in self.up.iter().enumerate() {
            for (resnet, transformer) in &block.layers {
                let Some(skip) = skips.pop() else {
                    candle_core::bail!("more blocks go up than down")
                };
                // Nobody else looks at a skip any more.
                let both = spend(x, |x| spend(skip, |skip| Tensor::cat(&[x, skip], 3)))?;
                x = spend(both, |x| resnet.forward(x, Some(&time)))?;
                if let Some(transformer) = transformer {
                    x = spend(x, |x| transformer.forward(x, &mut contexts))?;
                }
            }
            if let Some(up) = &block.resample {
                x = spend(x, |x| up.forward(x))?;
            }
            watch(&format!("up.{index}"), &x);
        }
        spend(self.norm_out.forward_silu(&x)?, |x| {
            self.conv_out.forward(x)
        })
    }

    /// `(batch, time width)`.
    pub(crate) fn embed(&self, timesteps: &[f32], rows: &[&Conditioning]) -> Result<Tensor> {
        let time = self.time.forward(
            &self.sinusoids(timesteps, self.config.levels[0].channels)?,
            &self.place,
        )?;
        let added: Vec<&Tensor> = rows.iter().map(|row| &row.added).collect();
        time + Tensor::cat(&added, 0)?
    }

    /// `(values, width)`: sines and cosines of each value at frequencies from 1 down to 1 / `MAX_PERIOD`.
    fn sinusoids(&self, values: &[f32], width: usize) -> Result<Tensor> {
        let half = width / 2;
        let mut out = Vec::with_capacity(values.len() * width);
        for value in values {
            let angle = |index: usize| {
                let exponent =
                    -MAX_PERIOD.ln() * index as f32 / (half as f32 - self.config.frequency_shift);
                value * exponent.exp()
            };
            let sines = (0..half).map(|index| angle(index).sin());
            let cosines = (0..half).map(|index| angle(index).cos());
            if self.config.cos_first {
                out.extend(cosines.chain(sines));
            } else {
                out.extend(sines.chain(cosines));
            }
            out.extend(std::iter::repeat_n(0.0, width % 2));
        }
        self.place.tensor(out, &[values.len(), width])
    }
}

/// Shapes of the parts, from the configuration.
struct Build<'a> {
    config: &'a UnetConfig,
}

impl Build<'_> {
    fn resnet(&self) -> ResnetShape {
        ResnetShape {
            groups: self.config.groups,
            eps: self.config.eps,
            time: Some(self.config.time_width()),
        }
    }

    fn transformer(&self, channels: usize, heads: usize, layers: usize) -> Shape {
        let UnetConfig {
            context,
            groups,
            linear_projection,
            ..
        } = *self.config;
        Shape {
            channels,
            heads,
            layers,
            context,
            groups,
            linear_projection,
        }
    }

    fn layer(
        &self,
        scope: &Scope<'_>,
        index: usize,
        (input, output): (usize, usize),
        attention: Shape,
    ) -> std::result::Result<(Resnet, Option<Transformer>), LoadError> {
        let resnet = Resnet::load(&scope.pp("resnets").pp(index), input, output, self.resnet())?;
        let transformer = if attention.layers > 0 {
            Some(Transformer::load(
                &scope.pp("attentions").pp(index),
                attention,
            )?)
        } else {
            None
        };
        Ok((resnet, transformer))
    }

    fn down(&self, scope: &Scope<'_>) -> std::result::Result<Vec<Block>, LoadError> {
        let levels = &self.config.levels;
        let mut input = levels[0].channels;
        let mut blocks = Vec::new();
        for (index, level) in levels.iter().enumerate() {
            let scope = scope.pp(index);
            let attention = self.transformer(level.channels, level.heads, level.down_layers);
            let mut layers = Vec::new();
            for layer in 0..self.config.layers {
                layers.push(self.layer(&scope, layer, (input, level.channels), attention)?);
                input = level.channels;
            }
            let resample =
                if index + 1 < levels.len() {
                    Some(scope.pp("downsamplers").pp(0).pp("conv").conv3x3(
                        input,
                        input,
                        Kind::Down,
                    )?)
                } else {
                    None
                };
            blocks.push(Block { layers, resample });
        }
        Ok(blocks)
    }

    fn up(&self, scope: &Scope<'_>) -> std::result::Result<Vec<Block>, LoadError> {
        let levels = &self.config.levels;
        let mut before = levels[levels.len() - 1].channels;
        let mut blocks = Vec::new();
        for (index, level) in levels.iter().rev().enumerate() {
            let scope = scope.pp(index);
            // The last skip of a level comes from the level above it (or from the first convolution).
            let above = levels[(levels.len() - 1 - index).saturating_sub(1)].channels;
            let attention = self.transformer(level.channels, level.heads, level.up_layers);
            let mut layers = Vec::new();
            for layer in 0..=self.config.layers {
                let skip = if layer == self.config.layers {
                    above
                } else {
                    level.channels
                };
                let input = if layer == 0 { before } else { level.channels };
                layers.push(self.layer(
                    &scope,
                    layer,
                    (input + skip, level.channels),
                    attention,
                )?);
            }
            let resample = if index + 1 < levels.len() {
                Some(scope.pp("upsamplers").pp(0).pp("conv").conv3x3(
                    level.channels,
                    level.channels,
                    Kind::Up,
                )?)
            } else {
                None
            };
            before = level.channels;
            blocks.push(Block { layers, resample });
        }
        Ok(blocks)
    }
}
