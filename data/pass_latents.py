"""The pass that turns the selected pictures into latents: bucket, crop, encode.

Each shard gives one file for each bucket, `RUN/latents/<width>x<height>/<shard>.safetensors`, with the tensor `latents`
[N, 16, h, w] and metadata that says what made it; the rows carry file and offset. Where the recipe names a vqgan, the
rows of its set get Stage A's latents [N, 4, h, w] too, of the same crops at the size of the bucket, in
`RUN/latents/vqgan/`. A batch is always the same rows of a shard, so a resumed run gives the same bytes.
Reads: id, uri, offset, bytes, width, height, select_repeat, sets.
Writes: bucket, crop, latent_shard/_offset, vqgan_shard/_offset, latents_skip/_error.

Kind: wiring.
"""

import hashlib
import json
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import ray
from numpy.typing import NDArray
from PIL import Image

from sote.cluster import logs, remote, storage, weights
from sote.cluster.errors import RecipeError
from sote.cluster.storage import RunFolder
from sote.data import needs, places, shards, watchdog
from sote.data.buckets import Bucket, bucket_for
from sote.data.decode import Refused, open_picture
from sote.data.inputs import encoder_input
from sote.data.latentfile import ENCODER_STRIDE, KINDS, STAGE_A, STAGE_C, VQGAN_STRIDE, Kind, latent_cells, latent_file
from sote.data.recipe import CurateRecipe, LatentsPart
from sote.data.shards import Late, Row, Work
from sote.data.watchdog import Patience, Watchdog

STAGE = "latents"
COLUMNS = ("row", "id", "uri", "offset", "bytes", "width", "height", "select_repeat", "sets")
READ_CPUS, MODEL_CPUS = 0.5, 1.0

Batch = dict[str, Any]
Pixels = NDArray[np.uint8]


class Member(NamedTuple):
    """The latents of one row as bytes, their shape [C, h, w], and the facts of what made them."""

    row: int
    data: bytes
    shape: list[int]
    made_by: dict[str, str]


def run(work: Work) -> None:
    """Bring the latents up to date for every shard that lacks them."""
    pending = work.pending(STAGE)
    if not pending:
        return
    part = work.recipe.latents
    if part is None:
        for shard in pending:
            work.commit(STAGE, shard, shards.blank(STAGE, work.rows_in(shard)), seconds=0.0)
        return
    started, parts = time.monotonic(), defaultdict[int, list[Batch]](list)
    with (
        watchdog.patience(work, STAGE) as patience,
        logs.progress("latents", sum(work.rows_in(shard) for shard in pending)) as advance,
    ):
        for piece in _pieces(work, pending, part, patience):
            shard = int(piece["shard"])
            parts[shard].append(piece)
            ends = [each for each in parts[shard] if each["pieces"] >= 0]
            if ends and len(parts[shard]) == ends[0]["pieces"] + 1:
                reasons = commit_shard(work, part, parts.pop(shard), seconds=time.monotonic() - started)
                started = time.monotonic()
                advance(work.rows_in(shard), reasons)


def _pieces(work: Work, pending: Sequence[int], part: LatentsPart, patience: Patience) -> Iterator[Batch]:
    for wave in shards.waves(pending, pieces=work.slices):
        yield from shards.stream(_dataset(work, wave, part, patience))


