"""Pictures: reads the installed packages, rasterises them and packs them as 128-pixel RGBA."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import resvg_py
from PIL import Image

from settings import SIDE
from things import Thing

STYLES = ("3d", "flat", "cartoon")
"""Style words; the pictures are Fluent Emoji 3D, Fluent Emoji Flat and Noto Emoji."""

VECTOR_SETS = {"flat": "fluent-emoji-flat", "cartoon": "noto"}

WITH_WRITING = frozenset(
    (
        "alarm clock", "ambulance", "book", "books", "bus", "calendar", "dice", "money bag",
        "newspaper", "open book", "police car", "stop sign", "taxi", "watch",
    )
)  # fmt: skip
"""Things whose mirror image reads wrongly although their outline is the same both ways."""

MIRROR_OVERLAP = 0.875
"""Outlines that overlap their mirror image less than this (as IoU) have a direction."""


class ArtError(Exception):
    """The installed art packages lack something that the things file asks for."""


@dataclass(frozen=True)
class ArtPack:
    """All pictures of a training, one row each."""

    rgba: np.ndarray
    """uint8 [N, SIDE, SIDE, 4], alpha not premultiplied."""
    thing: np.ndarray
    """int64 [N], index into the list of things."""
    style: np.ndarray
    """int64 [N], index into STYLES."""
    hue: np.ndarray
    """float32 [N], the picture's one dominant hue in degrees; NaN where it has none."""
    may_flip: np.ndarray
    """bool [N], whether the mirror image shows the same thing just as well."""

    def save(self, path: Path) -> None:
        """Write the pack, complete or not at all."""
        partial = path.with_suffix(".partial.npz")
        np.savez_compressed(partial, **vars(self))
        partial.replace(path)

    @classmethod
    def load(cls, path: Path) -> ArtPack:
        """Read what `save` wrote."""
        with np.load(path) as arrays:
            return cls(**{name: arrays[name] for name in cls.__dataclass_fields__})


class ArtPackages:
    """The npm packages with the pictures, as fetch_art.sh installs them."""

    def __init__(self, node_modules: Path) -> None:
        """Read the indexes; raises ArtError where a package is not installed."""
        self._root = node_modules
        try:
            by_emoji = self._json("unicode-emoji-json/data-by-emoji.json")
            self._vectors = {
                style: (
                    self._json(f"@iconify-json/{name}/icons.json"),
                    self._json(f"@iconify-json/{name}/chars.json"),
                )
                for style, name in VECTOR_SETS.items()
            }
            self._keywords = self._json("emojilib/dist/emoji-en-US.json")
        except FileNotFoundError as error:
            raise ArtError(f"{error.filename} is missing: run fetch_art.sh first") from error
        self._emoji = {entry["name"]: emoji for emoji, entry in by_emoji.items()}

    def _json(self, path: str) -> dict:
        return json.loads((self._root / path).read_text(encoding="utf-8"))

    def keyword_words(self) -> set[str]:
        """Every plain lower-case word that people search any emoji by."""
        words = (
            word
            for phrases in self._keywords.values()
            for phrase in phrases
            for word in phrase.lower().replace("_", " ").split()
        )
        return {word for word in words if word.isascii() and word.isalpha()}

    def picture(self, thing: Thing, style: str) -> np.ndarray | None:
        """The thing as uint8 RGBA [SIDE, SIDE, 4]; None where the set has no such picture."""
        emoji = self._emoji.get(thing.unicode_name)
        if emoji is None:
            raise ArtError(f"no emoji is named '{thing.unicode_name}' ('{thing.name}')")
        points = [f"{ord(char):x}" for char in emoji]
        plain = "-".join(point for point in points if point != "fe0f")
        keys = ["-".join(points), plain, f"{plain}-fe0f"]
        if style == "3d":
            return self._bitmap(keys)
        return self._vector(keys, style)

    def _bitmap(self, keys: list[str]) -> np.ndarray | None:
        folder = self._root / "@lobehub/fluent-emoji-3d/assets"
        path = next((p for key in keys if (p := folder / f"{key}.webp").exists()), None)
        if path is None:
            return None
        with Image.open(path) as image:
            return _shrink(np.asarray(image.convert("RGBA")))

    def _vector(self, keys: list[str], style: str) -> np.ndarray | None:
        icons, names = self._vectors[style]
        name = next((names[key] for key in keys if key in names), None)
        if name is None:
            return None
        alias = icons.get("aliases", {}).get(name)
        icon = icons["icons"].get(alias["parent"] if alias else name)
        if icon is None:
            return None
        width = icon.get("width", icons.get("width", 16))
        height = icon.get("height", icons.get("height", 16))
        svg = (
            '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
            f'viewBox="{icon.get("left", 0)} {icon.get("top", 0)} {width} {height}" '
            f'width="{SIDE}" height="{SIDE}">{icon["body"]}</svg>'
        )
        png = resvg_py.svg_to_bytes(svg_string=svg, width=SIDE, height=SIDE)
        with Image.open(io.BytesIO(bytes(png))) as image:
            return np.asarray(image.convert("RGBA"))


