import json
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from sote.cluster.errors import WeightsError
from sote.train import folders


def test_a_header_says_what_is_in_the_file(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(2, 3), "n": torch.tensor(7)}, tmp_path / "x.safetensors", metadata={"format": "pt"})
    found = folders.header(tmp_path / "x.safetensors")
    assert {name: (one.dtype, one.shape) for name, one in found.tensors.items()} == {
        "a": ("F32", (2, 3)),
        "n": ("I64", ()),
    }
    assert found.metadata == {"format": "pt"}


def test_what_is_no_safetensors_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    for data in (b"", b"short", struct.pack("<Q", 1 << 40) + b"{}", struct.pack("<Q", 4) + b"nono"):
        path.write_bytes(data)
        with pytest.raises(WeightsError, match=r"x\.safetensors: not a safetensors file"):
            folders.header(path)
    with pytest.raises(WeightsError, match="cannot be read"):
        folders.header(tmp_path / "missing.safetensors")


def _entry(start: int, end: int, *, shape: list[int] | None = None, dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape or [2], "data_offsets": [start, end]}


@pytest.mark.parametrize(
    ("header", "words"),
    [
        ('{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}',
         "tensor a stands twice in it"),
        (json.dumps({"a": _entry(0, 8), "b": _entry(4, 12)}), "tensor b does not follow the one before it"),
        (json.dumps({"a": _entry(0, 4), "b": _entry(8, 16)}), "not a safetensors file"),
        (json.dumps({"a": _entry(0, 8), "b": _entry(12, 20)}), "tensor b does not follow the one before it"),
        (json.dumps({"a": _entry(0, 8, shape=[-2])}), "not a safetensors file"),
        (json.dumps({"a": _entry(0, 8, dtype="F31")}), "not a safetensors file"),
        (json.dumps({"a": {"dtype": "F32"}}), "not a safetensors file"),
        (json.dumps([1]), "not a safetensors file"),
    ],
    ids=["twice", "overlap", "short", "hole", "negative", "type", "half", "list"],
)  # fmt: skip
def test_a_header_that_contradicts_itself_is_refused(header: str, words: str, tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header.encode() + b"\0" * 16)
    with pytest.raises(WeightsError, match=rf"x\.safetensors: {words}"):
        folders.header(path)


def test_the_plain_file_is_taken_before_a_variant_and_a_lone_variant_is_found(tmp_path: Path) -> None:
    tensors = {"a": torch.zeros(1)}
    assert not folders.has_weights(tmp_path)
    with pytest.raises(WeightsError, match="has no weights"):
        folders.weight_files(tmp_path)
    save_file(tensors, tmp_path / "model.bf16.safetensors")
    assert [path.name for path in folders.weight_files(tmp_path)] == ["model.bf16.safetensors"]
    save_file(tensors, tmp_path / "model.fp16.safetensors")
    with pytest.raises(WeightsError, match=r"which weights are meant of model\.bf16\.safetensors, model\.fp16"):
        folders.weight_files(tmp_path)
    save_file(tensors, tmp_path / "model.safetensors")
    assert [path.name for path in folders.weight_files(tmp_path)] == ["model.safetensors"]


def test_all_parts_of_a_cut_file_are_needed(tmp_path: Path) -> None:
    for variant in ("", ".fp16"):
        for number in (1, 2):
            save_file({"a": torch.zeros(1)}, tmp_path / f"model{variant}-0000{number}-of-00002.safetensors")
        assert len(folders.weight_files(tmp_path)) == 2
        (tmp_path / f"model{variant}-00001-of-00002.safetensors").unlink()
        with pytest.raises(WeightsError, match="1 of 2 parts of the weights are here"):
            folders.weight_files(tmp_path)
        (tmp_path / f"model{variant}-00002-of-00002.safetensors").unlink()


def test_a_file_is_told_by_its_tensors(tiny: Path) -> None:
    vqgan = tiny / "decoder/vqgan/diffusion_pytorch_model.safetensors"
    folders.check_file(vqgan, field="f", wanted="vqgan")
    with pytest.raises(WeightsError, match="f: this is Stage A, the vqgan, here goes the EfficientNet encoder"):
        folders.check_file(vqgan, field="f", wanted="encoder")


def test_a_config_that_is_no_json_is_refused(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="no such file"):
        folders.config(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(WeightsError, match="not valid JSON"):
        folders.config(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"a": 1}))
    assert folders.config(tmp_path) == {"a": 1}
