"""Milliseconds of what a layer of Stage C is made of: `PYTHONPATH=. python tests/bench/train_pieces.py`.

Forward and backward of each piece by itself, in bfloat16, with what else it could be: on a GPU at full size (32x32
latents, 227 tokens, batch 16, 2048 channels; there are 64 layers), without one in miniature and not compiled, to see
that it runs. Not measured: what torch.compile makes of the pieces together; train_step.py does.
"""

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import rows
import torch
from torch import Tensor
from torch.nn import functional

from sote.cluster import devices
from sote.train import norms

TIMES = 20
NO_GPU = "anything at full size, on a GPU, or as compiled code: there is no GPU here"


@dataclass(frozen=True)
class Size:
    """Of a micro-batch and of a layer."""

    batch: int
    side: int
    tokens: int
    channels: int
    heads: int


FULL = Size(batch=16, side=32, tokens=227 + 8, channels=2048, heads=32)  # pooled text and image are 4 tokens each
SMALL = Size(batch=2, side=8, tokens=77 + 8, channels=64, heads=2)


def main() -> None:
    asked = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    asked.add_argument("--out", type=Path, help="write the figures to this file, as JSON")
    rows.add_option(asked)
    given = asked.parse_args()
    out = given.out
    is_full = torch.cuda.is_available()
    on, size = torch.device("cuda" if is_full else "cpu"), FULL if is_full else SMALL
    machine = devices.here().name
    print(f"{machine}, torch {torch.__version__}, {size}")
    found = {}
    for name, run in pieces(size, on).items():
        found[name] = milliseconds(run, on)
        print(f"{name:52} {found[name]:8.3f} ms forward and backward", flush=True)
    not_measured = [] if is_full else [NO_GPU]
    for why in not_measured:
        print(f"not measured: {why}")
    if out is not None:
        facts = {"machine": machine, "torch": torch.__version__, "is_full": is_full, "milliseconds": found}
        out.write_text(json.dumps(facts, indent=1) + "\n")
    where = "full size" if is_full else "in miniature"
    made = [rows.Row(f"{where}: {name}", ms, "ms", "lower") for name, ms in found.items()]
    rows.write(given.json, rows.Answer(made, (), not_measured))


def pieces(size: Size, on: torch.device) -> dict[str, Callable[[], Tensor]]:
    """What is measured, by name."""

    def normal(*sizes: int) -> Tensor:
        return torch.randn(*sizes, device=on, dtype=torch.bfloat16).requires_grad_()

    channels, cells = size.channels, size.side**2
    x, wide = (normal(size.batch, size.side, size.side, width) for width in (channels, 4 * channels))
    kernel, bias = normal(channels, 1, 3, 3), normal(channels)
    gamma, beta = (normal(1, 1, 1, 4 * channels) for _ in range(2))
    out, back = normal(4 * channels, channels), normal(channels, 4 * channels)
    query, key, value = (
        normal(size.batch, tokens, size.heads, channels // size.heads).transpose(1, 2)
        for tokens in (cells, cells + size.tokens, cells + size.tokens)
    )

    def convolved(x_BCHW: Tensor) -> Tensor:
        return functional.conv2d(x_BCHW, kernel, bias, padding=1, groups=channels).permute(0, 2, 3, 1)

    def response(x_BHWC: Tensor) -> Tensor:
        return norms.response_norm(functional.gelu(x_BHWC), gamma_111C=gamma, beta_111C=beta)

    def attention(dropout: float) -> Callable[[], Tensor]:
        return lambda: functional.scaled_dot_product_attention(query, key, value, dropout_p=dropout)

    compiled = on.type == "cuda"
    fused_response = torch.compile(response) if compiled else response
    fused_products = torch.compile(nine_products) if compiled else nine_products
    how = "compiled" if compiled else "not compiled"
    return {
        "depthwise convolution of [B,H,W,C], as it is": lambda: convolved(x.permute(0, 3, 1, 2)),
        "depthwise convolution, copied to [B,C,H,W] and back": lambda: convolved(
            x.permute(0, 3, 1, 2).contiguous()
        ).contiguous(),
        f"depthwise convolution as nine products, {how}": lambda: fused_products(x, kernel, bias),
        "the two products of a residual block": lambda: functional.linear(functional.linear(x, out), back),
        "GELU and response norm, eager": lambda: response(wide),
        f"GELU and response norm, {how}": lambda: fused_response(wide),
        "layer norm": lambda: norms.layer_norm(x),
        "attention with dropout": attention(0.1),
        "attention without": attention(0.0),
    }


def nine_products(x_BHWC: Tensor, kernel: Tensor, bias: Tensor) -> Tensor:
    """A depthwise 3x3 convolution as a compiler can fuse it with what follows: a candidate for the blocks' own."""
    height, width = x_BHWC.shape[1:3]
    padded = functional.pad(x_BHWC, (0, 0, 1, 1, 1, 1)).float()
    parts = (padded[:, row : row + height, column : column + width] for row in range(3) for column in range(3))
    taps = kernel.float().flatten(1).unbind(1)
    total = bias.float()
    for part, tap in zip(parts, taps, strict=True):
        total = total + part * tap
    return total.to(x_BHWC.dtype)


def milliseconds(run: Callable[[], Tensor], on: torch.device) -> float:
    """Of `run` and its backward pass, the mean of many."""
    gradient = torch.randn_like(run())

    def once() -> None:
        run().backward(gradient)

    for _ in range(3):
        once()
    wait(on)
    started = time.perf_counter()
    for _ in range(TIMES):
        once()
    wait(on)
    return (time.perf_counter() - started) / TIMES * 1000


def wait(on: torch.device) -> None:
    if on.type == "cuda":
        torch.cuda.synchronize()


if __name__ == "__main__":
    main()
