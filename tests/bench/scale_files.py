"""The parts of scale.py without Ray: files of a run, and what the driver and a training hold in memory."""

import contextlib
import io
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import bench_catalogue
import numpy as np
import pyarrow as pa
from bench_dedup import RADIUS, hashes_of

from sote.cluster import logs, status, storage
from sote.cluster.storage import RunFolder
from sote.data import bands, catalogue, pass_captions, pipeline, shards
from sote.data.dedup_rows import Reader
from sote.data.shards import Work
from sote.train import rows as train_rows
from sote.train.order import Order
from sote.train.rows import Needs, Rows, Tags

KIB, MIB = 1 << 10, 1 << 20
STAGES = [stage.name for stage in pipeline.STAGES]
Figures = dict[str, float]


def files(count: int) -> Figures:
    """A run folder of `count` shards, all stages committed: markers, metrics and what looks at them."""
    with tempfile.TemporaryDirectory() as temporary:
        work = _marked(Path(temporary), count)
        found: Figures = {"shards": count}
        for name, part in {
            "pending, a stage: us a shard": lambda: work.pending("decode"),
            "pending of latents: us a shard": lambda: work.pending("latents"),
            "rows_in: us a call": lambda: [work.rows_in(shard) for shard in range(count)],
            "status: us a shard": lambda: status.status(Path(temporary), stages=STAGES),
            "metrics: us a line": lambda: logs.read_metrics(work.folder.metrics),
        }.items():
            calls = count * len(STAGES) if "line" in name else count
            found[name] = 1e6 * _seconds(part) / calls
        found["rows_in as it was: us a call"] = (
            1e6
            * _seconds(lambda: [pa.parquet.read_metadata(work.folder.rows("index", 0)).num_rows for _ in range(500)])
        ) / 500
        before = _now_mib()
        lines = logs.read_metrics(work.folder.metrics)
        found["metrics: bytes of memory a line"] = (_now_mib() - before) * MIB / len(lines)
        found["metrics: bytes a line"] = work.folder.metrics.stat().st_size / len(lines)
        found["files a shard"] = sum(1 for path in work.folder.root.glob("rows/*/*")) / count
        table = shards.blank("decode", 1)
        found["commit of a stage: ms a shard"] = (
            1e3 * _seconds(lambda: [work.commit("decode", shard, table, seconds=0.0) for shard in range(200)]) / 200
        )
    return found


def _marked(folder: Path, count: int) -> Work:
    """Every stage of every shard with a file of one row and a marker as large as a real one."""
    recipe = bench_catalogue.recipe_of(folder).model_copy(update={"shard_rows": 1})
    with storage.open_run(recipe, verb="curate", command="sote curate recipe.toml"):
        pass
    work = Work(recipe, RunFolder(folder), pipeline.digests(recipe))
    work.commit("index", 0, shards.table_of("index", [{"row": 0, "uri": "0.jpg"}]), seconds=0.0)
    storage.commit(work.index_marker, digest=work.digests["index"], shards=count, rows=count)
    reasons = {f"a reason of length about thirty {at}": 12 for at in range(3)}
    facts: dict[str, Any] = {"rows": 1, "failed": 36, "seconds": 123.456, "errors": reasons, "skips": reasons}
    with work.folder.metrics.open("a") as file:
        for stage in STAGES:
            first = work.folder.rows(stage, 0)
            if stage != "index":
                storage.write_table(first, shards.blank(stage, 1))
            marker = json.dumps({"digest": work.digest(stage, 0), **facts})
            for shard in range(count):
                path = work.folder.rows(stage, shard)
                if shard:
                    os.link(first, path)
                storage.marker(path).write_text(marker)
                line = {"time": 1790000000.123, "kind": "stage", "stage": stage, "shard": shard, **facts}
                file.write(json.dumps(line) + "\n")
    return work


