"""Writes checkpoints beside training: one thread, the whole folder or nothing of it, old ones pruned by rule.

A folder is written under a temporary name, each file is flushed to disk and its sha256 taken on the way, then the
folder is renamed. What could not be written (full disk) is taken away again, so the last good checkpoint still loads.
Of a run folder at a URI the whole folder is made here and then brought there, its state.json last.

Kind: actor.
"""

import hashlib
import logging
import os
import shutil
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from sote.cluster import remote
from sote.cluster.errors import Denied, RunFailed, Unreachable
from sote.train import checkpoint, tensorfile
from sote.train.checkpoint import State
from sote.train.recipe import CheckpointPart
from sote.train.tensorfile import Planned

log = logging.getLogger(__name__)

# Between tries to bring a checkpoint to its URI, beyond the minutes that each try has: training goes on meanwhile
WAITS_SECONDS = (30.0, 60.0, 120.0, 240.0)
SNAPSHOTS = ".snapshots"  # of a run folder: weights for painting
WHOLE = "whole.done"  # comes last into a snapshot's folder at a URI, as state.json into a checkpoint's


@dataclass(frozen=True)
class File:
    """A safetensors file to be written."""

    tensors: list[Planned]
    metadata: dict[str, str]


@dataclass(frozen=True)
class Snapshot:
    """The folder `path` to be written (`.../step-<n>`), with its files by name.

    Nothing in it changes while training goes on. Without `state` it is no checkpoint but weights for painting.
    """

    path: Path
    files: Mapping[str, File]
    state: State | None = None


@dataclass(frozen=True)
class Written:
    """A snapshot on disk: how long the writing took, and how large it is. Holds no tensors."""

    path: Path
    seconds: float
    bytes: int


class Writer:
    """One snapshot at a time. An error of the thread is raised by the next call; RunFailed if it is the disk's.

    `before` is called before a checkpoint at a URI counts: what it must not be there without.
    """

    def __init__(self, part: CheckpointPart, *, before: Callable[[], None] = lambda: None) -> None:
        self.part, self.before = part, before
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._coming: Future[Written] | None = None
        self._done: list[Written] = []

    def save(self, snapshot: Snapshot) -> None:
        """Write it while the caller goes on; waits for the one before."""
        self.wait()
        self._coming = self._thread.submit(_write, snapshot, self.part, self.before)

    def wait(self) -> None:
        """Until everything is on disk."""
        coming, self._coming = self._coming, None
        if coming is not None:
            self._done.append(coming.result())

    def finished(self) -> list[Written]:
        """What has come to disk since this was last asked; does not wait."""
        if self._coming is not None and self._coming.done():
            self.wait()
        done, self._done = self._done, []
        return done

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """Nothing is left half written. What the thread raised is raised, unless something else is on its way up."""
        self._thread.shutdown(wait=True)
        if error is None:
            self.wait()
        elif self._coming is not None and (problem := self._coming.exception()) is not None:
            log.error("%s", problem)


def sweep(folder: Path) -> None:
    """Take away what killed trainings left unfinished. The run's lock lets no other one write in there.

    Of a folder at a URI: what has no state.json (or WHOLE) there, and what is here and is there no more.
    """
    for path in folder.glob(".step-*.tmp"):
        shutil.rmtree(path)
    if remote.uri(folder) is None:
        return
    there = remote.paths(folder)
    whole = {path.parent for path in there if path.name in (checkpoint.STATE, WHOLE)}
    unfinished = {folder / path.relative_to(folder).parts[0] for path in (*there, *folder.glob("step-*/*"))} - whole
    remote.remove(*sorted(unfinished))


