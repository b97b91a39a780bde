"""Our engine and diffusers, taking turns: 20 steps, guidance on, 128×128, the demo model. See bench-engine.sh."""

import os
import pathlib
import re
import resource
import statistics
import subprocess
import sys
import time

PROMPT = "a 3d cat on a blue background"
MODEL = pathlib.Path(__file__).parent.parent / "assets/models/inkstone-demo"
STEPS, GUIDANCE, PICTURES = 20, 2.0, 3


def peak_memory(process: int) -> int:
    """The most that a running process has had resident, in MiB."""
    status = pathlib.Path(f"/proc/{process}/status").read_text()
    found = re.search(r"VmHWM:\s+(\d+)", status)
    return int(found[1]) // 1024 if found else 0


def ours(draw: str, threads: int) -> tuple[list[float], float, int]:
    """Seconds a picture, seconds from the start of the process to its first picture, and its memory in MiB by then."""
    began = time.perf_counter()
    process = subprocess.Popen(
        [draw, str(MODEL), PROMPT, "/dev/null", str(STEPS), str(GUIDANCE), "1", str(PICTURES)],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"RAYON_NUM_THREADS": str(threads)},
    )
    seconds, first, memory = [], 0.0, 0
    for line in process.stdout:
        if found := re.search(r"all (\d+) ms", line):
            if not first:
                first = time.perf_counter() - began
                memory = peak_memory(process.pid)
            seconds.append(int(found[1]) / 1000)
    if process.wait() != 0:
        sys.exit("our engine failed")
    return seconds, first, memory


def main() -> None:
    draw, rounds = sys.argv[1], int(sys.argv[2])
    began = time.perf_counter()
    import torch
    from diffusers import StableDiffusionXLPipeline

    pipeline = StableDiffusionXLPipeline.from_pretrained(MODEL, torch_dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    imports = time.perf_counter() - began

    def theirs(threads: int) -> list[float]:
        torch.set_num_threads(threads)
        seconds = []
        for _ in range(PICTURES):
            began = time.perf_counter()
            generator = torch.Generator("cpu").manual_seed(1)
            pipeline(
                PROMPT,
                width=128,
                height=128,
                num_inference_steps=STEPS,
                guidance_scale=GUIDANCE,
                generator=generator,
            )
            seconds.append(time.perf_counter() - began)
        return seconds

    print(f"{STEPS} steps, guidance {GUIDANCE}, 128×128; medians of {rounds} × {PICTURES} pictures, in turns")
    print(f"{'threads':>7} {'ours':>8} {'diffusers':>10} {'ratio':>6}")
    theirs(1)
    firsts, peak = [], 0
    for threads in (1, 2):
        own, other = [], []
        for _ in range(rounds):
            seconds, first, memory = ours(draw, threads)
            peak = max(peak, memory)
            own += seconds
            firsts.append(first)
            other += theirs(threads)
        mine, peer = statistics.median(own), statistics.median(other)
        print(f"{threads:>7} {mine:>7.2f}s {peer:>9.2f}s {mine / peer:>6.2f}")
    peer_peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    print(f"peak memory: ours {peak} MiB, diffusers {peer_peak} MiB")
    print(f"process start to first picture: ours {statistics.median(firsts):.2f} s; diffusers' imports and load {imports:.1f} s")


if __name__ == "__main__":
    main()
