//! `AutoencoderKL`: from pixels to latents and back. Source: `autoencoder_kl.py` and `vae.py` of diffusers.
//!
//! The decoder is read at load. The encoder is read when the first picture comes in: drawing from a text alone does
//! not need it, and it is as large as half the decoder (Stable Diffusion XL's takes 137 MB in f32, the demo model's
//! 2.6 MB). Its tensors are checked at load all the same, so that a folder which lacks one is refused then.

mod config;
mod decoder;
mod encoder;
mod mid;
mod tiled;

pub(crate) use config::VaeConfig;
use decoder::Decoder;
use encoder::Encoder;
pub(crate) use encoder::Posterior;
use tiled::Tiles;

use std::path::Path;
use std::sync::{Arc, OnceLock};

use candle_core::{DType, Device, Tensor};
use serde::{Deserialize, Serialize};

use crate::config::Fields;
use crate::error::{EncodeError, LoadError};
use crate::ops::Place;
use crate::resnet::ResnetShape;
use crate::weights::sgm::Names;
use crate::weights::{DIFFUSERS, Weights};

/// diffusers fixes this for the whole autoencoder.
const EPS: f64 = 1e-6;

/// Whether a picture larger than those that the model was trained on passes the autoencoder whole or in tiles.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Tiling {
    /// Whole, whatever memory that takes.
    #[default]
    Whole,
    /// In overlapping tiles of the size that it was trained on, as after `enable_vae_tiling()` in diffusers. That
    /// bounds the memory and changes the pixels a little.
    Tiles,
}

/// The autoencoder.
#[derive(Debug)]
pub(crate) struct Vae {
    config: VaeConfig,
    decoder: Decoder,
    encoder: OnceLock<Encoder>,
    /// Where the encoder is read from.
    weights: Arc<Weights>,
    place: Place,
}

impl Vae {
    /// Reads `folder`.
    pub(crate) fn load(folder: &Path, place: &Place) -> Result<(Self, Arc<Weights>), LoadError> {
        let config = VaeConfig::read(Fields::open(&folder.join("config.json"))?)?;
        let names = Names::vae(config.channels.len(), config.layers);
        let weights = Weights::open(folder, DIFFUSERS, names, place)?;
        let decoder = Decoder::load(&config, &weights.root())?;
        for (name, shape) in encoder::tensors(&config) {
            weights.root().check(&name, &shape)?;
        }
        let weights = Arc::new(weights);
        let vae = Self {
            config,
            decoder,
            encoder: OnceLock::new(),
            weights: Arc::clone(&weights),
            place: place.clone(),
        };
        Ok((vae, weights))
    }

    /// Bytes of the encoder's weights, read or not.
    pub(crate) fn encoder_bytes(&self) -> u64 {
        let tensors = encoder::tensors(&self.config);
        let values = |shape: &[usize]| shape.iter().product::<usize>() as u64;
        let count: u64 = tensors.iter().map(|(_, shape)| values(shape)).sum();
        count * size_of::<f32>() as u64
    }

    /// The configuration.
    pub(crate) fn config(&self) -> &VaeConfig {
        &self.config
    }

    /// Undoes the scaling under which the UNet works; `latents` is channels × pixels.
    pub(crate) fn unscale(&self, latents: &mut [f32]) {
        self.config.unscale(latents);
    }

    /// Scales the encoder's latents as the UNet expects them; `latents` is channels × pixels.
    pub(crate) fn scale(&self, latents: &mut [f32]) {
        self.config.scale(latents);
    }

    /// `(batch, height, width, latent channels)` to `(batch, factor · height, factor · width, 3)`, about -1 to 1. The
    /// pictures are decoded one after another: no batch takes more memory than one picture.
    pub(crate) fn decode(&self, latents: &Tensor, tiling: Tiling) -> candle_core::Result<Tensor> {
        let tiles = self.tiles(tiling, Tiles::of_latents)?;
        each(latents, |x| apply(tiles, x, |x| self.decoder.forward(x)))
    }

    /// What the latents of each picture of `(batch, height, width, 3)`, -1 to 1, may be: one answer a picture, which
    /// are encoded one after another.
    pub(crate) fn encode(
        &self,
        pixels: &Tensor,
        tiling: Tiling,
    ) -> Result<Vec<Posterior>, EncodeError> {
        let encoder = self.encoder()?;
        let tiles = self.tiles(tiling, Tiles::of_pixels)?;
        let moments = each(pixels, |x| apply(tiles, x, |x| encoder.forward(x)))?
            .permute((0, 3, 1, 2))?
            .to_device(&Device::Cpu)?
            .to_dtype(DType::F32)?
            .flatten_from(1)?
            .to_vec2()?;
        Ok(moments.into_iter().map(Posterior::new).collect())
    }

    fn tiles(
        &self,
        tiling: Tiling,
        of: impl Fn(&VaeConfig) -> Option<Tiles>,
    ) -> candle_core::Result<Option<Tiles>> {
        match (tiling, of(&self.config)) {
            (Tiling::Whole, _) => Ok(None),
            (Tiling::Tiles, Some(tiles)) => Ok(Some(tiles)),
            (Tiling::Tiles, None) => candle_core::bail!(
                "tiles of sample_size {} do not fit together at {} pixels a latent",
                self.config.sample_size,
                self.config.factor()
            ),
        }
    }

    fn encoder(&self) -> Result<&Encoder, LoadError> {
        if let Some(encoder) = self.encoder.get() {
            return Ok(encoder);
        }
        let encoder = Encoder::load(&self.config, &self.weights.root())?;
        // Of two threads that read it at once one does so in vain.
        Ok(self.encoder.get_or_init(|| encoder))
    }

    /// Where it computes.
    pub(crate) fn place(&self) -> &Place {
        &self.place
    }
}

/// `forward` of each picture of a batch.
fn each(
    batch: &Tensor,
    forward: impl Fn(&Tensor) -> candle_core::Result<Tensor>,
) -> candle_core::Result<Tensor> {
    let count = batch.dim(0)?;
    if count == 1 {
        return forward(batch);
    }
    let pictures = (0..count)
        .map(|index| forward(&batch.narrow(0, index, 1)?.contiguous()?))
        .collect::<candle_core::Result<Vec<_>>>()?;
    Tensor::cat(&pictures, 0)
}

fn apply(
    tiles: Option<Tiles>,
    picture: &Tensor,
    forward: impl Fn(&Tensor) -> candle_core::Result<Tensor>,
) -> candle_core::Result<Tensor> {
    let (_, height, width, _) = picture.dims4()?;
    match tiles.filter(|tiles| tiles.divide(height, width)) {
        Some(tiles) => tiles.apply(picture, forward),
        None => forward(picture),
    }
}

fn resnet_shape(config: &VaeConfig) -> ResnetShape {
    ResnetShape {
        groups: config.groups,
        eps: EPS,
        time: None,
    }
}

/// Channels of the highest and the lowest resolution.
fn ends(config: &VaeConfig) -> Result<(usize, usize), LoadError> {
    match (config.channels.first(), config.channels.last()) {
        (Some(&first), Some(&last)) => Ok((first, last)),
        _ => Err(LoadError::Config {
            file: "vae/config.json".into(),
            key: "block_out_channels".to_owned(),
            value: "[]".to_owned(),
            reason: "expected at least one".to_owned(),
        }),
    }
}

#[cfg(test)]
mod tests;
