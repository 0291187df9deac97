"""Small recipes for clusters, with the pictures and stand-in models that they need: seconds of work."""

from pathlib import Path
from typing import Any

from sote.cluster import logs, storage
from sote.cluster import recipe as recipes
from sote.data import painting, scenes, standins
from sote.data import recipe as curating
from sote.train import standins as stage_c
from sote.train.recipe import TrainRecipe
from tests.train.conftest import write_curated

PICTURES, SHARD_ROWS, SLICE_ROWS = 48, 8, 4
SCALE = 0.3  # of a scene: 384 pixels wide
BROKEN = "not a picture.png"


def make(folder: Path, *, pictures: int = PICTURES) -> None:
    """Write folder/pictures, one of them broken, and folder/models."""
    standins.make(folder / "models")
    (folder / "pictures").mkdir()
    for index in range(pictures):
        painting.paint(scenes.plan(3, index), scale=SCALE).save(folder / "pictures" / f"{index:03d}.png")
    storage.write_text(folder / "pictures" / BROKEN, "no picture")


def curation(made: Path, run: Path, *, latents: bool = True, hang_timeout_seconds: float = 900.0) -> Path:
    """The file of a recipe over what `make` wrote."""
    models = made / "models"
    part = curating.LatentsPart(encoder=str(models / "encoder"), resolution=256, bucket_step=32)
    recipe = curating.CurateRecipe(
        run=str(run),
        sources=(curating.Source(name="pictures", path=str(made / "pictures")),),
        shard_rows=SHARD_ROWS,
        slice_rows=SLICE_ROWS,
        decode=curating.DecodePart(min_pixels=1000),
        score=curating.ScorePart(
            aesthetic=str(models / "aesthetic"),
            quality_clip=str(models / "quality_clip"),
            quality_head=str(models / "quality_head"),
        ),
        tag=curating.TagPart(tagger=str(models / "tagger")),
        latents=part if latents else None,
        work=curating.WorkPart(hang_timeout_seconds=hang_timeout_seconds),
    )
    path = run.with_suffix(".toml")
    storage.write_text(path, recipes.dumps(recipe))
    return path


def training(made: Path, run: Path, *, steps: int, every_steps: int) -> Path:
    """The file of a recipe that trains the stand-in prior on two workers, over latents that nobody encoded."""
    curated, models = made / "curated", made / "prior"
    storage.once(curated, write_curated)
    storage.once(models, stage_c.make)
    recipe = TrainRecipe.model_validate(
        {
            "run": str(run),
            "data": {"curated": str(curated)},
            "model": {"prior": str(models / "prior")},
            "optimizer": {"text_encoder_learning_rate": 4e-6, "warmup_steps": 2},
            "batch": {"effective_batch": 4, "micro_batch": 2},
            "length": {"max_steps": steps},
            "workers": {"count": 2, "max_failures": 2},
            "checkpoint": {"every_steps": every_steps, "keep": 20},
            "export": {"decoder": str(models / "decoder")},
        }
    )
    path = run.with_suffix(".toml")
    storage.write_text(path, recipes.dumps(recipe))
    return path


def losses(run: Path) -> dict[int, float]:
    """Loss by step; of steps that were made again, the last."""
    return {line["step"]: line["loss"] for line in _lines(run, "step") if not line["skipped"]}


def saved(run: Path) -> set[int]:
    """The steps of the checkpoints that were written, and the start."""
    return {int(line["step"]) for line in _lines(run, "checkpoint")} | {0}


def _lines(run: Path, kind: str) -> list[dict[str, Any]]:
    path = run / "metrics.jsonl"
    return [line for line in logs.read_metrics(path) if line["kind"] == kind] if path.exists() else []
