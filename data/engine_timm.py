"""The tagger's network in torch, through timm: NVIDIA, AMD, Intel or the CPU, compiled and in bfloat16 where asked.

A folder holds timm's config.json (architecture, num_classes, model_args, pretrained_cfg) and model.safetensors. The
network takes normalised BGR and gives logits: the sigmoid is outside (SmilingWolf/wd-*-tagger-v3, neggles/wdv3-timm).
Shape suffixes: B rows of the batch, T tags, HWC height, width, colour, CHW the same as float.

Kind: actor.
"""

import logging
import os
import shutil
from pathlib import Path
from typing import Any, Self

import numpy as np
import timm
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from torch import nn

from sote.cluster.devices import INSTALL, Device
from sote.cluster.errors import RunFailed, WeightsError
from sote.data.pretrained import exact_float32, needed, one_line, read_json

# SwinV2's biases of attention: made of coordinates alone, and added up to 16 times before a softmax
FLOAT32_PARTS = frozenset({"cpb_mlp"})
HEAD = "head"  # timm's name for it in every architecture of the family
CONFIG, WEIGHTS = "config.json", "model.safetensors"
# How tagger_input is made (data/inputs.py); a network that wants something else is not fed
PREPARED = {"interpolation": "bicubic", "crop_pct": 1.0}
# What timm and torch raise for a config or weights that do not fit each other
UNFIT = (OSError, ValueError, KeyError, TypeError, RuntimeError, AttributeError, AssertionError, SafetensorError)

log = logging.getLogger(__name__)


class TimmEngine:
    """The network in `folder` on `device`. bfloat16 is in products and convolutions; norms, softmax, what is added up

    along the way, and the head stay float32. `rows` is the batch that a compiled network is built for.
    """

    name = "torch"
    fixed_rows: int | None = None

    def __init__(self, folder: Path, *, device: Device, dtype: str, compiled: bool = False, rows: int = 1) -> None:
        self.side = input_side(folder)
        self.dtype, self._folder, self._device = dtype, folder, _working(folder, device)
        self.model_bytes = (folder / WEIGHTS).stat().st_size
        self._mean, self._std = _normalisation(folder)
        network = _load(folder)
        self._model: Any = (network if dtype == "float32" else network.narrowed()).to(self._device)
        self.wants_one_shape = compiled
        self.is_reference = device.kind == "cpu" and dtype == "float32" and not compiled
        if compiled:
            self._compile(rows)
        log.info("tagger ready engine=torch device=%s dtype=%s compile=%s at=%s", device.name, dtype, compiled, folder)

    def __call__(self, pixels_BHWC: NDArray[np.uint8]) -> NDArray[np.float32]:
        """uint8 BGR [B,S,S,3] -> probabilities float32 [B,T]."""
        return self._run(self._model, pixels_BHWC, device=self._device, dtype=self.dtype)

    def reference(self, pixels_BHWC: NDArray[np.uint8]) -> NDArray[np.float32]:
        """The same in float32, not compiled: on the device, or on the CPU where the device does just that itself."""
        plain = self.dtype == "float32" and not self.wants_one_shape
        device = torch.device("cpu") if plain else self._device
        return self._run(_load(self._folder).to(device), pixels_BHWC, device=device, dtype="float32")

    def _compile(self, rows: int) -> None:
        """Compile for batches of `rows`, and run one; RunFailed where that cannot be."""
        compiler = os.environ.get("CXX", "g++")  # what torch takes (torch/_inductor/config.py, cpp.cxx)
        if self._device.type == "cpu" and shutil.which(compiler) is None:
            raise RunFailed(f"tag.compile: torch.compile needs a C++ compiler, there is no {compiler}; set it to false")
        from torch._dynamo.exc import TorchDynamoException  # seconds to import

        self._model = torch.compile(self._model, dynamic=False)
        try:
            self(np.zeros((rows, self.side, self.side, 3), np.uint8))
        except TorchDynamoException as error:
            why = one_line(error).partition(" Set TORCHDYNAMO_VERBOSE")[0]
            raise RunFailed(f"tag.compile: torch.compile does not work on {self._device} ({why})") from None

    @torch.inference_mode()
    def _run(
        self, model: Any, pixels_BHWC: NDArray[np.uint8], *, device: torch.device, dtype: str
    ) -> NDArray[np.float32]:
        inputs_BCHW = self._prepared(pixels_BHWC, device)
        with exact_float32(), torch.autocast(device.type, torch.bfloat16, enabled=dtype == "bfloat16"):
            logits_BT = model(inputs_BCHW)
        return np.asarray(torch.sigmoid(logits_BT.float()).cpu().numpy(), np.float32)

    def _prepared(self, pixels_BHWC: NDArray[np.uint8], device: torch.device) -> torch.Tensor:
        """Normalised BGR. The config's mean and std are of RGB: the network's maker flips after normalising."""
        pixels_BCHW = torch.from_numpy(np.ascontiguousarray(pixels_BHWC)).to(device).permute(0, 3, 1, 2).float()
        mean, std = (torch.tensor(each[::-1], device=device).view(1, 3, 1, 1) for each in (self._mean, self._std))
        return (pixels_BCHW / 255 - mean) / std


