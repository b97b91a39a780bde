"""The list of things to draw: their names, their Unicode names and what else people call them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Thing:
    """One drawable thing."""

    name: str
    """The word or words that captions use, lower case."""
    unicode_name: str
    """The emoji's name in unicode-emoji-json; finds the pictures."""
    synonyms: tuple[str, ...] = ()


def read_things(path: Path, limit: int | None = None) -> list[Thing]:
    """Read a things file (its header describes the format); `limit` keeps only the first ones.

    Raises ValueError where a line is malformed or a name stands for two things.
    """
    things: list[Thing] = []
    owner: dict[str, str] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip() or line.startswith("#"):
            continue
        fields = [field.strip() for field in line.split("|")]
        if len(fields) not in (2, 3) or not all(fields):
            raise ValueError(f"{path.name}:{number}: want 'name | unicode name [| synonyms]'")
        synonyms = tuple(s.strip() for s in fields[2].split(",")) if len(fields) == 3 else ()
        for name in (fields[0], *synonyms):
            if name in owner:
                raise ValueError(f"{path.name}:{number}: '{name}' already means '{owner[name]}'")
            owner[name] = fields[0]
        things.append(Thing(fields[0], fields[1], synonyms))
    return things[:limit]
