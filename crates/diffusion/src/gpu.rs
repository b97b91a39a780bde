//! NVIDIA GPUs: opened once a process, with one pool of memory each. In builds without the feature `cuda` there are none.

use candle_core::Device;

/// Why a GPU cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum GpuError {
    /// The program was built for CPUs alone.
    #[error("this build has no CUDA")]
    NotBuilt,
    /// The driver finds no GPU, or there is no driver.
    #[error("no CUDA device is there: {reason}")]
    NoDevice {
        /// What the driver says.
        reason: String,
    },
    /// There are GPUs, but not this one.
    #[error("there is no CUDA device {number}; this machine has {count}, counted from 0")]
    NoSuchDevice {
        /// Which was asked for.
        number: usize,
        /// How many there are.
        count: usize,
    },
    /// It is there and cannot be used: busy, broken, or its libraries are missing.
    #[error("CUDA device {number} cannot be used: {reason}")]
    Unusable {
        /// Which was asked for.
        number: usize,
        /// Why not.
        reason: String,
    },
}

/// A GPU's memory, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GpuMemory {
    /// What nobody uses.
    pub free: u64,
    /// All that it has.
    pub total: u64,
    /// What this process's tensors take.
    pub used: u64,
    /// The most that they took since [`reset_gpu_peak`].
    pub peak: u64,
}

#[cfg(not(feature = "cuda"))]
mod device {
    use super::{Device, GpuError, GpuMemory};

    pub(super) fn open(_: usize) -> Result<Device, GpuError> {
        Err(GpuError::NotBuilt)
    }

    pub(super) fn memory(_: &Device) -> Option<GpuMemory> {
        None
    }

    pub(super) fn release(_: &Device) {}

    pub(super) fn reset_peak(_: &Device) {}
}

#[cfg(feature = "cuda")]
#[path = "cuda/device.rs"]
mod device;

/// The GPU of this number, counted from 0: the same one, with the same stream and memory, at each call.
///
/// # Errors
///
/// Says what is missing. Never panics, and takes nothing where it fails.
pub fn open_gpu(number: usize) -> Result<Device, GpuError> {
    device::open(number)
}

/// How a device's memory is used; `None` for the CPU.
pub fn gpu_memory(device: &Device) -> Option<GpuMemory> {
    device::memory(device)
}

/// Gives memory that no tensor uses back to the GPU, for other processes. Waits for what was asked of it so far.
pub fn release_gpu_memory(device: &Device) {
    device::release(device);
}

/// Begins to count [`GpuMemory::peak`] anew.
pub fn reset_gpu_peak(device: &Device) {
    device::reset_peak(device);
}

/// Gives a device's unused memory back when it goes.
#[derive(Debug)]
pub(crate) struct ReturnedMemory(pub(crate) Device);

impl Drop for ReturnedMemory {
    fn drop(&mut self) {
        release_gpu_memory(&self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cpu_has_no_memory_of_its_own_to_give_back() {
        assert_eq!(gpu_memory(&Device::Cpu), None);
        release_gpu_memory(&Device::Cpu);
    }

    #[cfg(not(feature = "cuda"))]
    #[test]
    fn a_build_for_cpus_says_that_it_is_one() {
        let error = open_gpu(0).unwrap_err();
        assert_eq!(error.to_string(), "this build has no CUDA");
    }
}
