//! One safetensors file.

use std::collections::HashMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use memmap2::Mmap;

use super::header::{self, Entry};
use super::map;
use crate::error::LoadError;
use crate::ops::stored::Stored;
use crate::ops::widen::Element;

/// The longest header that is read, in bytes.
const LONGEST_HEADER: u64 = 100 << 20;

/// A safetensors file whose header has been checked.
#[derive(Debug)]
pub(super) struct Shard {
    pub(super) path: PathBuf,
    file: Mutex<File>,
    /// The whole file, where tensors stay in it.
    map: Option<Arc<Mmap>>,
    /// The header's bytes, for the model's digest.
    pub(super) header: Vec<u8>,
    pub(super) tensors: HashMap<String, Entry>,
}

impl Shard {
    /// Opens a file and checks its header; `mapped` leaves its tensors in it.
    pub(super) fn open(path: &Path, mapped: bool) -> Result<Self, LoadError> {
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
        let tensors = header::read(&header[8..], 8 + header_length, length).map_err(damaged)?;
        let map = if mapped {
            Some(Arc::new(map::map(&file, length).map_err(failed)?))
        } else {
            None
        };
        Ok(Self {
            path: path.to_owned(),
            file: Mutex::new(file),
            map,
            header,
            tensors,
        })
    }

    /// Bytes of the file, in memory of their own.
    pub(super) fn read(&self, start: u64, length: usize) -> Result<Vec<u8>, LoadError> {
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

    /// A tensor's values: in the file where it is mapped, or else read.
    pub(super) fn stored(&self, entry: &Entry, element: Element) -> Result<Stored, LoadError> {
        // In a mapped file that was checked to be so long, each place is one in memory.
        let start = usize::try_from(entry.start).unwrap_or(usize::MAX);
        match &self.map {
            Some(map) => {
                let range = start..start.saturating_add(entry.length);
                Ok(Stored::new(map.clone(), range, element))
            }
            None => {
                let bytes = self.read(entry.start, entry.length)?;
                Ok(Stored::new(Arc::new(bytes), 0..entry.length, element))
            }
        }
    }
}
