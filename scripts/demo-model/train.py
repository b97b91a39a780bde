"""Trains a demo model from packages to a diffusers folder.

    python train.py --preset cpu|gpu|smoke [--device cpu|cuda] [--minutes N] [--out FOLDER]

Stages: pictures, tokenizer, VAE, text encoders + UNet, export, evaluation. Each leaves its result
in .work/PRESET; a run that was stopped (Ctrl-C, crash) goes on where it was when started again.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import AutoencoderKL

from art import STYLES, ArtError, ArtPack, ArtPackages, pack_art
from captions import CaptionWriter
from evaluate import Drawing, Painter, evaluate, quiet_libraries, summary
from export import export, serving_profile
from latents import LatentPool
from settings import HERE, PRESETS, Preset
from stage import DivergedError
from things import Thing, read_things
from tokenizer import load_tokenizer, write_tokenizers
from unet import Denoiser, train_denoiser
from vae import train_vae


@dataclass(frozen=True)
class Run:
    """What every stage needs."""

    preset: Preset
    minutes: float
    device: torch.device
    bf16: bool
    folder: Path
    """Where the stages leave their results."""
    things: list[Thing]
    packages: ArtPackages

    def writer(self) -> CaptionWriter:
        """Captions for this run's things; a new run gets new captions."""
        return CaptionWriter(self.things, self.packages.keyword_words(), random.Random())

    def art(self) -> ArtPack:
        """The packed pictures, rasterised at the first call ever."""
        path = self.folder / "art.npz"
        if not path.exists():
            print(f"art : rasterising {len(self.things)} things in {len(STYLES)} styles")
            pack_art(self.packages, self.things).save(path)
        return ArtPack.load(path)

    def vae(self, art: ArtPack) -> AutoencoderKL:
        """The finished VAE, trained if there is none yet; later runs keep it as it is."""
        done = self.folder / "vae"
        if not done.exists():
            budget_s = self.minutes * 60 * self.preset.vae_share
            train_vae(self.preset, art, self.folder, budget_s, self.device, bf16=self.bf16)
        return AutoencoderKL.from_pretrained(done).to(self.device)

    def denoiser(self, art: ArtPack, vae: AutoencoderKL, writer: CaptionWriter) -> Denoiser:
        """Text encoders and UNet, trained until their part of the minutes is spent."""
        tokenizer = load_tokenizer(self.folder / "tokenizer")
        vocabulary = tokenizer.get_vocab_size()
        seed = random.randrange(2**31)
        pool = LatentPool(
            self.preset, art, self.things, vae, writer, tokenizer, seed, bf16=self.bf16
        )
        budget_s = self.minutes * 60 * (1 - self.preset.vae_share)
        return train_denoiser(
            self.preset, pool, vocabulary, self.folder, budget_s, self.device, bf16=self.bf16
        )


def check_folder(folder: Path, preset: Preset, things: list[Thing]) -> None:
    """Refuse to go on with results that belong to other things or other networks.

    Raises ValueError where the folder's results do not fit.
    """
    wanted = {
        "things": [thing.name for thing in things],
        "vae": [*preset.vae_channels, preset.vae_norm_groups],
        "unet_layers_per_block": preset.unet_layers_per_block,
    }
    path = folder / "made_for.json"
    if not path.exists():
        path.write_text(json.dumps(wanted), encoding="utf-8")
    elif json.loads(path.read_text(encoding="utf-8")) != wanted:
        raise ValueError(f"{folder} was begun with other things or networks: remove it first")


def train(run: Run, out: Path, name: str, version: str) -> None:
    """All stages in order."""
    art = run.art()
    writer = run.writer()
    if not (run.folder / "tokenizer_2" / "tokenizer.json").exists():
        write_tokenizers(writer.vocabulary(), run.folder)
    vae = run.vae(art)
    denoiser = run.denoiser(art, vae, writer)
    profile = serving_profile(name, version, len(run.things), run.preset.styles)
    export(vae, denoiser, run.folder, out, profile)
    size = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    print(f"out : {out}, {size / 1e6:.1f} MB")
    painter = Painter(out, run.device, Drawing())
    report = run.folder / "report"
    result = evaluate(painter, art, run.things, run.preset.styles, run.preset.report_things, report)
    print(summary(result))
    print(f"grid: {report / 'grid.png'}")


def supports_bf16(device: torch.device) -> bool:
    """Whether bfloat16 is faster than float32 here: on GPUs, and CPUs with instructions for it."""
    if device.type != "cpu":
        return True
    info = Path("/proc/cpuinfo")
    return info.exists() and "avx512_bf16" in info.read_text(encoding="utf-8")


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Train a demo model from packages.")
    parser.add_argument("--preset", choices=PRESETS, default="cpu")
    parser.add_argument(
        "--device", choices=("cpu", "cuda"), default=None, help="default: by preset"
    )
    parser.add_argument("--minutes", type=float, help="training time in all; default: the preset's")
    parser.add_argument("--threads", type=int, help="CPU threads; default: PyTorch's choice")
    parser.add_argument("--work", type=Path, default=HERE / ".work", help="folder for all results")
    parser.add_argument("--out", type=Path, help="model folder; default: WORK/PRESET/model")
    parser.add_argument("--name", default="inkstone-demo", help="name in inkstone.json")
    parser.add_argument("--version", default="2", help="version in inkstone.json")
    args = parser.parse_args()
    if args.minutes is not None and args.minutes <= 0:
        parser.error("--minutes must be positive")
    return args


def main() -> int:
    """Run from the command line; 130 after Ctrl-C, 1 after an error that was explained."""
    args = parse_arguments()
    quiet_libraries()
    if args.threads:
        torch.set_num_threads(args.threads)
    torch.backends.cuda.matmul.allow_tf32 = True
    torch.backends.cudnn.allow_tf32 = True
    torch.backends.cudnn.benchmark = True
    preset = PRESETS[args.preset]
    device = torch.device(args.device or ("cuda" if preset.name == "gpu" else "cpu"))
    folder = args.work / preset.name
    folder.mkdir(parents=True, exist_ok=True)
    try:
        things = read_things(HERE / preset.things_file, preset.things_limit)
        check_folder(folder, preset, things)
        run = Run(
            preset=preset,
            minutes=args.minutes or preset.minutes,
            device=device,
            bf16=supports_bf16(device),
            folder=folder,
            things=things,
            packages=ArtPackages(args.work / "npm/node_modules"),
        )
        train(run, args.out or folder / "model", args.name, args.version)
    except KeyboardInterrupt:
        print("stopped; the same command goes on from here", file=sys.stderr)
        return 130
    except (ArtError, DivergedError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