def _write(snapshot: Snapshot, part: CheckpointPart, before: Callable[[], None]) -> Written:
    began = time.monotonic()
    folder = snapshot.path.parent
    making = _temporary(snapshot.path)
    try:
        making.mkdir(parents=True)
        size = _fill(making, snapshot)
        # a damaged one of the same step may be there, that this run did not start from
        _patiently(lambda: _remove(snapshot.path))
        making.rename(snapshot.path)
        _sync(folder)
        _patiently(lambda: _publish(snapshot, before))
        if snapshot.state is not None:
            _prune(folder, snapshot.state.step, part)
    except Unreachable as error:
        raise RunFailed(f"step {checkpoint.step_of(snapshot.path)} could not be saved: {error}") from None
    except OSError as error:
        raise RunFailed(
            f"{error.filename or snapshot.path}: step {checkpoint.step_of(snapshot.path)} could not be saved "
            f"({error.strerror}); {_last(snapshot.path)}: make room and run the same command again"
        ) from None
    finally:
        shutil.rmtree(making, ignore_errors=True)
    written = Written(snapshot.path, time.monotonic() - began, size)
    log.info("written folder=%s bytes=%d seconds=%.1f", snapshot.path, size, written.seconds)
    return written


def _fill(folder: Path, snapshot: Snapshot) -> int:
    """Write all files; returns their bytes."""
    digests = {}
    for name, file in snapshot.files.items():
        try:
            digests[name] = _stream(folder / name, file)
        except OSError as error:  # of a write that fails the system does not say in which file
            raise OSError(error.errno, error.strerror, str(snapshot.path / name)) from None
    if snapshot.state is not None:
        _flushed(folder / checkpoint.STATE, checkpoint.dumps(snapshot.state, digests=digests))
    _sync(folder)
    return sum(path.stat().st_size for path in folder.iterdir())


def _flushed(path: Path, text: str) -> None:
    """Write a file of the folder, which is renamed as a whole."""
    with path.open("w", encoding="utf-8") as out:
        out.write(text)
        out.flush()
        os.fsync(out.fileno())


def _stream(path: Path, file: File) -> str:
    """Write a file, flushed to disk; returns its sha256."""
    digest = hashlib.sha256()
    with path.open("wb") as out:
        for piece in tensorfile.pieces(path, file.tensors, metadata=file.metadata):
            out.write(piece)
            digest.update(piece)
        out.flush()
        os.fsync(out.fileno())
    return digest.hexdigest()


def _prune(folder: Path, step: int, part: CheckpointPart) -> None:
    """Remove checkpoints before `step`, the one just written, but for the newest and those of certain steps.

    Later ones there can only be damaged: they count for nothing here, and are written over in time.
    """
    before = [path for path in checkpoint.listed(folder) if checkpoint.step_of(path) < step]
    for path in before[part.keep - 1 :]:
        if part.keep_every_steps is None or checkpoint.step_of(path) % part.keep_every_steps:
            _remove(path)


def _publish(snapshot: Snapshot, before: Callable[[], None]) -> None:
    """Bring a folder that is whole here to its URI; what makes it count there comes last. A local one is there."""
    path, last = snapshot.path, checkpoint.STATE if snapshot.state is not None else WHOLE
    if remote.uri(path) is None:
        return
    (path / last).touch()
    for file in sorted(each for each in path.iterdir() if each.name != last):
        remote.push(file)
    before()
    remote.push(path / last)
    if snapshot.state is None:  # who paints it brings it to its own node
        shutil.rmtree(path)


def _patiently(do: Callable[[], None]) -> None:
    """Do it, and again where a network fails; training goes on meanwhile. Raises Unreachable, and Denied at once."""
    for wait in WAITS_SECONDS:
        try:
            do()
        except Denied:
            raise
        except Unreachable as error:
            log.warning("checkpoint waits seconds=%d reason=%s", wait, error)
            time.sleep(wait)
        else:
            return
    do()


def _remove(path: Path) -> None:
    """Take a checkpoint or snapshot away, if it is there. Under another name first, or at a URI what makes it count:
    a folder named `step-<n>` is whole, whenever this is killed."""
    if remote.uri(path) is not None:
        remote.remove(path / checkpoint.STATE, path / WHOLE)
        remote.remove(path)
        return
    if not path.exists():
        return
    leaving = path.with_name(f".{path.name}.old.tmp")
    path.rename(leaving)
    shutil.rmtree(leaving)


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}.tmp")


def _last(path: Path) -> str:
    step = checkpoint.step_of(path)
    there = [found.name for found in checkpoint.listed(path.parent) if checkpoint.step_of(found) < step]
    return f"{there[0]} is there and good" if there else "there is none before it"


def _sync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
