//! From tensors to kernels and back.
#![allow(unsafe_code)]

use std::sync::Arc;

use candle_core::backend::BackendStorage;
use candle_core::cuda_backend::cudarc::driver::{
    CudaFunction, CudaSlice, CudaStream, CudaView, DevicePtr, DevicePtrMut, DeviceRepr,
    DriverError, LaunchArgs, LaunchConfig,
};
use candle_core::cuda_backend::{CudaDType, WrapErr};
use candle_core::{
    CpuStorage, CudaDevice, CudaStorage, CustomOp1, DType, Layout, Result, Shape, Storage, Tensor,
};

/// Threads of a block, where a kernel does not ask for another number.
pub(super) const THREADS: u32 = 256;
/// Blocks of kernels that walk over their values: enough to fill every GPU several times over.
const MOST_BLOCKS: usize = 8192;

/// A type that models compute in.
pub(super) trait Value: CudaDType + DeviceRepr + 'static {
    /// What kernels call it.
    const NAME: &'static str;
}

impl Value for f32 {
    const NAME: &'static str = "f32";
}
impl Value for half::f16 {
    const NAME: &'static str = "f16";
}
impl Value for half::bf16 {
    const NAME: &'static str = "bf16";
}

/// Whether the kernels know where a tensor is and its type.
pub(super) fn takes(x: &Tensor) -> bool {
    x.device().is_cuda() && matches!(x.dtype(), DType::F32 | DType::F16 | DType::BF16)
}

/// `$work` with `$T` as the type of values that `$dtype` names.
macro_rules! by_type {
    ($dtype:expr, $T:ident => $work:expr) => {
        match $dtype {
            candle_core::DType::F32 => {
                type $T = f32;
                $work
            }
            candle_core::DType::F16 => {
                type $T = half::f16;
                $work
            }
            candle_core::DType::BF16 => {
                type $T = half::bf16;
                $work
            }
            other => candle_core::bail!("no kernel computes in {other:?}"),
        }
    };
}
pub(super) use by_type;

/// A kernel source as PTX.
pub(super) struct Module {
    pub(super) name: &'static str,
    pub(super) ptx: &'static str,
}

impl Module {
    /// A kernel, loaded at its first use on a device.
    pub(super) fn kernel(&self, device: &CudaDevice, name: &str) -> Result<Function> {
        let function = device.get_or_load_custom_func(name, self.name, self.ptx)?;
        Ok(Function {
            function: function.into_cuda_function(),
            stream: device.cuda_stream(),
        })
    }
}

/// A kernel, and the stream that it is launched on.
pub(super) struct Function {
    function: CudaFunction,
    stream: Arc<CudaStream>,
}

impl Function {
    pub(super) fn builder(&self) -> LaunchArgs<'_> {
        self.stream.launch_builder(&self.function)
    }
}

/// As candle reports what the driver says.
pub(super) fn launched<T>(answer: std::result::Result<T, DriverError>) -> Result<()> {
    answer.w().map(drop)
}

macro_rules! module {
    ($name:literal) => {
        $crate::cuda::launch::Module {
            name: concat!("inkstone-", $name),
            ptx: include_str!(concat!(env!("OUT_DIR"), "/", $name, ".ptx")),
        }
    };
}
pub(super) use module;

/// Values that kernels read and write at once: eight where rows allow it.
pub(super) fn width(row: usize) -> usize {
    if row.is_multiple_of(8) { 8 } else { 1 }
}

/// Blocks for a kernel that walks over `count` vectors.
pub(super) fn walking(count: usize) -> LaunchConfig {
    let blocks = count.div_ceil(THREADS as usize).clamp(1, MOST_BLOCKS);
    LaunchConfig {
        grid_dim: (blocks as u32, 1, 1),
        block_dim: (THREADS, 1, 1),
        shared_mem_bytes: 0,
    }
}

/// As kernels count: what does not fit is no shape that a model has.
pub(super) fn int(value: usize) -> Result<i32> {
    i32::try_from(value)
        .map_err(|_| candle_core::Error::Msg(format!("{value} is too large for a kernel")))
}

