"""Tests of the parts that need no training: `python -m unittest` in this folder."""

from __future__ import annotations

import contextlib
import io
import math
import random
import tempfile
import unittest
from pathlib import Path

import numpy as np
import torch
from torch import nn

from art import dominant_hue, mirrors_well
from augment import Placement, on_background, premultiplied, rotate_hue
from captions import NEGATIVE_PHRASES, CaptionWriter, Subject, article, plural
from optim import MuonAdamW, WeightAverage, orthogonalised
from settings import HERE, PRESETS, SIDE
from stage import DivergedError, Stage
from things import read_things
from tokenizer import load_tokenizer, split_numbers, write_tokenizers

THINGS = read_things(HERE / "things.txt")


def _writer(seed: int = 0) -> CaptionWriter:
    return CaptionWriter(THINGS, {"zeppelin", "desert"}, random.Random(seed))


def _square(colour: tuple[int, int, int], left: int = 32) -> np.ndarray:
    rgba = np.zeros((SIDE, SIDE, 4), dtype=np.uint8)
    rgba[32:96, left:96] = (*colour, 255)
    return rgba


class Things(unittest.TestCase):
    def test_every_preset_reads_its_things(self) -> None:
        for preset in PRESETS.values():
            self.assertTrue(read_things(HERE / preset.things_file, preset.things_limit))

    def test_a_name_for_two_things_is_refused(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "things.txt"
            path.write_text("cat | cat face | kitty\ndog | dog face | kitty\n", encoding="utf-8")
            with self.assertRaisesRegex(ValueError, "things.txt:2: 'kitty' already means 'cat'"):
                read_things(path)


class Captions(unittest.TestCase):
    def test_plurals_follow_english(self) -> None:
        for one, many in {
            "mouse": "mice",
            "cup of coffee": "cups of coffee",
            "cherry": "cherries",
            "monkey": "monkeys",
            "torch": "torches",
            "scissors": "scissors",
            "bread": "bread",
            "police car": "police cars",
        }.items():
            self.assertEqual(plural(one), many)

    def test_articles_follow_english(self) -> None:
        self.assertEqual([article(w) for w in ("apple", "bus", "grapes")], ["an ", "a ", ""])

    def test_a_caption_names_its_subject_background_and_colour(self) -> None:
        writer = _writer()
        cat = next(number for number, thing in enumerate(THINGS) if thing.name == "cat")
        names = ("cat", "kitten", "kittens", "kitty", "kitties")
        for _ in range(200):
            caption = writer.caption(Subject(cat, "flat", "blue", "green"))
            self.assertTrue(any(name in caption for name in names), caption)
            for word in ("green", "flat", "on a blue background"):
                self.assertIn(word, caption)

    def test_unconditional_captions_name_no_thing(self) -> None:
        writer = _writer()
        captions = [writer.unconditional() for _ in range(200)]
        self.assertFalse([c for c in captions if any(f" {t.name} " in f" {c} " for t in THINGS)])
        self.assertTrue(any(caption.split(", ")[0] in NEGATIVE_PHRASES for caption in captions))


class Tokenizer(unittest.TestCase):
    def test_every_caption_word_is_one_token(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            words = _writer().vocabulary()
            write_tokenizers(words, Path(folder))
            tokenizer = load_tokenizer(Path(folder) / "tokenizer")
            for word in split_numbers(words):
                self.assertEqual(len(tokenizer.encode(word).ids), 3, word)
            self.assertEqual(tokenizer.token_to_id("!"), 0)
            last = tokenizer.get_vocab_size() - 1
            self.assertEqual(tokenizer.token_to_id("<|endoftext|>"), last)


class Pictures(unittest.TestCase):
    def test_a_placement_at_full_size_changes_nothing(self) -> None:
        rgba = premultiplied(torch.from_numpy(_square((200, 30, 60)))[None])
        none = torch.zeros(1)
        still = Placement(torch.full((1,), float(SIDE)), none, none, none.bool()).apply(rgba)
        self.assertLess((still - rgba).abs().max().item(), 1e-3)

    def test_a_placement_puts_the_picture_where_it_says(self) -> None:
        rgba = torch.ones(1, 4, SIDE, SIDE)
        placed = Placement(
            torch.tensor([64.0]), torch.tensor([8.0]), torch.tensor([40.0]), torch.tensor([True])
        ).apply(rgba)
        rows, columns = np.nonzero(placed[0, 3].numpy() > 0.5)
        self.assertEqual((rows.min(), rows.max(), columns.min(), columns.max()), (8, 71, 40, 103))

    def test_a_flip_mirrors_in_place(self) -> None:
        rgba = premultiplied(torch.from_numpy(_square((200, 30, 60), left=64))[None])
        none = torch.zeros(1)
        flipped = Placement(torch.full((1,), float(SIDE)), none, none, ~none.bool()).apply(rgba)
        self.assertLess((flipped - rgba.flip(3)).abs().max().item(), 1e-3)

    def test_hues_turn_and_greys_stay(self) -> None:
        both = np.stack([_square((220, 20, 20)), _square((90, 90, 90))])
        turned = rotate_hue(premultiplied(torch.from_numpy(both)), torch.tensor([120.0, 120.0]))
        rgb = on_background(turned, torch.zeros(2, 3))[:, :, 64, 64].add(1).mul(127.5).round()
        self.assertEqual(rgb.int().tolist(), [[20, 220, 20], [90, 90, 90]])

    def test_the_dominant_hue_is_found_where_there_is_one(self) -> None:
        self.assertLess(abs(dominant_hue(_square((30, 60, 230))) - 231), 12)
        self.assertTrue(math.isnan(dominant_hue(_square((128, 128, 128)))))

    def test_direction_is_seen_in_the_outline(self) -> None:
        lopsided = _square((200, 30, 60))
        lopsided[32:64, 64:96] = 0
        self.assertTrue(mirrors_well(_square((200, 30, 60), left=8)))
        self.assertFalse(mirrors_well(lopsided))


class Training(unittest.TestCase):
    def setUp(self) -> None:
        self.enterContext(contextlib.redirect_stderr(io.StringIO()))  # progress bars

    def _parts(self) -> tuple[nn.Module, MuonAdamW, WeightAverage]:
        torch.manual_seed(0)
        network = nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 16))
        optimizer = MuonAdamW(network.named_parameters(), rate=0.05, adam_names=())
        return network, optimizer, WeightAverage(network, decay=0.9)

    def test_orthogonalising_brings_singular_values_near_one(self) -> None:
        torch.manual_seed(0)
        for shape in ((3, 32, 16), (2, 16, 48)):
            values = torch.linalg.svdvals(orthogonalised(torch.randn(shape)))
            self.assertTrue(((values > 0.4) & (values < 1.4)).all(), values)

    def test_muon_learns_a_linear_map(self) -> None:
        network, optimizer, _ = self._parts()
        x = torch.randn(64, 16)
        losses = []
        for step in range(200):
            loss = ((network(x) - x.flip(1)) ** 2).mean()
            network.zero_grad()
            loss.backward()
            optimizer.step(1 - step / 200)
            losses.append(loss.item())
        self.assertLess(losses[-1], losses[0] / 10)

    def test_a_stopped_stage_goes_on_where_it_was(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "stage.pt"
            parts = self._parts()
            with Stage("first", path, 60.0, *parts) as stage:
                parts[0](torch.ones(1, 16)).sum().backward()
                parts[1].step(1.0)
                parts[2].update(stage.step)
                stage.advance(torch.tensor(1.0))
            again = self._parts()
            with Stage("again", path, 60.0, *again) as stage:
                self.assertEqual(stage.step, 1)
                self.assertTrue(torch.equal(again[0][0].weight, parts[0][0].weight))
                self.assertTrue(torch.equal(again[2].weights[0], parts[2].weights[0]))

    def test_a_diverged_stage_keeps_its_last_checkpoint(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "stage.pt"
            with Stage("good", path, 60.0, *self._parts()):
                pass
            before = path.read_bytes()
            with (
                self.assertRaises(DivergedError),
                Stage("bad", path, 1e-9, *self._parts()) as stage,
            ):
                stage.advance(torch.tensor(math.nan))
            self.assertEqual(path.read_bytes(), before)


if __name__ == "__main__":
    unittest.main()
