import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from sote.cluster import storage
from sote.cluster.storage import RunFolder
from sote.data import encode, latentfile, pass_latents, shards
from sote.data.encode import EfficientNetEncoder, Encoder, Plan, stage_of
from sote.data.inputs import encoder_input
from sote.data.recipe import CurateRecipe
from sote.data.shards import Row, Work
from sote.data.watchdog import Patience

SIZES = [(96, 64), (70, 64), (128, 96), (64, 96), (97, 66), (40, 30), (96, 64)]


def write_encoder(folder: Path) -> Path:
    """An EfficientNet with a block in each stage."""
    torch.manual_seed(0)
    stages = tuple(
        stage_of(4, expand=2, stride=stride, width_out=4, blocks=1, squeeze=number > 2)
        for number, stride in enumerate(encode.STRIDES)
    )
    folder.mkdir(parents=True, exist_ok=True)
    save_file(EfficientNetEncoder(Plan(stem=4, stages=stages, head=8)).state_dict(), folder / encode.FILE)
    return folder


def picked(tmp_path: Path, *, vqgan: Path | None = None) -> Work:
    """A run whose pictures (SIZES) are decoded and, but for the last, selected; rows 1 and 3 are of the set decoder."""
    random, rows = np.random.default_rng(0), []
    for number, (width, height) in enumerate(SIZES):
        path = tmp_path / "pictures" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(path)
        row = {"row": number, "uri": str(path), "source": "s", "width": width, "height": height}
        row |= {"id": hashlib.sha256(path.read_bytes()).hexdigest(), "bytes": path.stat().st_size}
        rows.append(row | {"select_repeat": int(number < 6), "sets": ["other", "decoder"] if number in (1, 3) else []})
    latents = {"encoder": str(write_encoder(tmp_path / "encoder")), "resolution": 96, "bucket_step": 32}
    recipe = CurateRecipe.model_validate(
        {
            "run": str(tmp_path / "run"),
            "sources": [{"name": "s", "path": str(tmp_path / "pictures")}],
            "slice_rows": 2,
            "decode": {"min_pixels": 1},
            "select": {"sets": {"decoder": {}}},
            "latents": latents | {"vqgan": str(vqgan) if vqgan else None, "dtype": "float32"},
        }
    )
    work = Work(recipe, RunFolder(tmp_path / "run"), dict.fromkeys(("index", "decode", "select", "latents"), "d"))
    for stage in ("index", "decode", "select"):
        work.commit(stage, 0, shards.table_of(stage, rows), seconds=0.0)
    storage.commit(work.index_marker, digest="d", shards=1, rows=len(rows))
    return work


def made(work: Work) -> list[Row]:
    """What the pass makes of shard 0, without Ray."""
    part = work.recipe.latents
    assert part is not None
    vqgan = Path(part.vqgan) if part.vqgan else None
    patience = Patience("latents", 600.0, work.folder.root / ".hangs")
    encode_rows = pass_latents.EncodeRows(Path(part.encoder), vqgan, part.dtype, patience)
    cut = pass_latents.CutBuckets(work.folder, work.recipe, part)(shards.batch_of({"shard": 0}))
    pieces = [shards.cells_of(encode_rows(piece)) for piece in cut]
    encode_rows.watchdog.close()
    pass_latents.commit_shard(work, part, pieces[::-1], seconds=0.0)  # in whatever order they come
    return work.read(0, ("row", "uri", *shards.schema.written_by("latents").names[1:]))


def test_rows_lie_by_bucket_in_their_order_with_the_latents_of_their_crop(tmp_path: Path) -> None:
    work = picked(tmp_path)
    rows = made(work)
    assert [row["bucket"] for row in rows] == ["96x64", "64x64", "96x64", "64x96", "96x64", None, None]
    assert [row["latent_offset"] for row in rows] == [0, 0, 1, 0, 2, None, None]
    assert rows[4]["crop"] == [0, 0, 97, 65]
    assert [row["latents_skip"] for row in rows[4:]] == [None, "latents: smaller than any bucket", None]
    encoder = Encoder(tmp_path / "encoder", dtype="float32", device="cpu")
    for row in rows[:5]:
        width, height = map(int, row["bucket"].split("x"))
        image = Image.open(row["uri"]).convert("RGB")
        pixels = encoder_input(image, box=tuple(row["crop"]), width=width, height=height)
        latents = load_file(work.folder.latents / row["latent_shard"])["latents"][row["latent_offset"]]
        torch.testing.assert_close(latents, encoder.encode(pixels[None])[0], atol=1e-5, rtol=1e-5)
        assert row["vqgan_shard"] is None


