"""Diffusers' side: a process that does one thing as often as it is told, and answers with the seconds of each time.

    peer.py picture MODEL STEPS GUIDANCE | jobs MODEL STEPS GUIDANCE | unet SCRATCH SIDE | vae SCRATCH SIDE | ops

It reads lines of JSON, `{"threads": 1, "times": 3, "batch": 1}`, and answers each with one. A process a subject, so
that its peak memory is that subject's.
"""

import json
import os
import pathlib
import re
import sys
import time
from collections.abc import Callable, Iterator

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
import torch.nn.functional as F  # noqa: N812, its name everywhere

torch.set_grad_enabled(False)

PROMPT = "a 3d cat on a blue background"
TOKENS = 77
OP_TIME, OP_TIMES = 0.15, 3


def timed(work: Callable[[], object]) -> float:
    """Seconds of one call."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


class Picture:
    """The demo model's pipeline."""

    def __init__(self, model: str, steps: str, guidance: str) -> None:
        from diffusers import StableDiffusionXLPipeline

        self.pipeline = StableDiffusionXLPipeline.from_pretrained(model, torch_dtype=torch.float32)
        self.pipeline.set_progress_bar_config(disable=True)
        self.steps, self.guidance = int(steps), float(guidance)

    def draw(self, batch: int, **more: object) -> None:
        """Pictures of one prompt, drawn as a batch."""
        generators = [torch.Generator("cpu").manual_seed(seed + 1) for seed in range(batch)]
        self.pipeline(
            [PROMPT] * batch,
            width=128,
            height=128,
            num_inference_steps=self.steps,
            guidance_scale=self.guidance,
            generator=generators,
            **more,
        )

    def run(self, times: int, batch: int) -> list[float]:
        """Seconds of each batch."""
        return [timed(lambda: self.draw(batch)) for _ in range(times)]


class Jobs(Picture):
    """The same, a step at a time."""

    def run(self, times: int, batch: int) -> list[float]:  # noqa: ARG002, one run has many steps
        """Seconds of each step but the first, before which prompts are encoded."""
        ends = []

        def ended(*_: object) -> dict:
            ends.append(time.perf_counter())
            return {}

        self.draw(batch, output_type="latent", callback_on_step_end=ended)
        return [later - earlier for earlier, later in zip(ends, ends[1:], strict=False)]


class Unet:
    """One forward pass of the random UNet."""

    def __init__(self, scratch: str, side: str) -> None:
        from diffusers import UNet2DConditionModel
        from models import write

        self.unet = UNet2DConditionModel.from_pretrained(write(pathlib.Path(scratch), "unet"))
        self.side = int(side)

    def run(self, times: int, batch: int) -> list[float]:
        """Seconds of each pass of `batch` rows."""
        config = self.unet.config
        text = torch.randn(batch, TOKENS, config.cross_attention_dim)
        pooled = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim
        added = {
            "text_embeds": torch.randn(batch, pooled),
            "time_ids": torch.full((batch, 6), 512.0),
        }
        latents = torch.randn(batch, 4, self.side, self.side)
        step = lambda: self.unet(latents, 500, text, added_cond_kwargs=added)  # noqa: E731
        return [timed(step) for _ in range(times)]


class Vae:
    """One decode by the random VAE."""

    def __init__(self, scratch: str, side: str) -> None:
        from diffusers import AutoencoderKL
        from models import write

        self.vae = AutoencoderKL.from_pretrained(write(pathlib.Path(scratch), "vae"))
        self.side = int(side) // 8

    def run(self, times: int, batch: int) -> list[float]:
        """Seconds of each decode."""
        latents = torch.randn(batch, 4, self.side, self.side)
        return [timed(lambda: self.vae.decode(latents)) for _ in range(times)]


def convolutions() -> Iterator[tuple[str, Callable[[], object]]]:
    """3×3 convolutions with their bias, as `nn.Conv2d` calls them."""
    shapes = [(4, 64, 64), (64, 64, 64), (128, 128, 32), (256, 256, 16), (320, 320, 64)]
    shapes += [(512, 512, 64), (128, 128, 256), (128, 3, 256)]
    cases = [("conv", *shape) for shape in shapes]
    cases += [("conv_down", 128, 128, 64), ("conv_up", 128, 128, 32)]
    for name, inputs, outputs, side in cases:
        weight = torch.randn(outputs, inputs, 3, 3) / (3 * inputs**0.5)
        x, bias = torch.randn(1, inputs, side, side), torch.randn(outputs)
        stride = 2 if name == "conv_down" else 1

        def run(x=x, weight=weight, bias=bias, stride=stride, up=name == "conv_up"):  # noqa: ANN001, ANN202
            if up:
                x = F.interpolate(x, scale_factor=2.0, mode="nearest")
            return F.conv2d(x, weight, bias, stride=stride, padding=1)

        yield f"{name} {side}x{side} {inputs}>{outputs}", run


