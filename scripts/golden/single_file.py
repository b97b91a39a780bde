#!/usr/bin/env python3
"""Checkpoints of a single file: the miniature model's tensors under SGM's names, and the names of SDXL's own keys.

    VENV/bin/python scripts/golden/single_file.py

Writes crates/diffusion/tests/golden/mini_checkpoint-{1,2}.safetensors (one checkpoint in two files, for their size) and
checkpoint_keys.txt. Nothing is written that diffusers' own conversion does not turn back into the same tensors.
"""

import pathlib
import types

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.loaders import single_file_utils
from safetensors.torch import load_file, save_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

OUT = pathlib.Path(__file__).resolve().parents[2] / "crates" / "diffusion" / "tests" / "golden"
UNET, VAE = "model.diffusion_model.", "first_stage_model."
FIRST, SECOND, REFINER = (
    "conditioner.embedders.0.transformer.",
    "conditioner.embedders.1.model.",
    "conditioner.embedders.0.model.",
)

# The published configurations of stable-diffusion-xl-base-1.0 and stable-diffusion-xl-refiner-1.0.
SDXL_UNET = dict(
    sample_size=128, block_out_channels=(320, 640, 1280), layers_per_block=2,
    down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    attention_head_dim=[5, 10, 20], transformer_layers_per_block=[1, 2, 10], cross_attention_dim=2048,
    use_linear_projection=True, addition_embed_type="text_time", addition_time_embed_dim=256,
    projection_class_embeddings_input_dim=2816,
)
REFINER_UNET = SDXL_UNET | dict(
    block_out_channels=(384, 768, 1536, 1536), attention_head_dim=[6, 12, 24, 24], transformer_layers_per_block=4,
    down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
    up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    cross_attention_dim=1280, projection_class_embeddings_input_dim=2560,
)
SDXL_VAE = dict(
    block_out_channels=(128, 256, 512, 512), layers_per_block=2, latent_channels=4, sample_size=1024,
    down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4, scaling_factor=0.13025,
)
CLIP_L = dict(
    hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12, hidden_act="quick_gelu",
    projection_dim=768, vocab_size=49408,
)
CLIP_G = dict(
    hidden_size=1280, intermediate_size=5120, num_hidden_layers=32, num_attention_heads=20, hidden_act="gelu",
    projection_dim=1280, vocab_size=49408,
)


def renamed(name, pairs):
    """The name with the first of these beginnings replaced."""
    for ours, theirs in pairs:
        if name == ours or name.startswith(ours + "."):
            return theirs + name[len(ours) :]
    raise KeyError(name)


RESNET = [
    ("norm1", "in_layers.0"), ("conv1", "in_layers.2"), ("time_emb_proj", "emb_layers.1"), ("norm2", "out_layers.0"),
    ("conv2", "out_layers.3"), ("conv_shortcut", "skip_connection"),
]


def unet_name(name, config):
    layers = config["layers_per_block"]
    parts = name.split(".")
    if parts[0] in ("down_blocks", "up_blocks"):
        block, kind, index, rest = int(parts[1]), parts[2], int(parts[3]), ".".join(parts[4:])
        down = parts[0] == "down_blocks"
        if down:
            place = 1 + block * (layers + 1) + (layers if kind == "downsamplers" else index)
        else:
            place = block * (layers + 1) + (layers if kind == "upsamplers" else index)
        top = f"{'input' if down else 'output'}_blocks.{place}"
        if kind == "resnets":
            return f"{top}.0.{renamed(rest, RESNET)}"
        if kind == "attentions":
            return f"{top}.1.{rest}"
        if kind == "downsamplers":
            return f"{top}.0.{rest.replace('conv', 'op', 1)}"
        attends = config["up_block_types"][block].startswith("CrossAttn")
        return f"{top}.{2 if attends else 1}.{rest}"
    if parts[0] == "mid_block":
        rest = ".".join(parts[3:])
        if parts[1] == "attentions":
            return f"middle_block.1.{rest}"
        return f"middle_block.{2 * int(parts[2])}.{renamed(rest, RESNET)}"
    return renamed(name, [
        ("conv_in", "input_blocks.0.0"), ("time_embedding.linear_1", "time_embed.0"),
        ("time_embedding.linear_2", "time_embed.2"), ("add_embedding.linear_1", "label_emb.0.0"),
        ("add_embedding.linear_2", "label_emb.0.2"), ("conv_norm_out", "out.0"), ("conv_out", "out.2"),
    ])


