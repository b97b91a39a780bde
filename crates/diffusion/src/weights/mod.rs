//! Weights: safetensors, whole or sharded, in a component's folder or in one checkpoint for all.
//!
//! A tensor is read when a module asks for it, and the file's bytes are dropped when it has been packed; or the file is
//! mapped and the tensor stays where it is ([`Residency`]).

mod header;
mod map;
mod residency;
mod scope;
pub(crate) mod sgm;
mod shard;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use serde::Deserialize;

use crate::config;
use crate::error::LoadError;
use crate::ops::Place;
use header::Entry;
pub use residency::Residency;
pub(crate) use scope::Scope;
use sgm::{Change, Names};
use shard::Shard;

/// The components with weights, and what their files are called.
const COMPONENTS: [(&str, &str); 4] = [
    ("text_encoder", TEXT_ENCODER),
    ("text_encoder_2", TEXT_ENCODER),
    ("unet", DIFFUSERS),
    ("vae", DIFFUSERS),
];
/// The stem of a text encoder's weights.
pub(crate) const TEXT_ENCODER: &str = "model";
/// The stem of a UNet's or VAE's weights.
pub(crate) const DIFFUSERS: &str = "diffusion_pytorch_model";

/// Which variant of a component's files is taken when there are several, best first.
const VARIANTS: [&str; 2] = ["", ".fp16"];

/// The tensors of one component.
#[derive(Debug)]
pub(crate) struct Weights {
    /// What errors about absent tensors name.
    file: PathBuf,
    shards: Vec<Shard>,
    /// In a checkpoint: the component's prefix and its names.
    names: Option<(&'static str, Names)>,
    place: Place,
    /// Values that were read, other than those that stay in a mapped file.
    placed: AtomicU64,
}

/// A tensor that was found.
struct Found<'a> {
    shard: &'a Shard,
    /// Its name there.
    name: String,
    entry: &'a Entry,
    change: Change,
}

#[derive(Deserialize)]
struct Index {
    weight_map: HashMap<String, String>,
}

impl Weights {
    /// Opens `stem` (as in `model.safetensors`) in a component's `folder`, or else the one checkpoint in the folder above
    /// it, where the component's tensors have other `names`. Headers are checked; no tensor is read yet.
    pub(crate) fn open(
        folder: &Path,
        stem: &str,
        names: Names,
        place: &Place,
    ) -> Result<Self, LoadError> {
        let mut looked_for = Vec::new();
        let found = find(folder, stem, &mut looked_for);
        let (file, files) = match found {
            Some(Own::Whole(file)) => (file.clone(), vec![file]),
            Some(Own::Sharded(index)) => {
                let files = shards(folder, &index)?;
                (index, files)
            }
            None => {
                let whole = folder.parent().map(checkpoints).unwrap_or_default();
                let [file] = whole.as_slice() else {
                    looked_for.push(format!(
                        "one checkpoint in the folder above (there are {})",
                        whole.len()
                    ));
                    return Err(LoadError::NoWeights {
                        folder: folder.to_owned(),
                        looked_for: looked_for.join(", "),
                    });
                };
                let shard = Shard::open(file, place.mapped)?;
                let prefix = names.prefix(|| shard.tensors.keys());
                return Ok(Self {
                    file: file.clone(),
                    shards: vec![shard],
                    names: Some((prefix, names)),
                    place: place.clone(),
                    placed: AtomicU64::new(0),
                });
            }
        };
        Ok(Self {
            file,
            shards: (files.iter())
                .map(|file| Shard::open(file, place.mapped))
                .collect::<Result<_, _>>()?,
            names: None,
            place: place.clone(),
            placed: AtomicU64::new(0),
        })
    }

    /// Bytes that the tensors read so far take where they were placed; none of those that stay in a mapped file.
    pub(crate) fn bytes_placed(&self) -> u64 {
        self.placed.load(Ordering::Relaxed) * self.place.value_bytes()
    }

    /// A tensor's name in these files.
    fn translated(&self, name: &str) -> Option<(String, Change)> {
        match &self.names {
            None => Some((name.to_owned(), Change::Same)),
            Some((prefix, names)) => {
                let (name, change) = names.in_checkpoint(name)?;
                Some((format!("{prefix}{name}"), change))
            }
        }
    }