/// The address of a tensor's first value. The tensor must live until the kernel that is given the address has been launched:
/// what was launched earlier in the stream is done before memory is used again.
pub(super) fn address<T: Value>(x: &Tensor) -> Result<u64> {
    let (storage, layout) = x.storage_and_layout();
    let Storage::Cuda(storage) = &*storage else {
        candle_core::bail!("a kernel was given a tensor of another device")
    };
    let Some((start, end)) = layout.contiguous_offsets() else {
        candle_core::bail!("a kernel was given a tensor with holes")
    };
    let stream = storage.device().cuda_stream();
    let view = storage.as_cuda_slice::<T>()?.slice(start..end);
    Ok(view_address(&view, &stream))
}

fn view_address<T>(view: &CudaView<'_, T>, stream: &CudaStream) -> u64 {
    view.device_ptr(stream).0
}

/// The address of memory that a kernel will write.
pub(super) fn slice_address<T>(slice: &mut CudaSlice<T>, stream: &CudaStream) -> u64 {
    slice.device_ptr_mut(stream).0
}

/// A new tensor of `shape` that `work` writes whole, given the addresses of `x`'s values and its own.
///
/// # Safety
///
/// `work` must launch kernels that read no more than `x` and write every value of the result and nothing else.
pub(super) unsafe fn produce<T: Value>(
    x: &Tensor,
    shape: &[usize],
    work: impl Fn(&CudaDevice, u64, u64) -> Result<()>,
) -> Result<Tensor> {
    let count: usize = shape.iter().product();
    let op = Kernel(|storage: &CudaStorage, layout: &Layout| {
        let device = storage.device();
        let Some((start, end)) = layout.contiguous_offsets() else {
            candle_core::bail!("a kernel was given a tensor with holes")
        };
        let view = storage.as_cuda_slice::<T>()?.slice(start..end);
        // SAFETY: what it holds is written by `work`, whose caller promises that it writes all of it.
        let mut out = unsafe { device.alloc::<T>(count)? };
        let stream = device.cuda_stream();
        let (from, to) = (
            view_address(&view, &stream),
            slice_address(&mut out, &stream),
        );
        if count > 0 {
            work(device, from, to)?;
        }
        Ok((
            CudaStorage::wrap_cuda_slice(out, device.clone()),
            Shape::from(shape),
        ))
    });
    x.contiguous()?.apply_op1_no_bwd(&op)
}

/// Uninitialised memory for what kernels pass on to each other.
///
/// # Safety
///
/// It must be written before it is read.
pub(super) unsafe fn scratch<T: DeviceRepr>(
    device: &CudaDevice,
    count: usize,
) -> Result<CudaSlice<T>> {
    // SAFETY: the caller writes it before it is read.
    unsafe { device.alloc::<T>(count) }
}

/// Launches a kernel with these arguments, in order.
///
/// # Safety
///
/// Number, order and types of the arguments must be those of the kernel, and the memory behind addresses as large as it takes.
macro_rules! launch {
    ($function:expr, $config:expr, $($argument:expr),+ $(,)?) => {{
        use candle_core::cuda_backend::cudarc::driver::PushKernelArg as _;
        let function = $function;
        let mut builder = function.builder();
        candle_core::builder_arg!(builder, $($argument),+);
        // SAFETY: as the macro's caller promises.
        #[allow(unused_unsafe, reason = "callers mostly stand in a block of their own")]
        let answer = unsafe { builder.launch($config) };
        $crate::cuda::launch::launched(answer)
    }};
}
pub(super) use launch;

/// A kernel as candle runs it. There is no form for the CPU: that is the plain form of the operation.
struct Kernel<F>(F);

impl<F> CustomOp1 for Kernel<F>
where
    F: Fn(&CudaStorage, &Layout) -> Result<(CudaStorage, Shape)>,
{
    fn name(&self) -> &'static str {
        "kernel"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        candle_core::bail!("a kernel for the GPU was given a tensor of the CPU")
    }

    fn cuda_fwd(&self, storage: &CudaStorage, layout: &Layout) -> Result<(CudaStorage, Shape)> {
        (self.0)(storage, layout)
    }
}
