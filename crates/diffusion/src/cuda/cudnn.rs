//! cuDNN's convolution behind owned descriptors: a [`Plan`] for each shape, made once a thread.
#![allow(unsafe_code)]

use std::cell::Cell;
use std::ffi::{c_int, c_void};
use std::ptr;

use candle_core::cuda_backend::cudarc::cudnn::{CudnnError, result, sys};
use candle_core::{CudaDevice, DType};

/// Bytes that a convolution may take beside its tensors. The fastest algorithms of small pictures want more than they are worth.
const MAX_WORKSPACE: usize = 512 << 20;
const ALGORITHMS: usize = 8;

/// The shape of a convolution, and how its products are rounded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Problem {
    pub(super) dtype: DType,
    pub(super) batch: i32,
    /// Of the input.
    pub(super) height: i32,
    pub(super) width: i32,
    pub(super) input: i32,
    pub(super) output: i32,
    pub(super) stride: i32,
    /// Whether f32 factors may be rounded to TF32.
    pub(super) tf32: bool,
}

impl Problem {
    /// Height and width of the result, for a 3×3 window and one pixel of padding.
    pub(super) fn result(&self) -> (i32, i32) {
        let side = |side: i32| (side - 1) / self.stride + 1;
        (side(self.height), side(self.width))
    }

    fn data_type(&self) -> Result<sys::cudnnDataType_t, CudnnError> {
        match self.dtype {
            DType::F32 => Ok(sys::cudnnDataType_t::CUDNN_DATA_FLOAT),
            DType::F16 => Ok(sys::cudnnDataType_t::CUDNN_DATA_HALF),
            DType::BF16 => Ok(sys::cudnnDataType_t::CUDNN_DATA_BFLOAT16),
            _ => Err(CudnnError(sys::cudnnStatus_t::CUDNN_STATUS_NOT_SUPPORTED)),
        }
    }

    fn math(&self) -> sys::cudnnMathType_t {
        match self.dtype {
            DType::F32 if !self.tf32 => sys::cudnnMathType_t::CUDNN_FMA_MATH,
            DType::F16 => sys::cudnnMathType_t::CUDNN_TENSOR_OP_MATH,
            // TF32 for f32, and bf16's own products.
            _ => sys::cudnnMathType_t::CUDNN_DEFAULT_MATH,
        }
    }
}

/// cuDNN for one thread; its handles must not be used by two.
pub(super) struct Handle(sys::cudnnHandle_t);

impl Handle {
    /// A handle whose work goes to the device's stream.
    pub(super) fn new(device: &CudaDevice) -> Result<Self, CudnnError> {
        let handle = Self(result::create_handle()?);
        // SAFETY: the handle was just made; the device's stream lives as long as the device, which whoever convolves holds.
        unsafe { result::set_stream(handle.0, device.cuda_stream().cu_stream().cast()) }?;
        Ok(handle)
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        // SAFETY: made in `new`, destroyed here alone. An error leaves nothing to be done.
        let _ = unsafe { result::destroy_handle(self.0) };
    }
}

/// A descriptor and how it is destroyed.
struct Owned<T: Copy>(T, unsafe fn(T) -> Result<(), CudnnError>);

impl<T: Copy> Drop for Owned<T> {
    fn drop(&mut self) {
        // SAFETY: the value came from the function that goes with this one, and is destroyed here alone.
        let _ = unsafe { (self.1)(self.0) };
    }
}

type Tensor = Owned<sys::cudnnTensorDescriptor_t>;

fn tensor(data: sys::cudnnDataType_t, dims: [c_int; 4]) -> Result<Tensor, CudnnError> {
    let owned = Owned(
        result::create_tensor_descriptor()?,
        result::destroy_tensor_descriptor as unsafe fn(_) -> _,
    );
    let format = sys::cudnnTensorFormat_t::CUDNN_TENSOR_NHWC;
    // SAFETY: the descriptor was just made.
    unsafe { result::set_tensor4d_descriptor(owned.0, format, data, dims) }?;
    Ok(owned)
}

