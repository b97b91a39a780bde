//! What `scripts/golden/make_golden.py` recorded, for the tests beside the modules.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use candle_core::{Device, Tensor};

/// One file: its tensors and the cases that its metadata describe.
pub(crate) struct Golden {
    tensors: HashMap<String, Tensor>,
    pub(crate) cases: Vec<serde_json::Value>,
}

/// Reads `tests/golden/NAME.safetensors`.
pub(crate) fn read(name: &str) -> Golden {
    let file = folder().join(format!("{name}.safetensors"));
    let bytes = std::fs::read(&file).unwrap();
    let (_, metadata) = safetensors::SafeTensors::read_metadata(&bytes).unwrap();
    let cases = metadata.metadata().as_ref().unwrap()["cases"].replace(": -Infinity", ": null");
    Golden {
        tensors: candle_core::safetensors::load_buffer(&bytes, &Device::Cpu).unwrap(),
        cases: serde_json::from_str(&cases).unwrap_or_default(),
    }
}

/// The recorded files and the random-weight miniature.
pub(crate) fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests")
        .join("golden")
}

/// The demo model.
pub(crate) fn demo() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../assets/models/inkstone-demo")
}

impl Golden {
    pub(crate) fn get(&self, name: &str) -> &Tensor {
        self.tensors
            .get(name)
            .unwrap_or_else(|| panic!("no tensor {name}"))
    }

    pub(crate) fn find(&self, name: &str) -> Option<&Tensor> {
        self.tensors.get(name)
    }

    pub(crate) fn values(&self, name: &str) -> Vec<f32> {
        self.get(name).flatten_all().unwrap().to_vec1().unwrap()
    }
}

/// Fails unless each value is within `bar` of the recorded one.
pub(crate) fn assert_near(what: &str, ours: &[f32], reference: &[f32], bar: f32) {
    assert_eq!(ours.len(), reference.len(), "{what}");
    let off = ours
        .iter()
        .zip(reference)
        .map(|(a, b)| (a - b).abs())
        .fold(0.0, f32::max);
    println!("{what}: off by {off:e}");
    assert!(off <= bar, "{what}: off by {off}, more than {bar}");
}
