"""A CLIP tokenizer of our own: byte-level BPE in which every caption word is one token.

Writes both folders as SDXL has them: `tokenizer` pads with the end-of-text token, `tokenizer_2`
with "!", whose id is 0.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from itertools import pairwise
from pathlib import Path

from tokenizers import Tokenizer

START = "<|startoftext|>"
END = "<|endoftext|>"
MAX_TOKENS = 77

# The split that CLIP makes before BPE (openai/CLIP, simple_tokenizer.py).
_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


def _byte_alphabet() -> dict[int, str]:
    """GPT-2's map from bytes to printable characters; "!" comes first, so its id is 0."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    alphabet = {byte: chr(byte) for byte in printable}
    for byte in range(256):
        if byte not in alphabet:
            alphabet[byte] = chr(256 + len(alphabet) - len(printable))
    return alphabet


def learn_merges(words: list[str]) -> list[tuple[str, str]]:
    """Merge the most frequent pairs until every word is a single symbol.

    Ties go to the pair that sorts last, so the same words give the same merges.
    """
    alphabet = _byte_alphabet()
    spelled = [[alphabet[byte] for byte in word.encode()] for word in sorted(set(words))]
    counts: Counter[tuple[str, str]] = Counter()
    users: dict[tuple[str, str], set[int]] = defaultdict(set)
    for number, symbols in enumerate(spelled):
        symbols[-1] += "</w>"
        _count(symbols, number, counts, users)
    merges: list[tuple[str, str]] = []
    while counts:
        best = max(counts, key=lambda pair: (counts[pair], pair))
        merges.append(best)
        for number in users.pop(best):
            counts -= Counter(pairwise(spelled[number]))
            spelled[number] = _merged(spelled[number], best)
            _count(spelled[number], number, counts, users)
    return merges


def _count(
    symbols: list[str],
    number: int,
    counts: Counter[tuple[str, str]],
    users: dict[tuple[str, str], set[int]],
) -> None:
    for pair in pairwise(symbols):
        counts[pair] += 1
        users[pair].add(number)


def _merged(symbols: list[str], pair: tuple[str, str]) -> list[str]:
    merged: list[str] = []
    for symbol in symbols:
        if merged and (merged[-1], symbol) == pair:
            merged[-1] += symbol
        else:
            merged.append(symbol)
    return merged


def write_tokenizers(words: list[str], folder: Path) -> None:
    """Learn a vocabulary from `words` and write `tokenizer` and `tokenizer_2` under `folder`."""
    merges = learn_merges(split_numbers(words))
    alphabet = list(_byte_alphabet().values())
    symbols = [*alphabet, *(f"{char}</w>" for char in alphabet), *map("".join, merges), START, END]
    # Two merges may spell the same symbol; it keeps its first place.
    vocabulary = {symbol: number for number, symbol in enumerate(dict.fromkeys(symbols))}
    for name, pad in (("tokenizer", END), ("tokenizer_2", "!")):
        _write_folder(folder / name, vocabulary, merges, pad)


def split_numbers(words: list[str]) -> list[str]:
    """Words as CLIP's split sees them: digits stand alone, so "3d" is "3" and "d"."""
    spaced = ("".join(c if c.isalpha() else f" {c} " for c in word) for word in words)
    return sorted({part for word in spaced for part in word.split()})


def load_tokenizer(folder: Path) -> Tokenizer:
    """The fast tokenizer of one of the folders that `write_tokenizers` made."""
    return Tokenizer.from_file(str(folder / "tokenizer.json"))


def _special(content: str, *, normalized: bool) -> dict:
    return {
        "content": content,
        "single_word": False,
        "lstrip": False,
        "rstrip": False,
        "normalized": normalized,
    }


def _write_folder(
    folder: Path, vocabulary: dict[str, int], merges: list[tuple[str, str]], pad: str
) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    lines = ["#version: 0.2", *(" ".join(pair) for pair in merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    _write_json(folder / "vocab.json", vocabulary)
    _write_json(
        folder / "special_tokens_map.json",
        {
            "bos_token": _special(START, normalized=True),
            "eos_token": _special(END, normalized=True),
            "unk_token": _special(END, normalized=True),
            "pad_token": pad,
        },
    )
    _write_json(
        folder / "tokenizer_config.json",
        {
            "add_prefix_space": False,
            "do_lower_case": True,
            "errors": "replace",
            "model_max_length": MAX_TOKENS,
            "tokenizer_class": "CLIPTokenizer",
            "bos_token": START,
            "eos_token": END,
            "unk_token": END,
            "pad_token": pad,
        },
    )
    _write_json(folder / "tokenizer.json", _fast_tokenizer(vocabulary, merges))


def _fast_tokenizer(vocabulary: dict[str, int], merges: list[tuple[str, str]]) -> dict:
    """The `tokenizers` library's description of a CLIP tokenizer."""
    byte_level = {"type": "ByteLevel", "trim_offsets": True, "use_regex": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": vocabulary[token], "special": True, **_special(token, normalized=False)}
            for token in (START, END)
        ],
        "normalizer": {
            "type": "Sequence",
            "normalizers": [
                {"type": "NFC"},
                {"type": "Replace", "pattern": {"Regex": r"\s+"}, "content": " "},
                {"type": "Lowercase"},
            ],
        },
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [
                {
                    "type": "Split",
                    "pattern": {"Regex": _WORDS},
                    "behavior": "Removed",
                    "invert": True,
                },
                {**byte_level, "add_prefix_space": False},
            ],
        },
        "post_processor": {
            "type": "RobertaProcessing",
            "sep": [END, vocabulary[END]],
            "cls": [START, vocabulary[START]],
            "trim_offsets": False,
            "add_prefix_space": False,
        },
        "decoder": {**byte_level, "add_prefix_space": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": END,
            "continuing_subword_prefix": "",
            "end_of_word_suffix": "</w>",
            "fuse_unk": False,
            "byte_fallback": False,
            "vocab": vocabulary,
            "merges": [" ".join(pair) for pair in merges],
        },
    }


def _write_json(path: Path, value: dict) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")
