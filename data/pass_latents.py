"""The pass that turns the selected pictures into latents: bucket, crop, encode.

Each shard gives one file for each bucket, `RUN/latents/<width>x<height>/<shard>.safetensors`, with the tensor `latents`
[N, 16, h, w] and metadata that says what made it; the rows carry file and offset. The encoder's batch is always the
same rows of a shard, so a resumed run gives the same bytes.
Reads: uri, width, height, select_repeat. Writes: bucket, crop, latent_shard, latent_offset, latents_skip/_error.

Kind: wiring.
"""

import json
import struct
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import ray
from ray.data import ActorPoolStrategy

from sote.cluster import logs, session, storage, weights
from sote.cluster.storage import RunFolder
from sote.data import shards
from sote.data.buckets import Bucket, bucket_for
from sote.data.decode import Refused, open_picture
from sote.data.inputs import encoder_input
from sote.data.recipe import CurateRecipe, LatentsPart
from sote.data.shards import Late, Row, Work

STAGE = "latents"
FORMAT = "sote-latents-1"
ENCODER_STRIDE = 32  # EfficientNet-V2-S features: 32 pixels a cell
DTYPES = {"float16": "F16", "bfloat16": "BF16", "float32": "F32"}  # the format's names
READ_CPUS, MODEL_CPUS = 0.5, 1.0

Batch = dict[str, Any]


def run(work: Work) -> None:
    """Bring the latents up to date for every shard that lacks them."""
    pending = work.pending(STAGE)
    if not pending:
        return
    part = work.recipe.latents
    if part is None:
        for shard in pending:
            rows = [{"row": row} for row in range(work.rows_in(shard))]
            work.commit(STAGE, shard, shards.table_of(STAGE, rows), seconds=0.0)
        return
    started, parts = time.monotonic(), defaultdict[int, list[Batch]](list)
    with logs.progress("latents", sum(work.rows_in(shard) for shard in pending)) as advance:
        for piece in shards.stream(_dataset(work, pending, part)):
            shard = int(piece["shard"])
            parts[shard].append(piece)
            ends = [each for each in parts[shard] if each["pieces"] >= 0]
            if ends and len(parts[shard]) == ends[0]["pieces"] + 1:
                _commit(work, part, parts.pop(shard), seconds=time.monotonic() - started)
                started = time.monotonic()
                advance(work.rows_in(shard))


def latent_cells(pixels: int, compression: float) -> int:
    """Latent cells along a side of `pixels`: 1024 px are 32 cells at compression 32, 24 at 42.67."""
    return max(1, round(pixels / compression))


def _dataset(work: Work, pending: list[int], part: LatentsPart) -> ray.data.Dataset:
    encoder = weights.locate(part.encoder, field="latents.encoder")
    cpus, gpus, actors = session.model_pool(cpus=MODEL_CPUS, gpus=1.0)
    return (
        shards.each(pending)
        .map_batches(CutBuckets(work.folder, work.recipe, part), batch_size=1, num_cpus=READ_CPUS)
        .map_batches(
            EncodeRows,
            fn_constructor_args=(encoder, part.dtype),
            batch_size=1,
            compute=ActorPoolStrategy(size=actors),
            num_cpus=cpus,
            num_gpus=gpus,
        )
    )


@dataclass(frozen=True)
class CutBuckets:
    """Opens the selected pictures of one shard, bucket by bucket, and hands on slices of encoder input.

    Pixels travel as bytes with their shape beside them, because buckets differ in shape. The last piece of a shard
    carries its rows and says how many slices there were.
    """

    folder: RunFolder
    recipe: CurateRecipe
    part: LatentsPart

    def __call__(self, batch: Any) -> Iterator[Batch]:
        shard = int(batch["shard"][0])
        rows = shards.read_rows(self.folder, shard, ("row", "uri", "width", "height", "select_repeat"))
        by_bucket: dict[tuple[int, int], list[tuple[Row, Bucket]]] = defaultdict(list)
        for row in rows:
            if row["select_repeat"]:
                bucket = bucket_for(
                    row["width"], row["height"], resolution=self.part.resolution, step=self.part.bucket_step
                )
                if bucket is None:
                    row["latents_skip"] = "latents: smaller than any bucket"
                else:
                    by_bucket[bucket.width, bucket.height].append((row, bucket))
        pieces = 0
        for size in sorted(by_bucket):
            for start in range(0, len(by_bucket[size]), self.recipe.slice_rows):
                opened = self._opened(by_bucket[size][start : start + self.recipe.slice_rows])
                if opened:
                    yield _piece(shard, size=size, opened=opened)
                    pieces += 1
        yield _end(shard, rows=rows, pieces=pieces)

    def _opened(self, members: list[tuple[Row, Bucket]]) -> list[tuple[int, np.ndarray[Any, Any]]]:
        found = []
        for row, bucket in members:
            cells = [latent_cells(side, self.part.compression) for side in (bucket.width, bucket.height)]
            try:
                picture = open_picture(Path(row["uri"]).read_bytes(), self.recipe.decode)
            except FileNotFoundError:
                row["latents_error"] = "latents: file vanished"
            except OSError as error:
                row["latents_error"] = f"latents: cannot be read ({error.strerror})"
            except Refused as error:
                row["latents_error"] = f"latents: {error.reason}"
            else:
                width, height = (count * ENCODER_STRIDE for count in cells)
                found.append((row["row"], encoder_input(picture.image, box=bucket.crop, width=width, height=height)))
                row |= {"bucket": f"{bucket.width}x{bucket.height}", "crop": list(bucket.crop)}
        return found


