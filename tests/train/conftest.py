import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from safetensors.torch import save_file

from sote.cluster import storage
from sote.data import schema
from sote.train import standins
from sote.train.recipe import TrainRecipe

BUCKETS = {"256x256": (8, 8), "320x192": (6, 10)}  # pixels, and latents [H,W] at compression 32


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the stand-in `prior` and `decoder`."""
    folder = tmp_path_factory.mktemp("tiny")
    standins.make(folder, seed=0)
    return folder


def write_curated(folder: Path, *, images: int = 22, seed: int = 0) -> Path:
    """A curate run folder as `sote curate` leaves it: `images` picked rows in two buckets, and two that are not."""
    random = np.random.default_rng(seed)
    rows, ids, latents = [], {name: [] for name in BUCKETS}, {name: [] for name in BUCKETS}
    for number in range(images + 2):
        name = "256x256" if number % 3 else "320x192"
        row = dict.fromkeys(schema.CATALOGUE.names) | {"id": f"{number:064x}", "uri": f"{number}.png", "source": "test"}
        tags = ["best quality", f"{number} shapes", 'The text says "a, b"', "red circle"]
        row |= {"pick": number < images, "repeat": 0, "caption": ", ".join(tags), "caption_tags": tags}
        if number < images:
            row |= {"repeat": 3 if number == 0 else 1, "bucket": name, "latent_shard": f"{name}/00000.safetensors"}
            row |= {"latent_offset": len(ids[name])}
            ids[name].append(row["id"])
            latents[name].append(random.standard_normal((16, *BUCKETS[name])))
        else:
            row |= {"skip_reason": "select: not good enough"}
        rows.append(row)
    for name in BUCKETS:
        path = folder / "latents" / name / "00000.safetensors"
        path.parent.mkdir(parents=True, exist_ok=True)
        facts = {"format": "sote-latents-1", "compression": "32.0", "encoder_sha256": "ab" * 32, "bucket": name}
        facts |= {"dtype": "float16", "ids": json.dumps(ids[name])}
        save_file({"latents": torch.tensor(np.stack(latents[name]), dtype=torch.float16)}, path, metadata=facts)
    storage.write_table(folder / "catalogue.parquet", pa.Table.from_pylist(rows, schema=schema.CATALOGUE))
    return folder


@pytest.fixture(scope="session")
def curated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of a small curate run; not to be changed."""
    return write_curated(tmp_path_factory.mktemp("curated"))


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
