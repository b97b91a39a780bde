//! Kernels of our own for NVIDIA GPUs, for f32, f16 and bf16. Their sources are in `kernels/`; the plain forms in `ops/` are
//! their references.
//!
//! Each function answers `None` for what its kernel does not take (a tensor of another device, a type, a shape): the plain form
//! then serves. Whatever the type, sums are f32 and results are rounded once.
//!
//! All of a device's work goes to one stream (see `gpu.rs`), so that it happens in the order in which it was asked for, and
//! memory that was given back is not used again before then.

pub(crate) mod attention;
#[cfg(feature = "cudnn")]
pub(crate) mod conv;
#[cfg(feature = "cudnn")]
mod cudnn;
pub(crate) mod elementwise;
mod launch;
pub(crate) mod norm;
#[cfg(test)]
mod tests;
