//! Weights files in memory without a copy. The only file about weights with `unsafe` in it.
#![allow(unsafe_code)]

use std::fs::File;

use memmap2::{Mmap, MmapOptions};

/// Maps the first `length` bytes of `file`, which has them.
///
/// While the map lives nobody may write to the file or cut it short: its pages are read when a kernel wants them, and
/// the system ends a process (SIGBUS) that reads a page whose file has lost it. Replace a model's files by renaming new
/// ones into their place, as downloads and package tools do: the map keeps the old ones.
pub(super) fn map(file: &File, length: u64) -> std::io::Result<Mmap> {
    let length = usize::try_from(length).map_err(std::io::Error::other)?;
    // SAFETY: the bytes are only ever read as plain numbers, for which any value will do; that the file stays as it is
    // is what the documentation asks of those who keep models.
    unsafe { MmapOptions::new().len(length).map(file) }
}
