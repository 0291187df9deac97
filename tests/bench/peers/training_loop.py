"""A peer: Stage C trained by a plain loop in torch and diffusers, as their examples are written; one process.

    python tests/bench/peers/training_loop.py --prior FOLDER --curated RUN --optimizer adamw --batch 16 --micro 4 ...

diffusers' UNet and noise scheduler, transformers' frozen text encoder, torch's AdamW or transformers' Adafactor; in
float32, with the P2 weight on the loss, gradients added up over micro-batches and clipped. Captions are encoded at each
step; latents lie in memory. What a script would leave out is not there: checkpoints, figures, a guard, an order that
can be continued. Prints the seconds of each step as JSON.
"""

import argparse
import json
import random
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import torch
from diffusers import DDPMWuerstchenScheduler
from diffusers.models.unets.unet_stable_cascade import StableCascadeUNet
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional
from transformers import Adafactor, CLIPTextModelWithProjection

RATE = 1e-5
LEAST_TIME = 0.001  # of Stability's train_c.py


def main() -> None:
    asked = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    asked.add_argument("--prior", type=Path, required=True)
    asked.add_argument("--curated", type=Path, required=True)
    asked.add_argument("--optimizer", choices=("adamw", "adafactor"), required=True)
    for name in ("batch", "micro", "steps", "threads"):
        asked.add_argument(f"--{name}", type=int, required=True)
    given = asked.parse_args()
    torch.set_num_threads(given.threads)
    torch.manual_seed(0)
    loop = Loop(given.prior, optimizer=given.optimizer)
    data, draw, seconds = read(given.curated), random.Random(0), []
    for _ in range(given.steps):
        began = time.perf_counter()
        bucket = draw.choice(list(data))
        rows = draw.choices(data[bucket], k=given.batch)
        loop.step([rows[at : at + given.micro] for at in range(0, given.batch, given.micro)])
        seconds.append(time.perf_counter() - began)
    print(json.dumps(seconds))


def read(curated: Path) -> dict[str, list[tuple[Tensor, str]]]:
    """Latents and captions by bucket."""
    found: dict[str, list[tuple[Tensor, str]]] = defaultdict(list)
    columns = ["pick", "caption", "bucket", "latent_shard", "latent_offset"]
    files: dict[str, Tensor] = {}
    for row in pq.read_table(curated / "catalogue.parquet", columns=columns).to_pylist():
        if row["pick"]:
            name = row["latent_shard"]
            if name not in files:
                files[name] = load_file(curated / "latents" / name)["latents"].float()
            found[row["bucket"]].append((files[name][row["latent_offset"]], row["caption"]))
    return found


class Loop:
    """Models and optimizer."""

    def __init__(self, prior: Path, *, optimizer: str) -> None:
        import open_clip

        self.tokenizer = open_clip.tokenizer.SimpleTokenizer()  # CLIP's, which ships in that package
        self.text = CLIPTextModelWithProjection.from_pretrained(prior / "text_encoder").eval().requires_grad_(False)
        self.unet: Any = StableCascadeUNet.from_pretrained(prior / "prior").float().train()
        self.scheduler = DDPMWuerstchenScheduler()
        weights = list(self.unet.parameters())
        self.optimizer: torch.optim.Optimizer = (
            torch.optim.AdamW(weights, lr=RATE, weight_decay=0.0)
            if optimizer == "adamw"
            else Adafactor(weights, lr=RATE, scale_parameter=False, relative_step=False, warmup_init=False)
        )

    def step(self, micros: list[list[tuple[Tensor, str]]]) -> float:
        """Forward and backward of each micro-batch, and the update; the mean loss."""
        total = 0.0
        for rows in micros:
            loss = self.loss(rows) / len(micros)
            loss.backward()
            total += loss.item()
        torch.nn.utils.clip_grad_norm_(self.unet.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return total

    def loss(self, rows: list[tuple[Tensor, str]]) -> Tensor:
        latents = torch.stack([latent for latent, _ in rows])
        with torch.no_grad():
            tokens = self.tokenizer([caption for _, caption in rows])
            mask = torch.arange(tokens.shape[1]) <= tokens.argmax(-1, keepdim=True)  # up to the first end mark
            text = self.text(tokens, attention_mask=mask.long(), output_hidden_states=True)
        noise = torch.randn_like(latents)
        times = torch.rand(len(rows)) * (1 - LEAST_TIME) + LEAST_TIME
        noised = self.scheduler.add_noise(latents, noise, times)
        image = noised.new_zeros(len(rows), 1, self.unet.config.clip_image_in_channels)
        found = self.unet(
            noised,
            timestep_ratio=times,
            clip_text_pooled=text.text_embeds[:, None],
            clip_text=text.hidden_states[-1],
            clip_img=image,
            return_dict=False,
        )[0]
        signal = self.scheduler._alpha_cumprod(times, device=times.device)
        plain = functional.mse_loss(found, noise, reduction="none").mean(dim=(1, 2, 3))
        return (plain * (1 - signal)).mean()  # P2: 1 / (1 + signal / (1 - signal))


if __name__ == "__main__":
    main()
