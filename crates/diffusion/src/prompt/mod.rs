//! Prompts, from a text to what the UNet is told: cut into as many chunks as it needs, its words weighted.
//!
//! The scheme is AUTOMATIC1111's (`modules/prompt_parser.py` and `modules/sd_hijack_clip.py` of stable-diffusion-webui
//! 1.10), because it is the one that people write prompts for. Of its ways to weight it is *No norm*, of which it says
//! itself that it "seems to work better for SDXL": a token's hidden states are multiplied by its weight, in both encoders,
//! and the mean of all hidden states is *not* restored afterwards. The pooled state is that of the first chunk, without weights.
//!
//! It differs where the original surprises: `BREAK` works inside brackets too, a backslash that escapes nothing stays,
//! a weight that is not a number (`1.2.3`) is text instead of an error, and a weight that is below 0 or above 10 is
//! an error. The two encoders are cut at the same places even where their tokenizers cut words differently.

mod chunks;
mod syntax;

use std::fmt;
use std::str::FromStr;

use candle_core::{DType, Tensor};
use serde::{Deserialize, Serialize};

use crate::clip::Clip;
use crate::error::BeginError;
use crate::sha256::Sha256;
use crate::tokenizer::Tokenizer;

/// The most chunks of a prompt: 8 of 75 tokens. Each costs a pass of the encoders, and 77 keys in every attention to the
/// text.
pub(crate) const MAX_CHUNKS: usize = 8;
/// The most brackets that may be open at a place.
pub(crate) const MAX_DEPTH: usize = 32;
/// The largest weight that a word may end up with; the smallest is 0.
pub(crate) const MAX_WEIGHT: f32 = 10.0;

/// How a prompt is read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PromptSyntax {
    /// As it stands, as far as the encoders see: `plain`.
    #[default]
    Plain,
    /// As AUTOMATIC1111's web UI reads it, as long as it is (up to 8 chunks of 75 tokens): `weighted`.
    ///
    /// `(word)` weighs 1.1, `[word]` 1/1.1 and `(word:1.3)` 1.3; brackets nest and their weights multiply, to 0 to 10.
    /// `\(`, `\)`, `\[`, `\]` and `\\` are those characters. `BREAK` begins a new chunk.
    Weighted,
}

impl PromptSyntax {
    /// Every syntax.
    pub const ALL: [PromptSyntax; 2] = [Self::Plain, Self::Weighted];

    fn name(self) -> &'static str {
        match self {
            Self::Plain => "plain",
            Self::Weighted => "weighted",
        }
    }
}

impl fmt::Display for PromptSyntax {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A name that is no syntax's.
#[derive(Debug, thiserror::Error)]
#[error("no prompt syntax is called {0:?}; there are plain and weighted")]
pub struct UnknownSyntax(String);

impl FromStr for PromptSyntax {
    type Err = UnknownSyntax;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        Self::ALL
            .into_iter()
            .find(|syntax| syntax.name() == name)
            .ok_or_else(|| UnknownSyntax(name.to_owned()))
    }
}

/// A prompt as both encoders take it in: at least one chunk.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Prompt {
    chunks: Vec<[Chunk; 2]>,
}

/// What one encoder sees in one pass: as many tokens as it has positions, start, end and padding included.
#[derive(Clone, Debug, PartialEq)]
struct Chunk {
    ids: Vec<u32>,
    /// One a token; those of start, end and padding are 1.
    weights: Vec<f32>,
}

impl Chunk {
    fn unweighted(ids: Vec<u32>) -> Self {
        let weights = vec![1.0; ids.len()];
        Self { ids, weights }
    }

    fn is_weighted(&self) -> bool {
        self.weights.iter().any(|weight| *weight != 1.0)
    }
}

/// Reads `text`, which is the request's `field`, for both encoders.
///
/// No text is a mistake: what is not syntax stands for itself.
///
/// # Errors
///
/// A weighted prompt beyond [`MAX_CHUNKS`], [`MAX_DEPTH`] or [`MAX_WEIGHT`]: names the field and the limit.
pub(crate) fn read(
    tokenizers: &[Tokenizer; 2],
    field: &'static str,
    text: &str,
    syntax: PromptSyntax,
) -> Result<Prompt, BeginError> {
    let refused = |limit: Limit| limit.error(field);
    match syntax {
        PromptSyntax::Plain => {
            let chunk = |tokenizer: &Tokenizer| tokenizer.encode(text).map(Chunk::unweighted);
            Ok(Prompt {
                chunks: vec![both(tokenizers, chunk).map_err(tokenize)?],
            })
        }
        PromptSyntax::Weighted => {
            let spans = syntax::parse(text).map_err(refused)?;
            chunks::cut(tokenizers, &spans).map_err(|stop| match stop {
                chunks::Stop::Limit(limit) => refused(limit),
                chunks::Stop::Tokenizer(reason) => tokenize(reason),
            })
        }
    }
}

