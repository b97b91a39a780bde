//! Softmax attention: `kernels/attention.cu` for heads of 64 in f16 and bf16; for all else (f32, the VAE's one head of 512) products
//! by cuBLAS over blocks of queries, so that the matrix of all queries by all keys is never made.
#![allow(unsafe_code)]

use candle_core::cuda_backend::cudarc::driver::{DeviceRepr, LaunchConfig};
use candle_core::{CudaDevice, DType, Result, Tensor};

use super::elementwise::{Seen, softmax};
use super::launch::{Module, Value, address, by_type, int, launch, module, produce, takes};
use crate::ops::attention::Heads;

static MODULE: Module = module!("attention");

/// As in `kernels/attention.cu`.
const DEPTH: usize = 64;
const QUERIES: usize = 128;
const THREADS: u32 = 128;
const MAX_ROWS: usize = 16;
/// Bytes of scores at once where cuBLAS makes them.
const SCORES: usize = 256 << 20;

/// Where each row has its keys and values.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
struct Rows {
    keys: [u64; MAX_ROWS],
    values: [u64; MAX_ROWS],
}

// SAFETY: it is laid out as the kernel's `Rows`: 32 addresses.
unsafe impl DeviceRepr for Rows {}

/// What the kernel is told about its input.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
struct Shape {
    tokens: i32,
    others: i32,
    heads: i32,
    query_stride: i32,
    key_stride: i32,
    causal: i32,
    scale: f32,
}

// SAFETY: it is laid out as the kernel's `Shape`: six ints and a float.
unsafe impl DeviceRepr for Shape {}

/// Attention of each row of `(batch, tokens, 3 · channels)` to itself.
pub(crate) fn own(qkv: &Tensor, heads: Heads) -> Result<Option<Tensor>> {
    let (batch, tokens, all) = qkv.dims3()?;
    let channels = all / 3;
    if !takes(qkv) || qkv.elem_count() == 0 {
        return Ok(None);
    }
    let qkv = qkv.contiguous()?;
    if !flash_takes(qkv.dtype(), channels, heads) {
        let part = |index: usize| split(&qkv.narrow(2, index * channels, channels)?, heads.count);
        return blocked(&part(0)?, &part(1)?, &part(2)?, heads).map(Some);
    }
    by_type!(qkv.dtype(), T => {
        let base = address::<T>(&qkv)?;
        let size = size_of::<T>();
        let row = |row: usize, part: usize| base + ((row * tokens * 3 + part) * channels * size) as u64;
        let context: Vec<(u64, u64)> = (0..batch)
            .map(|index| (row(index, 1), row(index, 2)))
            .collect();
        let shape = shape(tokens, tokens, (3 * channels, 3 * channels), heads)?;
        flash::<T>(&qkv, &[batch, tokens, channels], &context, shape)
    })
    .map(Some)
}

/// Queries `(batch, tokens, channels)` over each row's own keys and values, `(others, channels)` each.
pub(crate) fn cross(
    queries: &Tensor,
    context: &[(&Tensor, &Tensor)],
    heads: Heads,
) -> Result<Option<Tensor>> {
    let (_, tokens, channels) = queries.dims3()?;
    let Some(&others) = context.first().and_then(|(keys, _)| keys.dims().first()) else {
        return Ok(None);
    };
    let fits =
        |x: &&Tensor| takes(x) && x.dims() == [others, channels] && x.dtype() == queries.dtype();
    let fit = context
        .iter()
        .flat_map(|(keys, values)| [*keys, *values])
        .all(|x| fits(&x));
    if !takes(queries) || queries.elem_count() == 0 || others == 0 || !fit {
        return Ok(None);
    }
    if !flash_takes(queries.dtype(), channels, heads) {
        let stack = |part: fn(&(&Tensor, &Tensor)) -> Tensor| {
            split(
                &Tensor::stack(&context.iter().map(part).collect::<Vec<_>>(), 0)?,
                heads.count,
            )
        };
        let (keys, values) = (stack(|x| x.0.clone())?, stack(|x| x.1.clone())?);
        return blocked(&split(queries, heads.count)?, &keys, &values, heads).map(Some);
    }
    by_type!(queries.dtype(), T => {
        let context = context
            .iter()
            .map(|(keys, values)| Ok((address::<T>(keys)?, address::<T>(values)?)))
            .collect::<Result<Vec<_>>>()?;
        let shape = shape(tokens, others, (channels, channels), heads)?;
        flash::<T>(queries, queries.dims(), &context, shape)
    })
    .map(Some)
}

