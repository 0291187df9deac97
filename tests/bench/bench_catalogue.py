"""Times caption, select, catalogue and report of a made-up run of millions of rows, without a model or a picture.

`python tests/bench/bench_catalogue.py [--growth N,N] [--rows N] [--folder DIR]` first makes a run folder as the earlier
stages would leave it (not part of the figures; kept with --folder, so that a second call starts from it), then runs
`pipeline.run` over it and `write_report`. Goal: 6 million rows in 15 minutes on 2 cores within 8 GiB.

Not measured: the report's opening of pictures (the files do not exist), and thumbnails of 768 bytes a row, which lie in
files that are read by column.
"""

import argparse
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from functools import lru_cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from rows import Answer, Plot, Row, add_option, write

from sote.cluster import session, storage
from sote.cluster.storage import RunFolder
from sote.data import catalogue, pass_captions, pass_latents, pipeline, schema
from sote.data.recipe import CurateRecipe, SelectPart, SetPart, Source
from sote.data.shards import Work
from sote.serve.report import write_report

SHARD_ROWS = 4000  # as data/recipes/sote_6m.toml
TEMPLATES = 24  # tag files that differ; a row group of the catalogue holds eight shards
GENERAL, CHARACTERS, SERIES = 8106, 2751, 400  # facts: wd-swinv2-tagger-v3's labels
DRAWN = 110  # tags a row before those drawn twice go: about 80 stay
PASSING = 0.38  # share of tags above 0.35
BEFORE = ("index", "decode", "score", "tag", "duplicates", "text")
Columns = dict[str, Any]


def recipe_of(folder: Path) -> CurateRecipe:
    """A board with people's tags, pixiv and visual novels; the three sets of the seed's runs."""
    path = str(folder / "pictures")
    return CurateRecipe(
        run=str(folder),
        shard_rows=SHARD_ROWS,
        sources=(
            Source(name="board", kind="image board", path=f"{path}/board", sidecar_tags=True),
            Source(name="pixiv", kind="pixiv", path=f"{path}/pixiv", date_word="mid"),
            Source(name="vn", kind="visual novel", path=f"{path}/vn", tags=("game cg",), title="Some Title"),
        ),
        select=SelectPart(
            min_aesthetic_score=0.05,
            best_aesthetic_score=0.80,
            best_quality_score=0.80,
            best_most=120_000,
            sets={
                "final": SetPart(best=True),
                "decoder": SetPart(aesthetic_above=0.9, quality_above=0.9, date_words=("newest",), most=98_000),
            },
        ),
    )


@lru_cache
def labels() -> tuple[NDArray[np.object_], NDArray[np.object_]]:
    """General and character names as long as the tagger's, every one different."""
    draw = np.random.default_rng(0)
    parts = np.array(["blue", "hair", "long", "looking", "dress", "sky", "open", "hand", "white", "x", "of", "sitting"])
    general = [f"{'_'.join(draw.choice(parts, draw.integers(1, 4)))}_{at:x}" for at in range(GENERAL)]
    characters = [f"some_{at:x}_one_(series_{draw.integers(SERIES)})" for at in range(CHARACTERS)]
    return np.array(general, object), np.array(characters, object)


