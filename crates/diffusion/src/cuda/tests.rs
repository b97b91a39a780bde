//! Kernels on the GPU against the CPU. Where no GPU is, each test says so and ends; `scripts/cuda/test-kernels.sh` then checks
//! their indices in an emulation.
#![allow(clippy::print_stdout)]

use candle_core::{DType, Device, Tensor};

use crate::ops::activation::{geglu, gelu, quick_gelu, silu};
use crate::ops::attention::{self, Heads, KeyValue};
use crate::ops::conv::{Added, Conv3x3, Kind};
use crate::ops::linear::Linear;
use crate::ops::norm::{GroupNorm, LayerNorm};
use crate::ops::tests::tensor;
use crate::ops::{Fast, Place};

/// A place on the GPU, and how far its results may be off: for each value, of the value or of 1, whichever is more.
struct There {
    place: Place,
    bar: f32,
}

/// Runs `test` for each type, if there is a GPU.
fn on_gpu(test: impl Fn(&There)) {
    let device = match crate::open_gpu(0) {
        Ok(device) => device,
        Err(reason) => {
            println!("skipped: {reason}");
            return;
        }
    };
    for (dtype, bar) in [(DType::F32, 2e-4), (DType::F16, 6e-3), (DType::BF16, 5e-2)] {
        test(&There {
            place: Place::new(&device, dtype),
            bar,
        });
    }
}

fn cpu() -> Place {
    Place::new(&Device::Cpu, DType::F32)
}

impl There {
    /// Normal values that the type can hold, on the CPU.
    fn values(&self, seed: u64, shape: &[usize]) -> Tensor {
        let rounded = tensor(seed, shape).to_dtype(self.place.dtype).unwrap();
        rounded.to_dtype(DType::F32).unwrap()
    }

    fn list(&self, seed: u64, count: usize) -> Vec<f32> {
        self.values(seed, &[count]).to_vec1().unwrap()
    }

    /// The same values on the GPU.
    fn bring(&self, x: &Tensor) -> Tensor {
        let there = x.to_device(&self.place.device).unwrap();
        there.to_dtype(self.place.dtype).unwrap()
    }

    fn check(&self, what: &str, ours: &Tensor, reference: &Tensor) {
        assert_eq!(ours.dims(), reference.dims(), "{what}");
        assert_eq!(ours.dtype(), self.place.dtype, "{what}");
        let list = |x: &Tensor| -> Vec<f32> {
            let here = x.to_device(&Device::Cpu).unwrap();
            let flat = here.to_dtype(DType::F32).unwrap().flatten_all().unwrap();
            flat.to_vec1().unwrap()
        };
        for (ours, exact) in list(ours).into_iter().zip(list(reference)) {
            let off = (ours - exact).abs() / exact.abs().max(1.0);
            let dtype = self.place.dtype;
            assert!(
                off <= self.bar,
                "{what} in {dtype:?}: {ours}, should be {exact}"
            );
        }
    }
}

#[test]
fn group_norm_on_the_gpu_agrees_with_the_cpu() {
    on_gpu(|there| {
        for (height, width, channels, groups) in [
            (6, 7, 24, 4),
            (40, 50, 64, 32),
            (3, 3, 5, 5),
            (64, 64, 320, 32),
            (8, 8, 2560, 32),
        ] {
            let x = (there.values(1, &[2, height, width, channels]) + 3.0).unwrap();
            let (weight, bias) = (there.list(2, channels), there.list(3, channels));
            let [ours, reference] = [&there.place, &cpu()]
                .map(|place| GroupNorm::new(weight.clone(), bias.clone(), groups, 1e-5, place));
            let there_x = there.bring(&x);
            let x = there_x
                .to_device(&Device::Cpu)
                .unwrap()
                .to_dtype(DType::F32)
                .unwrap();
            let what = format!("group norm of {channels} channels");
            there.check(
                &what,
                &ours.forward_silu(&there_x).unwrap(),
                &reference.forward_silu(&x).unwrap(),
            );
            there.check(
                &what,
                &ours.forward(&there_x).unwrap(),
                &reference.forward(&x).unwrap(),
            );
        }
    });
}

#[test]
fn layer_norm_on_the_gpu_agrees_with_the_cpu() {
    on_gpu(|there| {
        for channels in [5, 16, 100, 640, 1280] {
            let x = there.values(1, &[3, 41, channels]);
            let (weight, bias) = (there.list(2, channels), there.list(3, channels));
            let [ours, reference] = [&there.place, &cpu()]
                .map(|place| LayerNorm::new(weight.clone(), bias.clone(), 1e-5, place));
            let ours = ours.forward(&there.bring(&x)).unwrap();
            there.check("layer norm", &ours, &reference.forward(&x).unwrap());
        }
    });
}

#[test]
fn activations_on_the_gpu_agree_with_the_cpu() {
    on_gpu(|there| {
        for columns in [66, 640] {
            let x = there.values(3, &[3, 5, columns]);
            let x = (x * 4.0).unwrap();
            let at = there.bring(&x);
            for (name, function) in [
                ("silu", silu as fn(Fast, &Tensor) -> _),
                ("gelu", gelu),
                ("quick gelu", quick_gelu),
                ("geglu", geglu),
            ] {
                let ours = function(there.place.fast, &at).unwrap();
                there.check(name, &ours, &function(cpu().fast, &x).unwrap());
            }
        }
    });
}

