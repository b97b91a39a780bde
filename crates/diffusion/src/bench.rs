//! Doors for `examples/bench.rs`: modules and operations one by one, with no promise to anybody else.

use std::path::Path;

use candle_core::{Device, Result, Tensor};

use crate::error::LoadError;
use crate::noise::Generator;
use crate::ops::attention::{self, Heads, KeyValue};
use crate::ops::conv::{Conv3x3, Kind};
use crate::ops::linear::Linear;
use crate::ops::norm::{GroupNorm, LayerNorm};
use crate::ops::{Place, activation};
use crate::unet::Conditioning;
use crate::{DType, unet, vae};

/// Original size, crop and target size of a base model.
const TIME_IDS: usize = 6;
/// Tokens of a text.
const TOKENS: usize = 77;

fn place() -> Place {
    Place::new(&Device::Cpu, DType::F32)
}

fn noise(shape: &[usize]) -> Result<Tensor> {
    let values = Generator::new(1).normal(shape.iter().product());
    Tensor::from_vec(values, shape, &Device::Cpu)
}

/// Weights small enough to keep sums near one.
fn weights(count: usize, inputs: usize) -> Vec<f32> {
    let mut values = Generator::new(2).normal(count);
    values.iter_mut().for_each(|x| *x /= (inputs as f32).sqrt());
    values
}

/// A UNet and rows for it, each with a text of its own.
pub struct Unet {
    unet: unet::Unet,
    latents: Tensor,
    rows: Vec<Conditioning>,
}

impl Unet {
    /// Reads a `unet` folder; latents are `side × side`.
    ///
    /// # Errors
    ///
    /// As [`crate::Model::load`].
    pub fn load(folder: &Path, rows: usize, side: usize) -> std::result::Result<Self, LoadError> {
        let (unet, _) = unet::Unet::load(folder, &place())?;
        let made = |source| LoadError::Place {
            component: folder.into(),
            source,
        };
        let config = unet.config();
        let latents = noise(&[rows, side, side, config.latent]).map_err(made)?;
        let text = noise(&[TOKENS, config.context]).map_err(made)?;
        let pooled = noise(&[1, unet.pooled_width(TIME_IDS).unwrap_or(0)]).map_err(made)?;
        let rows = (0..rows)
            .map(|_| unet.condition(&text, &pooled, &[512.0; TIME_IDS]))
            .collect::<Result<_>>()
            .map_err(made)?;
        Ok(Self {
            unet,
            latents,
            rows,
        })
    }

    /// One forward pass of all rows.
    ///
    /// # Errors
    ///
    /// As candle's.
    pub fn step(&self) -> Result<()> {
        let rows: Vec<&Conditioning> = self.rows.iter().collect();
        let timesteps = vec![500.0; rows.len()];
        self.unet.forward(&self.latents, &timesteps, &rows)?;
        Ok(())
    }
}

/// A decoder and latents for it.
pub struct Vae {
    vae: vae::Vae,
    latents: Tensor,
}

impl Vae {
    /// Reads a `vae` folder; the picture is `side × side` pixels.
    ///
    /// # Errors
    ///
    /// As [`crate::Model::load`].
    pub fn load(folder: &Path, side: usize) -> std::result::Result<Self, LoadError> {
        let (vae, _) = vae::Vae::load(folder, &place())?;
        let side = side / vae.config().factor();
        let latents = noise(&[1, side, side, vae.config().latent]);
        let latents = latents.map_err(|source| LoadError::Place {
            component: folder.into(),
            source,
        })?;
        Ok(Self { vae, latents })
    }

    /// Decodes.
    ///
    /// # Errors
    ///
    /// As candle's.
    pub fn decode(&self) -> Result<()> {
        self.vae.decode(&self.latents, vae::Tiling::Whole)?;
        Ok(())
    }
}

/// An operation on random values.
pub struct Case {
    /// As `scripts/bench/peer.py` calls it.
    pub name: String,
    /// Does it once.
    pub run: Box<dyn Fn() -> Result<Tensor>>,
}

fn case(name: String, run: impl Fn() -> Result<Tensor> + 'static) -> Case {
    Case {
        name,
        run: Box::new(run),
    }
}

/// Gives buffers that are kept for the next pass back to the system, so that what a pass takes can be seen from outside.
pub fn forget_buffers() {
    crate::ops::pool::empty();
}

