//! Models, requests and recorded pictures.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use candle_core::Tensor;
use diffusion::{DType, Device, Job, Model, Request, RgbImage};
use tempfile::TempDir;

use crate::files::copy_folder;

/// What diffusers recorded.
pub(crate) fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests")
        .join("golden")
}

/// The demo model's folder.
pub(crate) fn demo_folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../assets/models/inkstone-demo")
}

/// The demo model, loaded once.
pub(crate) fn demo() -> &'static Model {
    static MODEL: OnceLock<Model> = OnceLock::new();
    MODEL.get_or_init(|| load(&demo_folder()))
}

/// The random-weight miniature, loaded once.
pub(crate) fn mini() -> &'static Model {
    static MODEL: OnceLock<Model> = OnceLock::new();
    MODEL.get_or_init(|| load(&golden().join("mini")))
}

/// A miniature that sees the mask under which it paints, loaded once.
pub(crate) fn inpainter() -> &'static Model {
    static MODEL: OnceLock<Model> = OnceLock::new();
    MODEL.get_or_init(|| load(overlay("mini_inpaint").path()))
}

/// A miniature refiner, loaded once.
pub(crate) fn refiner() -> &'static Model {
    static MODEL: OnceLock<Model> = OnceLock::new();
    MODEL.get_or_init(|| load(overlay("mini_refiner").path()))
}

/// The miniature with the parts in which `name` differs from it; without the first text encoder where that has none.
pub(crate) fn overlay(name: &str) -> TempDir {
    let folder = TempDir::new().unwrap();
    copy_folder(&golden().join("mini"), folder.path());
    fs::remove_dir_all(folder.path().join("unet")).unwrap();
    copy_folder(&golden().join(name), folder.path());
    let index = fs::read(folder.path().join("model_index.json")).unwrap();
    let index: serde_json::Value = serde_json::from_slice(&index).unwrap();
    if index["text_encoder"][0].is_null() {
        for part in ["text_encoder", "tokenizer"] {
            fs::remove_dir_all(folder.path().join(part)).unwrap();
        }
    }
    folder
}

fn load(folder: &Path) -> Model {
    Model::load(folder, &Device::Cpu, DType::F32).unwrap()
}

/// A small request that the miniature answers quickly.
pub(crate) fn request() -> Request {
    Request {
        prompt: "a 3d cat on a blue background".to_owned(),
        width: 32,
        height: 32,
        steps: 5,
        guidance_scale: 2.0,
        seed: 1,
        ..Request::default()
    }
}

/// One step, which must succeed.
pub(crate) fn step(model: &Model, job: &mut Job) {
    model.step(&mut [job]).remove(0).unwrap();
}

/// Steps to the end and decodes.
pub(crate) fn finish(model: &Model, mut job: Job) -> RgbImage {
    while !job.is_finished() {
        step(model, &mut job);
    }
    model.decode(&job).unwrap()
}

/// A recorded file's tensors and cases.
pub(crate) fn recorded(name: &str) -> (HashMap<String, Tensor>, Vec<serde_json::Value>) {
    let bytes = std::fs::read(golden().join(format!("{name}.safetensors"))).unwrap();
    let (_, metadata) = safetensors::SafeTensors::read_metadata(&bytes).unwrap();
    let cases = serde_json::from_str(&metadata.metadata().as_ref().unwrap()["cases"]).unwrap();
    (
        candle_core::safetensors::load_buffer(&bytes, &Device::Cpu).unwrap(),
        cases,
    )
}