    /// What to call an absent tensor.
    fn called(&self, name: &str) -> String {
        self.translated(name)
            .map_or_else(|| name.to_owned(), |(name, _)| name)
    }

    fn find(&self, name: &str) -> Option<Found<'_>> {
        let (name, change) = self.translated(name)?;
        let (shard, entry) =
            (self.shards.iter()).find_map(|shard| Some((shard, shard.tensors.get(&name)?)))?;
        Some(Found {
            shard,
            name,
            entry,
            change,
        })
    }

    /// The root of the tensors' names.
    pub(crate) fn root(&self) -> Scope<'_> {
        Scope::new(self)
    }

    /// What identifies these weights: each shard's header, and the first bytes of each of its tensors (so that
    /// models of many gigabytes are told apart without being read twice).
    pub(crate) fn identify(&self, mut feed: impl FnMut(&[u8])) -> Result<(), LoadError> {
        const SAMPLE: usize = 4096;
        let prefix = self.names.as_ref().map_or("", |(prefix, _)| prefix);
        for shard in &self.shards {
            feed(&shard.header);
            let mut entries: Vec<&Entry> = (shard.tensors.iter())
                .filter(|(name, _)| name.starts_with(prefix))
                .map(|(_, entry)| entry)
                .collect();
            entries.sort_by_key(|entry| entry.start);
            for entry in entries {
                feed(&shard.read(entry.start, entry.length.min(SAMPLE))?);
            }
        }
        Ok(())
    }
}

/// A component's own weights.
enum Own {
    Whole(PathBuf),
    /// The index of several.
    Sharded(PathBuf),
}

fn find(folder: &Path, stem: &str, looked_for: &mut Vec<String>) -> Option<Own> {
    for variant in VARIANTS {
        let whole = format!("{stem}{variant}.safetensors");
        let index = format!("{stem}.safetensors.index{variant}.json");
        if folder.join(&whole).exists() {
            return Some(Own::Whole(folder.join(whole)));
        }
        if folder.join(&index).exists() {
            return Some(Own::Sharded(folder.join(index)));
        }
        looked_for.extend([whole, index]);
    }
    None
}

/// The files that an index names.
fn shards(folder: &Path, index: &Path) -> Result<Vec<PathBuf>, LoadError> {
    let bytes = config::read(index)?;
    let map: Index = serde_json::from_slice(&bytes).map_err(|source| LoadError::Json {
        file: index.to_owned(),
        source,
    })?;
    let mut names: Vec<&String> = map.weight_map.values().collect();
    names.sort();
    names.dedup();
    let beside = |name: &String| {
        Path::new(name)
            .file_name()
            .is_some_and(|last| last == name.as_str())
    };
    if let Some(name) = names.iter().find(|name| !beside(name)) {
        return Err(LoadError::Header {
            file: index.to_owned(),
            reason: format!("names the shard {name:?}, which is not a file beside it"),
        });
    }
    Ok(names.into_iter().map(|name| folder.join(name)).collect())
}

/// The safetensors files of a model's own folder, none of which belongs to a component.
fn checkpoints(folder: &Path) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(folder) else {
        return Vec::new();
    };
    let mut files: Vec<PathBuf> = (entries.flatten())
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|end| end == "safetensors") && path.is_file())
        .collect();
    files.sort();
    files
}

/// Numbers in all weights of the model in `folder`. What cannot be read has none here; loading it says why.
pub(crate) fn parameters(folder: &Path) -> u64 {
    let (mut files, mut whole) = (Vec::new(), false);
    for (part, stem) in COMPONENTS {
        let part = folder.join(part);
        match find(&part, stem, &mut Vec::new()) {
            Some(Own::Whole(file)) => files.push(file),
            Some(Own::Sharded(index)) => files.extend(shards(&part, &index).unwrap_or_default()),
            None => whole = true,
        }
    }
    if whole {
        files.extend(checkpoints(folder));
    }
    (files.iter())
        .filter_map(|file| Shard::open(file, false).ok())
        .flat_map(|shard| shard.tensors.into_values())
        .map(|entry| entry.shape.iter().product::<usize>() as u64)
        .sum()
}