class Network(nn.Module):
    """timm's network with its head in float32: a logit of bfloat16 has eight bits."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, inputs_BCHW: torch.Tensor) -> torch.Tensor:
        network: Any = self.network
        features = network.forward_features(inputs_BCHW)
        with torch.autocast(inputs_BCHW.device.type, enabled=False):
            logits_BT: torch.Tensor = network.forward_head(features.float())
        return logits_BT

    def narrowed(self) -> Self:
        """With the weights of products and convolutions in bfloat16, so that autocast need not cast them each time."""
        for name, module in list(self.network.named_modules()):
            parts = name.split(".")
            if parts[-1] in FLOAT32_PARTS:
                setattr(self.network.get_submodule(".".join(parts[:-1])), parts[-1], InFloat32(module))
            elif isinstance(module, nn.Linear | nn.Conv2d) and not (FLOAT32_PARTS | {HEAD}).intersection(parts):
                module.to(torch.bfloat16)
        return self


class InFloat32(nn.Module):
    """A part that autocast leaves alone."""

    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        self.part = part

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        with torch.autocast(inputs.device.type, enabled=False):
            found: torch.Tensor = self.part(inputs.float())
        return found


def input_side(folder: Path) -> int:
    """The side in pixels of the square that the network takes; reads the config alone."""
    path, _ = needed(folder, CONFIG, WEIGHTS)
    config = _pretrained_cfg(path)
    size = config.get("input_size")
    if not (isinstance(size, list) and len(size) == 3 and size[0] == 3 and size[1] == size[2]):
        raise WeightsError(f"{path}: pretrained_cfg.input_size is {size!r}, expected [3, side, side]")
    for name, wanted in PREPARED.items():
        if config.get(name, wanted) != wanted:
            raise WeightsError(
                f"{path}: pretrained_cfg.{name} is {config[name]!r}, pictures are prepared with {wanted!r}"
            )
    return int(size[1])


def _pretrained_cfg(path: Path) -> dict[str, Any]:
    config = read_json(path)
    if not isinstance(config.get("architecture"), str) or not isinstance(config.get("pretrained_cfg"), dict):
        raise WeightsError(f"{path}: is not timm's config: expected architecture and pretrained_cfg")
    found: dict[str, Any] = config["pretrained_cfg"]
    return found


def _normalisation(folder: Path) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of RGB in 0..1."""
    path = folder / CONFIG
    config = _pretrained_cfg(path)
    both = (config.get("mean"), config.get("std"))
    for name, each in zip(("mean", "std"), both, strict=True):
        if not (isinstance(each, list) and len(each) == 3 and all(isinstance(value, int | float) for value in each)):
            raise WeightsError(f"{path}: pretrained_cfg.{name} is {each!r}, expected three numbers")
    return tuple(map(float, both[0] or ())), tuple(map(float, both[1] or ()))


def _load(folder: Path) -> Network:
    """The network with its weights, whole and finite, in eval mode on the CPU."""
    try:
        network = timm.create_model(f"local-dir:{folder}", pretrained=True)
    except UNFIT as error:
        raise WeightsError(f"{folder}: cannot be opened by timm ({one_line(error)})") from None
    for name, tensor in network.state_dict().items():
        if not bool(torch.isfinite(tensor).all()):
            raise WeightsError(f"{folder / WEIGHTS}: {name} holds numbers that are not finite; fetch the file again")
    return Network(network).float().eval().requires_grad_(False)


def _working(folder: Path, device: Device) -> torch.device:
    """torch's device; RunFailed if torch cannot use it."""
    working = {"cpu": lambda: True, "xpu": torch.xpu.is_available}.get(device.kind, torch.cuda.is_available)
    if not working():
        raise RunFailed(
            f"{folder}: engine torch does not work on {device.name} ({device.kind}): torch {torch.__version__} does "
            f"not see it; install {INSTALL['torch']}"
        )
    return torch.device(device.torch_name)
