//! Modules' view of the weights: tensors by name, and the layers that are made of them.

use std::sync::atomic::Ordering;

use candle_core::Result as CandleResult;
use safetensors::Dtype;

use super::sgm::Change;
use super::{Found, Weights};
use crate::error::LoadError;
use crate::ops::Place;
use crate::ops::conv::{Conv3x3, Kind};
use crate::ops::embedding::Table;
use crate::ops::linear::Linear;
use crate::ops::norm::{GroupNorm, LayerNorm};
use crate::ops::stored::Stored;
use crate::ops::widen::Element;

/// A prefix of tensor names, as modules nest.
#[derive(Clone, Debug)]
pub(crate) struct Scope<'a> {
    weights: &'a Weights,
    prefix: String,
}

impl<'a> Scope<'a> {
    pub(super) fn new(weights: &'a Weights) -> Self {
        Self {
            weights,
            prefix: String::new(),
        }
    }

    /// The scope of a part.
    pub(crate) fn pp(&self, part: impl std::fmt::Display) -> Self {
        Self {
            weights: self.weights,
            prefix: format!("{}{part}.", self.prefix),
        }
    }

    /// Where the weights go.
    pub(crate) fn place(&self) -> &Place {
        &self.weights.place
    }

    /// Refuses a tensor that [`Scope::stored`] would refuse, without reading it.
    pub(crate) fn check(&self, name: &str, shape: &[usize]) -> Result<(), LoadError> {
        self.find(name, shape).map(drop)
    }

    /// Where a tensor of that shape lies, and its type.
    fn find(&self, name: &str, shape: &[usize]) -> Result<(Found<'a>, Element), LoadError> {
        let name = format!("{}{name}", self.prefix);
        let Some(found) = self.weights.find(&name) else {
            return Err(LoadError::Tensor {
                file: self.weights.file.clone(),
                tensor: self.weights.called(&name),
                reason: "it is missing".to_owned(),
            });
        };
        let refuse = |reason: String| LoadError::Tensor {
            file: found.shard.path.clone(),
            tensor: found.name.clone(),
            reason,
        };
        let there = &found.entry.shape;
        if !fits(there, shape, found.change) {
            return Err(refuse(format!(
                "its shape is {there:?} where the configuration says {shape:?}",
            )));
        }
        let element = match found.entry.dtype {
            Dtype::F32 => Element::F32,
            Dtype::F16 => Element::F16,
            Dtype::BF16 => Element::Bf16,
            Dtype::F64 => Element::F64,
            other => {
                return Err(refuse(format!(
                    "its type {other:?} is not a floating point type that is read"
                )));
            }
        };
        Ok((found, element))
    }

    /// A tensor as it is stored; its shape must be `shape`.
    pub(crate) fn stored(&self, name: &str, shape: &[usize]) -> Result<Stored, LoadError> {
        let (found, element) = self.find(name, shape)?;
        let stored = found.shard.stored(found.entry, element)?;
        let stored = match found.change {
            Change::Same | Change::Matrix => stored,
            Change::Third(index) => {
                let count = stored.len() / 3;
                stored.part(index * count, count)
            }
            Change::Transposed => stored.transposed(shape[1], shape[0]),
        };
        if !self.place().mapped {
            let count = stored.len() as u64;
            self.weights.placed.fetch_add(count, Ordering::Relaxed);
        }
        Ok(stored)
    }

    /// A tensor's values; its shape must be `shape`.
    pub(crate) fn get(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>, LoadError> {
        Ok(self.stored(name, shape)?.values())
    }

    /// Whether there is such a tensor.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.weights
            .find(&format!("{}{name}", self.prefix))
            .is_some()
    }

    fn placed<T>(&self, made: CandleResult<T>) -> Result<T, LoadError> {
        made.map_err(|source| LoadError::Place {
            component: self.weights.file.clone(),
            source,
        })
    }

    /// Rows that are looked up by number.
    pub(crate) fn embedding(&self, rows: usize, width: usize) -> Result<Table, LoadError> {
        let values = self.stored("weight", &[rows, width])?;
        self.placed(Table::new(values, rows, width, self.place()))
    }

