"""Near-duplicates: found over all shards at once, committed shard by shard.

Different hashes are compared band by band (data/bands.py): many of them as Ray tasks, one for each band, over one
shared copy. A task depends on nothing but its band and the hashes, so one that is tried again adds nothing twice.
Reads: what data/dedup_rows.py reads. Writes: the columns of duplicates.

Kind: wiring.
"""

import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import ray

from sote.cluster import logs
from sote.data import bands, dedup, dedup_rows
from sote.data.dedup import Bytes, Grouping, Ints, Numbers
from sote.data.dedup_rows import LISTS, Column, Reader
from sote.data.inherited import Inheritance
from sote.data.shards import Work

STAGE = "duplicates"
# Different hashes from which on Ray's workers, which take 3 s to start, are worth it: one core compares a million even
# ones in 1 s, but skewed ones in 10 s (tests/bench/bench_dedup.py)
RAY_ROWS = 1_000_000
TASK_RETRIES = 5  # of a band whose worker or node was lost


def run(work: Work) -> None:
    """Find the duplicate groups among all rows, and commit every shard that is not."""
    if not work.pending(STAGE):
        return
    started = time.monotonic()
    found = _find(work)
    _commit(work, found, seconds=time.monotonic() - started)


def near_pairs(hashes_UB: Bytes, *, radius: int) -> Ints:
    """All pairs of different hashes within the radius: [M, 3] of i < j and distance, sorted. Exact."""
    if len(hashes_UB) < RAY_ROWS:
        return bands.pairs(hashes_UB, radius=radius)
    shared = ray.put(hashes_UB)
    del hashes_UB  # Ray's copy is enough
    remote: Any = ray.remote(num_cpus=1, max_retries=TASK_RETRIES)  # its type knows positional arguments only
    task = remote(bands.band_pairs)
    waiting = [task.remote(shared, band=band, radius=radius) for band in range(radius + 1)]
    found: list[Ints] = []
    with logs.progress("duplicates: compare", len(waiting), unit="bands") as advance:
        while waiting:
            done, waiting = ray.wait(waiting)
            found += ray.get(done)
            advance(len(done))
    return bands.together(found)


@dataclass(frozen=True)
class _Found:
    """What the columns are made of, with what each row says of itself. `starts`: the first row of each shard."""

    starts: Ints
    id: Bytes  # [N, 32]
    day: Numbers
    earliest: Numbers  # day; of a keeper that of its group
    grouping: Grouping
    inheritance: Inheritance


def _find(work: Work) -> _Found:
    part, reader = work.recipe.duplicates, Reader(work)
    near = near_pairs(reader.distinct_hashes(), radius=part.radius)
    with dedup_rows.thumbs(work, reader.starts) as thumbs:
        grouping = dedup.groups(reader.candidates(), near, part=part, thumbs=thumbs if part.thumbs else None)
    return _Found(
        reader.starts,
        id=reader.id,
        day=reader.day,
        earliest=dedup.earliest(reader.day, grouping),
        grouping=grouping,
        inheritance=_inheritance(work, reader.starts, grouping),
    )


def _inheritance(work: Work, starts: Ints, grouping: Grouping) -> Inheritance:
    """Collect what the rows that go bring along."""
    goes = np.flatnonzero(grouping.reason)
    found = Inheritance(grouping.keeper[goes], tuple(LISTS))
    for shard, places in dedup_rows.by_shard(goes, starts):
        lists = dedup_rows.read(work, shard, tuple(LISTS.values()))
        found.add({name: lists[column].take(pa.array(places)) for name, column in LISTS.items()})
    return found


def _commit(work: Work, found: _Found, *, seconds: float) -> None:
    pending = set(work.pending(STAGE))
    with logs.progress(STAGE, int(found.starts[-1])) as advance:
        for shard, start in enumerate(found.starts[:-1].tolist()):
            if shard in pending:
                work.commit(STAGE, shard, _table(work, shard, found), seconds=seconds / len(pending))
            advance(int(found.starts[shard + 1]) - start)


def _table(work: Work, shard: int, found: _Found) -> pa.Table:
    own = dedup_rows.read(work, shard, ("row", "post_date", *LISTS.values()))
    start, end = found.starts[shard : shard + 2].tolist()
    group, keeper = found.grouping.group[start:end], found.grouping.keeper[start:end]
    earliest, outside = found.earliest[start:end], group < 0
    columns: dict[str, Column] = {
        "row": own["row"],
        "year": pa.array(earliest // 10_000, mask=earliest == dedup.UNKNOWN_DAY),
        "duplicate_group": pa.array(group, mask=outside),
        "keeper": pa.array(
            [None if row < 0 else found.id[row].tobytes().hex() for row in keeper.tolist()], pa.string()
        ),
        "duplicate_distance": pa.array(found.grouping.distance[start:end], mask=outside),
        "duplicates_skip": _reasons().take(pa.array(found.grouping.reason[start:end])),
    }
    changed = np.flatnonzero(earliest != found.day[start:end])
    dates = [dedup.day_text(day) for day in earliest[changed].tolist()]
    columns["date"] = _patched(own["post_date"], changed, pa.array(dates, pa.string()))
    kept = np.flatnonzero(keeper == np.arange(start, end))
    for name, column in LISTS.items():
        heirs = kept[found.inheritance.heirs(name, start + kept)]
        lists = own[column].take(pa.array(heirs)).to_pylist()
        merged = found.inheritance.merged(name, start + heirs, lists)
        columns[name] = _patched(own[column], heirs, pa.array(merged, own[column].type))
    return pa.table(columns)


def _reasons() -> Column:
    return pa.array([f"{STAGE}: {reason}" if reason else None for reason in dedup.REASONS], pa.string())


def _patched(own: Column, places: Ints, values: Column) -> Column:
    """The column with other values at some places."""
    order = np.arange(len(own))
    order[places] = len(own) + np.arange(len(places))
    return pa.concat_arrays([own, values]).take(pa.array(order))
