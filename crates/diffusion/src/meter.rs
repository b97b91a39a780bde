//! What a pass takes of memory, measured while it runs.
//!
//! On a GPU the pool of memory tells. On the processor the allocator does: [`MeteredAllocator`] counts what the threads
//! that compute have, from the beginning of a pass to its end; the [pool](crate::ops::pool) of buffers is empty when it
//! begins. Threads that do something else are not counted. A pass that ran beside another tells nothing, for whose
//! memory is whose cannot be said.
#![allow(unsafe_code)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::hint::black_box;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

use candle_core::Device;

use crate::gpu::{gpu_memory, reset_gpu_peak};
use crate::ops::pool;

/// The system's allocator, which counts for those who measure. Where a program does not install it, nothing is measured on
/// the processor, and memory is what the shapes say.
///
/// ```no_run
/// #[global_allocator]
/// static ALLOCATOR: diffusion::MeteredAllocator = diffusion::MeteredAllocator;
/// ```
#[derive(Debug, Clone, Copy, Default)]
pub struct MeteredAllocator;

thread_local! {
    /// Whether what this thread allocates counts. Has no destructor, so that it can be read whenever something is allocated.
    static COUNTS: Cell<bool> = const { Cell::new(false) };
}

/// Bytes that counted threads allocated, less those that they gave back; may be below zero, for they also give back what
/// others allocated. Only differences tell something.
static LIVE: AtomicI64 = AtomicI64::new(0);
/// The most that it has been since it was last set.
static PEAK: AtomicI64 = AtomicI64::new(0);
/// Passes that have ever begun, in the upper half, and those that run now, in the lower: read and changed together.
static PASSES: AtomicU64 = AtomicU64::new(0);
const ONE_BEGUN: u64 = 1 << 32;
const RUNNING: u64 = ONE_BEGUN - 1;

fn count(change: i64) {
    // A thread that is ending has no more thread-locals, and nothing to count.
    if COUNTS.try_with(Cell::get).unwrap_or(false) {
        let live = LIVE.fetch_add(change, Ordering::Relaxed) + change;
        if change > 0 {
            PEAK.fetch_max(live, Ordering::Relaxed);
        }
    }
}

/// No object is larger than `isize::MAX`.
fn signed(bytes: usize) -> i64 {
    bytes as i64
}

// SAFETY: every call is the system allocator's own; counting allocates nothing and changes nothing about it.
unsafe impl GlobalAlloc for MeteredAllocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(signed(layout.size()));
        // SAFETY: the caller's promises are the same.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(signed(layout.size()));
        // SAFETY: as above.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        count(-signed(layout.size()));
        // SAFETY: as above.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // Both may be there for a moment.
        count(signed(size));
        count(-signed(layout.size()));
        // SAFETY: as above.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

/// What this thread allocates counts from now on: it does nothing but compute.
pub(crate) fn count_this_thread() {
    COUNTS.set(true);
}

/// This thread counts while it lives.
struct Counted {
    before: bool,
}

impl Counted {
    fn begin() -> Self {
        Self {
            before: COUNTS.replace(true),
        }
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        COUNTS.set(self.before);
    }
}

/// A pass that runs, whether anybody wants to know what it takes or not.
struct Running {
    number: u64,
    alone: bool,
}

impl Running {
    fn begin() -> Self {
        let before = PASSES.fetch_add(ONE_BEGUN + 1, Ordering::AcqRel);
        Self {
            number: (before / ONE_BEGUN + 1) & RUNNING,
            alone: before & RUNNING == 0,
        }
    }

    /// Whether no other ran at any moment of it.
    fn was_alone(&self) -> bool {
        self.alone && PASSES.load(Ordering::Acquire) / ONE_BEGUN == self.number
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        PASSES.fetch_sub(1, Ordering::AcqRel);
    }
}

/// Runs a pass. The most bytes that it took beyond what lived before it, if `wanted` and if that can be told.
pub(crate) fn measured<T>(
    device: &Device,
    wanted: bool,
    pass: impl FnOnce() -> T,
) -> (Option<u64>, T) {
    let running = Running::begin();
    if !wanted {
        return (None, pass());
    }
    let (bytes, result) = if device.is_cpu() {
        on_processor(pass)
    } else {
        on_gpu(device, pass)
    };
    (bytes.filter(|_| running.was_alone()), result)
}

fn on_processor<T>(pass: impl FnOnce() -> T) -> (Option<u64>, T) {
    let _counted = Counted::begin();
    let before = LIVE.load(Ordering::Relaxed);
    let probe = black_box(Box::new(0_u8));
    let installed = LIVE.load(Ordering::Relaxed) != before;
    drop(probe);
    // Buffers that lay ready would serve it without being counted.
    pool::empty();
    let before = LIVE.load(Ordering::Relaxed);
    PEAK.store(before, Ordering::Relaxed);
    let result = pass();
    let fresh = PEAK.load(Ordering::Relaxed) - before;
    (u64::try_from(fresh).ok().filter(|_| installed), result)
}

fn on_gpu<T>(device: &Device, pass: impl FnOnce() -> T) -> (Option<u64>, T) {
    let before = gpu_memory(device).map(|memory| memory.used);
    reset_gpu_peak(device);
    let result = pass();
    let peak = gpu_memory(device).map(|memory| memory.peak);
    let bytes = peak.zip(before).map(|(p, b)| p.saturating_sub(b));
    (bytes, result)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pass_beside_another_is_known_not_to_be_alone() {
        // Other tests compute meanwhile: that one ran inside is all that can be asserted.
        let outer = Running::begin();
        let inner = Running::begin();
        assert!(!inner.was_alone());
        drop(inner);
        assert!(!outer.was_alone());
    }

    #[test]
    fn without_the_allocator_nothing_is_told() {
        let (bytes, result) = measured(&Device::Cpu, true, || vec![0_u8; 1 << 20].len());
        assert_eq!((bytes, result), (None, 1 << 20));
    }
}
