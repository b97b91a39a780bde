//! Weights: safetensors, whole or sharded, read one tensor at a time.
//!
//! Files are read, not mapped: a model in f32 needs its own copy anyway (half-precision weights are widened and
//! repacked), so nothing of the file stays in memory.

use std::collections::HashMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use candle_core::{DType, Device, Tensor};
use safetensors::Dtype;
use safetensors::tensor::Metadata;
use serde::Deserialize;

use crate::config;
use crate::error::LoadError;
use crate::ops::Place;
use crate::ops::conv::{Conv3x3, Kind};
use crate::ops::linear::Linear;
use crate::ops::norm::{GroupNorm, LayerNorm};

/// The longest header that is read, in bytes.
const LONGEST_HEADER: u64 = 100 << 20;

/// Which variant of a component's files is taken when there are several, best first.
const VARIANTS: [&str; 2] = ["", ".fp16"];

/// The tensors of one component.
#[derive(Debug)]
pub(crate) struct Weights {
    /// What errors about absent tensors name.
    file: PathBuf,
    shards: Vec<Shard>,
    place: Place,
}

#[derive(Debug)]
struct Shard {
    path: PathBuf,
    file: Mutex<File>,
    /// The header's bytes, for the model's digest.
    header: Vec<u8>,
    tensors: HashMap<String, Entry>,
}

#[derive(Clone, Debug)]
struct Entry {
    dtype: Dtype,
    shape: Vec<usize>,
    /// Where its bytes begin in the file, and how many they are.
    start: u64,
    length: usize,
}

#[derive(Deserialize)]
struct Index {
    weight_map: HashMap<String, String>,
}

impl Weights {
    /// Opens `stem` (as in `model.safetensors`) in `folder` and checks the headers; no tensor is read yet.
    pub(crate) fn open(folder: &Path, stem: &str, place: &Place) -> Result<Self, LoadError> {
        let mut looked_for = Vec::new();
        for variant in VARIANTS {
            let whole = folder.join(format!("{stem}{variant}.safetensors"));
            if whole.exists() {
                return Ok(Self {
                    shards: vec![Shard::open(&whole)?],
                    file: whole,
                    place: place.clone(),
                });
            }
            let index = folder.join(format!("{stem}.safetensors.index{variant}.json"));
            if index.exists() {
                return Self::open_sharded(folder, index, place);
            }
            looked_for.extend(
                [whole, index]
                    .iter()
                    .filter_map(|path| path.file_name())
                    .map(|name| name.to_string_lossy().into_owned()),
            );
        }
        Err(LoadError::NoWeights {
            folder: folder.to_owned(),
            looked_for: looked_for.join(", "),
        })
    }

    fn open_sharded(folder: &Path, index: PathBuf, place: &Place) -> Result<Self, LoadError> {
        let bytes = config::read(&index)?;
        let map: Index = serde_json::from_slice(&bytes).map_err(|source| LoadError::Json {
            file: index.clone(),
            source,
        })?;
        let mut names: Vec<&String> = map.weight_map.values().collect();
        names.sort();
        names.dedup();
        let mut shards = Vec::new();
        for name in names {
            if Path::new(name)
                .file_name()
                .is_none_or(|last| last != name.as_str())
            {
                let reason = format!("names the shard {name:?}, which is not a file beside it");
                return Err(LoadError::Header {
                    file: index,
                    reason,
                });
            }
            shards.push(Shard::open(&folder.join(name))?);
        }
        Ok(Self {
            file: index,
            shards,
            place: place.clone(),
        })
    }

    /// The root of the tensors' names.
    pub(crate) fn root(&self) -> Scope<'_> {
        Scope {
            weights: self,
            prefix: String::new(),
        }
    }

    /// What identifies these weights: each shard's header, and the first bytes of each of its tensors (so that
    /// models of many gigabytes are told apart without being read twice).
    pub(crate) fn identify(&self, mut feed: impl FnMut(&[u8])) -> Result<(), LoadError> {
        const SAMPLE: usize = 4096;
        for shard in &self.shards {
            feed(&shard.header);
            let mut entries: Vec<&Entry> = shard.tensors.values().collect();
            entries.sort_by_key(|entry| entry.start);
            for entry in entries {
                feed(&shard.read(entry.start, entry.length.min(SAMPLE))?);
            }
        }
        Ok(())
    }
}

impl Shard {
    fn open(path: &Path) -> Result<Self, LoadError> {
        let failed = |source| LoadError::Read {
            file: path.to_owned(),
            source,
        };
        let damaged = |reason: String| LoadError::Header {
            file: path.to_owned(),
            reason,
        };
        let mut file = File::open(path).map_err(failed)?;
        let length = file.metadata().map_err(failed)?.len();
        let mut prefix = [0; 8];
        if length < 8 {
            return Err(damaged(format!("the file has {length} bytes")));
        }
        file.read_exact(&mut prefix).map_err(failed)?;
        let header_length = u64::from_le_bytes(prefix);
        if header_length > LONGEST_HEADER || header_length > length - 8 {
            return Err(damaged(format!(
                "it claims {header_length} bytes of a file of {length}"
            )));
        }
        let mut header = prefix.to_vec();
        file.by_ref()
            .take(header_length)
            .read_to_end(&mut header)
            .map_err(failed)?;
        let tensors = read_header(&header[8..], 8 + header_length, length).map_err(damaged)?;
        Ok(Self {
            path: path.to_owned(),
            file: Mutex::new(file),
            header,
            tensors,
        })
    }

