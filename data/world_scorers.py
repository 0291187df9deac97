"""Fits the small world's scorers: beauty (no scribbles) by a small ViT, quality (no wear) by a small CLIP with a head.

Both have the classes, files and preparation of the published ones.
Shape suffixes: B batch, HWC height, width, colour (uint8 RGB), F features.

Kind: actor.
"""

import io
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from open_clip.model import CLIP
from torch import Tensor, nn
from transformers import ViTConfig, ViTForImageClassification

from sote.cluster import storage
from sote.data.inputs import aesthetic_input, quality_input
from sote.data.score_files import CLIP_FILES, CLIP_MEAN, CLIP_STD, HEAD_FILE, Preparation, QualityHead
from sote.data.standin_files import published, write_json, write_safetensors
from sote.data.standins import (
    AESTHETIC_MEAN,
    AESTHETIC_SIDE,
    AESTHETIC_STD,
    VIT_NAMES,
    aesthetic_config,
    aesthetic_preparation,
)
from sote.data.world_samples import Samples

VIT_WIDTHS: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 128, "patch_size": 16}
QUALITY_SIDE = 128  # pixels; 224 in the published one
CLIP_CONFIG: dict[str, Any] = {
    "embed_dim": 64,
    "quick_gelu": True,
    # Unlike the published tower: the mean of all patches, and no norm before the first layer, which takes the strength
    # of grain away from a net that learns in so few steps
    "vision_cfg": {
        "image_size": QUALITY_SIDE,
        "layers": 2,
        "width": 64,
        "patch_size": 16,
        "head_width": 32,
        "pool_type": "avg",
        "no_ln_pre": True,
    },
    "text_cfg": {"context_length": 8, "vocab_size": 64, "width": 32, "heads": 2, "layers": 1},
}
LEARNING_RATE, BATCH = 1e-3, 64
RARE_SHARE = 0.8  # of the steps, in which half of what is seen is flawed
REPORT_EVERY = 100  # steps


def fit_aesthetic(samples: Samples, folder: Path, *, steps: int, seed: int) -> float:
    """Write a folder like aesthetic-shadow-v2's; the mean absolute error of the score on scenes kept out of the fit."""
    config = aesthetic_config() | VIT_WIDTHS
    prepare = Preparation(AESTHETIC_SIDE, AESTHETIC_SIDE, 1 / 255, AESTHETIC_MEAN, AESTHETIC_STD)
    pixels = np.stack([aesthetic_input(p, width=prepare.width, height=prepare.height) for p in samples.pixels])
    torch.manual_seed(seed)
    model = ViTForImageClassification(ViTConfig.from_dict(config))

    def logits(pixels_BHWC: NDArray[np.uint8]) -> Tensor:
        logits_B2 = model(pixel_values=prepare(pixels_BHWC, torch.device("cpu"))).logits
        difference_B: Tensor = logits_B2[:, 0] - logits_B2[:, 1]  # the softmax of two is the sigmoid of this
        return difference_B

    error = _fit("aesthetic", logits, model.parameters(), pixels, samples.beauty, steps=steps)
    write_safetensors(folder / "model.safetensors", published(model, VIT_NAMES))
    write_json(folder / "config.json", config)
    write_json(folder / "preprocessor_config.json", aesthetic_preparation())
    return error


def fit_quality(samples: Samples, clip_folder: Path, head_folder: Path, *, steps: int, seed: int) -> float:
    """Write an open_clip folder and a head like aes-B32-v0.pth; the mean absolute error on scenes kept out."""
    prepare = Preparation(QUALITY_SIDE, QUALITY_SIDE, 1 / 255, CLIP_MEAN, CLIP_STD)
    pixels = np.stack([quality_input(p, side=QUALITY_SIDE) for p in samples.pixels])
    torch.manual_seed(seed)
    clip, head = CLIP(**CLIP_CONFIG), QualityHead(CLIP_CONFIG["embed_dim"], 256, 128)
    with torch.no_grad():  # features of a fresh tower lie close together: the head looks at how they differ
        clip.visual.conv1.weight.sub_(clip.visual.conv1.weight.mean((1, 2, 3), keepdim=True))
        features_BF = nn.functional.normalize(clip.visual(prepare(pixels[: 4 * BATCH], torch.device("cpu"))), dim=1)
        head.fc1.weight.div_(features_BF.std(dim=0).mean())
        head.fc1.bias.copy_(-head.fc1.weight @ features_BF.mean(dim=0))

    def logits(pixels_BHWC: NDArray[np.uint8]) -> Tensor:
        features_BF = clip.visual(prepare(pixels_BHWC, torch.device("cpu")))
        found_B: Tensor = head(nn.functional.normalize(features_BF, dim=1))
        return found_B

    parameters = [*clip.visual.parameters(), *head.parameters()]
    error = _fit("quality", logits, parameters, pixels, samples.quality, steps=steps)
    config, weights = CLIP_FILES
    prepare_config = {"mean": CLIP_MEAN, "std": CLIP_STD, "interpolation": "bicubic", "resize_mode": "shortest"}
    write_json(clip_folder / config, {"model_cfg": CLIP_CONFIG, "preprocess_cfg": prepare_config})
    write_safetensors(clip_folder / weights, published(clip))
    data = io.BytesIO()
    torch.save(head.state_dict(), data)
    storage.write_bytes(head_folder / HEAD_FILE, data.getvalue())
    return error


def _fit(
    name: str,
    logits: Callable[[NDArray[np.uint8]], Tensor],
    parameters: Iterable[nn.Parameter],
    pixels: NDArray[np.uint8],
    truth: NDArray[np.float32],
    *,
    steps: int,
) -> float:
    """Fit scores to the truth; the mean absolute error on the last twentieth."""
    kept = len(pixels) // 20
    flawed = np.flatnonzero(truth[:-kept] < 1)
    optimizer = torch.optim.AdamW(parameters, lr=LEARNING_RATE, weight_decay=1e-2)
    rate = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=steps, pct_start=0.1)
    rng, begin = np.random.default_rng(0), time.monotonic()
    for step in range(1, steps + 1):
        rows = rng.choice(len(pixels) - kept, BATCH, replace=False)
        if step <= RARE_SHARE * steps:  # seen as rarely as they occur, a flaw like grain is hardly learnt at all
            rows[: BATCH // 2] = rng.choice(flawed, BATCH // 2, replace=False)
        wanted_B = torch.from_numpy(np.asarray(truth[rows]))
        loss = nn.functional.binary_cross_entropy_with_logits(logits(pixels[rows]), wanted_B)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        rate.step()
        if step % REPORT_EVERY == 0:
            said = f"{name}: step {step} of {steps}, loss {float(loss.detach()):.4f}"
            print(f"{said}, {time.monotonic() - begin:.0f} s", file=sys.stderr, flush=True)
    with torch.inference_mode():
        scores = torch.cat(
            [torch.sigmoid(logits(pixels[at : at + BATCH])) for at in range(len(pixels) - kept, len(pixels), BATCH)]
        )
    return float(np.abs(scores.numpy() - truth[-kept:]).mean())
