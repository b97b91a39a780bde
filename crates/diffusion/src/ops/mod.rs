//! The arithmetic that the modules are made of. Pictures are `(batch, height, width, channels)` throughout: a pixel's
//! channels are contiguous, so that convolutions, 1×1 projections and attention share one kernel and no transposes.
//!
//! Each operation has two forms: our own on the CPU, and candle's for every other device, which is also the reference that
//! the tests compare the first with. Our own computes in f32; where the model's type is f16 or bf16, weights are of that type
//! and each operation's result is rounded to it, as on a device that multiplies halves and adds in f32.
//!
//! The CPU forms give each row of a batch the same bits whoever its neighbours are and however many threads work:
//! every sum has one order, fixed by the shape of a single row.

pub(crate) mod activation;
pub(crate) mod attention;
pub(crate) mod conv;
pub(crate) mod embedding;
pub(crate) mod linear;
pub(crate) mod matmul;
pub(crate) mod norm;
pub(crate) mod operand;
pub(crate) mod pool;
pub(crate) mod simd;
pub(crate) mod stored;
pub(crate) mod threads;
pub(crate) mod vector;
pub(crate) mod widen;
pub(crate) mod winograd;

use std::sync::Arc;

use candle_core::{DType, Device, Result, Storage, Tensor};
use stored::Stored;
use widen::Element;

/// Whether our own kernels serve, or candle's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Fast(bool);

impl Fast {
    #[cfg(test)]
    pub(crate) const ON: Fast = Fast(true);
    #[cfg(test)]
    pub(crate) const OFF: Fast = Fast(false);

    pub(crate) fn is_on(self) -> bool {
        self.0
    }
}

/// What the processor's kernels have beside tensors: Winograd's bands, and panels, scores and sums of the thread that calls.
const SCRATCH: u64 = 8 << 20;
/// What each further thread has of its own (of the kernels Winograd's has most: 0.72 MiB of weights and sums); more where it widens and packs panels of mapped weights.
const THREAD: u64 = 1 << 20;
const THREAD_MAPPED: u64 = 4 << 20;

/// Where a model's weights live and in which type it computes.
#[derive(Clone, Debug)]
pub(crate) struct Place {
    pub(crate) device: Device,
    pub(crate) dtype: DType,
    pub(crate) fast: Fast,
    /// Whether weights that our own kernels read stay as they are stored. It changes no result.
    pub(crate) mapped: bool,
    /// Whether a GPU may round the factors of f32 convolutions to TF32.
    #[cfg_attr(not(feature = "cudnn"), expect(dead_code, reason = "cuDNN alone asks"))]
    pub(crate) tf32: bool,
}

impl Place {
    pub(crate) fn new(device: &Device, dtype: DType) -> Self {
        Self {
            device: device.clone(),
            dtype,
            fast: Fast(device.is_cpu() && matches!(dtype, DType::F32 | DType::F16 | DType::BF16)),
            mapped: false,
            tf32: false,
        }
    }

    /// Where the autoencoder of a model that computes in `dtype` works: always in f32. Beside an f16 or bf16 model its
    /// convolutions may round as torch's do by default on a GPU; a model that is wanted in f32 is wanted exact.
    pub(crate) fn of_decoder(device: &Device, dtype: DType) -> Self {
        Self {
            tf32: dtype != DType::F32,
            ..Self::new(device, DType::F32)
        }
    }

    /// The same place, whose weights stay in their files if `mapped`. On other devices they never do.
    pub(crate) fn with_mapped(self, mapped: bool) -> Self {
        let mapped = mapped && self.fast.is_on();
        Self { mapped, ..self }
    }

    /// Bytes that a value takes while it is computed with.
    pub(crate) fn value_bytes(&self) -> u64 {
        let dtype = if self.fast.is_on() {
            DType::F32
        } else {
            self.dtype
        };
        dtype.size_in_bytes() as u64
    }

    /// What a pass takes whose tensors take so many bytes at its fullest.
    pub(crate) fn with_scratch(&self, bytes: u64) -> u64 {
        if !self.fast.is_on() {
            return bytes;
        }
        // Buffers that wait to be used again are of what the pass has had.
        bytes + bytes.min(pool::KEPT_BYTES) + SCRATCH + self.threads_scratch()
    }