fn flash_takes(dtype: DType, channels: usize, heads: Heads) -> bool {
    matches!(dtype, DType::F16 | DType::BF16) && channels == heads.count * DEPTH
}

fn shape(
    tokens: usize,
    others: usize,
    (query_stride, key_stride): (usize, usize),
    heads: Heads,
) -> Result<Shape> {
    Ok(Shape {
        tokens: int(tokens)?,
        others: int(others)?,
        heads: int(heads.count)?,
        query_stride: int(query_stride)?,
        key_stride: int(key_stride)?,
        causal: i32::from(heads.causal),
        scale: std::f32::consts::LOG2_E / (DEPTH as f32).sqrt(),
    })
}

/// `queries` are `x`'s values from the first on; `context` gives each row's addresses of keys and values.
fn flash<T: Value>(
    x: &Tensor,
    result: &[usize],
    context: &[(u64, u64)],
    shape: Shape,
) -> Result<Tensor> {
    let name = format!("attention_{}", T::NAME);
    let (tokens, heads) = (shape.tokens as usize, shape.heads as u32);
    let size = size_of::<T>();
    let aligned = |address: &u64| address.is_multiple_of(16);
    if !context
        .iter()
        .all(|(keys, values)| aligned(keys) && aligned(values))
    {
        candle_core::bail!("keys or values do not begin at a multiple of 16 bytes");
    }
    let rows_at = |device: &CudaDevice, from: u64, to: u64, part: usize, rows: &[(u64, u64)]| {
        let mut packed = Rows {
            keys: [0; MAX_ROWS],
            values: [0; MAX_ROWS],
        };
        for (index, (keys, values)) in rows.iter().enumerate() {
            (packed.keys[index], packed.values[index]) = (*keys, *values);
        }
        let before = part * MAX_ROWS * tokens;
        let from = from + (before * shape.query_stride as usize * size) as u64;
        let to = to + (before * heads as usize * DEPTH * size) as u64;
        let config = LaunchConfig {
            grid_dim: (tokens.div_ceil(QUERIES) as u32, heads, rows.len() as u32),
            block_dim: (THREADS, 1, 1),
            shared_mem_bytes: 0,
        };
        launch!(
            MODULE.kernel(device, &name)?,
            config,
            from,
            packed,
            to,
            shape
        )
    };
    // SAFETY: each launch writes its rows of the result; keys and values are tensors that our caller holds, of the shape that
    // `shape` gives.
    unsafe {
        produce::<T>(x, result, |device, from, to| {
            for (part, rows) in context.chunks(MAX_ROWS).enumerate() {
                rows_at(device, from, to, part, rows)?;
            }
            Ok(())
        })
    }
}

/// `(batch, tokens, channels)` as `(batch · heads, tokens, depth)`.
fn split(x: &Tensor, heads: usize) -> Result<Tensor> {
    let (batch, tokens, channels) = x.dims3()?;
    x.reshape((batch, tokens, heads, channels / heads))?
        .transpose(1, 2)?
        .contiguous()?
        .reshape((batch * heads, tokens, channels / heads))
}

/// `(batch · heads, tokens, depth)` each.
fn blocked(queries: &Tensor, keys: &Tensor, values: &Tensor, heads: Heads) -> Result<Tensor> {
    let (rows, tokens, depth) = queries.dims3()?;
    let others = keys.dim(1)?;
    let bytes = rows * others * queries.dtype().size_in_bytes();
    let size = (SCORES / bytes.max(1)).clamp(1, tokens);
    // Before the product, so that scores do not leave the range of f16.
    let queries = (queries * (depth as f64).powf(-0.5))?;
    let keys = keys.t()?;
    let parts = (0..tokens)
        .step_by(size)
        .map(|first| {
            let count = size.min(tokens - first);
            let scores = queries
                .narrow(1, first, count)?
                .contiguous()?
                .matmul(&keys)?;
            let seen = Seen {
                causal: heads.causal,
                first,
                queries: count,
            };
            softmax(&scores, seen)?.matmul(values)
        })
        .collect::<Result<Vec<_>>>()?;
    Tensor::cat(&parts, 1)?
        .reshape((rows / heads.count, heads.count, tokens, depth))?
        .transpose(1, 2)?
        .reshape((rows / heads.count, tokens, heads.count * depth))
}