def _dataset(work: Work, pending: Sequence[int], part: LatentsPart, patience: Patience) -> ray.data.Dataset:
    if part.vqgan is not None and part.bucket_step % VQGAN_STRIDE:
        raise RecipeError(
            f"latents.bucket_step: {part.bucket_step} must be a multiple of {VQGAN_STRIDE} for Stage A's latents"
        )
    encoder = remote.named(weights.locate(part.encoder, field="latents.encoder"))
    vqgan = remote.named(weights.locate(part.vqgan, field="latents.vqgan")) if part.vqgan is not None else None
    cut = CutBuckets(work.folder, work.recipe, part)
    slices = shards.each(pending).map_batches(cut, batch_size=1, num_cpus=READ_CPUS)
    given = (encoder, vqgan, part.dtype, patience)
    ask, ahead = needs.latents(work.recipe), shards.SLICES_IN_FLIGHT
    return shards.pooled(slices, EncodeRows, given, cpus=MODEL_CPUS, device_bytes=ask, in_flight=ahead)


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
        shard, pieces = int(batch["shard"][0]), 0
        rows = shards.read_rows(self.folder, shard, COLUMNS)
        for size, members in sorted(self._by_bucket(rows).items()):
            for start in range(0, len(members), self.recipe.slice_rows):
                for kind, inputs in self._cut(members[start : start + self.recipe.slice_rows]).items():
                    yield _piece(shard, kind=kind, size=size, inputs=inputs)
                    pieces += 1
        yield _end(shard, rows=rows, pieces=pieces)

    def _by_bucket(self, rows: list[Row]) -> dict[tuple[int, int], list[tuple[Row, Bucket]]]:
        found: dict[tuple[int, int], list[tuple[Row, Bucket]]] = defaultdict(list)
        for row in rows:
            if row["select_repeat"]:
                bucket = bucket_for(
                    row["width"], row["height"], resolution=self.part.resolution, step=self.part.bucket_step
                )
                if bucket is None:
                    row["latents_skip"] = "latents: smaller than any bucket"
                else:
                    found[bucket.width, bucket.height].append((row, bucket))
        return found

    def _cut(self, members: list[tuple[Row, Bucket]]) -> dict[Kind, list[tuple[int, Pixels]]]:
        """The encoders' inputs of one slice; a picture that cannot be had is an error of its row."""
        found: dict[Kind, list[tuple[int, Pixels]]] = defaultdict(list)
        for row, bucket in members:
            try:
                image = self._picture(row)
            except Refused as error:
                row["latents_error"] = f"latents: {error.reason}"
                continue
            sides = (latent_cells(side, self.part.compression) for side in (bucket.width, bucket.height))
            width, height = (cells * ENCODER_STRIDE for cells in sides)
            found[STAGE_C].append((row["row"], encoder_input(image, box=bucket.crop, width=width, height=height)))
            if self.part.vqgan is not None and self.part.vqgan_set in (row["sets"] or ()):
                pixels = encoder_input(image, box=bucket.crop, width=bucket.width, height=bucket.height)
                found[STAGE_A].append((row["row"], pixels))
            row |= {"bucket": bucket.name, "crop": list(bucket.crop)}
        return found

    def _picture(self, row: Row) -> Image.Image:
        """The picture of a row. Raises Refused with the reason why it cannot be had any more."""
        try:
            most = self.recipe.decode.max_file_bytes
            data = places.read(row["uri"], offset=row["offset"], bytes=row["bytes"], limit=most)
        except FileNotFoundError:
            raise Refused("file vanished", fault=True) from None
        except OSError as error:
            raise Refused(f"cannot be read ({error.strerror})", fault=True) from None
        if hashlib.sha256(data).hexdigest() != row["id"]:
            raise Refused("file changed since it was looked at", fault=True)
        return open_picture(data, self.recipe.decode).image


def _piece(shard: int, *, kind: Kind, size: tuple[int, int], inputs: list[tuple[int, Pixels]]) -> Batch:
    pixels = np.stack([array for _, array in inputs])
    cells = {
        "shard": shard,
        "pieces": -1,
        "kind": kind.name,
        "bucket": f"{size[0]}x{size[1]}",
        "rows": json.dumps([row for row, _ in inputs]),
        "shape": json.dumps(pixels.shape),
        "data": pixels.tobytes(),
    }
    return shards.batch_of(cells)


def _end(shard: int, *, rows: list[Row], pieces: int) -> Batch:
    table = shards.to_bytes(shards.table_of(STAGE, rows))
    none = {"kind": "", "bucket": "", "rows": "[]", "shape": "[]"}
    return shards.batch_of({"shard": shard, "pieces": pieces, **none, "data": table})


