"""The files of the two scorers: what they hold, how their pictures are prepared, and the modules made from them.

A folder that holds another model, or one that would be computed otherwise than its head was trained for (plain GELU,
another resize), is refused in one line.
Shape suffixes: B rows of the batch, F features, HWC height, width, colour (uint8 RGB), CHW the same as float.

Kind: actor.
"""

import pickle
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
from numpy.typing import NDArray
from open_clip.transformer import QuickGELU
from safetensors import SafetensorError
from torch import nn
from transformers import ViTForImageClassification
from transformers.utils import logging as transformers_logging

from sote.cluster.errors import WeightsError
from sote.data.pretrained import (
    check_loaded,
    check_tensors,
    needed,
    one_line,
    read_json,
    read_safetensors,
)

AESTHETIC_FILES = ("config.json", "preprocessor_config.json", "model.safetensors")
CLIP_FILES = ("open_clip_config.json", "open_clip_model.safetensors")  # layout of timm/vit_base_patch32_clip_224.openai
HEAD_FILE = "aes-B32-v0.pth"  # hakurei/waifu-diffusion-v1-4, models/
GOOD = "hq"  # the label of aesthetic-shadow-v2 whose probability is the score
BILINEAR = 2  # PIL's number, as preprocessor_config.json has it
# CLIP's own (openai/CLIP, clip.py), for a folder whose config has no preprocess_cfg
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
# What transformers, open_clip and torch raise for files that do not fit what their config says
UNFIT = (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError)

Batch = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class Preparation:
    """How a model wants its uint8 picture of `width` x `height`: pixels * scale, less mean, by std."""

    width: int
    height: int
    scale: float
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __call__(self, pixels_BHWC: NDArray[np.uint8], device: torch.device) -> torch.Tensor:
        """uint8 RGB [B,H,W,3] -> float32 [B,3,H,W] on `device`."""
        pixels_BCHW = torch.from_numpy(np.ascontiguousarray(pixels_BHWC)).to(device).permute(0, 3, 1, 2).float()
        mean, std = (torch.tensor(values, device=device).view(1, 3, 1, 1) for values in (self.mean, self.std))
        return (pixels_BCHW * self.scale - mean) / std