def make(folder: Path, rows: int) -> None:
    """Write and commit the stages before caption, on both cores."""
    work = work_of(folder)
    count = -(-rows // SHARD_ROWS)
    if work.shard_count() == count and work.row_count() == rows:
        return
    shutil.rmtree(folder, ignore_errors=True)
    with storage.open_run(work.recipe, verb="curate", command="sote curate recipe.toml"):
        pass
    shards = [(folder, shard, count, min(SHARD_ROWS, rows - shard * SHARD_ROWS)) for shard in range(count)]
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        templates = range(min(TEMPLATES, rows // SHARD_ROWS))  # the last shard of fewer rows has its own
        list(pool.map(_make_template, [folder] * len(templates), templates))
        list(pool.map(_make_shard, shards, chunksize=8))
    shutil.rmtree(folder / "templates", ignore_errors=True)
    storage.commit(work.index_marker, digest=work.digests["index"], shards=count, rows=rows)


def work_of(folder: Path) -> Work:
    recipe = recipe_of(folder)
    return Work(recipe, RunFolder(folder), pipeline.digests(recipe))


def _make_template(folder: Path, at: int) -> None:
    storage.write_table(folder / "templates" / f"{at}.parquet", _tags(np.random.default_rng(at), _unsound(at)))


def _unsound(template: int) -> NDArray[np.int8]:
    """For each row of a template: 0 sound, 1 refused by rule, 2 failed. Such rows have no tags."""
    return np.random.default_rng(template + 1000).choice(3, SHARD_ROWS, p=[0.95, 0.04, 0.01]).astype(np.int8)


def _make_shard(job: tuple[Path, int, int, int]) -> None:
    folder, shard, count, rows = job
    work, draw, template = work_of(folder), np.random.default_rng([7, shard]), shard % TEMPLATES
    part = 0 if shard < 0.8 * count else 1 if shard < 0.9 * count else 2
    unsound = _unsound(template)[:rows]
    columns = _index(draw, shard, rows=rows, part=part) | _decode(draw, unsound) | _score(draw, unsound)
    columns |= _duplicates(draw, columns, people=part == 0)
    columns["text"] = _some(draw, rows, 0.024, lambda at: f'The text says "HELLO. WORLD {at}"')
    tag_file = work.folder.rows("tag", shard)
    if rows == SHARD_ROWS:
        tag_file.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(folder / "templates" / f"{template}.parquet", tag_file)
    else:
        storage.write_table(tag_file, _tags(draw, unsound))
    for stage in BEFORE:
        if stage != "tag":
            storage.write_table(work.folder.rows(stage, shard), _table(stage, columns, rows))
        facts = {"rows": rows, "failed": 0, "seconds": 1.0, "errors": {}, "skips": {}}
        storage.commit(work.folder.rows(stage, shard), digest=work.digests[stage], **facts)
        work.metrics.write(kind="stage", stage=stage, shard=shard, **facts)


def _index(draw: np.random.Generator, shard: int, *, rows: int, part: int) -> Columns:
    source = ("board", "pixiv", "vn")[part]
    uris = [f"pictures/{source}/{shard:05d}/{shard * SHARD_ROWS + at:09d}.jpg" for at in range(rows)]
    year = draw.integers(2005, 2025, rows)
    return {
        "uri": uris,
        "source": [source] * rows,
        "bytes": draw.integers(100_000, 5_000_000, rows),
        "post_date": [f"{at}-06-01" if part < 2 else None for at in year],
        "artist": [f"Artist {at}" if part == 1 else None for at in draw.integers(0, 9000, rows)],
        "short_title": ["abc" if part == 2 else None] * rows,
    }


def _decode(draw: np.random.Generator, unsound: NDArray[np.int8]) -> Columns:
    rows = len(unsound)
    digests = draw.bytes(rows * 64)
    return {
        "id": [digests[at * 64 : at * 64 + 32].hex() for at in range(rows)],
        "phash": [digests[at * 64 + 32 : at * 64 + 64] for at in range(rows)],
        "format": ["jpeg"] * rows,
        "width": draw.integers(1280, 4000, rows),
        "height": draw.integers(720, 4000, rows),
        "frames": [1] * rows,
        "decode_skip": ["decode: fewer than 768000 pixels" if at == 1 else None for at in unsound],
        "decode_error": ["decode: truncated" if at == 2 else None for at in unsound],
    }


def _score(draw: np.random.Generator, unsound: NDArray[np.int8]) -> Columns:
    def scores() -> pa.Array:
        return pa.array(draw.beta(1.2, 0.9, len(unsound)).astype(np.float32), mask=unsound > 0)

    return {"aesthetic_score": scores(), "quality_score": scores()}


def _duplicates(draw: np.random.Generator, columns: Columns, *, people: bool) -> Columns:
    """3 % of the rows are in pairs, of which the second is dropped; people's tags stand on 70 % of a board's rows."""
    general, characters = labels()
    ids = columns["id"]
    rows = len(ids)
    group = np.repeat(draw.random(-(-rows // 2)) < 0.03, 2)[:rows]
    names = general[_zipf(draw, GENERAL, rows * 25)]
    sizes = np.where((draw.random(rows) < 0.7) & people, 25, 0)
    whose = characters[_zipf(draw, CHARACTERS, rows)]
    known = (draw.random(rows) < 0.5) & people
    return {
        "year": pa.array([int(date[:4]) if date else None for date in columns["post_date"]], pa.int32()),
        "date": columns["post_date"],
        "duplicate_group": pa.array(np.arange(rows) // 2, mask=~group),
        "keeper": [ids[at - at % 2] if group[at] else None for at in range(rows)],
        "duplicate_distance": pa.array((np.arange(rows) % 2) * 3, pa.int32(), mask=~group),
        "duplicates_skip": ["duplicates: near-duplicate" if group[at] and at % 2 else None for at in range(rows)],
        "sidecar_tags": pa.ListArray.from_arrays(_offsets(sizes), pa.array(names[: sizes.sum()], pa.string())),
        "characters": [[name] if yes else None for name, yes in zip(whose, known, strict=True)],
        "series": [[name[name.index("(") + 1 : -1]] if yes else None for name, yes in zip(whose, known, strict=True)],
    }


def _tags(draw: np.random.Generator, unsound: NDArray[np.int8]) -> pa.Table:
    """The tag stage's table: general tags by rank as the tagger lists them, then a character on half of the rows."""
    rows = len(unsound)
    general, characters = labels()
    keys = np.repeat(np.arange(rows), DRAWN) * GENERAL + _zipf(draw, GENERAL, rows * DRAWN)
    owner, which = np.divmod(np.unique(keys), GENERAL)
    has = np.flatnonzero(draw.random(rows) < 0.5)
    owners = np.concatenate([owner, has])
    order = np.argsort(owners, kind="stable")
    names = np.concatenate([general[which], characters[_zipf(draw, CHARACTERS, len(has))]])
    category = np.repeat(np.array(["general", "character"], object), [len(owner), len(has)])
    passing = draw.random(len(owners)) < PASSING
    probability = np.where(passing, draw.uniform(0.35, 1, len(owners)), draw.uniform(0.05, 0.35, len(owners)))
    keep = order[unsound[owners[order]] == 0]
    tag = pa.StructArray.from_arrays(
        [pa.array(names[keep], pa.string()), pa.array(probability[keep].astype(np.float32)), pa.array(category[keep])],
        fields=list(schema.TAG),
    )
    sizes = np.bincount(owners[keep], minlength=rows)
    rating = draw.dirichlet(np.full(4, 0.5), rows).astype(np.float32)
    columns = {
        "tags": pa.ListArray.from_arrays(_offsets(sizes), tag, mask=pa.array(unsound > 0)),
        "rating": pa.StructArray.from_arrays(
            [pa.array(rating[:, at]) for at in range(4)], fields=list(schema.RATING), mask=pa.array(unsound > 0)
        ),
    }
    return _table("tag", columns, rows)


def _zipf(draw: np.random.Generator, names: int, count: int) -> NDArray[np.int64]:
    """Ranks, the first far more often than the last, as 1 / (rank + 20)."""
    bounds = np.cumsum(1 / (np.arange(names) + 20))
    return np.searchsorted(bounds, draw.random(count) * bounds[-1]).astype(np.int64)


def _offsets(sizes: NDArray[np.int64]) -> pa.Array:
    return pa.array(np.concatenate([[0], np.cumsum(sizes)]), pa.int32())


def _some(draw: np.random.Generator, rows: int, share: float, text: Any) -> list[str | None]:
    return [text(at) if yes else None for at, yes in enumerate(draw.random(rows) < share)]


def _table(stage: str, columns: Mapping[str, Any], rows: int) -> pa.Table:
    wanted = schema.written_by(stage)
    made = {field.name: columns.get(field.name, pa.nulls(rows, field.type)) for field in wanted}
    made["row"] = np.arange(rows)
    return pa.table({name: pa.array(column) for name, column in made.items()}).cast(wanted)


class Memory:
    """The peak of what this process and all below it hold in memory, shared pages shared out (PSS), in GiB."""

    def __init__(self) -> None:
        self.peak = 0.0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def close(self) -> float:
        self._over.set()
        self._thread.join()
        return self.peak

    def _watch(self) -> None:
        while not self._over.wait(0.5):
            self.peak = max(self.peak, sum(map(_held, _family(os.getpid()))) / 2**20)


def _family(pid: int) -> Iterator[int]:
    yield pid
    try:
        tasks = [path.read_text().split() for path in Path(f"/proc/{pid}/task").glob("*/children")]
    except OSError:
        return
    for child in {int(word) for words in tasks for word in words}:
        yield from _family(child)


def _held(pid: int) -> int:
    """KiB; 0 of a process that is gone."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("Pss:")), 0)


def _cpu(pid: int) -> float:
    """Seconds that a process, and those of its children that have ended, spent on a core; 0 of one that is gone."""
    try:
        words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return sum(map(int, words[11:15])) / os.sysconf("SC_CLK_TCK")


def machine() -> str:
    """Cores and the processor's name."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")
    return f"{len(os.sched_getaffinity(0))} cores, {name}"


def main() -> None:
    say = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    say.add_argument("--rows", type=int, default=6_000_000)
    say.add_argument("--small", action="store_true", help="100,000 rows")
    say.add_argument("--folder", type=Path, help="where the run folder is made and kept; default: a temporary one")
    say.add_argument("--growth", help="several sizes in place of --rows, with commas")
    add_option(say)
    given = say.parse_args()
    sizes = (
        [int(each) for each in given.growth.split(",")] if given.growth else [100_000 if given.small else given.rows]
    )
    found, lines = list[Row](), dict[str, list[tuple[float, float]]]()
    for rows in sizes:
        with tempfile.TemporaryDirectory() as temporary:
            made = measure(given.folder or Path(temporary) / "run", rows)
        found += made
        for name, row in zip(("caption, select", "catalogue", "report", "all"), made, strict=True):
            lines.setdefault(name, []).append((rows, row.ours))
    plot = Plot("Bookkeeping of a curation, without models", "rows", "rows/s", lines, is_log=True)
    write(given.json, Answer(found, [plot] if len(sizes) > 1 else []))


def measure(folder: Path, rows: int) -> list[Row]:
    """Make the run folder if need be, then time the passes one by one, as `sote curate` runs them."""
    started = time.monotonic()
    make(folder, rows)
    print(f"{machine()}: {rows:,} rows in shards of {SHARD_ROWS:,}; run made in {time.monotonic() - started:.0f} s")
    work, memory, taken = work_of(folder), Memory(), dict[str, float]()
    for stage in ("caption", "select", "latents"):
        shutil.rmtree(folder / "rows" / stage, ignore_errors=True)
    parts: list[tuple[str, Callable[[], object]]] = [
        ("caption, select", lambda: pass_captions.run(work)),
        ("latents (none)", lambda: pass_latents.run(work)),
        ("catalogue", lambda: print(f"{'':16} {catalogue.write(work)}")),
        ("report", lambda: write_report(folder)),
    ]
    started = time.monotonic()
    with session.connect(None):
        print(f"{'start of Ray':<16} {time.monotonic() - started:8.1f} s", flush=True)
        for name, part in parts:
            taken[name] = timed(name, rows, part)
    total = sum(taken.values())
    peak, held = memory.close(), sum(path.stat().st_size for path in folder.rglob("*.parquet"))
    minutes = 6e6 / rows * total / 60
    print(f"{'all':<16} {total:8.1f} s  {rows / total:10,.0f} rows/s: 6,000,000 rows in {minutes:.1f} minutes")
    print(f"peak memory of all processes {peak:.2f} GiB")
    size = (folder / "catalogue.parquet").stat().st_size
    print(f"catalogue {size / rows:.0f} bytes a row, all files {held / rows:.0f}")
    note = f"peak memory of all processes {peak:.2f} GiB"
    single = [
        Row(f"{rows:,} rows: {name}", rows / taken[name], "rows/s", detail=True) for name in taken if "none" not in name
    ]
    return [*single, Row(f"{rows:,} rows: captions, selection, catalogue, report", rows / total, "rows/s", note=note)]


def timed(name: str, rows: int, part: Callable[[], object]) -> float:
    """Run one part; print its seconds, and those that all cores spent on it; return the former."""
    started, before = time.monotonic(), sum(map(_cpu, _family(os.getpid())))
    part()
    seconds, cpu = time.monotonic() - started, sum(map(_cpu, _family(os.getpid()))) - before
    print(f"{name:<16} {seconds:8.1f} s  {rows / seconds:10,.0f} rows/s  {cpu:8.1f} core-seconds", flush=True)
    return seconds


if __name__ == "__main__":
    main()
