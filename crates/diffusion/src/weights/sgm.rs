//! Checkpoints of a single file, as Stability AI's `generative-models` (SGM) writes them: the same tensors under other
//! names, text encoder 2 in open_clip's form.
//!
//! Each component's names are a table of pairs, folder's name and checkpoint's, made from the rules below for the
//! numbers of its configuration. It is read in both directions (the way back in tests only). Sources: `openaimodel.py` and
//! `model.py` of generative-models, `transformer.py` of open_clip, and diffusers' documentation of its own names.

/// How a tensor of a checkpoint becomes one of a folder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Change {
    Same,
    /// A 1×1 convolution's weight, or a matrix that is one already, becomes a matrix.
    Matrix,
    /// One of three parts of its rows: 0 for query, 1 for key, 2 for value.
    Third(usize),
    /// Rows become columns.
    Transposed,
}

#[derive(Debug)]
struct Rule {
    /// A module or tensor in the folder, and in the checkpoint.
    folder: String,
    checkpoint: String,
    change: Change,
}

/// What a component's tensors are called in a checkpoint.
#[derive(Debug)]
pub(crate) struct Names {
    /// Where the component may be; the first that there is counts.
    prefixes: &'static [&'static str],
    rules: Vec<Rule>,
}

const UNET: &[(&str, &str)] = &[
    ("conv_in", "input_blocks.0.0"),
    ("time_embedding.linear_1", "time_embed.0"),
    ("time_embedding.linear_2", "time_embed.2"),
    ("add_embedding.linear_1", "label_emb.0.0"),
    ("add_embedding.linear_2", "label_emb.0.2"),
    ("mid_block.attentions.0", "middle_block.1"),
    ("conv_norm_out", "out.0"),
    ("conv_out", "out.2"),
];

const UNET_RESNET: &[(&str, &str)] = &[
    ("norm1", "in_layers.0"),
    ("conv1", "in_layers.2"),
    ("time_emb_proj", "emb_layers.1"),
    ("norm2", "out_layers.0"),
    ("conv2", "out_layers.3"),
    ("conv_shortcut", "skip_connection"),
];

const VAE: &[(&str, &str)] = &[
    ("quant_conv", "quant_conv"),
    ("post_quant_conv", "post_quant_conv"),
];

/// Of encoder and decoder each.
const VAE_HALF: &[(&str, &str)] = &[
    ("conv_in", "conv_in"),
    ("conv_norm_out", "norm_out"),
    ("conv_out", "conv_out"),
    ("mid_block.attentions.0.group_norm", "mid.attn_1.norm"),
];

const VAE_ATTENTION: &[(&str, &str)] = &[
    ("to_q", "q"),
    ("to_k", "k"),
    ("to_v", "v"),
    ("to_out.0", "proj_out"),
];

const VAE_RESNET: &[(&str, &str)] = &[
    ("norm1", "norm1"),
    ("conv1", "conv1"),
    ("norm2", "norm2"),
    ("conv2", "conv2"),
    ("conv_shortcut", "nin_shortcut"),
];

const OPEN_CLIP: &[(&str, &str)] = &[
    ("text_model.embeddings.token_embedding", "token_embedding"),
    (
        "text_model.embeddings.position_embedding.weight",
        "positional_embedding",
    ),
    ("text_model.final_layer_norm", "ln_final"),
];

const OPEN_CLIP_LAYER: &[(&str, &str)] = &[
    ("layer_norm1", "ln_1"),
    ("self_attn.out_proj", "attn.out_proj"),
    ("layer_norm2", "ln_2"),
    ("mlp.fc1", "mlp.c_fc"),
    ("mlp.fc2", "mlp.c_proj"),
];

