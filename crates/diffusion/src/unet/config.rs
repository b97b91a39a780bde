//! `unet/config.json`.

use serde_json::Value;

use crate::config::Fields;
use crate::error::LoadError;
use crate::weights::sgm::Names;

/// `unet/config.json`, with one entry for each level of resolution.
#[derive(Clone, Debug)]
pub(crate) struct UnetConfig {
    /// Channels of the latents: what comes out.
    pub(crate) latent: usize,
    /// Channels of what goes in: the latents and, in a model for inpainting, a mask and the masked picture's latents.
    pub(crate) input: usize,
    /// Side of the latents that the model was trained on.
    pub(crate) sample_size: usize,
    pub(super) levels: Vec<Level>,
    pub(super) layers: usize,
    pub(super) groups: usize,
    pub(super) eps: f64,
    /// Width of the text's hidden states.
    pub(crate) context: usize,
    pub(super) linear_projection: bool,
    pub(super) cos_first: bool,
    pub(super) frequency_shift: f32,
    /// Channels into which each time id is embedded.
    pub(super) time_id_width: usize,
    /// Width of pooled text and embedded time ids together.
    pub(super) added_width: usize,
}

/// One level of resolution.
#[derive(Clone, Copy, Debug)]
pub(super) struct Level {
    pub(super) channels: usize,
    pub(super) heads: usize,
    /// Transformer layers; none where the level has no attention on that side.
    pub(super) down_layers: usize,
    pub(super) up_layers: usize,
    pub(super) mid_layers: usize,
}

impl UnetConfig {
    /// Reads and checks.
    pub(crate) fn read(mut fields: Fields) -> Result<Self, LoadError> {
        fields.only("_class_name", ["UNet2DConditionModel"])?;
        let channels = fields.sizes("block_out_channels", None)?;
        let count = channels.len();
        let down = attends(
            &mut fields,
            "down_block_types",
            "DownBlock2D",
            "CrossAttnDownBlock2D",
            count,
        )?;
        let up = attends(
            &mut fields,
            "up_block_types",
            "UpBlock2D",
            "CrossAttnUpBlock2D",
            count,
        )?;
        let transformers = fields.sizes("transformer_layers_per_block", Some(count))?;
        // diffusers named it wrongly once and kept it: attention_head_dim is the number of heads.
        let heads = match fields.take("num_attention_heads") {
            None => fields.sizes("attention_head_dim", Some(count))?,
            Some(value) => {
                return Err(fields.refuse("num_attention_heads", &value, "only null is supported"));
            }
        };
        for (channels, heads) in channels.iter().zip(&heads) {
            if channels % heads != 0 {
                return Err(fields.refuse(
                    "attention_head_dim",
                    &(*heads).into(),
                    "it must divide the channels",
                ));
            }
        }
        let levels = (0..count)
            .map(|index| Level {
                channels: channels[index],
                heads: heads[index],
                down_layers: if down[index] { transformers[index] } else { 0 },
                up_layers: if up[count - 1 - index] {
                    transformers[index]
                } else {
                    0
                },
                mid_layers: transformers[index],
            })
            .collect();
        let latent = fields.size_or("out_channels", 4)?;
        let input = fields.size_or("in_channels", 4)?;
        let with_mask = 2 * latent + 1;
        if input != latent && input != with_mask {
            let reason = format!("expected out_channels = {latent}, or {with_mask} to see a mask");
            return Err(fields.refuse("in_channels", &input.into(), &reason));
        }
        let config = Self {
            latent,
            input,
            sample_size: fields.size("sample_size")?,
            levels,
            layers: fields.layers("layers_per_block", Some(2))?,
            groups: fields.size_or("norm_num_groups", 32)?,
            eps: fields.number_or("norm_eps", 1e-5)?,
            context: fields.size("cross_attention_dim")?,
            linear_projection: fields.flag_or("use_linear_projection", false)?,
            cos_first: fields.flag_or("flip_sin_to_cos", true)?,
            frequency_shift: fields.number_or("freq_shift", 0.0)? as f32,
            time_id_width: fields.size("addition_time_embed_dim")?,
            added_width: fields.size("projection_class_embeddings_input_dim")?,
        };
        refuse_other_architectures(&mut fields)?;
        fields.finish()?;
        Ok(config)
    }