def bytes_a_row() -> Figures:
    """One shard as bench_catalogue.py makes it, through captions, selection and the catalogue: bytes and CPU time."""
    with tempfile.TemporaryDirectory() as temporary:
        folder, rows = Path(temporary), bench_catalogue.SHARD_ROWS
        work = bench_catalogue.work_of(folder)
        bench_catalogue._make_template(folder, 0)
        bench_catalogue._make_shard((folder, 0, 1, rows))
        storage.commit(work.index_marker, digest=work.digests["index"], shards=1, rows=rows)
        found: Figures = {}

        def timed(name: str, part: Callable[[], object]) -> None:
            found[f"{name}: core us a row"] = 1e6 * _seconds(part) / rows

        captioned: list[pa.Table] = []
        timed("caption", lambda: captioned.append(pass_captions.captioned(work.folder, 0, work.recipe)))
        work.commit("caption", 0, captioned[0], seconds=0.0)
        timed("select", lambda: pass_captions.select(work))
        work.commit("latents", 0, shards.blank("latents", rows), seconds=0.0)
        timed("catalogue", lambda: catalogue.write(work))
        held = sum(path.stat().st_size for path in (folder / "rows").rglob("*.parquet"))
        found["rows: bytes a row"] = held / rows
        found["catalogue: bytes a row"] = work.folder.catalogue.stat().st_size / rows
        footer = pa.parquet.read_metadata(work.folder.catalogue)
        found["catalogue: footer bytes a row group"] = footer.serialized_size
        reader = Reader(work)
        kept = [value for value in vars(reader).values() if isinstance(value, np.ndarray)]
        found["duplicates: bytes a row of the reader"] = sum(value.nbytes for value in kept) / rows
    return found


def duplicates(count: int) -> Figures:
    """`bands.pairs` over `count` hashes in a process of its own: seconds, memory, candidates."""
    return _alone("duplicates", count)


def order(count: int) -> Figures:
    """A training's order of `count` rows in a process of its own, through its first epoch."""
    return _alone("order", count)


def _duplicates(count: int) -> Figures:
    hashes, _ = hashes_of(count)
    _forget_peak()
    before, started = _now_mib(), time.process_time()
    found = bands.pairs(hashes, radius=RADIUS)
    used = time.process_time() - started
    return {
        "CPU seconds": used,
        "bytes a row": ((_peak_mib() - before) * MIB + hashes.nbytes) / count,
        "pairs": len(found),
    }


def _order(count: int) -> Figures:
    random, buckets = np.random.default_rng(0), 60
    none = Tags(pa.array([], pa.large_string()), *(np.zeros(0, np.int64) for _ in range(4)))
    repeat = np.where(random.random(count) < 0.02, 5, 1).astype(np.int32)
    bucket = np.minimum(random.geometric(0.1, count) - 1, buckets - 1).astype(np.int64)
    rows = Rows(pa.chunked_array([[""]]), none, repeat, bucket, tuple(f"{64 * at + 64}x1024" for at in range(buckets)))
    _forget_peak()
    before, started = _now_mib(), time.process_time()
    made = Order(rows, effective_batch=128, seed=0)
    built = time.process_time() - started
    steps = made.steps(1)
    for step in range(1, steps, max(steps // 2000, 1)):
        made.batch(step)
    peak = _peak_mib()
    return {"seconds to build": built, "bytes a row": (peak - before) * MIB / count}


def training_rows(count: int) -> Figures:
    """What `read_rows` keeps of each row of a catalogue of thirty tags a row."""
    import train_data

    with tempfile.TemporaryDirectory() as temporary:
        with contextlib.redirect_stdout(io.StringIO()):
            train_data.catalogue(Path(temporary), count)
        read = train_rows.read_rows(temporary, needs=Needs(latents=True))
        tags = read.tags
        places = read.latents
        arrays = [tags.which, tags.begins, tags.ends, read.repeat, read.bucket]
        arrays += [tags.group] if tags.group is not None else []
        arrays += [places.which, places.offset] if places is not None else []
        held = sum(array.nbytes for array in arrays) + read.id.nbytes
    return {"bytes a row": held / len(read)}


def _alone(what: str, count: int) -> Figures:
    said = subprocess.run([sys.executable, __file__, what, str(count)], capture_output=True, text=True, check=False)
    if said.returncode:
        raise SystemExit(said.stderr)
    return dict(json.loads(said.stdout.splitlines()[-1]))


def _seconds(part: Callable[[], object]) -> float:
    """CPU seconds of this process: a busy machine does not change them much."""
    started = time.process_time()
    part()
    return time.process_time() - started


def _forget_peak() -> None:
    """Begin the peak anew: proc(5), clear_refs."""
    Path("/proc/self/clear_refs").write_text("5")


def _peak_mib() -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / KIB


def _now_mib() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / MIB


if __name__ == "__main__":
    print(json.dumps({"duplicates": _duplicates, "order": _order}[sys.argv[1]](int(sys.argv[2]))))