impl Names {
    /// Of a UNet: for each level whether it attends on its way up (which moves the upsampler by one place), and residual
    /// blocks a level.
    pub(crate) fn unet(attends_up: &[bool], layers: usize) -> Self {
        let levels = attends_up.len();
        let mut names = Self::new(&["model.diffusion_model."], UNET);
        for (index, place) in [(0, 0), (1, 2)] {
            let (folder, checkpoint) = (
                format!("mid_block.resnets.{index}"),
                format!("middle_block.{place}"),
            );
            names.add(&folder, &checkpoint, UNET_RESNET, Change::Same);
        }
        for level in 0..levels {
            let block = format!("down_blocks.{level}");
            for layer in 0..layers {
                // Block 0 is the first convolution, and each level ends in one that halves.
                let place = format!("input_blocks.{}", 1 + level * (layers + 1) + layer);
                let resnet = format!("{block}.resnets.{layer}");
                names.add(&resnet, &format!("{place}.0"), UNET_RESNET, Change::Same);
                names.one(format!("{block}.attentions.{layer}"), format!("{place}.1"));
            }
            let place = (level + 1) * (layers + 1);
            names.one(
                format!("{block}.downsamplers.0.conv"),
                format!("input_blocks.{place}.0.op"),
            );
        }
        for (block_number, attends) in attends_up.iter().rev().enumerate() {
            let block = format!("up_blocks.{block_number}");
            for layer in 0..=layers {
                let place = format!("output_blocks.{}", block_number * (layers + 1) + layer);
                let resnet = format!("{block}.resnets.{layer}");
                names.add(&resnet, &format!("{place}.0"), UNET_RESNET, Change::Same);
                if *attends {
                    names.one(format!("{block}.attentions.{layer}"), format!("{place}.1"));
                }
            }
            let place = block_number * (layers + 1) + layers;
            let within = if *attends { 2 } else { 1 };
            names.one(
                format!("{block}.upsamplers.0.conv"),
                format!("output_blocks.{place}.{within}.conv"),
            );
        }
        names
    }

    /// Of a VAE of so many levels and residual blocks a level of the encoder (the decoder has one more).
    pub(crate) fn vae(levels: usize, layers: usize) -> Self {
        let mut names = Self::new(&["first_stage_model."], VAE);
        for half in ["encoder", "decoder"] {
            names.add(half, half, VAE_HALF, Change::Same);
            let attention = format!("{half}.mid_block.attentions.0");
            names.add(
                &attention,
                &format!("{half}.mid.attn_1"),
                VAE_ATTENTION,
                Change::Matrix,
            );
            for index in 0..2 {
                let (folder, checkpoint) = (
                    format!("{half}.mid_block.resnets.{index}"),
                    format!("{half}.mid.block_{}", index + 1),
                );
                names.add(&folder, &checkpoint, VAE_RESNET, Change::Same);
            }
        }
        for level in 0..levels {
            for layer in 0..layers {
                let (folder, checkpoint) = (
                    format!("encoder.down_blocks.{level}.resnets.{layer}"),
                    format!("encoder.down.{level}.block.{layer}"),
                );
                names.add(&folder, &checkpoint, VAE_RESNET, Change::Same);
            }
            names.one(
                format!("encoder.down_blocks.{level}.downsamplers.0.conv"),
                format!("encoder.down.{level}.downsample.conv"),
            );
            // Here the decoder's levels are counted from the picture, there from the latents.
            let up = levels - 1 - level;
            for layer in 0..=layers {
                let (folder, checkpoint) = (
                    format!("decoder.up_blocks.{level}.resnets.{layer}"),
                    format!("decoder.up.{up}.block.{layer}"),
                );
                names.add(&folder, &checkpoint, VAE_RESNET, Change::Same);
            }
            names.one(
                format!("decoder.up_blocks.{level}.upsamplers.0.conv"),
                format!("decoder.up.{up}.upsample.conv"),
            );
        }
        names
    }

    /// Of text encoder 1, which keeps transformers' names.
    pub(crate) fn first_encoder() -> Self {
        Self::new(
            &["conditioner.embedders.0.transformer."],
            &[("text_model", "text_model")],
        )
    }

