//! What a forward pass takes in memory, from the shapes alone: a walk over the same blocks as [`Unet::forward`].

use super::config::Level;
use super::{Unet, UnetConfig};
use crate::ops::simd::PANEL;

/// Values a pixel and channel that live at a transformer's fullest moment, in its feed-forward: the input of the
/// transformer and of the block, queries, keys and values, two sums, the queries to the text, the gated layer's two
/// halves of four channels each, its product, and the result.
const TRANSFORMER: usize = 24;

/// Counts what lives.
#[derive(Debug, Default)]
struct Meter {
    live: usize,
    peak: usize,
}

impl Meter {
    /// `values` are kept from now on.
    fn keep(&mut self, values: usize) {
        self.live += values;
        self.peak = self.peak.max(self.live);
    }

    /// `values` lived for a while beside what is kept.
    fn pass(&mut self, values: usize) {
        self.peak = self.peak.max(self.live + values);
    }
}

/// Values that a residual block has at its fullest, beside its input.
pub(crate) fn resnet_values(input: usize, output: usize, pixels: usize) -> usize {
    let shortcut = if input == output { 0 } else { output };
    // Two norms, two results, and the second convolution's padded input.
    pixels * (input + 4 * output + shortcut)
}

impl Unet {
    /// Bytes that one pass over `rows` latents of `height × width` takes at its fullest, beside weights and jobs.
    pub(crate) fn pass_bytes(&self, rows: usize, height: usize, width: usize) -> u64 {
        let values = values(&self.config, rows * height * width);
        self.place
            .with_scratch(values as u64 * self.place.value_bytes())
    }

    /// Bytes of what one text of `tokens` tokens says to every layer.
    pub(crate) fn conditioning_bytes(&self, tokens: usize) -> u64 {
        let UnetConfig { levels, layers, .. } = &self.config;
        let blocks = |level: &Level, layers: usize| {
            // Keys are filled up to whole panels of tokens, values to whole panels of each head's channels.
            let keys = level.channels * tokens.next_multiple_of(PANEL);
            let depth = (level.channels / level.heads).next_multiple_of(PANEL);
            layers * (keys + level.heads * tokens * depth)
        };
        let levels_values: usize = (levels.iter())
            .map(|level| {
                blocks(level, level.down_layers * layers)
                    + blocks(level, level.up_layers * (layers + 1))
            })
            .sum();
        let mid = (levels.last()).map_or(0, |last| blocks(last, last.mid_layers));
        let values = levels_values + mid + self.config.time_width();
        values as u64 * self.place.value_bytes()
    }
}

fn values(config: &UnetConfig, pixels: usize) -> usize {
    let mut meter = Meter::default();
    let mut skips = Vec::new();
    let mut pixels = pixels;
    let first = config.levels[0].channels;
    meter.keep(pixels * (config.input + first));
    skips.push((first, pixels));
    let mut input = first;
    for (index, level) in config.levels.iter().enumerate() {
        for _ in 0..config.layers {
            layer(&mut meter, input, level.channels, pixels, level.down_layers);
            input = level.channels;
            meter.keep(pixels * input);
            skips.push((input, pixels));
        }
        if index + 1 < config.levels.len() {
            meter.pass(2 * pixels * input);
            pixels = pixels.div_ceil(4);
            meter.keep(pixels * input);
            skips.push((input, pixels));
        }
    }
    let last = config.levels[config.levels.len() - 1];
    layer(&mut meter, input, input, pixels, last.mid_layers);
    for (index, level) in config.levels.iter().rev().enumerate() {
        for _ in 0..=config.layers {
            let Some((skip, size)) = skips.pop() else {
                return meter.peak;
            };
            // The two are laid beside each other anew.
            meter.keep(pixels * (input + skip));
            layer(
                &mut meter,
                input + skip,
                level.channels,
                pixels,
                level.up_layers,
            );
            meter.live -= pixels * (input + skip) + size * skip;
            input = level.channels;
        }
        if index + 1 < config.levels.len() {
            meter.pass(9 * pixels * input);
            pixels *= 4;
        }
    }
    meter.peak
}

fn layer(meter: &mut Meter, input: usize, output: usize, pixels: usize, transformers: usize) {
    meter.pass(resnet_values(input, output, pixels));
    if transformers > 0 {
        meter.pass(pixels * output * TRANSFORMER);
    }
}
