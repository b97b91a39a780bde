//! The parts of a model's folder: whether they are there, fit each other, and what identifies them.

use std::path::Path;

use serde_json::Value;

use crate::clip::Clip;
use crate::config::{self, Fields};
use crate::error::LoadError;
use crate::sha256::Sha256;
use crate::tokenizer::Tokenizer;
use crate::unet::{TIME_IDS, Unet};
use crate::vae::Vae;
use crate::weights::Weights;

/// Checks `model_index.json`; answers whether a missing negative prompt means zeros.
pub(super) fn read_index(file: &Path) -> Result<bool, LoadError> {
    let mut index = Fields::open(file)?;
    match index.take("_class_name") {
        Some(Value::String(class)) if class == "StableDiffusionXLPipeline" => {}
        class => {
            let reason = "only StableDiffusionXLPipeline is supported";
            return Err(index.refuse("_class_name", &class.unwrap_or(Value::Null), reason));
        }
    }
    let parts = [
        ("text_encoder", "CLIPTextModel"),
        ("text_encoder_2", "CLIPTextModelWithProjection"),
        ("unet", "UNet2DConditionModel"),
        ("vae", "AutoencoderKL"),
    ];
    for (part, class) in parts {
        let found = index.take(part).unwrap_or(Value::Null);
        if found.get(1).and_then(Value::as_str) != Some(class) {
            return Err(index.refuse(part, &found, &format!("expected a {class}")));
        }
    }
    index.flag_or("force_zeros_for_empty_prompt", true)
}

/// Refuses parts that do not fit each other.
pub(super) fn check_fit(
    folder: &Path,
    encoders: [&Clip; 2],
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
    let width = encoders[0].config().width + encoders[1].config().width;
    if config.context != width {
        let reason = format!("the text encoders give hidden states of {width}");
        return Err(refuse("cross_attention_dim", config.context, reason));
    }
    let pooled = encoders[1].config().projection;
    if unet.pooled_width() != pooled {
        let reason = format!(
            "it must be projection_dim ({pooled:?}) and {TIME_IDS} addition_time_embed_dim"
        );
        return Err(refuse(
            "projection_class_embeddings_input_dim",
            unet.pooled_width().unwrap_or(0),
            reason,
        ));
    }
    if config.latent != vae.config().latent {
        let reason = format!("the VAE's latents have {} channels", vae.config().latent);
        return Err(refuse("in_channels", config.latent, reason));
    }
    if tokenizers[0].length() != tokenizers[1].length() {
        let reason = format!(
            "model_max_length is {} and that of the other tokenizer {}",
            tokenizers[1].length(),
            tokenizers[0].length()
        );
        return Err(LoadError::Tokenizer {
            folder: folder.join("tokenizer_2"),
            reason,
        });
    }
    Ok(())
}

/// Identity of the weights and of all that says how they are used.
pub(super) fn digest(folder: &Path, weights: &[&Weights]) -> Result<[u8; 32], LoadError> {
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
    files.extend(
        ["text_encoder", "text_encoder_2", "unet", "vae"]
            .map(|part| folder.join(part).join("config.json")),
    );
    for part in ["tokenizer", "tokenizer_2"] {
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
