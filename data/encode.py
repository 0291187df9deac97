"""The EfficientNet encoder: pixels -> Stage C latents. Plain torch, with the names of Stability's effnet_encoder file.

Shape suffixes: B batch, C channels, H height, W width; pixels_BHWC is uint8 RGB.
The net is torchvision's `efficientnet_v2_s().features` plus a 1x1 convolution to 16 channels and a batch norm without
weights (Stability-AI/StableCascade, modules/effnet.py). Its strides are fixed; everything else (blocks for each stage,
widths, expansion, which stages have squeeze and excitation) is read from the shapes in the file.

Kind: actor.
"""

import hashlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from sote.cluster.devices import Device
from sote.cluster.errors import WeightsError
from sote.data.fitting import Pieces
from sote.data.pretrained import check_tensors, exact_float32, pick_device, read_safetensors

FILE = "effnet_encoder.safetensors"  # name in Stability's repository
LATENT_CHANNELS = 16
STRIDES = (1, 2, 2, 2, 1, 2)  # of the six stages; the stem has 2: 32 in all (torchvision efficientnet_v2_s)
WHOLE = 1 << 20  # rows: all of any batch
EPS = 1e-3  # batch norm, torchvision efficientnet_v2_s
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet; StableCascade train/base.py effnet_preprocess

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
Shapes = Mapping[str, tuple[int, ...]]
Pixels = NDArray[np.uint8]
Numbers = NDArray[np.float32]


@dataclass(frozen=True)
class Block:
    """One inverted bottleneck. `squeeze` is the width inside squeeze and excitation, None for a fused block."""

    width_in: int
    expanded: int
    width_out: int
    kernel: int
    stride: int
    squeeze: int | None


@dataclass(frozen=True)
class Plan:
    """Widths and blocks of one encoder file."""

    stem: int
    stages: tuple[tuple[Block, ...], ...]
    head: int


def stage_of(
    width_in: int, *, expand: int, stride: int, width_out: int, blocks: int, squeeze: bool
) -> tuple[Block, ...]:
    """A stage as the paper's table writes it; squeeze and excitation has a quarter of the block's input width."""
    made = []
    for number in range(blocks):
        width = width_out if number else width_in
        inner = width // 4 if squeeze else None
        made.append(Block(width, width * expand, width_out, 3, 1 if number else stride, inner))
    return tuple(made)


# EfficientNetV2-S (arXiv 2104.00298, table 4, as torchvision has it)
PUBLISHED = Plan(
    stem=24,
    stages=(
        stage_of(24, expand=1, stride=1, width_out=24, blocks=2, squeeze=False),
        stage_of(24, expand=4, stride=2, width_out=48, blocks=4, squeeze=False),
        stage_of(48, expand=4, stride=2, width_out=64, blocks=4, squeeze=False),
        stage_of(64, expand=4, stride=2, width_out=128, blocks=6, squeeze=True),
        stage_of(128, expand=6, stride=1, width_out=160, blocks=9, squeeze=True),
        stage_of(160, expand=6, stride=2, width_out=256, blocks=15, squeeze=True),
    ),
    head=1280,
)


def plan_of(shapes: Shapes) -> Plan:
    """Read the plan off the tensor shapes of an encoder file. Raises KeyError or ValueError if it is none."""
    stem = shapes["backbone.0.0.weight"][0]
    stages = []
    width = stem
    for stage, stride in enumerate(STRIDES, start=1):
        pattern = re.compile(rf"backbone\.{stage}\.(\d+)\.")
        count = 1 + max((int(m[1]) for m in map(pattern.match, shapes) if m), default=-1)
        if count == 0:
            raise ValueError(f"stage backbone.{stage} is missing")
        blocks = []
        for number in range(count):
            blocks.append(_block(shapes, f"backbone.{stage}.{number}.block", width, 1 if number else stride))
            width = blocks[-1].width_out
        stages.append(tuple(blocks))
    return Plan(stem, tuple(stages), shapes["backbone.7.0.weight"][0])


def _block(shapes: Shapes, at: str, width_in: int, stride: int) -> Block:
    first = shapes[f"{at}.0.0.weight"]
    if f"{at}.2.fc1.weight" in shapes:
        kernel = shapes[f"{at}.1.0.weight"][2]
        return Block(width_in, first[0], shapes[f"{at}.3.0.weight"][0], kernel, stride, shapes[f"{at}.2.fc1.weight"][0])
    if f"{at}.1.0.weight" in shapes:
        return Block(width_in, first[0], shapes[f"{at}.1.0.weight"][0], first[2], stride, None)
    return Block(width_in, width_in, first[0], first[2], stride, None)