def _piece(shard: int, *, size: tuple[int, int], opened: list[tuple[int, np.ndarray[Any, Any]]]) -> Batch:
    pixels = np.stack([array for _, array in opened])
    cells = {
        "shard": shard,
        "pieces": -1,
        "bucket": f"{size[0]}x{size[1]}",
        "rows": json.dumps([row for row, _ in opened]),
        "shape": json.dumps(pixels.shape),
        "finite": "[]",
        "data": pixels.tobytes(),
    }
    return shards.batch_of(cells)


def _end(shard: int, *, rows: list[Row], pieces: int) -> Batch:
    table = shards.to_bytes(shards.table_of(STAGE, rows))
    return shards.batch_of(
        {"shard": shard, "pieces": pieces, "bucket": "", "rows": "[]", "shape": "[]", "finite": "[]", "data": table}
    )


class EncodeRows:
    """The encoder as a Ray Data actor: pixels in, latents out, both as bytes with their shape beside them."""

    def __init__(self, encoder: Path, dtype: str) -> None:
        from sote.data.encode import Encoder

        self.encoder = Late(lambda: Encoder(encoder, dtype=dtype))

    def __call__(self, batch: Batch) -> Batch:
        import torch

        encoder = self.encoder.get()
        if int(batch["pieces"][0]) >= 0:
            return batch | {"encoder_sha256": np.array([encoder.sha256])}
        shape = json.loads(batch["shape"][0])
        latents = encoder.encode(np.frombuffer(batch["data"][0], np.uint8).reshape(shape)).cpu().contiguous()
        return batch | {
            "shape": np.array([json.dumps(list(latents.shape))]),
            "data": np.array([latents.view(torch.uint8).numpy().tobytes()], dtype=object),
            "finite": np.array([json.dumps(latents.float().isfinite().flatten(1).all(1).tolist())]),
            "encoder_sha256": np.array([encoder.sha256]),
        }


def _commit(work: Work, part: LatentsPart, pieces: list[Batch], *, seconds: float) -> None:
    """Write the shard's latent files, then its rows. A row whose latents are not finite is an error."""
    shard = int(pieces[0]["shard"])
    end = next(piece for piece in pieces if piece["pieces"] >= 0)
    rows: list[Row] = shards.from_bytes(end["data"]).to_pylist()
    ids = [row["id"] for row in work.read(shard, ("id",))]
    buckets = defaultdict[str, list[tuple[int, bytes, list[int]]]](list)
    for piece in pieces:
        if piece["pieces"] < 0:
            _unpack(piece, rows, buckets[str(piece["bucket"])])
    stale = set(work.folder.latents.glob(f"*/{shard:05d}.safetensors"))  # of an earlier recipe
    for bucket, members in buckets.items():
        members.sort(key=lambda member: member[0])
        name = f"{bucket}/{shard:05d}.safetensors"
        for offset, (row, _, _) in enumerate(members):
            rows[row] |= {"latent_shard": name, "latent_offset": offset}
        if members:
            facts = {
                "format": FORMAT,
                "compression": str(part.compression),
                "encoder_sha256": str(end["encoder_sha256"]),
                "bucket": bucket,
                "dtype": part.dtype,
                "ids": json.dumps([ids[row] for row, _, _ in members]),
            }
            shape, data = [len(members), *members[0][2]], b"".join(member[1] for member in members)
            written = work.folder.latents / name
            storage.write_bytes(written, latent_file(data, dtype=part.dtype, shape=shape, facts=facts))
            stale.discard(written)
    for path in stale:
        path.unlink()
    work.commit(STAGE, shard, shards.table_of(STAGE, rows), seconds=seconds)


def latent_file(data: bytes, *, dtype: str, shape: list[int], facts: dict[str, str]) -> bytes:
    """A safetensors file with the one tensor `latents`. The same content gives the same bytes, which the library's own
    writer does not: it puts metadata in an order that changes from process to process."""
    tensor = {"dtype": DTYPES[dtype], "shape": shape, "data_offsets": [0, len(data)]}
    header = json.dumps({"__metadata__": facts, "latents": tensor}, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)  # the format wants the data to begin at a multiple of eight
    return struct.pack("<Q", len(header)) + header + data


def _unpack(piece: Batch, rows: list[Row], members: list[tuple[int, bytes, list[int]]]) -> None:
    count, *shape = json.loads(piece["shape"])
    size = len(piece["data"]) // count
    finite = json.loads(piece["finite"])
    for at, row in enumerate(json.loads(piece["rows"])):
        if finite[at]:
            members.append((row, piece["data"][at * size : (at + 1) * size], shape))
        else:
            rows[row] |= {"latents_error": "latents: not finite", "bucket": None, "crop": None}
