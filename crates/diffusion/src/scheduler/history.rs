//! What a job carries from one evaluation of the model to the next, beside the noisy picture.

use crate::noise::Generator;

/// A job's past, as far as its schedule needs it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct History {
    /// The last evaluation's estimate of the finished picture; empty before the first.
    pub(crate) denoised: Vec<f32>,
    /// What the solver keeps of earlier evaluations, oldest first.
    pub(crate) kept: Vec<Vec<f32>>,
    /// Goes on from where the initial noise was drawn, so that fresh noise is that of one `torch.Generator`.
    pub(crate) noise: Generator,
}

impl History {
    /// Before the first evaluation; `noise` has given the initial noise.
    pub(crate) fn new(noise: Generator) -> Self {
        Self {
            denoised: Vec::new(),
            kept: Vec::new(),
            noise,
        }
    }

    /// Keeps `values` as the newest, and of all no more than `most`.
    pub(super) fn keep(&mut self, values: Vec<f32>, most: usize) {
        self.kept.push(values);
        let surplus = self.kept.len().saturating_sub(most);
        self.kept.drain(..surplus);
    }
}
