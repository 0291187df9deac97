"""A picture that is being sampled, the request that it belongs to, and what a model must do to step it.

Suffixes: F rows of the network's batch, C channels, H and W cells.

Kind: actor.
"""

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from sote.serve.noise import Stream
from sote.serve.sampling import Plan
from sote.serve.settings import StageName, Work


class Stage(Protocol):
    """A model that finds the noise. What a row is conditioned on is the model's own matter, but for its `tokens`: rows
    whose conditions have as many can be joined."""

    name: StageName
    device: torch.device

    def joined(self, given: Sequence[Any]) -> Any:
        """The conditions of several rows as those of one batch."""
        ...

    def predict(self, x_FCHW: Tensor, *, r_F: Tensor, given: Any) -> Tensor:
        """eps [F, C, H, W], float32."""
        ...

    def look(self, x0_CHW: Tensor) -> Tensor:
        """What a preview is made of, from the picture as it stands: small."""
        ...


@dataclass(eq=False)
class Row:
    """One picture. `x` [C, H, W] is float32 and where the device is; `pixels` are those of the picture that comes."""

    x: Tensor
    plan: Plan
    stream: Stream
    conditional: Any
    unconditional: Any | None  # None: not guided
    pixels: int
    request: "Request" = field(init=False)
    step: int = 0  # steps that were sent to the device
    x0: Tensor | None = None  # found by the step before
    noise: Tensor | None = None  # drawn for a step that is to be tried again
    end: Tensor | None = None  # x after the last step, on the host

    @property
    def is_last(self) -> bool:
        """Whether the step to come is the last."""
        return self.step + 1 == self.plan.steps


@dataclass(frozen=True, eq=False)
class Seen:
    """`step` of `steps` of a request's first picture are done; `x0` is what a preview is made of, on the host."""

    step: int
    steps: int
    x0: Tensor


@dataclass(eq=False, kw_only=True)
class Request:
    """The pictures of one request, and what became of them. `seen` is called in the thread that steps."""

    rows: list[Row]
    arrived: float  # time.monotonic
    seen: Callable[[Seen], None] | None = None
    seen_last: float = 0.0
    began: float | None = None
    error: Exception | None = None
    is_over: bool = False  # ended, failed or dropped
    occupancy: Counter[int] = field(default_factory=Counter)
    pixel_steps: int = 0
    left: int = field(init=False)  # rows that have not ended

    def __post_init__(self) -> None:
        self.left = len(self.rows)
        for row in self.rows:
            row.request = self

    def rest(self) -> None:
        """It is over: let go of what its rows only needed to step. Conditions are large, on the device too."""
        self.is_over = True
        for row in self.rows:
            row.conditional = row.unconditional = row.x0 = row.noise = None

    def forget(self) -> None:
        """It is answered: row and request hold each other, and would both stay until Python looks for such circles."""
        self.rest()
        self.rows.clear()

    def work(self, stage: StageName) -> Work:
        """What the stage has done for it until now."""
        now = time.monotonic()
        return Work(
            stage=stage,
            seconds=now - self.arrived,
            waited_seconds=(self.began if self.began is not None else now) - self.arrived,
            megapixel_steps=self.pixel_steps / 1e6,
            occupancy=dict(sorted(self.occupancy.items())),
        )
