//! Buffers that are used again: memory that comes fresh from the system is paid for page by page, at every operation.

use std::ops::{Deref, DerefMut};
use std::sync::{Mutex, PoisonError};

use candle_core::{CpuStorage, InplaceOp1, Layout, Result, Tensor};

/// The most values that are kept for later, all buffers together: 64 MiB.
const KEPT: usize = 16 << 20;
/// The same in bytes.
pub(crate) const KEPT_BYTES: u64 = (KEPT * size_of::<f32>()) as u64;
/// The most buffers that are kept.
const BUFFERS: usize = 64;
/// A buffer serves a request that needs at least this part of it.
const WASTE: usize = 2;
/// Smaller ones are the allocator's to keep.
const SMALL: usize = 4 << 10;

static IDLE: Mutex<Vec<Vec<f32>>> = Mutex::new(Vec::new());

/// Values for scratch; they go back when dropped.
pub(crate) struct Buffer(Vec<f32>);

impl Deref for Buffer {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        &self.0
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [f32] {
        &mut self.0
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        give(std::mem::take(&mut self.0));
    }
}

/// Scratch of `count` values, whatever they are.
pub(crate) fn take(count: usize) -> Buffer {
    Buffer(values(count))
}

/// `count` values, whatever they are: zeros or what an operation left behind.
pub(crate) fn values(count: usize) -> Vec<f32> {
    if count < SMALL {
        return vec![0.0; count];
    }
    let found = {
        let mut idle = IDLE.lock().unwrap_or_else(PoisonError::into_inner);
        let fitting = idle
            .iter()
            .enumerate()
            .filter(|(_, buffer)| (count..=count * WASTE).contains(&buffer.len()))
            .min_by_key(|(_, buffer)| buffer.len())
            .map(|(index, _)| index);
        fitting.map(|index| idle.remove(index))
    };
    match found {
        Some(mut buffer) => {
            buffer.truncate(count);
            buffer
        }
        None => vec![0.0; count],
    }
}

/// Keeps a buffer for later if there is room; the oldest goes first.
pub(crate) fn give(mut buffer: Vec<f32>) {
    // Its length was cut to what was asked for; all of it was written once.
    if buffer.capacity() < SMALL || buffer.capacity() > KEPT {
        return;
    }
    buffer.resize(buffer.capacity(), 0.0);
    let mut idle = IDLE.lock().unwrap_or_else(PoisonError::into_inner);
    idle.push(buffer);
    let mut kept: usize = idle.iter().map(Vec::len).sum();
    while kept > KEPT || idle.len() > BUFFERS {
        kept -= idle.remove(0).len();
    }
}

/// Gives all that is kept back to the system.
pub(crate) fn empty() {
    let kept = std::mem::take(&mut *IDLE.lock().unwrap_or_else(PoisonError::into_inner));
    // Outside of the lock.
    drop(kept);
}

/// Works with a tensor for the last time: its memory serves the next operation.
///
/// Only for what an operation of this crate has just made: another handle on the same values would find them gone.
pub(crate) fn spend<R>(x: Tensor, work: impl FnOnce(&Tensor) -> Result<R>) -> Result<R> {
    let result = work(&x)?;
    if x.device().is_cpu() {
        x.inplace_op1(&Reclaim)?;
    }
    Ok(result)
}

struct Reclaim;

impl InplaceOp1 for Reclaim {
    fn name(&self) -> &'static str {
        "reclaim"
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, _: &Layout) -> Result<()> {
        if let CpuStorage::F32(values) = storage {
            give(std::mem::take(values));
        }
        Ok(())
    }
}
