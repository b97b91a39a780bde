//! What can go wrong, by operation.

use std::path::PathBuf;

use thiserror::Error;

/// A model folder that was refused.
#[derive(Debug, Error)]
pub enum LoadError {
    /// A file is missing or cannot be read.
    #[error("cannot read {}", file.display())]
    Read {
        /// The file.
        file: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// No weights were found under any of the names that they may have.
    #[error("no weights in {}: looked for {looked_for}", folder.display())]
    NoWeights {
        /// The component's folder.
        folder: PathBuf,
        /// The names that would have been taken.
        looked_for: String,
    },
    /// A file is not JSON of the expected shape.
    #[error("{} is not the JSON that it should be", file.display())]
    Json {
        /// The file.
        file: PathBuf,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
    /// A configuration asks for something that this engine does not do, or says nothing where it must.
    #[error("{}: {key} is {value}: {reason}", file.display())]
    Config {
        /// The file.
        file: PathBuf,
        /// The key.
        key: String,
        /// Its value, as JSON.
        value: String,
        /// What would be understood.
        reason: String,
    },
    /// The header of a weights file is damaged.
    #[error("{} has a damaged header: {reason}", file.display())]
    Header {
        /// The file.
        file: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A tensor is missing, or of the wrong shape or type.
    #[error("{}: tensor {tensor}: {reason}", file.display())]
    Tensor {
        /// The weights file (or its index).
        file: PathBuf,
        /// The tensor's name.
        tensor: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The tokenizer's files do not fit together.
    #[error("{}: not a tokenizer: {reason}", folder.display())]
    Tokenizer {
        /// The tokenizer's folder.
        folder: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The device could not take the weights.
    #[error("cannot place the weights of {} on the device", component.display())]
    Place {
        /// The component's folder.
        component: PathBuf,
        /// Why.
        #[source]
        source: candle_core::Error,
    },
}

/// A request that cannot become a job.
#[derive(Debug, Error)]
pub enum BeginError {
    /// A parameter is out of range.
    #[error("{field} is {value}: {reason}")]
    Parameter {
        /// The request's field.
        field: &'static str,
        /// Its value.
        value: String,
        /// What is in range.
        reason: String,
    },
    /// The prompt could not be encoded.
    #[error("cannot encode the prompt")]
    Encode(#[source] candle_core::Error),
    /// The picture to begin from could not be encoded.
    #[error("cannot encode the image")]
    Image(#[source] EncodeError),
    /// The prompt could not be cut into tokens.
    #[error("cannot tokenize the prompt: {reason}")]
    Tokenize {
        /// Why.
        reason: String,
    },
}

/// A denoising step that failed; the job stays as it was before the step.
#[derive(Debug, Error)]
pub enum StepError {
    /// The result held NaN or infinity.
    #[error("step {step} gave values that are not finite")]
    NotFinite {
        /// The step, counted from 1.
        step: u32,
    },
    /// Every step of the job has been done.
    #[error("the job has no steps left")]
    Finished,
    /// The computation failed.
    #[error("step {step} failed")]
    Compute {
        /// The step, counted from 1.
        step: u32,
        /// Why.
        #[source]
        source: candle_core::Error,
    },
}

/// A snapshot that was refused.
#[derive(Debug, Error)]
pub enum ResumeError {
    /// The bytes are not a snapshot, or were cut short or altered.
    #[error("not a whole snapshot: {reason}")]
    Damaged {
        /// What is wrong.
        reason: &'static str,
    },
    /// The snapshot is of a version that this engine does not read.
    #[error("a snapshot of version {found}; this engine reads version {known}")]
    Version {
        /// The snapshot's version.
        found: u16,
        /// Ours.
        known: u16,
    },
    /// The snapshot was taken with other weights.
    #[error("a snapshot of model {theirs}; this is {ours}")]
    OtherModel {
        /// The digest in the snapshot.
        theirs: String,
        /// Ours.
        ours: String,
    },
    /// The request in the snapshot cannot become a job.
    #[error("the request in the snapshot is refused")]
    Begin(#[from] BeginError),
}

/// A picture that could not be encoded into latents.
#[derive(Debug, Error)]
pub enum EncodeError {
    /// The encoder, which is read when it is first needed, could not be.
    #[error("cannot read the VAE's encoder")]
    Load(#[from] LoadError),
    /// The computation failed.
    #[error("encoding failed")]
    Compute(#[from] candle_core::Error),
}

/// A picture that could not be decoded.
#[derive(Debug, Error)]
pub enum DecodeError {
    /// There is nothing to preview before the first step.
    #[error("no step has been done: there is nothing to see yet")]
    NotStarted,
    /// The job has steps left.
    #[error("{step} of {steps} steps have been done")]
    Unfinished {
        /// Steps done.
        step: u32,
        /// Steps in all.
        steps: u32,
    },
    /// Latents that are not those of a picture of their size.
    #[error("{values} latent values are not those of a picture of {width}×{height}")]
    Size {
        /// Width in pixels.
        width: u32,
        /// Height in pixels.
        height: u32,
        /// Values given.
        values: usize,
    },
    /// The computation failed.
    #[error("decoding failed")]
    Compute(#[from] candle_core::Error),
}
