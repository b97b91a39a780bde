//! The autoencoder against diffusers, on the demo model and on a random-weight one of another shape.

use std::collections::BTreeSet;

use candle_core::{DType, Device, Tensor};

use super::{Tiling, Vae, encoder};
use crate::golden::{self, Golden, assert_near};
use crate::noise::Generator;
use crate::ops::{Fast, Place};

/// The most by which a module may differ from diffusers.
const BAR: f32 = 1e-4;

fn place() -> Place {
    Place::new(&Device::Cpu, DType::F32)
}

fn vaes() -> [(&'static str, Vae, Golden); 2] {
    [
        ("demo", golden::demo()),
        ("mini", golden::folder().join("mini")),
    ]
    .map(|(name, folder)| {
        let (vae, _) = Vae::load(&folder.join("vae"), &place()).unwrap();
        (name, vae, golden::read(&format!("encode_{name}")))
    })
}

/// `(batch, channels, height, width)` with the channels last.
fn channels_last(x: &Tensor) -> Tensor {
    x.permute((0, 2, 3, 1)).unwrap().contiguous().unwrap()
}

fn planes(x: &Tensor) -> Tensor {
    x.permute((0, 3, 1, 2)).unwrap().contiguous().unwrap()
}

fn values(x: &Tensor) -> Vec<f32> {
    x.flatten_all().unwrap().to_vec1().unwrap()
}

/// Recorded bytes as the encoder gets them.
fn pixels(recorded: &Golden, name: &str) -> Tensor {
    let bytes = recorded.get(name).to_dtype(DType::F32).unwrap();
    let unit = (bytes / 255.0).unwrap();
    channels_last(&((unit * 2.0).unwrap() - 1.0).unwrap())
}

/// What of a large result was recorded.
fn thinned(x: &Tensor, every: usize) -> Vec<f32> {
    let pick = |x: &Tensor, axis: usize| {
        let indexes: Vec<u32> = (0..x.dim(axis).unwrap() as u32).step_by(every).collect();
        x.index_select(&Tensor::new(indexes, &Device::Cpu).unwrap(), axis)
            .unwrap()
    };
    values(&pick(&pick(x, 2), 3))
}

#[test]
fn the_encoder_agrees_with_diffusers() {
    for (name, vae, recorded) in vaes() {
        let answers = vae
            .encode(&pixels(&recorded, "images"), Tiling::Whole)
            .unwrap();
        assert_eq!(answers.len(), 2, "{name}");
        let flat = |row: usize, key: &str| {
            let row = recorded.get(key).get(row).unwrap();
            row.flatten_all().unwrap().to_vec1::<f32>().unwrap()
        };
        for (row, answer) in answers.iter().enumerate() {
            let (mean, log_variance) = (flat(row, "mean"), flat(row, "log_variance"));
            assert_near(name, &answer.mode(), &mean, BAR);
            assert_near(name, &answer.log_variance, &log_variance, BAR);
        }
        let mut latents = answers[0].sample(&mut Generator::new(7));
        assert_near(name, &latents, &flat(0, "sample"), BAR);
        vae.scale(&mut latents);
        assert_near(name, &latents, &flat(0, "scaled"), BAR);
        vae.unscale(&mut latents);
        assert_near(name, &latents, &flat(0, "sample"), BAR);
    }
}

#[test]
fn tiles_are_laid_and_blended_as_in_diffusers() {
    for (name, vae, recorded) in vaes() {
        let mut compared = 0;
        for case in &recorded.cases {
            let key = case["key"].as_str().unwrap();
            let every = case["every"].as_u64().unwrap() as usize;
            let answers = vae
                .encode(&pixels(&recorded, &format!("{key}.image")), Tiling::Tiles)
                .unwrap();
            assert_near(
                &format!("{name} {key} encode"),
                &answers[0].mode(),
                &recorded.values(&format!("{key}.mean")),
                BAR,
            );
            let latents = channels_last(recorded.get(&format!("{key}.latents")));
            let image = planes(&vae.decode(&latents, Tiling::Tiles).unwrap());
            assert_near(
                &format!("{name} {key} decode"),
                &thinned(&image, every),
                &recorded.values(&format!("{key}.decoded")),
                BAR,
            );
            compared += 1;
        }
        assert!(compared >= 2, "{name}: {compared} sizes were compared");
    }
}

#[test]
fn a_picture_no_larger_than_a_tile_is_the_same_in_tiles_and_whole() {
    let [(_, vae, recorded), _] = vaes();
    let images = pixels(&recorded, "images");
    let [whole, tiles] = [Tiling::Whole, Tiling::Tiles].map(|tiling| vae.encode(&images, tiling));
    assert_eq!(whole.unwrap(), tiles.unwrap());
    let latents = channels_last(golden::read("vae_demo").get("latents"));
    let [whole, tiles] =
        [Tiling::Whole, Tiling::Tiles].map(|tiling| vae.decode(&latents, tiling).unwrap());
    assert_eq!(values(&whole), values(&tiles));
}

#[test]
fn a_picture_of_a_batch_becomes_what_it_becomes_alone() {
    for (_, vae, recorded) in vaes() {
        let images = pixels(&recorded, "images");
        let together = vae.encode(&images, Tiling::Whole).unwrap();
        for (row, answer) in together.iter().enumerate() {
            let one = images.narrow(0, row, 1).unwrap().contiguous().unwrap();
            assert_eq!(*answer, vae.encode(&one, Tiling::Whole).unwrap()[0]);
        }
    }
}

#[test]
fn candles_own_kernels_encode_to_the_same_latents() {
    let [_, (_, vae, recorded)] = vaes();
    let slow = Place {
        fast: Fast::OFF,
        ..place()
    };
    let (reference, _) = Vae::load(&golden::folder().join("mini").join("vae"), &slow).unwrap();
    let images = pixels(&recorded, "images");
    let [ours, theirs] =
        [&vae, &reference].map(|vae| vae.encode(&images, Tiling::Whole).unwrap()[1].mode());
    assert_near("mode", &ours, &theirs, BAR);
}

#[test]
fn every_tensor_of_the_encoder_is_checked_at_load() {
    for (name, folder) in [
        ("demo", golden::demo()),
        ("mini", golden::folder().join("mini")),
    ] {
        let (vae, _) = Vae::load(&folder.join("vae"), &place()).unwrap();
        let mut files = std::fs::read_dir(folder.join("vae")).unwrap();
        let file = files.find_map(|entry| {
            let path = entry.unwrap().path();
            (path.extension()? == "safetensors").then_some(path)
        });
        let bytes = std::fs::read(file.unwrap()).unwrap();
        let (_, metadata) = safetensors::SafeTensors::read_metadata(&bytes).unwrap();
        let stored: BTreeSet<(String, Vec<usize>)> = (metadata.tensors().iter())
            .filter(|(name, _)| name.starts_with("encoder.") || name.starts_with("quant_conv."))
            .map(|(name, info)| (name.clone(), info.shape.clone()))
            .collect();
        let expected: BTreeSet<_> = encoder::tensors(&vae.config).into_iter().collect();
        assert_eq!(expected, stored, "{name}");
        assert!(vae.encoder.get().is_none(), "nothing of it has been read");
    }
}
