"""Sample pictures beside a training: each snapshot of the weights becomes pictures in a Ray task of its own.

One at a time, on a core or a GPU that no training worker has. A snapshot is gone once it is painted. What paints is
handed in; where it fails, that is said once and counted, and training goes on. Of a run folder at a URI the task brings
the snapshot to its own node.
Reads: RUN/.snapshots/. Writes: images/samples/step-<n>-<k>.png, metrics.jsonl (lines of kind "sample").

Kind: wiring.
"""

import logging
import os
import re
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import ray.exceptions

from sote.cluster import logs, remote, storage
from sote.cluster.page import counted
from sote.cluster.storage import RunFolder
from sote.train.recipe import SamplesPart
from sote.train.writer import SNAPSHOTS, WHOLE

log = logging.getLogger(__name__)


# What waits may take so much of the disk: of a full-size model (8.6 GB in bfloat16) the newest only
MOST_WAITING_BYTES = 2_000_000_000
MOST_WAITING = 4  # of those at a URI, which take no disk here
NICEST = 19  # painting on a CPU gives way to everything else there; Ray's own processes are at 15
SECONDS_BETWEEN_LOOKS = 0.2


@dataclass(frozen=True)
class Sample:
    """One painted picture: what was asked for, and the PNG file."""

    prompt: str
    seed: int
    data: bytes


Paint = Callable[[Path], list[Sample]]  # a snapshot's folder -> a picture for each prompt of the recipe


@dataclass(frozen=True)
class _Running:
    """The painting that goes on now."""

    step: int
    folder: Path
    task: Any
    began: float


class Painting:
    """Paints the snapshots of one run. What an earlier command left is painted first."""

    def __init__(self, folder: RunFolder, part: SamplesPart, paint: Paint, *, done: int, has_spare_core: bool) -> None:
        self.folder, self.part, self.paint = folder, part, paint
        self.cores = 0 if part.use_gpu or not has_spare_core else 1
        self.painted = self.failed = self.skipped = 0
        self.reason = ""
        self.running: _Running | None = None
        self.is_remote = remote.uri(folder.root) is not None
        self.waiting = left_over(folder, done=done)
        self.taken = {step for step, _ in self.waiting}

    def add(self, step: int, folder: Path) -> None:
        """Take a new snapshot; the oldest that wait are given up where they take too much of the disk."""
        if self.is_remote and step in self.taken:
            return  # made again after a restart, and the same: at a URI it cannot be put aside to be painted
        self.taken.add(step)
        self.waiting.append((step, folder))
        while len(self.waiting) > 1 and self._are_too_many():
            old, path = self.waiting.pop(0)
            _remove(path)
            self.skipped += 1
            log.warning("samples of step %d left out: painting is slower than training", old)

    def look(self) -> bool:
        """Take in what is painted and begin with the next. False if nothing is left to do."""
        if self.running is not None and ray.wait([self.running.task], timeout=0)[0]:
            self._take(self.running)
            self.running = None
        if self.running is None and self.waiting:
            self.running = self._begin(*self.waiting.pop(0))
        return self.running is not None

    def finish(self, *, is_stopped: Callable[[], bool]) -> bool:
        """Paint what is left. False if that was stopped before its end."""
        while self.look():
            if is_stopped():
                return False
            time.sleep(SECONDS_BETWEEN_LOOKS)
        return True

    def summary(self) -> str:
        """What came of it, for people; nothing if there was nothing to paint."""
        parts = [f"pictures of {counted(self.painted, 'step')}"] if self.painted else []
        parts += [f"{counted(self.failed, 'painting')} failed ({self.reason})"] if self.failed else []
        parts += [f"{counted(self.skipped, 'step')} left out"] if self.skipped else []
        return ", ".join(parts)

    def _are_too_many(self) -> bool:
        if self.is_remote:
            return len(self.waiting) > MOST_WAITING
        return sum(_size(path) for _, path in self.waiting) > MOST_WAITING_BYTES

    def _begin(self, step: int, folder: Path) -> _Running:
        mine = folder.with_name(f"painting-{step}")  # training may write the same step again after a restart
        if self.is_remote:
            mine = folder
        elif folder != mine:
            shutil.rmtree(mine, ignore_errors=True)
            folder.rename(mine)
        resources = {"num_cpus": self.cores} | ({"num_gpus": 1} if self.part.use_gpu else {})
        # an environment of its own keeps the process, and its niceness, apart from Ray's other tasks
        environment = {"env_vars": {"OMP_NUM_THREADS": "1"}}
        task = ray.remote(_task).options(max_retries=1, runtime_env=environment, **resources)
        is_nice = not self.part.use_gpu
        return _Running(
            step, mine, task.remote(self.paint, remote.uri(mine) or str(mine.resolve()), is_nice), time.monotonic()
        )

    def _take(self, running: _Running) -> None:
        try:
            samples: list[Sample] = ray.get(running.task)
        except ray.exceptions.RayError as error:
            self._failed(running.step, error)
        else:
            for number, sample in enumerate(samples):
                self._keep(running.step, number, sample)
            self.painted += 1
            seconds = time.monotonic() - running.began
            log.info("samples painted step=%d pictures=%d seconds=%.1f", running.step, len(samples), seconds)
        _remove(running.folder)

    def _keep(self, step: int, number: int, sample: Sample) -> None:
        file = f"images/samples/step-{step}-{number}.png"
        storage.write_bytes(self.folder.root / file, sample.data)
        words = {"file": file, "prompt": sample.prompt, "seed": sample.seed}
        logs.Metrics(self.folder.metrics).write(kind="sample", step=step, **words)

    def _failed(self, step: int, error: ray.exceptions.RayError) -> None:
        self.failed += 1
        self.reason = reason_of(error)
        if self.failed == 1:
            log.warning("samples of step %d could not be painted, training goes on: %s", step, self.reason)


def left_over(folder: RunFolder, *, done: int) -> list[tuple[int, Path]]:
    """The snapshots that an earlier command left, by step. Those after step `done` are removed: they come again."""
    found, snapshots = [], folder.root / SNAPSHOTS
    there = remote.names(snapshots)
    whole = {path.parent for path in remote.paths(snapshots, f"*/{WHOLE}")} if remote.uri(snapshots) else None
    for path in (snapshots / name for name in there):
        named = re.fullmatch(r"(?:step|painting)-(\d+)", path.name)
        if named is None or int(named[1]) > done or (whole is not None and path not in whole):
            _remove(path)
        else:
            found.append((int(named[1]), path))
    return sorted(found)


def reason_of(error: BaseException) -> str:
    """Why a Ray task failed, in one line: the error that was raised in it, or what became of its process."""
    cause = getattr(error, "cause", None) or error
    lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
    return f"{type(cause).__name__}: {lines[0] if lines else 'no words'}"


def _task(paint: Paint, folder: str, is_nice: bool) -> list[Sample]:
    if is_nice:
        os.nice(NICEST - os.nice(0))
    path = remote.place(folder)
    if remote.uri(path) is None:
        return paint(path)
    try:
        remote.fetch_tree(path)
        return paint(path)
    finally:
        shutil.rmtree(path, ignore_errors=True)


def _remove(path: Path) -> None:
    """A snapshot that cannot be removed now is swept by the next command."""
    try:
        remote.remove(path / WHOLE)
        remote.remove(path)
    except OSError as error:
        log.warning("snapshot not removed folder=%s reason=%s", path.name, error)


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
