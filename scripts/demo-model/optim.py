"""Muon with AdamW beside it, and an exponential moving average of weights."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

ADAM_RATE = 1.5e-3
MOMENTUM = 0.95
NEWTON_SCHULZ_STEPS = 4


def orthogonalised(matrices: Tensor) -> Tensor:
    """Push the singular values of each matrix in [N, R, C] towards 1.

    Newton-Schulz iteration with the quintic coefficients of Keller Jordan's Muon (2024).
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    x = (matrices / (matrices.norm(dim=(1, 2), keepdim=True) + 1e-7)).bfloat16()
    tall = x.shape[1] > x.shape[2]
    if tall:
        x = x.mT
    for _ in range(NEWTON_SCHULZ_STEPS):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return (x.mT if tall else x).float()


class MuonAdamW:
    """Muon for the hidden weight matrices, AdamW for vectors, embeddings, first and last layers."""

    def __init__(
        self, named: Iterable[tuple[str, nn.Parameter]], rate: float, adam_names: tuple[str, ...]
    ) -> None:
        """`rate`: Muon's learning rate; a name with one of `adam_names` in it goes to AdamW."""
        self._rate = rate
        self._by_shape: dict[tuple[int, int], list[nn.Parameter]] = {}
        rest: list[nn.Parameter] = []
        for name, weight in named:
            rows = weight.shape[0]
            columns = weight.numel() // rows
            if (
                weight.ndim >= 2
                and min(rows, columns) >= 8
                and not any(part in name for part in adam_names)
            ):
                self._by_shape.setdefault((rows, columns), []).append(weight)
            else:
                rest.append(weight)
        # Matrices of one shape are orthogonalised together: few large kernels, not many small.
        self._momentum = {
            shape: weights[0].new_zeros(len(weights), *shape)
            for shape, weights in self._by_shape.items()
        }
        self._adam = torch.optim.AdamW(rest, lr=ADAM_RATE, betas=(0.9, 0.99), weight_decay=0)

    @torch.no_grad()
    def step(self, factor: float) -> None:
        """Update the weights from their gradients, both learning rates multiplied by `factor`."""
        for group in self._adam.param_groups:
            group["lr"] = ADAM_RATE * factor
        self._adam.step()
        for shape, weights in self._by_shape.items():
            rows, columns = shape
            gradient = torch.stack(
                [
                    torch.zeros_like(w).view(shape) if w.grad is None else w.grad.view(shape)
                    for w in weights
                ]
            )
            momentum = self._momentum[shape]
            momentum.lerp_(gradient, 1 - MOMENTUM)
            update = orthogonalised(gradient.lerp(momentum, MOMENTUM))
            length = -self._rate * factor * max(1.0, rows / columns) ** 0.5
            for weight, change in zip(weights, update, strict=True):
                weight.add_(change.view_as(weight), alpha=length)

    def state_dict(self) -> dict:
        """All that `load_state_dict` needs to go on."""
        return {"adam": self._adam.state_dict(), "momentum": list(self._momentum.values())}

    def load_state_dict(self, state: dict) -> None:
        """Go on from a saved state of the same network."""
        self._adam.load_state_dict(state["adam"])
        for mine, saved in zip(self._momentum.values(), state["momentum"], strict=True):
            mine.copy_(saved)


class WeightAverage:
    """Exponential moving average of a network's weights; its memory grows with the steps."""

    def __init__(self, network: nn.Module, decay: float) -> None:
        """`decay`: the part of the old average that a step keeps, once warmed up."""
        self._live = [weight.detach() for weight in network.parameters()]
        self._decay = decay
        self.weights = [weight.clone() for weight in self._live]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after step number `step`."""
        decay = min(self._decay, 1 - 1 / (0.1 * step + 1))
        torch._foreach_lerp_(self.weights, self._live, 1 - decay)

    @torch.no_grad()
    def copy_to(self, network: nn.Module) -> None:
        """Overwrite a network's weights with the average."""
        for weight, average in zip(network.parameters(), self.weights, strict=True):
            weight.copy_(average)
