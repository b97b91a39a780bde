//! What is done to each value on its own, and softmax: `kernels/elementwise.cu`.
#![allow(unsafe_code)]

use candle_core::cuda_backend::cudarc::driver::LaunchConfig;
use candle_core::{D, Result, Tensor};

use super::launch::{
    Module, THREADS, Value, address, by_type, int, launch, module, produce, takes, walking, width,
};

static MODULE: Module = module!("elementwise");

/// An activation, by the number that the kernel knows it by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Function {
    Silu = 0,
    Gelu = 1,
    QuickGelu = 2,
}

/// An activation of each value.
pub(crate) fn activate(x: &Tensor, function: Function) -> Result<Option<Tensor>> {
    if !takes(x) {
        return Ok(None);
    }
    let vector = width(x.elem_count());
    let count = x.elem_count() / vector;
    by_type!(x.dtype(), T => {
        let name = format!("activate_{}_{vector}", T::NAME);
        // SAFETY: `count` vectors are all of `x` and of the result.
        unsafe {
            produce::<T>(x, x.dims(), |device, from, to| {
                launch!(MODULE.kernel(device, &name)?, walking(count), from, to, count, function as i32)
            })
        }
    })
    .map(Some)
}

/// Of each row's two halves, the first times GELU of the second.
pub(crate) fn geglu(x: &Tensor) -> Result<Option<Tensor>> {
    if !takes(x) {
        return Ok(None);
    }
    let mut shape = x.dims().to_vec();
    let Some(last) = shape.last_mut() else {
        return Ok(None);
    };
    *last /= 2;
    let half = *last;
    let rows = x.elem_count() / (2 * half).max(1);
    let n_half = int(half)?;
    by_type!(x.dtype(), T => {
        let name = format!("geglu_{}_{}", T::NAME, width(half));
        let config = walking(rows * half / width(half));
        // SAFETY: `rows` rows of two halves are all of `x`, of one half all of the result.
        unsafe {
            produce::<T>(x, &shape, |device, from, to| {
                launch!(MODULE.kernel(device, &name)?, config, from, to, rows, n_half)
            })
        }
    })
    .map(Some)
}

/// What is added after a product.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Terms<'a> {
    /// `(channels)`, to every pixel of every row.
    pub(crate) bias: Option<&'a Tensor>,
    /// `(batch, channels)`, to every pixel.
    pub(crate) channel: Option<&'a Tensor>,
    /// A tensor of the result's shape.
    pub(crate) picture: Option<&'a Tensor>,
}

impl Terms<'_> {
    fn all(&self) -> [Option<&Tensor>; 3] {
        [self.bias, self.channel, self.picture]
    }
}

/// `x (batch, …, channels)` plus all terms, rounded once.
pub(crate) fn add(x: &Tensor, terms: Terms<'_>) -> Result<Option<Tensor>> {
    let same = |term: &Tensor| takes(term) && term.dtype() == x.dtype();
    if !takes(x) || x.elem_count() == 0 || !terms.all().into_iter().flatten().all(same) {
        return Ok(None);
    }
    let channels = x.dim(D::Minus1)?;
    let batch = x.dim(0)?;
    check_terms(x, channels, batch, terms)?;
    let rows = x.elem_count() / channels;
    let (n_pixels, n_channels) = (int(rows / batch)?, int(channels)?);
    let [bias, channel, picture] = terms.all().map(|term| term.map(Tensor::contiguous));
    let [bias, channel, picture] = [
        bias.transpose()?,
        channel.transpose()?,
        picture.transpose()?,
    ];
    by_type!(x.dtype(), T => {
        let name = format!("add_{}_{}", T::NAME, width(channels));
        let config = walking(x.elem_count() / width(channels));
        let at = |term: &Option<Tensor>| term.as_ref().map_or(Ok(0_u64), address::<T>);
        let (bias, channel, picture) = (at(&bias)?, at(&channel)?, at(&picture)?);
        // SAFETY: the terms' shapes were checked, and their tensors live until the launch; a term that is not there is null.
        unsafe {
            produce::<T>(x, x.dims(), |device, from, to| {
                let kernel = MODULE.kernel(device, &name)?;
                launch!(kernel, config, from, bias, channel, picture, to, rows, n_pixels, n_channels)
            })
        }
    })
    .map(Some)
}

fn check_terms(x: &Tensor, channels: usize, batch: usize, terms: Terms<'_>) -> Result<()> {
    let wanted = [channels, batch * channels, x.elem_count()];
    for (term, wanted) in terms.all().into_iter().zip(wanted) {
        if let Some(term) = term
            && term.elem_count() != wanted
        {
            candle_core::bail!("{:?} cannot be added to {:?}", term.dims(), x.dims());
        }
    }
    Ok(())
}

/// `(batch, height, width, channels)` with each pixel doubled both ways.
pub(crate) fn upsample(x: &Tensor) -> Result<Option<Tensor>> {
    if !takes(x) || x.elem_count() == 0 {
        return Ok(None);
    }
    let (batch, height, across, channels) = x.dims4()?;
    let shape = [batch, 2 * height, 2 * across, channels];
    let count = x.elem_count() * 4 / width(channels);
    let (n_height, n_width, n_channels) = (int(height)?, int(across)?, int(channels)?);
    by_type!(x.dtype(), T => {
        let name = format!("upsample_{}_{}", T::NAME, width(channels));
        // SAFETY: `count` vectors are all of the result, each read from the pixel that it doubles.
        unsafe {
            produce::<T>(x, &shape, |device, from, to| {
                let kernel = MODULE.kernel(device, &name)?;
                launch!(kernel, walking(count), from, to, count, n_height, n_width, n_channels)
            })
        }
    })
    .map(Some)
}

/// Which keys a row of scores sees.
#[derive(Clone, Copy, Debug)]
pub(super) struct Seen {
    /// Whether a query sees only keys up to its own.
    pub(super) causal: bool,
    /// The query of row 0.
    pub(super) first: usize,
    /// After this many rows comes query `first` again.
    pub(super) queries: usize,
}

/// Softmax over the last axis, in f32; `x` is on the GPU, in a type that kernels know.
pub(super) fn softmax(x: &Tensor, seen: Seen) -> Result<Tensor> {
    let keys = x.dim(D::Minus1)?;
    let rows = x.elem_count() / keys.max(1);
    let config = LaunchConfig {
        grid_dim: (int(rows)? as u32, 1, 1),
        block_dim: (THREADS, 1, 1),
        shared_mem_bytes: 0,
    };
    let (n_keys, first, queries) = (int(keys)?, int(seen.first)?, int(seen.queries)?);
    by_type!(x.dtype(), T => {
        let name = format!("softmax_{}", T::NAME);
        // SAFETY: a block a row writes the row.
        unsafe {
            produce::<T>(x, x.dims(), |device, from, to| {
                let kernel = MODULE.kernel(device, &name)?;
                launch!(kernel, config, from, to, n_keys, i32::from(seen.causal), first, queries)
            })
        }
    })
}
