//! Group and layer normalisation: `kernels/norm.cu`.
#![allow(unsafe_code)]

use std::sync::OnceLock;

use candle_core::cuda_backend::cudarc::driver::LaunchConfig;
use candle_core::{D, Device, Result, Tensor};

use super::launch::{
    Module, Value, address, by_type, int, launch, module, produce, scratch, slice_address, takes,
    width,
};

static MODULE: Module = module!("norm");

/// Threads of a block of group normalisation, at most; its shared memory is 64 bytes for each.
const GROUP_THREADS: usize = 512;
/// Values that a block of group normalisation takes, unless that makes more parts than one warp should join.
const GROUP_VALUES: usize = 32 * 1024;
const MOST_PARTS: usize = 1024;
/// Rows of a block of layer normalisation, a warp each.
const LAYER_ROWS: usize = 8;
const WARP: u32 = 32;

/// A norm's weight and bias on the GPU, in f32, brought there at the first use.
#[derive(Debug, Default)]
pub(crate) struct Affine(OnceLock<(Tensor, Tensor)>);

impl Affine {
    fn get(&self, weight: &[f32], bias: &[f32], device: &Device) -> Result<(Tensor, Tensor)> {
        if let Some((weight, bias)) = self.0.get() {
            return Ok((weight.clone(), bias.clone()));
        }
        let both = (Tensor::new(weight, device)?, Tensor::new(bias, device)?);
        // Whoever comes second made the same.
        Ok(self.0.get_or_init(|| both).clone())
    }
}

/// What a norm learnt, and its epsilon.
pub(crate) struct Norm<'a> {
    pub(crate) weight: &'a [f32],
    pub(crate) bias: &'a [f32],
    pub(crate) eps: f64,
    pub(crate) there: &'a Affine,
}

/// Group normalisation over `(batch, …, channels)`, through SiLU if wanted.
pub(crate) fn group_norm(
    x: &Tensor,
    groups: usize,
    norm: &Norm<'_>,
    silu: bool,
) -> Result<Option<Tensor>> {
    let channels = norm.weight.len();
    let vector = width(channels);
    if !takes(x) || x.elem_count() == 0 || channels / vector > GROUP_THREADS {
        return Ok(None);
    }
    by_type!(x.dtype(), T => group_norm_as::<T>(x, groups, norm, silu)).map(Some)
}

fn group_norm_as<T: Value>(
    x: &Tensor,
    groups: usize,
    norm: &Norm<'_>,
    silu: bool,
) -> Result<Tensor> {
    let channels = norm.weight.len();
    let vector = width(channels);
    let columns = channels / vector;
    let batch = x.dim(0)?;
    let pixels = x.elem_count() / batch / channels;
    let lanes = (GROUP_THREADS / columns).max(1);
    let size = (GROUP_VALUES / channels)
        .max(pixels.div_ceil(MOST_PARTS))
        .max(1);
    let parts = pixels.div_ceil(size);
    let config = LaunchConfig {
        grid_dim: (parts as u32, batch as u32, 1),
        block_dim: ((columns * lanes) as u32, 1, 1),
        shared_mem_bytes: (8 * channels * lanes) as u32,
    };
    let (weight, bias) = norm.there.get(norm.weight, norm.bias, x.device())?;
    let (weight, bias) = (address::<f32>(&weight)?, address::<f32>(&bias)?);
    let (n_pixels, n_channels, n_groups, n_size) =
        (int(pixels)?, int(channels)?, int(groups)?, int(size)?);
    let kernel = |name: &str| format!("group_norm_{name}_{}_{vector}", T::NAME);
    // SAFETY: the last kernel writes each value of the result; the memory between them is as large as `kernels/norm.cu` says,
    // and written by one before the next reads it. `weight` and `bias` live in `norm.there`.
    unsafe {
        produce::<T>(x, x.dims(), |device, from, to| {
            let mut partial = scratch::<f32>(device, batch * parts * groups * 2)?;
            let mut scales = scratch::<f32>(device, batch * 2 * channels)?;
            let stream = device.cuda_stream();
            let (partial, scales) = (
                slice_address(&mut partial, &stream),
                slice_address(&mut scales, &stream),
            );
            launch!(
                MODULE.kernel(device, &kernel("partial"))?,
                config,
                from,
                partial,
                n_pixels,
                n_channels,
                n_groups,
                n_size
            )?;
            let join = LaunchConfig {
                grid_dim: (groups as u32, batch as u32, 1),
                block_dim: (WARP, 1, 1),
                shared_mem_bytes: 0,
            };
            launch!(
                MODULE.kernel(device, "group_norm_join")?,
                join,
                partial,
                weight,
                bias,
                scales,
                int(parts)?,
                n_pixels,
                n_channels,
                n_size,
                norm.eps as f32
            )?;
            let apply = LaunchConfig {
                shared_mem_bytes: 0,
                ..config
            };
            launch!(
                MODULE.kernel(device, &kernel("apply"))?,
                apply,
                from,
                scales,
                to,
                n_pixels,
                n_channels,
                n_size,
                i32::from(silu)
            )
        })
    }
}

/// Layer normalisation over the last axis.
pub(crate) fn layer_norm(x: &Tensor, norm: &Norm<'_>) -> Result<Option<Tensor>> {
    if !takes(x) || x.elem_count() == 0 {
        return Ok(None);
    }
    by_type!(x.dtype(), T => layer_norm_as::<T>(x, norm)).map(Some)
}

fn layer_norm_as<T: Value>(x: &Tensor, norm: &Norm<'_>) -> Result<Tensor> {
    let channels = x.dim(D::Minus1)?;
    let rows = x.elem_count() / channels;
    let (weight, bias) = norm.there.get(norm.weight, norm.bias, x.device())?;
    let (weight, bias) = (address::<f32>(&weight)?, address::<f32>(&bias)?);
    let name = format!("layer_norm_{}_{}", T::NAME, width(channels));
    let config = LaunchConfig {
        grid_dim: (rows.div_ceil(LAYER_ROWS) as u32, 1, 1),
        block_dim: (LAYER_ROWS as u32 * WARP, 1, 1),
        shared_mem_bytes: 0,
    };
    let (n_rows, n_channels) = (int(rows)?, int(channels)?);
    // SAFETY: a warp a row writes the row; weight and bias have one value a channel and live in `norm.there`.
    unsafe {
        produce::<T>(x, x.dims(), |device, from, to| {
            let kernel = MODULE.kernel(device, &name)?;
            launch!(
                kernel,
                config,
                from,
                weight,
                bias,
                to,
                n_rows,
                n_channels,
                norm.eps as f32
            )
        })
    }
}
