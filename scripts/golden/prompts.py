#!/usr/bin/env python3
"""Records what weighted and long prompts become, for `crates/diffusion/src/prompt` to compare with.

    VENV/bin/python scripts/golden/prompts.py

The scheme is that of AUTOMATIC1111's stable-diffusion-webui 1.10 with emphasis "No norm" (see `src/prompt/mod.rs`),
written anew on the tokenizers and encoders of transformers; make_golden.py runs it with the rest.
"""

import json
import os
import pathlib
import re

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from safetensors.torch import save_file
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

ROOT = pathlib.Path(__file__).resolve().parents[2]
DEMO = ROOT / "assets" / "models" / "inkstone-demo"
OUT = ROOT / "crates" / "diffusion" / "tests" / "golden"

ROOM = 75
COMMA_REACH = 20
# Every fourth channel of the hidden states is kept.
THINNED = 4

_PHRASES = ["a 3d cat", "flat style rocket", "blue background", "a small red house with a tree", "panda", "yellow"]


def _list(count):
    return ", ".join(_PHRASES[index % len(_PHRASES)] for index in range(count))


CASES = [
    "",
    "a 3d cat on a blue background",
    "a (3d) cat on a [blue] background",
    "a (3d:1.3) [cat] on a ((blue)) [[background]]",
    r"a \(3d\) cat \[x\] \\ y back\slash",
    "a (3d [cat (on:0.5) a blue:1.4) background",
    "(a [3d) cat] on",
    "rocket) flat] style :1.3) tail",
    "cat BREAK (dog:1.2) BREAK",
    "BREAK a (cat BREAK dog:0.8) BREAKFAST",
    "() (:1.5) [] ( : 2 )",
    "(a 3d cat:0) and (a dog:10)",
    "(at 10:30 pm) (x: 1.25 ) (y:+.5) (z:1.2.3)",
    "it's (the dog's:1.21) 3 bones & we'll eat 42",
    "((a:1.1)(b:1.1)) (c)(d)",
    "(une pêche mûre:1.2) — 熊猫 🐼 [naïve Ångström]",
    "wow! (really!!:1.2)",
    "panda " * 75,
    "panda " * 76,
    "panda " * 120,
    "panda " * 75 + ", tail",
    "panda " * 60 + ", " + "cat " * 14 + "dog " * 10,
    "panda " * 50 + ", " + "cat " * 24 + "dog " * 10,
    _list(30),
    "[" + _list(20) + ", (" + _list(25) + ":1.35)] BREAK " + _list(3),
    "(" + "cat dog " * 110 + ":0.7) end",
]


def spans(text):
    """Pairs of text and weight; a break is None. Brackets are resolved by position, innermost last."""
    token = re.compile(
        r"\\(?P<escaped>[()\[\]\\])|(?P<weight>:\s*(?P<number>[+-]?[.\d]+)\s*\))|(?P<bracket>[()\[\]])"
        r"|(?P<break>\bBREAK\b)|(?P<text>.)",
        re.S,
    )
    pieces, round_ones, square_ones = [], [], []

    def close(stack, factor):
        first = stack.pop()
        for piece in pieces[first:]:
            piece[1] *= factor

    for match in token.finditer(text):
        whole, literal = match.group(0), None
        if match["escaped"]:
            literal = match["escaped"]
        elif match["weight"]:
            try:
                factor = float(match["number"])
            except ValueError:
                factor = None
            if round_ones and factor is not None:
                close(round_ones, factor)
            elif round_ones:
                pieces.append([whole[:-1], 1.0])
                close(round_ones, 1.1)
            else:
                literal = whole
        elif match["break"]:
            pieces.append([None, 1.0])
        elif whole == "(":
            round_ones.append(len(pieces))
        elif whole == "[":
            square_ones.append(len(pieces))
        elif whole == ")" and round_ones:
            close(round_ones, 1.1)
        elif whole == "]" and square_ones:
            close(square_ones, 1 / 1.1)
        else:
            literal = whole
        if literal is not None:
            pieces.append([literal, 1.0])
    while round_ones:
        close(round_ones, 1.1)
    while square_ones:
        close(square_ones, 1 / 1.1)
    merged = []
    for text, weight in pieces:
        weight = torch.tensor(weight, dtype=torch.float32).item()
        if text is not None and merged and merged[-1][0] is not None and merged[-1][1] == weight:
            merged[-1][0] += text
        else:
            merged.append([text, weight])
    return merged


def chunks(text, tokenizer):
    """Rows of 77 ids and weights."""
    comma = tokenizer.get_vocab()[",</w>"]
    done, row, last_comma = [], [], None
    for part, weight in spans(text):
        if part is None:
            done.append(row)
            row, last_comma = [], None
            continue
        for token in tokenizer(part, add_special_tokens=False).input_ids:
            if len(row) == ROOM:
                tail = []
                if token != comma and last_comma is not None and ROOM - last_comma <= COMMA_REACH:
                    row, tail = row[: last_comma + 1], row[last_comma + 1 :]
                done.append(row)
                row, last_comma = tail, None
            if token == comma:
                last_comma = len(row)
            row.append((token, weight))
    if row or not done:
        done.append(row)
    start, end, pad = tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id
    filled = [
        [(start, 1.0), *row, (end, 1.0), *[(pad, 1.0)] * (ROOM - len(row))] for row in done
    ]
    ids = torch.tensor([[token for token, _ in row] for row in filled])
    weights = torch.tensor([[weight for _, weight in row] for row in filled])
    return ids, weights


def encode(text, tokenizers, encoders):
    """Hidden states of all chunks, weighted, both encoders side by side; the first chunk's pooled state; the chunks."""
    hidden, pooled, cut = [], None, []
    for tokenizer, encoder in zip(tokenizers, encoders):
        ids, weights = chunks(text, tokenizer)
        out = encoder(ids, output_hidden_states=True)
        hidden.append((out.hidden_states[-2] * weights.unsqueeze(-1)).flatten(0, 1))
        cut.append((ids, weights))
        if hasattr(out, "text_embeds"):
            pooled = out.text_embeds[0]
    return torch.cat(hidden, dim=-1), pooled, cut


def record(name, tokenizers, encoders):
    tensors = {}
    with torch.no_grad():
        for index, text in enumerate(CASES):
            hidden, pooled, cut = encode(text, tokenizers, encoders)
            tensors[f"{index}.hidden"] = hidden[:, ::THINNED]
            tensors[f"{index}.pooled"] = pooled
            for which, (ids, weights) in enumerate(cut):
                tensors[f"{index}.ids.{which}"] = ids.to(torch.int64)
                tensors[f"{index}.weights.{which}"] = weights
    tensors = {key: value.detach().clone().contiguous() for key, value in tensors.items()}
    file = OUT / f"prompts_{name}.safetensors"
    save_file(tensors, file, metadata={"cases": json.dumps(CASES)})
    file.chmod(0o644)
    print(f"prompts_{name}: {file.stat().st_size} bytes")


def main():
    torch.set_num_threads(1)
    for name, folder, variant in (("demo", DEMO, None), ("mini", OUT / "mini", "fp16")):
        tokenizers = [CLIPTokenizer.from_pretrained(folder / part) for part in ("tokenizer", "tokenizer_2")]
        encoders = [
            kind.from_pretrained(folder / part, variant=variant, dtype=torch.float32)
            for kind, part in ((CLIPTextModel, "text_encoder"), (CLIPTextModelWithProjection, "text_encoder_2"))
        ]
        record(name, tokenizers, encoders)


if __name__ == "__main__":
    main()
