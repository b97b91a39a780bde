//! Safetensors files and model folders, taken apart and put together again.

use std::fs;
use std::path::Path;

use candle_core::{DType, Device};
use serde_json::{Map, Value, json};

/// Copies a folder with all that is in it.
pub(crate) fn copy_folder(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_folder(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}

/// The header and the data of a weights file.
pub(crate) fn split(file: &Path) -> (Value, Vec<u8>) {
    let bytes = fs::read(file).unwrap();
    let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    (
        serde_json::from_slice(&bytes[8..8 + length]).unwrap(),
        bytes[8 + length..].to_vec(),
    )
}

/// Writes a weights file.
pub(crate) fn join(file: &Path, header: &Value, data: &[u8]) {
    let header = header.to_string().into_bytes();
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend_from_slice(&header);
    bytes.extend_from_slice(data);
    fs::write(file, bytes).unwrap();
}

/// Writes the tensors of several weights files as one.
pub(crate) fn merge(files: &[&Path], to: &Path) {
    let (mut header, mut data) = (Map::new(), Vec::new());
    for file in files {
        let (part, bytes) = split(file);
        for (name, mut entry) in part.as_object().unwrap().clone() {
            if name == "__metadata__" {
                continue;
            }
            for offset in entry["data_offsets"].as_array_mut().unwrap() {
                *offset = json!(offset.as_u64().unwrap() + data.len() as u64);
            }
            header.insert(name, entry);
        }
        data.extend_from_slice(&bytes);
    }
    join(to, &Value::Object(header), &data);
}

/// The weights files of a model folder.
pub(crate) fn weights(folder: &Path) -> Vec<std::path::PathBuf> {
    let parts = ["unet", "vae", "text_encoder", "text_encoder_2"];
    let mut files = Vec::new();
    for part in parts {
        for entry in fs::read_dir(folder.join(part)).unwrap() {
            let file = entry.unwrap().path();
            if file.extension().is_some_and(|end| end == "safetensors") {
                files.push(file);
            }
        }
    }
    assert_eq!(files.len(), parts.len());
    files
}

/// Writes each tensor of a model folder in another type.
pub(crate) fn retype(folder: &Path, dtype: DType) {
    for file in weights(folder) {
        let tensors = candle_core::safetensors::load(&file, &Device::Cpu).unwrap();
        let tensors = tensors
            .into_iter()
            .map(|(name, tensor)| (name, tensor.to_dtype(dtype).unwrap()))
            .collect();
        candle_core::safetensors::save(&tensors, &file).unwrap();
    }
}
