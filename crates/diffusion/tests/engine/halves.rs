//! Models that compute in f16 and bf16, against the same models in f32.

use std::path::Path;

use diffusion::{DType, Device, Model, Request};

use crate::support::{demo_folder, finish, golden, request};

/// Mean and greatest difference of colours.
fn off(folder: &Path, dtype: DType, request: &Request) -> (f64, u8) {
    let [wide, half] = [DType::F32, dtype].map(|dtype| {
        let model = Model::load(folder, &Device::Cpu, dtype).unwrap();
        finish(&model, model.begin(request).unwrap()).pixels
    });
    let differences: Vec<u8> = wide
        .iter()
        .zip(&half)
        .map(|(a, b)| a.abs_diff(*b))
        .collect();
    let sum: f64 = differences.iter().map(|x| f64::from(*x)).sum();
    let greatest = differences.iter().max().copied().unwrap();
    (sum / differences.len() as f64, greatest)
}

#[test]
fn half_precision_draws_nearly_what_f32_draws() {
    let demo = Request {
        width: 128,
        height: 128,
        steps: 20,
        ..request()
    };
    // Measured: 0.01 and 1, 0.12 and 2, 0.02 and 1, 0.13 and 1, of 255.
    for (folder, request, dtype, mean_bar, bar) in [
        (demo_folder(), &demo, DType::F16, 0.05, 2),
        (demo_folder(), &demo, DType::BF16, 0.5, 5),
        (golden().join("mini"), &request(), DType::F16, 0.05, 2),
        (golden().join("mini"), &request(), DType::BF16, 0.5, 3),
    ] {
        let (mean, greatest) = off(&folder, dtype, request);
        println!(
            "{} {dtype:?}: colours off by {mean:.3}, at most {greatest}",
            folder.display()
        );
        assert!(mean <= mean_bar && greatest <= bar, "{mean} {greatest}");
        // It was really another type.
        assert!(greatest > 0);
    }
}
