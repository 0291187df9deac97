import json
import logging
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from sote.cluster.errors import CheckpointError
from sote.train import checkpoint
from sote.train.checkpoint import Reader, State
from sote.train.recipe import CheckpointPart
from sote.train.tensorfile import Planned
from sote.train.writer import File, Snapshot, Writer

STATE = State(
    step=10,
    updates=1,
    epoch=0,
    images_seen=4,
    seed=0,
    workers=2,
    recipe="cd" * 32,
    compression=32.0,
    encoder_sha256="ab" * 32,
    text_mask="masked",
    text_tokens=77,
    base="stable-cascade-prior",
    recent_losses=(0.1, math.pi, 1e-9),
    bad_steps=0,
    loss_buckets=(1.0, 1 / 3),
)
TENSORS = {
    "prior.safetensors": {"weight": torch.arange(6.0).reshape(2, 3), "bias": torch.zeros(2)},
    "ema_prior.safetensors": {"weight": torch.ones(2, 3), "bias": torch.ones(2)},
    "optimizer.safetensors": {"prior.weight/exp_avg_sq_row": torch.full((2,), 0.5)},
}


def save(folder: Path, step: int, files: dict[str, dict[str, Tensor]]) -> None:
    made = {
        name: File([Planned(key, "F32", tuple(it.shape), lambda it=it: it) for key, it in tensors.items()], {})  # type: ignore[misc]
        for name, tensors in files.items()
    }
    with Writer(CheckpointPart()) as writing:
        writing.save(Snapshot(folder / f"step-{step}", made, replace(STATE, step=step)))


@pytest.fixture
def two(tmp_path: Path) -> Path:
    """A folder with the checkpoints 10 and 20, of which a test damages the second."""
    save(tmp_path, 10, TENSORS)
    save(tmp_path, 20, TENSORS)
    return tmp_path


def newest(folder: Path) -> checkpoint.Checkpoint:
    found = checkpoint.newest(folder)
    assert found is not None
    return found


def test_a_state_goes_through_json_without_loss(two: Path) -> None:
    assert newest(two).state == replace(STATE, step=20)


def test_tensors_are_read_by_name_of_parameter(two: Path) -> None:
    reader = Reader(newest(two), has_lora=False)
    assert torch.equal(reader.weight("prior.weight"), TENSORS["prior.safetensors"]["weight"])
    assert torch.equal(reader.average("prior.bias"), torch.ones(2))
    assert torch.equal(reader.moment("prior.weight/exp_avg_sq_row"), torch.full((2,), 0.5))
    with pytest.raises(CheckpointError, match=r"prior\.safetensors: more: missing"):
        reader.weight("prior.more")
    with pytest.raises(CheckpointError, match=r"decoder\.safetensors: weight: missing"):
        reader.weight("decoder.weight")


def test_adapters_lie_under_plain_names(tmp_path: Path) -> None:
    save(tmp_path, 10, {"lora.safetensors": {"a.0.to_q.lora_A.weight": torch.ones(1)}})
    reader = Reader(newest(tmp_path), has_lora=True)
    assert torch.equal(reader.weight("prior.a.0.to_q.lora_A.default.weight"), torch.ones(1))


def test_the_newest_goes_by_number(tmp_path: Path) -> None:
    for step in (9, 100, 20):
        save(tmp_path, step, TENSORS)
    assert newest(tmp_path).path.name == "step-100"


def test_a_folder_that_a_kill_left_unfinished_is_not_taken(two: Path) -> None:
    (two / ".step-30.123.tmp").mkdir()
    assert newest(two).state.step == 20


@pytest.mark.parametrize("name", ["prior.safetensors", "ema_prior.safetensors", "optimizer.safetensors"])
@pytest.mark.parametrize("damage", ["flip", "cut", "remove"])
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_taken(
    two: Path, name: str, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = two / "step-20" / name
    data = bytearray(path.read_bytes())
    if damage == "flip":
        data[-3] ^= 1
        path.write_bytes(data)
    elif damage == "cut":
        path.write_bytes(data[:-8])
    else:
        path.unlink()
    with caplog.at_level(logging.WARNING):
        assert newest(two).state.step == 10
    assert f"step-20/{name}" in caplog.text


@pytest.mark.parametrize("text", ["", "{", "[]", '{"sha256": {}}', '{"step": 1}'])
def test_a_damaged_state_is_named_too(two: Path, text: str, caplog: pytest.LogCaptureFixture) -> None:
    (two / "step-20" / "state.json").write_text(text)
    with caplog.at_level(logging.WARNING):
        assert newest(two).state.step == 10
    assert "step-20/state.json: cannot be read" in caplog.text


def test_if_none_is_whole_training_does_not_start_anew_by_itself(two: Path) -> None:
    for step in (10, 20):
        (two / f"step-{step}" / "state.json").write_text("{")
    with pytest.raises(CheckpointError, match="not one of 2 checkpoints is whole"):
        checkpoint.newest(two)


def test_no_checkpoint_yet_is_none(tmp_path: Path) -> None:
    assert checkpoint.newest(tmp_path / "missing") is None


def test_a_checkpoint_of_another_model_is_refused_by_file_and_tensor(two: Path) -> None:
    found = newest(two)
    shapes = {name: tuple(tensor.shape) for name, tensor in TENSORS["prior.safetensors"].items()}
    checkpoint.check(found, {"prior.safetensors": shapes})
    cases = {
        r"prior\.safetensors: tensor weight has shape \(2, 3\), should have \(8, 3\)": shapes | {"weight": (8, 3)},
        r"prior\.safetensors: tensor more is missing \(1 in all\)": shapes | {"more": (1,)},
        r"prior\.safetensors: tensor bias is not of this model \(1 in all\)": {"weight": (2, 3)},
    }
    for said, wanted in cases.items():
        with pytest.raises(CheckpointError, match=said):
            checkpoint.check(found, {"prior.safetensors": wanted})


def test_a_checkpoint_of_another_stage_is_refused_in_one_line(two: Path) -> None:
    with pytest.raises(CheckpointError, match=r"step-20: has no decoder\.safetensors but ema_prior"):
        checkpoint.check(newest(two), {"decoder.safetensors": {}})


def test_a_file_that_is_no_safetensors_is_refused(two: Path) -> None:
    path = two / "step-20" / "prior.safetensors"
    save_file({"weight": torch.zeros(1)}, path)
    path.write_bytes(path.read_bytes()[:20])
    with pytest.raises(CheckpointError, match=r"prior\.safetensors"):
        checkpoint.check(checkpoint.Checkpoint(two / "step-20", STATE), {"prior.safetensors": {}})


def test_the_state_names_every_file_with_its_digest(two: Path) -> None:
    said = json.loads((two / "step-20" / "state.json").read_text())
    assert said["sha256"].keys() == {*TENSORS, "state.json"}


def test_a_number_of_the_state_that_was_changed_is_noticed(two: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = two / "step-20" / "state.json"
    path.write_text(path.read_text().replace('"updates": 1,', '"updates": 2,'))
    with caplog.at_level(logging.WARNING):
        assert newest(two).state.step == 10
    assert "step-20/state.json: damaged" in caplog.text
