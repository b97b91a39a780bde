//! Damaged model folders.

use std::fs;

use diffusion::{DType, Device, LoadError, Model};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::files::{copy_folder, join, split};
use crate::support::{finish, golden, mini, overlay, request};

const UNET: &str = "unet/diffusion_pytorch_model.fp16.safetensors";

fn copy() -> TempDir {
    let folder = TempDir::new().unwrap();
    copy_folder(&golden().join("mini"), folder.path());
    folder
}

fn load(folder: &TempDir) -> Result<Model, LoadError> {
    Model::load(folder.path(), &Device::Cpu, DType::F32)
}

fn refusal(folder: &TempDir) -> String {
    load(folder).expect_err("the folder was taken").to_string()
}

fn edit(folder: &TempDir, file: &str, change: impl FnOnce(&mut Value)) {
    let path = folder.path().join(file);
    let mut value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    change(&mut value);
    fs::write(path, value.to_string()).unwrap();
}

#[test]
fn each_missing_file_is_named() {
    let files = [
        "model_index.json",
        "scheduler/scheduler_config.json",
        "text_encoder/config.json",
        "text_encoder_2/config.json",
        "unet/config.json",
        "vae/config.json",
        "tokenizer/vocab.json",
        "tokenizer/merges.txt",
        "tokenizer_2/vocab.json",
        "tokenizer/tokenizer_config.json",
    ];
    for file in files {
        let folder = copy();
        fs::remove_file(folder.path().join(file)).unwrap();
        assert!(
            refusal(&folder).contains(file),
            "{file}: {}",
            refusal(&folder)
        );
    }
    for (part, stem) in [
        ("unet", "diffusion_pytorch_model"),
        ("text_encoder", "model"),
    ] {
        let folder = copy();
        fs::remove_file(
            folder
                .path()
                .join(part)
                .join(format!("{stem}.fp16.safetensors")),
        )
        .unwrap();
        let text = refusal(&folder);
        assert!(text.contains(part) && text.contains(stem), "{text}");
    }
}

#[test]
fn each_value_that_is_not_understood_is_named() {
    let cases = [
        ("model_index.json", "_class_name", json!("FluxPipeline")),
        (
            "model_index.json",
            "unet",
            json!(["diffusers", "UNet2DModel"]),
        ),
        (
            "unet/config.json",
            "addition_embed_type",
            json!("text_image"),
        ),
        ("unet/config.json", "addition_embed_type", Value::Null),
        ("unet/config.json", "class_embed_type", json!("timestep")),
        ("unet/config.json", "act_fn", json!("mish")),
        (
            "unet/config.json",
            "down_block_types",
            json!(["CrossAttnDownBlock2D", "AttnDownBlock2D"]),
        ),
        ("unet/config.json", "up_block_types", json!(["UpBlock2D"])),
        (
            "unet/config.json",
            "mid_block_type",
            json!("UNetMidBlock2D"),
        ),
        ("unet/config.json", "attention_head_dim", json!([2, 5])),
        ("unet/config.json", "block_out_channels", json!([16, 0])),
        ("unet/config.json", "block_out_channels", json!("wide")),
        ("unet/config.json", "num_attention_heads", json!(2)),
        ("unet/config.json", "time_cond_proj_dim", json!(256)),
        ("unet/config.json", "something_new", json!(true)),
        (
            "unet/config.json",
            "resnet_time_scale_shift",
            json!("scale_shift"),
        ),
        ("unet/config.json", "in_channels", json!(5)),
        ("vae/config.json", "shift_factor", json!(0.1)),
        (
            "vae/config.json",
            "down_block_types",
            json!(["DownEncoderBlock2D", "AttnDownEncoderBlock2D"]),
        ),
        (
            "vae/config.json",
            "down_block_types",
            json!(["DownEncoderBlock2D"]),
        ),
        ("vae/config.json", "use_quant_conv", json!("no")),
        ("vae/config.json", "in_channels", json!(4)),
        ("vae/config.json", "sample_size", json!(0)),
        (
            "model_index.json",
            "requires_aesthetics_score",
            json!("yes"),
        ),
        ("vae/config.json", "latents_mean", json!([0.0])),
        ("vae/config.json", "act_fn", json!("relu")),
        ("text_encoder/config.json", "hidden_act", json!("gelu_new")),
        ("text_encoder/config.json", "num_attention_heads", json!(3)),
        (
            "scheduler/scheduler_config.json",
            "_class_name",
            json!("PNDMScheduler"),
        ),
        (
            "scheduler/scheduler_config.json",
            "prediction_type",
            json!("flow"),
        ),
        (
            "scheduler/scheduler_config.json",
            "beta_schedule",
            json!("sigmoid"),
        ),
        (
            "scheduler/scheduler_config.json",
            "thresholding",
            json!(true),
        ),
        (
            "scheduler/scheduler_config.json",
            "timestep_spacing",
            json!("uneven"),
        ),
        (
            "scheduler/scheduler_config.json",
            "trained_betas",
            json!([0.1]),
        ),
    ];
    for (file, key, value) in cases {
        let folder = copy();
        edit(&folder, file, |config| config[key] = value.clone());
        let text = refusal(&folder);
        assert!(
            text.contains(file) && text.contains(key),
            "{file} {key} {value}: {text}"
        );
    }
}

