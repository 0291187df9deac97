"""The parts of scale.py that need Ray: real pipeline, real pool, fake devices that sleep.

Each function returns figures by name; scale.py runs it in a process of its own, on an own Ray with `devices` fake
accelerators, and says what each figure is.
"""

import contextlib
import os
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import ray
from ray._private.internal_api import get_memory_info_reply, get_state_from_address

from sote.cluster import session, storage
from sote.cluster.storage import RunFolder
from sote.data import pass_pixels, pipeline, shards
from sote.data.recipe import CurateRecipe, Source
from sote.data.shards import Work

STORE_BYTES = 1 << 30
SLICE_ROWS = 16
INPUT_BYTES = (448 * 448 + 1024 * 1024 + 224 * 224) * 3  # of one picture: tagger, aesthetic and quality input
KIB, MIB = 1 << 10, 1 << 20
Figures = dict[str, float]


@contextlib.contextmanager
def fake_cluster(devices: int) -> Iterator[None]:
    """An own Ray that believes in `devices` accelerators and in enough cores for them."""
    os.environ.update(session.QUIET | session.LOCAL)
    ray.init(
        address="local",
        num_cpus=devices + 2,
        num_gpus=devices,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="ERROR",
        object_store_memory=STORE_BYTES,
    )
    try:
        session._hush()
        session._settle_data()
        yield
    finally:
        ray.shutdown()


@dataclass(frozen=True)
class FakeCut:
    """As pass_pixels.Cut, but a picture is zeros; `payload_bytes` of them for each row."""

    folder: RunFolder
    payload_bytes: int

    def __call__(self, batch: Any) -> Iterator[dict[str, Any]]:
        shard = int(batch["shard"][0])
        rows = shards.read_rows(self.folder, shard, pass_pixels.READ)
        for start in range(0, len(rows), SLICE_ROWS):
            piece = rows[start : start + SLICE_ROWS]
            table = shards.to_bytes(shards.table_of("decode", piece))
            pixels = np.zeros(self.payload_bytes * len(piece), np.uint8)
            cells = {"shard": shard, "start": start, "rows": len(piece), "decode": table, "pixels": pixels}
            yield shards.batch_of(cells)


class FakeLook:
    """As pass_pixels.Look, but it sleeps. The first that starts is `slower` times slower than the others."""

    def __init__(self, seconds: float, slower: float, first: Path) -> None:
        try:
            os.close(os.open(first, os.O_CREAT | os.O_EXCL))
            self.seconds = seconds * slower
        except FileExistsError:
            self.seconds = seconds

    def __call__(self, batch: Any) -> dict[str, Any]:
        begin, piece = time.time(), shards.cells_of(batch)
        del piece["pixels"]
        numbered = [{"row": int(piece["start"]) + at} for at in range(int(piece["rows"]))]
        for stage in ("score", "tag"):
            piece[stage] = shards.to_bytes(shards.table_of(stage, numbered))
        time.sleep(max(begin + self.seconds - time.time(), 0))
        return shards.batch_of(piece | {"engines": "[]", "who": os.getpid(), "begin": begin, "end": time.time()})


def made_work(folder: Path, *, count: int, rows: int) -> Work:
    """A run folder with an index of `count` shards of `rows` rows."""
    source = Source(name="board", kind="image board", path=str(folder))
    recipe = CurateRecipe(run=str(folder), sources=(source,), shard_rows=rows, slice_rows=SLICE_ROWS)
    work = Work(recipe, RunFolder(folder), pipeline.digests(recipe))
    table = shards.table_of("index", [{"row": at, "uri": f"{at}.jpg"} for at in range(rows)])
    for shard in range(count):
        work.commit("index", shard, table, seconds=0.0)
    storage.commit(work.index_marker, digest=work.digests["index"], shards=count, rows=rows * count)
    return work


@contextlib.contextmanager
def faked(work: Work, *, seconds: float = 0.0, slower: float = 1.0, payload_bytes: int = 0, ahead: int = 1) -> Any:
    """Have pass_pixels make its datasets of fakes. `ahead`: slices in flight of each device."""
    first = Path(tempfile.mkdtemp()) / "first"
    real = pass_pixels._dataset

    def dataset(_: Work, pending: Any, *__: Any) -> ray.data.Dataset:
        cut = FakeCut(work.folder, payload_bytes)
        slices = shards.each(pending).map_batches(cut, batch_size=1, batch_format="numpy", num_cpus=1.0)
        given = (seconds, slower, first)
        return shards.pooled(slices, FakeLook, given, cpus=0.9, in_flight=ahead)

    pass_pixels._dataset = dataset
    try:
        yield
    finally:
        pass_pixels._dataset = real


def feed(sizes: tuple[int, ...]) -> Figures:
    """Lay out datasets of more and more shards, as one wave each: what the driver takes before the first one begins."""
    found: Figures = {}
    with fake_cluster(1):
        shards.each(range(10))  # imports
        for size in sizes:
            before, store, started = rss(), stored(), time.monotonic()
            used = time.process_time()
            kept = shards.each(range(size))
            found[f"{size} shards: seconds"] = time.monotonic() - started
            found[f"{size} shards: CPU seconds"] = time.process_time() - used
            found[f"{size} shards: driver KiB a shard"] = (rss() - before) / size / KIB
            found[f"{size} shards: object store KiB a shard"] = (stored() - store) / size / KIB
            del kept
    return found


