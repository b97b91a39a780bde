//! What the encoders make of texts, kept for the next job that says the same.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use candle_core::Tensor;

use super::Model;
use crate::error::BeginError;
use crate::job::Request;
use crate::sha256::Sha256;
use crate::unet::{Conditioning, TIME_IDS};

/// What is kept of texts that no job needs any more, in bytes: some fifty prompts of Stable Diffusion XL.
const KEPT_BYTES: usize = 32 << 20;

/// What a text says: both encoders' hidden states side by side, `(tokens, width)`, and the second's pooled state,
/// `(1, width)`.
#[derive(Clone, Debug)]
pub(super) struct Embedded {
    hidden: Tensor,
    pooled: Tensor,
}

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
        let prompt_digest = digest(b"text", &[request.prompt.as_bytes()]);
        let prompt = || self.embed(prompt_digest, &request.prompt);
        let told = self.told(request, prompt_digest, prompt)?;
        if request.guidance_scale <= 1.0 {
            return Ok(Told {
                prompt: told,
                negative: None,
            });
        }
        let negative = match &request.negative_prompt {
            None if self.zeros_for_no_prompt => {
                let zeros = || prompt()?.zeros_like().map_err(BeginError::Encode);
                self.told(request, digest(b"zeros", &[]), zeros)?
            }
            text => {
                let text = text.as_deref().unwrap_or_default();
                let digest = digest(b"text", &[text.as_bytes()]);
                self.told(request, digest, || self.embed(digest, text))?
            }
        };
        Ok(Told {
            prompt: told,
            negative: Some(negative),
        })
    }

    fn told(
        &self,
        request: &Request,
        text: Digest,
        embedded: impl FnOnce() -> Result<Embedded, BeginError>,
    ) -> Result<Arc<Conditioning>, BeginError> {
        let (height, width) = (request.height as f32, request.width as f32);
        let time_ids: [f32; TIME_IDS] = [height, width, 0.0, 0.0, height, width];
        let sizes: Vec<u8> = time_ids.iter().flat_map(|id| id.to_le_bytes()).collect();
        self.texts
            .conditioning(digest(b"conditioning", &[&text, &sizes]), || {
                let Embedded { hidden, pooled } = embedded()?;
                self.unet
                    .condition(&hidden, &pooled, time_ids)
                    .map_err(BeginError::Encode)
            })
    }

    fn embed(&self, digest: Digest, text: &str) -> Result<Embedded, BeginError> {
        self.texts.embedded(digest, || self.encode(text))
    }

    fn encode(&self, text: &str) -> Result<Embedded, BeginError> {
        let encode = |which: usize| {
            let ids = self.tokenizers[which]
                .encode(text)
                .map_err(|reason| BeginError::Tokenize { reason })?;
            self.encoders[which]
                .encode(&ids)
                .map_err(BeginError::Encode)
        };
        let (first, second) = (encode(0)?, encode(1)?);
        let hidden =
            Tensor::cat(&[&first.hidden, &second.hidden], 1).map_err(BeginError::Encode)?;
        let pooled = second.pooled.ok_or_else(|| BeginError::Tokenize {
            reason: "no pooled state".to_owned(),
        })?;
        Ok(Embedded { hidden, pooled })
    }
}
