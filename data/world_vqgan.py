"""Fits the small world's Stage A: pixels <-> VQ latents of four channels on a fourth of the side.

It has the real one's class and layout. It learns on random cuts of scenes; nothing is quantised, as nowhere in this
project, and the codebook learns nothing. Two things serve a small Stage B: the latents are fitted with much
noise on them, so that grain in what Stage B makes is forgiven; and they are small. A net that predicts noise tells the
picture from the little that noise hides of it: with latents of a deviation of a quarter most times are such, with the
real one's hardly any.
Shape suffixes: B batch, C channels, H height, W width.

Kind: actor.
"""

import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sote.data.standin_files import published, write_json, write_safetensors
from sote.data.vqgan import CLASS, STEM
from sote.data.vqgan_net import Block, Config, Vqgan
from sote.data.world_samples import Samples

CONFIG: dict[str, Any] = {
    "_class_name": CLASS,
    "_diffusers_version": "0.30.0",
    "in_channels": 3,
    "out_channels": 3,
    "up_down_scale_factor": 2,
    "levels": 2,
    "bottleneck_blocks": 3,
    "embed_dim": 64,
    "latent_channels": 4,
    "num_vq_embeddings": 64,
    "scale_factor": 0.43,  # Stability's, with which Stage B was trained
}
CUT = 64  # pixels
NOISE = 0.3  # over the deviation of a channel of latents
DEVIATION = 0.11  # of the latents at the end; Stage B sees them divided by 0.43
LEARNING_RATE, BATCH = 2e-3, 32
REPORT_EVERY = 100  # steps


def fit(samples: Samples, folder: Path, *, steps: int, seed: int) -> float:
    """Write folder/config.json and its weights; the mean absolute error of the last cuts, of colours of 0 to 1."""
    torch.manual_seed(seed)
    net = Vqgan(Config.of(CONFIG))
    for module in net.modules():
        if isinstance(module, Block):  # fresh gammas are zero: every block would do nothing
            nn.init.normal_(module.gammas, std=0.3)
    optimizer = torch.optim.AdamW(net.parameters(), lr=LEARNING_RATE, weight_decay=0.0)
    rate = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=steps, pct_start=0.05)
    rng, begin, errors = np.random.default_rng(seed), time.monotonic(), []
    for step in range(1, steps + 1):
        pixels_BCHW = _cuts(samples, rng)
        latents_BCHW = net.encode(pixels_BCHW)
        spread_C11 = latents_BCHW.std(dim=(0, 2, 3), keepdim=True)[0]
        painted_BCHW = net.decode(latents_BCHW + NOISE * spread_C11 * torch.randn_like(latents_BCHW))
        error = nn.functional.l1_loss(painted_BCHW, pixels_BCHW)
        optimizer.zero_grad()
        (error + 2 * nn.functional.mse_loss(painted_BCHW, pixels_BCHW)).backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        rate.step()
        errors.append(float(error.detach()))
        if step % REPORT_EVERY == 0:
            mean = float(np.mean(errors[-REPORT_EVERY:]))
            said = f"stage A: step {step} of {steps}, absolute error {mean:.5f}"
            print(f"{said}, {time.monotonic() - begin:.0f} s", file=sys.stderr, flush=True)
    _scale(net.eval(), pixels_BCHW)
    write_json(folder / "config.json", CONFIG)
    write_safetensors(folder / f"{STEM}.safetensors", published(net))
    return float(np.mean(errors[-REPORT_EVERY:]))


@torch.no_grad()
def _scale(net: Vqgan, pixels_BCHW: Tensor) -> None:
    """Make the latents of these pixels DEVIATION large, and what is painted of latents the same as before."""
    factor = DEVIATION / float(net.encode(pixels_BCHW).std())
    named = dict(net.named_parameters())
    norm = f"down_blocks.{len(net.down_blocks) - 1}.1"
    for name in (f"{norm}.weight", f"{norm}.bias", "vquantizer.embedding.weight"):
        named[name].mul_(factor)
    named["up_blocks.0.0.weight"].div_(factor)


def _cuts(samples: Samples, rng: np.random.Generator) -> Tensor:
    """[B,3,CUT,CUT] of 0 to 1, each from another scene."""
    side = samples.pixels.shape[1]
    rows = rng.choice(len(samples.pixels), BATCH, replace=False)
    ys, xs = rng.integers(0, side - CUT + 1, (2, BATCH))
    cuts = np.stack([samples.pixels[row, y : y + CUT, x : x + CUT] for row, y, x in zip(rows, ys, xs, strict=True)])
    return torch.from_numpy(cuts).permute(0, 3, 1, 2).float() / 255
