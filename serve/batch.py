"""The rows of one step as the network's batch: what can be stacked is asked for in one pass.

The batch has the conditional pass of every row and the unconditional one of those that are guided. What stays the same
while the same rows step together is made once, and anew when a row joins or leaves.

Suffixes: B rows, F rows of the network's batch, G guided rows, C channels, H and W cells.

Kind: actor.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sote.serve import sampling, schedules
from sote.serve.rows import Row, Stage


@dataclass(frozen=True, eq=False)
class Pass:
    """What is asked of the network at once: conditions, and for each its row and that row's place in the batch."""

    rows: tuple[Row, ...]
    index_F: Tensor
    given: Any


class Batch:
    """Rows of one shape that step together, with at most `most` in one pass (None: any number).

    `trying` are the rows of the pass that is being made: whose it is if the device has no room for it.
    """

    def __init__(self, rows: Sequence[Row], stage: Stage, *, most: int | None) -> None:
        plans = [row.plan for row in rows]
        guided = [place for place, row in enumerate(rows) if row.unconditional is not None]
        self.rows = tuple(rows)
        self.trying: tuple[Row, ...] = ()
        self.stage = stage
        self.passes, self.order_F = self._planned(guided, most)
        self.guided_G = self._put(guided, torch.int64)
        self.scale_G = self._put([plans[place].guidance for place in guided])
        self.rescale_G = self._put([plans[place].rescale for place in guided])
        self.eta_B = self._put([plan.eta for plan in plans])
        self.is_multistep_B = self._put([plan.is_multistep for plan in plans], torch.bool)
        self.zeros_CHW = torch.zeros_like(rows[0].x)

    def step(self) -> tuple[Tensor, Tensor]:
        """x and x0 [B, C, H, W] after one step of each row. The rows are as before, but for `noise` that was drawn."""
        levels = torch.tensor([_levels(row) for row in self.rows], dtype=torch.float32).T.contiguous()
        sigma_B, next_B, before_B, r_B = put(levels, self.stage.device)
        x_BCHW = torch.stack([row.x for row in self.rows])
        eps_BCHW = self._guided(self._eps(x_BCHW, r_B))
        return sampling.step(
            x_BCHW,
            eps_BCHW,
            sigma_B=sigma_B,
            next_B=next_B,
            before_B=before_B,
            x0_before_BCHW=torch.stack([self.zeros_CHW if row.x0 is None else row.x0 for row in self.rows]),
            eta_B=self.eta_B,
            is_multistep_B=self.is_multistep_B,
            noise_BCHW=self._noise(),
        )

    def _planned(self, guided: list[int], most: int | None) -> tuple[list[Pass], Tensor | None]:
        """The passes, and the way from their order to that of `_eps`; None where it is the same."""
        places = [*range(len(self.rows)), *guided]
        given = [*(row.conditional for row in self.rows), *(self.rows[place].unconditional for place in guided)]
        parts = list(_parts([each.tokens for each in given], most))
        passes = [
            Pass(
                rows=tuple(self.rows[places[number]] for number in part),
                index_F=self._put([places[number] for number in part], torch.int64),
                given=self.stage.joined([given[number] for number in part]),
            )
            for part in parts
        ]
        flat = [number for part in parts for number in part]
        if flat == sorted(flat):
            return passes, None
        return passes, put(torch.tensor(flat).argsort(), self.stage.device)

    def _eps(self, x_BCHW: Tensor, r_B: Tensor) -> Tensor:
        """eps [F, C, H, W]: the conditional pass of all rows, then the unconditional one of the guided."""
        found = []
        for each in self.passes:
            self.trying = each.rows
            x_FCHW, r_F = x_BCHW.index_select(0, each.index_F), r_B.index_select(0, each.index_F)
            found.append(self.stage.predict(x_FCHW, r_F=r_F, given=each.given))
        self.trying = ()
        eps_FCHW = torch.cat(found) if len(found) > 1 else found[0]
        return eps_FCHW if self.order_F is None else eps_FCHW.index_select(0, self.order_F)

    def _guided(self, eps_FCHW: Tensor) -> Tensor:
        if not len(self.guided_G):
            return eps_FCHW
        eps_BCHW, unconditional_GCHW = torch.tensor_split(eps_FCHW, [len(self.rows)])
        guided_GCHW = sampling.guided(
            eps_BCHW.index_select(0, self.guided_G),
            unconditional_GCHW,
            scale_B=self.scale_G,
            rescale_B=self.rescale_G,
        )
        return eps_BCHW.index_copy(0, self.guided_G, guided_GCHW)

    def _noise(self) -> Tensor:
        """Noise of this step, zeros for rows that draw none. Asked for when the passes are sent: a device is at work
        on them while the host draws."""
        for row in self.rows:
            if row.noise is None and sampling.draws(row.plan, row.step):
                row.noise = row.stream.draw()
        drawn = [row.noise for row in self.rows]
        if all(noise is None for noise in drawn):
            return self.zeros_CHW.expand(len(drawn), *self.zeros_CHW.shape)
        nothing = torch.zeros(self.zeros_CHW.shape)
        return put(torch.stack([nothing if noise is None else noise for noise in drawn]), self.stage.device)

    def _put(self, values: list[Any], dtype: torch.dtype = torch.float32) -> Tensor:
        return put(torch.tensor(values, dtype=dtype), self.stage.device)


def put(tensor: Tensor, device: torch.device) -> Tensor:
    """From the host to the device, on CUDA without waiting for it."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def fetch(tensor: Tensor) -> Tensor:
    """From the device to the host, on CUDA without waiting: it is there when what was sent so far is done."""
    return tensor.to("cpu", non_blocking=tensor.device.type == "cuda")


def _levels(row: Row) -> tuple[float, float, float, float]:
    """sigma, the next, that of the step before (0: none), and the time that the network is told."""
    sigmas, step = row.plan.sigmas, row.step
    return sigmas[step], sigmas[step + 1], sigmas[step - 1] if step else 0.0, schedules.r_at(sigmas[step])


def _parts(tokens: list[int], most: int | None) -> Iterator[list[int]]:
    """The numbers of what has as many tokens, in parts of at most `most`."""
    alike: dict[int, list[int]] = {}
    for number, count in enumerate(tokens):
        alike.setdefault(count, []).append(number)
    for numbers in alike.values():
        size = most or len(numbers)
        yield from (numbers[start : start + size] for start in range(0, len(numbers), size))
