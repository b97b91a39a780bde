"""Evaluation: a grid of pictures, and how often a picture is nearest to the thing asked for.

    python evaluate.py MODEL_FOLDER [--things things.txt] [--steps 12] [--out FOLDER]

For each thing, style and form of prompt one picture is drawn and compared with every training
picture of that style. Both are cut to the thing's outline first and mirror images count, so that
the model may place things as it likes. `top1` is the part of prompts whose nearest picture is the
right thing: it measures recall of what was trained, not invention. `seed_change` is the mean change
of a pixel (0..255) between two seeds.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import StableDiffusionXLPipeline
from diffusers.utils import logging as diffusers_logging
from PIL import Image
from transformers.utils import logging as transformers_logging

from art import STYLES, ArtPack, ArtPackages, pack_art
from captions import article, plural
from settings import HERE, SIDE
from things import Thing, read_things

SIGNATURE_SIDE = 32
GRID_COLUMNS = 8
DRAW_BATCH = 16

NAMES: dict[str, Callable[[Thing], str]] = {
    "plain": lambda thing: thing.name,
    "plural": lambda thing: plural(thing.name) if plural(thing.name) != thing.name else "",
    "synonym": lambda thing: thing.synonyms[0] if thing.synonyms else "",
    "junk": lambda thing: f"{thing.name}, highly detailed, intricate, 4k, wow",
}
"""How a prompt may call a thing, by form; empty where a thing has no such name."""

GRID_PROMPTS = (
    "3d {}", "flat {}", "{} on a blue background", "photo of {}",
    "{}, flat style on a yellow background", "{}, highly detailed, 4k", "green {}",
    "cute {} on a red background",
)  # fmt: skip
"""One column of the grid each."""


def quiet_libraries() -> None:
    """Keep the libraries' loading bars and advice out of the output; errors still show."""
    for library in (diffusers_logging, transformers_logging):
        library.set_verbosity_error()
        library.disable_progress_bar()


def prompt(thing: Thing, style: str, form: str = "plain") -> str:
    """What asks for a thing in a style."""
    before = "" if form == "plural" else article(f"{style} {thing.name}")
    return f"{before}{style} {NAMES[form](thing)}"


@dataclass(frozen=True)
class Drawing:
    """How to draw."""

    steps: int = 12
    guidance_scale: float = 2.0
    negative_prompt: str | None = None


class Painter:
    """A loaded model that draws batches of prompts."""

    def __init__(self, folder: Path, device: torch.device, drawing: Drawing) -> None:
        """Load a diffusers folder in single precision."""
        pipeline = StableDiffusionXLPipeline.from_pretrained(folder, dtype=torch.float32)
        self._pipeline = pipeline.to(device)
        self._pipeline.set_progress_bar_config(disable=True)
        self._drawing = drawing

    def draw(self, prompts: list[str], seed: int) -> np.ndarray:
        """uint8 [N, SIDE, SIDE, 3]."""
        pictures = []
        for start in range(0, len(prompts), DRAW_BATCH):
            part = prompts[start : start + DRAW_BATCH]
            negative = self._drawing.negative_prompt
            drawn = self._pipeline(
                part,
                negative_prompt=None if negative is None else [negative] * len(part),
                height=SIDE,
                width=SIDE,
                num_inference_steps=self._drawing.steps,
                guidance_scale=self._drawing.guidance_scale,
                generator=torch.Generator().manual_seed(seed + start),
                output_type="np",
            ).images
            pictures.append((drawn * 255 + 0.5).astype(np.uint8))
        return np.concatenate(pictures)


def on_white(rgba: np.ndarray) -> np.ndarray:
    """A packed picture on white, uint8 RGB."""
    alpha = rgba[..., 3:].astype(np.float32) / 255
    return (rgba[..., :3] * alpha + 255 * (1 - alpha) + 0.5).astype(np.uint8)


def signature(picture: np.ndarray) -> np.ndarray:
    """A picture on white, cut to what is not white and shrunk: float32 vector."""
    coloured = (255 - picture.astype(np.int16)).max(axis=-1) > 40
    # One tinted pixel at the edge must not make the whole canvas the outline.
    rows = np.flatnonzero(coloured.sum(axis=1) >= 3)
    columns = np.flatnonzero(coloured.sum(axis=0) >= 3)
    image = Image.fromarray(picture)
    if len(rows) and len(columns):
        image = image.crop((columns[0], rows[0], columns[-1] + 1, rows[-1] + 1))
    small = image.resize((SIGNATURE_SIDE, SIGNATURE_SIDE), Image.Resampling.BOX)
    return np.asarray(small, dtype=np.float32)


