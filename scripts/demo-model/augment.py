"""Changes to pictures, in batches on the training device: placement, mirroring, colour, background.

Pictures travel as float RGBA [B, 4, SIDE, SIDE] in 0..1 with premultiplied alpha.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from settings import SIDE


def premultiplied(rgba: Tensor) -> Tensor:
    """Packed pictures, uint8 [B, SIDE, SIDE, 4], as float RGBA with premultiplied alpha."""
    values = rgba.permute(0, 3, 1, 2).float() / 255
    alpha = values[:, 3:]
    return torch.cat([values[:, :3] * alpha, alpha], dim=1)


def on_background(rgba: Tensor, colour: Tensor) -> Tensor:
    """Composite on plain colours ([B, 3] in 0..1); gives RGB in -1..1, what the VAE takes."""
    rgb = rgba[:, :3] + colour[:, :, None, None] * (1 - rgba[:, 3:])
    return rgb * 2 - 1


def rotate_hue(rgba: Tensor, degrees: Tensor) -> Tensor:
    """Turn every picture's hues by its own angle ([B], degrees); greys stay grey."""
    rgb, alpha = rgba[:, :3], rgba[:, 3:]
    value, brightest = rgb.max(dim=1)
    chroma = value - rgb.min(dim=1).values
    red, green, blue = rgb.unbind(dim=1)
    sextant = (
        torch.where(
            brightest == 0,
            green - blue,
            torch.where(brightest == 1, blue - red, red - green),
        )
        / chroma.clamp(min=1e-6)
        + brightest * 2
    )
    turned = sextant + degrees[:, None, None] / 60
    # HSV back to RGB: channel = value - chroma * max(0, min(k, 4 - k, 1)), k = (n + hue) mod 6.
    channels = []
    for n in (5, 3, 1):
        k = (turned + n) % 6
        channels.append(value - chroma * torch.minimum(k, 4 - k).clamp(0, 1))
    return torch.cat([torch.stack(channels, dim=1), alpha], dim=1)


@dataclass(frozen=True)
class Placement:
    """Where each picture of a batch goes on its canvas."""

    size: Tensor
    """[B] side that the picture is shrunk to, pixels, at most SIDE."""
    top: Tensor
    """[B] pixels from the canvas' upper edge."""
    left: Tensor
    """[B] pixels from the canvas' left edge."""
    flip: Tensor
    """[B] bool: mirrored left to right."""

    @classmethod
    def draw(cls, smallest: Tensor, may_flip: Tensor, generator: torch.Generator) -> Placement:
        """Random sizes from `smallest` ([B], pixels) to the whole canvas, anywhere on it.

        Mirrors half of the pictures that `may_flip` ([B], bool).
        """
        chance = torch.rand(4, len(smallest), generator=generator)
        size = (smallest + chance[0] * (SIDE - smallest)).round()
        room = SIDE - size
        return cls(
            size=size,
            top=(chance[1] * room).round(),
            left=(chance[2] * room).round(),
            flip=may_flip & (chance[3] < 0.5),
        )

    def apply(self, rgba: Tensor) -> Tensor:
        """Move the pictures; a placement at full size without a flip changes nothing."""
        scale = SIDE / self.size
        theta = torch.zeros(len(scale), 2, 3)
        theta[:, 0, 0] = torch.where(self.flip, -scale, scale)
        theta[:, 1, 1] = scale
        # Output to input, in units where the canvas spans -1..1.
        shift_x = (1 - 2 * self.left / SIDE) * scale - 1
        theta[:, 0, 2] = torch.where(self.flip, -shift_x, shift_x)
        theta[:, 1, 2] = (1 - 2 * self.top / SIDE) * scale - 1
        theta = theta.to(rgba.device)
        grid = F.affine_grid(theta, list(rgba.shape), align_corners=False)
        moved = F.grid_sample(
            rgba, grid, mode="bicubic", padding_mode="zeros", align_corners=False
        ).clamp(0, 1)
        # Bicubic overshoots; colour must not exceed its premultiplied bound.
        return torch.cat([torch.minimum(moved[:, :3], moved[:, 3:]), moved[:, 3:]], dim=1)
