"""Prints what reading costs a training: `python tests/bench/train_data.py [ROWS] [--order N]`.

The order of six million rows (N) in sixty buckets; a catalogue of ROWS rows (default 100,000) of thirty tags; single
rows of latent files, and their headers.
"""

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from rows import Answer, Row, add_option, write

from sote.data import schema
from sote.data.latentfile import STAGE_C, latent_file
from sote.train import latents, rows
from sote.train.latents import Store
from sote.train.order import Order
from sote.train.recipe import DataPart
from sote.train.rows import Places, Rows, Tags

ORDERED, BUCKETS, BATCH = 6_000_000, 60, 128
TAGS, NAMES = 30, 10_000
FILES, OF_A_FILE = 1000, 50


def main() -> None:
    asked = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    asked.add_argument("rows", type=int, nargs="?", default=100_000, help="of the catalogue")
    asked.add_argument("--order", type=int, default=ORDERED, help="rows that are ordered")
    add_option(asked)
    given = asked.parse_args()
    made = order(given.order)
    with tempfile.TemporaryDirectory() as folder:
        made += [catalogue(Path(folder), given.rows), *shards(Path(folder))]
    for row in made:
        print(row.line())
    write(given.json, Answer(made))


def order(count: int) -> list[Row]:
    random = np.random.default_rng(0)
    none = Tags(pa.array([], pa.large_string()), *(np.zeros(0, np.int64) for _ in range(4)))
    repeat = np.where(random.random(count) < 0.02, 5, 1).astype(np.int32)
    bucket = np.minimum(random.geometric(0.1, count) - 1, BUCKETS - 1).astype(np.int32)
    made = Rows(pa.chunked_array([[""]]), none, repeat, bucket, tuple(f"{64 * n + 64}x1024" for n in range(BUCKETS)))
    began = time.perf_counter()
    found = Order(made, effective_batch=BATCH, seed=0)
    built = time.perf_counter() - began
    seconds = []
    for step in range(1, min(3000, count // BATCH) + 1):
        began = time.perf_counter()
        found.batch(step, epochs=3)
        seconds.append(time.perf_counter() - began)
    middle, most = 1e6 * float(np.median(seconds)), 1e3 * max(seconds)
    note = f"{most:.0f} ms at most: a bucket's first of an epoch"
    return [
        Row(f"order of {count:,} rows in {BUCKETS} buckets", built, "s", "lower"),
        Row(f"a batch of {BATCH} of these, median", middle, "us", "lower", note=note),
    ]


def catalogue(folder: Path, count: int) -> Row:
    random = np.random.default_rng(0)
    names = np.array([f"tag number {number}" for number in range(NAMES)])
    tags = pa.ListArray.from_arrays(
        np.arange(0, count * TAGS + 1, TAGS, dtype=np.int32),
        pa.array(names[random.integers(0, NAMES, count * TAGS)].tolist()),
    )
    columns = {
        "id": [random.bytes(32).hex() for _ in range(count)],
        "caption": [", ".join(each) for each in tags.to_pylist()],
        "caption_tags": tags,
        "caption_groups": pa.ListArray.from_arrays(tags.offsets, np.tile(np.arange(TAGS, dtype=np.int32), count)),
        "pick": np.ones(count, np.bool_),
        "repeat": np.ones(count, np.int32),
        "bucket": [f"{64 * (at % BUCKETS) + 64}x1024" for at in range(count)],
        "latent_shard": [f"{64 * (at % BUCKETS) + 64}x1024/{at // 1000:05d}.safetensors" for at in range(count)],
        "latent_offset": pa.array(np.arange(count) % 1000 // BUCKETS, pa.int32()),
    }
    whole = {
        name: columns.get(name, pa.nulls(count, kind))
        for name, kind in zip(schema.CATALOGUE.names, schema.CATALOGUE.types, strict=True)
    }
    pq.write_table(
        pa.table(whole).cast(schema.CATALOGUE), folder / "catalogue.parquet", compression="zstd", row_group_size=32_768
    )
    began = time.perf_counter()
    found = rows.read_rows(folder)
    seconds = time.perf_counter() - began
    held = sum(
        each.nbytes
        for each in (
            found.id,
            found.tags.which,
            found.tags.group,
            found.tags.begins,
            found.tags.ends,
            found.repeat,
            found.bucket,
        )
        if each is not None
    )
    return Row(
        f"reading a catalogue of {count:,} rows of {TAGS} tags", count / seconds, "rows/s",
        note=f"{held / count:.0f} bytes a row held",
    )  # fmt: skip


def shards(folder: Path) -> list[Row]:
    shape = [OF_A_FILE, 16, 32, 32]
    says = {
        "format": STAGE_C.format,
        "compression": "32.0",
        "encoder_sha256": "ab" * 32,
        "bucket": "1024x1024",
        "dtype": "float16",
    }
    data = latent_file(b"\0" * (2 * int(np.prod(shape))), dtype="float16", shape=shape, facts=says)
    names = tuple(f"1024x1024/{at:05d}.safetensors" for at in range(FILES))
    for name in names:
        path = folder / "latents" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    which = np.repeat(np.arange(FILES), OF_A_FILE)
    places = Places(names, which, np.tile(np.arange(OF_A_FILE), FILES))
    count = len(which)
    none = Tags(pa.array([], pa.large_string()), *(np.zeros(0, np.int64) for _ in range(4)))
    zeros = np.zeros(count, np.int64)
    made = Rows(pa.chunked_array([[""]]), none, zeros + 1, zeros, ("1024x1024",), latents=places)
    began = time.perf_counter()
    latents.check(made, Store(folder), DataPart(curated=str(folder)))
    headers = FILES / (time.perf_counter() - began)
    random, store = np.random.default_rng(0), Store(folder)
    began = time.perf_counter()
    for _ in range(60):
        store.read(places, random.integers(0, count, BATCH).tolist())
    return [
        Row("headers of latent files, checked", headers, "files/s"),
        Row("latents of 32x32 cells, single rows, one thread", 60 * BATCH / (time.perf_counter() - began), "rows/s"),
    ]


if __name__ == "__main__":
    main()
