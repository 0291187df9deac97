"""A made-up run for bench_dedup.py, 30 % of it copies, and the pass that looks for them."""

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from sote.cluster import session, storage
from sote.cluster.storage import RunFolder
from sote.data import pass_duplicates, schema
from sote.data.recipe import CurateRecipe, Source
from sote.data.shards import Work

SHARD_ROWS = 10_000


def whole_pass(rows: int, folder: str) -> dict[str, Any]:
    """Run the pass on a made-up run, in this process."""
    work = _work(rows, Path(folder))
    started = time.monotonic()
    with session.connect():
        begun = time.monotonic()
        pass_duplicates.run(work)
        seconds = time.monotonic() - begun
    facts = [work.folder.rows("duplicates", shard).with_suffix(".parquet.done") for shard in range(work.shard_count())]
    gone = sum(sum(json.loads(fact.read_text())["skips"].values()) for fact in facts)
    return {"seconds": seconds, "with_ray": time.monotonic() - started, "gone": gone}


def _work(rows: int, folder: Path) -> Work:
    recipe = CurateRecipe(run=str(folder), sources=(Source(name="a", path="a"),), shard_rows=SHARD_ROWS)
    return Work(recipe, RunFolder(folder), dict.fromkeys(("index", "decode", "score", "duplicates"), "same"))


def make_run(rows: int, folder: Path) -> None:
    """Write the columns of a run of which 30 % are copies: a third of these of the same pixels, the rest near."""
    work, rng = _work(rows, folder), np.random.default_rng(0)
    tags = np.array([f"tag_number_{number}" for number in range(50_000)])
    original = int(rows * 0.7)
    shards = -(-rows // SHARD_ROWS)
    storage.commit(work.index_marker, digest="same", shards=shards, rows=rows)
    (folder / "rows" / "index").mkdir(parents=True, exist_ok=True)
    order = np.random.default_rng(1).permutation(rows)
    for shard in range(shards):
        number = order[shard * SHARD_ROWS : (shard + 1) * SHARD_ROWS]
        of = np.where(number < original, number, (number * 2654435761) % original)
        same = (number < original) | (number % 3 == 0)
        size = len(number)
        hashes, thumbs, pixels = (_noise(of, words) for words in (4, 96, 4))
        near = np.flatnonzero(~same)
        hashes[near, rng.integers(0, 32, len(near))] ^= 1
        pixels[near] = _noise(number[near] + rows, 4)
        names = pa.array(tags[rng.integers(0, len(tags), size * 30)])
        _write(
            work,
            shard,
            {
                "id": pa.array([each.tobytes().hex() for each in _noise(number + 2 * rows, 4)]),
                "pixel_id": pa.array([each.tobytes().hex() for each in pixels]),
                "phash": pa.array([each.tobytes() for each in hashes], pa.binary(32)),
                "thumb": pa.array([each.tobytes() for each in thumbs], pa.binary(768)),
                "thumb_deviation": pa.array(np.full(size, 60, np.float32)),
                "width": pa.array(rng.integers(900, 1500, size)),
                "height": pa.array(rng.integers(900, 1500, size)),
                "format": pa.array(["jpeg"] * size),
                "bytes": pa.array(rng.integers(1 << 17, 1 << 21, size)),
                "post_date": pa.array([f"{2005 + day % 20}-05-{day % 28 + 1:02}" for day in number.tolist()]),
                "post_tags": pa.ListArray.from_arrays(np.arange(0, size * 30 + 1, 30, dtype=np.int32), names),
                "aesthetic_score": pa.array(rng.random(size)),
                "quality_score": pa.array(rng.random(size)),
            },
            size,
        )


def _noise(numbers: NDArray[np.int64], words: int) -> NDArray[np.uint8]:
    """For each number 8 x `words` bytes that only depend on it."""
    state = (numbers.astype(np.uint64)[:, None] << np.uint64(8)) + np.arange(words, dtype=np.uint64)
    for factor in (0xBF58476D1CE4E5B9, 0x94D049BB133111EB):  # splitmix64
        state = (state ^ (state >> np.uint64(30))) * np.uint64(factor)
    return (state ^ (state >> np.uint64(31))).view(np.uint8)


def _write(work: Work, shard: int, columns: dict[str, Any], size: int) -> None:
    for stage in ("index", "decode", "score"):
        wanted = schema.written_by(stage)
        filled = [
            pa.array(np.arange(size, dtype=np.int32))
            if field.name == "row"
            else columns[field.name].cast(field.type)
            if field.name in columns
            else pa.nulls(size, field.type)
            for field in wanted
        ]
        work.commit(stage, shard, pa.table(filled, schema=wanted), seconds=0.0)
