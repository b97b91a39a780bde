//! What the engine steps: a model of Stable Diffusion XL, or one that only takes time.
//!
//! Both go through the same calls, so everything above (batches, memory, previews, checkpoints, cancels) is the same code.

use std::path::Path;

use diffusion::{
    BeginError, DType, DecodeError, Device, Latents, Limits, LoadError, Progress, Request,
    ResumeError, RgbImage, StepError,
};

use super::simulated;

/// A model.
pub(crate) enum Model {
    /// One that draws.
    Diffusion(Box<diffusion::Model>),
    /// One whose steps take a known time, and whose pictures are noise.
    Simulated(simulated::Model),
}

/// A picture between two steps, of the model that began it.
#[derive(Debug)]
pub(crate) enum Job {
    /// Of a model that draws.
    Diffusion(Box<diffusion::Job>),
    /// Of one that does not.
    Simulated(Box<simulated::Job>),
}

/// What a pass takes, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct PassMemory {
    /// At most, as its shapes say.
    pub(crate) computed: u64,
    /// As it was seen to take.
    pub(crate) measured: Option<u64>,
    reckoned: u64,
}

impl PassMemory {
    /// What does not depend on what was measured.
    pub(super) fn of_shapes(bytes: u64) -> Self {
        Self {
            computed: bytes,
            measured: None,
            reckoned: bytes,
        }
    }

    /// Bytes to reckon with.
    pub(crate) fn bytes(self) -> u64 {
        self.reckoned
    }
}

impl From<diffusion::PassMemory> for PassMemory {
    fn from(memory: diffusion::PassMemory) -> Self {
        Self {
            computed: memory.computed,
            measured: memory.measured,
            reckoned: memory.bytes(),
        }
    }
}

impl Model {
    /// [`diffusion::Model::load`].
    pub(crate) fn load(folder: &Path, device: &Device, dtype: DType) -> Result<Self, LoadError> {
        let model = diffusion::Model::load(folder, device, dtype)?;
        Ok(Self::Diffusion(Box::new(model)))
    }

    pub(crate) fn digest(&self) -> &str {
        match self {
            Self::Diffusion(model) => model.digest(),
            Self::Simulated(model) => model.digest(),
        }
    }

    pub(crate) fn limits(&self) -> &Limits {
        match self {
            Self::Diffusion(model) => model.limits(),
            Self::Simulated(model) => model.limits(),
        }
    }

    /// Of its weights.
    pub(crate) fn weights_bytes(&self) -> u64 {
        match self {
            Self::Diffusion(model) => model.weights_bytes(),
            Self::Simulated(_) => 0,
        }
    }

    pub(crate) fn step_memory(&self, width: u32, height: u32, rows: usize) -> PassMemory {
        match self {
            Self::Diffusion(model) => model.step_memory(width, height, rows).into(),
            Self::Simulated(_) => PassMemory::of_shapes(0),
        }
    }

    pub(crate) fn decode_memory(&self, width: u32, height: u32) -> PassMemory {
        match self {
            Self::Diffusion(model) => model.decode_memory(width, height).into(),
            Self::Simulated(_) => PassMemory::of_shapes(simulated::picture_bytes(width, height)),
        }
    }

    pub(crate) fn encode_memory(&self, width: u32, height: u32) -> PassMemory {
        match self {
            Self::Diffusion(model) => model.encode_memory(width, height).into(),
            Self::Simulated(_) => PassMemory::of_shapes(0),
        }
    }

    pub(crate) fn job_bytes(&self, request: &Request) -> u64 {
        match self {
            Self::Diffusion(model) => model.job_bytes(request),
            Self::Simulated(_) => simulated::JOB_BYTES,
        }
    }

    pub(crate) fn begin(&self, request: &Request) -> Result<Job, BeginError> {
        match self {
            Self::Diffusion(model) => model.begin(request).map(Box::new).map(Job::Diffusion),
            Self::Simulated(model) => model.begin(request).map(Box::new).map(Job::Simulated),
        }
    }

    /// One step of jobs that are all its own.
    pub(crate) fn step(&self, jobs: &mut [&mut Job]) -> Vec<Result<Progress, StepError>> {
        match self {
            Self::Diffusion(model) => {
                let own = jobs.iter_mut().filter_map(|job| match &mut **job {
                    Job::Diffusion(job) => Some(&mut **job),
                    Job::Simulated(_) => None,
                });
                model.step(&mut own.collect::<Vec<_>>())
            }
            Self::Simulated(model) => {
                let own = jobs.iter_mut().filter_map(|job| match &mut **job {
                    Job::Simulated(job) => Some(&mut **job),
                    Job::Diffusion(_) => None,
                });
                model.step(own)
            }
        }
    }

    /// A job as bytes; a job of another kind of model, which none of its pictures ever has, as none.
    pub(crate) fn snapshot(&self, job: &Job) -> Vec<u8> {
        match (self, job) {
            (Self::Diffusion(model), Job::Diffusion(job)) => model.snapshot(job),
            (Self::Simulated(model), Job::Simulated(job)) => model.snapshot(job),
            (Self::Diffusion(_) | Self::Simulated(_), _) => Vec::new(),
        }
    }

    pub(crate) fn resume(&self, bytes: &[u8]) -> Result<Job, ResumeError> {
        match self {
            Self::Diffusion(model) => model.resume(bytes).map(Box::new).map(Job::Diffusion),
            Self::Simulated(model) => model.resume(bytes).map(Box::new).map(Job::Simulated),
        }
    }

    pub(crate) fn paint(&self, latents: Latents) -> Result<RgbImage, DecodeError> {
        match self {
            Self::Diffusion(model) => model.paint(latents),
            Self::Simulated(_) => simulated::paint(&latents),
        }
    }
}

impl Job {
    pub(crate) fn request(&self) -> &Request {
        match self {
            Self::Diffusion(job) => job.request(),
            Self::Simulated(job) => job.request(),
        }
    }

    pub(crate) fn progress(&self) -> Progress {
        match self {
            Self::Diffusion(job) => job.progress(),
            Self::Simulated(job) => job.progress(),
        }
    }

    pub(crate) fn is_finished(&self) -> bool {
        let Progress { step, steps } = self.progress();
        step >= steps
    }

    pub(crate) fn latents(&self) -> Latents {
        match self {
            Self::Diffusion(job) => job.latents(),
            Self::Simulated(job) => job.latents(),
        }
    }

    pub(crate) fn estimate(&self) -> Option<Latents> {
        match self {
            Self::Diffusion(job) => job.estimate(),
            Self::Simulated(job) => (job.progress().step > 0).then(|| job.latents()),
        }
    }
}
