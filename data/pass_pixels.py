"""One pass over the pixels: decode, score and tag share a single decode of each picture.

A shard is one task that reads its files in order and hands on slices of `slice_rows` rows. The models live in one pool
of actors, one for each accelerator whatever its make: an actor finds its device and engine when it starts, and takes a
slice whenever it is free, with the next one waiting, so that a slow device holds the end back by two at most. A slice
always holds the same rows and is padded to one size, so a score does not depend on which worker computed it, on what
else ran, or on how often the run was interrupted. The driver collects slices and commits shards.
Reads: uri, offset, bytes, index_skip, index_error. Writes: the columns of decode, score and tag.

Kind: wiring.
"""

import functools
import json
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import ray

from sote.cluster import logs, remote, weights
from sote.cluster.storage import RunFolder
from sote.data import brought, needs, shards, watchdog
from sote.data.decoder import Decoder
from sote.data.inputs import InputShapes
from sote.data.recipe import CurateRecipe, DecodePart, ScorePart, TagPart
from sote.data.schema import RATINGS
from sote.data.shards import Late, Work
from sote.data.watchdog import Patience, Watchdog

STAGES = ("decode", "score", "tag")
READ = ("row", "uri", "offset", "bytes", "index_skip", "index_error")

Batch = dict[str, Any]


@dataclass(frozen=True)
class Models:
    """Where the scorers and the tagger lie on this machine, and how they are run. Another node gets the places of its
    own copies of what lies at a URI; `weights.here` brings them."""

    aesthetic: Path
    quality_clip: Path
    quality_head: Path
    tagger: Path
    score: ScorePart
    tag: TagPart

    def __reduce__(self) -> tuple[Any, ...]:
        paths = (self.aesthetic, self.quality_clip, self.quality_head, self.tagger)
        return _models, (*map(remote.named, paths), self.score, self.tag)

    def shapes(self) -> InputShapes:
        """The sizes of the pictures that the models take."""
        from sote.data import score, tag  # heavy: only where models are at hand

        return InputShapes(
            tagger_side=tag.input_side(self.tagger),
            aesthetic_size=score.aesthetic_size(self.aesthetic),
            quality_side=score.quality_side(self.quality_clip),
        )


def _models(*given: Any) -> Models:
    *places, score, tag = given
    aesthetic, quality_clip, quality_head, tagger = map(remote.place, places)
    return Models(aesthetic, quality_clip, quality_head, tagger, score, tag)


def models_of(recipe: CurateRecipe) -> Models:
    """Find the models that a recipe names; raises WeightsError for the first that is missing."""
    return Models(
        aesthetic=weights.locate(recipe.score.aesthetic, field="score.aesthetic"),
        quality_clip=weights.locate(recipe.score.quality_clip, field="score.quality_clip"),
        quality_head=weights.locate(recipe.score.quality_head, field="score.quality_head"),
        tagger=weights.locate(recipe.tag.tagger, field="tag.tagger", layouts=weights.tagger_layouts(recipe.tag.engine)),
        score=recipe.score,
        tag=recipe.tag,
    )


def run(work: Work) -> None:
    """Bring decode, score and tag up to date for every shard that lacks one of them."""
    pending = sorted({shard for stage in STAGES for shard in work.pending(stage)})
    if not pending:
        return
    collected: dict[int, list[Batch]] = {}
    engines: set[str] = set()
    started = last = time.monotonic()
    with logs.progress("decode, score, tag", sum(work.rows_in(shard) for shard in pending)) as advance:
        for piece in pieces(work, pending):
            shard = int(piece["shard"])
            collected.setdefault(shard, []).append(piece)
            _record_engines(work, str(piece.pop("engines")), engines)
            reasons = Counter[str]()
            if sum(int(each["rows"]) for each in collected[shard]) == work.rows_in(shard):
                last, before = time.monotonic(), last
                reasons = _commit(work, shard, collected.pop(shard), seconds=last - max(before, started))
            advance(int(piece["rows"]), reasons)


def pieces(work: Work, pending: list[int]) -> Iterator[Batch]:
    """Decode, score and tag these shards: slices with their tables, as they are ready, in no set order."""
    with watchdog.patience(work, "tag") as patience:
        for wave in shards.waves(pending, pieces=work.slices):
            yield from shards.stream(_dataset(work, wave, patience))


def _dataset(work: Work, pending: Sequence[int], patience: Patience) -> ray.data.Dataset:
    recipe, models = work.recipe, models_of(work.recipe)
    cut = Cut(work.folder, recipe.decode, models.shapes(), recipe.slice_rows)
    decode_cpus, model_cpus = shares()
    slices = shards.each(pending).map_batches(cut, batch_size=1, batch_format="numpy", num_cpus=decode_cpus)
    given = (models, recipe.slice_rows, patience)
    ask, ahead = needs.pixels(recipe), shards.SLICES_IN_FLIGHT
    return shards.pooled(slices, Look, given, cpus=model_cpus, device_bytes=ask, in_flight=ahead)


def shares() -> tuple[float, float]:
    """Shares of a CPU for a decoding task, and for a model where there is no accelerator.

    On a small machine two decoding tasks and a model fit two cores. The shares differ because Ray Data fuses neighbours
    that ask for the same, and decoding would then run in the model's actor.
    """
    resources: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    return (1.0, 0.9) if resources.get("CPU", 0) >= 4 else (0.5, 0.8)


