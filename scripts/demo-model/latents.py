"""The UNet's training data: a bounded pool of latents with captions, renewed a little each step.

Encoding every sample anew would cost half as much as training on it; encoding once would make the
model memorise. The pool lies between: it is filled once, then `pool_refresh` of its slots are
redrawn before each step.

Micro-conditioning tells part of what was done to a picture. Three kinds of samples:

* as drawn, under the default time ids (SIDE, SIDE, 0, 0, SIDE, SIDE): keeps pictures sharp;
* slightly smaller, moved, perhaps mirrored, also under the default time ids: what the prompt does
  not say, the seed decides, so seeds differ;
* placed anywhere down to half size, with the truth in the time ids: the original size is the side
  of the thing's square, the crop's corner is where that square lies.

Of the undescribed, some claim other sizes of canvas, so that such requests do no harm.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

import torch
from diffusers import AutoencoderKL
from tokenizers import Tokenizer
from torch import Tensor
from tqdm import tqdm

from art import STYLES, ArtPack
from augment import Placement, on_background, premultiplied, rotate_hue
from captions import CaptionWriter, Subject, has_colour_in_name
from settings import BACKGROUNDS, HUES, LATENT_SIDE, SIDE, Preset
from things import Thing
from tokenizer import END
from vae import ENCODE_BATCH, encode

CAPTIONS_PER_LATENT = 4
CAPTION_TOKENS = 32
"""Tokens kept of a training caption; longer ones lose words but keep their end-of-text."""

AS_DRAWN, MOVED_A_LITTLE = 0.35, 0.35
"""Chances of the first two kinds of samples; the third takes the rest."""

SMALLEST_UNDESCRIBED, SMALLEST_DESCRIBED = 0.84, 0.5
"""Least size of a thing, as a part of the canvas."""

OTHER_SIDES = (64.0, 96.0, 192.0, 256.0, 512.0, 1024.0)
OTHER_SIDES_CHANCE = 0.15

WHITE_CHANCE = 0.5
HUE_CHANCE = 0.2
EMPTY_CHANCE, JUNK_CHANCE = 0.05, 0.07


@dataclass(frozen=True)
class Batch:
    """Training samples on the device."""

    latents: Tensor
    """float32 [B, 4, LATENT_SIDE, LATENT_SIDE]"""
    token_ids: Tensor
    """int64 [B, CAPTION_TOKENS], padded with the end-of-text token."""
    time_ids: Tensor
    """float32 [B, 6], SDXL's: original height, width, crop top, left, target height, width."""


