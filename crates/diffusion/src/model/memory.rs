//! What a model and its jobs take in memory, for those who must decide what fits before it is tried: from the shapes before a
//! pass of a shape has run, and what was measured from then on.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use super::Model;
use crate::job::Request;
use crate::meter;
use crate::unet::resnet_values;
use crate::vae::Tiling;

/// Shapes of passes that are remembered, each with what it takes. For those that come later the shapes alone tell.
const SHAPES: usize = 4096;
/// How often a shape is measured.
const TIMES: u32 = 2;
/// What is added to a measurement: a part of it for what the allocator loses, and what threads outside of ours (gemm's)
/// and CUDA's libraries have of their own.
const MARGIN_PART: u64 = 16;
const MARGIN: u64 = 2 << 20;

/// What runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    Step,
    Decode,
    Encode,
}

/// A pass whose memory can be told from its shape.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Pass {
    kind: Kind,
    /// Height and width of its latents.
    size: (usize, usize),
    /// Last, so that passes of more rows come behind.
    rows: usize,
}

impl Pass {
    /// One forward pass of the UNet.
    pub(super) fn step(size: (usize, usize), rows: usize) -> Option<Self> {
        let kind = Kind::Step;
        Some(Self { kind, size, rows })
    }

    /// One picture; in tiles it takes less than the shape tells.
    pub(super) fn decode(size: (usize, usize), tiling: Tiling) -> Option<Self> {
        Self::whole(Kind::Decode, size, tiling)
    }

    /// As [`Pass::decode`].
    pub(super) fn encode(size: (usize, usize), tiling: Tiling) -> Option<Self> {
        Self::whole(Kind::Encode, size, tiling)
    }

    fn whole(kind: Kind, size: (usize, usize), tiling: Tiling) -> Option<Self> {
        let rows = 1;
        matches!(tiling, Tiling::Whole).then_some(Self { kind, size, rows })
    }
}

/// The most that a shape was seen to take, and how often it was measured.
#[derive(Debug, Clone, Copy)]
struct Seen {
    bytes: u64,
    times: u32,
}

/// What passes took.
#[derive(Debug, Default)]
pub(super) struct Measurements(Mutex<BTreeMap<Pass, Seen>>);

impl Measurements {
    fn wants(&self, pass: Pass) -> bool {
        let seen = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match seen.get(&pass) {
            Some(known) => known.times < TIMES,
            None => seen.len() < SHAPES,
        }
    }

    /// The greater counts: a pass that few threads helped with took less than it may.
    fn note(&self, pass: Pass, bytes: u64) {
        let mut seen = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let known = seen.entry(pass).or_insert(Seen { bytes, times: 0 });
        known.bytes = known.bytes.max(bytes);
        known.times += 1;
    }

    /// What such a pass was measured to take, or one of more rows, which takes no less.
    fn known(&self, pass: Pass) -> Option<u64> {
        let seen = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let most = Pass {
            rows: usize::MAX,
            ..pass
        };
        seen.range(pass..=most).map(|(_, seen)| seen.bytes).min()
    }
}

/// What is reckoned with: what was measured, with a margin and what threads take that may not have helped then, unless the
/// shapes promise less.
fn reckoned(computed: u64, measured: Option<u64>, threads: u64) -> u64 {
    let with_margin = |bytes: u64| bytes + bytes / MARGIN_PART + MARGIN + threads;
    measured.map_or(computed, |bytes| computed.min(with_margin(bytes)))
}

/// What a pass takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PassMemory {
    /// Bytes, at most, that its shapes say.
    pub computed: u64,
    /// Bytes that it, or one of more rows, was seen to take. `None` before it has run, or where nothing can be measured.
    pub measured: Option<u64>,
    /// Bytes that threads which help take beside, if all of them do.
    threads: u64,
}

impl PassMemory {
    /// Bytes to reckon with: what was measured with a margin, and never more than the shapes say.
    pub fn bytes(self) -> u64 {
        reckoned(self.computed, self.measured, self.threads)
    }
}

impl Model {
    /// Bytes of the weights where they were placed.
    pub fn weights_bytes(&self) -> u64 {
        self.weights_bytes
    }

    /// Runs a pass and remembers what it took.
    pub(super) fn metered<T, E>(
        &self,
        pass: Option<Pass>,
        run: impl FnOnce() -> Result<T, E>,
    ) -> Result<T, E> {
        let wanted = pass.is_some_and(|pass| self.measured.wants(pass));
        let (bytes, result) = meter::measured(&self.place.device, wanted, run);
        if let (Some(pass), Some(bytes), Ok(_)) = (pass, bytes, &result) {
            self.measured.note(pass, bytes);
        }
        result
    }

