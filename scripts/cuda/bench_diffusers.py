"""diffusers on the same model and GPU as examples/bench_cuda.rs, in the same rows. See bench.sh."""

import pathlib
import sys
import time

import torch
from diffusers import StableDiffusionXLPipeline

PROMPT = "a 3d panda on a yellow background"
GUIDANCE = 5.0
TYPES = {"f16": torch.float16, "bf16": torch.bfloat16}


def load(folder: str, device: str, dtype: str) -> StableDiffusionXLPipeline:
    half = any(pathlib.Path(folder, "unet").glob("*.fp16.*"))
    pipeline = StableDiffusionXLPipeline.from_pretrained(
        folder, torch_dtype=TYPES[dtype], variant="fp16" if half else None
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline.to(device)


def row(pipeline: StableDiffusionXLPipeline, dtype: str, side: int, steps: int, batch: int) -> str:
    """Seconds of a batch from prompts to pixels, as a row of the table."""
    marks = []

    def mark(_pipeline, _step, _timestep, tensors):
        torch.cuda.synchronize()
        marks.append(time.perf_counter())
        return tensors

    def draw(count: int) -> None:
        generators = [torch.Generator("cpu").manual_seed(seed) for seed in range(1, batch + 1)]
        pipeline(
            [PROMPT] * batch,
            width=side,
            height=side,
            num_inference_steps=count,
            guidance_scale=GUIDANCE,
            generator=generators,
            callback_on_step_end=mark,
        )
        torch.cuda.synchronize()

    draw(2)
    marks.clear()
    torch.cuda.reset_peak_memory_stats()
    began = time.perf_counter()
    draw(steps)
    ended = time.perf_counter()
    step = (marks[-1] - marks[0]) / (len(marks) - 1)
    peak = torch.cuda.max_memory_allocated() / 2**30
    everything = ended - began
    return (
        f"| diffusers | {dtype.upper()} | {batch} | {everything / batch:.2f} | {step * 1e3:.1f} | {ended - marks[-1]:.2f} "
        f"| {batch / everything:.2f} | {peak:.1f} |"
    )


def main() -> None:
    folder, device, dtype, side, steps, batches = sys.argv[1:]
    pipeline = load(folder, device, dtype)
    for batch in map(int, batches.split(",")):
        try:
            print(row(pipeline, dtype, int(side), int(steps), batch), flush=True)
        except torch.cuda.OutOfMemoryError:
            print(f"| diffusers | {dtype.upper()} | {batch} | out of memory | | | | |")
            break


if __name__ == "__main__":
    main()
