"""One pass over the pixels: decode, score and tag share a single decode of each picture.

A shard is one task that reads its files in order and hands on slices of `slice_rows` rows; the scorer and the tagger
are actors. A slice always holds the same rows and is padded to one size, so a score does not depend on which worker
computed it, on what else ran, or on how often the run was interrupted. The driver collects slices and commits shards.
Reads: uri, index_skip, index_error. Writes: the columns of decode, score and tag.

Kind: wiring.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import ray
from ray.data import ActorPoolStrategy

from sote.cluster import logs, session, weights
from sote.cluster.storage import RunFolder
from sote.data import shards
from sote.data.decode import decode_row
from sote.data.inputs import InputShapes, blank_inputs
from sote.data.recipe import CurateRecipe, DecodePart
from sote.data.schema import RATINGS
from sote.data.shards import Late, Work

STAGES = ("decode", "score", "tag")
# Shares of a CPU, so that two decoding tasks and two models fit two cores; one accelerator carries both models. They
# differ because Ray Data fuses neighbours that ask for the same, and decoding would then run in the model's actor.
DECODE_CPUS, MODEL_CPUS, MODEL_GPUS = 0.5, 0.4, 0.5

Batch = dict[str, Any]


@dataclass(frozen=True)
class Models:
    """Where the scorers and the tagger lie on this machine."""

    aesthetic: Path
    quality_clip: Path
    quality_head: Path
    tagger: Path

    def shapes(self) -> InputShapes:
        """The sizes of the pictures that the models take."""
        from sote.data import score, tag  # heavy: only where models are at hand

        return InputShapes(
            tagger_side=tag.input_side(self.tagger),
            aesthetic_size=score.aesthetic_size(self.aesthetic),
            quality_side=score.quality_side(self.quality_clip),
        )


def models_of(recipe: CurateRecipe) -> Models:
    """Find the models that a recipe names; raises WeightsError for the first that is missing."""
    return Models(
        aesthetic=weights.locate(recipe.score.aesthetic, field="score.aesthetic"),
        quality_clip=weights.locate(recipe.score.quality_clip, field="score.quality_clip"),
        quality_head=weights.locate(recipe.score.quality_head, field="score.quality_head"),
        tagger=weights.locate(recipe.tag.tagger, field="tag.tagger"),
    )


def run(work: Work) -> None:
    """Bring decode, score and tag up to date for every shard that lacks one of them."""
    pending = sorted({shard for stage in STAGES for shard in work.pending(stage)})
    if not pending:
        return
    collected: dict[int, list[Batch]] = {}
    started = last = time.monotonic()
    with logs.progress("decode, score, tag", sum(work.rows_in(shard) for shard in pending)) as advance:
        for piece in shards.stream(_dataset(work, pending)):
            shard = int(piece["shard"])
            collected.setdefault(shard, []).append(piece)
            advance(int(piece["rows"]))
            if sum(int(piece["rows"]) for piece in collected[shard]) == work.rows_in(shard):
                last, before = time.monotonic(), last
                _commit(work, shard, collected.pop(shard), seconds=last - max(before, started))


def _dataset(work: Work, pending: list[int]) -> ray.data.Dataset:
    recipe, models = work.recipe, models_of(work.recipe)
    cut = Cut(work.folder, recipe.decode, models.shapes(), recipe.slice_rows)
    cpus, gpus, actors = session.model_pool(cpus=MODEL_CPUS, gpus=MODEL_GPUS)
    pool, given = ActorPoolStrategy(size=actors), (models,)
    return (
        shards.each(pending)
        .map_batches(cut, batch_size=1, batch_format="numpy", num_cpus=DECODE_CPUS)
        .map_batches(ScoreRows, fn_constructor_args=given, batch_size=1, compute=pool, num_cpus=cpus, num_gpus=gpus)
        .map_batches(TagRows, fn_constructor_args=given, batch_size=1, compute=pool, num_cpus=cpus, num_gpus=gpus)
    )


@dataclass(frozen=True)
class Cut:
    """Decodes the pictures of one shard and cuts them into slices, as a Ray Data function."""

    folder: RunFolder
    rule: DecodePart
    shapes: InputShapes
    slice_rows: int

    def __call__(self, batch: Any) -> Iterator[Batch]:
        shard = int(batch["shard"][0])
        rows = shards.read_rows(self.folder, shard, ("row", "uri", "index_skip", "index_error"))
        for start in range(0, len(rows), self.slice_rows):
            piece = rows[start : start + self.slice_rows]
            decoded = [row | decode_row(row, rule=self.rule, shapes=self.shapes) for row in piece]
            table = shards.to_bytes(shards.table_of("decode", decoded))
            arrays = {name: self._padded([row[name] for row in decoded]) for name in blank_inputs(self.shapes)}
            sound = self._padded([np.bool_(row["sound"]) for row in decoded])
            cells = {"shard": shard, "start": start, "rows": len(piece), "sound": sound, "decode": table}
            yield shards.batch_of(cells | arrays)

    def _padded(self, values: list[Any]) -> np.ndarray[Any, Any]:
        """Stack to exactly slice_rows: what fills up is zeros, and False in `sound`."""
        stacked = np.stack(values)
        missing = self.slice_rows - len(stacked)
        return np.concatenate([stacked, np.zeros((missing, *stacked.shape[1:]), stacked.dtype)]) if missing else stacked


class ScoreRows:
    """The scorer as a Ray Data actor: one slice in, the slice with its `score` table out."""

    def __init__(self, models: Models) -> None:
        from sote.data.score import Scorer

        self.scorer = Late(lambda: Scorer(models.aesthetic, models.quality_clip, models.quality_head))

    def __call__(self, batch: Any) -> Batch:
        piece = shards.cells_of(batch)
        models = ("sound", "aesthetic_input", "quality_input")
        out = self.scorer.get()({name: piece.pop(name) if name != "sound" else piece[name] for name in models})
        names = ("aesthetic_score", "aesthetic_logit", "quality_score", "quality_logit", "score_error")
        return _add(piece, "score", [{name: _plain(out[name][at]) for name in names} for at in range(piece["rows"])])


class TagRows:
    """The tagger as a Ray Data actor: one slice in, the slice with its `tag` table out."""

    def __init__(self, models: Models) -> None:
        from sote.data.tag import Tagger

        self.tagger = Late(lambda: Tagger(models.tagger))

    def __call__(self, batch: Any) -> Batch:
        import json

        piece = shards.cells_of(batch)
        out = self.tagger.get()({"sound": piece["sound"], "tagger_input": piece.pop("tagger_input")})
        rows = []
        for at in range(piece["rows"]):
            tagged = bool(piece["sound"][at]) and out["tag_error"][at] is None
            tags = json.loads(out["tags_json"][at]) if tagged else []
            keys = ("name", "probability", "category")
            rating = dict(zip(RATINGS, map(float, out["rating"][at]), strict=True)) if tagged else None
            rows.append(
                {
                    "rating": rating,
                    "tags": [dict(zip(keys, tag, strict=True)) for tag in tags] if tagged else None,
                    "tag_error": out["tag_error"][at],
                }
            )
        return _add(piece, "tag", rows)


def _add(piece: Batch, stage: str, rows: list[dict[str, Any]]) -> Batch:
    numbered = [row | {"row": int(piece["start"]) + at} for at, row in enumerate(rows)]
    return shards.batch_of(piece | {stage: shards.to_bytes(shards.table_of(stage, numbered))})


def _plain(value: Any) -> Any:
    """A number that is not finite is null in the rows."""
    if isinstance(value, np.floating):
        return float(value) if np.isfinite(value) else None
    return value


def _commit(work: Work, shard: int, pieces: list[Batch], *, seconds: float) -> None:
    """Commit each stage that lacks the shard. The pass is one: its seconds are shared evenly by its stages."""
    pieces.sort(key=lambda piece: int(piece["start"]))
    for stage in STAGES:
        if not work.is_committed(stage, shard):
            table = pa.concat_tables([shards.from_bytes(piece[stage]) for piece in pieces])
            work.commit(stage, shard, table, seconds=seconds / len(STAGES))
