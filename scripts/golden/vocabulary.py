#!/usr/bin/env python3
"""Records how the real vocabulary of CLIP (49408 ids) cuts texts into tokens.

    VENV/bin/pip download --no-deps open_clip_torch==3.3.0 && unzip -j open_clip_torch-*.whl '*/bpe_simple_vocab_16e6.txt.gz'
    VENV/bin/python scripts/golden/vocabulary.py bpe_simple_vocab_16e6.txt.gz

Writes crates/diffusion/tests/golden/clip/, a tokenizer folder whose ids and ranks are the real ones, without the merges
that the recorded texts cannot use: the whole is too large to keep. Not part of make_golden.py, because of the download.
"""

import gzip
import json
import pathlib
import sys
import tempfile

from transformers import CLIPTokenizer

ROOT = pathlib.Path(__file__).resolve().parents[2]
OUT = ROOT / "crates" / "diffusion" / "tests" / "golden" / "clip"
# As openai/CLIP's simple_tokenizer.py: a heading, then as many merges as there are ids left.
MERGES = 49152 - 256 - 2
START, END = "<|startoftext|>", "<|endoftext|>"

TEXTS = [
    "a photo of a cat",
    "An astronaut riding a horse on Mars, highly detailed, 8k, trending on ArtStation!!",
    "portrait of a cyberpunk geisha; octane render, cinematic lighting, f/1.8 bokeh, 50mm",
    "it's 3 o'clock & we'll see the dog's 1234567890 bones",
    "une pêche mûre sur l'étagère — naïve Ångström",
    "熊猫 🐼 キツネ 여우 кошка γάτα",
    "supercalifragilisticexpialidocious antidisestablishmentarianism",
    "<|endoftext|> inside (weighted:1.3) [x] {y} ~ ^_^",
]


def alphabet():
    """The characters that stand for bytes, by id."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    letters = [chr(byte) for byte in printable] + [chr(256 + index) for index in range(len(others))]
    return letters, dict(zip(printable + others, letters))


def write(folder, vocabulary, merges, pad):
    folder.mkdir(parents=True, exist_ok=True)
    settings = {
        "add_prefix_space": False, "do_lower_case": True, "errors": "replace", "model_max_length": 77,
        "tokenizer_class": "CLIPTokenizer", "bos_token": START, "eos_token": END, "unk_token": END, "pad_token": pad,
    }
    (folder / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in merges))
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "special_tokens_map.json").write_text(
        json.dumps({key: settings[key] for key in ("bos_token", "eos_token", "unk_token", "pad_token")})
    )
    return CLIPTokenizer.from_pretrained(folder)


def ids(tokenizer):
    return tokenizer(TEXTS, padding="max_length", max_length=77, truncation=True).input_ids


def main():
    lines = gzip.open(sys.argv[1], "rt", encoding="utf-8").read().split("\n")[1 : 1 + MERGES]
    merges = [tuple(line.split()) for line in lines]
    letters, of_byte = alphabet()
    words = letters + [letter + "</w>" for letter in letters] + [a + b for a, b in merges] + [START, END]
    vocabulary = {word: index for index, word in enumerate(words)}
    assert len(words) == 49408
    # "!" is the padding of Stable Diffusion XL's second encoder, id 0.
    with tempfile.TemporaryDirectory() as folder:
        expected = ids(write(pathlib.Path(folder), vocabulary, merges, "!"))

    seen = "".join(of_byte[byte] for byte in "\n".join(TEXTS).lower().encode())
    kept = [(a, b) for a, b in merges if (a + b).removesuffix("</w>") in seen]
    used = {*letters, *(letter + "</w>" for letter in letters), *(a + b for a, b in kept), START, END}
    thinned = write(OUT, {word: index for word, index in vocabulary.items() if word in used}, kept, "!")
    found = ids(thinned)
    assert found == expected, "a merge that is needed was left out"
    (OUT / "tokens.json").write_text(json.dumps([[text, row] for text, row in zip(TEXTS, found)], ensure_ascii=False))
    for file in OUT.iterdir():
        file.chmod(0o644)
        print(f"clip/{file.name}: {file.stat().st_size} bytes")
    print(f"{len(kept)} of {len(merges)} merges; {found[0][:8]}")


main()
