//! Each module against diffusers, on the demo model and on a random-weight one of another shape.

use candle_core::{D, DType, Device, Tensor};

use super::Model;
use crate::Request;
use crate::golden::{self, assert_near};
use crate::ops::{Fast, Place};
use crate::vae::Tiling;

/// The most by which a module may differ from diffusers.
const BAR: f32 = 1e-4;

fn models() -> [(&'static str, Model); 2] {
    let load = |folder: &std::path::Path| Model::load(folder, &Device::Cpu, DType::F32).unwrap();
    [
        ("demo", load(&golden::demo())),
        ("mini", load(&golden::folder().join("mini"))),
    ]
}

fn values(x: &Tensor) -> Vec<f32> {
    x.contiguous()
        .unwrap()
        .flatten_all()
        .unwrap()
        .to_vec1()
        .unwrap()
}

#[test]
fn tokens_are_those_of_transformers() {
    let recorded = golden::read("tokens");
    for (_, model) in models() {
        for (tokenizer, name) in model.tokenizers.iter().zip(["tokenizer", "tokenizer_2"]) {
            let rows = recorded.get(name).to_vec2::<i64>().unwrap();
            for (prompt, expected) in recorded.cases.iter().zip(rows) {
                let prompt = prompt.as_str().unwrap();
                let ours: Vec<i64> = tokenizer
                    .encode(prompt)
                    .unwrap()
                    .into_iter()
                    .map(i64::from)
                    .collect();
                assert_eq!(ours, expected, "{name}: {prompt:?}");
            }
        }
    }
}

#[test]
fn both_encoders_agree_with_transformers() {
    for (name, model) in models() {
        let recorded = golden::read(&format!("text_{name}"));
        for (index, prompt) in recorded.cases.iter().enumerate() {
            let prompt = prompt.as_str().unwrap();
            let encode = |which: usize| {
                let ids = model.tokenizers[which].encode(prompt).unwrap();
                model.encoders[which].encode(&ids).unwrap()
            };
            let (one, two) = (encode(0), encode(1));
            assert_near(
                "first",
                &values(&one.hidden),
                &recorded.values(&format!("{index}.one")),
                BAR,
            );
            assert_near(
                "second",
                &values(&two.hidden),
                &recorded.values(&format!("{index}.two")),
                BAR,
            );
            let pooled = values(&two.pooled.unwrap());
            assert_near(
                "pooled",
                &pooled,
                &recorded.values(&format!("{index}.pooled")),
                BAR,
            );
        }
    }
}

#[test]
fn the_unet_agrees_with_diffusers() {
    for (name, model) in models() {
        let recorded = golden::read(&format!("unet_{name}"));
        let timesteps = recorded.values("timestep");
        let ids = recorded.get("time_ids").to_vec2::<f32>().unwrap();
        let conditionings: Vec<_> = (0..timesteps.len())
            .map(|row| {
                let pooled = recorded.get("pooled").narrow(0, row, 1).unwrap();
                let ids = ids[row].as_slice();
                model
                    .unet
                    .condition(&recorded.get("context").get(row).unwrap(), &pooled, ids)
                    .unwrap()
            })
            .collect();
        let rows: Vec<_> = conditionings.iter().collect();
        let both = (recorded.get("embedded") + recorded.get("added")).unwrap();
        let embedded = model.unet.embed(&timesteps, &rows).unwrap();
        assert_near(
            "time and added embedding",
            &values(&embedded),
            &values(&both),
            BAR,
        );

        let input = recorded.get("sample").permute((0, 2, 3, 1)).unwrap();
        let mut stages = 0;
        let mut check = |stage: &str, x: &Tensor| {
            let Some(expected) = recorded.find(&format!("stage.{stage}")) else {
                return;
            };
            let channels: Vec<u32> = (0..x.dim(3).unwrap() as u32).step_by(4).collect();
            let channels = Tensor::new(channels, &Device::Cpu).unwrap();
            let x = x
                .narrow(0, 0, 1)
                .unwrap()
                .contiguous()
                .unwrap()
                .index_select(&channels, 3)
                .unwrap();
            assert_near(
                stage,
                &values(&x.permute((0, 3, 1, 2)).unwrap()),
                &values(expected),
                BAR,
            );
            stages += 1;
        };
        let out = model
            .unet
            .forward_watched(&input, &timesteps, &rows, &mut check)
            .unwrap();
        assert_near(
            "unet",
            &values(&out.permute((0, 3, 1, 2)).unwrap()),
            &recorded.values("out"),
            BAR,
        );
        assert!(stages >= 5, "{stages} stages were compared");
    }
}

#[test]
fn a_row_of_the_unet_does_not_depend_on_the_others() {
    let model = Model::load(&golden::demo(), &Device::Cpu, DType::F32).unwrap();
    let recorded = golden::read("unet_demo");
    let condition = |row: usize| {
        let pooled = recorded.get("pooled").narrow(0, row, 1).unwrap();
        model
            .unet
            .condition(
                &recorded.get("context").get(row).unwrap(),
                &pooled,
                &[64.0; 6],
            )
            .unwrap()
    };
    let (first, second) = (condition(0), condition(1));
    let input = recorded
        .get("sample")
        .permute((0, 2, 3, 1))
        .unwrap()
        .contiguous()
        .unwrap();
    let one = input.narrow(0, 0, 1).unwrap();
    let alone = model.unet.forward(&one, &[500.0], &[&first]).unwrap();
    let many = Tensor::cat(&[&one, &input, &one], 0).unwrap();
    let times = [500.0, 3.0, 77.5, 500.0];
    let together = model
        .unet
        .forward(&many, &times, &[&first, &second, &second, &first])
        .unwrap();
    for row in [0, 3] {
        assert_eq!(values(&together.get(row).unwrap()), values(&alone));
    }
}

#[test]
fn the_decoder_agrees_with_diffusers() {
    for (name, model) in models() {
        let recorded = golden::read(&format!("vae_{name}"));
        let latents = recorded.get("latents").permute((0, 2, 3, 1)).unwrap();
        let image = model
            .vae
            .decode(&latents, Tiling::Whole)
            .unwrap()
            .permute((0, 3, 1, 2))
            .unwrap();
        assert_near("vae", &values(&image), &recorded.values("image"), BAR);
    }
}

#[test]
fn candles_own_kernels_give_the_same_picture() {
    let folder = golden::folder().join("mini");
    let ours = Model::load(&folder, &Device::Cpu, DType::F32).unwrap();
    let place = Place {
        fast: Fast::OFF,
        ..ours.place.clone()
    };
    let (unet, _) = crate::unet::Unet::load(&folder.join("unet"), &place).unwrap();
    let (clip, _) = crate::clip::Clip::load(&folder.join("text_encoder_2"), true, &place).unwrap();
    let (vae, _) = crate::vae::Vae::load(&folder.join("vae"), &place).unwrap();

    let ids = ours.tokenizers[1].encode("a 3d cat").unwrap();
    let (a, b) = (
        ours.encoders[1].encode(&ids).unwrap(),
        clip.encode(&ids).unwrap(),
    );
    assert_near("clip", &values(&b.hidden), &values(&a.hidden), BAR);

    let recorded = golden::read("unet_mini");
    let input = recorded
        .get("sample")
        .permute((0, 2, 3, 1))
        .unwrap()
        .contiguous()
        .unwrap();
    let [a, b] = [&ours.unet, &unet].map(|unet| {
        let pooled = recorded.get("pooled").narrow(0, 0, 1).unwrap();
        let row = unet
            .condition(
                &recorded.get("context").get(0).unwrap(),
                &pooled,
                &[64.0; 6],
            )
            .unwrap();
        unet.forward(&input, &[951.0, 3.0], &[&row, &row]).unwrap()
    });
    assert_near("unet", &values(&b), &values(&a), BAR);

    let latents = golden::read("vae_mini")
        .get("latents")
        .permute((0, 2, 3, 1))
        .unwrap()
        .contiguous()
        .unwrap();
    let (a, b) = (
        ours.vae.decode(&latents, Tiling::Whole).unwrap(),
        vae.decode(&latents, Tiling::Whole).unwrap(),
    );
    assert_eq!(a.dim(D::Minus1).unwrap(), 3);
    assert_near("vae", &values(&b), &values(&a), BAR);
}

#[test]
fn a_job_that_is_not_finite_fails_alone_and_stays_as_it_was() {
    let model = Model::load(&golden::folder().join("mini"), &Device::Cpu, DType::F32).unwrap();
    let request = Request {
        prompt: "a cat".to_owned(),
        width: 32,
        height: 32,
        steps: 3,
        guidance_scale: 2.0,
        seed: 1,
        ..Request::default()
    };
    let [mut good, mut bad, mut alone] = [(); 3].map(|()| model.begin(&request).unwrap());
    for poison in [f32::NAN, f32::INFINITY] {
        bad.latents[5] = poison;
        let answers = model.step(&mut [&mut bad, &mut good]);
        assert!(matches!(
            answers[0],
            Err(crate::StepError::NotFinite { step: 1 })
        ));
        assert!(answers[1].is_ok() && model.step(&mut [&mut alone])[0].is_ok());
        assert_eq!(
            (bad.progress().step, good.latents == alone.latents),
            (0, true)
        );
    }
}

#[test]
fn models_and_jobs_travel_between_threads() {
    fn travels<T: Send + Sync>() {}
    travels::<Model>();
    travels::<crate::Job>();
}
