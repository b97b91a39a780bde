//! What a model and its jobs take in memory, from their shapes: for those who must decide what fits before it is tried.

use super::Model;
use crate::job::Request;
use crate::unet::resnet_values;

impl Model {
    /// Bytes of the weights where they were placed.
    pub fn weights_bytes(&self) -> u64 {
        self.weights_bytes
    }

    /// Bytes that one step of `rows` rows (see [`Job::rows`](crate::Job::rows)) of pictures of this size takes at its
    /// fullest, beside the weights and the jobs themselves.
    pub fn step_bytes(&self, width: u32, height: u32, rows: usize) -> u64 {
        let factor = self.vae.config().factor();
        let (height, width) = (height as usize / factor, width as usize / factor);
        self.unet.pass_bytes(rows, height, width)
    }

    /// Bytes that decoding one picture of this size takes at its fullest.
    pub fn decode_bytes(&self, width: u32, height: u32) -> u64 {
        let pixels = width as usize * height as usize;
        let channels = self.vae.config().channels();
        let (first, second) = (channels[0], *channels.get(1).unwrap_or(&channels[0]));
        // The first block of the finest level, on what the level below left.
        let values = pixels * second + resnet_values(second, first, pixels);
        (values * size_of::<f32>()) as u64
    }

    /// Bytes that encoding one picture of this size takes at its fullest.
    pub fn encode_bytes(&self, width: u32, height: u32) -> u64 {
        let pixels = width as usize * height as usize;
        let first = self.vae.config().channels()[0];
        let values = pixels * first + resnet_values(first, first, pixels);
        (values * size_of::<f32>()) as u64
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