def norms() -> Iterator[tuple[str, Callable[[], object]]]:
    """Normalisations."""
    for channels, side in [(64, 64), (320, 64), (128, 256)]:
        x, one, zero = torch.randn(1, channels, side, side), torch.ones(channels), torch.zeros(channels)
        size = f"{side}x{side}x{channels}"
        norm = lambda x=x, one=one, zero=zero: F.group_norm(x, 32, one, zero, 1e-5)  # noqa: E731
        yield f"group_norm {size}", norm
        yield f"group_norm_silu {size}", lambda norm=norm: F.silu(norm())
    x, one, zero = torch.randn(1, 4096, 320), torch.ones(320), torch.zeros(320)
    yield "layer_norm 4096x320", lambda: F.layer_norm(x, (320,), one, zero, 1e-5)


def rest() -> Iterator[tuple[str, Callable[[], object]]]:
    """Activations, attention and linear layers."""
    x = torch.randn(1 << 20)
    yield "silu 1048576", lambda: F.silu(x)
    yield "gelu 1048576", lambda: F.gelu(x)
    wide = torch.randn(1, 1024, 2560)

    def geglu() -> torch.Tensor:
        value, gate = wide.chunk(2, dim=-1)
        return value * F.gelu(gate)

    yield "geglu 1024x2560", geglu
    for tokens, heads, depth in [(256, 10, 64), (4096, 1, 64), (4096, 1, 512)]:
        # As diffusers has them: heads are cut from the channels of linear layers' results.
        q, k, v = (
            torch.randn(1, tokens, heads * depth).view(1, tokens, heads, depth).transpose(1, 2)
            for _ in range(3)
        )
        name = f"attention {tokens} {heads}x{depth}"
        yield name, lambda q=q, k=k, v=v: F.scaled_dot_product_attention(q, k, v)
    q = torch.randn(1, 4096, 320).view(1, 4096, 5, 64).transpose(1, 2)
    k = torch.randn(1, TOKENS, 320).view(1, TOKENS, 5, 64).transpose(1, 2)
    yield "attention_text 4096 5x64", lambda: F.scaled_dot_product_attention(q, k, k)
    for rows, inputs, outputs in [(2, 1280, 1280), (77, 2048, 1280), (1024, 640, 640), (4096, 320, 2560)]:
        y, weight, bias = torch.randn(1, rows, inputs), torch.randn(outputs, inputs), torch.randn(outputs)
        name = f"linear {rows}x{inputs}>{outputs}"
        yield name, lambda y=y, weight=weight, bias=bias: F.linear(y, weight, bias)


class Ops:
    """The operations of a step and a decode, one by one."""

    def __init__(self) -> None:
        self.cases = [*convolutions(), *norms(), *rest()]

    def run(self, times: int, batch: int) -> dict[str, float]:  # noqa: ARG002
        """The fastest seconds of each."""
        best = {}
        for name, work in self.cases:
            began, seconds = time.perf_counter(), []
            while len(seconds) < OP_TIMES or time.perf_counter() - began < OP_TIME:
                seconds.append(timed(work))
            best[name] = min(seconds)
        return best


def peak_memory() -> int:
    """The most that this process has had resident, in MiB."""
    found = re.search(r"VmHWM:\s+(\d+)", pathlib.Path("/proc/self/status").read_text())
    return int(found[1]) // 1024 if found else 0


def main() -> None:
    """Serves commands until there are none."""
    subjects = {"picture": Picture, "jobs": Jobs, "unet": Unet, "vae": Vae, "ops": Ops}
    subject = subjects[sys.argv[1]](*sys.argv[2:])
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        torch.set_num_threads(asked["threads"])
        seconds = subject.run(asked["times"], asked["batch"])
        print(json.dumps({"seconds": seconds, "peak": peak_memory()}), flush=True)


if __name__ == "__main__":
    main()
