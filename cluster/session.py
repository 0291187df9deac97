"""The connection to Ray: an own local one, shut down at the end, or a cluster at an address.

Ray's own log lines stay in Ray's session folder; people see our progress.

Kind: wiring.
"""

import contextlib
import logging
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import ray.data

from sote.cluster import arrival, capacity, devices, reaching, submission, tokens
from sote.cluster.capacity import Bundle
from sote.cluster.errors import UserError

# Local object store: curation keeps slices of tens of megabytes in flight; what does not fit is spilled to disk by Ray.
LOCAL_OBJECT_STORE_BYTES = 1 << 30
# Ray Train's default of 60 s was seen to be too short on a busy machine (worker start imports torch and deepspeed).
TRAIN_START_TIMEOUT_SECONDS = 240

# ray/_private/node.py gives a local node 30 s to come up and then raises a bare Exception with these words
SLOW_START = "timed out during startup"
LOCAL_STARTS = 3
ACTOR_STARTS = 3  # of a model's actor that dies while it loads
ROOM_TO_DECODE = 0.5  # of a CPU beside a model: the least share of a decoding task (data/pass_pixels.py)

log = logging.getLogger(__name__)

# An own local Ray is not taken away with notice: no process has to watch for that.
LOCAL = {"RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0"}
QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DATA_USAGE_DISABLED": "1",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": str(TRAIN_START_TIMEOUT_SECONDS),
    "RAY_TRAIN_ENABLE_WORKER_STRUCTURED_LOGGING": "1",
}


@contextlib.contextmanager
def connect(address: str | None = None, *, environment: Mapping[str, str] | None = None) -> Iterator[None]:
    """Be connected to Ray inside the block. If this process already is, that connection is used and left as it is.

    `address` is a running cluster; None starts a local one with all cores, which ends with the block. `environment` is
    what processes that Ray starts for this one find in theirs. Raises UserError if there is no cluster at `address`.
    """
    if ray.is_initialized():
        yield
        return
    os.environ.update(QUIET if address else QUIET | LOCAL)
    with _native_stderr_aside(), tokens.mode_kept():
        try:
            _init(address, dict(environment or {}))
            _hush()
            _settle_data()
            yield
        finally:
            ray.shutdown()


def _init(address: str | None, environment: dict[str, str]) -> None:
    if address is None:
        os.environ.update(environment)
        _start_local()
        return
    place = reaching.check(address)
    _join(place, environment)
    if packages := arrival.missing_anywhere():
        ray.shutdown()
        _join(place, environment, packages=packages)
    arrival.check()


def _join(place: str, environment: dict[str, str], *, packages: list[str] | None = None) -> None:
    """Connect to the cluster whose control store is at HOST:PORT. Its processes for this one work in the same folder
    where they have it, so that relative paths mean the same; `packages` are installed for them."""
    folder = Path.cwd()

    def go_there() -> None:
        with contextlib.suppress(OSError):
            os.chdir(folder)

    shipped: dict[str, Any] = {"worker_process_setup_hook": go_there}
    shipped |= {"env_vars": environment} if environment else {}
    shipped |= {"pip": packages} if packages else {}
    try:
        with reaching.loopback(is_wanted=reaching.is_on_loopback(place)):
            ray.init(address=place, log_to_driver=False, logging_level=logging.ERROR, runtime_env=shipped)
    except ConnectionError as error:
        raise UserError(f"--address {place}: the cluster does not take a driver from here ({error})") from None


def _start_local() -> None:
    """Start an own Ray, all of it on loopback. On a machine that is busy it can miss Ray's fixed limit of 30 s, so it
    is tried again."""
    for attempt in range(LOCAL_STARTS):
        try:
            with reaching.loopback():
                ray.init(
                    address="local",
                    include_dashboard=False,
                    log_to_driver=False,
                    logging_level=logging.ERROR,
                    object_store_memory=LOCAL_OBJECT_STORE_BYTES,
                )
        except Exception as error:  # Ray raises no narrower class
            if SLOW_START not in str(error) or attempt + 1 == LOCAL_STARTS:
                raise
            log.warning("Ray did not start in time, trying again attempt=%d", attempt + 1)
            ray.shutdown()
        else:
            return