unsafe fn destroy_activation(
    activation: sys::cudnnActivationDescriptor_t,
) -> Result<(), CudnnError> {
    // SAFETY: as the caller promises.
    unsafe { sys::cudnnDestroyActivationDescriptor(activation) }.result()
}

/// What was found out about a shape: descriptors, the algorithm, how much memory it takes beside.
pub(super) struct Plan {
    x: Tensor,
    y: Tensor,
    bias: Tensor,
    filter: Owned<sys::cudnnFilterDescriptor_t>,
    convolution: Owned<sys::cudnnConvolutionDescriptor_t>,
    identity: Owned<sys::cudnnActivationDescriptor_t>,
    algorithm: sys::cudnnConvolutionFwdAlgo_t,
    workspace: usize,
    fused: Cell<Option<usize>>,
}

/// The one algorithm that cuDNN fuses bias and addition with, without an activation.
const FUSED: sys::cudnnConvolutionFwdAlgo_t =
    sys::cudnnConvolutionFwdAlgo_t::CUDNN_CONVOLUTION_FWD_ALGO_IMPLICIT_PRECOMP_GEMM;

/// Addresses of a convolution's tensors, as [`Plan`]'s shapes say. `workspace` may be null where none is needed.
#[derive(Clone, Copy, Debug)]
pub(super) struct Operands {
    pub(super) x: u64,
    pub(super) filter: u64,
    pub(super) y: u64,
    pub(super) workspace: u64,
}

impl Plan {
    /// Asks cuDNN how it would do this.
    pub(super) fn new(handle: &Handle, problem: Problem) -> Result<Self, CudnnError> {
        let data = problem.data_type()?;
        let (rows, columns) = problem.result();
        let Problem {
            batch,
            height,
            width,
            input,
            output,
            stride,
            ..
        } = problem;
        let x = tensor(data, [batch, input, height, width])?;
        let y = tensor(data, [batch, output, rows, columns])?;
        let bias = tensor(data, [1, output, 1, 1])?;
        let filter = Owned(
            result::create_filter_descriptor()?,
            result::destroy_filter_descriptor as unsafe fn(_) -> _,
        );
        let convolution = Owned(
            result::create_convolution_descriptor()?,
            result::destroy_convolution_descriptor as unsafe fn(_) -> _,
        );
        let identity = Owned(
            result::create_activation_descriptor()?,
            destroy_activation as unsafe fn(_) -> _,
        );
        // SAFETY: the descriptors were just made.
        unsafe {
            let format = sys::cudnnTensorFormat_t::CUDNN_TENSOR_NHWC;
            result::set_filter4d_descriptor(filter.0, data, format, [output, input, 3, 3])?;
            let mode = sys::cudnnConvolutionMode_t::CUDNN_CROSS_CORRELATION;
            // Sums in f32 whatever the tensors are.
            let sums = sys::cudnnDataType_t::CUDNN_DATA_FLOAT;
            result::set_convolution2d_descriptor(
                convolution.0,
                1,
                1,
                stride,
                stride,
                1,
                1,
                mode,
                sums,
            )?;
            result::set_convolution_math_type(convolution.0, problem.math())?;
            result::set_activation_descriptor(
                identity.0,
                sys::cudnnActivationMode_t::CUDNN_ACTIVATION_IDENTITY,
                sys::cudnnNanPropagation_t::CUDNN_PROPAGATE_NAN,
                0.0,
            )?;
        }
        let mut plan = Self {
            x,
            y,
            bias,
            filter,
            convolution,
            identity,
            algorithm: FUSED,
            workspace: 0,
            fused: Cell::new(None),
        };
        (plan.algorithm, plan.workspace) = plan.choose(handle)?;
        plan.fused = Cell::new(
            plan.room(handle, FUSED)
                .ok()
                .filter(|room| *room <= MAX_WORKSPACE),
        );
        Ok(plan)
    }