def _convolution(
    width_in: int, width_out: int, kernel: int = 1, *, stride: int = 1, groups: int = 1, silu: bool = True
) -> nn.Sequential:
    """Convolution without bias, batch norm and, but for the last of a block, SiLU."""
    layers: list[nn.Module] = [
        nn.Conv2d(width_in, width_out, kernel, stride, padding=kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(width_out, eps=EPS),
    ]
    return nn.Sequential(*layers, nn.SiLU()) if silu else nn.Sequential(*layers)


class SqueezeExcitation(nn.Module):
    """Each channel is scaled by a number made of all channels' means."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(width, inner, 1)
        self.fc2 = nn.Conv2d(inner, width, 1)

    def forward(self, x_BCHW: torch.Tensor) -> torch.Tensor:
        mean_BC11 = nn.functional.adaptive_avg_pool2d(x_BCHW, 1)
        return torch.sigmoid(self.fc2(nn.functional.silu(self.fc1(mean_BC11)))) * x_BCHW


class Bottleneck(nn.Module):
    """Inverted bottleneck, fused (one dense convolution) or with a depthwise one and squeeze and excitation."""

    def __init__(self, plan: Block) -> None:
        super().__init__()
        p = plan
        if p.squeeze is not None:
            self.block = nn.Sequential(
                _convolution(p.width_in, p.expanded),
                _convolution(p.expanded, p.expanded, p.kernel, stride=p.stride, groups=p.expanded),
                SqueezeExcitation(p.expanded, p.squeeze),
                _convolution(p.expanded, p.width_out, silu=False),
            )
        elif p.expanded != p.width_in:
            self.block = nn.Sequential(
                _convolution(p.width_in, p.expanded, p.kernel, stride=p.stride),
                _convolution(p.expanded, p.width_out, silu=False),
            )
        else:
            self.block = nn.Sequential(_convolution(p.width_in, p.width_out, p.kernel, stride=p.stride))
        self.residual = p.stride == 1 and p.width_in == p.width_out

    def forward(self, x_BCHW: torch.Tensor) -> torch.Tensor:
        y_BCHW: torch.Tensor = self.block(x_BCHW)
        return y_BCHW + x_BCHW if self.residual else y_BCHW


class EfficientNetEncoder(nn.Module):
    """Normalised RGB [B,3,H,W] -> latents [B,16,H/32,W/32]. Always used in eval mode."""

    def __init__(self, plan: Plan) -> None:
        super().__init__()
        last = plan.stages[-1][-1].width_out
        self.backbone = nn.Sequential(
            _convolution(3, plan.stem, 3, stride=2),
            *(nn.Sequential(*map(Bottleneck, stage)) for stage in plan.stages),
            _convolution(last, plan.head),
        )
        self.mapper = nn.Sequential(
            nn.Conv2d(plan.head, LATENT_CHANNELS, 1, bias=False), nn.BatchNorm2d(LATENT_CHANNELS, affine=False)
        )

    def forward(self, pixels_BCHW: torch.Tensor) -> torch.Tensor:
        latents_BCHW: torch.Tensor = self.mapper(self.backbone(pixels_BCHW))
        return latents_BCHW


class Encoder:
    """The encoder of one file, ready to use. `path` is the file or a folder that holds effnet_encoder.safetensors;
    `prefix` stands before its names in a file of several models.

    It computes in float32 (20 million parameters: cheap beside decoding) and rounds to `dtype` at the end.
    """

    def __init__(self, path: Path, *, dtype: str, device: Device | str | None = None, prefix: str = "") -> None:
        file = path / FILE if path.is_dir() else path
        tensors = read_safetensors(file, prefix=prefix)
        shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        try:
            plan = plan_of(shapes)
        except (KeyError, ValueError, IndexError) as error:
            raise WeightsError(f"{file}: is not an EfficientNet encoder with Stability's names ({error})") from None
        if plan.head == PUBLISHED.head and plan != PUBLISHED:
            raise WeightsError(f"{file}: has the width of the published encoder but not its blocks; fetch it again")
        with torch.device("meta"):
            net = EfficientNetEncoder(plan)
        check_tensors(file, tensors, {name: tuple(tensor.shape) for name, tensor in net.state_dict().items()})
        kept = {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}
        net.load_state_dict(kept, strict=True, assign=True)
        self.device = pick_device(device)
        self.dtype = DTYPES[dtype]
        self._fits = Fits()
        self.path = file
        self._net = net.eval().requires_grad_(False).to(self.device)
        self._mean, self._std = (torch.tensor(v, device=self.device).view(1, 3, 1, 1) for v in (MEAN, STD))

    @cached_property
    def sha256(self) -> str:
        """sha256 of its file, which may be of many gigabytes."""
        return sha256_of(self.path)

    def encode(self, pixels_BHWC: Pixels) -> torch.Tensor:
        """uint8 RGB [B,H,W,3], H and W multiples of 32 -> latents [B,16,H/32,W/32] on the CPU, of the dtype asked for.

        A picture whose numbers overflow gives latents that are not finite: the caller makes that row's error of it.
        """
        return torch.from_numpy(self._fits.run(self._latents, pixels_BHWC)).to(self.dtype)

    @torch.inference_mode()
    def _latents(self, pixels_BHWC: Pixels) -> Numbers:
        pixels_BCHW = torch.from_numpy(np.ascontiguousarray(pixels_BHWC)).to(self.device).permute(0, 3, 1, 2)
        with exact_float32():
            latents_BCHW: torch.Tensor = self._net((pixels_BCHW.float() / 255 - self._mean) / self._std)
        return latents_BCHW.cpu().numpy()


class Fits:
    """Batches of pictures of any size in pieces that fit the memory: for each size, fewer from when it ran out.

    `rows` is how many pictures of a size may run at once at first.
    """

    def __init__(self, rows: int = WHOLE) -> None:
        self._rows = rows
        self._pieces: dict[tuple[int, ...], Pieces] = {}

    def run(self, f: Callable[[Pixels], Numbers], pixels_BHWC: Pixels) -> Numbers:
        pieces = self._pieces.setdefault(pixels_BHWC.shape[1:], Pieces(self._rows))
        return pieces.run(f, pixels_BHWC)


def sha256_of(path: Path) -> str:
    """sha256 of a file of weights, as files of latents name what made them."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