def vae_name(name, config):
    levels = len(config["block_out_channels"])
    name = name.replace("conv_norm_out", "norm_out").replace("conv_shortcut", "nin_shortcut")
    name = name.replace("mid_block.resnets.0", "mid.block_1").replace("mid_block.resnets.1", "mid.block_2")
    name = name.replace("mid_block.attentions.0", "mid.attn_1").replace("group_norm", "norm")
    for ours, theirs in (("to_q", "q"), ("to_k", "k"), ("to_v", "v"), ("to_out.0", "proj_out")):
        name = name.replace(f"attn_1.{ours}.", f"attn_1.{theirs}.")
    for level in range(levels):
        name = name.replace(f"decoder.up_blocks.{level}.", f"decoder.up.{levels - 1 - level}.")
        name = name.replace(f"encoder.down_blocks.{level}.", f"encoder.down.{level}.")
    return name.replace(".resnets.", ".block.").replace("samplers.0.conv", "sample.conv")


def open_clip_name(name):
    fixed = {
        "text_model.embeddings.token_embedding.weight": "token_embedding.weight",
        "text_model.embeddings.position_embedding.weight": "positional_embedding",
        "text_model.final_layer_norm.weight": "ln_final.weight",
        "text_model.final_layer_norm.bias": "ln_final.bias",
        "text_projection.weight": "text_projection",
    }
    if name in fixed:
        return fixed[name]
    name = name.replace("text_model.encoder.layers.", "transformer.resblocks.").replace("layer_norm", "ln_")
    name = name.replace("mlp.fc1", "mlp.c_fc").replace("mlp.fc2", "mlp.c_proj").replace("self_attn.", "attn.")
    for part in ("q", "k", "v"):
        name = name.replace(f"{part}_proj.", "in_proj_")
    return name.replace("out_in_proj_", "out_proj.")


def unet(tensors, config):
    return {UNET + unet_name(name, config): value for name, value in tensors.items()}


def vae(tensors, config):
    out = {}
    for name, value in tensors.items():
        theirs = vae_name(name, config)
        matrix = value.ndim == 2 and ".attn_1." in theirs
        out[VAE + theirs] = value[:, :, None, None] if matrix else value
    return out


def with_text_model(tensors):
    """transformers 5 writes an encoder without a projection under no name of its own."""
    bare = "embeddings.token_embedding.weight" in tensors
    return {f"text_model.{name}" if bare else name: value for name, value in tensors.items()}


def first_encoder(tensors):
    return {FIRST + name: value for name, value in with_text_model(tensors).items()}


def second_encoder(tensors, prefix=SECOND):
    out = {}
    for name, value in tensors.items():
        theirs = prefix + open_clip_name(name)
        if ".attn.in_proj_" in theirs:
            # Query, key, value, as they come below.
            if ".q_proj." in name:
                out[theirs] = torch.cat([tensors[name.replace("q_proj", f"{part}_proj")] for part in "qkv"])
        else:
            out[theirs] = value.T.contiguous() if name == "text_projection.weight" else value
    return out


def check(checkpoint, parts, configs, prefix=SECOND):
    """diffusers turns it back into the same tensors."""
    back = {
        "unet": single_file_utils.convert_ldm_unet_checkpoint(dict(checkpoint), configs["unet"]),
        "vae": single_file_utils.convert_ldm_vae_checkpoint(dict(checkpoint), configs["vae"]) if "vae" in parts else {},
        "text_encoder": single_file_utils.convert_ldm_clip_checkpoint(checkpoint) if "text_encoder" in parts else {},
        "text_encoder_2": single_file_utils.convert_open_clip_checkpoint(
            types.SimpleNamespace(config=types.SimpleNamespace(hidden_size=0)), checkpoint, prefix=prefix
        ),
    }
    for part, tensors in parts.items():
        tensors = with_text_model(tensors) if part == "text_encoder" else tensors
        theirs = back[part]
        assert set(theirs) == set(tensors), (part, set(theirs) ^ set(tensors))
        for name, value in tensors.items():
            assert theirs[name].shape == value.shape, (part, name)
            assert value.is_meta or torch.equal(theirs[name], value), (part, name)