#[test]
fn a_config_that_is_no_json_is_named() {
    let folder = copy();
    fs::write(folder.path().join("vae/config.json"), "{ \"a\": ").unwrap();
    assert!(refusal(&folder).contains("vae/config.json"));
    fs::write(folder.path().join("vae/config.json"), [0xff, 0xfe, 0]).unwrap();
    assert!(refusal(&folder).contains("vae/config.json"));
}

#[test]
fn a_damaged_header_is_named() {
    let whole = fs::read(golden().join("mini").join(UNET)).unwrap();
    let mut long = whole.clone();
    long.push(0);
    let mut huge = whole.clone();
    huge[..8].copy_from_slice(&u64::MAX.to_le_bytes());
    let mut garbled = whole.clone();
    garbled[20..40].fill(b'#');
    let cases = [
        Vec::new(),
        whole[..5].to_vec(),
        whole[..1000].to_vec(),
        whole[..whole.len() - 1].to_vec(),
        long,
        huge,
        garbled,
    ];
    for bytes in cases {
        let folder = copy();
        fs::write(folder.path().join(UNET), &bytes).unwrap();
        let error = load(&folder).unwrap_err();
        assert!(matches!(error, LoadError::Header { .. }), "{error}");
        assert!(error.to_string().contains(UNET), "{error}");
    }
}

#[test]
fn a_missing_or_misshapen_tensor_is_named() {
    let tensor = "mid_block.attentions.0.transformer_blocks.1.attn2.to_k.weight";
    let folder = copy();
    let file = folder.path().join(UNET);
    let (whole, data) = split(&file);
    let mut header = whole.clone();
    let entry = header.as_object_mut().unwrap().remove(tensor).unwrap();
    header["renamed"] = entry;
    join(&file, &header, &data);
    let text = refusal(&folder);
    assert!(
        text.contains(UNET) && text.contains(tensor) && text.contains("missing"),
        "{text}"
    );

    let mut header = whole.clone();
    header[tensor]["shape"] = json!([40, 32]);
    join(&file, &header, &data);
    let text = refusal(&folder);
    assert!(
        text.contains(tensor) && text.contains("[40, 32]") && text.contains("[32, 40]"),
        "{text}"
    );

    let mut header = whole;
    header[tensor]["dtype"] = json!("I16");
    join(&file, &header, &data);
    assert!(refusal(&folder).contains(tensor));
}

#[test]
fn what_is_wrong_with_a_header_is_named() {
    let tensor = "conv_in.bias";
    let folder = copy();
    let file = folder.path().join(UNET);
    let (whole, data) = split(&file);
    let [from, to] = [0, 1].map(|end| whole[tensor]["data_offsets"][end].as_u64().unwrap());
    for (key, value) in [
        ("dtype", json!("F13")),
        ("dtype", json!(16)),
        ("shape", json!([u64::MAX, 2])),
        ("shape", json!([-1])),
        ("data_offsets", json!([from + 2, to])),
        ("data_offsets", json!([from, to + 2])),
        ("data_offsets", json!([from, u64::MAX])),
        ("data_offsets", json!([to, from])),
    ] {
        let mut header = whole.clone();
        header[tensor][key] = value.clone();
        join(&file, &header, &data);
        let error = load(&folder).unwrap_err();
        assert!(matches!(error, LoadError::Header { .. }), "{error}");
        let text = error.to_string();
        assert!(text.contains(UNET), "{key} {value}: {text}");
        // Offsets that move are noticed at the tensor or at its neighbour.
        assert!(text.contains("tensor "), "{key} {value}: {text}");
        assert!(
            key == "data_offsets" || text.contains(tensor),
            "{key} {value}: {text}"
        );
    }
}

#[test]
fn an_index_that_lies_is_named() {
    let index = "unet/diffusion_pytorch_model.safetensors.index.fp16.json";
    let folder = copy();
    let part = folder.path().join("unet/part.safetensors");
    fs::rename(folder.path().join(UNET), &part).unwrap();
    let write = |value: Value| fs::write(folder.path().join(index), value.to_string()).unwrap();
    for wrong in [json!([]), json!({}), json!({ "weight_map": { "a": 1 } })] {
        write(wrong);
        assert!(refusal(&folder).contains(index), "{}", refusal(&folder));
    }
    write(json!({ "weight_map": {} }));
    let text = refusal(&folder);
    assert!(text.contains(index) && text.contains("missing"), "{text}");
    for outside in ["/etc/passwd", "..", "", "a/part.safetensors"] {
        write(json!({ "weight_map": { "a": outside } }));
        assert!(
            refusal(&folder).contains(index),
            "{outside}: {}",
            refusal(&folder)
        );
    }
    let bytes = fs::read(&part).unwrap();
    fs::write(&part, &bytes[..bytes.len() - 2]).unwrap();
    write(json!({ "weight_map": { "a": "part.safetensors" } }));
    assert!(refusal(&folder).contains("part.safetensors"));
}