    fn read(&self, start: u64, length: usize) -> Result<Vec<u8>, LoadError> {
        let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        let mut bytes = vec![0; length];
        file.seek(SeekFrom::Start(start))
            .and_then(|_| file.read_exact(&mut bytes))
            .map_err(|source| LoadError::Read {
                file: self.path.clone(),
                source,
            })?;
        Ok(bytes)
    }
}

/// The tensors that a header describes: one after another from `begin`, to the file's end at `length`.
fn read_header(header: &[u8], begin: u64, length: u64) -> Result<HashMap<String, Entry>, String> {
    let metadata: Metadata = serde_json::from_slice(header).map_err(|error| error.to_string())?;
    let mut tensors = metadata.tensors().into_iter().collect::<Vec<_>>();
    tensors.sort_by_key(|(_, info)| info.data_offsets);
    let mut end = 0;
    let mut entries = HashMap::new();
    for (name, info) in tensors {
        let (from, to) = info.data_offsets;
        let bits = info
            .shape
            .iter()
            .try_fold(info.dtype.bitsize(), |bits, side| bits.checked_mul(*side));
        if from != end || to < from || bits != (to - from).checked_mul(8) {
            return Err(format!(
                "the place of tensor {name} does not fit its shape or its neighbours"
            ));
        }
        end = to;
        let start = begin + from as u64;
        entries.insert(
            name,
            Entry {
                dtype: info.dtype,
                shape: info.shape.clone(),
                start,
                length: to - from,
            },
        );
    }
    if begin.checked_add(end as u64) != Some(length) {
        return Err(format!(
            "it describes {end} bytes of tensors in a file of {length}"
        ));
    }
    Ok(entries)
}

/// A prefix of tensor names, as modules nest.
#[derive(Clone, Debug)]
pub(crate) struct Scope<'a> {
    weights: &'a Weights,
    prefix: String,
}

impl Scope<'_> {
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

    /// Refuses a tensor that [`Scope::get`] would refuse, without reading it.
    pub(crate) fn check(&self, name: &str, shape: &[usize]) -> Result<(), LoadError> {
        self.find(name, shape).map(drop)
    }

    /// A tensor's values; its shape must be `shape`.
    pub(crate) fn get(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>, LoadError> {
        let (shard, entry, dtype) = self.find(name, shape)?;
        let bytes = shard.read(entry.start, entry.length)?;
        Tensor::from_raw_buffer(&bytes, dtype, shape, &Device::Cpu)
            .and_then(|tensor| tensor.to_dtype(DType::F32)?.flatten_all()?.to_vec1())
            .map_err(|error| LoadError::Tensor {
                file: shard.path.clone(),
                tensor: format!("{}{name}", self.prefix),
                reason: error.to_string(),
            })
    }

    /// Where a tensor of that shape lies, and its type.
    fn find(&self, name: &str, shape: &[usize]) -> Result<(&Shard, &Entry, DType), LoadError> {
        let name = format!("{}{name}", self.prefix);
        let found =
            (self.weights.shards.iter()).find_map(|shard| Some((shard, shard.tensors.get(&name)?)));
        let Some((shard, entry)) = found else {
            return Err(LoadError::Tensor {
                file: self.weights.file.clone(),
                tensor: name,
                reason: "it is missing".to_owned(),
            });
        };
        let refuse = |reason: String| LoadError::Tensor {
            file: shard.path.clone(),
            tensor: name.clone(),
            reason,
        };
        if entry.shape != shape {
            return Err(refuse(format!(
                "its shape is {:?} where the configuration says {shape:?}",
                entry.shape
            )));
        }
        let dtype = match entry.dtype {
            Dtype::F32 => DType::F32,
            Dtype::F16 => DType::F16,
            Dtype::BF16 => DType::BF16,
            Dtype::F64 => DType::F64,
            other => {
                return Err(refuse(format!(
                    "its type {other:?} is not a floating point type that is read"
                )));
            }
        };
        Ok((shard, entry, dtype))
    }

    /// Whether there is such a tensor.
    pub(crate) fn has(&self, name: &str) -> bool {
        let name = format!("{}{name}", self.prefix);
        self.weights
            .shards
            .iter()
            .any(|shard| shard.tensors.contains_key(&name))
    }

    fn placed<T>(&self, made: candle_core::Result<T>) -> Result<T, LoadError> {
        made.map_err(|source| LoadError::Place {
            component: self.weights.file.clone(),
            source,
        })
    }

    /// A linear layer with a bias.
    pub(crate) fn linear(&self, input: usize, output: usize) -> Result<Linear, LoadError> {
        let bias = self.get("bias", &[output])?;
        self.placed(Linear::new(
            self.get("weight", &[output, input])?,
            Some(bias),
            input,
            output,
            self.place(),
        ))
    }

    /// A linear layer without.
    pub(crate) fn linear_no_bias(&self, input: usize, output: usize) -> Result<Linear, LoadError> {
        self.placed(Linear::new(
            self.get("weight", &[output, input])?,
            None,
            input,
            output,
            self.place(),
        ))
    }

    /// A 1×1 convolution, as the linear layer over channels that it is.
    pub(crate) fn conv1x1(&self, input: usize, output: usize) -> Result<Linear, LoadError> {
        let bias = self.get("bias", &[output])?;
        let weight = self.get("weight", &[output, input, 1, 1])?;
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
            weight.extend(part.get("weight", &[output, input])?);
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
        self.placed(Linear::new(weight, bias, input, all, self.place()))
    }

    /// A 3×3 convolution.
    pub(crate) fn conv3x3(
        &self,
        input: usize,
        output: usize,
        kind: Kind,
    ) -> Result<Conv3x3, LoadError> {
        let bias = self.get("bias", &[output])?;
        let weight = self.get("weight", &[output, input, 3, 3])?;
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
