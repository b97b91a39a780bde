//! The parts of a model's folder: whether they are there, fit each other, and what identifies them.

use std::path::Path;

use serde_json::Value;

use crate::clip::Clip;
use crate::config::{self, Fields};
use crate::error::LoadError;
use crate::sha256::Sha256;
use crate::tokenizer::Tokenizer;
use crate::unet::Unet;
use crate::vae::Vae;
use crate::weights::Weights;

/// `model_index.json`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Index {
    /// Whether a request without a negative prompt is led away from zeros rather than from an empty text.
    pub(super) zeros_for_no_prompt: bool,
    /// Whether the UNet is told an aesthetic score instead of a target size (`requires_aesthetics_score`): a refiner.
    pub(super) refines: bool,
    /// Whether both text encoders are there, or only the second.
    both: bool,
}

impl Index {
    /// Reads and checks.
    pub(super) fn read(file: &Path) -> Result<Self, LoadError> {
        let mut index = Fields::open(file)?;
        let classes = [
            "StableDiffusionXLPipeline",
            "StableDiffusionXLImg2ImgPipeline",
            "StableDiffusionXLInpaintPipeline",
        ];
        match index.take("_class_name") {
            Some(Value::String(class)) if classes.contains(&class.as_str()) => {}
            class => {
                let reason = format!("only {} are supported", classes.join(", "));
                return Err(index.refuse("_class_name", &class.unwrap_or(Value::Null), &reason));
            }
        }
        let first = index.take("text_encoder").unwrap_or(Value::Null);
        let both = !is_absent(&first);
        if both {
            expect(&index, "text_encoder", &first, "CLIPTextModel")?;
        }
        for (part, class) in [
            ("text_encoder_2", "CLIPTextModelWithProjection"),
            ("unet", "UNet2DConditionModel"),
            ("vae", "AutoencoderKL"),
        ] {
            let found = index.take(part).unwrap_or(Value::Null);
            expect(&index, part, &found, class)?;
        }
        Ok(Self {
            zeros_for_no_prompt: index.flag_or("force_zeros_for_empty_prompt", true)?,
            refines: index.flag_or("requires_aesthetics_score", false)?,
            both,
        })
    }

    /// The folder of each text encoder, and whether it has a projection.
    pub(super) fn encoders(self) -> impl Iterator<Item = (&'static str, bool)> {
        let first = self.both.then_some(("text_encoder", false));
        first.into_iter().chain([("text_encoder_2", true)])
    }

    /// The folders of both tokenizers; of the second twice where there is no other.
    pub(super) fn tokenizers(self) -> [&'static str; 2] {
        [
            if self.both {
                "tokenizer"
            } else {
                "tokenizer_2"
            },
            "tokenizer_2",
        ]
    }

    /// How many numbers the UNet is told of the picture.
    pub(super) fn time_ids(self) -> usize {
        // Original size, crop, and either the target size or the score.
        if self.refines { 5 } else { 6 }
    }
}

/// diffusers writes a part that is not there as two nulls.
fn is_absent(part: &Value) -> bool {
    match part {
        Value::Array(names) => names.iter().all(Value::is_null),
        part => part.is_null(),
    }
}

fn expect(index: &Fields, part: &str, found: &Value, class: &str) -> Result<(), LoadError> {
    if found.get(1).and_then(Value::as_str) == Some(class) {
        return Ok(());
    }
    Err(index.refuse(part, found, &format!("expected a {class}")))
}

/// Refuses parts that do not fit each other.
pub(super) fn check_fit(
    folder: &Path,
    index: Index,
    encoders: &[Clip],
    tokenizers: &[Tokenizer; 2],
    unet: &Unet,
    vae: &Vae,
) -> Result<(), LoadError> {
    let refuse = |key: &str, value: usize, reason: String| LoadError::Config {
        file: folder.join("unet").join("config.json"),
        key: key.to_owned(),
        value: value.to_string(),
        reason,
    };
    let config = unet.config();
    let width: usize = encoders.iter().map(|encoder| encoder.config().width).sum();
    if config.context != width {
        let reason = format!("the text encoders give hidden states of {width}");
        return Err(refuse("cross_attention_dim", config.context, reason));
    }
    let pooled = encoders.last().and_then(|last| last.config().projection);
    let ids = index.time_ids();
    if unet.pooled_width(ids) != pooled {
        let reason = format!(
            "it must be projection_dim ({pooled:?}) and {ids} addition_time_embed_dim, as \
             requires_aesthetics_score says"
        );
        return Err(refuse(
            "projection_class_embeddings_input_dim",
            unet.pooled_width(ids).unwrap_or(0),
            reason,
        ));
    }
    if config.latent != vae.config().latent {
        let reason = format!("the VAE's latents have {} channels", vae.config().latent);
        return Err(refuse("out_channels", config.latent, reason));
    }
    let [first, second] = tokenizers;
    if first.length() != second.length() {
        let reason = format!(
            "model_max_length is {} and that of the other tokenizer {}",
            second.length(),
            first.length()
        );
        return Err(LoadError::Tokenizer {
            folder: folder.join("tokenizer_2"),
            reason,
        });
    }
    Ok(())
}

/// Identity of the weights and of all that says how they are used.
pub(super) fn digest(
    folder: &Path,
    index: Index,
    weights: &[&Weights],
) -> Result<[u8; 32], LoadError> {
    let mut sha = Sha256::new();
    let mut feed = |bytes: &[u8]| {
        sha.update(&(bytes.len() as u64).to_le_bytes());
        sha.update(bytes);
    };
    let tokenizer = ["vocab.json", "merges.txt", "tokenizer_config.json"];
    let mut files = vec![
        folder.join("model_index.json"),
        folder.join("scheduler").join("scheduler_config.json"),
    ];
    let parts = (index.encoders().map(|(encoder, _)| encoder)).chain(["unet", "vae"]);
    files.extend(parts.map(|part| folder.join(part).join("config.json")));
    for part in index.tokenizers() {
        files.extend(tokenizer.map(|name| folder.join(part).join(name)));
    }
    for file in files {
        feed(&config::read(&file)?);
    }
    for weights in weights {
        weights.identify(&mut feed)?;
    }
    Ok(sha.finish())
}