class QualityHead(nn.Module):
    """Features with norm 1 -> logit: three layers with ReLU between (waifu-diffusion's Classifier; sigmoid outside)."""

    def __init__(self, features: int, first: int, second: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(features, first)
        self.fc2 = nn.Linear(first, second)
        self.fc3 = nn.Linear(second, 1)

    def forward(self, features_BF: torch.Tensor) -> torch.Tensor:
        hidden = torch.relu(self.fc2(torch.relu(self.fc1(features_BF))))
        logits_B: torch.Tensor = self.fc3(hidden).squeeze(1)
        return logits_B


def aesthetic_size(folder: Path) -> tuple[int, int]:
    """(width, height) in pixels that the aesthetic model takes; reads no weights."""
    preparation = aesthetic_preparation(folder)
    return preparation.width, preparation.height


def quality_side(folder: Path) -> int:
    """Side in pixels of the square that the quality model takes; reads no weights."""
    return quality_preparation(folder).width


def aesthetic_preparation(folder: Path) -> Preparation:
    """Read preprocessor_config.json and the size in config.json of a ViT classifier's folder."""
    config_path, path, _ = needed(folder, *AESTHETIC_FILES)
    config = read_json(path)
    width, height = _pair(read_json(config_path).get("image_size"), config_path, "image_size")
    size = config.get("size")
    wanted = (size.get("width"), size.get("height")) if isinstance(size, dict) else (size, size)
    if wanted != (width, height):
        raise WeightsError(f"{path}: size is {size}, expected {width}x{height}, the image_size of {config_path.name}")
    if config.get("resample", BILINEAR) != BILINEAR:
        raise WeightsError(f"{path}: resample is {config['resample']}, pictures are resized with {BILINEAR} (bilinear)")
    scale = float(config.get("rescale_factor", 1 / 255)) if config.get("do_rescale", True) else 1.0
    if not config.get("do_normalize", True):
        return Preparation(width, height, scale, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    mean, std = (_three(config.get(name), path, name) for name in ("image_mean", "image_std"))
    return Preparation(width, height, scale, mean, std)


def quality_preparation(folder: Path) -> Preparation:
    """Read open_clip_config.json."""
    path, _ = needed(folder, *CLIP_FILES)
    config = read_json(path)
    vision = config.get("model_cfg", {}).get("vision_cfg", {})
    width, height = _pair(vision.get("image_size"), path, "model_cfg.vision_cfg.image_size")
    if width != height:
        raise WeightsError(f"{path}: image_size is {width}x{height}, expected a square")
    prepare = config.get("preprocess_cfg", {})
    for name, wanted in (("interpolation", "bicubic"), ("resize_mode", "shortest")):
        if prepare.get(name, wanted) != wanted:
            raise WeightsError(f"{path}: {name} is {prepare[name]!r}, pictures are prepared with {wanted!r}")
    mean = _three(prepare.get("mean", CLIP_MEAN), path, "mean")
    return Preparation(width, height, 1 / 255, mean, _three(prepare.get("std", CLIP_STD), path, "std"))


def load_vit(folder: Path) -> tuple[ViTForImageClassification, int]:
    """The classifier and the index of its label `hq`."""
    config, *_ = needed(folder, *AESTHETIC_FILES)
    labels = {int(index): name for index, name in read_json(config).get("id2label", {}).items()}
    if len(labels) != 2 or sorted(labels) != [0, 1] or GOOD not in labels.values():
        raise WeightsError(f"{config}: id2label is {labels}, expected two labels of which one is {GOOD!r}")
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]  # the run has its own
    try:
        loaded: Any = ViTForImageClassification.from_pretrained(
            folder, local_files_only=True, dtype=torch.float32, use_safetensors=True, output_loading_info=True
        )
        model, report = loaded
    except UNFIT as error:
        raise WeightsError(f"{folder}: is not a ViTForImageClassification folder ({one_line(error)})") from None
    check_loaded(folder, report)
    return model, next(index for index, name in labels.items() if name == GOOD)


def load_tower(folder: Path) -> tuple[nn.Module, int]:
    """CLIP's image tower and the width of its features. OpenAI's weights need QuickGELU: plain GELU bends features."""
    config, _ = needed(folder, *CLIP_FILES)
    if read_json(config).get("model_cfg", {}).get("quick_gelu") is not True:
        raise WeightsError(f"{config}: model_cfg.quick_gelu is not true, but the quality head is made for QuickGELU")
    try:
        model = open_clip.create_model(f"local-dir:{folder}", precision="fp32", device="cpu")
    except UNFIT as error:
        raise WeightsError(f"{folder}: is not an open_clip folder ({one_line(error)})") from None
    tower = model.visual
    if not any(isinstance(module, QuickGELU) for module in tower.modules()):
        raise WeightsError(f"{folder}: its image tower has no QuickGELU; a plain open_clip ViT is expected")
    return tower, int(tower.output_dim)


def load_head(path: Path, *, features: int) -> QualityHead:
    """The head from a .pth (tensors only, no code is run) or a .safetensors; its widths are those in the file."""
    file = path / HEAD_FILE if path.is_dir() else path
    tensors = read_safetensors(file) if file.suffix == ".safetensors" else _read_pth(file)
    try:
        widths = tuple(int(tensors[f"{layer}.weight"].shape[0]) for layer in ("fc1", "fc2"))
    except (KeyError, IndexError, AttributeError) as error:
        raise WeightsError(f"{file}: is not the quality head: expected tensors fc1, fc2, fc3, lacks {error}") from None
    head = QualityHead(features, *widths)
    check_tensors(file, tensors, {name: tuple(tensor.shape) for name, tensor in head.state_dict().items()})
    head.load_state_dict({name: tensor.float() for name, tensor in tensors.items()}, strict=True)
    return head


def _read_pth(file: Path) -> dict[str, torch.Tensor]:
    if not file.is_file():
        raise WeightsError(f"{file}: no such file")
    try:
        tensors = torch.load(file, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, ValueError, EOFError, OSError) as error:
        raise WeightsError(f"{file}: cannot be read as a file of tensors ({one_line(error)})") from None
    if not isinstance(tensors, dict) or not all(isinstance(value, torch.Tensor) for value in tensors.values()):
        raise WeightsError(f"{file}: should hold tensors by name, holds {type(tensors).__name__}")
    return tensors


def _pair(value: object, path: Path, name: str) -> tuple[int, int]:
    """(width, height) of a size written as one number or as [height, width]."""
    if isinstance(value, int):
        return value, value
    if isinstance(value, Sequence) and len(value) == 2 and all(isinstance(item, int) for item in value):
        return value[1], value[0]
    raise WeightsError(f"{path}: {name} is {value!r}, expected a number of pixels")


def _three(value: object, path: Path, name: str) -> tuple[float, ...]:
    if isinstance(value, Sequence) and len(value) == 3 and all(isinstance(item, int | float) for item in value):
        return tuple(float(item) for item in value)
    raise WeightsError(f"{path}: {name} is {value!r}, expected three numbers")
