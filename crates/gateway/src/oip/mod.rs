//! The Open Inference Protocol: so far its error object, for what is asked for under `/v2`.
use contract::Failure;
use serde::Serialize;

/// The protocol's error object.
#[derive(Debug, Serialize)]
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
