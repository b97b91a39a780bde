//! Weights that stay in their files draw what packed ones draw.

use std::path::Path;

use diffusion::{DType, Device, Model, Request, Residency};
use tempfile::TempDir;

use crate::files::{copy_folder, retype};
use crate::support::{demo_folder, finish, golden, request};

fn both(folder: &Path, request: &Request) {
    let [packed, mapped] = [Residency::Packed, Residency::Mapped].map(|residency| {
        let model = Model::load_resident(folder, &Device::Cpu, DType::F32, residency).unwrap();
        let picture = finish(&model, model.begin(request).unwrap());
        (model.digest().to_owned(), picture)
    });
    assert!(packed == mapped, "{}", folder.display());
}

#[test]
fn the_demo_model_draws_the_same_mapped_and_packed() {
    let request = Request {
        width: 128,
        height: 128,
        steps: 3,
        ..request()
    };
    both(&demo_folder(), &request);
}

#[test]
fn each_stored_type_draws_the_same_mapped_and_packed() {
    for dtype in [DType::F16, DType::BF16, DType::F32, DType::F64] {
        let folder = TempDir::new().unwrap();
        copy_folder(&golden().join("mini"), folder.path());
        retype(folder.path(), dtype);
        both(folder.path(), &request());
    }
}

#[test]
fn a_mapped_model_outlives_the_replacement_of_its_files() {
    let folder = TempDir::new().unwrap();
    copy_folder(&golden().join("mini"), folder.path());
    let load = || {
        Model::load_resident(folder.path(), &Device::Cpu, DType::F32, Residency::Mapped).unwrap()
    };
    let model = load();
    let before = finish(&model, model.begin(&request()).unwrap());
    for file in crate::files::weights(folder.path()) {
        // As a download does: a new file is renamed into the old one's place.
        let new = file.with_extension("new");
        std::fs::write(&new, "cut short").unwrap();
        std::fs::rename(new, file).unwrap();
    }
    assert_eq!(finish(&model, model.begin(&request()).unwrap()), before);
}
