//! A model that draws nothing: its steps take a known time, and its pictures are noise, for load tests and rehearsals of a fleet
//! without GPUs.
//!
//! In all else it is like one that draws: the same request gives the same picture, whoever shares its steps, and wherever it was put
//! away and taken up again. Each step draws the next number of a sequence that begins with the request; the picture is made of
//! the last.

use std::path::{Path, PathBuf};
use std::time::Duration;

use aws_lc_rs::digest::{Digest, SHA256, digest};
use diffusion::{
    BeginError, DecodeError, Latents, Limits, Progress, Request, ResumeError, RgbImage, StepError,
};
use serde::{Deserialize, Serialize};

/// What a job takes, about.
pub(super) const JOB_BYTES: u64 = 4096;
/// Pixels on a side of what one colour covers: as large as a latent pixel.
const BLOCK: u32 = 8;
/// Of latents: red, green, blue.
const CHANNELS: usize = 3;
/// Bytes of a SHA-256, with which a snapshot ends.
const DIGEST: usize = 32;

/// The model.
pub(crate) struct Model {
    limits: Limits,
    digest: String,
    step: Duration,
    /// A step that finds it hangs.
    hang_file: Option<PathBuf>,
}

/// A picture between two steps.
#[derive(Debug)]
pub(crate) struct Job {
    saved: Saved,
}

/// A job, as its snapshot has it.
#[derive(Debug, Serialize, Deserialize)]
struct Saved {
    model: String,
    request: Request,
    step: u32,
    drawn: u64,
}

impl Model {
    /// One of these limits. `step`: how long a step takes, of however many pictures. `digest`: of the version that it stands for.
    pub(crate) fn new(limits: Limits, digest: &str, step: Duration) -> Self {
        Self {
            limits,
            digest: format!("simulated-{digest}"),
            step,
            hang_file: None,
        }
    }

    /// The same, but that a step which finds `file` removes it and does not come back: as a device may hang that works once the process is
    /// started anew. An empty path is no file.
    pub(crate) fn hanging_at(self, file: &Path) -> Self {
        let hang_file = Some(file.to_owned()).filter(|file| !file.as_os_str().is_empty());
        Self { hang_file, ..self }
    }

    pub(super) fn digest(&self) -> &str {
        &self.digest
    }

    pub(super) fn limits(&self) -> &Limits {
        &self.limits
    }

    pub(super) fn begin(&self, request: &Request) -> Result<Job, BeginError> {
        self.check(request)?;
        // As a real job: it keeps no pictures.
        let request = Request {
            image: None,
            latents: None,
            mask: None,
            ..request.clone()
        };
        let drawn = u64::from_le_bytes(first(&hash(&self.digest, &request)));
        Ok(Job {
            saved: Saved {
                model: self.digest.clone(),
                request,
                step: 0,
                drawn,
            },
        })
    }

    fn check(&self, request: &Request) -> Result<(), BeginError> {
        let Limits {
            size_multiple,
            max_side,
            max_steps,
            ..
        } = self.limits;
        let refuse = |field, value: u32, reason| {
            let value = value.to_string();
            Err(BeginError::Parameter {
                field,
                value,
                reason,
            })
        };
        for (field, side) in [("width", request.width), ("height", request.height)] {
            if side == 0 || side % size_multiple.max(1) != 0 || side > max_side {
                let reason = format!("expected a multiple of {size_multiple} up to {max_side}");
                return refuse(field, side, reason);
            }
        }
        if !(1..=max_steps).contains(&request.steps) {
            return refuse("steps", request.steps, format!("expected 1 to {max_steps}"));
        }
        Ok(())
    }

