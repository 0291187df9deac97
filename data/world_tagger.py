"""Fits the small world's tagger: a small convolutional net, written as model.onnx and selected_tags.csv.

It takes and gives what published taggers do (BGR of 0 to 255 in, probabilities of ratings and tags out). Batch norms
are folded into the convolutions when the graph is written.
Shape suffixes: B batch, C channels, H height, W width, T tags with the four ratings first.

Kind: actor.
"""

import csv
import io
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from sote.cluster import storage
from sote.data import painting, world
from sote.data.inputs import tagger_input
from sote.data.schema import RATINGS
from sote.data.standin_features import Graph
from sote.data.tag import LABELS, MODEL, RATING
from sote.data.world_samples import Samples

SIDE = 128  # pixels; the published tagger's is 448
WIDTHS = (
    (24, 2),
    (40, 2),
    (64, 2),
    (96, 1),
    (96, 2),
)  # of the convolutions: channels and stride; 8 x 8 cells at the end
CELLS, PLACES = 8, 12  # PLACES: channels in which it keeps where things are
HIDDEN = 160
LEARNING_RATE, BATCH = 2e-3, 64
REPORT_EVERY = 100  # steps


class Net(nn.Module):
    """BGR [B,3,SIDE,SIDE] of 0 to 255 -> logits [B,T]."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        inside = 3
        for width, stride in WIDTHS:
            layers += [nn.Conv2d(inside, width, 3, stride, padding=1), nn.BatchNorm2d(width), nn.ReLU()]
            inside = width
        self.body = nn.Sequential(*layers)
        self.places = nn.Conv2d(inside, PLACES, 1)
        self.hidden = nn.Linear(2 * inside + PLACES * CELLS**2, HIDDEN)
        self.last = nn.Linear(HIDDEN, len(RATINGS) + len(world.TAGS))

    def forward(self, pixels_BCHW: Tensor) -> Tensor:
        found_BCHW = self.body(pixels_BCHW / 127.5 - 1)
        joined = [found_BCHW.mean((2, 3)), found_BCHW.amax((2, 3)), self.places(found_BCHW).flatten(1)]
        logits_BT: Tensor = self.last(torch.relu(self.hidden(torch.cat(joined, 1))))
        return logits_BT


def fit(samples: Samples, folder: Path, *, steps: int, seed: int) -> float:
    """Write folder/model.onnx and folder/selected_tags.csv; returns F1 on the last scenes, kept out of the fit."""
    torch.manual_seed(seed)
    net = Net()
    optimizer = torch.optim.AdamW(net.parameters(), lr=LEARNING_RATE, weight_decay=1e-2)
    rate = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=steps, pct_start=0.05)
    kept = len(samples.tags) // 20
    inputs = np.stack([tagger_input(pixels, side=SIDE) for pixels in samples.pixels])
    targets = np.concatenate([np.tile(_RATED, (len(inputs), 1)), samples.tags], axis=1).astype(np.float32)
    rng, begin, net = np.random.default_rng(seed), time.monotonic(), net.train()
    for step in range(1, steps + 1):
        rows = rng.choice(len(inputs) - kept, BATCH, replace=False)
        pixels_BCHW = torch.from_numpy(inputs[rows]).permute(0, 3, 1, 2).float()
        pixels_BCHW = pixels_BCHW + 4 * torch.randn_like(pixels_BCHW)  # as files that lose detail
        loss = nn.functional.binary_cross_entropy_with_logits(net(pixels_BCHW), torch.from_numpy(targets[rows]))
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        rate.step()
        if step % REPORT_EVERY == 0:
            said = f"tagger: step {step} of {steps}, loss {float(loss.detach()):.4f}"
            print(f"{said}, {time.monotonic() - begin:.0f} s", file=sys.stderr, flush=True)
    net.eval()
    storage.write_bytes(folder / MODEL, graph_of(net).SerializeToString(deterministic=True))
    storage.write_text(folder / LABELS, _csv(samples.tags))
    return f1(net, inputs[-kept:], samples.tags[-kept:])


_RATED = np.array([1, 0, 0, 0], np.float32)  # all scenes are general


@torch.inference_mode()
def f1(net: Net, inputs: NDArray[np.uint8], truth: NDArray[np.bool_]) -> float:
    """F1 over all tags at a probability of one half."""
    logits = net(torch.from_numpy(inputs).permute(0, 3, 1, 2).float())[:, len(RATINGS) :]
    said = logits.numpy() > 0
    return float(2 * (said & truth).sum() / (said.sum() + truth.sum()))


def graph_of(net: Net) -> Any:
    """The net as an ONNX model: `input` [B, SIDE, SIDE, 3] -> `output` [B, T]."""
    graph = Graph()
    at = graph.add("Transpose", "input", perm=[0, 3, 1, 2])
    at = graph.add("Sub", graph.add("Mul", at, graph.constant(1 / 127.5)), graph.constant(1.0))
    layers = list(net.body)
    for place in range(0, len(layers), 3):
        convolution, norm = layers[place], layers[place + 1]
        assert isinstance(convolution, nn.Conv2d)
        assert isinstance(norm, nn.BatchNorm2d)
        weight, bias = (graph.constant(values) for values in _folded(convolution, norm))
        at = graph.add("Relu", graph.add("Conv", at, weight, bias, pads=[1] * 4, strides=list(convolution.stride)))
    places = graph.add("Conv", at, *(graph.constant(values) for values in _values(net.places)))
    pooled = [graph.add("Flatten", graph.add(pool, at)) for pool in ("GlobalAveragePool", "GlobalMaxPool")]
    joined = graph.add("Concat", *pooled, graph.add("Flatten", places), axis=1)
    for layer, after in ((net.hidden, "Relu"), (net.last, "Sigmoid")):
        weight_TF, bias_T = _values(layer)
        joined = graph.add(after, graph.linear(joined, weight_TF.T, bias_T))
    return graph.model({"output": joined}, {"input": (SIDE, SIDE, 3)})


def _folded(convolution: nn.Conv2d, norm: nn.BatchNorm2d) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Weight and bias of the convolution with the norm after it."""
    weight, bias = _values(convolution)
    mean, variance = norm.running_mean, norm.running_var
    if mean is None or variance is None:
        raise ValueError("a batch norm without running statistics cannot be folded")
    gain_norm, shift_norm = _values(norm)
    gain = gain_norm / np.sqrt(variance.numpy() + norm.eps)
    folded = weight * gain[:, None, None, None], (bias - mean.numpy()) * gain + shift_norm
    return folded[0].astype(np.float32), folded[1].astype(np.float32)


def _values(layer: nn.Module) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    weight, bias = (getattr(layer, name).detach().numpy() for name in ("weight", "bias"))
    return weight, bias


def _csv(truth: NDArray[np.bool_]) -> str:
    """selected_tags.csv. The published ids of the ratings count down from 9999999; generals and characters follow."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("tag_id", "name", "category", "count"))
    writer.writerows((9_999_999 - at, name, RATING, 0) for at, name in enumerate(RATINGS))
    counts = truth.sum(axis=0)
    for at, tag in enumerate(world.TAGS):
        writer.writerow((at + 1, tag, 4 if tag in painting.CHARACTERS else 0, int(counts[at])))
    return text.getvalue()