def pieces(count: int, *, wave: int | None) -> Figures:
    """Hand `count` slices of no cost through the real pipeline; `wave` is how many make a wave (None: as it is)."""
    with tempfile.TemporaryDirectory() as folder, fake_cluster(2):
        work = made_work(Path(folder), count=count // 16, rows=16 * SLICE_ROWS)
        if wave is not None:
            shards.WAVE_PIECES = wave  # type: ignore[misc]
        seen: list[tuple[int, float, float, int]] = []
        with faked(work):
            for number, _ in enumerate(pass_pixels.pieces(work, work.pending("decode")), 1):
                seen.append((number, time.monotonic(), time.process_time(), rss()))
    number, clock, used, memory = (np.array(column, float) for column in zip(*seen, strict=True))
    late = slice(len(seen) // 2, None)  # what is loaded first is loaded by then
    gaps = np.diff(clock)
    most = np.sort(gaps)[-max(count // (wave or count) - 1, 0) or len(gaps) :]
    return {
        "slices": len(seen),
        "driver CPU ms a slice": 1e3 * (used[-1] - used[len(seen) // 2]) / (len(seen) / 2),
        "wall ms a slice": 1e3 * float(np.median(gaps[late])) if wave else 1e3 * float(np.mean(gaps[late])),
        "driver KiB a slice": float(np.polyfit(number[late], memory[late], 1)[0]) / KIB,
        "driver MiB at the end": memory[-1] / MIB,
        "seconds between waves": float(most.mean()) if wave else 0.0,
    }


def payload(count: int) -> Figures:
    """Slices of true size before two devices of half a second: what lies in the object store at most."""
    with tempfile.TemporaryDirectory() as folder, fake_cluster(2):
        work = made_work(Path(folder), count=4, rows=count // 4 * SLICE_ROWS)
        peak, spilled, stop = [0], [0], threading.Event()

        def watch() -> None:
            while not stop.wait(0.2):
                peak[0], spilled[0] = max(peak[0], stored()), max(spilled[0], spilt())

        watching = threading.Thread(target=watch)
        watching.start()
        started = time.monotonic()
        with faked(work, seconds=0.5, payload_bytes=INPUT_BYTES):
            done = sum(1 for _ in pass_pixels.pieces(work, work.pending("decode")))
        stop.set()
        watching.join()
    return {
        "slices": done,
        "MiB of a slice": INPUT_BYTES * SLICE_ROWS / MIB,
        "object store MiB at most": peak[0] / MIB,
        "spilled MiB": spilled[0] / MIB,
        "MiB in all": done * INPUT_BYTES * SLICE_ROWS / MIB,
        "seconds": time.monotonic() - started,
    }


def tail(count: int, *, devices: int, seconds: float, slower: float, ahead: int) -> Figures:
    """One device of many is slower: how long `count` slices take, and how long a device waits between two."""
    with tempfile.TemporaryDirectory() as folder, fake_cluster(devices):
        work = made_work(Path(folder), count=-(-count // 20), rows=20 * SLICE_ROWS)
        spans: dict[int, list[tuple[float, float]]] = defaultdict(list)
        with faked(work, seconds=seconds, slower=slower, ahead=ahead):
            for piece in pass_pixels.pieces(work, work.pending("decode")):
                spans[int(piece["who"])].append((float(piece["begin"]), float(piece["end"])))
    each = [sorted(span) for span in spans.values()]
    done = sum(map(len, each))
    ready = [span[0][0] for span in each]
    costs = [min(end - begin for begin, end in span) for span in each]
    end = max(span[-1][1] for span in each)
    # All devices work from when they are ready until all is done: the sum of (ideal - ready) / cost is `done`
    ideal = (done + sum(at / cost for at, cost in zip(ready, costs, strict=True))) / sum(1 / cost for cost in costs)
    share = done / len(each)
    static = max(at + share * cost for at, cost in zip(ready, costs, strict=True))
    waits = [after[0] - before[1] for span in each for before, after in pairwise(span)]
    start = min(ready)
    busy = sum(after - before for span in each for before, after in span) / sum(
        span[-1][1] - span[0][0] for span in each
    )
    return {
        "slices": done,
        "devices that worked": len(each),
        "slices of the slow one": len(max(zip(costs, each, strict=True))[1]),
        "seconds": end - start,
        "ideal seconds": ideal - start,
        "share of its time that a device works": busy,
        "over ideal": (end - start) / (ideal - start),
        "static split over ideal": (static - start) / (ideal - start),
        "ms a device waits between slices (median)": 1e3 * float(np.median(waits)),
        "ms a device waits between slices (mean)": 1e3 * float(np.mean(waits)),
    }


def rss() -> int:
    return int(psutil.Process().memory_info().rss)


def stored() -> int:
    return int(_store().object_store_bytes_used)


def spilt() -> int:
    return int(_store().spilled_bytes_total)


def _store() -> Any:
    reply = get_memory_info_reply(get_state_from_address(ray.get_runtime_context().gcs_address))
    return reply.store_stats
