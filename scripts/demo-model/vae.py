"""The VAE: trains it, then folds per-channel whitening into it.

The loss is plain reconstruction (l1, its gradients, squared) with a small KL term, and after a
while noise on the latents, so that the decoder forgives what the UNet gets slightly wrong. No
adversarial loss: on flat art it buys nothing.
"""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import AutoencoderKL
from torch import Tensor

from art import ArtPack
from augment import on_background, premultiplied
from optim import MuonAdamW, WeightAverage
from settings import BACKGROUNDS, SCALING_FACTOR, SIDE, Preset
from stage import Stage

LATENT_NOISE = 0.08
"""Noise added to the latents after the first fifth, in standard deviations of the batch."""

FOLD_SAMPLE = 1024
"""Pictures that the latents' mean and deviation are measured on."""

ENCODE_BATCH = 64


def build_vae(preset: Preset) -> AutoencoderKL:
    """A fresh network; its predicted variance starts small."""
    vae = AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=["DownEncoderBlock2D"] * 4,
        up_block_types=["UpDecoderBlock2D"] * 4,
        block_out_channels=list(preset.vae_channels),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=preset.vae_norm_groups,
        sample_size=SIDE,
        scaling_factor=SCALING_FACTOR,
        force_upcast=False,
    )
    with torch.no_grad():
        vae.quant_conv.weight[4:].zero_()
        vae.quant_conv.bias[4:] = -5.0
    return vae


class Pictures:
    """Random training pictures for the VAE: all styles, on named and on arbitrary colours."""

    def __init__(self, art: ArtPack, device: torch.device, generator: torch.Generator) -> None:
        """Keep the packed pictures on the device, 64 KiB each."""
        self._rgba = torch.from_numpy(art.rgba).to(device)
        self._palette = torch.tensor(list(BACKGROUNDS.values()), device=device) / 255
        self._generator = generator

    def draw(self, count: int, *, crops: bool = False) -> Tensor:
        """RGB in -1..1, [count, 3, SIDE, SIDE], or crops of half the side."""
        device = self._rgba.device
        rgba = premultiplied(self._rgba[self._integers(len(self._rgba), count).to(device)])
        if self._chance(1).item() < 0.5:
            rgba = rgba.flip(3)
        if crops:
            half = SIDE // 2
            top, left = self._integers(half + 1, 2).tolist()
            rgba = rgba[:, :, top : top + half, left : left + half]
        kind = self._chance(count, 1).to(device)
        named = self._palette[self._integers(len(self._palette), count).to(device)]
        arbitrary = self._chance(count, 3).to(device)
        colour = torch.where(kind < 0.35, named, arbitrary)
        return on_background(rgba, torch.where(kind < 0.85, colour, torch.ones_like(colour)))

    def _integers(self, below: int, count: int) -> Tensor:
        return torch.randint(0, below, (count,), generator=self._generator)

    def _chance(self, *shape: int) -> Tensor:
        return torch.rand(*shape, generator=self._generator)


def _loss(vae: AutoencoderKL, x: Tensor, *, settled: bool, bf16: bool) -> tuple[Tensor, Tensor]:
    """The training loss, and the mean squared error alone."""
    with torch.autocast(x.device.type, torch.bfloat16, enabled=bf16):
        moments = vae.quant_conv(vae.encoder(x)).float()
        mean, log_variance = moments.chunk(2, dim=1)
        log_variance = log_variance.clamp(-20, 10)
        noise = (0.5 * log_variance).exp()
        if settled:
            noise = noise + LATENT_NOISE * mean.detach().std()
        y = vae.decoder(vae.post_quant_conv(mean + torch.randn_like(mean) * noise))
    error = y.float() - x
    edges = (error[..., 1:] - error[..., :-1]).abs().mean()
    edges = edges + (error[..., 1:, :] - error[..., :-1, :]).abs().mean()
    squared = (error**2).mean()
    kl = 0.5 * (mean**2 + log_variance.exp() - 1 - log_variance).mean()
    kl_weight = 2e-4 if settled else 3e-5
    return error.abs().mean() + 0.7 * edges + squared + kl_weight * kl, squared


def train_vae(
    preset: Preset, art: ArtPack, folder: Path, budget_s: float, device: torch.device, *, bf16: bool
) -> None:
    """Train until the budget is spent, fold, and save in diffusers' layout as `folder`/vae.

    Goes on from `folder`/vae.pt where an earlier run stopped; Ctrl-C saves before it stops.
    """
    vae = build_vae(preset).to(device)
    optimizer = MuonAdamW(vae.named_parameters(), preset.vae_rate, ("conv_in", "conv_out"))
    average = WeightAverage(vae, decay=0.99)
    with Stage("vae ", folder / "vae.pt", budget_s, vae, optimizer, average) as stage:
        pictures = Pictures(art, device, torch.Generator().manual_seed(stage.step))
        while stage.done < 1:
            # Mostly crops: cheap steps teach textures; whole pictures teach the middle attention.
            whole_every = 4 if stage.done < 0.8 else 2
            if preset.vae_crop_batch and stage.step % whole_every:
                x = pictures.draw(preset.vae_crop_batch, crops=True)
            else:
                x = pictures.draw(preset.vae_whole_batch)
            loss, squared = _loss(vae, x, settled=stage.done > 0.2, bf16=bf16)
            vae.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step(stage.rate(flat=0.0, warm_up=30))
            average.update(stage.step)
            stage.advance(squared)
    average.copy_to(vae)
    vae.eval()
    fold_whitening(vae, pictures)
    print(f"vae : {stage.step} steps, reconstruction {reconstruction_psnr(vae, pictures):.1f} dB")
    vae.save_pretrained(folder / "vae.partial")
    (folder / "vae.partial").rename(folder / "vae")


@torch.no_grad()
def encode(vae: AutoencoderKL, x: Tensor) -> Tensor:
    """The VAE's mean latents of RGB in -1..1, scaled as the UNet sees them."""
    means = [vae.encode(part).latent_dist.mean for part in x.split(ENCODE_BATCH)]
    return torch.cat(means) * vae.config.scaling_factor


@torch.no_grad()
def fold_whitening(vae: AutoencoderKL, pictures: Pictures) -> None:
    """Make scaled latents have mean 0 and deviation 1 in every channel, exactly.

    The two 1x1 convolutions at the latents' sides take the change in, so the file stays an
    ordinary AutoencoderKL with SDXL's scaling factor.
    """
    latents = torch.cat(
        [encode(vae, pictures.draw(ENCODE_BATCH)) for _ in range(FOLD_SAMPLE // ENCODE_BATCH)]
    )
    latents /= vae.config.scaling_factor
    mean = latents.mean(dim=(0, 2, 3))
    gain = 1 / (latents.std(dim=(0, 2, 3)) * vae.config.scaling_factor)
    inward, outward = vae.quant_conv, vae.post_quant_conv
    inward.weight[:4] *= gain.view(-1, 1, 1, 1)
    inward.bias[:4] = (inward.bias[:4] - mean) * gain
    inward.bias[4:] += 2 * gain.log()
    outward.bias += outward.weight[:, :, 0, 0] @ mean
    outward.weight /= gain.view(1, -1, 1, 1)


@torch.no_grad()
def reconstruction_psnr(vae: AutoencoderKL, pictures: Pictures) -> float:
    """Peak signal-to-noise ratio of encoding and decoding some pictures, decibels."""
    x = pictures.draw(ENCODE_BATCH)
    y = vae.decode(encode(vae, x) / vae.config.scaling_factor).sample.clamp(-1, 1)
    return (10 * torch.log10(4 / ((y - x) ** 2).mean())).item()
