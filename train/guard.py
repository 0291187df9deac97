"""Keeps steps from doing harm: one whose loss or gradient is not finite, or whose loss jumps, is to be skipped.

A spike is a loss above a multiple of the median of the last good ones; kohya's and Stability's trainers have no such
guard, they go on with whatever comes. All workers see the same numbers and so decide the same.

Kind: pure.
"""

import math
import statistics
from collections import deque
from collections.abc import Iterable, Sequence

from sote.cluster.errors import RunFailed
from sote.train.recipe import GuardPart

LOSS_NOT_FINITE = "loss: not finite"
LOSS_SPIKE = "loss: spike"
GRADIENT_NOT_FINITE = "gradient: not finite"

REMEMBERED = 100  # good losses that the median is over
FEWEST = 20  # good losses before which nothing counts as a spike: the first steps of a run may well jump
MOST_NAMED_ROWS = 8  # ids in a line of the metrics and in an error message


class Guard:
    """`recent` are the last good losses, `bad` the steps skipped in a row: the two that a checkpoint keeps."""

    def __init__(self, part: GuardPart, *, recent: Iterable[float] = (), bad: int = 0) -> None:
        self.part, self.bad = part, bad
        self.recent = deque(recent, maxlen=REMEMBERED)
        self._suspects: list[str] = []

    def of_loss(self, loss: float) -> str | None:
        """Why a step with this loss is to be skipped; None: it is not."""
        if not math.isfinite(loss):
            return LOSS_NOT_FINITE
        if self.part.loss_spike is None or len(self.recent) < FEWEST:
            return None
        return LOSS_SPIKE if loss > self.part.loss_spike * statistics.median(self.recent) else None

    def of_gradient(self, norm: float) -> str | None:
        """Why a step whose gradients have this norm is to be skipped; None: it is not."""
        return None if math.isfinite(norm) else GRADIENT_NOT_FINITE

    def passed(self, loss: float) -> None:
        """The step was made."""
        self.recent.append(loss)
        self.bad = 0
        self._suspects.clear()

    def skipped(self, ids: Sequence[str]) -> None:
        """The step was skipped, most likely because of the rows `ids`."""
        self.bad += 1
        self._suspects += [name for name in ids if name not in self._suspects]

    def check(self, step: int, reason: str | None) -> None:
        """Raises RunFailed naming the rows: this step was skipped for `reason`, and so were too many before it."""
        if reason is None or self.bad < self.part.max_bad_steps:
            return
        named, more = self._suspects[:MOST_NAMED_ROWS], len(self._suspects) - MOST_NAMED_ROWS
        raise RunFailed(
            f"step {step}: {reason}; {self.bad} bad steps in a row (guard.max_bad_steps {self.part.max_bad_steps}), "
            f"rows {', '.join(named)}{f' and {more} more' if more > 0 else ''}; the last checkpoint is good: look at "
            f"these rows, or lower the learning rate"
        )


def suspects(ids: Sequence[str], losses: Sequence[float], *, reason: str) -> list[str]:
    """The rows of a step that most likely made it bad, at most eight: those whose loss is not finite, else those with
    the highest. `losses` has a value for each of `ids`."""
    broken = [name for name, loss in zip(ids, losses, strict=True) if not math.isfinite(loss)]
    if reason != LOSS_SPIKE and broken:
        return broken[:MOST_NAMED_ROWS]
    finite = [place for place, loss in enumerate(losses) if math.isfinite(loss)]
    highest = sorted(finite, key=lambda place: -losses[place])
    return [ids[place] for place in highest[:MOST_NAMED_ROWS]]
