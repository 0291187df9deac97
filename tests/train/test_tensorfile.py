from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from sote.cluster.errors import CheckpointError
from sote.train import tensorfile
from sote.train.folders import Stored
from sote.train.names import Entry


def _planned(tensors: dict[str, torch.Tensor], entries: list[Entry]) -> list[tensorfile.Planned]:
    types = {torch.float32: "F32", torch.bfloat16: "BF16", torch.int64: "I64"}
    stored = {name: Stored(types[one.dtype], tuple(one.shape), 0, 0) for name, one in tensors.items()}
    return [
        tensorfile.planned(entry, stored=stored, read=tensors.__getitem__, dtype=torch.float16) for entry in entries
    ]


def test_tensors_are_joined_cast_and_kept(tmp_path: Path) -> None:
    tensors = {"q": torch.randn(2, 3), "k": torch.randn(2, 3).bfloat16().float(), "n": torch.tensor([5])}
    entries = [Entry("qk", ("q", "k")), Entry("n", ("n",)), Entry("third", ("j",), third=1)]
    tensors["j"] = torch.arange(12.0).reshape(6, 2)
    tensorfile.write(tmp_path / "x.safetensors", _planned(tensors, entries), metadata={"format": "pt"})
    found = load_file(tmp_path / "x.safetensors")
    assert torch.equal(found["qk"], torch.cat([tensors["q"], tensors["k"]]).half())
    assert torch.equal(found["n"], tensors["n"])
    assert found["third"].tolist() == [[4, 5], [6, 7]]
    with safe_open(tmp_path / "x.safetensors", framework="pt") as file:
        assert file.metadata() == {"format": "pt"}


def test_only_one_tensor_is_read_at_a_time(tmp_path: Path) -> None:
    alive: list[str] = []

    class Watched(torch.Tensor):
        def __del__(self) -> None:
            alive.clear()

    def read(name: str) -> torch.Tensor:
        assert alive == []
        alive.append(name)
        return torch.ones(4).as_subclass(Watched)

    stored = {name: Stored("F32", (4,), 0, 0) for name in "abc"}
    planned = [
        tensorfile.planned(Entry(name, (name,)), stored=stored, read=read, dtype=torch.float16) for name in "abc"
    ]
    tensorfile.write(tmp_path / "x.safetensors", planned, metadata={})
    assert set(load_file(tmp_path / "x.safetensors")) == set("abc")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e5])
def test_what_is_not_finite_in_fp16_is_refused_and_nothing_is_left(tmp_path: Path, value: float) -> None:
    tensors = {"good": torch.ones(2), "late": torch.tensor([1.0, value])}
    entries = [Entry("good", ("good",)), Entry("late", ("late",))]
    with pytest.raises(CheckpointError, match=r"x\.safetensors: late: has numbers that F16 cannot hold"):
        tensorfile.write(tmp_path / "x.safetensors", _planned(tensors, entries), metadata={})
    assert list(tmp_path.iterdir()) == []
