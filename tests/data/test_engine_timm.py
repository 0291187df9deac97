"""Networks of the WD family in miniature, from a seed, in both layouts: torch's must say what the ONNX file says."""

import io
import json
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import nn

from sote.cluster import devices
from sote.cluster.errors import RunFailed, WeightsError
from sote.data import gate
from sote.data.engine_timm import TimmEngine
from sote.data.recipe import TagPart
from sote.data.schema import RATINGS
from sote.data.tag import Tagger, input_side

SIDE, TAGS = 32, 12
# Architectures of wd-swinv2-tagger-v3 and wd-vit-tagger-v3, the arguments as there but for the sizes
NETWORKS: dict[str, dict[str, Any]] = {
    "swinv2_base_window8_256": {
        "act_layer": "gelu_tanh",
        "img_size": SIDE,
        "window_size": 2,
        "embed_dim": 16,
        "depths": (1, 1, 1, 1),
        "num_heads": (1, 1, 2, 2),
    },
    "vit_base_patch16_224": {
        "act_layer": "gelu_tanh",
        "img_size": SIDE,
        "class_token": False,
        "global_pool": "avg",
        "fc_norm": False,
        "depth": 2,
        "embed_dim": 32,
        "num_heads": 2,
    },
}


class Published(nn.Module):
    """As the ONNX files are: BGR 0..255 in, normalised and with the sigmoid inside."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, pixels_BHWC: torch.Tensor) -> torch.Tensor:
        return torch.sigmoid(self.network((pixels_BHWC / 127.5 - 1).permute(0, 3, 1, 2)))


def config_of(architecture: str) -> dict[str, Any]:
    return {
        "architecture": architecture,
        "num_classes": TAGS,
        "model_args": NETWORKS[architecture],
        "pretrained_cfg": {
            "custom_load": False,
            "input_size": [3, SIDE, SIDE],
            "interpolation": "bicubic",
            "crop_pct": 1.0,
            "mean": [0.5, 0.5, 0.5],
            "std": [0.5, 0.5, 0.5],
            "num_classes": TAGS,
        },
    }


def write_tagger(folder: Path, architecture: str) -> Path:
    """A tagger folder with both layouts."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        network = timm.create_model(architecture, num_classes=TAGS, **NETWORKS[architecture]).eval()
        for name, tensor in network.named_parameters():
            if "norm" in name and name.endswith("weight"):
                nn.init.ones_(tensor)  # SwinV2 begins with zeros there: its blocks would do nothing
            elif tensor.ndim >= 2:  # weights that keep the size of what passes, so that pictures differ in the end
                nn.init.normal_(tensor, std=float(tensor[0].numel()) ** -0.5 * (3 if name.startswith("head") else 1))
    folder.mkdir()
    graph = io.BytesIO()
    names: Any = {"input_names": ["input"], "output_names": ["output"]}
    axes = {"input": {0: "batch_size"}, "output": {0: "batch_size"}}
    with warnings.catch_warnings():  # the old exporter is told to be old; the new one needs another package
        warnings.simplefilter("ignore")
        given = (torch.zeros(1, SIDE, SIDE, 3),)
        torch.onnx.export(Published(network), given, graph, dynamo=False, dynamic_axes=axes, **names)
    (folder / "model.onnx").write_bytes(graph.getvalue())
    save_file(network.state_dict(), folder / "model.safetensors", {"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config_of(architecture)))
    rows = [f"{9_999_999 - at},{name},9,0" for at, name in enumerate(RATINGS)]
    rows += [f"{at},tag_{at},0,1" for at in range(TAGS - len(RATINGS))]
    (folder / "selected_tags.csv").write_text("\n".join(["tag_id,name,category,count", *rows]) + "\n")
    return folder


@dataclass(frozen=True)
class Made:
    """A tagger folder, four pictures as it sees them (BGR), and what its ONNX file says of them."""

    folder: Path
    pixels: NDArray[np.uint8]
    said: NDArray[np.float32]


@pytest.fixture(scope="module", params=list(NETWORKS))
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = write_tagger(tmp_path_factory.mktemp("taggers") / request.param, request.param)
    pixels = gate.sample(width=SIDE, height=SIDE)[..., ::-1]
    said = Tagger(folder, part=TagPart(engine="cpu"), threads=1).probabilities(pixels)
    return Made(folder, pixels, said)


def copy_of(made: Made, folder: Path, **config: Any) -> Path:
    """The folder of torch's layout alone, with other values in pretrained_cfg."""
    whole = json.loads((made.folder / "config.json").read_text())
    whole["pretrained_cfg"] |= config
    (folder / "config.json").write_text(json.dumps(whole))
    for name in ("model.safetensors", "selected_tags.csv"):
        (folder / name).write_bytes((made.folder / name).read_bytes())
    return folder


def test_torch_says_what_the_onnx_file_says(made: Made) -> None:
    tagger = Tagger(made.folder, part=TagPart(engine="torch"))
    assert np.ptp(made.said, axis=0).max() > 0.05  # pictures differ, so equality means something
    np.testing.assert_allclose(tagger.probabilities(made.pixels), made.said, atol=1e-4)
    assert tagger.facts["engine"] == "torch"
    assert tagger.facts["max_difference"] == 0.0


def test_a_row_alone_says_what_it_says_in_a_batch(made: Made) -> None:
    tagger = Tagger(made.folder, part=TagPart(engine="torch"))
    alone = np.concatenate([tagger.probabilities(made.pixels[at : at + 1]) for at in range(len(made.pixels))])
    np.testing.assert_allclose(alone, tagger.probabilities(made.pixels), atol=1e-5)


def test_colours_are_normalised_as_rgb_and_then_turned(made: Made, tmp_path: Path) -> None:
    """As neggles/wdv3-timm does it: timm's transform, then inputs[:, [2, 1, 0]]."""
    mean, std = [0.1, 0.4, 0.8], [0.2, 0.5, 0.9]
    folder = copy_of(made, tmp_path, mean=mean, std=std)
    network = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    rgb = torch.from_numpy(np.ascontiguousarray(made.pixels[..., ::-1])).permute(0, 3, 1, 2) / 255
    normalised = (rgb - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    with torch.inference_mode():
        expected = torch.sigmoid(network(normalised[:, [2, 1, 0]])).numpy()
    found = Tagger(folder, part=TagPart(engine="torch")).probabilities(made.pixels)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert np.abs(found - made.said).max() > 0.01


def test_bfloat16_is_measured_against_float32_and_ends_the_run_where_it_strays(made: Made) -> None:
    tagger = Tagger(made.folder, part=TagPart(engine="torch", dtype="bfloat16"))
    worst = np.abs(tagger.probabilities(made.pixels) - made.said).max()
    assert tagger.facts["dtype"] == "bfloat16"
    assert tagger.facts["max_difference"] == pytest.approx(worst, abs=1e-4)
    assert 0 < worst < 0.02
    with pytest.raises(RunFailed, match=r"tag: engine torch on .* in bfloat16: differs by .* max_difference \(1e-06\)"):
        Tagger(made.folder, part=TagPart(engine="torch", dtype="bfloat16", max_difference=1e-6))


def test_without_an_onnx_file_auto_takes_torch(made: Made, tmp_path: Path) -> None:
    folder = copy_of(made, tmp_path)
    assert input_side(folder) == SIDE
    assert Tagger(folder).facts["engine"] == "torch"
    with pytest.raises(
        WeightsError, match=r"model\.onnx: no such file; a tagger is a folder with selected_tags\.csv and"
    ):
        Tagger(folder, part=TagPart(engine="cpu"))
    (folder / "model.safetensors").unlink()
    with pytest.raises(WeightsError, match=r"model\.safetensors: no such file"):
        Tagger(folder, part=TagPart(engine="torch"))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"interpolation": "bilinear"}, "interpolation is 'bilinear', pictures are prepared with 'bicubic'"),
        ({"crop_pct": 0.9}, r"crop_pct is 0\.9, pictures are prepared with 1\.0"),
        ({"input_size": [3, SIDE, 2 * SIDE]}, r"input_size is \[3, 32, 64\], expected \[3, side, side\]"),
        ({"mean": [0.5]}, r"mean is \[0\.5\], expected three numbers"),
    ],
)
def test_a_config_that_wants_other_pictures_is_refused(
    made: Made, tmp_path: Path, config: dict[str, Any], message: str
) -> None:
    with pytest.raises(WeightsError, match=rf"config\.json: pretrained_cfg\.{message}"):
        TimmEngine(copy_of(made, tmp_path, **config), device=devices.cpu(), dtype="float32")