/// The operations that a step and a decode are made of, at shapes that they have there.
///
/// # Errors
///
/// As candle's.
pub fn cases() -> Result<Vec<Case>> {
    let mut all = Vec::new();
    for (input, output, side) in [
        (4, 64, 64),
        (64, 64, 64),
        (128, 128, 32),
        (256, 256, 16),
        (320, 320, 64),
        (512, 512, 64),
        (128, 128, 256),
        (128, 3, 256),
    ] {
        all.push(conv(input, output, side, Kind::Same)?);
    }
    all.push(conv(128, 128, 64, Kind::Down)?);
    all.push(conv(128, 128, 32, Kind::Up)?);
    norms(&mut all)?;
    activations(&mut all)?;
    attentions(&mut all)?;
    for (rows, input, output) in [
        (2, 1280, 1280),
        (77, 2048, 1280),
        (1024, 640, 640),
        (4096, 320, 2560),
    ] {
        let layer = Linear::new(
            weights(input * output, input),
            Some(weights(output, 1)),
            input,
            output,
            &place(),
        )?;
        let x = noise(&[1, rows, input])?;
        let name = format!("linear {rows}x{input}>{output}");
        all.push(case(name, move || layer.forward(&x)));
    }
    Ok(all)
}

fn conv(input: usize, output: usize, side: usize, kind: Kind) -> Result<Case> {
    let layer = Conv3x3::new(
        weights(9 * input * output, 9 * input),
        weights(output, 1),
        input,
        output,
        kind,
        &place(),
    )?;
    let x = noise(&[1, side, side, input])?;
    let name = match kind {
        Kind::Same => "conv",
        Kind::Down | Kind::DownPadEnd => "conv_down",
        Kind::Up => "conv_up",
    };
    Ok(case(
        format!("{name} {side}x{side} {input}>{output}"),
        move || layer.forward(&x),
    ))
}

fn norms(all: &mut Vec<Case>) -> Result<()> {
    for (channels, side) in [(64, 64), (320, 64), (128, 256)] {
        for silu in [false, true] {
            let norm = GroupNorm::new(vec![1.0; channels], vec![0.0; channels], 32, 1e-5, &place());
            let x = noise(&[1, side, side, channels])?;
            let name = if silu {
                "group_norm_silu"
            } else {
                "group_norm"
            };
            let run = move || {
                if silu {
                    norm.forward_silu(&x)
                } else {
                    norm.forward(&x)
                }
            };
            all.push(case(format!("{name} {side}x{side}x{channels}"), run));
        }
    }
    let norm = LayerNorm::new(vec![1.0; 320], vec![0.0; 320], 1e-5, &place());
    let x = noise(&[1, 4096, 320])?;
    all.push(case("layer_norm 4096x320".to_owned(), move || {
        norm.forward(&x)
    }));
    Ok(())
}

fn activations(all: &mut Vec<Case>) -> Result<()> {
    let fast = place().fast;
    let x = noise(&[1, 1 << 20])?;
    let y = x.clone();
    all.push(case("silu 1048576".to_owned(), move || {
        activation::silu(fast, &x)
    }));
    all.push(case("gelu 1048576".to_owned(), move || {
        activation::gelu(fast, &y)
    }));
    let x = noise(&[1, 1024, 2560])?;
    all.push(case("geglu 1024x2560".to_owned(), move || {
        activation::geglu(fast, &x)
    }));
    Ok(())
}

fn attentions(all: &mut Vec<Case>) -> Result<()> {
    let fast = place().fast;
    for (tokens, count, depth) in [(256, 10, 64), (4096, 1, 64), (4096, 1, 512)] {
        let qkv = noise(&[1, tokens, 3 * count * depth])?;
        let heads = Heads {
            count,
            causal: false,
        };
        let name = format!("attention {tokens} {count}x{depth}");
        all.push(case(name, move || attention::own(fast, &qkv, heads)));
    }
    let (count, channels) = (5, 320);
    let queries = noise(&[1, 4096, channels])?;
    let text = noise(&[TOKENS, channels])?;
    let context = KeyValue::new(fast, &text, &text, count)?;
    let heads = Heads {
        count,
        causal: false,
    };
    all.push(case("attention_text 4096 5x64".to_owned(), move || {
        attention::cross(fast, &queries, &[&context], heads)
    }));
    Ok(())
}
