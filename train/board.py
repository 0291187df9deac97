"""Where the figures of a run go: a line of metrics.jsonl, and the same numbers under RUN/tensorboard.

Only the first worker writes.

Writes: metrics.jsonl, tensorboard/.
Kind: actor.
"""

from typing import Any

from tensorboardX import SummaryWriter

from sote.cluster.errors import RunFailed
from sote.cluster.logs import Metrics
from sote.cluster.storage import RunFolder

FOLDER = "tensorboard"
FLUSH_SECONDS = 10  # TensorBoard sees a step at most so much later
NO_CURVE = {"step", "workers", "epoch", "images_seen"}  # numbers of a step that say nothing as a curve of their own


class Board:
    """The record of a run from the step after `after` on: what an earlier start drew beyond it is taken back."""

    def __init__(self, folder: RunFolder, *, after: int) -> None:
        self.metrics = Metrics(folder.metrics)
        self.curves = SummaryWriter(
            logdir=str(folder.root / FOLDER),
            filename_suffix=f".{after}",  # two starts in one second would have one file otherwise
            purge_step=after + 1 if after else None,
            flush_secs=FLUSH_SECONDS,
        )

    def line(self, kind: str, **values: Any) -> None:
        """Write a line of the metrics. Raises RunFailed if the disk does not take it."""
        try:
            self.metrics.write(kind=kind, **values)
        except OSError as error:
            raise RunFailed(
                f"{self.metrics.path}: cannot be written ({error.strerror}); the last checkpoint is good: make room "
                f"and run the same command again"
            ) from None

    def step(self, step: int, **values: Any) -> None:
        """Write the line of a step, and draw its numbers."""
        self.line("step", step=step, **values)
        for name, value in values.items():
            if isinstance(value, int | float) and name not in NO_CURVE:
                self.curves.add_scalar(name, value, step)
        if values.get("skipped") is not None:
            self.curves.add_scalar("skipped", 1, step)

    def close(self) -> None:
        """Bring everything to disk."""
        self.curves.close()