def test_weights_that_are_broken_foreign_or_not_finite_are_refused(made: Made, tmp_path: Path) -> None:
    folder = copy_of(made, tmp_path)
    path, whole = folder / "model.safetensors", load_file(made.folder / "model.safetensors")
    first = next(iter(whole))
    for tensors in (
        {name: tensor for name, tensor in whole.items() if name != first},
        whole | {first: torch.zeros(3)},
        whole | {"foreign": torch.zeros(3)},
    ):
        save_file(tensors, path, {"format": "pt"})
        with pytest.raises(WeightsError, match="cannot be opened by timm"):
            TimmEngine(folder, device=devices.cpu(), dtype="float32")
    save_file(whole | {first: whole[first] * float("nan")}, path, {"format": "pt"})
    with pytest.raises(WeightsError, match=rf"model\.safetensors: {first} holds numbers that are not finite"):
        TimmEngine(folder, device=devices.cpu(), dtype="float32")
    path.write_bytes((made.folder / "model.safetensors").read_bytes()[:1000])
    with pytest.raises(WeightsError, match="cannot be opened by timm") as raised:
        TimmEngine(folder, device=devices.cpu(), dtype="float32")
    assert "\n" not in str(raised.value)


def test_a_config_that_is_not_timms_is_refused(made: Made, tmp_path: Path) -> None:
    folder = copy_of(made, tmp_path)
    (folder / "config.json").write_text('{"model_type": "vit"}')
    with pytest.raises(
        WeightsError, match=r"config\.json: is not timm's config: expected architecture and pretrained_cfg"
    ):
        input_side(folder)
    (folder / "config.json").write_text(json.dumps(config_of(next(iter(NETWORKS))) | {"architecture": "vit_of_1998"}))
    with pytest.raises(WeightsError, match=r"cannot be opened by timm \(Unknown model \(vit_of_1998\)\)"):
        TimmEngine(folder, device=devices.cpu(), dtype="float32")