    /// A linear layer with a bias.
    pub(crate) fn linear(&self, input: usize, output: usize) -> Result<Linear, LoadError> {
        let bias = self.get("bias", &[output])?;
        self.placed(Linear::new(
            self.stored("weight", &[output, input])?,
            Some(bias),
            input,
            output,
            self.place(),
        ))
    }

    /// A linear layer without.
    pub(crate) fn linear_no_bias(&self, input: usize, output: usize) -> Result<Linear, LoadError> {
        self.placed(Linear::new(
            self.stored("weight", &[output, input])?,
            None,
            input,
            output,
            self.place(),
        ))
    }

    /// A 1×1 convolution, as the linear layer over channels that it is.
    pub(crate) fn conv1x1(&self, input: usize, output: usize) -> Result<Linear, LoadError> {
        let bias = self.get("bias", &[output])?;
        let weight = self.stored("weight", &[output, input, 1, 1])?;
        self.placed(Linear::new(weight, Some(bias), input, output, self.place()))
    }

    /// Several linear layers of one input, computed as one: their outputs side by side.
    pub(crate) fn linears(
        &self,
        parts: &[&str],
        input: usize,
        output: usize,
    ) -> Result<Linear, LoadError> {
        let (mut weight, mut bias) = (Vec::new(), Vec::new());
        for part in parts {
            let part = self.pp(part);
            weight.push(part.stored("weight", &[output, input])?);
            if part.has("bias") {
                bias.extend(part.get("bias", &[output])?);
            }
        }
        let all = output * parts.len();
        let bias = match bias.len() {
            0 => None,
            length if length == all => Some(bias),
            _ => {
                return Err(LoadError::Tensor {
                    file: self.weights.file.clone(),
                    tensor: format!("{}{}.bias", self.prefix, parts.join("|")),
                    reason: "some have a bias and some have none".to_owned(),
                });
            }
        };
        self.placed(Linear::stacked(weight, bias, input, output, self.place()))
    }

    /// A 3×3 convolution.
    pub(crate) fn conv3x3(
        &self,
        input: usize,
        output: usize,
        kind: Kind,
    ) -> Result<Conv3x3, LoadError> {
        let bias = self.get("bias", &[output])?;
        let weight = self.stored("weight", &[output, input, 3, 3])?;
        self.placed(Conv3x3::new(
            weight,
            bias,
            input,
            output,
            kind,
            self.place(),
        ))
    }

    /// Group normalisation.
    pub(crate) fn group_norm(
        &self,
        channels: usize,
        groups: usize,
        eps: f64,
    ) -> Result<GroupNorm, LoadError> {
        let (weight, bias) = (
            self.get("weight", &[channels])?,
            self.get("bias", &[channels])?,
        );
        if !channels.is_multiple_of(groups) {
            return Err(LoadError::Tensor {
                file: self.weights.file.clone(),
                tensor: format!("{}weight", self.prefix),
                reason: format!("{channels} channels do not fall into norm_num_groups = {groups}"),
            });
        }
        Ok(GroupNorm::new(weight, bias, groups, eps, self.place()))
    }

    /// Layer normalisation.
    pub(crate) fn layer_norm(&self, channels: usize, eps: f64) -> Result<LayerNorm, LoadError> {
        Ok(LayerNorm::new(
            self.get("weight", &[channels])?,
            self.get("bias", &[channels])?,
            eps,
            self.place(),
        ))
    }
}

/// Whether a tensor of shape `there` becomes one of `shape`.
fn fits(there: &[usize], shape: &[usize], change: Change) -> bool {
    match change {
        Change::Same => there == shape,
        Change::Matrix => there == shape || shape.len() == 2 && there == [shape, &[1, 1]].concat(),
        Change::Third(_) => match (there, shape) {
            ([all, there @ ..], [part, shape @ ..]) => {
                Some(*all) == part.checked_mul(3) && there == shape
            }
            _ => false,
        },
        Change::Transposed => shape.len() == 2 && there == [shape[1], shape[0]],
    }
}