def make_mini():
    folder = OUT / "mini"
    parts, configs = {}, {}
    for part, stem in (
        ("unet", "diffusion_pytorch_model"), ("vae", "diffusion_pytorch_model"), ("text_encoder", "model"),
        ("text_encoder_2", "model"),
    ):
        parts[part] = load_file(folder / part / f"{stem}.fp16.safetensors")
    configs["unet"] = dict(UNet2DConditionModel.load_config(folder / "unet"))
    configs["vae"] = dict(AutoencoderKL.load_config(folder / "vae"))
    one = unet(parts["unet"], configs["unet"])
    two = vae(parts["vae"], configs["vae"])
    two |= first_encoder(parts["text_encoder"]) | second_encoder(parts["text_encoder_2"])
    check(one | two, parts, configs)
    # What published checkpoints have beside the weights.
    two[FIRST + "text_model.embeddings.position_ids"] = torch.arange(77)[None]
    two[SECOND + "logit_scale"] = torch.tensor(4.6)
    for index, tensors in enumerate((one, two), 1):
        file = OUT / f"mini_checkpoint-{index}.safetensors"
        save_file({name: value.contiguous() for name, value in tensors.items()}, file)
        file.chmod(0o644)
        print(f"{file.name}: {file.stat().st_size} bytes")


def meta(kind, config):
    with torch.device("meta"):
        return kind(config) if isinstance(config, CLIPTextConfig) else kind(**config)


def make_keys():
    """Names and shapes of folder and checkpoint, each name without what it shares with the one before it."""
    second = meta(CLIPTextModelWithProjection, CLIPTextConfig(**CLIP_G)).state_dict()
    base = {
        "unet": meta(UNet2DConditionModel, SDXL_UNET).state_dict(),
        "vae": meta(AutoencoderKL, SDXL_VAE).state_dict(),
        "text_encoder": meta(CLIPTextModel, CLIPTextConfig(**CLIP_L)).state_dict(),
        "text_encoder_2": second,
    }
    refiner = {"unet": meta(UNet2DConditionModel, REFINER_UNET).state_dict(), "text_encoder_2": second}
    refiner_configs = {"unet": REFINER_UNET, "vae": SDXL_VAE}
    whole = unet(base["unet"], SDXL_UNET) | vae(base["vae"], SDXL_VAE) | first_encoder(base["text_encoder"])
    check(whole | second_encoder(second), base, {"unet": SDXL_UNET, "vae": SDXL_VAE})
    check(unet(refiner["unet"], REFINER_UNET) | second_encoder(second, REFINER), refiner, refiner_configs, REFINER)
    lines = []
    for title, parts in (("base", base), ("refiner", refiner)):
        for part, tensors in parts.items():
            lines.append(f"# {title} {part}")
            tensors = with_text_model(tensors) if part == "text_encoder" else tensors
            config = SDXL_UNET if title == "base" else REFINER_UNET
            before, before_theirs = "", ""
            for name, value in sorted(tensors.items()):
                theirs = {
                    "unet": lambda: UNET + unet_name(name, config),
                    "vae": lambda: VAE + vae_name(name, SDXL_VAE),
                    "text_encoder": lambda: FIRST + name,
                    "text_encoder_2": lambda: (SECOND if title == "base" else REFINER) + open_clip_name(name),
                }[part]()
                shape = "x".join(map(str, value.shape))
                lines.append(f"{short(name, before)} {short(theirs, before_theirs)} {shape}")
                before, before_theirs = name, theirs
    file = OUT / "checkpoint_keys.txt"
    file.write_text("\n".join(lines) + "\n")
    print(f"{file.name}: {file.stat().st_size} bytes, {len(lines)} lines")


def short(name, before):
    shared = 0
    while shared < min(len(name), len(before)) and name[shared] == before[shared]:
        shared += 1
    return f"{shared}:{name[shared:]}"


def make():
    make_mini()
    make_keys()


if __name__ == "__main__":
    make()