class EncodeRows:
    """The encoders as a Ray Data actor: pixels in, latents out, both as bytes with their shape beside them."""

    def __init__(self, encoder: Path | str, vqgan: Path | str | None, dtype: str, patience: Patience) -> None:
        from sote.data.encode import Encoder

        self.encoder = Late(lambda: Encoder(weights.here(encoder), dtype=dtype))
        self.vqgan = Late(lambda: _vqgan(weights.here(vqgan), dtype)) if vqgan is not None else None
        self.watchdog = Watchdog(patience)

    def __call__(self, batch: Batch) -> Batch:
        if int(batch["pieces"][0]) >= 0:
            return batch | {"finite": np.array(["[]"]), "made_by": np.array(["{}"])}
        shard, rows = int(batch["shard"][0]), json.loads(batch["rows"][0])
        key = f"{shard:05d}-{batch['kind'][0]}-{rows[0]}"
        with self.watchdog.over(shard, f"rows {', '.join(map(str, rows))}", key=key):
            return self._encode(batch)

    def _encode(self, batch: Batch) -> Batch:
        pixels = np.frombuffer(batch["data"][0], np.uint8).reshape(json.loads(batch["shape"][0])).copy()
        if self.vqgan is not None and batch["kind"][0] == STAGE_A.name:
            vqgan = self.vqgan.get()
            return batch | _encoded(vqgan.encode(pixels), {"scale": str(vqgan.scale), "vqgan_sha256": vqgan.sha256})
        encoder = self.encoder.get()
        return batch | _encoded(encoder.encode(pixels), {"encoder_sha256": encoder.sha256})


def _vqgan(folder: Path, dtype: str) -> Any:
    from sote.data.vqgan import VqganEncoder  # imports torch: only where it is asked for

    return VqganEncoder(folder, dtype=dtype)


def _encoded(latents_BCHW: Any, made_by: dict[str, str]) -> Batch:
    import torch

    data = latents_BCHW.contiguous().view(torch.uint8).numpy().tobytes()
    finite = latents_BCHW.float().isfinite().flatten(1).all(1).tolist()
    texts = {"shape": list(latents_BCHW.shape), "finite": finite, "made_by": made_by}
    return shards.batch_of({"data": data} | {name: json.dumps(value) for name, value in texts.items()})


def commit_shard(work: Work, part: LatentsPart, pieces: list[Batch], *, seconds: float) -> dict[str, int]:
    """Write the shard's latent files, then its rows; returns the reasons of errors. A row whose latents are not finite
    is an error."""
    shard = int(pieces[0]["shard"])
    end = next(piece for piece in pieces if piece["pieces"] >= 0)
    rows: list[Row] = shards.from_bytes(end["data"]).to_pylist()
    ids = [row["id"] for row in work.read(shard, ("id",))]
    stale = set(remote.known_paths(work.folder.latents, f"**/{shard:05d}.safetensors"))  # of an earlier recipe
    for (name, bucket), members in _members(pieces, rows).items():
        kind, sound = KINDS[name], [member for member in members if not rows[member.row]["latents_error"]]
        if not sound:
            continue
        file = f"{kind.folder}{bucket}/{shard:05d}.safetensors"
        for offset, member in enumerate(sound):
            rows[member.row] |= {kind.shard: file, kind.offset: offset}
        facts = {"format": kind.format, **({"compression": str(part.compression)} if kind is STAGE_C else {})}
        facts |= sound[0].made_by | {"bucket": bucket, "dtype": part.dtype}
        facts["ids"] = json.dumps([ids[member.row] for member in sound])
        shape, data = [len(sound), *sound[0].shape], b"".join(member.data for member in sound)
        written = work.folder.latents / file
        storage.write_bytes(written, latent_file(data, dtype=part.dtype, shape=shape, facts=facts))
        stale.discard(written)
    remote.remove(*stale)
    return work.commit(STAGE, shard, shards.table_of(STAGE, rows), seconds=seconds)


def _members(pieces: list[Batch], rows: list[Row]) -> dict[tuple[str, str], list[Member]]:
    """The latents of a shard by kind and bucket, in order of rows. A row with any that are not finite is marked."""
    found: dict[tuple[str, str], list[Member]] = defaultdict(list)
    for piece in (piece for piece in pieces if piece["pieces"] < 0):
        count, *shape = json.loads(piece["shape"])
        size = len(piece["data"]) // count
        finite, made_by = json.loads(piece["finite"]), json.loads(piece["made_by"])
        for at, row in enumerate(json.loads(piece["rows"])):
            data = piece["data"][at * size : (at + 1) * size]
            found[str(piece["kind"]), str(piece["bucket"])].append(Member(row, data, shape, made_by))
            if not finite[at]:
                rows[row] |= {"latents_error": KINDS[str(piece["kind"])].not_finite, "bucket": None, "crop": None}
    for members in found.values():
        members.sort(key=lambda member: member.row)
    return found
