//! What the encoders make of texts, kept for the next job that says the same.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use candle_core::Tensor;

use super::Model;
use crate::error::BeginError;
use crate::given::{MicroConditioning, Size};
use crate::job::Request;
use crate::prompt::{self, Prompt};
use crate::sha256::Sha256;
use crate::unet::Conditioning;

/// What is kept of texts that no job needs any more, in bytes: some fifty prompts of Stable Diffusion XL.
const KEPT_BYTES: usize = 32 << 20;

/// What a text says: both encoders' hidden states side by side, `(tokens, width)`, and the second's pooled state,
/// `(1, width)`.
#[derive(Clone, Debug)]
pub(super) struct Embedded {
    hidden: Tensor,
    pooled: Tensor,
}

/// The score that a refiner is told where a request has none, of what it is led to and of what it is led away from.
const SCORE: f32 = 6.0;
const SCORE_AWAY: f32 = 2.5;

/// What a request's texts say to the UNet.
#[derive(Debug)]
pub(super) struct Told {
    pub(super) prompt: Arc<Conditioning>,
    pub(super) negative: Option<Arc<Conditioning>>,
}

type Digest = [u8; 32];

/// Texts that were encoded, by digest. What is kept are the very tensors that encoding again would give.
#[derive(Debug, Default)]
pub(super) struct Texts(Mutex<Kept>);

#[derive(Debug, Default)]
struct Kept {
    /// With the number of their last use.
    embedded: HashMap<Digest, (u64, Embedded)>,
    bytes: usize,
    uses: u64,
    /// Keys and values that some job holds: jobs of one text and size share them.
    conditionings: HashMap<Digest, Weak<Conditioning>>,
}

impl Texts {
    fn lock(&self) -> MutexGuard<'_, Kept> {
        // A panic between two statements leaves at most a wrong count of bytes.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn embedded(
        &self,
        digest: Digest,
        encode: impl FnOnce() -> Result<Embedded, BeginError>,
    ) -> Result<Embedded, BeginError> {
        {
            let mut kept = self.lock();
            kept.uses += 1;
            let now = kept.uses;
            if let Some((used, embedded)) = kept.embedded.get_mut(&digest) {
                *used = now;
                return Ok(embedded.clone());
            }
        }
        // Not under the lock: previews and other jobs go on meanwhile.
        let embedded = encode()?;
        let mut kept = self.lock();
        let now = kept.uses;
        if kept
            .embedded
            .insert(digest, (now, embedded.clone()))
            .is_none()
        {
            kept.bytes += embedded.bytes();
        }
        kept.forget();
        Ok(embedded)
    }

    fn conditioning(
        &self,
        digest: Digest,
        compute: impl FnOnce() -> Result<Conditioning, BeginError>,
    ) -> Result<Arc<Conditioning>, BeginError> {
        let held = self
            .lock()
            .conditionings
            .get(&digest)
            .and_then(Weak::upgrade);
        if let Some(held) = held {
            return Ok(held);
        }
        let computed = Arc::new(compute()?);
        let mut kept = self.lock();
        kept.conditionings
            .retain(|_, conditioning| conditioning.strong_count() > 0);
        kept.conditionings.insert(digest, Arc::downgrade(&computed));
        Ok(computed)
    }
}

impl Kept {
    /// Drops what was not used for longest until the rest is within bounds.
    fn forget(&mut self) {
        while self.bytes > KEPT_BYTES {
            let oldest = self.embedded.iter().min_by_key(|(_, (used, _))| *used);
            let Some((&digest, _)) = oldest else { return };
            if let Some((_, embedded)) = self.embedded.remove(&digest) {
                self.bytes -= embedded.bytes();
            }
        }
    }
}

impl Embedded {
    fn bytes(&self) -> usize {
        let size = |x: &Tensor| x.elem_count() * x.dtype().size_in_bytes();
        size(&self.hidden) + size(&self.pooled)
    }

    fn zeros_like(&self) -> candle_core::Result<Self> {
        Ok(Self {
            hidden: self.hidden.zeros_like()?,
            pooled: self.pooled.zeros_like()?,
        })
    }
}

/// Distinguishes texts of one model.
fn digest(kind: &[u8], parts: &[&[u8]]) -> Digest {
    let mut sha = Sha256::new();
    sha.update(kind);
    for part in parts {
        sha.update(&(part.len() as u64).to_le_bytes());
        sha.update(part);
    }
    sha.finish()
}

