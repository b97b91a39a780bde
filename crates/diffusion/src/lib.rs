//! Stable Diffusion XL on candle, one denoising step at a time.
//!
//! A [`Model`] is a loaded folder in diffusers' layout; a [`Job`] is a picture between two steps.
//!
//! ```no_run
//! use diffusion::{DType, Device, Model, Request};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let model = Model::load("model".as_ref(), &Device::Cpu, DType::F32)?;
//! let request = Request {
//!     prompt: "a 3d panda on a yellow background".to_owned(),
//!     width: model.limits().default_width,
//!     height: model.limits().default_height,
//!     steps: 20,
//!     guidance_scale: 2.0,
//!     seed: 1,
//!     ..Request::default()
//! };
//! let mut job = model.begin(&request)?;
//! while !job.is_finished() {
//!     for progress in model.step(&mut [&mut job]) {
//!         progress?;
//!     }
//! }
//! let picture = model.decode(&job)?;
//! # Ok(())
//! # }
//! ```
//!
//! A picture may begin from another: [`Request::image`] with [`Request::mask`] for what is to be painted anew, or
//! [`Request::latents`], with which one model goes on where another ended ([`Request::denoising_end`] of the one,
//! [`Request::denoising_start`] of the other, [`Job::latents`] between them).
//!
//! Invariants, each held by a test:
//!
//! * The numbers are diffusers': every stage is compared with what diffusers computed on the same weights.
//! * The same request gives the same bytes on the same machine, whoever shares the call to [`Model::step`], and
//!   wherever the job was put away with [`Model::snapshot`] and taken up again with [`Model::resume`].
//! * What is not understood is refused by name at load; nothing in a folder, a request or a snapshot can panic.
//! * No runtime, no network: the caller decides where this runs. Of the environment only `RAYON_NUM_THREADS` counts, as in
//!   candle: how many threads compute. [`Model::step`] blocks for as long
//!   as a step takes and uses every core that its own thread pool has (`ops/threads.rs`).

#[doc(hidden)]
pub mod bench;
mod clip;
mod config;
#[cfg(feature = "cuda")]
mod cuda;
mod error;
#[doc(hidden)]
pub mod fuzz;
mod given;
#[cfg(test)]
mod golden;
mod gpu;
mod guidance;
#[cfg(test)]
mod halves;
mod job;
mod meter;
mod model;
mod noise;
mod ops;
mod prompt;
mod resnet;
mod scheduler;
mod sha256;
mod snapshot;
mod tokenizer;
mod unet;
mod vae;
mod weights;

pub use candle_core::{DType, Device};
pub use error::{BeginError, DecodeError, EncodeError, LoadError, ResumeError, StepError};
pub use given::{Mask, MicroConditioning, Size};
pub use gpu::{GpuError, GpuMemory, gpu_memory, open_gpu, release_gpu_memory, reset_gpu_peak};
pub use job::{Job, Latents, Progress, Request, RgbImage};
pub use meter::MeteredAllocator;
pub use model::{Limits, Model, PassMemory};
pub use prompt::{PromptSyntax, UnknownSyntax};
pub use scheduler::{SchedulerKind, UnknownScheduler};
pub use vae::Tiling;
pub use weights::Residency;

// Nothing is called from it here: the dependency turns on its AVX-512 kernels, which candle's products then use.
use gemm as _;
