"""Our engine and diffusers on torch, taking turns on the same weights and threads. See scripts/bench-engine.sh."""

import json
import os
import pathlib
import statistics
import subprocess
import sys
import time

from report import Report, progress

HERE = pathlib.Path(__file__).parent
ROOT = HERE.parent.parent
MODEL = ROOT / "assets/models/inkstone-demo"
SCRATCH = ROOT / ".tools/scratch/bench"
STEPS, GUIDANCE = "20", "2.0"
UNET_SIDE, PICTURE_SIDE = "64", "512"
MIB, SECONDS = "MiB", "s"


class Ours:
    """Our side: a process a turn."""

    def __init__(self, program: str) -> None:
        self.program = program
        self.peak = 0

    def lines(self, threads: int, *arguments: object) -> tuple[list[list[str]], float]:
        """What it prints, in words, and the seconds from its start to its first line."""
        began, first, lines = time.perf_counter(), 0.0, []
        process = subprocess.Popen(
            [self.program, *map(str, arguments)],
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"RAYON_NUM_THREADS": str(threads)},
        )
        for line in process.stdout:
            first = first or time.perf_counter() - began
            lines.append(line.split(maxsplit=2))
        if process.wait() != 0:
            sys.exit(f"our engine failed: {' '.join(map(str, arguments))}")
        self.peak = next((int(words[1]) for words in lines if words[0] == "peak"), 0)
        return lines, first

    def seconds(self, threads: int, *arguments: object) -> list[float]:
        """The seconds that it prints."""
        lines, _ = self.lines(threads, *arguments)
        return [float(words[1]) for words in lines if words[0] == "seconds"]


