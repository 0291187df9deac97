"""What is measured of training: the losses by time, how fast it goes, and how much of the machine that uses.

Model FLOP utilisation is the model's operations (what is computed twice to save memory counts once) against what a
matrix product reaches on the same device in the same arithmetic, measured when training starts.

Shapes: N images of a step.

Kind: actor.
"""

import resource
import time
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

from sote.train import arithmetic
from sote.train.arithmetic import Cells

QUARTERS = 4  # of the time from 0 (clean) to 1 (noise): the bands that the loss is reported in

# Sides of the matrices of the ceiling, and how long it is measured: large enough for full speed, over in half a second
SIDES = {"cuda": 8192, "cpu": 768}
CEILING_SECONDS = 0.4
WARM_UPS = 2


@dataclass(frozen=True)
class Outcome:
    """What a step gave, over all workers. `skipped` says why it was not made, `suspects` the rows that may be why.

    `wish` is the strongest of the workers' wishes; see loop.py.
    """

    loss: float
    plain_N: Tensor
    time_N: Tensor
    norm: float | None
    skipped: str | None
    suspects: list[str]
    wish: str | None


@dataclass(frozen=True)
class Cost:
    """Operations of training on one image: of a UNet, and of the text encoder before it."""

    unet: dict[str, Any]
    text: dict[str, Any] | None
    tokens: int
    trains_text: bool
    has_adapters: bool

    def flop(self, cells: Cells) -> float:
        """For an image whose latents have this height and width."""
        whole = arithmetic.training_flop(
            self.unet, cells=cells, tokens=self.tokens, text=self.text, trains_text=self.trains_text
        )
        # beside adapters the UNet's own weights have no gradient: the backward pass is one more forward pass, not two
        spared = arithmetic.forward_flop(self.unet, cells=cells, tokens=self.tokens) if self.has_adapters else 0
        return whole - spared


@cache
def ceiling(device: torch.device, precision: str) -> float:
    """TFLOP/s of matrix products of this precision ("bfloat16", "float32") on the device. Measured once."""
    side = SIDES.get(device.type, SIDES["cpu"])
    one = torch.ones(side, side, device=device, dtype=getattr(torch, precision))
    for _ in range(WARM_UPS):
        torch.mm(one, one)
    _wait(device)
    began, done = time.monotonic(), 0
    while (seconds := time.monotonic() - began) < CEILING_SECONDS or not done:
        torch.mm(one, one)
        _wait(device)
        done += 1
    return 2 * side**3 * done / seconds / 1e12


def name_of(device: torch.device) -> str:
    """The device in words: the GPU's name, or "cpu"."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def memory_gb(device: torch.device) -> float:
    """The most that this process has held: of the device's memory, or of the machine's on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9  # Linux counts in KiB


def by_time(losses_N: Tensor, time_N: Tensor) -> dict[str, float | None]:
    """The mean loss of each quarter of the time; None where no image fell into it."""
    quarter_N = (time_N * QUARTERS).long().clamp(0, QUARTERS - 1)
    found: dict[str, float | None] = {}
    for quarter in range(QUARTERS):
        chosen = losses_N[quarter_N == quarter]
        found[f"loss_time_{quarter}"] = finite(float(chosen.mean())) if len(chosen) else None
    return found


def finite(value: float) -> float | None:
    """The number, or None where JSON has no word for it."""
    return value if abs(value) < float("inf") else None


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
