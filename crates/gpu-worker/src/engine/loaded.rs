//! A model in memory, with the place that its weights have in the account.

use std::ops::Deref;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};

use diffusion::Request;
use tokio::sync::mpsc;

use super::Command;
use super::memory::Needs;
use super::model::Model;

/// Bytes of weights in the account, given back when dropped.
pub(crate) struct Reserved {
    bytes: u64,
    weights: Arc<AtomicU64>,
    /// By which the engine's thread sees whether it is still there.
    alive: Arc<()>,
    /// Weak: an engine that nobody uses any more ends.
    engine: mpsc::WeakSender<Command>,
}

impl Reserved {
    /// Enters them.
    pub(super) fn new(
        bytes: u64,
        weights: &Arc<AtomicU64>,
        engine: mpsc::WeakSender<Command>,
    ) -> Self {
        weights.fetch_add(bytes, Ordering::Relaxed);
        Self {
            bytes,
            weights: Arc::clone(weights),
            alive: Arc::default(),
            engine,
        }
    }

    fn alive(&self) -> Weak<()> {
        Arc::downgrade(&self.alive)
    }

    /// Makes one of two.
    fn join(&mut self, mut other: Self) {
        self.bytes += std::mem::take(&mut other.bytes);
    }

    /// Gives back what is beyond `bytes`.
    fn shrink_to(&mut self, bytes: u64) {
        let beyond = self.bytes.saturating_sub(bytes);
        self.weights.fetch_sub(beyond, Ordering::Relaxed);
        self.bytes -= beyond;
    }
}

impl Drop for Reserved {
    fn drop(&mut self) {
        // First: what is adopted is never more than what is reserved.
        drop(std::mem::take(&mut self.alive));
        self.weights.fetch_sub(self.bytes, Ordering::Relaxed);
        if let Some(engine) = self.engine.upgrade() {
            // Somebody may have waited for the room. An engine with a full queue is awake.
            let _ = engine.try_send(Command::Wake);
        }
    }
}

/// A model that is loaded, as the engine's thread knows it.
#[derive(Debug)]
pub(super) struct Adopted {
    /// All of its weights.
    pub(super) bytes: u64,
    /// What its default picture takes.
    pub(super) picture: Needs,
    alive: Weak<()>,
}

impl Adopted {
    /// Whether it is still loaded.
    pub(super) fn is_alive(&self) -> bool {
        self.alive.strong_count() > 0
    }
}

/// A model in memory. In the account for as long as anybody has it.
pub(crate) struct Loaded {
    // Dropped first: what is given back is free by then.
    model: Model,
    number: u64,
    weights: Reserved,
}

impl Loaded {
    /// Weights that are less than was reserved give the rest back.
    pub(super) fn new(model: Model, number: u64, mut weights: Reserved) -> Self {
        weights.shrink_to(model.weights_bytes());
        Self {
            model,
            number,
            weights,
        }
    }

    /// It as the engine's thread will know it, with how many bytes are still to be reserved for it.
    pub(super) fn adopted(&self) -> (Adopted, u64) {
        let bytes = self.model.weights_bytes();
        let adopted = Adopted {
            bytes,
            picture: needs_of_default(&self.model),
            alive: self.weights.alive(),
        };
        (adopted, bytes.saturating_sub(self.weights.bytes))
    }

    /// What had still to be reserved.
    pub(super) fn join(&mut self, more: Reserved) {
        self.weights.join(more);
    }

    /// No other model that was ever loaded has it.
    pub(super) fn number(&self) -> u64 {
        self.number
    }

    /// What one picture takes.
    pub(super) fn needs(&self, request: &Request) -> Needs {
        needs(&self.model, request)
    }
}

impl Deref for Loaded {
    type Target = Model;

    fn deref(&self) -> &Model {
        &self.model
    }
}

/// Rows of a forward pass that a picture will take.
pub(super) fn rows(request: &Request) -> usize {
    1 + usize::from(request.guidance_scale > 1.0)
}

/// What one picture takes of a model.
pub(super) fn needs(model: &Model, request: &Request) -> Needs {
    let (width, height) = (request.width, request.height);
    let encode = || model.encode_memory(width, height).bytes();
    Needs {
        begin: request.image.as_ref().map_or(0, |_| encode()),
        job: model.job_bytes(request),
        step: model.step_memory(width, height, rows(request)).bytes(),
        decode: model.decode_memory(width, height).bytes(),
    }
}

/// What a guided picture of the model's own size takes: a model that has no room for one is of no use.
pub(super) fn needs_of_default(model: &Model) -> Needs {
    let limits = model.limits();
    let request = Request {
        width: limits.default_width,
        height: limits.default_height,
        guidance_scale: 2.0,
        ..Request::default()
    };
    needs(model, &request)
}
