"""Writes a trained model as a folder that diffusers and Inkstone load."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from diffusers import AutoencoderKL, EulerDiscreteScheduler, StableDiffusionXLPipeline
from safetensors.torch import load_file, save_file
from transformers import CLIPTokenizer

from settings import SIDE
from unet import BETA_END, BETA_START, TRAIN_TIMESTEPS, Denoiser


def export(
    vae: AutoencoderKL, denoiser: Denoiser, tokenizers: Path, out: Path, profile: dict
) -> None:
    """Write fp16 weights, tokenizers, scheduler and inkstone.json; replaces `out` at the end."""
    partial = out.with_name(f"{out.name}.partial")
    if partial.exists():
        shutil.rmtree(partial)
    pipeline = StableDiffusionXLPipeline(
        vae=vae,
        text_encoder=denoiser.text_encoder,
        text_encoder_2=denoiser.text_encoder_2,
        tokenizer=CLIPTokenizer.from_pretrained(tokenizers / "tokenizer"),
        tokenizer_2=CLIPTokenizer.from_pretrained(tokenizers / "tokenizer_2"),
        unet=denoiser.unet,
        scheduler=EulerDiscreteScheduler(
            num_train_timesteps=TRAIN_TIMESTEPS,
            beta_start=BETA_START,
            beta_end=BETA_END,
            beta_schedule="scaled_linear",
            prediction_type="v_prediction",
            timestep_spacing="leading",
            steps_offset=1,
        ),
        force_zeros_for_empty_prompt=True,
        add_watermarker=False,
    )
    pipeline.to(device="cpu", dtype=torch.float16)
    pipeline.save_pretrained(partial, safe_serialization=True)
    for name in ("tokenizer", "tokenizer_2"):
        # As written by tokenizer.py: the library's re-export drops fields that others read.
        shutil.rmtree(partial / name)
        shutil.copytree(tokenizers / name, partial / name)
    for name in ("text_encoder", "text_encoder_2"):
        _restore_prefix(partial / name / "model.safetensors")
        _edit_config(partial / name, _load_as_float32)
    _edit_config(partial / "vae", _forget_origin)
    (partial / "inkstone.json").write_text(json.dumps(profile, indent=2) + "\n", encoding="utf-8")
    if out.exists():
        shutil.rmtree(out)
    partial.rename(out)


def _restore_prefix(path: Path) -> None:
    """Name CLIP's weights `text_model.…` as published models do; the library drops the prefix."""
    weights = load_file(path)
    if any(name.startswith("text_model.") for name in weights):
        return
    renamed = {
        name if name.startswith("text_projection") else f"text_model.{name}": weight
        for name, weight in weights.items()
    }
    save_file(renamed, path, metadata={"format": "pt"})


def _edit_config(folder: Path, edit: Callable[[dict], None]) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    edit(config)
    path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def _load_as_float32(config: dict) -> None:
    """Let a text encoder load in float32 unless told otherwise, as the UNet and the VAE do.

    Without it transformers keeps the precision of the file, and the parts of a pipeline that was
    loaded without a precision do not fit together.
    """
    config.pop("dtype", None)
    config["torch_dtype"] = "float32"


def _forget_origin(config: dict) -> None:
    """Drop the folder that the part was loaded from on the training machine."""
    config.pop("_name_or_path", None)


def serving_profile(name: str, version: str, things: int, styles: tuple[str, ...]) -> dict:
    """What Inkstone's registry reads beside the weights: defaults and limits of requests."""
    return {
        "name": name,
        "version": version,
        "description": (
            f"A miniature SDXL that draws {things} everyday things as icons, "
            f"in the styles {', '.join(styles)}, at {SIDE}x{SIDE}."
        ),
        "aliases": ["t2i-basic", "t2i-v2"],
        "defaults": {"width": SIDE, "height": SIDE, "steps": 12, "guidance_scale": 2.0},
        "limits": {
            "min_side": 64,
            "max_side": 256,
            "multiple": 32,
            "max_steps": 100,
            "max_guidance_scale": 20.0,
        },
    }