    /// What threads that help take, if all of them do. How many join a piece of work is the system's decision.
    pub(crate) fn threads_scratch(&self) -> u64 {
        let each = match (self.fast.is_on(), self.mapped) {
            (false, _) => 0,
            (true, false) => THREAD,
            (true, true) => THREAD_MAPPED,
        };
        each * (threads::count() as u64 - 1)
    }

    /// Weights as a model of this type has them.
    pub(crate) fn rounded(&self, weights: Stored) -> Result<Stored> {
        let element = match self.dtype {
            DType::F16 => Element::F16,
            DType::BF16 => Element::Bf16,
            _ => return Ok(weights),
        };
        if weights.element() == element {
            return Ok(weights);
        }
        let mut bytes = Vec::with_capacity(weights.len() * element.size());
        Tensor::from_vec(weights.values(), weights.len(), &Device::Cpu)?
            .to_dtype(self.dtype)?
            .write_bytes(&mut bytes)?;
        let range = 0..bytes.len();
        Ok(Stored::new(Arc::new(bytes), range, element))
    }

    /// A tensor of these values here.
    pub(crate) fn tensor(&self, values: Vec<f32>, shape: &[usize]) -> Result<Tensor> {
        // Narrowed first: half the bytes go to the device.
        Tensor::from_vec(values, shape, &Device::Cpu)?
            .to_dtype(self.dtype)?
            .to_device(&self.device)
    }
}

/// Gives `work` the values of a CPU tensor, in order and in f32.
pub(crate) fn with_values<R>(x: &Tensor, work: impl FnOnce(&[f32]) -> R) -> Result<R> {
    let x = x.to_dtype(DType::F32)?.contiguous()?;
    let (storage, layout) = x.storage_and_layout();
    let Storage::Cpu(values) = &*storage else {
        candle_core::bail!("a CPU kernel was given a tensor of another device")
    };
    let Some((start, end)) = layout.contiguous_offsets() else {
        candle_core::bail!("a contiguous tensor has a hole")
    };
    Ok(work(&values.as_slice::<f32>()?[start..end]))
}

/// A new CPU tensor of `shape` (`count` values) and of `x`'s type, written by `work` from the values of `x`.
pub(crate) fn map_values(
    x: &Tensor,
    shape: &[usize],
    count: usize,
    work: impl FnOnce(&[f32], &mut [f32]),
) -> Result<Tensor> {
    let mut out = pool::values(count);
    with_values(x, |values| work(values, &mut out))?;
    Tensor::from_vec(out, shape, &Device::Cpu)?.to_dtype(x.dtype())
}

/// As [`map_values`], with the values of an optional second tensor beside.
pub(crate) fn map_values_with(
    x: &Tensor,
    other: Option<&Tensor>,
    shape: &[usize],
    count: usize,
    work: impl FnOnce(&[f32], Option<&[f32]>, &mut [f32]),
) -> Result<Tensor> {
    match other {
        None => map_values(x, shape, count, |x, out| work(x, None, out)),
        Some(other) => with_values(other, |other| {
            map_values(x, shape, count, |x, out| work(x, Some(other), out))
        })?,
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::noise::Generator;

    /// Normal values of that shape.
    pub(crate) fn tensor(seed: u64, shape: &[usize]) -> Tensor {
        let values = Generator::new(seed).normal(shape.iter().product());
        Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
    }

    pub(crate) fn places() -> [Place; 2] {
        let place = Place::new(&Device::Cpu, DType::F32);
        [
            place.clone(),
            Place {
                fast: Fast::OFF,
                ..place
            },
        ]
    }

    pub(crate) fn assert_close(ours: &Tensor, reference: &Tensor, bar: f32) {
        assert_eq!(ours.dims(), reference.dims());
        let off = (ours - reference)
            .unwrap()
            .abs()
            .unwrap()
            .flatten_all()
            .unwrap()
            .max(0)
            .unwrap();
        let off = off.to_scalar::<f32>().unwrap();
        assert!(off <= bar, "off by {off}");
    }
}