#[test]
fn linear_layers_on_the_gpu_agree_with_the_cpu() {
    on_gpu(|there| {
        for (rows, input, output) in [(2, 48, 40), (150, 130, 203)] {
            let x = there.values(1, &[3, rows, input]);
            let residual = there.values(4, &[3, rows, output]);
            // As wide as trained weights are, so that sums stay near 1.
            let scale = (input as f32).powf(-0.5);
            let weight: Vec<f32> = there
                .list(2, output * input)
                .iter()
                .map(|w| w * scale)
                .collect();
            let bias = there.list(3, output);
            let [ours, reference] = [&there.place, &cpu()].map(|place| {
                Linear::new(weight.clone(), Some(bias.clone()), input, output, place).unwrap()
            });
            let ours = ours
                .forward_add(&there.bring(&x), Some(&there.bring(&residual)))
                .unwrap();
            let reference = reference.forward_add(&x, Some(&residual)).unwrap();
            there.check("linear", &ours, &reference);
        }
    });
}

#[test]
fn convolutions_on_the_gpu_agree_with_the_cpu() {
    on_gpu(|there| {
        for (kind, height, width) in [
            (Kind::Same, 9, 14),
            (Kind::Down, 8, 6),
            (Kind::Down, 7, 5),
            (Kind::Up, 5, 4),
        ] {
            for (input, output) in [(4, 40), (33, 3), (16, 64), (320, 320)] {
                let x = there.values(1, &[2, height, width, input]);
                let scale = (9.0 * input as f32).powf(-0.5);
                let weight: Vec<f32> = there
                    .list(2, output * input * 9)
                    .iter()
                    .map(|w| w * scale)
                    .collect();
                let bias = there.list(3, output);
                let [ours, reference] = [&there.place, &cpu()].map(|place| {
                    Conv3x3::new(weight.clone(), bias.clone(), input, output, kind, place).unwrap()
                });
                let at = there.bring(&x);
                let plain = reference.forward(&x).unwrap();
                let what = format!("{kind:?} of {input} to {output} channels");
                there.check(&what, &ours.forward(&at).unwrap(), &plain);
                let picture = there.values(4, plain.dims());
                let channels = there.values(5, &[2, output]);
                there.check(
                    &what,
                    &ours
                        .forward_add(&at, Added::Picture(&there.bring(&picture)))
                        .unwrap(),
                    &reference.forward_add(&x, Added::Picture(&picture)).unwrap(),
                );
                there.check(
                    &what,
                    &ours
                        .forward_add(&at, Added::PerChannel(&there.bring(&channels)))
                        .unwrap(),
                    &reference
                        .forward_add(&x, Added::PerChannel(&channels))
                        .unwrap(),
                );
            }
        }
    });
}

#[test]
fn attention_on_the_gpu_agrees_with_the_cpu() {
    on_gpu(|there| {
        for (tokens, others, channels, count) in [
            (77, 77, 24, 3),
            (130, 77, 64, 1),
            (300, 33, 640, 10),
            (1, 1, 128, 2),
            (256, 256, 512, 1),
        ] {
            let qkv = there.values(1, &[2, tokens, 3 * channels]);
            let at = there.bring(&qkv);
            for causal in [false, true] {
                let heads = Heads { count, causal };
                let ours = attention::own(there.place.fast, &at, heads).unwrap();
                let reference = attention::own(cpu().fast, &qkv, heads).unwrap();
                there.check("attention to itself", &ours, &reference);
            }
            let heads = Heads {
                count,
                causal: false,
            };
            let queries = there.values(2, &[18, tokens, channels]);
            let texts: Vec<(Tensor, Tensor)> = (0..18_u64)
                .map(|row| {
                    let part = |seed| there.values(seed + row, &[others, channels]);
                    (part(10), part(50))
                })
                .collect();
            let cross = |fast: Fast, queries: &Tensor, bring: &dyn Fn(&Tensor) -> Tensor| {
                let context: Vec<KeyValue> = (texts.iter())
                    .map(|(k, v)| KeyValue::new(fast, &bring(k), &bring(v), count).unwrap())
                    .collect();
                let context: Vec<&KeyValue> = context.iter().collect();
                attention::cross(fast, queries, &context, heads).unwrap()
            };
            let ours = cross(there.place.fast, &there.bring(&queries), &|x| {
                there.bring(x)
            });
            there.check(
                "attention to texts",
                &ours,
                &cross(cpu().fast, &queries, &Tensor::clone),
            );
        }
    });
}

#[test]
fn a_row_on_the_gpu_does_not_depend_on_its_neighbours_in_our_kernels() {
    on_gpu(|there| {
        let qkv = there.bring(&there.values(1, &[3, 100, 3 * 128]));
        let heads = Heads {
            count: 2,
            causal: false,
        };
        let x = there.bring(&there.values(2, &[3, 9, 9, 64]));
        let norm = GroupNorm::new(vec![1.0; 64], vec![0.0; 64], 32, 1e-5, &there.place);
        let bits = |x: &Tensor| -> Vec<f32> {
            let wide = x.to_dtype(DType::F32).unwrap();
            wide.flatten_all().unwrap().to_vec1().unwrap()
        };
        let (all_seen, all_normal) = (
            attention::own(there.place.fast, &qkv, heads).unwrap(),
            norm.forward_silu(&x).unwrap(),
        );
        for row in 0..3 {
            let alone = |x: &Tensor| x.narrow(0, row, 1).unwrap().contiguous().unwrap();
            if there.place.dtype != DType::F32 {
                // In f32 the products are cuBLAS's, which may choose by the size of the batch.
                let seen = attention::own(there.place.fast, &alone(&qkv), heads).unwrap();
                assert_eq!(bits(&seen), bits(&alone(&all_seen)));
            }
            let normal = norm.forward_silu(&alone(&x)).unwrap();
            assert_eq!(bits(&normal), bits(&alone(&all_normal)));
        }
    });
}
