//! `vae/config.json`.

use crate::config::Fields;
use crate::error::LoadError;

/// `vae/config.json`.
#[derive(Clone, Debug)]
pub(crate) struct VaeConfig {
    pub(super) channels: Vec<usize>,
    /// Channels of the latents.
    pub(crate) latent: usize,
    pub(super) layers: usize,
    pub(super) groups: usize,
    /// Side of the pictures that it was trained on, in pixels: the side of a tile.
    pub(super) sample_size: usize,
    scaling_factor: f32,
    moments: Option<Moments>,
    pub(super) quant: bool,
    pub(super) post_quant: bool,
    pub(super) mid_attention: bool,
}

impl VaeConfig {
    /// Reads and checks.
    pub(crate) fn read(mut fields: Fields) -> Result<Self, LoadError> {
        fields.only("_class_name", ["AutoencoderKL"])?;
        let levels = blocks(&mut fields, "up_block_types", "UpDecoderBlock2D")?;
        let downs = blocks(&mut fields, "down_block_types", "DownEncoderBlock2D")?;
        if downs != levels {
            let reason = format!("expected {levels}, as in up_block_types");
            return Err(fields.refuse("down_block_types", &downs.into(), &reason));
        }
        let latent = fields.size_or("latent_channels", 4)?;
        let config = Self {
            channels: fields.sizes("block_out_channels", Some(levels))?,
            latent,
            layers: fields.layers("layers_per_block", Some(1))?,
            groups: fields.size_or("norm_num_groups", 32)?,
            sample_size: fields.size_or("sample_size", 32)?,
            scaling_factor: fields.number_or("scaling_factor", 0.18215)? as f32,
            moments: moments(&mut fields, latent)?,
            quant: fields.flag_or("use_quant_conv", true)?,
            post_quant: fields.flag_or("use_post_quant_conv", true)?,
            mid_attention: fields.flag_or("mid_block_add_attention", true)?,
        };
        fields.only("in_channels", [3])?;
        fields.only("out_channels", [3])?;
        fields.only("act_fn", ["silu", "swish"])?;
        // diffusers' pipeline for this architecture does not read it, so a model that has one expects another.
        fields.only("shift_factor", [0.0])?;
        // Of where to compute: everything here is in f32 where it must be.
        fields.ignore(&["force_upcast"]);
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

    /// From the encoder's latents to those that the UNet works on; `latents` is channels × pixels. Source:
    /// `prepare_latents` of `pipeline_stable_diffusion_xl_img2img.py`.
    pub(super) fn scale(&self, latents: &mut [f32]) {
        let factor = self.scaling_factor;
        self.by_channel(latents, |x, moments| match moments {
            Some((mean, deviation)) => (x - mean) * factor / deviation,
            None => x * factor,
        });
    }

    /// The way back: undoes the scaling under which the UNet works.
    pub(super) fn unscale(&self, latents: &mut [f32]) {
        let factor = self.scaling_factor;
        self.by_channel(latents, |x, moments| match moments {
            Some((mean, deviation)) => x * deviation / factor + mean,
            None => x / factor,
        });
    }

    fn by_channel(&self, latents: &mut [f32], map: impl Fn(f32, Option<(f32, f32)>) -> f32) {
        let plane = (latents.len() / self.latent).max(1);
        for (channel, values) in latents.chunks_mut(plane).enumerate() {
            let moments = self.moments.as_ref();
            let moments = moments.map(|(mean, deviation)| (mean[channel], deviation[channel]));
            values.iter_mut().for_each(|x| *x = map(*x, moments));
        }
    }
}

/// The number of blocks, all of the one kind that there is.
fn blocks(fields: &mut Fields, key: &str, kind: &str) -> Result<usize, LoadError> {
    let names = fields.texts(key)?;
    match names.iter().find(|name| *name != kind) {
        Some(other) => {
            let reason = format!("only {kind} is supported");
            Err(fields.refuse(key, &other.as_str().into(), &reason))
        }
        None => Ok(names.len()),
    }
}

/// Mean and deviation of each channel.
type Moments = (Vec<f32>, Vec<f32>);

fn moments(fields: &mut Fields, latent: usize) -> Result<Option<Moments>, LoadError> {
    let (mean, deviation) = (
        fields.numbers("latents_mean")?,
        fields.numbers("latents_std")?,
    );
    match (mean, deviation) {
        (Some(mean), Some(deviation)) if mean.len() == latent && deviation.len() == latent => {
            let narrow = |all: Vec<f64>| all.into_iter().map(|x| x as f32).collect();
            Ok(Some((narrow(mean), narrow(deviation))))
        }
        (None, None) => Ok(None),
        (mean, _) => {
            let reason =
                "latents_mean and latents_std go together, one value for each of latent_channels";
            Err(fields.refuse("latents_mean", &format!("{mean:?}").into(), reason))
        }
    }
}
