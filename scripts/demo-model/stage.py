"""A training stage with a budget of time: clock, progress bar, learning rate, checkpoints."""

from __future__ import annotations

import math
import time
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm import tqdm

from optim import MuonAdamW, WeightAverage

CHECKPOINT_EVERY_S = 120.0
REPORT_EVERY_S = 5.0


class DivergedError(Exception):
    """The loss became infinite or not a number; the last checkpoint is still good."""


class Stage:
    """Counts time across runs: what an earlier run saved counts as spent."""

    def __init__(
        self,
        title: str,
        checkpoint: Path,
        budget_s: float,
        network: nn.Module,
        optimizer: MuonAdamW,
        average: WeightAverage,
    ) -> None:
        """Load `checkpoint` if there is one, into the network, its optimizer and average."""
        self.step = 0
        self._spent_s = 0.0
        self._budget_s = budget_s
        self._checkpoint = checkpoint
        self._network, self._optimizer, self._average = network, optimizer, average
        if checkpoint.exists():
            self._load()
        self._started = self._reported = self._saved = time.monotonic()
        self._bar = tqdm(
            total=round(budget_s),
            initial=min(round(self._spent_s), round(budget_s)),
            desc=title,
            bar_format="{desc} {percentage:3.0f}%|{bar}| {n:.0f}/{total:.0f} s{postfix}",
            mininterval=1.0,
        )

    @property
    def seconds(self) -> float:
        """Training time spent so far, in this run and earlier ones."""
        return self._spent_s + time.monotonic() - self._started

    @property
    def done(self) -> float:
        """The part of the budget that is spent, 0..1."""
        return min(1.0, self.seconds / self._budget_s)

    def rate(self, flat: float, warm_up: int) -> float:
        """Factor for the learning rate: linear warm-up, flat until `flat`, then down to 2 %."""
        warm = min(1.0, (self.step + 1) / warm_up)
        if self.done <= flat:
            return warm
        return warm * (0.02 + 0.98 * (1 - self.done) / (1 - flat))

    def advance(self, loss: Tensor, detail: str = "") -> None:
        """Count a finished step; now and then report it and write a checkpoint.

        Raises DivergedError when the loss that is reported is not finite.
        """
        self.step += 1
        now = time.monotonic()
        if now - self._reported >= REPORT_EVERY_S or self.done >= 1:
            self._report(loss.item(), detail)
            self._reported = now
        if now - self._saved >= CHECKPOINT_EVERY_S:
            self.save()
            self._saved = now

    def _report(self, loss: float, detail: str) -> None:
        if not math.isfinite(loss):
            raise DivergedError(f"{self._bar.desc}: loss {loss} at step {self.step}")
        left = max(0.0, self._budget_s - self.seconds)
        eta = f"{int(left // 60)}:{int(left % 60):02d}"
        self._bar.set_postfix_str(f"step {self.step}, loss {loss:.4f}{detail}, ETA {eta}", False)
        self._bar.n = min(round(self.seconds), self._bar.total)
        self._bar.refresh()

    def save(self) -> None:
        """Write a checkpoint, complete or not at all."""
        state = {
            "step": self.step,
            "seconds": self.seconds,
            "network": self._network.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "average": self._average.weights,
        }
        partial = self._checkpoint.with_suffix(".partial")
        torch.save(state, partial)
        partial.replace(self._checkpoint)

    def __enter__(self) -> Stage:
        """Use as a context: leaving it saves, at the end and on Ctrl-C, and ends the bar."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, traceback: object) -> None:
        """Save, unless something went wrong: then the last checkpoint is the better one."""
        self._bar.close()
        if kind is None or issubclass(kind, KeyboardInterrupt):
            self.save()

    def _load(self) -> None:
        device = next(self._network.parameters()).device
        state = torch.load(self._checkpoint, map_location=device, weights_only=True)
        self.step, self._spent_s = state["step"], state["seconds"]
        self._network.load_state_dict(state["network"])
        self._optimizer.load_state_dict(state["optimizer"])
        for mine, saved in zip(self._average.weights, state["average"], strict=True):
            mine.copy_(saved)