def test_the_same_rows_give_the_same_files_and_those_of_an_earlier_recipe_go(tmp_path: Path) -> None:
    work = picked(tmp_path)
    made(work)
    stale = work.folder.latents / "vqgan" / "32x32" / "00000.safetensors"
    stale.parent.mkdir(parents=True)
    stale.write_bytes(b"")
    before = {path: path.read_bytes() for path in work.folder.latents.rglob("*.safetensors") if path != stale}
    assert len(before) == 3
    made(work)
    assert {path: path.read_bytes() for path in work.folder.latents.rglob("*.safetensors")} == before


def test_a_picture_that_vanished_changed_or_overflows_is_an_error_of_its_row_alone(tmp_path: Path) -> None:
    work = picked(tmp_path)
    (tmp_path / "pictures" / "0.png").unlink()
    (tmp_path / "pictures" / "1.png").write_bytes((tmp_path / "pictures" / "6.png").read_bytes())
    rows = made(work)
    assert [row["latents_error"] for row in rows[:3]] == [
        "latents: file vanished",
        "latents: file changed since it was looked at",
        None,
    ]
    assert [row["latent_offset"] for row in rows] == [None, None, 0, 0, 1, None, None]
    with safe_open(work.folder.latents / "96x64" / "00000.safetensors", framework="np") as file:
        assert len(json.loads(file.metadata()["ids"])) == 2
    tensors = load_file(tmp_path / "encoder" / encode.FILE)
    for name in ("backbone.7.1.weight", "mapper.0.weight"):
        tensors[name] *= 1e30
    save_file(tensors, tmp_path / "encoder" / encode.FILE)
    rows = made(work)
    assert {row["latents_error"] for row in rows[2:5]} == {"latents: not finite"}
    assert not list(work.folder.latents.rglob("*.safetensors"))
    assert all(row["bucket"] is None and row["latent_shard"] is None for row in rows)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_a_latent_file_is_a_safetensors_file_with_what_made_it(tmp_path: Path, dtype: str) -> None:
    latents = torch.arange(2 * 16 * 3 * 5, dtype=torch.float32).reshape(2, 16, 3, 5).to(getattr(torch, dtype))
    data = latents.view(torch.uint8).numpy().tobytes()
    facts = {"format": latentfile.STAGE_C.format, "ids": '["a", "b"]'}
    path = tmp_path / "00000.safetensors"
    path.write_bytes(latentfile.latent_file(data, dtype=dtype, shape=[2, 16, 3, 5], facts=facts))
    with safe_open(path, framework="pt") as file:
        assert file.metadata() == facts
        assert torch.equal(file.get_tensor("latents"), latents)
        assert torch.equal(file.get_slice("latents")[1], latents[1])


def test_the_same_latents_give_the_same_bytes_in_the_order_that_the_facts_are_given() -> None:
    data = np.zeros((1, 16, 2, 2), np.float16).tobytes()
    facts = {f"name{number}": str(number) for number in range(20)}
    one, two = (latentfile.latent_file(data, dtype="float16", shape=[1, 16, 2, 2], facts=dict(facts)) for _ in range(2))
    assert one == two
    places = [one.index(name.encode()) for name in facts]
    assert places == sorted(places)
    assert (len(one) - len(data)) % 8 == 0


def test_cells_are_pixels_over_compression() -> None:
    assert latentfile.latent_cells(1024, 32.0) == 32
    assert latentfile.latent_cells(1024, 42.67) == 24  # Stability's published pair