@contextlib.contextmanager
def _native_stderr_aside() -> Iterator[None]:
    """Let only Python write to the terminal: what native code and child processes write to file descriptor 2 goes to a
    file, which is kept and named if the block ends with an error.

    Ray's core writes warnings about its own internals there, past every Python logger.
    """
    handle, made = tempfile.mkstemp(prefix="sote-native-", suffix=".log")
    name, keep = Path(made), False
    python, terminal = sys.stderr, os.dup(2)
    os.dup2(handle, 2)
    try:
        with open(terminal, "w", buffering=1, encoding="utf-8", errors="replace", closefd=False) as stream:
            if python is sys.__stderr__:
                sys.stderr = stream
            try:
                yield
            except Exception:
                if name.stat().st_size:
                    log.warning("native libraries and Ray wrote more about it to %s", name)
                    keep = True
                raise
            finally:
                sys.stderr = python
    finally:
        os.dup2(terminal, 2)
        os.close(terminal)
        os.close(handle)
        if not keep:
            name.unlink()


def _hush() -> None:
    """Keep Ray's libraries from writing progress and warnings to the user's terminal."""
    for name in ("ray", "ray.data", "ray.train", "ray.serve", "ray.tune"):
        logging.getLogger(name).setLevel(logging.ERROR)


def _settle_data() -> None:
    """Let Ray Data hand on every row of a dataset as it is made, for a row is a whole piece of work: it would gather
    them up to a size in bytes. And waiting for a machine is no failure: it would end a run after half an hour without
    progress, and after the first actor that dies while it loads its model, as one does that is killed.

    A pool of models grows when all of them work and there is a device for one more, as when a node joined; it would
    never, for an actor here has one piece at a time and Ray Data expects 1.75. It is not made smaller while there is
    work: loading a model takes longer than waiting for the next piece.

    What a worker raises is raised here as it was: Ray Data's own error holds its text alone."""
    context = ray.data.DataContext.get_current()
    context.target_max_block_size = 1  # byte
    context.raise_original_map_exception = True
    context.execution_no_progress_timeout_s = -1
    context.max_consecutive_actor_init_deaths = ACTOR_STARTS
    context.autoscaling_config.actor_pool_util_upscaling_threshold = 1.0
    context.autoscaling_config.actor_pool_util_downscaling_threshold = -1.0


@dataclass(frozen=True)
class Pool:
    """Actors that run a model: what each takes of a node, how many there are at first and at most (None: no bound),
    and the label selector of the nodes that they may lie on."""

    cpus: float | None
    gpus: float | None
    actors: int
    most: int | None
    selector: dict[str, str]


def model_pool(*, cpus: float, gpus: float = 1.0, device_bytes: int = 0) -> Pool:
    """Actors for a model: one for each accelerator of the cluster that has `device_bytes` of memory (see
    `devices.selector`), and for each that joins.

    All vendors' accelerators are Ray's resource "GPU"; a node without one joins the pool when it is started with
    `--num-gpus=1 --labels accel=cpu`. A cluster without any, whose autoscaler has none either, has one actor for each
    node, with the share `cpus`; one core at least is left to decode. Raises UserError where none is large enough.
    """
    one = Bundle(cpus=1.0, gpus=gpus, device_bytes=device_bytes)  # Ray Data gives an actor with a GPU one CPU, too
    nodes = capacity.places()
    has_devices = any(node.resources.get("GPU") for node in nodes)
    if submission.may_accelerate() and (has_devices or capacity.obtain([one], what="curate")):
        capacity.require([one], what="curate")
        fitting = [node for node in capacity.places() if devices.suffices(node.labels, device_bytes)]
        count = sum(int(node.resources.get("GPU", 0) / gpus) for node in fitting)
        return Pool(None, gpus, max(count, 1), None, devices.selector(device_bytes))
    cores = [node.resources.get("CPU", 0.0) for node in nodes]
    roomy, tight = (sum(least <= count for count in cores) for least in (cpus + ROOM_TO_DECODE, cpus))
    count = max(1, roomy or tight - 1)
    return Pool(cpus, None, count, count, {})
