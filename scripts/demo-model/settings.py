"""Named presets: everything that differs between a laptop, a GPU and a smoke test."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent

SIDE = 128
"""Side of every training picture, pixels."""

LATENT_SIDE = SIDE // 8
"""Side of a picture in latent space: the VAE halves three times."""

SCALING_FACTOR = 0.13025
"""SDXL's own latent scaling factor; the VAE is folded to match it (see vae.py)."""

BACKGROUNDS: dict[str, tuple[int, int, int]] = {
    "white": (255, 255, 255),
    "red": (226, 61, 61),
    "yellow": (255, 214, 64),
    "green": (76, 175, 80),
    "blue": (54, 128, 235),
    "pink": (255, 170, 200),
    "black": (30, 30, 34),
    "orange": (255, 145, 40),
    "purple": (150, 80, 210),
    "gray": (150, 156, 163),
}
"""Colour of each named background, sRGB."""

FIRST_BACKGROUNDS = ("white", "red", "yellow", "green", "blue", "pink", "black")

HUES: dict[str, float] = {
    "red": 0.0,
    "orange": 30.0,
    "yellow": 52.0,
    "green": 130.0,
    "blue": 220.0,
    "purple": 280.0,
    "pink": 330.0,
}
"""Hue in degrees of each colour that a thing may be turned into."""


@dataclass(frozen=True)
class Preset:
    """One way to train: what to draw, how large the networks are, how fast to learn."""

    name: str
    minutes: float
    """Training time of both networks together; --minutes overrides it."""
    vae_share: float
    """Part of the time that the VAE gets."""

    things_file: str
    things_limit: int | None
    styles: tuple[str, ...]
    """Styles that prompts can ask for; the VAE sees all three whatever this says."""
    backgrounds: tuple[str, ...]

    vae_channels: tuple[int, int, int, int]
    vae_norm_groups: int
    vae_whole_batch: int
    """Whole pictures in a step of the VAE."""
    vae_crop_batch: int
    """Crops of half the side in a step that takes crops; 0 = always whole pictures."""
    vae_rate: float
    """Muon's learning rate for the VAE."""

    unet_layers_per_block: int
    unet_batch: int
    unet_rate: float
    pool_size: int
    """Latents kept ready (about 2.3 KB each)."""
    pool_refresh: int
    """Latents replaced by newly drawn ones before each step of the UNet."""

    report_things: int | None
    """Things drawn by the evaluation at the end; None = all."""


SMOKE = Preset(
    name="smoke",
    minutes=0.8,
    vae_share=0.4,
    things_file="things.txt",
    things_limit=8,
    styles=("3d", "flat"),
    backgrounds=("white", "red", "blue"),
    vae_channels=(16, 32, 64, 96),
    vae_norm_groups=8,
    vae_whole_batch=2,
    vae_crop_batch=8,
    vae_rate=0.02,
    unet_layers_per_block=1,
    unet_batch=8,
    unet_rate=0.012,
    pool_size=128,
    pool_refresh=1,
    report_things=4,
)

CPU = Preset(
    name="cpu",
    minutes=75.0,
    vae_share=0.27,
    things_file="things.txt",
    things_limit=None,
    styles=("3d", "flat"),
    backgrounds=FIRST_BACKGROUNDS,
    vae_channels=(16, 32, 64, 96),
    vae_norm_groups=8,
    vae_whole_batch=2,
    vae_crop_batch=8,
    vae_rate=0.02,
    unet_layers_per_block=1,
    unet_batch=32,
    unet_rate=0.012,
    pool_size=4096,
    pool_refresh=2,
    report_things=None,
)

GPU = Preset(
    name="gpu",
    minutes=20.0,
    vae_share=0.18,
    things_file="things-full.txt",
    things_limit=None,
    styles=("3d", "flat", "cartoon"),
    backgrounds=tuple(BACKGROUNDS),
    vae_channels=(32, 64, 96, 128),
    vae_norm_groups=32,
    vae_whole_batch=64,
    vae_crop_batch=0,
    vae_rate=0.02,
    # One layer a block keeps the fp16 folder under 40 MB; two draw finer and need 42 MB.
    unet_layers_per_block=1,
    unet_batch=1024,
    unet_rate=0.02,
    pool_size=131_072,
    pool_refresh=256,
    report_things=None,
)

PRESETS: dict[str, Preset] = {preset.name: preset for preset in (SMOKE, CPU, GPU)}