@dataclass(frozen=True)
class Cut:
    """Decodes the pictures of one shard and cuts them into slices, as a Ray Data function."""

    folder: RunFolder
    rule: DecodePart
    shapes: InputShapes
    slice_rows: int

    def __call__(self, batch: Any) -> Iterator[Batch]:
        shard = int(batch["shard"][0])
        rows = shards.read_rows(self.folder, shard, READ)
        decoder = _decoder(self.rule, self.shapes, self.slice_rows)
        for start in range(0, len(rows), self.slice_rows):
            piece = rows[start : start + self.slice_rows]
            decoded, arrays = brought.decoded(decoder, piece, rule=self.rule)
            sound = np.zeros(self.slice_rows, np.bool_)  # what fills up is zeros, and False here
            sound[: len(piece)] = [row["sound"] for row in decoded]
            columns = [row | found for row, found in zip(piece, decoded, strict=True)]
            table = shards.to_bytes(shards.table_of("decode", columns))
            cells = {"shard": shard, "start": start, "rows": len(piece), "sound": sound, "decode": table}
            yield shards.batch_of(cells | arrays)


@functools.lru_cache(maxsize=1)
def _decoder(rule: DecodePart, shapes: InputShapes, slice_rows: int) -> Decoder:
    """The decoder of this worker's process; its child lives as long as the worker does."""
    return Decoder(rule, shapes, slice_rows=slice_rows)


class Look:
    """Scorer and tagger of one device as a Ray Data actor: a slice in, the slice with its tables out."""

    def __init__(self, models: Models, rows: int, patience: Patience) -> None:
        from sote.data.score import Scorer
        from sote.data.tag import Tagger

        paths = (models.aesthetic, models.quality_clip, models.quality_head)
        self.scorer = Late(lambda: Scorer(*map(weights.here, paths), part=models.score, rows=rows))
        self.tagger = Late(lambda: Tagger(weights.here(models.tagger), part=models.tag, rows=rows))
        self.watchdog = Watchdog(patience)

    def __call__(self, batch: Any) -> Batch:
        piece = shards.cells_of(batch)
        scorer, tagger = self.scorer.get(), self.tagger.get()
        start, rows = int(piece["start"]), int(piece["rows"])
        inputs = {name: piece.pop(name) for name in ("sound", "aesthetic_input", "quality_input", "tagger_input")}
        shard, named = int(piece["shard"]), f"rows {start} to {start + rows - 1}"
        with self.watchdog.over(shard, named, key=f"{shard:05d}-{start}"):
            scored, tagged = score_rows(scorer(inputs), rows), tag_rows(tagger(inputs), rows)
        for stage, found in (("score", scored), ("tag", tagged)):
            numbered = [row | {"row": start + at} for at, row in enumerate(found)]
            piece[stage] = shards.to_bytes(shards.table_of(stage, numbered))
        node = ray.get_runtime_context().get_node_id()
        piece["engines"] = json.dumps([facts | {"node": node} for facts in (scorer.facts, tagger.facts)])
        return shards.batch_of(piece)


def score_rows(out: Batch, rows: int) -> list[dict[str, Any]]:
    """What a scorer gave for the first `rows` rows of a slice. A number that is not finite is null."""
    names = ("aesthetic_score", "aesthetic_logit", "quality_score", "quality_logit")
    return [
        {name: float(out[name][at]) if np.isfinite(out[name][at]) else None for name in names}
        | {"score_error": out["score_error"][at]}
        for at in range(rows)
    ]


def tag_rows(out: Batch, rows: int) -> list[dict[str, Any]]:
    """What a tagger gave for the first `rows` rows of a slice; a row that it did not look at has no tags."""
    found = []
    for at in range(rows):
        tagged = out["tags_json"][at] is not None
        tags = json.loads(out["tags_json"][at]) if tagged else []
        rating = dict(zip(RATINGS, map(float, out["rating"][at]), strict=True)) if tagged else None
        keys = ("name", "probability", "category")
        listed = [dict(zip(keys, tag, strict=True)) for tag in tags] if tagged else None
        found.append({"rating": rating, "tags": listed, "tag_error": out["tag_error"][at]})
    return found


def _record_engines(work: Work, engines: str, known: set[str]) -> None:
    """Write into the metrics what a worker runs on, once for each worker's device and engine."""
    if engines not in known:
        known.add(engines)
        for facts in json.loads(engines):
            work.metrics.write(kind="engine", **facts)


def _commit(work: Work, shard: int, pieces: list[Batch], *, seconds: float) -> Counter[str]:
    """Commit each stage that lacks the shard. The pass is one: its seconds are shared evenly by its stages."""
    pieces.sort(key=lambda piece: int(piece["start"]))
    reasons = Counter[str]()
    for stage in STAGES:
        if not work.is_committed(stage, shard):
            table = pa.concat_tables([shards.from_bytes(piece[stage]) for piece in pieces])
            reasons.update(work.commit(stage, shard, table, seconds=seconds / len(STAGES)))
    return reasons