def _shrink(rgba: np.ndarray) -> np.ndarray:
    """Resize to SIDE with premultiplied alpha, so that clear pixels lend no colour to edges."""
    values = rgba.astype(np.float32) / 255
    values[..., :3] *= values[..., 3:]
    channels = [
        Image.fromarray(values[..., k]).resize((SIDE, SIDE), Image.Resampling.LANCZOS)
        for k in range(4)
    ]
    small = np.stack([np.asarray(channel) for channel in channels], axis=-1).clip(0, 1)
    small[..., :3] /= np.maximum(small[..., 3:], 1e-3)
    return (small.clip(0, 1) * 255 + 0.5).astype(np.uint8)


def dominant_hue(rgba: np.ndarray) -> float:
    """The hue, in degrees, that at least half of a picture's colour has; NaN if there is none."""
    image = Image.fromarray(rgba[..., :3]).convert("HSV")
    hue, saturation, value = (np.asarray(channel, dtype=np.float32) for channel in image.split())
    weight = (rgba[..., 3] > 128) * (saturation / 255) ** 2 * (value / 255)
    total = weight.sum()
    if total < 60:  # grey things, or nearly
        return float("nan")
    bins = np.histogram(hue * (360 / 256), bins=36, range=(0, 360), weights=weight)[0]
    beside = np.roll(bins, 1) + np.roll(bins, -1)
    best = int((2 * bins + beside).argmax())
    return best * 10.0 + 5.0 if bins[best] + beside[best] >= 0.5 * total else float("nan")


def mirrors_well(rgba: np.ndarray) -> bool:
    """Whether a picture's outline is nearly its own mirror image, that is, has no direction."""
    solid = rgba[..., 3] > 128
    rows, columns = np.nonzero(solid)
    if len(rows) == 0:
        return False
    box = solid[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
    mirror = box[:, ::-1]
    return bool((box & mirror).sum() >= MIRROR_OVERLAP * (box | mirror).sum())


def pack_art(packages: ArtPackages, things: list[Thing]) -> ArtPack:
    """Rasterise every thing in every style it exists in.

    Raises ArtError for a thing that exists in no style at all.
    """
    rows = list(_rows(packages, things))
    lacking = set(range(len(things))) - {thing for thing, _, _ in rows}
    if lacking:
        raise ArtError(f"no picture of: {', '.join(things[i].name for i in sorted(lacking))}")
    pictures = np.stack([picture for _, _, picture in rows])
    return ArtPack(
        rgba=pictures,
        thing=np.array([thing for thing, _, _ in rows]),
        style=np.array([style for _, style, _ in rows]),
        hue=np.array([dominant_hue(picture) for picture in pictures], dtype=np.float32),
        may_flip=np.array(
            [
                things[thing].name not in WITH_WRITING and mirrors_well(picture)
                for thing, _, picture in rows
            ]
        ),
    )


def _rows(packages: ArtPackages, things: list[Thing]) -> Iterator[tuple[int, int, np.ndarray]]:
    for number, thing in enumerate(things):
        for style, word in enumerate(STYLES):
            picture = packages.picture(thing, word)
            if picture is not None:
                yield number, style, picture