class Theirs:
    """Their side: a process a subject, kept, so that imports and loading are not counted."""

    def __init__(self, *arguments: object) -> None:
        began = time.perf_counter()
        self.process = subprocess.Popen(
            [sys.executable, HERE / "peer.py", *map(str, arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL if not os.environ.get("BENCH_STDERR") else None,
            text=True,
        )
        self.peak = 0
        self.answer()
        self.start = time.perf_counter() - began

    def answer(self) -> dict:
        """The next line that is an answer."""
        for line in self.process.stdout:
            if line.startswith("{"):
                return json.loads(line)
        sys.exit("diffusers' side failed; BENCH_STDERR=1 shows why")

    def seconds(self, threads: int, times: int = 1, batch: int = 1) -> list[float] | dict[str, float]:
        """Does it `times` times."""
        asked = {"threads": threads, "times": times, "batch": batch}
        self.process.stdin.write(json.dumps(asked) + "\n")
        self.process.stdin.flush()
        answer = self.answer()
        self.peak = answer["peak"]
        return answer["seconds"]

    def end(self) -> None:
        """Ends the process."""
        self.process.stdin.close()
        self.process.wait()


def picture(ours: Ours, report: Report, rounds: int) -> None:
    """The demo model end to end."""
    report.head(f"demo model, {STEPS} steps, guidance {GUIDANCE}, 128×128", SECONDS)
    theirs = Theirs("picture", MODEL, STEPS, GUIDANCE)
    theirs.seconds(2)
    cases = [(1, 1, 3, 0.55 / 0.70), (2, 1, 3, 0.40 / 0.51), (2, 4, 1, 0.22 / 0.29)]
    for threads, batch, times, bar in cases:
        mine, peers, firsts, peak = [], [], [], 0
        for turn in range(rounds):
            progress(f"picture: {threads} threads, {batch} a batch, round {turn + 1} of {rounds}")
            lines, first = ours.lines(threads, "picture", MODEL, STEPS, GUIDANCE, batch, times)
            mine += [float(words[1]) / batch for words in lines if words[0] == "seconds"]
            firsts.append(first)
            if batch == 1:
                peak = max(peak, ours.peak)
            peers += [seconds / batch for seconds in theirs.seconds(threads, times, batch)]
        name = f"picture, {threads} thread{'s' * (threads > 1)}"
        report.row(name + (f", each of {batch}" if batch > 1 else ""), mine, peers, bar)
        if (threads, batch) == (2, 1):
            report.own("memory of it", peak, theirs.peak, 150, MIB)
            report.own("process start to first picture", statistics.median(firsts), theirs.start, 1.0, SECONDS)
    theirs.end()


def unet(ours: Ours, report: Report, rounds: int) -> None:
    """A step of the random UNet."""
    report.head("random SDXL UNet of 35M parameters (64/128/256, transformer layers 0/1/2), latents 64×64", SECONDS)
    theirs = Theirs("unet", SCRATCH, UNET_SIDE)
    for rows in (1, 2):
        for threads in (1, 2):
            mine, peers = [], []
            theirs.seconds(threads, 1, rows)
            for turn in range(rounds):
                progress(f"unet: {rows} rows, {threads} threads, round {turn + 1} of {rounds}")
                # The first of each turn warms caches.
                mine += ours.seconds(threads, "unet", SCRATCH / "unet", rows, UNET_SIDE, 5)[1:]
                peers += theirs.seconds(threads, 5, rows)[1:]
            report.row(f"step of {rows} row{'s' * (rows > 1)}, {threads} thread{'s' * (threads > 1)}", mine, peers, 1.0)
    report.own("memory of it", ours.peak, theirs.peak, theirs.peak, MIB)
    theirs.end()


def vae(ours: Ours, report: Report, rounds: int) -> None:
    """A decode by the random VAE."""
    report.head(f"random VAE of SDXL's shape (128/256/512/512) to {PICTURE_SIDE}²", SECONDS)
    theirs = Theirs("vae", SCRATCH, PICTURE_SIDE)
    for threads in (1, 2):
        mine, peers = [], []
        for turn in range(max(1, rounds // 2)):
            progress(f"vae: {threads} threads, round {turn + 1} of {max(1, rounds // 2)}")
            mine += ours.seconds(threads, "vae", SCRATCH / "vae", PICTURE_SIDE, 1)
            peers += theirs.seconds(threads)
        report.row(f"decode, {threads} thread{'s' * (threads > 1)}", mine, peers, 1.2)
    report.own("memory of it", ours.peak, theirs.peak, theirs.peak, MIB)
    theirs.end()


def ops(ours: Ours, report: Report, rounds: int) -> None:
    """Each operation at one thread."""
    report.head("operations, 1 thread; the fastest time of each turn", SECONDS)
    theirs = Theirs("ops")
    mine, peers = {}, {}
    for turn in range(max(1, rounds // 2)):
        progress(f"ops: round {turn + 1} of {max(1, rounds // 2)}")
        for words in ours.lines(1, "ops")[0]:
            if words[0] == "op":
                mine.setdefault(words[2].strip(), []).append(float(words[1]))
        for name, seconds in theirs.seconds(1).items():
            peers.setdefault(name, []).append(seconds)
    for name, seconds in mine.items():
        report.row(name, seconds, peers[name], None)
    theirs.end()


def jobs(ours: Ours, report: Report, rounds: int) -> None:
    """How many jobs a step takes, against how long it takes."""
    report.head("jobs a step (demo model, 2 rows each, 2 threads): seconds a step", SECONDS)
    theirs = Theirs("jobs", MODEL, STEPS, GUIDANCE)
    theirs.seconds(2)
    for count in (1, 2, 4, 8):
        mine, peers = [], []
        for turn in range(max(1, rounds // 2)):
            progress(f"jobs: {count}, round {turn + 1} of {max(1, rounds // 2)}")
            mine += ours.seconds(2, "jobs", MODEL, STEPS, GUIDANCE, count)[1:]
            peers += theirs.seconds(2, batch=count)
        rates = [f"{count / statistics.median(seconds):.0f}" for seconds in (mine, peers)]
        report.row(f"{count} jobs: {rates[0]} job steps/s, diffusers {rates[1]}", mine, peers, None)
    theirs.end()


PARTS = {"picture": picture, "unet": unet, "vae": vae, "jobs": jobs, "ops": ops}


def main() -> None:
    """Runs the parts that were named, or all."""
    program, rounds, *named = sys.argv[1:]
    if unknown := set(named) - set(PARTS):
        sys.exit(f"no part is called {', '.join(unknown)}; there are {', '.join(PARTS)}")
    SCRATCH.mkdir(parents=True, exist_ok=True)
    report = Report()
    for name in named or PARTS:
        PARTS[name](Ours(program), report, int(rounds))
    report.close()


if __name__ == "__main__":
    main()
