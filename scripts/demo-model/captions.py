"""Captions: what a prompt for a picture may look like, and what a prompt for nothing may.

A model trained only on tidy captions falls apart at the first plural or "highly detailed, 4k". So
captions use plurals and synonyms, carry words that change nothing (stock phrases, real words the
model does not know, made-up ones), and the unconditional caption is sometimes a usual negative
prompt or plain junk.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from settings import BACKGROUNDS, HUES
from things import Thing

MEDIUMS = ("photo", "picture", "drawing", "icon", "emoji", "image", "illustration", "render")

ADJECTIVES = (
    "cute", "big", "small", "shiny", "nice", "beautiful", "simple", "colorful", "detailed",
    "modern", "vintage", "old", "new", "tiny", "giant", "happy", "sad", "elegant",
    "golden", "magical", "friendly", "furry", "wooden", "fresh",
)  # fmt: skip
"""Words before a thing's name that do not change the picture."""

STOCK_PHRASES = (
    "highly detailed", "masterpiece", "best quality", "high quality", "4k", "8k", "hd",
    "trending on artstation", "award winning", "sharp focus", "vibrant", "soft light",
    "studio lighting", "product photo", "studio shot", "digital art", "poster", "sticker",
    "logo design", "for my website", "for my app", "please", "professional", "isolated", "centered",
    "minimalist", "ultra realistic", "cinematic lighting", "octane render",
)  # fmt: skip
"""Phrases after a prompt that do not change the picture."""

NEGATIVE_PHRASES = (
    "blurry", "low quality", "ugly", "deformed", "bad anatomy", "watermark", "text",
    "worst quality", "jpeg artifacts", "extra limbs", "out of frame", "low resolution",
    "lowres", "noise", "grainy", "disfigured", "cropped", "signature", "mutated", "bad hands",
    "duplicate", "error", "distorted",
)  # fmt: skip
"""What people write into the negative prompt; trained as the unconditional caption."""

IRREGULAR_PLURALS = {"mouse": "mice", "goose": "geese", "tooth": "teeth", "foot": "feet"}

UNCOUNTABLE = frozenset(
    (
        "bread", "broccoli", "cheese", "clothing", "coffee", "corn", "dice", "fire", "fish",
        "jeans", "lightning", "planet earth", "planet saturn", "rain", "rice", "snow", "soap",
        "sushi",
    )
)  # fmt: skip

_SYLLABLES = [c + v for c in "bcdfghjklmnprstvwz" for v in ("a", "e", "i", "o", "u", "an", "or")]


@dataclass(frozen=True)
class Subject:
    """What one training picture shows."""

    thing: int
    """Index into the list of things."""
    style: str
    background: str
    """Name of the background, a key of BACKGROUNDS."""
    hue: str | None = None
    """Name of the colour that the thing was turned into, a key of HUES; None = its own."""


def article(phrase: str) -> str:
    """'a ', 'an ' or, before plurals, nothing."""
    word = phrase.split()[-1]
    if word.endswith("s") and not word.endswith(("ss", "us", "cactus")):
        return ""
    return "an " if phrase[0] in "aeiou" else "a "


def plural(name: str) -> str:
    """More than one of the thing; names without a plural come back as they are."""
    if name in UNCOUNTABLE:
        return name
    head, _, tail = name.partition(" of ")  # "cup of coffee" -> "cups of coffee"
    *before, word = head.split()
    if word in IRREGULAR_PLURALS:
        word = IRREGULAR_PLURALS[word]
    elif word.endswith("s") and not word.endswith(("ss", "us")):
        return name
    elif word.endswith(("s", "sh", "ch", "x", "z")):
        word += "es"
    elif word.endswith("y") and word[-2:-1] not in tuple("aeiou"):
        word = word[:-1] + "ies"
    else:
        word += "s"
    return " ".join([*before, word]) + (f" of {tail}" if tail else "")


def has_colour_in_name(thing: Thing) -> bool:
    """Whether the name itself says a colour, so that another colour would contradict it."""
    words = thing.name.split()
    return any(word in words for word in (*HUES, *BACKGROUNDS))


class CaptionWriter:
    """Writes a fresh caption each time it is asked."""

    def __init__(
        self,
        things: list[Thing],
        unknown_words: set[str],
        rng: random.Random,
    ) -> None:
        """`unknown_words`: real words that mean no thing; those in the vocabulary are left out."""
        self._things = things
        self._rng = rng
        known = set(self.vocabulary())
        self._unknown = sorted(unknown_words - known)

    def vocabulary(self) -> list[str]:
        """Every word that deserves a token of its own, sorted; junk is spelled out of pieces."""
        phrases = [
            "a an the of on in with and background style 3d flat cartoon one two some",
            *MEDIUMS, *(f"{medium}s" for medium in MEDIUMS), *ADJECTIVES, *STOCK_PHRASES,
            *NEGATIVE_PHRASES, *BACKGROUNDS, *HUES,
        ]  # fmt: skip
        for thing in self._things:
            for name in (thing.name, *thing.synonyms):
                phrases += [name, plural(name)]
        words = {word for phrase in phrases for word in phrase.replace("-", " ").split()}
        return sorted(words)

    def caption(self, subject: Subject) -> str:
        """A prompt that this picture answers."""
        rng = self._rng
        name = self._name(subject.thing)
        if subject.hue:
            name = f"{subject.hue} {name}"
        if rng.random() < 0.10:
            name = f"{rng.choice(ADJECTIVES)} {name}"
        if rng.random() < 0.06:
            name = f"{self._junk_word()} {name}"
        text = self._with_style(name, subject.style)
        if subject.background != "white" or rng.random() < 0.25:
            colour = subject.background
            text += f" on {article(colour)}{colour} background"
        if rng.random() < 0.15:
            extras = (self._junk_phrase() for _ in range(rng.randint(1, 4)))
            text += ", " + ", ".join(extras)
        return text

    def unconditional(self) -> str:
        """A prompt that asks for nothing: a usual negative prompt, or junk."""
        rng = self._rng
        if rng.random() < 0.6:
            return ", ".join(rng.sample(NEGATIVE_PHRASES, rng.randint(1, 7)))
        return " ".join(self._junk_phrase() for _ in range(rng.randint(1, 4)))

    def _name(self, number: int) -> str:
        rng = self._rng
        thing = self._things[number]
        name = thing.name
        if thing.synonyms and rng.random() < 0.15:
            name = rng.choice(thing.synonyms)
        return plural(name) if rng.random() < 0.10 else name

    def _with_style(self, name: str, style: str) -> str:
        rng = self._rng
        if style == "3d" and rng.random() < 0.5:
            styled, after = name, ""  # a prompt without a style means 3d
        elif rng.random() < 0.5:
            styled, after = f"{style} {name}", ""
        else:
            styled, after = name, f", {style} style"
        before = article(styled) if rng.random() < 0.75 else ""
        if rng.random() < 0.4:
            medium = rng.choice(MEDIUMS)
            before = f"{article(medium)}{medium} of {before}"
        return f"{before}{styled}{after}"

    def _junk_phrase(self) -> str:
        rng = self._rng
        return rng.choice(STOCK_PHRASES) if rng.random() < 0.6 else self._junk_word()

    def _junk_word(self) -> str:
        rng = self._rng
        if self._unknown and rng.random() < 0.7:
            return rng.choice(self._unknown)
        return "".join(rng.choice(_SYLLABLES) for _ in range(rng.randint(2, 4)))