impl Model {
    /// What the request's texts say, at the request's size.
    pub(super) fn tell(&self, request: &Request) -> Result<Told, BeginError> {
        let read =
            |field, text: &str| prompt::read(&self.tokenizers, field, text, request.prompt_syntax);
        let prompt = read("prompt", &request.prompt)?;
        let ids = self.time_ids(request, false);
        if request.guidance_scale <= 1.0 {
            return Ok(Told {
                prompt: self.tell_one(&ids, &prompt)?,
                negative: None,
            });
        }
        let text = request.negative_prompt.as_deref();
        let away = self.time_ids(request, true);
        if text.is_none() && self.index.zeros_for_no_prompt {
            return Ok(Told {
                negative: Some(self.tell_nothing(&away, &prompt)?),
                prompt: self.tell_one(&ids, &prompt)?,
            });
        }
        let negative = read("negative_prompt", text.unwrap_or_default())?;
        let chunks = prompt.chunks().max(negative.chunks());
        let [prompt, negative] =
            [prompt, negative].map(|prompt| prompt.padded(chunks, &self.tokenizers));
        Ok(Told {
            prompt: self.tell_one(&ids, &prompt)?,
            negative: Some(self.tell_one(&away, &negative)?),
        })
    }

    /// Passes of the encoders that the longer of the request's texts takes.
    pub(super) fn chunks(&self, request: &Request) -> usize {
        let texts = [Some(&request.prompt), request.negative_prompt.as_ref()];
        let read = |text: &String| {
            prompt::read(&self.tokenizers, "prompt", text, request.prompt_syntax).ok()
        };
        let chunks = texts.into_iter().flatten().filter_map(read);
        chunks.map(|prompt| prompt.chunks()).max().unwrap_or(1)
    }

    fn tell_one(&self, time_ids: &[f32], prompt: &Prompt) -> Result<Arc<Conditioning>, BeginError> {
        let digest = prompt.digest();
        self.told(time_ids, digest, || self.embed(digest, prompt))
    }

    /// Zeros, of the shape of what the prompt says.
    fn tell_nothing(
        &self,
        time_ids: &[f32],
        prompt: &Prompt,
    ) -> Result<Arc<Conditioning>, BeginError> {
        let chunks = (prompt.chunks() as u64).to_le_bytes();
        self.told(time_ids, digest(b"zeros", &[&chunks]), || {
            let embedded = self.embed(prompt.digest(), prompt)?;
            embedded.zeros_like().map_err(BeginError::Encode)
        })
    }

    fn told(
        &self,
        time_ids: &[f32],
        text: Digest,
        embedded: impl FnOnce() -> Result<Embedded, BeginError>,
    ) -> Result<Arc<Conditioning>, BeginError> {
        let sizes: Vec<u8> = time_ids.iter().flat_map(|id| id.to_le_bytes()).collect();
        self.texts
            .conditioning(digest(b"conditioning", &[&text, &sizes]), || {
                let Embedded { hidden, pooled } = embedded()?;
                self.unet
                    .condition(&hidden, &pooled, time_ids)
                    .map_err(BeginError::Encode)
            })
    }

    /// What the UNet is told of the picture, or of what it is led `away` from: sizes (height before width), crop, and a
    /// refiner the score. Source: `_get_add_time_ids` of `pipeline_stable_diffusion_xl_img2img.py`.
    fn time_ids(&self, request: &Request, away: bool) -> Vec<f32> {
        let own = Size {
            width: request.width,
            height: request.height,
        };
        let prompt = &request.conditioning;
        let refines = self.index.refines;
        let (told, score) = match &request.negative_conditioning {
            Some(negative) if away => (negative, negative.aesthetic_score.unwrap_or(SCORE_AWAY)),
            None if away => (prompt, SCORE_AWAY),
            _ => (prompt, prompt.aesthetic_score.unwrap_or(SCORE)),
        };
        // Where nothing is said of it, what a refiner is led away from is not cut.
        let cut = !(away && refines && request.negative_conditioning.is_none());
        let crop = [told.crop_top, told.crop_left].map(|edge| if cut { edge as f32 } else { 0.0 });
        let size = |of: fn(&MicroConditioning) -> Option<Size>| {
            let Size { width, height } = of(told).or(of(prompt)).unwrap_or(own);
            [height as f32, width as f32]
        };
        let mut ids = size(|told| told.original_size).to_vec();
        ids.extend(crop);
        if refines {
            ids.push(score);
        } else {
            ids.extend(size(|told| told.target_size));
        }
        ids
    }

    fn embed(&self, digest: Digest, prompt: &Prompt) -> Result<Embedded, BeginError> {
        self.texts.embedded(digest, || {
            let (hidden, pooled) =
                prompt::encode(&self.encoders, prompt).map_err(BeginError::Encode)?;
            Ok(Embedded { hidden, pooled })
        })
    }
}