    /// What the tensors are called in a checkpoint of a single file.
    pub(super) fn names(&self) -> Names {
        let attends: Vec<bool> = (self.levels.iter())
            .map(|level| level.up_layers > 0)
            .collect();
        Names::unet(&attends, self.layers)
    }

    /// Channels of what lies beside the latents: none, or a mask and the masked picture's latents.
    pub(crate) fn beside(&self) -> usize {
        self.input - self.latent
    }

    /// Whether it is a model for inpainting.
    pub(crate) fn sees_mask(&self) -> bool {
        self.beside() > 0
    }

    /// Width of the time embedding.
    pub(super) fn time_width(&self) -> usize {
        4 * self.levels[0].channels
    }

    /// Latents along a side come in multiples of this.
    pub(crate) fn factor(&self) -> usize {
        1 << (self.levels.len() - 1)
    }
}

fn attends(
    fields: &mut Fields,
    key: &str,
    plain: &str,
    attention: &str,
    count: usize,
) -> Result<Vec<bool>, LoadError> {
    let names = fields.texts(key)?;
    if names.len() != count {
        let reason = format!("expected {count}, as in block_out_channels");
        return Err(fields.refuse(key, &names.into(), &reason));
    }
    (names.iter())
        .map(|name| match name {
            name if name == plain => Ok(false),
            name if name == attention => Ok(true),
            name => {
                let reason = format!("only {plain} and {attention} are supported");
                Err(fields.refuse(key, &Value::from(name.as_str()), &reason))
            }
        })
        .collect()
}

/// What other models of the same class have, and Stable Diffusion XL has not.
fn refuse_other_architectures(fields: &mut Fields) -> Result<(), LoadError> {
    match fields.take("addition_embed_type") {
        Some(Value::String(kind)) if kind == "text_time" => {}
        other => {
            let value = other.unwrap_or(Value::Null);
            return Err(fields.refuse(
                "addition_embed_type",
                &value,
                "only \"text_time\" is supported",
            ));
        }
    }
    fields.only("mid_block_type", ["UNetMidBlock2DCrossAttn"])?;
    fields.only("act_fn", ["silu", "swish"])?;
    fields.only("attention_type", ["default"])?;
    fields.only("time_embedding_type", ["positional"])?;
    fields.only("resnet_time_scale_shift", ["default"])?;
    fields.only("conv_in_kernel", [3])?;
    fields.only("conv_out_kernel", [3])?;
    fields.only("downsample_padding", [1])?;
    fields.only("mid_block_scale_factor", [1.0])?;
    fields.only("resnet_out_scale_factor", [1.0])?;
    for off in [
        "center_input_sample",
        "class_embeddings_concat",
        "cross_attention_norm",
        "dual_cross_attention",
        "mid_block_only_cross_attention",
        "only_cross_attention",
        "resnet_skip_time_act",
    ] {
        fields.only(off, [false])?;
    }
    for absent in [
        "class_embed_type",
        "encoder_hid_dim",
        "encoder_hid_dim_type",
        "num_class_embeds",
        "reverse_transformer_layers_per_block",
        "time_cond_proj_dim",
        "time_embedding_act_fn",
        "time_embedding_dim",
        "timestep_post_act",
    ] {
        if let Some(value) = fields.take(absent) {
            return Err(fields.refuse(absent, &value, "only null is supported"));
        }
    }
    // Training, or a choice of type that is f32 here in any case.
    fields.ignore(&[
        "addition_embed_type_num_heads",
        "dropout",
        "upcast_attention",
    ]);
    Ok(())
}