    /// The algorithm that cuDNN holds for the fastest of those whose workspace is not too large.
    fn choose(
        &self,
        handle: &Handle,
    ) -> Result<(sys::cudnnConvolutionFwdAlgo_t, usize), CudnnError> {
        let mut count = 0;
        // SAFETY: plain data, which cuDNN fills up to `count`.
        let mut found: [sys::cudnnConvolutionFwdAlgoPerf_t; ALGORITHMS] =
            unsafe { std::mem::zeroed() };
        // SAFETY: handle and descriptors live; `found` has as many places as are said.
        unsafe {
            result::get_convolution_forward_algorithm(
                handle.0,
                self.x.0,
                self.filter.0,
                self.convolution.0,
                self.y.0,
                ALGORITHMS as c_int,
                &raw mut count,
                found.as_mut_ptr(),
            )?;
        }
        found
            .iter()
            .take(count.max(0) as usize)
            .filter(|found| found.status == sys::cudnnStatus_t::CUDNN_STATUS_SUCCESS)
            .filter_map(|found| Some((found.algo, self.room(handle, found.algo).ok()?)))
            .find(|(_, room)| *room <= MAX_WORKSPACE)
            .ok_or(CudnnError(sys::cudnnStatus_t::CUDNN_STATUS_NOT_SUPPORTED))
    }

    fn room(
        &self,
        handle: &Handle,
        algorithm: sys::cudnnConvolutionFwdAlgo_t,
    ) -> Result<usize, CudnnError> {
        // SAFETY: handle and descriptors live.
        unsafe {
            result::get_convolution_forward_workspace_size(
                handle.0,
                self.x.0,
                self.filter.0,
                self.convolution.0,
                self.y.0,
                algorithm,
            )
        }
    }

    /// Bytes of memory that either form takes beside.
    pub(super) fn workspace(&self) -> usize {
        self.workspace.max(self.fused.get().unwrap_or(0))
    }

    /// y = x ∗ filter.
    ///
    /// # Safety
    ///
    /// The operands must be of the plan's shapes, and the workspace of its size.
    pub(super) unsafe fn run(&self, handle: &Handle, operands: Operands) -> Result<(), CudnnError> {
        let (one, zero) = (1.0_f32, 0.0_f32);
        // SAFETY: as the caller promises.
        unsafe {
            result::convolution_forward(
                handle.0,
                scalar(&one),
                self.x.0,
                operands.x as *const c_void,
                self.filter.0,
                operands.filter as *const c_void,
                self.convolution.0,
                self.algorithm,
                operands.workspace as *mut c_void,
                self.workspace,
                scalar(&zero),
                self.y.0,
                operands.y as *mut c_void,
            )
        }
    }

    /// y = x ∗ filter + bias, plus `picture` of y's shape if there is one; answers whether cuDNN did. Where it once refused it is
    /// not asked again.
    ///
    /// # Safety
    ///
    /// As of [`Plan::run`]; `bias` has one value for each channel of y.
    pub(super) unsafe fn run_fused(
        &self,
        handle: &Handle,
        operands: Operands,
        bias: u64,
        picture: Option<u64>,
    ) -> bool {
        let Some(room) = self.fused.get() else {
            return false;
        };
        let one = 1.0_f32;
        let share = if picture.is_some() { 1.0_f32 } else { 0.0 };
        // SAFETY: as the caller promises. Where there is no picture y stands in its place with a share of zero, and is not read.
        let done = unsafe {
            result::convolution_bias_activation_forward(
                handle.0,
                scalar(&one),
                self.x.0,
                operands.x as *const c_void,
                self.filter.0,
                operands.filter as *const c_void,
                self.convolution.0,
                FUSED,
                operands.workspace as *mut c_void,
                room,
                scalar(&share),
                self.y.0,
                picture.unwrap_or(operands.y) as *const c_void,
                self.bias.0,
                bias as *const c_void,
                self.identity.0,
                self.y.0,
                operands.y as *mut c_void,
            )
        };
        if done.is_err() {
            self.fused.set(None);
        }
        done.is_ok()
    }
}

fn scalar(value: &f32) -> *const c_void {
    ptr::from_ref(value).cast()
}
