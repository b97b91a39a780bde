//! CLIP text encoders, as Stable Diffusion XL uses them: the hidden states before the last layer, and of the second
//! encoder the projected state at the end of the text.
//!
//! Source: `modeling_clip.py` of transformers.

use std::path::Path;

use candle_core::{Result, Tensor};

use crate::config::Fields;
use crate::error::LoadError;
use crate::ops::activation;
use crate::ops::attention::{self, Heads};
use crate::ops::embedding::Table;
use crate::ops::linear::Linear;
use crate::ops::norm::LayerNorm;
use crate::ops::{Fast, Place};
use crate::weights::sgm::Names;
use crate::weights::{Scope, TEXT_ENCODER, Weights};

/// Configurations with this end-of-text id come from before transformers fixed it: the end is then the highest id.
const MISTAKEN_END: u32 = 2;

#[derive(Clone, Copy, Debug)]
enum Activation {
    QuickGelu,
    Gelu,
}

/// `config.json` of a text encoder.
#[derive(Clone, Debug)]
pub(crate) struct ClipConfig {
    vocabulary: usize,
    /// Positions: the longest text, in tokens.
    pub(crate) positions: usize,
    /// Width of the hidden states.
    pub(crate) width: usize,
    inner: usize,
    layers: usize,
    heads: usize,
    eps: f64,
    activation: Activation,
    end: u32,
    /// Width of the projected state, if the encoder projects.
    pub(crate) projection: Option<usize>,
}

impl ClipConfig {
    /// Reads and checks; `projects` says whether the encoder is one with a projection.
    pub(crate) fn read(mut fields: Fields, projects: bool) -> std::result::Result<Self, LoadError> {
        let activations = [
            ("quick_gelu", Activation::QuickGelu),
            ("gelu", Activation::Gelu),
        ];
        let projection = fields.size_or("projection_dim", 512)?;
        let config = Self {
            vocabulary: fields.size("vocab_size")?,
            positions: fields.size_or("max_position_embeddings", 77)?,
            width: fields.size("hidden_size")?,
            inner: fields.size("intermediate_size")?,
            layers: fields.layers("num_hidden_layers", None)?,
            heads: fields.size("num_attention_heads")?,
            eps: fields.number_or("layer_norm_eps", 1e-5)?,
            activation: fields.choice("hidden_act", &activations)?,
            end: fields.count_or("eos_token_id", 49_407)? as u32,
            projection: projects.then_some(projection),
        };
        if !config.width.is_multiple_of(config.heads) {
            return Err(fields.refuse(
                "num_attention_heads",
                &config.heads.into(),
                "it must divide hidden_size",
            ));
        }
        fields.ignore(&[
            "architectures",
            "attention_dropout",
            "bos_token_id",
            "dropout",
            "dtype",
            "initializer_factor",
            "initializer_range",
            "model_type",
            "pad_token_id",
            "torch_dtype",
            "transformers_version",
        ]);
        fields.finish()?;
        Ok(config)
    }
}

/// A text encoder.
#[derive(Debug)]
pub(crate) struct Clip {
    config: ClipConfig,
    tokens: Table,
    positions: Table,
    layers: Vec<Layer>,
    /// Final norm and projection, where there is one.
    projection: Option<(LayerNorm, Linear)>,
    place: Place,
}

/// What an encoder says about a text.
#[derive(Clone, Debug)]
pub(crate) struct Encoded {
    /// `(tokens, width)`: the states before the last layer.
    pub(crate) hidden: Tensor,
    /// `(1, projection)`, from an encoder that projects.
    pub(crate) pooled: Option<Tensor>,
}

impl Clip {
    /// Reads `folder`.
    pub(crate) fn load(
        folder: &Path,
        projects: bool,
        place: &Place,
    ) -> std::result::Result<(Self, Weights), LoadError> {
        let config = ClipConfig::read(Fields::open(&folder.join("config.json"))?, projects)?;
        let names = if projects {
            Names::second_encoder(config.layers)
        } else {
            Names::first_encoder()
        };
        let weights = Weights::open(folder, TEXT_ENCODER, names, place)?;
        let clip = Self::from_weights(config, &weights.root())?;
        Ok((clip, weights))
    }