    /// Of text encoder 2 with so many layers. A refiner has no other, and has it in the first place.
    pub(crate) fn second_encoder(layers: usize) -> Self {
        let mut names = Self::new(
            &[
                "conditioner.embedders.1.model.",
                "conditioner.embedders.0.model.",
            ],
            OPEN_CLIP,
        );
        names.changed(
            "text_projection.weight",
            "text_projection",
            Change::Transposed,
        );
        for layer in 0..layers {
            let folder = format!("text_model.encoder.layers.{layer}");
            let checkpoint = format!("transformer.resblocks.{layer}");
            names.add(&folder, &checkpoint, OPEN_CLIP_LAYER, Change::Same);
            for (third, part) in ["q_proj", "k_proj", "v_proj"].iter().enumerate() {
                for kind in ["weight", "bias"] {
                    names.changed(
                        &format!("{folder}.self_attn.{part}.{kind}"),
                        &format!("{checkpoint}.attn.in_proj_{kind}"),
                        Change::Third(third),
                    );
                }
            }
        }
        names
    }

    fn new(prefixes: &'static [&'static str], modules: &[(&str, &str)]) -> Self {
        let mut names = Self {
            prefixes,
            rules: Vec::new(),
        };
        for (folder, checkpoint) in modules {
            names.changed(folder, checkpoint, Change::Same);
        }
        names
    }

    fn one(&mut self, folder: String, checkpoint: String) {
        self.changed(&folder, &checkpoint, Change::Same);
    }

    fn add(&mut self, folder: &str, checkpoint: &str, parts: &[(&str, &str)], change: Change) {
        for (ours, theirs) in parts {
            self.changed(
                &format!("{folder}.{ours}"),
                &format!("{checkpoint}.{theirs}"),
                change,
            );
        }
    }

    fn changed(&mut self, folder: &str, checkpoint: &str, change: Change) {
        self.rules.push(Rule {
            folder: folder.to_owned(),
            checkpoint: checkpoint.to_owned(),
            change,
        });
    }

    /// The component's prefix in a checkpoint of these tensors.
    pub(super) fn prefix<'a, I: Iterator<Item = &'a String>>(
        &self,
        tensors: impl Fn() -> I,
    ) -> &'static str {
        let present = |prefix: &&&str| tensors().any(|name| name.starts_with(**prefix));
        let found = self.prefixes.iter().find(present);
        found.or(self.prefixes.first()).copied().unwrap_or("")
    }

    /// What the checkpoint calls a tensor of the folder (behind the component's prefix), and how it becomes that.
    pub(super) fn in_checkpoint(&self, name: &str) -> Option<(String, Change)> {
        self.rules.iter().find_map(|rule| {
            let rest = behind(name, &rule.folder)?;
            Some((format!("{}{rest}", rule.checkpoint), rule.change))
        })
    }

    /// What the folder calls a tensor of the checkpoint: one name, or three for a fused projection.
    #[cfg(test)]
    fn in_folder(&self, name: &str) -> Vec<(String, Change)> {
        (self.rules.iter())
            .filter_map(|rule| {
                let rest = behind(name, &rule.checkpoint)?;
                Some((format!("{}{rest}", rule.folder), rule.change))
            })
            .collect()
    }
}