#[test]
fn a_tokenizer_whose_files_do_not_fit_is_refused() {
    for (file, content) in [
        ("merges.txt", "#version: 0.2\nnope"),
        ("merges.txt", "zzzz qqqq\n"),
        ("vocab.json", "{}"),
    ] {
        let folder = copy();
        fs::write(folder.path().join("tokenizer_2").join(file), content).unwrap();
        assert!(
            refusal(&folder).contains("tokenizer_2"),
            "{}",
            refusal(&folder)
        );
    }
}

#[test]
fn sharded_weights_load_to_the_same_model() {
    let folder = copy();
    let file = folder.path().join(UNET);
    let (header, data) = split(&file);
    let mut parts = [serde_json::Map::new(), serde_json::Map::new()];
    let mut bytes = [Vec::new(), Vec::new()];
    let mut map = serde_json::Map::new();
    let mut names: Vec<_> = header
        .as_object()
        .unwrap()
        .iter()
        .filter(|(name, _)| *name != "__metadata__")
        .collect();
    names.sort_by_key(|(_, entry)| entry["data_offsets"][0].as_u64());
    for (index, (name, entry)) in names.into_iter().enumerate() {
        let [from, to] = [0, 1].map(|end| entry["data_offsets"][end].as_u64().unwrap() as usize);
        let shard = index % 2;
        let begin = bytes[shard].len();
        bytes[shard].extend_from_slice(&data[from..to]);
        let mut entry = entry.clone();
        entry["data_offsets"] = json!([begin, bytes[shard].len()]);
        parts[shard].insert(name.clone(), entry);
        map.insert(name.clone(), json!(format!("part-{shard}.safetensors")));
    }
    for shard in 0..2 {
        let header = Value::Object(parts[shard].clone());
        join(
            &folder.path().join(format!("unet/part-{shard}.safetensors")),
            &header,
            &bytes[shard],
        );
    }
    fs::remove_file(file).unwrap();
    let index = folder
        .path()
        .join("unet/diffusion_pytorch_model.safetensors.index.fp16.json");
    fs::write(&index, json!({ "weight_map": map }).to_string()).unwrap();
    let model = load(&folder).unwrap();
    let draw = |model: &Model| finish(model, model.begin(&request()).unwrap());
    assert_eq!(draw(&model), draw(mini()));

    fs::remove_file(folder.path().join("unet/part-1.safetensors")).unwrap();
    assert!(refusal(&folder).contains("part-1.safetensors"));
    fs::write(
        &index,
        json!({ "weight_map": { "a": "../part-0.safetensors" } }).to_string(),
    )
    .unwrap();
    assert!(refusal(&folder).contains("index.fp16.json"));
}

#[test]
fn other_weights_have_another_digest() {
    let folder = copy();
    let file = folder.path().join(UNET);
    let mut bytes = fs::read(&file).unwrap();
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    fs::write(file, bytes).unwrap();
    assert_ne!(load(&folder).unwrap().digest(), mini().digest());
    assert_eq!(load(&copy()).unwrap().digest(), mini().digest());
}

#[test]
fn a_vae_without_its_encoder_is_refused_by_name_at_load() {
    let folder = copy();
    let file = folder
        .path()
        .join("vae/diffusion_pytorch_model.fp16.safetensors");
    let (header, data) = split(&file);
    for name in [
        "encoder.conv_in.weight",
        "encoder.down_blocks.0.downsamplers.0.conv.bias",
        "encoder.mid_block.attentions.0.to_out.0.weight",
        "quant_conv.weight",
    ] {
        let mut other = header.clone();
        let tensors = other.as_object_mut().unwrap();
        let tensor = tensors.remove(name).unwrap();
        tensors.insert("unknown".to_owned(), tensor);
        join(&file, &other, &data);
        let text = refusal(&folder);
        assert!(text.contains(name) && text.contains("missing"), "{text}");
    }
}

#[test]
fn a_refiner_whose_index_or_unet_does_not_say_so_is_refused() {
    let folder = overlay("mini_refiner");
    edit(&folder, "model_index.json", |index| {
        index["requires_aesthetics_score"] = json!(false);
    });
    let text = refusal(&folder);
    assert!(
        text.contains("projection_class_embeddings_input_dim"),
        "{text}"
    );
    assert!(text.contains("requires_aesthetics_score"), "{text}");

    let folder = overlay("mini_refiner");
    edit(&folder, "model_index.json", |index| {
        index["text_encoder"] = json!(["transformers", "CLIPTextModel"]);
    });
    assert!(refusal(&folder).contains("text_encoder/config.json"));
}
