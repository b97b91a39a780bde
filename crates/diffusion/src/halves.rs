//! Encoders and UNet in f16 and bf16 against what diffusers computed in f32, by our own kernels and by candle's (which
//! serve on other devices; on the CPU they multiply no bf16).

use candle_core::{DType, Device, Tensor};

use crate::clip::Clip;
use crate::golden::{self, Golden};
use crate::ops::{Fast, Place};
use crate::unet::Unet;

fn places() -> [(Place, f32); 3] {
    let place = |dtype| Place::new(&Device::Cpu, dtype);
    let candles = Place {
        fast: Fast::OFF,
        ..place(DType::F16)
    };
    [
        (place(DType::F16), F16_BAR),
        (candles, CANDLES_F16_BAR),
        (place(DType::BF16), BF16_BAR),
    ]
}

/// The most by which values may differ, as a part of the greatest one. Measured: 1.9e-3 in f16, which has 11 bits, and
/// 1.1e-2 in bf16, which has 8.
const F16_BAR: f32 = 2.5e-3;
const BF16_BAR: f32 = 1.5e-2;
/// candle's own products in f16: `gemm` also sums in f16 where the processor can, as arm64 does. Measured there: 9.9e-3. Our kernels sum in f32
/// everywhere.
const CANDLES_F16_BAR: f32 = if cfg!(target_arch = "aarch64") {
    1.2e-2
} else {
    F16_BAR
};

fn assert_within(what: &str, ours: &Tensor, reference: &[f32], bar: f32, dtype: DType) {
    assert_eq!(ours.dtype(), dtype, "{what}");
    let wide = ours.to_dtype(DType::F32).unwrap();
    let ours: Vec<f32> = wide.flatten_all().unwrap().to_vec1().unwrap();
    assert_eq!(ours.len(), reference.len());
    let greatest = reference.iter().fold(0.0_f32, |most, x| most.max(x.abs()));
    let off = (ours.iter().zip(reference))
        .map(|(a, b)| (a - b).abs())
        .fold(0.0_f32, f32::max);
    println!(
        "{what} {dtype:?}: off by {:.1e} of {greatest}",
        off / greatest
    );
    assert!(
        off <= bar * greatest,
        "{what} {dtype:?}: off by {off} of {greatest}"
    );
    // It was really computed in another type.
    assert!(off > 1e-6 * greatest, "{what} {dtype:?}");
}

fn models() -> [(&'static str, std::path::PathBuf); 2] {
    [
        ("demo", golden::demo()),
        ("mini", golden::folder().join("mini")),
    ]
}

fn unet(place: &Place, folder: &std::path::Path, recorded: &Golden) -> Tensor {
    let (unet, _) = Unet::load(&folder.join("unet"), place).unwrap();
    let timesteps = recorded.values("timestep");
    let ids = recorded.get("time_ids").to_vec2::<f32>().unwrap();
    let half = |name: &str| recorded.get(name).to_dtype(place.dtype).unwrap();
    let conditionings: Vec<_> = (0..timesteps.len())
        .map(|row| {
            let pooled = half("pooled").narrow(0, row, 1).unwrap();
            unet.condition(&half("context").get(row).unwrap(), &pooled, &ids[row])
                .unwrap()
        })
        .collect();
    let rows: Vec<_> = conditionings.iter().collect();
    let input = half("sample").permute((0, 2, 3, 1)).unwrap();
    let out = unet
        .forward(&input.contiguous().unwrap(), &timesteps, &rows)
        .unwrap();
    out.permute((0, 3, 1, 2)).unwrap().contiguous().unwrap()
}

#[test]
fn the_unet_in_half_precision_is_near_the_one_in_f32() {
    for (name, folder) in models() {
        let recorded = golden::read(&format!("unet_{name}"));
        for (place, bar) in places() {
            let out = unet(&place, &folder, &recorded);
            assert_within(name, &out, &recorded.values("out"), bar, place.dtype);
        }
    }
}

#[test]
fn both_encoders_in_half_precision_are_near_those_in_f32() {
    let tokens = golden::read("tokens");
    for (name, folder) in models() {
        let recorded = golden::read(&format!("text_{name}"));
        for (place, bar) in places() {
            for (part, tokenizer, key) in [
                ("text_encoder", "tokenizer", "one"),
                ("text_encoder_2", "tokenizer_2", "two"),
            ] {
                let projects = key == "two";
                let (clip, _) = Clip::load(&folder.join(part), projects, &place).unwrap();
                // The recorded texts are the second and third of the tokenized ones.
                for index in 0..2 {
                    let ids = tokens.get(tokenizer).get(index + 1).unwrap();
                    let ids: Vec<u32> = (ids.to_vec1::<i64>().unwrap().iter())
                        .map(|id| u32::try_from(*id).unwrap())
                        .collect();
                    let encoded = clip.encode(&ids).unwrap();
                    let expected = recorded.values(&format!("{index}.{key}"));
                    assert_within(part, &encoded.hidden, &expected, bar, place.dtype);
                    if let Some(pooled) = encoded.pooled {
                        let expected = recorded.values(&format!("{index}.pooled"));
                        assert_within("pooled", &pooled, &expected, bar, place.dtype);
                    }
                }
            }
        }
    }
}
