//! GPUs through CUDA's driver.
#![allow(unsafe_code)]

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Mutex, PoisonError};

use candle_core::cuda_backend::cudarc::driver::{CudaContext, DriverError, sys};
use candle_core::{CudaDevice, Device};

use super::{GpuError, GpuMemory};

/// The devices opened so far. A second context or pool for the same GPU would hold memory that the first cannot use.
static OPEN: Mutex<Option<HashMap<usize, CudaDevice>>> = Mutex::new(None);

/// Unused memory that the pool keeps for the next allocation: all of it, for a denoising step asks for the same sizes as the last,
/// and returning them costs a wait for the GPU. [`release`] gives it back when a model goes.
const KEPT: u64 = u64::MAX;

pub(super) fn open(number: usize) -> Result<Device, GpuError> {
    let mut open = OPEN.lock().unwrap_or_else(PoisonError::into_inner);
    let open = open.get_or_insert_default();
    if let Some(device) = open.get(&number) {
        return Ok(Device::Cuda(device.clone()));
    }
    // cudarc panics where a library or a symbol of it is missing.
    let device = catch_unwind(AssertUnwindSafe(|| make(number))).unwrap_or_else(|_| {
        Err(GpuError::Unusable {
            number,
            reason: "a CUDA library is missing or of another version".to_owned(),
        })
    })?;
    open.insert(number, device.clone());
    Ok(Device::Cuda(device))
}

fn make(number: usize) -> Result<CudaDevice, GpuError> {
    let count = CudaContext::device_count().map_err(|error| GpuError::NoDevice {
        reason: said(error),
    })?;
    let count = usize::try_from(count).unwrap_or(0);
    if count == 0 {
        return Err(GpuError::NoDevice {
            reason: "the driver lists none".to_owned(),
        });
    }
    if number >= count {
        return Err(GpuError::NoSuchDevice { number, count });
    }
    let unusable = |reason: String| GpuError::Unusable { number, reason };
    // One stream for all threads: candle's default is a stream for each, and nothing would order what one thread
    // writes before what another reads.
    let device =
        CudaDevice::new_with_stream(number).map_err(|error| unusable(error.to_string()))?;
    // SAFETY: all work on this device goes to its one stream, as `OPEN` hands out no other; nothing is left to order by
    // events, which would cost several calls of the driver for each tensor.
    unsafe { device.disable_event_tracking() };
    let kept = set(
        &device,
        sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD,
        KEPT,
    );
    kept.map_err(|error| unusable(said(error)))?;
    Ok(device)
}

/// The driver's own words, where it has some.
fn said(error: DriverError) -> String {
    let code = error.0;
    match code {
        sys::CUresult::CUDA_ERROR_NO_DEVICE => "the driver finds no GPU".to_owned(),
        sys::CUresult::CUDA_ERROR_SYSTEM_DRIVER_MISMATCH => {
            "the driver's parts are of different versions".to_owned()
        }
        _ => match error.error_string() {
            Ok(text) => format!("{} ({code:?})", text.to_string_lossy()),
            Err(_) => format!("{code:?}"),
        },
    }
}

fn cuda(device: &Device) -> Option<&CudaDevice> {
    device.as_cuda_device().ok()
}

fn pool(device: &CudaDevice) -> Result<sys::CUmemoryPool, DriverError> {
    let stream = device.cuda_stream();
    stream.context().bind_to_thread()?;
    let mut pool = std::ptr::null_mut();
    // SAFETY: the device is one of the context's.
    unsafe {
        sys::cuDeviceGetDefaultMemPool(&raw mut pool, stream.context().cu_device()).result()?;
    }
    Ok(pool)
}

fn set(
    device: &CudaDevice,
    attribute: sys::CUmemPool_attribute,
    mut value: u64,
) -> Result<(), DriverError> {
    let pool = pool(device)?;
    // SAFETY: the attributes that are set here are 64-bit numbers.
    unsafe { sys::cuMemPoolSetAttribute(pool, attribute, (&raw mut value).cast()).result() }
}

fn get(device: &CudaDevice, attribute: sys::CUmemPool_attribute) -> Result<u64, DriverError> {
    let pool = pool(device)?;
    let mut value = 0_u64;
    // SAFETY: the attributes that are read here are 64-bit numbers.
    unsafe {
        sys::cuMemPoolGetAttribute(pool, attribute, (&raw mut value).cast()).result()?;
    }
    Ok(value)
}

pub(super) fn memory(device: &Device) -> Option<GpuMemory> {
    let device = cuda(device)?;
    let stream = device.cuda_stream();
    stream.synchronize().ok()?;
    let (free, total) = stream.context().mem_get_info().ok()?;
    let used = sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_USED_MEM_CURRENT;
    let peak = sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_USED_MEM_HIGH;
    Some(GpuMemory {
        free: free as u64,
        total: total as u64,
        used: get(device, used).ok()?,
        peak: get(device, peak).ok()?,
    })
}

pub(super) fn release(device: &Device) {
    let Some(device) = cuda(device) else {
        return;
    };
    // A device that fails here fails at its next use, where someone can be told.
    if device.cuda_stream().synchronize().is_ok()
        && let Ok(pool) = pool(device)
    {
        // SAFETY: the pool is the device's own.
        let _ = unsafe { sys::cuMemPoolTrimTo(pool, 0) }.result();
    }
}

pub(super) fn reset_peak(device: &Device) {
    if let Some(device) = cuda(device) {
        let _ = set(
            device,
            sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_USED_MEM_HIGH,
            0,
        );
    }
}