/// What follows the module or tensor `module` in `name`, if it is one.
fn behind<'a>(name: &'a str, module: &str) -> Option<&'a str> {
    let rest = name.strip_prefix(module)?;
    (rest.is_empty() || rest.starts_with('.')).then_some(rest)
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeSet, HashMap};

    use super::*;
    use crate::golden;

    /// A key of a model: what folder and checkpoint call it, and its shape in the folder.
    struct Key {
        folder: String,
        checkpoint: String,
        shape: Vec<usize>,
    }

    /// The keys that `scripts/golden/single_file.py` recorded, by their title.
    fn recorded() -> HashMap<String, Vec<Key>> {
        let text = std::fs::read_to_string(golden::folder().join("checkpoint_keys.txt")).unwrap();
        let mut all: HashMap<String, Vec<Key>> = HashMap::new();
        let mut title = String::new();
        for line in text.lines() {
            if let Some(name) = line.strip_prefix("# ") {
                title = name.to_owned();
                continue;
            }
            let keys = all.entry(title.clone()).or_default();
            let before = keys.last();
            let whole = |short: &str, before: Option<&String>| {
                let (shared, rest) = short.split_once(':').unwrap();
                let shared: usize = shared.parse().unwrap();
                format!("{}{rest}", &before.map_or("", |name| name)[..shared])
            };
            let fields: Vec<&str> = line.split(' ').collect();
            let key = Key {
                folder: whole(fields[0], before.map(|key| &key.folder)),
                checkpoint: whole(fields[1], before.map(|key| &key.checkpoint)),
                shape: fields[2].split('x').map(|n| n.parse().unwrap()).collect(),
            };
            keys.push(key);
        }
        all
    }

    fn names(title: &str) -> Names {
        match title {
            "base unet" => Names::unet(&[false, true, true], 2),
            "refiner unet" => Names::unet(&[false, true, true, false], 2),
            "base vae" => Names::vae(4, 2),
            "base text_encoder" => Names::first_encoder(),
            _ => Names::second_encoder(32),
        }
    }

    #[test]
    fn each_key_of_sdxl_and_its_refiner_is_translated_both_ways() {
        let all = recorded();
        assert_eq!(all.len(), 6);
        for (title, keys) in &all {
            let names = names(title);
            let checkpoint: Vec<String> = keys.iter().map(|key| key.checkpoint.clone()).collect();
            let prefix = names.prefix(|| checkpoint.iter());
            let mut back = BTreeSet::new();
            for key in keys {
                let (name, change) = names.in_checkpoint(&key.folder).unwrap();
                assert_eq!(format!("{prefix}{name}"), key.checkpoint, "{title}");
                assert!(
                    names
                        .in_folder(&name)
                        .contains(&(key.folder.clone(), change))
                );
                back.extend(names.in_folder(&name).into_iter().map(|(name, _)| name));
                if change == Change::Transposed {
                    assert_eq!(key.shape, [1280, 1280]);
                }
            }
            let folder: BTreeSet<String> = keys.iter().map(|key| key.folder.clone()).collect();
            assert_eq!(back, folder, "{title}: another tensor comes back");
        }
        let count = |title: &str| all[title].len();
        assert_eq!(count("base unet"), 1680);
        assert_eq!(
            count("base text_encoder_2"),
            count("refiner text_encoder_2")
        );
    }

    #[test]
    fn a_name_that_only_begins_like_a_module_is_no_part_of_it() {
        let names = Names::unet(&[false, true], 2);
        assert_eq!(names.in_checkpoint("conv_input.weight"), None);
        assert_eq!(
            names.in_checkpoint("down_blocks.7.resnets.0.norm1.weight"),
            None
        );
        let (name, change) = names.in_checkpoint("conv_in.weight").unwrap();
        assert_eq!(
            (name.as_str(), change),
            ("input_blocks.0.0.weight", Change::Same)
        );
    }

    #[test]
    fn the_second_encoder_of_a_refiner_is_found_in_the_first_place() {
        let names = Names::second_encoder(2);
        let refiner = ["conditioner.embedders.0.model.ln_final.weight".to_owned()];
        assert_eq!(
            names.prefix(|| refiner.iter()),
            "conditioner.embedders.0.model."
        );
        let base = [refiner[0].replace("s.0", "s.1"), "unrelated".to_owned()];
        assert_eq!(
            names.prefix(|| base.iter()),
            "conditioner.embedders.1.model."
        );
    }
}
