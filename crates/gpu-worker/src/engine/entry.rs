//! A picture as the engine has it.

use std::collections::{BTreeSet, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use diffusion::{Latents, Progress, Request};
use tokio::sync::{mpsc, oneshot, watch};

use super::loaded::{Loaded, rows};
use super::memory::{Needs, Rank};
use super::model::Job;
use super::plan::{Bucket, Candidate};
use super::previews::preview_steps;
use super::shares::{Flow, Shares};
use super::{Begin, Drawn, EngineError, Seen};

/// How far a picture is, and what of it is in memory.
pub(super) enum Stage {
    /// It waits for room: as bytes if it was begun before, here or elsewhere.
    Waiting(Option<Vec<u8>>),
    /// It is being drawn.
    Drawing(Box<Job>),
    /// All steps are done; what the decoder is to have, until it has it.
    Done {
        latents: Option<Latents>,
        /// So that its task can be put away whole; empty where there was no room for them.
        bytes: Vec<u8>,
    },
}

/// A picture. It stays until its claim is dropped, so that it can be put away even when it is done.
pub(super) struct Entry {
    pub(super) model: Arc<Loaded>,
    request: Request,
    pub(super) stage: Stage,
    pub(super) needs: Needs,
    pub(super) rank: Rank,
    pub(super) flow: Flow,
    /// `None` once the decoder is to answer, or has.
    pub(super) outcome: Option<oneshot::Sender<Result<Drawn, EngineError>>>,
    pub(super) progress: watch::Sender<Progress>,
    /// Set when it was put away and begins anew all the same.
    anew: Arc<AtomicBool>,
    pub(super) index: u32,
    /// How many previews it was to have in all.
    wanted: u32,
    /// Number and step of the previews to come; known once it has begun.
    previews: VecDeque<(u32, u32)>,
    pub(super) seen: mpsc::Sender<Seen>,
    pub(super) last_step: u64,
    pub(super) busy: Duration,
}

impl Entry {
    /// A picture that waits. `last_step` counts as its last, so that it does not push in before others of its task.
    pub(super) fn new(begin: Begin, rank: Rank, last_step: u64) -> Self {
        let Begin {
            start,
            progress,
            outcome,
            anew,
            ..
        } = begin;
        let needs = start.model.needs(&start.request);
        Self {
            model: start.model,
            request: start.request,
            stage: Stage::Waiting(start.resume),
            needs,
            rank,
            flow: start.flow,
            outcome: Some(outcome),
            progress,
            anew,
            index: start.index,
            wanted: start.previews,
            previews: VecDeque::new(),
            seen: start.seen,
            last_step,
            busy: Duration::ZERO,
        }
    }

    pub(super) fn is_waiting(&self) -> bool {
        self.outcome.is_some() && matches!(self.stage, Stage::Waiting(_))
    }

    pub(super) fn is_drawing(&self) -> bool {
        matches!(self.stage, Stage::Drawing(_))
    }

    pub(super) fn bucket(&self) -> Bucket {
        Bucket {
            model: self.model.number(),
            width: self.request.width,
            height: self.request.height,
        }
    }

    /// Its rows of a forward pass.
    pub(super) fn rows(&self) -> usize {
        rows(&self.request)
    }

    /// What it adds to a step: rows × latent pixels.
    pub(super) fn work(&self) -> u64 {
        self.rows() as u64 * self.bucket().latent_pixels()
    }

    /// For the planner, if there is a step to take.
    pub(super) fn candidate(&self, id: u64, shares: &Shares) -> Option<Candidate> {
        self.is_drawing().then(|| Candidate {
            id,
            bucket: self.bucket(),
            rows: self.rows(),
            pass: shares.pass(self.flow),
            last_step: self.last_step,
        })
    }

    /// What it takes of the account now, beside bytes that were put aside: one that waits takes nothing, and one that is
    /// done only what decoding it will take.
    pub(super) fn takes(&self) -> Needs {
        match &self.stage {
            Stage::Waiting(_) => Needs::default(),
            Stage::Drawing(_) => self.needs,
            Stage::Done {
                latents: Some(_), ..
            } => Needs {
                decode: self.needs.decode,
                ..Needs::default()
            },
            Stage::Done { latents: None, .. } => Needs::default(),
        }
    }

    /// Bytes of what was put aside.
    pub(super) fn aside(&self) -> u64 {
        let bytes = match &self.stage {
            Stage::Waiting(Some(bytes)) | Stage::Done { bytes, .. } => bytes.len(),
            Stage::Waiting(None) | Stage::Drawing(_) => 0,
        };
        bytes as u64
    }

    /// Begins it, or goes on where it was put away; anew if that cannot be.
    pub(super) fn begin(&mut self) -> Result<(), EngineError> {
        let Stage::Waiting(saved) = &self.stage else {
            return Ok(());
        };
        let saved = saved.as_deref();
        let resumed = saved.map(|bytes| {
            EngineError::guard("resuming a picture", || {
                self.model.resume(bytes).map_err(EngineError::Resume)
            })
        });
        let job = match resumed {
            Some(Ok(job)) if same(job.request(), &self.request) => job,
            None => self.begin_anew()?,
            Some(unusable) => {
                let error = unusable.err().map(|error| lifecycle::chain(&error));
                let error = error.unwrap_or_else(|| "it is of another request".to_owned());
                tracing::warn!(index = self.index, error, "begins anew");
                // Before its progress is told.
                self.anew.store(true, Ordering::Relaxed);
                self.begin_anew()?
            }
        };
        let progress = job.progress();
        self.progress.send_replace(progress);
        let previews = (0..).zip(preview_steps(progress.steps, self.wanted));
        self.previews = previews.filter(|&(_, step)| step > progress.step).collect();
        self.stage = Stage::Drawing(Box::new(job));
        Ok(())
    }

    fn begin_anew(&self) -> Result<Job, EngineError> {
        EngineError::guard("beginning a picture", || {
            self.model
                .begin(&self.request)
                .map_err(EngineError::of_begin)
        })
    }

    /// It as bytes: empty for one that has not begun. `None` when it cannot be had.
    pub(super) fn snapshot(&self) -> Option<Vec<u8>> {
        match &self.stage {
            Stage::Waiting(saved) => Some(saved.clone().unwrap_or_default()),
            Stage::Done { bytes, .. } => Some(bytes.clone()),
            Stage::Drawing(job) => catch_unwind(AssertUnwindSafe(|| self.model.snapshot(job))).ok(),
        }
    }

    /// Puts it aside as bytes, if there is room for so many; it waits then.
    pub(super) fn put_aside(&mut self, room: u64) -> bool {
        let snapshot = self.snapshot().filter(|_| self.is_drawing());
        let Some(bytes) = snapshot.filter(|bytes| bytes.len() as u64 <= room) else {
            return false;
        };
        self.stage = Stage::Waiting(Some(bytes));
        true
    }

    /// Its job, for a step; it comes back with [`stepped`](Self::stepped), or the picture has failed.
    pub(super) fn take_job(&mut self) -> Option<Box<Job>> {
        match std::mem::replace(&mut self.stage, Stage::Waiting(None)) {
            Stage::Drawing(job) => Some(job),
            other => {
                self.stage = other;
                None
            }
        }
    }

    /// A step was taken. What there is to be shown, if a preview is due: its number and the picture as it is.
    pub(super) fn stepped(
        &mut self,
        job: Box<Job>,
        share: Duration,
        step: u64,
    ) -> Option<(u32, Latents)> {
        let progress = job.progress();
        self.busy += share;
        self.last_step = step;
        self.progress.send_replace(progress);
        let mut due = None;
        while let Some(&(preview, step)) = self.previews.front()
            && step <= progress.step
        {
            self.previews.pop_front();
            due = Some(preview);
        }
        let estimate = due.filter(|_| !job.is_finished()).and_then(|preview| {
            let latents = job.estimate()?;
            Some((preview, latents))
        });
        self.stage = Stage::Drawing(job);
        estimate
    }

    /// Lets go of a job whose steps are all done, but for its latents and, if there is room for them, its bytes.
    pub(super) fn finish(&mut self, room: u64) {
        let Stage::Drawing(job) = &self.stage else {
            return;
        };
        if !job.is_finished() {
            return;
        }
        let latents = Some(job.latents());
        let bytes = self.snapshot().filter(|bytes| bytes.len() as u64 <= room);
        self.stage = Stage::Done {
            latents,
            bytes: bytes.unwrap_or_default(),
        };
    }
}

/// Whether a job goes on with this request. Pictures that a request starts from are in no snapshot, but what was made of
/// them is. A strength that such a request leaves open was filled in when the job was begun.
pub(super) fn same(job: &Request, request: &Request) -> bool {
    let from_picture = request.image.is_some() || request.latents.is_some();
    let filled_in = from_picture && request.strength.is_none();
    let comparable = |one: &Request| Request {
        image: None,
        latents: None,
        mask: None,
        strength: one.strength.filter(|_| !filled_in),
        ..one.clone()
    };
    comparable(job) == comparable(request)
}

impl Entry {
    /// All steps are done, and the decoder has not been given it.
    pub(super) fn is_undecoded(&self) -> bool {
        let done = matches!(
            self.stage,
            Stage::Done {
                latents: Some(_),
                ..
            }
        );
        done && self.outcome.is_some()
    }

    /// What the decoder is to have.
    pub(super) fn take_latents(&mut self) -> Option<Latents> {
        match &mut self.stage {
            Stage::Done { latents, .. } => latents.take(),
            Stage::Waiting(_) | Stage::Drawing(_) => None,
        }
    }

    /// The decoder had no room.
    pub(super) fn give_latents_back(&mut self, back: Latents) {
        if let Stage::Done { latents, .. } = &mut self.stage {
            *latents = Some(back);
        }
    }
}

/// The tasks of these.
pub(super) fn flows<'a>(entries: impl Iterator<Item = &'a Entry>) -> BTreeSet<Flow> {
    entries.map(|entry| entry.flow).collect()
}
