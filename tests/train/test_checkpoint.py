import logging
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from sote.cluster.errors import CheckpointError
from sote.train import checkpoint, optimizer
from sote.train.checkpoint import State
from sote.train.recipe import OptimizerPart

PART = OptimizerPart(text_encoder_learning_rate=1e-4)
STATE = State(
    step=10,
    epoch=1,
    images_seen=40,
    seed=0,
    recipe="cd" * 32,
    compression=32.0,
    encoder_sha256="ab" * 32,
    text_mask="masked",
)


class Two(nn.Module):
    def __init__(self, *, width: int = 4, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.prior, self.text_encoder = nn.Linear(3, width), nn.Linear(5, 2)


def _save(folder: Path, *, step: int = 10, keep: int = 3, seed: int = 0) -> Two:
    model = Two(seed=seed)
    adafactor = optimizer.make(model, PART)
    for tensor in model.parameters():
        tensor.grad = torch.ones_like(tensor)
    adafactor.step()
    checkpoint.save(folder, replace(STATE, step=step), model=model, adafactor=adafactor, keep=keep)
    return model


@pytest.fixture
def damaged(tmp_path: Path) -> Path:
    """A folder with the checkpoints 10 and 20, of which a test damages the second."""
    _save(tmp_path, step=10)
    _save(tmp_path, step=20)
    return tmp_path


def test_what_was_saved_comes_back(tmp_path: Path) -> None:
    model = _save(tmp_path)
    found = checkpoint.newest(tmp_path)
    assert found is not None
    assert found.state == STATE
    fresh = Two(seed=9)
    checkpoint.load_weights(found, fresh)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), fresh.parameters(), strict=True))
    checkpoint.load_optimizer(found, fresh, optimizer.make(fresh, PART))


def test_only_the_newest_are_kept_and_nothing_temporary_is_left(tmp_path: Path) -> None:
    for step in (5, 10, 100, 20):
        _save(tmp_path, step=step, keep=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-100", "step-20"]
    found = checkpoint.newest(tmp_path)
    assert found is not None
    assert found.path.name == "step-100"


def test_a_folder_that_a_kill_left_unfinished_is_not_taken(tmp_path: Path) -> None:
    _save(tmp_path, step=10)
    (tmp_path / ".step-20.123.tmp").mkdir()
    found = checkpoint.newest(tmp_path)
    assert found is not None
    assert found.state.step == 10


@pytest.mark.parametrize("name", ["prior.safetensors", "optimizer.safetensors"])
@pytest.mark.parametrize("damage", ["flip", "cut", "remove"])
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_taken(
    damaged: Path, name: str, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = damaged / "step-20" / name
    data = bytearray(path.read_bytes())
    if damage == "flip":
        data[-3] ^= 1
        path.write_bytes(data)
    elif damage == "cut":
        path.write_bytes(data[:-8])
    else:
        path.unlink()
    with caplog.at_level(logging.WARNING):
        found = checkpoint.newest(damaged)
    assert found is not None
    assert found.state.step == 10
    assert f"step-20/{name}" in caplog.text


def test_if_none_is_whole_training_does_not_start_anew_by_itself(damaged: Path) -> None:
    for step in (10, 20):
        (damaged / f"step-{step}" / "state.json").write_text("{")
    with pytest.raises(CheckpointError, match="not one of 2 checkpoints is whole"):
        checkpoint.newest(damaged)


def test_no_checkpoint_yet_is_none(tmp_path: Path) -> None:
    assert checkpoint.newest(tmp_path / "missing") is None


def test_a_checkpoint_of_another_shape_is_refused_by_tensor(tmp_path: Path) -> None:
    _save(tmp_path)
    found = checkpoint.newest(tmp_path)
    assert found is not None
    with pytest.raises(CheckpointError, match=r"tensor weight has shape \(4, 3\), should have \(8, 3\)"):
        checkpoint.load_weights(found, Two(width=8))


def test_missing_and_extra_tensors_are_named() -> None:
    shapes = {"a": (1,), "b": (2,)}
    assert checkpoint.difference(shapes, {"a": (1,)}) == "tensor b is missing (1 in all)"
    assert checkpoint.difference(shapes, shapes | {"c": (1,)}) == "tensor c is not of this model (1 in all)"
    assert checkpoint.difference(shapes, shapes) is None