def recall(
    painter: Painter, art: ArtPack, things: list[Thing], style: str, form: str, asked: list[int]
) -> dict | None:
    """Draw the `asked` things in one style and form; gives top1, top5 and what was missed.

    None where none of them has this form.
    """
    rows = np.flatnonzero(art.style == STYLES.index(style))
    references = np.stack([signature(on_white(art.rgba[row])) for row in rows])
    owners = art.thing[rows]
    asked = [number for number in asked if number in owners and NAMES[form](things[number])]
    if not asked:
        return None
    drawn = painter.draw([prompt(things[number], style, form) for number in asked], seed=1)
    ranks = []
    for number, picture in zip(asked, drawn, strict=True):
        mine = signature(picture)
        distance = np.minimum(
            ((references - mine) ** 2).mean(axis=(1, 2, 3)),
            ((references - mine[:, ::-1]) ** 2).mean(axis=(1, 2, 3)),
        )
        ranks.append(int((distance < distance[owners == number].min()).sum()))
    return {
        "style": style,
        "form": form,
        "prompts": len(asked),
        "top1": float(np.mean([rank == 0 for rank in ranks])),
        "top5": float(np.mean([rank < 5 for rank in ranks])),
        "missed": [things[n].name for n, rank in zip(asked, ranks, strict=True) if rank][:20],
    }


def seed_change(painter: Painter, things: list[Thing], asked: list[int]) -> float:
    """Mean absolute change of a pixel between two seeds of the same prompts."""
    prompts = [prompt(things[number], "3d") for number in asked[:DRAW_BATCH]]
    first, second = (painter.draw(prompts, seed).astype(np.int16) for seed in (1, 1001))
    return float(np.abs(first - second).mean())


def grid(painter: Painter, things: list[Thing], asked: list[int]) -> Image.Image:
    """Up to eight things, a row each; a column for each of GRID_PROMPTS."""
    spread = asked[:: max(1, len(asked) // GRID_COLUMNS)][:GRID_COLUMNS]
    phrases = [form.format(things[number].name) for number in spread for form in GRID_PROMPTS]
    prompts = [article(phrase) + phrase for phrase in phrases]
    pictures = painter.draw(prompts, seed=7)
    table = pictures.reshape(len(spread), len(GRID_PROMPTS), SIDE, SIDE, 3)
    return Image.fromarray(table.transpose(0, 2, 1, 3, 4).reshape(len(spread) * SIDE, -1, 3))


def evaluate(
    painter: Painter,
    art: ArtPack,
    things: list[Thing],
    styles: tuple[str, ...],
    limit: int | None,
    out: Path,
) -> dict:
    """Write grid.png and evaluation.json into `out`; gives what the latter says."""
    every = max(1, len(things) // limit) if limit else 1
    asked = list(range(0, len(things), every))[:limit]
    out.mkdir(parents=True, exist_ok=True)
    grid(painter, things, asked).save(out / "grid.png", optimize=True)
    recalls = (
        recall(painter, art, things, style, form, asked) for style in styles for form in NAMES
    )
    result = {
        "recall": [row for row in recalls if row],
        "seed_change": seed_change(painter, things, asked),
    }
    (out / "evaluation.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    return result


def summary(result: dict) -> str:
    """The result in a few lines."""
    lines = [
        f"{row['style']:>8} {row['form']:>8}: top-1 {row['top1']:6.1%}, top-5 {row['top5']:6.1%} "
        f"of {row['prompts']}"
        for row in result["recall"]
    ]
    return "\n".join([*lines, f"seeds change a pixel by {result['seed_change']:.1f} of 255"])


def main() -> None:
    """Evaluate a model folder from the command line."""
    parser = argparse.ArgumentParser(description="Grid and nearest-picture recall of a demo model.")
    parser.add_argument("model", type=Path, help="diffusers folder")
    parser.add_argument("--things", type=Path, default=HERE / "things.txt")
    parser.add_argument("--styles", nargs="+", choices=STYLES, default=["3d", "flat"])
    parser.add_argument("--limit", type=int, help="ask for so many things only")
    parser.add_argument("--art", type=Path, default=HERE / ".work/npm/node_modules")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--guidance-scale", type=float, default=2.0)
    parser.add_argument("--negative-prompt")
    parser.add_argument("--out", type=Path, default=HERE / ".work/evaluation")
    args = parser.parse_args()

    quiet_libraries()
    things = read_things(args.things)
    art = pack_art(ArtPackages(args.art), things)
    drawing = Drawing(args.steps, args.guidance_scale, args.negative_prompt)
    painter = Painter(args.model, torch.device(args.device), drawing)
    print(summary(evaluate(painter, art, things, tuple(args.styles), args.limit, args.out)))


if __name__ == "__main__":
    main()
