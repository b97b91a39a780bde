//! Writes a model folder of Stable Diffusion XL's size and shapes, of random weights in f16 (7 GB): what a start takes
//! can be measured with it, what it draws is noise.
//!
//! `cargo run -p diffusion --example random_model -- FOLDER`
//!
//! Tensor names and shapes are those that `scripts/golden/single_file.py` recorded from diffusers and transformers for
//! the published configurations; the tokenizers are the demo model's. Weights are scaled by their fan-in, so that values
//! stay near one from layer to layer.
#![allow(clippy::print_stderr)]

use std::error::Error;
use std::fs::{self, File};
use std::io::{BufWriter, IsTerminal as _, Write};
use std::path::Path;

use serde_json::{Map, Value, json};

const KEYS: &str = include_str!("../tests/golden/checkpoint_keys.txt");
const DEMO: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/../../assets/models/inkstone-demo"
);
/// Different values of a weight.
const VALUES: usize = 4096;

struct Tensor {
    name: String,
    shape: Vec<usize>,
}

impl Tensor {
    fn count(&self) -> usize {
        self.shape.iter().product()
    }

    /// The tensor's values lie between minus and plus this; `None` means ones, zero means zeros.
    fn reach(&self) -> Option<f32> {
        if self.name.ends_with("bias") {
            Some(0.0)
        } else if self.name.contains("norm") {
            None
        } else if self.name.contains("embedding.weight") {
            Some(0.05)
        } else {
            let inputs: usize = self.shape[1..].iter().product();
            Some((3.0 / inputs as f32).sqrt())
        }
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let folder = std::env::args()
        .nth(1)
        .ok_or("usage: random_model FOLDER")?;
    let folder = Path::new(&folder);
    for (part, config) in configs() {
        fs::create_dir_all(folder.join(part))?;
        fs::write(folder.join(part).join("config.json"), config.to_string())?;
    }
    fs::copy(
        format!("{DEMO}/model_index.json"),
        folder.join("model_index.json"),
    )?;
    for part in ["scheduler", "tokenizer", "tokenizer_2"] {
        fs::create_dir_all(folder.join(part))?;
        for entry in fs::read_dir(format!("{DEMO}/{part}"))? {
            let entry = entry?;
            fs::copy(entry.path(), folder.join(part).join(entry.file_name()))?;
        }
    }
    for (part, stem) in [
        ("text_encoder", "model"),
        ("text_encoder_2", "model"),
        ("vae", "diffusion_pytorch_model"),
        ("unet", "diffusion_pytorch_model"),
    ] {
        let file = folder.join(part).join(format!("{stem}.fp16.safetensors"));
        write(part, &tensors(&format!("base {part}"))?, &file)?;
    }
    Ok(())
}

/// The recorded tensors of a component. Each line has the name in the folder, that in a checkpoint, and the shape; a name
/// begins with how many bytes it shares with the one before.
fn tensors(title: &str) -> Result<Vec<Tensor>, Box<dyn Error>> {
    let mut tensors: Vec<Tensor> = Vec::new();
    let lines = KEYS
        .lines()
        .skip_while(|line| line.strip_prefix("# ") != Some(title));
    for line in lines.skip(1).take_while(|line| !line.starts_with('#')) {
        let [name, _, shape] = line.split(' ').collect::<Vec<_>>()[..] else {
            return Err(format!("not a key: {line}").into());
        };
        let (shared, rest) = name.split_once(':').ok_or("a name without its length")?;
        let before = tensors.last().map_or("", |tensor| &tensor.name);
        tensors.push(Tensor {
            name: format!("{}{rest}", &before[..shared.parse()?]),
            shape: shape.split('x').map(str::parse).collect::<Result<_, _>>()?,
        });
    }
    Ok(tensors)
}

fn write(part: &str, tensors: &[Tensor], file: &Path) -> Result<(), Box<dyn Error>> {
    let (mut header, mut end) = (Map::new(), 0);
    for tensor in tensors {
        let begin = end;
        end += 2 * tensor.count();
        let entry = json!({ "dtype": "F16", "shape": tensor.shape, "data_offsets": [begin, end] });
        header.insert(tensor.name.clone(), entry);
    }
    let mut header = Value::Object(header).to_string().into_bytes();
    header.resize(header.len().next_multiple_of(8), b' ');
    let mut out = BufWriter::with_capacity(1 << 20, File::create(file)?);
    out.write_all(&(header.len() as u64).to_le_bytes())?;
    out.write_all(&header)?;
    let (mut done, mut state) = (0, 0x9e37_79b9_7f4a_7c15_u64);
    for tensor in tensors {
        let table = table(tensor.reach());
        let mut block = Vec::with_capacity(1 << 20);
        let mut left = tensor.count();
        while left > 0 {
            let count = left.min(1 << 19);
            fill(&table, count, &mut state, &mut block);
            out.write_all(&block)?;
            left -= count;
            done += block.len();
            progress(part, done, end);
        }
    }
    out.flush()?;
    eprintln!();
    Ok(())
}

/// `count` values drawn from the table. Marsaglia's xorshift.
fn fill(table: &[[u8; 2]; VALUES], count: usize, state: &mut u64, out: &mut Vec<u8>) {
    out.clear();
    while out.len() < 2 * count {
        *state ^= *state << 13;
        *state ^= *state >> 7;
        *state ^= *state << 17;
        for shift in [4, 16, 28, 40, 52] {
            out.extend_from_slice(&table[(*state >> shift) as usize % VALUES]);
        }
    }
    out.truncate(2 * count);
}

fn table(reach: Option<f32>) -> [[u8; 2]; VALUES] {
    std::array::from_fn(|index| {
        let part = (index as f32 + 0.5) / (VALUES as f32 / 2.0) - 1.0;
        half(reach.map_or(1.0, |reach| reach * part)).to_le_bytes()
    })
}

/// IEEE 754 binary16, cut off rather than rounded; what is too small for a normal number is zero.
fn half(value: f32) -> u16 {
    let bits = value.to_bits();
    let sign = (bits >> 16) as u16 & 0x8000;
    match (bits >> 23 & 0xff).checked_sub(112) {
        None | Some(0) => sign,
        Some(exponent) => sign | (exponent << 10) as u16 | (bits >> 13) as u16 & 0x3ff,
    }
}

/// A bar for people; a log gets none.
fn progress(part: &str, done: usize, all: usize) {
    const WIDTH: usize = 40;
    if !std::io::stderr().is_terminal() {
        return;
    }
    let full = done * WIDTH / all;
    let bar = "#".repeat(full) + &".".repeat(WIDTH - full);
    eprint!(
        "\r{part:>16} [{bar}] {:.1} of {:.1} GB",
        done as f64 / 1e9,
        all as f64 / 1e9
    );
}

/// The published configurations of stable-diffusion-xl-base-1.0, with the demo tokenizer's ids.
fn configs() -> [(&'static str, Value); 4] {
    let encoder = |class: &str, width: u32, layers: u32, heads: u32, activation: &str| {
        json!({
            "architectures": [class], "hidden_size": width, "intermediate_size": 4 * width,
            "num_hidden_layers": layers, "num_attention_heads": heads, "hidden_act": activation,
            "layer_norm_eps": 1e-5, "max_position_embeddings": 77, "projection_dim": width, "vocab_size": 49408,
            "bos_token_id": 1558, "eos_token_id": 1559, "model_type": "clip_text_model", "torch_dtype": "float16",
        })
    };
    let (one, two) = ("CLIPTextModel", "CLIPTextModelWithProjection");
    let unet = json!({
        "_class_name": "UNet2DConditionModel", "sample_size": 128, "in_channels": 4, "out_channels": 4,
        "layers_per_block": 2, "block_out_channels": [320, 640, 1280],
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
        "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
        "attention_head_dim": [5, 10, 20], "transformer_layers_per_block": [1, 2, 10],
        "cross_attention_dim": 2048, "use_linear_projection": true, "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256, "projection_class_embeddings_input_dim": 2816,
    });
    let vae = json!({
        "_class_name": "AutoencoderKL", "block_out_channels": [128, 256, 512, 512], "layers_per_block": 2,
        "down_block_types": ["DownEncoderBlock2D", "DownEncoderBlock2D", "DownEncoderBlock2D", "DownEncoderBlock2D"],
        "up_block_types": ["UpDecoderBlock2D", "UpDecoderBlock2D", "UpDecoderBlock2D", "UpDecoderBlock2D"],
        "in_channels": 3, "out_channels": 3, "latent_channels": 4, "norm_num_groups": 32, "sample_size": 1024,
        "scaling_factor": 0.13025, "force_upcast": true, "act_fn": "silu",
    });
    [
        ("text_encoder", encoder(one, 768, 12, 12, "quick_gelu")),
        ("text_encoder_2", encoder(two, 1280, 32, 20, "gelu")),
        ("unet", unet),
        ("vae", vae),
    ]
}