class LatentPool:
    """Latents, tokenised captions and time ids; memory is fixed when it is made."""

    def __init__(
        self,
        preset: Preset,
        art: ArtPack,
        things: list[Thing],
        vae: AutoencoderKL,
        writer: CaptionWriter,
        tokenizer: Tokenizer,
        seed: int,
        *,
        bf16: bool,
    ) -> None:
        """Allocate and fill the pool: one pass of the VAE's encoder over `pool_size` pictures."""
        self._bf16 = bf16
        self._vae = vae.eval().requires_grad_(False)
        self._device = vae.device
        self._writer, self._tokenizer = writer, tokenizer
        self._end = tokenizer.token_to_id(END)
        tokenizer.enable_truncation(CAPTION_TOKENS)
        tokenizer.enable_padding(length=CAPTION_TOKENS, pad_id=self._end, pad_token=END)
        self._rng = random.Random(seed)
        self._generator = torch.Generator().manual_seed(seed)
        self._backgrounds = preset.backgrounds
        self._art = art
        self._rgba = torch.from_numpy(art.rgba).to(self._device)
        self._rows = [row for row, s in enumerate(art.style) if STYLES[s] in preset.styles]
        self._hues = [
            math.nan if has_colour_in_name(things[t]) else float(hue)
            for t, hue in zip(art.thing, art.hue, strict=True)
        ]
        size = preset.pool_size
        self._latents = torch.empty(
            size, 4, LATENT_SIDE, LATENT_SIDE, dtype=torch.float16, device=self._device
        )
        self._tokens = torch.empty(
            size, CAPTIONS_PER_LATENT, CAPTION_TOKENS, dtype=torch.int16, device=self._device
        )
        self._time_ids = torch.empty(size, 6, device=self._device)
        self._next = 0
        for start in tqdm(range(0, size, ENCODE_BATCH), desc="pool", unit="batch"):
            self.refresh(min(ENCODE_BATCH, size - start))

    def refresh(self, count: int) -> None:
        """Redraw the `count` oldest slots."""
        slots = torch.arange(self._next, self._next + count) % len(self._latents)
        self._next = (self._next + count) % len(self._latents)
        slots = slots.to(self._device)
        rows = self._rng.choices(self._rows, k=count)
        subjects, turns = self._subjects(rows)
        placement, time_ids = self._placement(rows)

        rgba = placement.apply(premultiplied(self._rgba[torch.tensor(rows, device=self._device)]))
        rgba = rotate_hue(rgba, turns.to(self._device))
        colours = torch.tensor([BACKGROUNDS[s.background] for s in subjects]) / 255
        pictures = on_background(rgba, colours.to(self._device))
        with torch.autocast(self._device.type, torch.bfloat16, enabled=self._bf16):
            self._latents[slots] = encode(self._vae, pictures).half()
        self._time_ids[slots] = time_ids.to(self._device)
        self._tokens[slots] = self._captions(subjects).to(self._device)

    def batch(self, count: int) -> Batch:
        """Random samples of the pool, each with one of its captions."""
        slots = torch.randint(0, len(self._latents), (count,), generator=self._generator)
        which = torch.randint(0, CAPTIONS_PER_LATENT, (count,), generator=self._generator)
        slots, which = slots.to(self._device), which.to(self._device)
        return Batch(
            latents=self._latents[slots].float(),
            token_ids=self._tokens[slots, which].long(),
            time_ids=self._time_ids[slots],
        )

    def _subjects(self, rows: list[int]) -> tuple[list[Subject], Tensor]:
        """What each picture will show, and how far its hues turn (degrees)."""
        rng = self._rng
        subjects, turns = [], []
        for row in rows:
            hue = None
            if not math.isnan(self._hues[row]) and rng.random() < HUE_CHANCE:
                hue = rng.choice(list(HUES))
            # A thing in its background's colour would vanish.
            others = [b for b in self._backgrounds if b not in ("white", hue)]
            background = "white" if rng.random() < WHITE_CHANCE else rng.choice(others)
            style = STYLES[self._art.style[row]]
            subjects.append(Subject(int(self._art.thing[row]), style, background, hue))
            turns.append(HUES[hue] - self._hues[row] if hue else 0.0)
        return subjects, torch.tensor(turns)

    def _placement(self, rows: list[int]) -> tuple[Placement, Tensor]:
        """Where each picture goes, and the time ids that it is trained under."""
        count = len(rows)
        kind = torch.rand(count, generator=self._generator)
        as_drawn = kind < AS_DRAWN
        described = kind >= AS_DRAWN + MOVED_A_LITTLE
        smallest = torch.full((count,), SMALLEST_UNDESCRIBED * SIDE)
        smallest[described] = SMALLEST_DESCRIBED * SIDE
        smallest[as_drawn] = SIDE
        may_flip = torch.from_numpy(self._art.may_flip[rows]) & ~as_drawn
        placement = Placement.draw(smallest, may_flip, self._generator)

        sides = torch.full((count,), float(SIDE))
        for i in range(count):
            if not described[i] and self._rng.random() < OTHER_SIDES_CHANCE:
                sides[i] = self._rng.choice(OTHER_SIDES)
        zero = torch.zeros(count)
        original = torch.where(described, placement.size, sides)
        top = torch.where(described, placement.top, zero)
        left = torch.where(described, placement.left, zero)
        return placement, torch.stack([original, original, top, left, sides, sides], dim=1)

    def _captions(self, subjects: list[Subject]) -> Tensor:
        texts = [self._caption(subject) for subject in subjects for _ in range(CAPTIONS_PER_LATENT)]
        ids = [encoding.ids for encoding in self._tokenizer.encode_batch_fast(texts)]
        return torch.tensor(ids, dtype=torch.int16).view(
            len(subjects), CAPTIONS_PER_LATENT, CAPTION_TOKENS
        )

    def _caption(self, subject: Subject) -> str:
        chance = self._rng.random()
        if chance < EMPTY_CHANCE:
            return ""
        if chance < EMPTY_CHANCE + JUNK_CHANCE:
            return self._writer.unconditional()
        return self._writer.caption(subject)