    fn from_weights(config: ClipConfig, root: &Scope<'_>) -> std::result::Result<Self, LoadError> {
        // Since version 5 transformers writes an encoder without a projection under no name of its own.
        let text = if root.has("embeddings.token_embedding.weight") {
            root.clone()
        } else {
            root.pp("text_model")
        };
        let place = root.place().clone();
        let embedding =
            |name: &str, rows: usize| text.pp("embeddings").pp(name).embedding(rows, config.width);
        // Without a projection nothing reads past the states before the last layer.
        let layers = if config.projection.is_some() {
            config.layers
        } else {
            config.layers - 1
        };
        Ok(Self {
            tokens: embedding("token_embedding", config.vocabulary)?,
            positions: embedding("position_embedding", config.positions)?,
            layers: (0..layers)
                .map(|index| Layer::load(&config, &text.pp("encoder").pp("layers").pp(index)))
                .collect::<std::result::Result<_, _>>()?,
            projection: match config.projection {
                Some(width) => Some((
                    text.pp("final_layer_norm")
                        .layer_norm(config.width, config.eps)?,
                    root.pp("text_projection")
                        .linear_no_bias(config.width, width)?,
                )),
                None => None,
            },
            place,
            config,
        })
    }

    /// The configuration.
    pub(crate) fn config(&self) -> &ClipConfig {
        &self.config
    }

    /// Encodes one text's tokens.
    pub(crate) fn encode(&self, ids: &[u32]) -> Result<Encoded> {
        let places: Vec<u32> = (0..ids.len() as u32).collect();
        let (tokens, positions) = (self.tokens.look_up(ids)?, self.positions.look_up(&places)?);
        let mut x = (tokens + positions)?.unsqueeze(0)?;
        let mut hidden = x.clone();
        for (index, layer) in self.layers.iter().enumerate() {
            x = layer.forward(&x, &self.config, self.place.fast)?;
            if index + 2 == self.config.layers {
                hidden = x.clone();
            }
        }
        let pooled = match &self.projection {
            None => None,
            Some((norm, projection)) => {
                let end = x.narrow(1, self.end_of(ids), 1)?.squeeze(1)?;
                Some(projection.forward(&norm.forward(&end)?)?)
            }
        };
        Ok(Encoded {
            hidden: hidden.squeeze(0)?,
            pooled,
        })
    }

    fn end_of(&self, ids: &[u32]) -> usize {
        if self.config.end == MISTAKEN_END {
            // The first of the highest.
            let highest = ids.iter().copied().max().unwrap_or(0);
            return ids.iter().position(|id| *id == highest).unwrap_or(0);
        }
        ids.iter()
            .position(|id| *id == self.config.end)
            .unwrap_or(0)
    }
}

#[derive(Debug)]
struct Layer {
    before_attention: LayerNorm,
    qkv: Linear,
    out: Linear,
    before_mlp: LayerNorm,
    widen: Linear,
    narrow: Linear,
}

impl Layer {
    fn load(config: &ClipConfig, scope: &Scope<'_>) -> std::result::Result<Self, LoadError> {
        let (width, inner) = (config.width, config.inner);
        let attention = scope.pp("self_attn");
        Ok(Self {
            before_attention: scope.pp("layer_norm1").layer_norm(width, config.eps)?,
            qkv: attention.linears(&["q_proj", "k_proj", "v_proj"], width, width)?,
            out: attention.pp("out_proj").linear(width, width)?,
            before_mlp: scope.pp("layer_norm2").layer_norm(width, config.eps)?,
            widen: scope.pp("mlp").pp("fc1").linear(width, inner)?,
            narrow: scope.pp("mlp").pp("fc2").linear(inner, width)?,
        })
    }

    fn forward(&self, x: &Tensor, config: &ClipConfig, fast: Fast) -> Result<Tensor> {
        let qkv = self.qkv.forward(&self.before_attention.forward(x)?)?;
        let seen = attention::own(
            fast,
            &qkv,
            Heads {
                count: config.heads,
                causal: true,
            },
        )?;
        let x = self.out.forward_add(&seen, Some(x))?;
        let wide = self.widen.forward(&self.before_mlp.forward(&x)?)?;
        let wide = match config.activation {
            Activation::QuickGelu => activation::quick_gelu(fast, &wide)?,
            Activation::Gelu => activation::gelu(fast, &wide)?,
        };
        self.narrow.forward_add(&wide, Some(&x))
    }
}
