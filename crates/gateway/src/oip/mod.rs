//! The Open Inference Protocol (v2), over HTTP and gRPC, so that clients of Triton and KServe work.
//!
//! A model takes tensors of one dimension, the batch, and draws a picture for each element; each is a task of its own. The
//! two wires read into one [`Asked`](request::Asked) and write one [`Answer`](infer::Answer); what lies between is the
//! same. Where that protocol and the platform differ: which version draws is the platform's choice, so a version can be
//! named only where there is no other; parameters of the protocol that schedule (`priority`, `sequence_id`, `timeout`) are
//! let through without effect; there is no shared memory, and models are not loaded or unloaded by callers.
//! A caller that hangs up cancels its tasks. See `docs/adr/0019-two-more-dialects.md`.

mod described;
pub(crate) mod fuzz;
pub(crate) mod grpc;
pub(crate) mod http;
mod infer;
mod json;
mod keys;
mod model;
mod protobuf;
mod request;
mod tensor;

use contract::Failure;
use serde::Serialize;
use utoipa::ToSchema;

/// The protocol's error object.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = InferError)]
pub(crate) struct Error<'a> {
    error: &'a str,
}

impl<'a> Error<'a> {
    /// The error that `failure` is in this dialect.
    pub(crate) fn new(failure: &'a Failure) -> Self {
        Self {
            error: &failure.message,
        }
    }
}