fn both<T>(
    tokenizers: &[Tokenizer; 2],
    each: impl Fn(&Tokenizer) -> Result<T, String>,
) -> Result<[T; 2], String> {
    Ok([each(&tokenizers[0])?, each(&tokenizers[1])?])
}

fn tokenize(reason: String) -> BeginError {
    BeginError::Tokenize { reason }
}

impl Prompt {
    /// Passes of each encoder that it takes.
    pub(crate) fn chunks(&self) -> usize {
        self.chunks.len()
    }

    /// The same prompt with empty chunks behind, `count` in all. A prompt and what it is led away from have the same
    /// number.
    pub(crate) fn padded(mut self, count: usize, tokenizers: &[Tokenizer; 2]) -> Self {
        let empty = [&tokenizers[0], &tokenizers[1]]
            .map(|tokenizer| Chunk::unweighted(tokenizer.frame(&[])));
        let count = count.max(self.chunks.len());
        self.chunks.resize(count, empty);
        self
    }

    /// Distinguishes what a model's encoders make of prompts.
    pub(crate) fn digest(&self) -> [u8; 32] {
        let mut sha = Sha256::new();
        for chunk in self.chunks.iter().flatten() {
            sha.update(&(chunk.ids.len() as u64).to_le_bytes());
            for (id, weight) in chunk.ids.iter().zip(&chunk.weights) {
                sha.update(&id.to_le_bytes());
                sha.update(&weight.to_le_bytes());
            }
        }
        sha.finish()
    }
}

/// What the encoders say about a prompt: their hidden states side by side, weighted, `(chunks · positions, width)`, and
/// the pooled state of the second, `(1, projection)`. A model that has only the second has that one alone here.
///
/// # Errors
///
/// When the computation fails.
pub(crate) fn encode(encoders: &[Clip], prompt: &Prompt) -> candle_core::Result<(Tensor, Tensor)> {
    let mut rows = Vec::with_capacity(prompt.chunks.len());
    let mut pooled = None;
    for chunks in &prompt.chunks {
        // From the last on, so that one encoder alone is the second.
        let pairs = encoders.iter().rev().zip(chunks.iter().rev());
        let mut hidden = Vec::with_capacity(chunks.len());
        for (encoder, chunk) in pairs {
            let encoded = encoder.encode(&chunk.ids)?;
            pooled = pooled.or(encoded.pooled);
            hidden.push(weigh(encoded.hidden, chunk)?);
        }
        hidden.reverse();
        rows.push(Tensor::cat(&hidden, 1)?);
    }
    match pooled {
        Some(pooled) if rows.len() == 1 => Ok((rows.swap_remove(0), pooled)),
        Some(pooled) => Ok((Tensor::cat(&rows, 0)?, pooled)),
        None => candle_core::bail!("the second encoder gave no pooled state"),
    }
}

/// `hidden` is `(positions, width)`.
fn weigh(hidden: Tensor, chunk: &Chunk) -> candle_core::Result<Tensor> {
    if !chunk.is_weighted() {
        return Ok(hidden);
    }
    let (positions, dtype) = (chunk.weights.len(), hidden.dtype());
    let weights = Tensor::from_slice(&chunk.weights, (positions, 1), hidden.device())?;
    // In f32, so that the weight itself is not rounded to half precision.
    hidden
        .to_dtype(DType::F32)?
        .broadcast_mul(&weights)?
        .to_dtype(dtype)
}

/// A limit that a prompt is beyond.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Limit {
    Chunks { room: usize },
    Depth,
    Weight(f64),
}

impl Limit {
    fn error(self, field: &'static str) -> BeginError {
        let (value, reason) = match self {
            Self::Chunks { room } => (
                format!("longer than {MAX_CHUNKS} chunks of {room} tokens"),
                "say it in fewer words, or with fewer BREAKs".to_owned(),
            ),
            Self::Depth => (
                format!("nested deeper than {MAX_DEPTH} brackets"),
                "give a weight, as in (word:1.5), instead of many brackets".to_owned(),
            ),
            Self::Weight(weight) => (
                format!("weighted {weight} somewhere"),
                format!("expected 0 to {MAX_WEIGHT}; a bracket that is no weight is written \\("),
            ),
        };
        BeginError::Parameter {
            field,
            value,
            reason,
        }
    }
}

#[cfg(test)]
mod tests;
