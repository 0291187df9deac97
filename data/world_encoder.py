"""Fits the small world's encoder: pixels -> Stage C latents, which a small net can turn into the picture again.

The encoder has the real one's class, layout and strides. It learns beside a net that is thrown away afterwards, which
paints a picture of 48 pixels from the latents with a little noise on them, and beside a linear layer that names tags.
Shape suffixes: B batch, C channels, H height, W width, T tags.

Kind: actor.
"""

import sys
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from sote.data import world
from sote.data.encode import FILE, LATENT_CHANNELS, MEAN, STD, EfficientNetEncoder, Plan, stage_of
from sote.data.standin_files import published, write_safetensors
from sote.data.world_samples import Samples

PLAN = Plan(
    stem=12,
    stages=(
        stage_of(12, expand=1, stride=1, width_out=12, blocks=1, squeeze=False),
        stage_of(12, expand=2, stride=2, width_out=16, blocks=2, squeeze=False),
        stage_of(16, expand=3, stride=2, width_out=32, blocks=2, squeeze=False),
        stage_of(32, expand=3, stride=2, width_out=64, blocks=2, squeeze=True),
        stage_of(64, expand=3, stride=1, width_out=64, blocks=1, squeeze=True),
        stage_of(64, expand=3, stride=2, width_out=96, blocks=2, squeeze=True),
    ),
    head=192,
)
SIDE = 192  # pixels that it sees of 256: at compression 42.67 a cell of 32 pixels stands for 42.67
CELLS = SIDE // 32
PAINTED = 48  # pixels of what is painted from the latents
NOISE = 0.2  # deviation, on latents of deviation 1
TAGS_WEIGHT = 0.03
LEARNING_RATE, BATCH = 3e-3, 32
REPORT_EVERY = 100  # steps


class Painter(nn.Module):
    """Latents [B,16,6,6] -> RGB [B,3,48,48]; only there to teach the encoder."""

    def __init__(self) -> None:
        super().__init__()

        def layer(inside: int, outside: int, factor: int) -> nn.Sequential:
            return nn.Sequential(
                nn.Conv2d(inside, outside * factor**2, 3, padding=1), nn.PixelShuffle(factor), nn.GELU()
            )

        self.layers = nn.Sequential(
            layer(LATENT_CHANNELS, 128, 1), layer(128, 64, 2), layer(64, 32, 2), layer(32, 16, 2)
        )
        self.last = nn.Conv2d(16, 3, 3, padding=1)

    def forward(self, latents_BCHW: Tensor) -> Tensor:
        pixels_BCHW: Tensor = self.last(self.layers(latents_BCHW))
        return pixels_BCHW


def fit(samples: Samples, folder: Path, *, steps: int, seed: int) -> float:
    """Write folder/effnet_encoder.safetensors; the mean squared error of the last pictures, in squares of 0 to 1."""
    torch.manual_seed(seed)
    encoder, painter = EfficientNetEncoder(PLAN), Painter()
    namer = nn.Linear(LATENT_CHANNELS * CELLS**2, len(world.TAGS))
    nets = nn.ModuleList([encoder, painter, namer])
    for module in encoder.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 0.05
    optimizer = torch.optim.AdamW(nets.parameters(), lr=LEARNING_RATE, weight_decay=1e-4)
    rate = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=steps, pct_start=0.05)
    rng, begin, errors = np.random.default_rng(seed), time.monotonic(), []
    for step in range(1, steps + 1):
        rows = np.sort(rng.choice(len(samples.tags), BATCH, replace=False))
        pixels_BCHW = torch.from_numpy(samples.pixels[rows]).permute(0, 3, 1, 2).float() / 255
        tags_BT = torch.from_numpy(samples.tags[rows]).float()
        latents_BCHW = encoder(seen(pixels_BCHW))
        noisy_BCHW = latents_BCHW + NOISE * torch.randn_like(latents_BCHW)
        wanted_BCHW = nn.functional.interpolate(pixels_BCHW, (PAINTED, PAINTED), mode="area")
        error = nn.functional.mse_loss(painter(noisy_BCHW), wanted_BCHW)
        naming = nn.functional.binary_cross_entropy_with_logits(namer(noisy_BCHW.flatten(1)), tags_BT)
        optimizer.zero_grad()
        (10 * error + TAGS_WEIGHT * naming).backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(nets.parameters(), 1.0)
        optimizer.step()
        rate.step()
        errors.append(float(error.detach()))
        if step % REPORT_EVERY == 0:
            mean = float(np.mean(errors[-REPORT_EVERY:]))
            said = f"encoder: step {step} of {steps}, squared error {mean:.5f}, naming {float(naming.detach()):.4f}"
            print(f"{said}, {time.monotonic() - begin:.0f} s", file=sys.stderr, flush=True)
    _settle(encoder, samples)
    write_safetensors(folder / FILE, published(encoder.eval()))
    return float(np.mean(errors[-REPORT_EVERY:]))


def seen(pixels_BCHW: Tensor) -> Tensor:
    """RGB [B,3,256,256] of 0 to 1 -> what the encoder sees, [B,3,192,192], normalised."""
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (MEAN, STD))
    small_BCHW = nn.functional.interpolate(pixels_BCHW, (SIDE, SIDE), mode="bilinear", antialias=True)
    made: Tensor = ((small_BCHW - mean) / std).contiguous(memory_format=torch.channels_last)
    return made


@torch.inference_mode()
def _settle(encoder: EfficientNetEncoder, samples: Samples, *, batches: int = 40) -> None:
    """The batch norms' means and deviations anew, as plain means over many scenes with the weights at rest."""
    for module in encoder.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.reset_running_stats()
            module.momentum = None
    encoder.train()
    for batch in range(batches):
        pixels = np.array(samples.pixels[batch * BATCH : (batch + 1) * BATCH])
        encoder(seen(torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255))