    fn memory(&self, pass: Option<Pass>, computed: u64) -> PassMemory {
        PassMemory {
            computed,
            measured: pass.and_then(|pass| self.measured.known(pass)),
            threads: self.place.threads_scratch(),
        }
    }

    fn size_of_latents(&self, width: u32, height: u32) -> (usize, usize) {
        let factor = self.vae.config().factor();
        (height as usize / factor, width as usize / factor)
    }

    /// What one step of `rows` rows (see [`Job::rows`](crate::Job::rows)) of pictures of this size takes at its fullest,
    /// beside the weights and the jobs themselves.
    pub fn step_memory(&self, width: u32, height: u32, rows: usize) -> PassMemory {
        let size = self.size_of_latents(width, height);
        let computed = self.unet.pass_bytes(rows, size.0, size.1);
        self.memory(Pass::step(size, rows), computed)
    }

    /// What decoding one picture of this size takes at its fullest.
    pub fn decode_memory(&self, width: u32, height: u32) -> PassMemory {
        let pass = Pass::decode(self.size_of_latents(width, height), Tiling::Whole);
        self.memory(pass, self.computed_decode(width, height))
    }

    /// What encoding one picture of this size takes at its fullest.
    pub fn encode_memory(&self, width: u32, height: u32) -> PassMemory {
        let pass = Pass::encode(self.size_of_latents(width, height), Tiling::Whole);
        self.memory(pass, self.computed_encode(width, height))
    }

    fn computed_decode(&self, width: u32, height: u32) -> u64 {
        let pixels = width as usize * height as usize;
        let channels = self.vae.config().channels();
        let (first, second) = (channels[0], *channels.get(1).unwrap_or(&channels[0]));
        // The first block of the finest level, on what the level below left.
        let values = pixels * second + resnet_values(second, first, pixels);
        self.place.with_scratch((values * size_of::<f32>()) as u64)
    }

    fn computed_encode(&self, width: u32, height: u32) -> u64 {
        let pixels = width as usize * height as usize;
        let first = self.vae.config().channels()[0];
        let values = pixels * first + resnet_values(first, first, pixels);
        self.place.with_scratch((values * size_of::<f32>()) as u64)
    }

    /// Bytes that a job of this request holds between two steps, at most: jobs that say the same share what it means.
    pub fn job_bytes(&self, request: &Request) -> u64 {
        // Latents, estimate and what a solver keeps (four tensors at most: UniPC's of order 3), and their copies
        // during a step.
        const TENSORS: usize = 12;
        let rows = if request.guidance_scale > 1.0 { 2 } else { 1 };
        let tokens = self.limits.max_prompt_tokens as usize * self.chunks(request);
        let mut latents = self.elements(request) * TENSORS;
        if request.mask.is_some() {
            // The known part with its noise, or the masked picture; and the mask.
            latents += self.elements(request) * 3;
        }
        (latents * size_of::<f32>()) as u64 + self.unet.conditioning_bytes(tokens) * rows
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pass(rows: usize) -> Pass {
        Pass::step((16, 16), rows).unwrap()
    }

    #[test]
    fn a_shape_is_measured_twice_and_the_greater_counts() {
        let measured = Measurements::default();
        assert!(measured.wants(pass(2)));
        measured.note(pass(2), 50);
        assert!(measured.wants(pass(2)));
        measured.note(pass(2), 40);
        assert!(!measured.wants(pass(2)));
        assert_eq!(measured.known(pass(2)), Some(50));
    }

    #[test]
    fn fewer_rows_take_no_more_and_nothing_else_is_told() {
        let measured = Measurements::default();
        measured.note(pass(4), 70);
        measured.note(pass(8), 60);
        assert_eq!(measured.known(pass(2)), Some(60));
        assert_eq!(measured.known(pass(8)), Some(60));
        assert_eq!(measured.known(pass(9)), None);
        assert_eq!(measured.known(Pass::step((16, 32), 2).unwrap()), None);
        let decode = Pass::decode((16, 16), Tiling::Whole).unwrap();
        assert_eq!(measured.known(decode), None);
    }

    #[test]
    fn shapes_are_bounded() {
        let measured = Measurements::default();
        for rows in 0..SHAPES {
            assert!(measured.wants(pass(rows)));
            measured.note(pass(rows), 1);
        }
        assert!(!measured.wants(pass(SHAPES)));
        assert!(measured.wants(pass(0)), "it was measured only once");
    }

    #[test]
    fn what_is_reckoned_with_is_never_more_than_the_shapes_say() {
        assert_eq!(reckoned(1 << 30, None, 5), 1 << 30);
        assert_eq!(reckoned(1 << 30, Some(16 << 20), 1 << 20), 20 << 20);
        assert_eq!(reckoned(1 << 20, Some(16 << 20), 5), 1 << 20);
    }
}
