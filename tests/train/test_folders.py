import json
import struct
from pathlib import Path

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


def test_the_plain_file_is_taken_before_a_variant_and_a_lone_variant_is_found(tmp_path: Path) -> None:
    tensors = {"a": torch.zeros(1)}
    save_file(tensors, tmp_path / "model.bf16.safetensors")
    assert folders.variant(tmp_path) == "bf16"
    save_file(tensors, tmp_path / "model.fp16.safetensors")
    with pytest.raises(WeightsError, match=r"which weights are meant of model\.bf16\.safetensors, model\.fp16"):
        folders.weights(tmp_path)
    save_file(tensors, tmp_path / "model.safetensors")
    assert folders.weights(tmp_path).name == "model.safetensors"
    assert folders.variant(tmp_path) is None


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