    pub(super) fn step<'a>(
        &self,
        jobs: impl Iterator<Item = &'a mut Job>,
    ) -> Vec<Result<Progress, StepError>> {
        let found = |file: &PathBuf| std::fs::remove_file(file).is_ok();
        if self.hang_file.as_ref().is_some_and(found) {
            loop {
                std::thread::park();
            }
        }
        if !self.step.is_zero() {
            std::thread::sleep(self.step);
        }
        jobs.map(Job::step).collect()
    }

    pub(super) fn snapshot(&self, job: &Job) -> Vec<u8> {
        // Plain data: there is nothing in it that JSON has no words for, and what is refused here is refused at resume.
        let mut bytes = serde_json::to_vec(&job.saved).unwrap_or_default();
        bytes.extend_from_slice(digest(&SHA256, &bytes).as_ref());
        bytes
    }

    pub(super) fn resume(&self, bytes: &[u8]) -> Result<Job, ResumeError> {
        let damaged = |reason| ResumeError::Damaged { reason };
        let body = bytes.len().checked_sub(DIGEST);
        let (body, sum) = bytes.split_at(body.ok_or(damaged("it is too short"))?);
        if digest(&SHA256, body).as_ref() != sum {
            return Err(damaged("its digest is another"));
        }
        let saved = serde_json::from_slice::<Saved>(body);
        let saved = saved.map_err(|_| damaged("it is not a simulated job"))?;
        if saved.model != self.digest {
            return Err(ResumeError::OtherModel {
                theirs: saved.model,
                ours: self.digest.clone(),
            });
        }
        self.check(&saved.request)?;
        Ok(Job { saved })
    }
}

impl Job {
    fn step(&mut self) -> Result<Progress, StepError> {
        let saved = &mut self.saved;
        if saved.step >= saved.request.steps {
            return Err(StepError::Finished);
        }
        saved.step += 1;
        saved.drawn = next(saved.drawn);
        Ok(self.progress())
    }

    pub(super) fn request(&self) -> &Request {
        &self.saved.request
    }

    pub(super) fn progress(&self) -> Progress {
        Progress {
            step: self.saved.step,
            steps: self.saved.request.steps,
        }
    }

    /// Channels × blocks, each 0 to 1.
    pub(super) fn latents(&self) -> Latents {
        let Request { width, height, .. } = self.saved.request;
        let mut drawn = self.saved.drawn;
        let count = CHANNELS * blocks(width) * blocks(height);
        let values = (0..count).map(|_| {
            drawn = next(drawn);
            (drawn >> 40) as f32 / (1 << 24) as f32
        });
        Latents {
            width,
            height,
            values: values.collect(),
        }
    }
}

pub(super) fn picture_bytes(width: u32, height: u32) -> u64 {
    u64::from(width) * u64::from(height) * 3
}

/// One colour a block.
pub(super) fn paint(latents: &Latents) -> Result<RgbImage, DecodeError> {
    let &Latents {
        width,
        height,
        ref values,
    } = latents;
    let (across, down) = (blocks(width), blocks(height));
    if values.len() != CHANNELS * across * down {
        let values = values.len();
        return Err(DecodeError::Size {
            width,
            height,
            values,
        });
    }
    let mut pixels = Vec::with_capacity(width as usize * height as usize * CHANNELS);
    for y in 0..height {
        for x in 0..width {
            let block = (y / BLOCK) as usize * across + (x / BLOCK) as usize;
            let channel = |channel| values[channel * across * down + block];
            pixels.extend((0..CHANNELS).map(|of| (channel(of) * 255.0) as u8));
        }
    }
    Ok(RgbImage {
        width,
        height,
        pixels,
    })
}

fn blocks(side: u32) -> usize {
    side.div_ceil(BLOCK) as usize
}

fn hash(model: &str, request: &Request) -> Digest {
    let text = format!("{model} {request:?}");
    digest(&SHA256, text.as_bytes())
}

fn first(digest: &Digest) -> [u8; 8] {
    let mut first = [0; 8];
    first.copy_from_slice(&digest.as_ref()[..8]);
    first
}

/// SplitMix64 (Steele, Lea and Flood, 2014).
fn next(state: u64) -> u64 {
    let z = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}
