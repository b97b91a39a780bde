//! Checkpoints of a single file, beside the configurations of a folder.

use std::fs;
use std::path::PathBuf;

use diffusion::{DType, Device, LoadError, Model, Residency};
use serde_json::json;
use tempfile::TempDir;

use crate::files::{copy_folder, join, merge, split, weights};
use crate::support::{finish, golden, mini, request};

/// The miniature's folder without weights, and the checkpoint in it.
fn single() -> (TempDir, PathBuf) {
    let folder = TempDir::new().unwrap();
    copy_folder(&golden().join("mini"), folder.path());
    for file in weights(folder.path()) {
        fs::remove_file(file).unwrap();
    }
    let parts = [1, 2].map(|part| golden().join(format!("mini_checkpoint-{part}.safetensors")));
    let file = folder.path().join("mini.safetensors");
    merge(&[&parts[0], &parts[1]], &file);
    (folder, file)
}

fn load(folder: &TempDir) -> Result<Model, LoadError> {
    Model::load(folder.path(), &Device::Cpu, DType::F32)
}

#[test]
fn a_checkpoint_draws_what_the_folder_draws() {
    let (folder, _) = single();
    let expected = finish(mini(), mini().begin(&request()).unwrap());
    for residency in [Residency::Packed, Residency::Mapped] {
        let model =
            Model::load_resident(folder.path(), &Device::Cpu, DType::F32, residency).unwrap();
        assert_eq!(finish(&model, model.begin(&request()).unwrap()), expected);
        assert_ne!(model.digest(), mini().digest());
    }
}

#[test]
fn a_components_own_weights_come_before_the_checkpoint() {
    let (folder, file) = single();
    let own = "unet/diffusion_pytorch_model.fp16.safetensors";
    fs::copy(golden().join("mini").join(own), folder.path().join(own)).unwrap();
    let (mut header, data) = split(&file);
    let name = "model.diffusion_model.out.2.bias";
    let entry = header.as_object_mut().unwrap().remove(name).unwrap();
    header["renamed"] = entry;
    join(&file, &header, &data);
    let model = load(&folder).unwrap();
    let expected = finish(mini(), mini().begin(&request()).unwrap());
    assert_eq!(finish(&model, model.begin(&request()).unwrap()), expected);
    fs::remove_file(folder.path().join(own)).unwrap();
    let text = load(&folder).unwrap_err().to_string();
    assert!(
        text.contains("mini.safetensors") && text.contains(name),
        "{text}"
    );
}

#[test]
fn a_tensor_of_a_checkpoint_with_another_shape_is_named() {
    for (name, shape) in [
        (
            "model.diffusion_model.input_blocks.1.0.in_layers.2.weight",
            json!([16, 16, 9]),
        ),
        (
            "first_stage_model.decoder.mid.attn_1.q.weight",
            json!([24, 24, 1]),
        ),
        (
            "conditioner.embedders.1.model.text_projection",
            json!([20, 24]),
        ),
        (
            "conditioner.embedders.1.model.transformer.resblocks.1.attn.in_proj_weight",
            json!([24, 72]),
        ),
    ] {
        let (folder, file) = single();
        let (mut header, data) = split(&file);
        assert_ne!(header[name]["shape"], shape);
        header[name]["shape"] = shape;
        join(&file, &header, &data);
        let text = load(&folder).unwrap_err().to_string();
        assert!(
            text.contains(name) && text.contains("mini.safetensors"),
            "{text}"
        );
    }
}

#[test]
fn of_two_checkpoints_none_is_taken() {
    let (folder, file) = single();
    fs::copy(&file, folder.path().join("other.safetensors")).unwrap();
    let text = load(&folder).unwrap_err().to_string();
    assert!(
        text.contains("text_encoder") && text.contains("there are 2"),
        "{text}"
    );
}
