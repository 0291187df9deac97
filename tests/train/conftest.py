import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from sote.cluster import storage
from sote.data import schema
from sote.data.latentfile import STAGE_A, STAGE_C, Kind, latent_file
from sote.train import standins
from sote.train.recipe import TrainRecipe

BUCKETS = {"256x256": (8, 8), "320x192": (6, 10)}  # pixels, and latents [H,W] at compression 32


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the stand-in `prior` and `decoder`."""
    folder = tmp_path_factory.mktemp("tiny")
    standins.make(folder, seed=0)
    return folder


def write_curated(folder: Path, *, images: int = 22, seed: int = 0, pictures: bool = False) -> Path:
    """A curate run folder as `sote curate` leaves it: `images` picked rows in two buckets, with latents of both stages,
    and two that are not picked. With `pictures`, ids and uris are those of PNG files in the folder."""
    random = np.random.default_rng(seed)
    rows: list[dict[str, Any]] = []
    for number in range(images + 2):
        name = "256x256" if number % 3 else "320x192"
        row = dict.fromkeys(schema.CATALOGUE.names) | {"id": f"{number:064x}", "uri": f"{number}.png", "source": "test"}
        tags = ["best quality", f"{number} shapes", 'The text says "a, b"', "red circle"]
        row |= {"pick": number < images, "repeat": 0, "caption": ", ".join(tags), "caption_tags": tags}
        row |= {"caption_groups": [0, 1, 2, 3]} | dict(zip(("width", "height"), map(int, name.split("x")), strict=True))
        if number < images:
            row |= {"repeat": 3 if number == 0 else 1, "bucket": name, "crop": [0, 0, row["width"], row["height"]]}
        else:
            row |= {"skip_reason": "select: not good enough"}
        rows.append(row | (_picture(folder / f"{number}.png", row, random) if pictures else {}))
    for name, (height, width) in BUCKETS.items():
        members = [row for row in rows if row["bucket"] == name]
        _write_latents(folder, members, (16, height, width), kind=STAGE_C, random=random)
        _write_latents(folder, members, (4, 8 * height, 8 * width), kind=STAGE_A, random=random)
    storage.write_table(folder / "catalogue.parquet", pa.Table.from_pylist(rows, schema=schema.CATALOGUE))
    return folder


def _write_latents(
    folder: Path, rows: list[dict[str, Any]], shape: tuple[int, int, int], *, kind: Kind, random: np.random.Generator
) -> None:
    """One latent file of the rows of a bucket; they are told their places in it."""
    file = f"{kind.folder}{rows[0]['bucket']}/00000.safetensors"
    for offset, row in enumerate(rows):
        row |= {kind.shard: file, kind.offset: offset}
    facts = {"format": kind.format, "bucket": rows[0]["bucket"], "dtype": "float16"}
    facts |= {"compression": "32.0", "encoder_sha256": "ab" * 32} if kind is STAGE_C else {}
    facts |= {"scale": "1.0", "vqgan_sha256": "cd" * 32} if kind is STAGE_A else {}
    facts["ids"] = json.dumps([row["id"] for row in rows])
    data = random.standard_normal((len(rows), *shape)).astype(np.float16).tobytes()
    whole = latent_file(data, dtype="float16", shape=[len(rows), *shape], facts=facts)
    (folder / "latents" / file).parent.mkdir(parents=True, exist_ok=True)
    (folder / "latents" / file).write_bytes(whole)


def _picture(path: Path, row: dict[str, Any], random: np.random.Generator) -> dict[str, Any]:
    """A picture of the row's size, and what the row says of it."""
    pixels = random.integers(0, 256, (row["height"] // 16, row["width"] // 16, 3), np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).resize((row["width"], row["height"])).save(path)
    return {"uri": str(path), "id": hashlib.sha256(path.read_bytes()).hexdigest()}


@pytest.fixture(scope="session")
def curated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of a small curate run; not to be changed."""
    return write_curated(tmp_path_factory.mktemp("curated"))


@pytest.fixture(scope="session")
def pictured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of a small curate run whose pictures are there; not to be changed."""
    return write_curated(tmp_path_factory.mktemp("pictured"), images=8, pictures=True)


@pytest.fixture
def recipe(tmp_path: Path, tiny: Path, curated: Path) -> Callable[..., TrainRecipe]:
    """Makes small recipes; tables are given as dictionaries and merged over the defaults of the tests."""

    def make(**tables: dict[str, object]) -> TrainRecipe:
        values: dict[str, dict[str, object]] = {
            "data": {"curated": str(curated)},
            "model": {"prior": str(tiny / "prior")},
            "optimizer": {"text_encoder_learning_rate": 4e-6, "warmup_steps": 2},
            "batch": {"effective_batch": 4, "micro_batch": 2},
            "length": {"max_steps": 4},
            "workers": {"count": 1},
            "checkpoint": {"every_steps": 2, "keep": 2},
            "export": {"decoder": str(tiny / "decoder")},
        }
        for name, table in tables.items():
            values[name] = values.get(name, {}) | table
        return TrainRecipe.model_validate({"run": str(tmp_path / "run")} | values)

    return make
