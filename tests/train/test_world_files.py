"""The committed models of the small world: small, whole, and the folders that every command opens."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from sote.cluster.errors import WeightsError
from sote.train import world_base, world_files, world_models

MOST_BYTES = 12_000_000


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    world_files.unpack(folder)
    return folder


def test_what_is_committed_is_small_and_what_the_manifest_names() -> None:
    manifest = json.loads((world_files.HERE / world_files.MANIFEST).read_text())
    files = [path for path in world_files.HERE.iterdir() if path.suffix in (".safetensors", ".onnx")]
    assert sum(path.stat().st_size for path in files) < MOST_BYTES
    assert {path.name for path in files} <= set(manifest["files"])
    assert manifest["recipes"] == {
        f"{name}.toml": world_files.sha256(world_files.HERE / f"{name}.toml") for name in world_base.RECIPES
    }


def test_a_file_that_is_not_the_manifests_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(world_files.HERE, tmp_path / "world")
    with (tmp_path / "world" / "prior.safetensors").open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"\x7f")
    monkeypatch.setattr(world_files, "HERE", tmp_path / "world")
    with pytest.raises(WeightsError, match=r"prior\.safetensors: is not the file"):
        world_files.unpack(tmp_path / "out")


def test_packing_what_was_unpacked_gives_the_same_files(weights: Path, tmp_path: Path) -> None:
    world_files.pack(weights, tmp_path, facts={})
    for path in tmp_path.glob("*.safetensors"):
        there, here = load_file(world_files.HERE / path.name), load_file(path)
        assert there.keys() == here.keys()
        assert all(torch.equal(there[name], here[name]) for name in there), path.name


def test_the_text_encoder_knows_the_worlds_words_and_has_the_others_as_drawn(weights: Path) -> None:
    learnt = load_file(weights / "prior" / "text_encoder" / "model.safetensors")[world_files.TOKENS]
    drawn = world_models.text_encoder(world_files.SEED).state_dict()[world_files.TOKENS]
    moved = (learnt != drawn).any(dim=1)
    assert 50 < int(moved.sum()) < 1_000
    assert torch.equal(learnt[~moved], drawn[~moved])


def test_the_folders_open_as_those_of_the_real_models_do(weights: Path) -> None:
    from diffusers import StableCascadeDecoderPipeline, StableCascadePriorPipeline

    StableCascadePriorPipeline.from_pretrained(weights / "prior")
    StableCascadeDecoderPipeline.from_pretrained(weights / "decoder")
