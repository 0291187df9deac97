"""Ending a run before its end without losing a step: who asks for it, and how the workers hear of it.

- SIGTERM or Ctrl-C to the command: it leaves a stop file in the run folder, which the first worker looks for.
- SIGTERM to a worker's process: all workers save and end, and Ray Train starts them again from there.
- A node that will be taken away, which Ray announces: the workers save and go on for as long as they may.

In a run folder at a URI the stop file is brought there by `Stopping.pass_on`, and seen some seconds later.

Kind: wiring.
"""

import signal
import threading
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Self

import ray.train
from ray.train._internal.base_worker_group import BaseWorkerGroup
from ray.train.backend import BackendConfig
from ray.train.torch import TorchConfig
from ray.train.torch.config import _TorchBackend  # ray is pinned; a test kills a worker softly

from sote.cluster import remote
from sote.cluster.errors import Interrupted, Stopped
from sote.cluster.storage import RunFolder
from sote.train.signs import Sign

# Ray looks for announced nodes every 5 s (train/v2/_internal/constants.py); asking its answer costs about 2 ms
STEPS_BETWEEN_NOTICES = 4

_told = threading.Event()  # in a worker's process: it was sent SIGTERM


def file(folder: RunFolder) -> Path:
    """The stop file: while it is there, workers save and end."""
    return folder.root / ".ray" / "stop"


class Stopping:
    """While open, SIGTERM and the first Ctrl-C leave the stop file; a second Ctrl-C interrupts at once.

    A stop file of an earlier run is removed first. Outside of the main thread nothing is listened to.
    """

    def __init__(self, folder: RunFolder) -> None:
        self.file = file(folder)
        self.signal: int | None = None  # the first that came
        self.is_passed_on = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        remote.remove(self.file)
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
        self.listen()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        remote.remove(self.file)

    def listen(self) -> None:
        """Take the signals (again): ray.init sets a handler of its own for SIGTERM."""
        for number in self._before:
            signal.signal(number, self._heard)

    def pass_on(self) -> None:
        """Bring the stop file to where other nodes see it, once it is wanted: a network is not for signal handlers."""
        if self.asked and not self.is_passed_on:
            remote.push(self.file)
            self.is_passed_on = True

    @property
    def asked(self) -> bool:
        """Whether the run is to end."""
        return self.signal is not None

    def ended(self, *, step: int, saved: int) -> Stopped:
        """What the command ends with, after `step` steps of which the first `saved` are in a checkpoint."""
        kind = Interrupted if self.signal == signal.SIGINT else Stopped
        if not step:
            return kind("stopped before the first step; the same command starts again")
        if step == saved:
            return kind(f"stopped at step {step}, saved; the same command continues")
        return kind(f"stopped at step {step}, saved up to step {saved}; the same command continues from there")

    def _heard(self, number: int, _: FrameType | None) -> None:
        if self.signal is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal = self.signal or number
        self.file.parent.mkdir(parents=True, exist_ok=True)
        self.file.touch()


class Wishes:
    """What one worker wishes after a step: None, "save" or "stop". To be asked on every worker at every step.

    Costs a look for one file on the first worker. With `has_notices`, Ray is asked for announced nodes as well.
    """

    def __init__(self, folder: RunFolder, *, rank: int, has_notices: bool) -> None:
        self.sign = Sign(file(folder)) if rank == 0 else None
        self.has_notices = has_notices
        self.known: object = None

    def __call__(self, step: int) -> str | None:
        announced = self.has_notices and step % STEPS_BETWEEN_NOTICES == 0 and self._is_announced()
        if _told.is_set() or (self.sign is not None and self.sign.is_there()):
            return "stop"
        return "save" if announced else None

    def close(self) -> None:
        """Look for nothing any more."""
        if self.sign is not None:
            self.sign.close()

    def _is_announced(self) -> bool:
        """Whether there is news of nodes that will be taken away. A barrier of all workers."""
        before, self.known = self.known, ray.train.get_preemption_info()
        return self.known is not None and self.known != before


class _Listener(_TorchBackend):
    """Ray's set-up of the process group, and then of the signal."""

    def on_training_start(self, worker_group: BaseWorkerGroup, backend_config: BackendConfig) -> None:
        super().on_training_start(worker_group, backend_config)
        worker_group.execute(follow_sigterm)


class Listening(TorchConfig):
    """Ray's TorchConfig, with worker processes that save before they follow a SIGTERM."""

    @property
    def backend_cls(self) -> type[_Listener]:
        return _Listener


def follow_sigterm() -> None:
    """Let the first SIGTERM to this worker's process ask for a stop; a second one is Ray's again.

    Runs in the main thread of the worker, where Ray lets Python's signal handlers run every few milliseconds.
    """
    before = signal.getsignal(signal.SIGTERM)

    def heard(number: int, _: FrameType | None) -> None:
        _told.set()
        signal.signal(number, before)

    signal.signal(signal.SIGTERM, heard)
