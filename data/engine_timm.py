"""The tagger's network in torch, through timm: NVIDIA, AMD, Intel or the CPU, compiled and in bfloat16 where asked.

A folder holds timm's config.json (architecture, num_classes, model_args, pretrained_cfg) and model.safetensors. The
network takes normalised BGR and gives logits: the sigmoid is outside (SmilingWolf/wd-*-tagger-v3, neggles/wdv3-timm).
Shape suffixes: B rows of the batch, T tags, HWC height, width, colour, CHW the same as float.

Kind: actor.
"""

import contextlib
import logging
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from torch import nn

from sote.cluster.devices import INSTALL, Device
from sote.cluster.errors import RunFailed, WeightsError
from sote.data.pretrained import needed, one_line, read_json

CONFIG, WEIGHTS = "config.json", "model.safetensors"
# How tagger_input is made (data/inputs.py); a network that wants something else is not fed
PREPARED = {"interpolation": "bicubic", "crop_pct": 1.0}
# What timm and torch raise for a config or weights that do not fit each other
UNFIT = (OSError, ValueError, KeyError, TypeError, RuntimeError, AttributeError, AssertionError, SafetensorError)

log = logging.getLogger(__name__)


class TimmEngine:
    """The network in `folder` on `device`. bfloat16 is torch's autocast: norms, softmax and head stay float32."""

    name = "torch"
    fixed_rows: int | None = None

    def __init__(self, folder: Path, *, device: Device, dtype: str, compiled: bool = False) -> None:
        self.side = input_side(folder)
        self.dtype, self._device = dtype, _working(folder, device)
        self.model_bytes = (folder / WEIGHTS).stat().st_size
        self._mean, self._std = _normalisation(folder)
        self._plain = _load(folder).to(self._device)
        self._model: Any = torch.compile(self._plain, dynamic=False) if compiled else self._plain
        self.wants_one_shape = compiled
        self.is_reference = device.kind == "cpu" and dtype == "float32" and not compiled
        log.info(
            "tagger ready engine=torch device=%s dtype=%s compile=%s folder=%s", device.name, dtype, compiled, folder
        )

    def __call__(self, pixels_BHWC: NDArray[np.uint8]) -> NDArray[np.float32]:
        """uint8 BGR [B,S,S,3] -> probabilities float32 [B,T]."""
        return self._run(self._model, pixels_BHWC, device=self._device, dtype=self.dtype)

    def reference(self, pixels_BHWC: NDArray[np.uint8]) -> NDArray[np.float32]:
        """The same in float32, not compiled: on the device, or on the CPU if that is what the device does anyhow."""
        if self.dtype != "float32" or self._model is not self._plain:
            return self._run(self._plain, pixels_BHWC, device=self._device, dtype="float32")
        there, cpu = self._device, torch.device("cpu")
        try:
            return self._run(self._plain.to(cpu), pixels_BHWC, device=cpu, dtype="float32")
        finally:
            self._plain.to(there)

    @torch.inference_mode()
    def _run(
        self, model: Any, pixels_BHWC: NDArray[np.uint8], *, device: torch.device, dtype: str
    ) -> NDArray[np.float32]:
        inputs_BCHW = self._prepared(pixels_BHWC, device)
        with _full_float32(), torch.autocast(device.type, torch.bfloat16, enabled=dtype == "bfloat16"):
            logits_BT = model(inputs_BCHW)
        return np.asarray(torch.sigmoid(logits_BT.float()).cpu().numpy(), np.float32)

    def _prepared(self, pixels_BHWC: NDArray[np.uint8], device: torch.device) -> torch.Tensor:
        """Normalised BGR. The config's mean and std are of RGB: the network's maker flips after normalising."""
        pixels_BCHW = torch.from_numpy(np.ascontiguousarray(pixels_BHWC)).to(device).permute(0, 3, 1, 2).float()
        mean, std = (torch.tensor(each[::-1], device=device).view(1, 3, 1, 1) for each in (self._mean, self._std))
        return (pixels_BCHW / 255 - mean) / std


class Tagger(nn.Module):
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


def _load(folder: Path) -> nn.Module:
    """The network with its weights, whole and finite, in eval mode on the CPU."""
    try:
        network = timm.create_model(f"local-dir:{folder}", pretrained=True)
    except UNFIT as error:
        raise WeightsError(f"{folder}: cannot be opened by timm ({one_line(error)})") from None
    for name, tensor in network.state_dict().items():
        if not bool(torch.isfinite(tensor).all()):
            raise WeightsError(f"{folder / WEIGHTS}: {name} holds numbers that are not finite; fetch the file again")
    return Tagger(network).float().eval().requires_grad_(False)


def _working(folder: Path, device: Device) -> torch.device:
    """torch's device; RunFailed if torch cannot use it."""
    working = {"cpu": lambda: True, "xpu": torch.xpu.is_available}.get(device.kind, torch.cuda.is_available)
    if not working():
        raise RunFailed(
            f"{folder}: engine torch does not work on {device.name} ({device.kind}): torch {torch.__version__} does "
            f"not see it; install {INSTALL['torch']}"
        )
    return torch.device(device.torch_name)


@contextlib.contextmanager
def _full_float32() -> Any:
    """float32 means float32 while the block runs: no TF32, neither in products nor in convolutions."""
    matmul, conv = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = matmul, conv
