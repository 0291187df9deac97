"""Pictures a second of tagger and aesthetic scorer at full size: `PYTHONPATH=. python tests/bench/bench_models.py`.

The networks of wd-swinv2-tagger-v3 and aesthetic-shadow-v2 with random weights, on the first accelerator, or with
`--small` in miniature wherever it is run: float32, bfloat16, and bfloat16 compiled, each at several batches. From uint8
arrays in memory to probabilities in memory, as the engines run in a curation; the tagger is data/engine_timm.py itself.
Beside each rate: what share of the matrix ceiling it is, measured in the same run as one large bfloat16 product, and
how far the numbers lie from float32's on the numeric gate's sample. Needs torch, timm, transformers and numpy alone.
"""

import argparse
import copy
import json
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import rows
import timm
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import ViTConfig, ViTForImageClassification

from sote.cluster import devices
from sote.cluster.devices import Device
from sote.data import fitting, gate
from sote.data.engine_timm import TimmEngine

NOT_MEASURED = (
    "trained weights (differences from float32 are those of random ones)",
    "decoding, resizing and Ray",
    "ONNX Runtime's engines (they need a file of the trained network)",
)
GOALS = {"tagger": 1300.0, "scorer": 770.0, "both": 480.0}  # pictures/s on an H200

Array = NDArray[Any]


@dataclass(frozen=True)
class Size:
    """What is built: timm's arguments of the tagger, transformers' of the scorer, batches that are tried."""

    tagger: dict[str, Any]
    tags: int
    scorer: dict[str, Any]
    batches: tuple[int, ...]
    ceiling_side: int
    seconds: float  # each rate is measured for at least so long


# config.json of SmilingWolf/wd-swinv2-tagger-v3 and of shadowlilac/aesthetic-shadow-2
FULL = Size(
    tagger={"img_size": 448, "window_size": 14, "act_layer": "gelu_tanh"},
    tags=10861,
    scorer={
        "hidden_size": 1536,
        "num_hidden_layers": 48,
        "num_attention_heads": 16,
        "intermediate_size": 4192,
        "patch_size": 64,
        "image_size": 1024,
    },
    batches=(16, 64, 128),
    ceiling_side=8192,
    seconds=5.0,
)
SMALL = Size(
    tagger=FULL.tagger | {"img_size": 64, "window_size": 4, "embed_dim": 32, "depths": (1, 1, 2, 1)},
    tags=100,
    scorer=FULL.scorer | {"hidden_size": 128, "num_hidden_layers": 4, "intermediate_size": 349, "image_size": 256},
    batches=(8,),
    ceiling_side=1024,
    seconds=1.0,
)
CASES = (("float32", False), ("bfloat16", False), ("bfloat16", True))


@dataclass(frozen=True)
class Rate:
    """One measurement. `of_ceiling` is the rate of products and convolutions over that of one large product."""

    model: str
    dtype: str
    compiled: bool
    batch: int
    pictures_per_second: float
    of_ceiling: float
    max_difference: float | None
    peak_bytes_per_picture: float | None


class Scorer:
    """The aesthetic scorer as data/score.py runs it: the tower in `dtype`, the classifier in float32."""

    def __init__(self, model: ViTForImageClassification, on: torch.device, *, dtype: str, compiled: bool) -> None:
        self.side, self._device, self._dtype = int(model.config.image_size), on, getattr(torch, dtype)
        self._classifier = model.classifier
        tower = model.vit.to(self._dtype)
        self._tower: Any = torch.compile(tower, dynamic=False) if compiled else tower

    @torch.inference_mode()
    def __call__(self, pixels_BHWC: NDArray[np.uint8]) -> Array:
        """uint8 RGB [B,S,S,3] -> the two labels' probabilities float32 [B,2]."""
        pixels_BCHW = torch.from_numpy(pixels_BHWC).to(self._device).permute(0, 3, 1, 2).float() / 127.5 - 1
        tokens_BTF = self._tower(pixel_values=pixels_BCHW.to(self._dtype)).last_hidden_state
        logits_BL = self._classifier(tokens_BTF[:, 0].float())
        return np.asarray(torch.softmax(logits_BL, dim=1).cpu().numpy())


def main() -> None:
    asked = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    asked.add_argument("--small", action="store_true", help="networks in miniature, for a machine without accelerator")
    rows.add_option(asked)
    given = asked.parse_args()
    small = given.small
    device = devices.here()
    if device.kind == "cpu" and not small:
        asked.exit(2, "no accelerator here: at full size this needs one; run it with --small\n")
    size = SMALL if small else FULL
    torch.backends.cudnn.allow_tf32 = False
    ceiling = matrix_ceiling(device, size.ceiling_side)
    print(f"{device.name}, torch {torch.__version__}; one product in bfloat16: {ceiling / 1e12:,.2f} TFLOP/s")
    rates = []
    for rate in measured(size, device, ceiling):
        rates.append(rate)
        print(line(rate), flush=True)
    best = {model: max(rate.pictures_per_second for rate in rates if rate.model == model) for model in GOALS}
    for model, rate_of in best.items():
        goal = f"goal on an H200 {GOALS[model]:,.0f}" if not small else "in miniature"
        print(f"{model}: {rate_of:,.1f} pictures/s ({goal})")
    left_out = (*NOT_MEASURED, *(("the networks at full size",) if small else ()))
    print("not measured: " + "; ".join(left_out))
    made = [row(rate, small=small) for rate in rates]
    rows.write(given.json, rows.Answer(made, (), left_out))


@dataclass(frozen=True)
class Plain:
    """What a model in plain float32 says of the gate's sample, and the FLOP of one picture (2 for a multiply-add)."""

    pictures: Array
    reference: Array
    flop: float


Make = Callable[[str, bool], Any]


def measured(size: Size, device: Device, ceiling: float) -> Iterator[Rate]:
    """Each model in every case, then both in turn on every batch, in the last case."""
    on = torch.device(device.torch_name)
    flop, last = 0.0, []
    with tempfile.TemporaryDirectory() as folder:
        write_tagger(Path(folder), size)
        network = random_scorer(size, on)
        makes: dict[str, Make] = {
            "tagger": lambda dtype, compiled: TimmEngine(
                Path(folder), device=device, dtype=dtype, compiled=compiled, rows=size.batches[0]
            ),
            "scorer": lambda dtype, compiled: Scorer(copy.deepcopy(network), on, dtype=dtype, compiled=compiled),
        }
        for name, make in makes.items():
            plain = _plain(make("float32", False))
            flop += plain.flop
            for dtype, compiled in CASES:
                fitting.free_memory()
                torch.compiler.reset()
                model = make(dtype, compiled)
                for batch, per_second, difference, peak in _batches(model, plain, size, device):
                    share = per_second * plain.flop / ceiling
                    yield Rate(name, dtype, compiled, batch, per_second, share, difference, peak)
            last.append((model, filled(plain.pictures, size.batches[0])))
    per_second, peak = throughput(lambda _: [model(pixels) for model, pixels in last], last[0][1], device, size.seconds)
    dtype, compiled = CASES[-1]
    yield Rate("both", dtype, compiled, size.batches[0], per_second, per_second * flop / ceiling, None, peak)


def _plain(model: Any) -> Plain:
    pictures = gate.sample(width=model.side, height=model.side)
    with FlopCounterMode(display=False) as counter:
        model(pictures[:1])
    return Plain(pictures, model(pictures), float(counter.get_total_flops()))


def _batches(model: Any, plain: Plain, size: Size, device: Device) -> Iterator[tuple[int, float, float, float | None]]:
    """Batch, pictures a second, largest difference from float32, and peak bytes a picture, for each that fits."""
    for batch in size.batches:
        pixels = filled(plain.pictures, batch)
        try:
            found = model(pixels)[: len(plain.pictures)]
            per_second, peak = throughput(model, pixels, device, size.seconds)
        except RuntimeError as error:
            if not fitting.is_out_of_memory(error):
                raise
            print(f"a batch of {batch} does not fit the memory")
            return
        yield batch, per_second, float(np.abs(found - plain.reference[: len(found)]).max()), peak


def throughput(
    run: Callable[[Array], Any], pixels: Array, device: Device, seconds: float
) -> tuple[float, float | None]:
    """Pictures a second from arrays to arrays (each call ends with its numbers in memory), and peak bytes a picture."""
    for _ in range(2):
        run(pixels)
    on_cuda = device.torch_name.startswith("cuda")
    before = torch.cuda.memory_allocated() if on_cuda else 0
    if on_cuda:
        torch.cuda.reset_peak_memory_stats()
    rounds, started = 0, time.perf_counter()
    while rounds < 3 or time.perf_counter() - started < seconds:
        run(pixels)
        rounds += 1
    took = time.perf_counter() - started
    peak = (torch.cuda.max_memory_allocated() - before) / len(pixels) if on_cuda else None
    return rounds * len(pixels) / took, peak


def matrix_ceiling(device: Device, side: int) -> float:
    """FLOP/s of one large bfloat16 product: what no network on this device exceeds."""
    on = torch.device(device.torch_name)
    left, right = (torch.randn(side, side, device=on).to(torch.bfloat16) for _ in range(2))
    best = float("inf")
    for _ in range(20):
        _wait(on)
        started = time.perf_counter()
        left @ right
        _wait(on)
        best = min(best, time.perf_counter() - started)
    return 2 * side**3 / best


def _wait(on: torch.device) -> None:
    if on.type != "cpu":
        getattr(torch, on.type).synchronize(on)


def filled(pictures: Array, batch: int) -> Array:
    """The pictures again and again, `batch` of them."""
    return np.ascontiguousarray(np.resize(pictures, (batch, *pictures.shape[1:])))


def write_tagger(folder: Path, size: Size) -> None:
    """The network in timm's layout, with weights that keep the size of what passes."""
    network = timm.create_model("swinv2_base_window8_256", num_classes=size.tags, **size.tagger)
    randomise(network)
    save_file(network.state_dict(), folder / "model.safetensors", {"format": "pt"})
    side = size.tagger["img_size"]
    prepared = {"input_size": [3, side, side], "mean": [0.5] * 3, "std": [0.5] * 3, "num_classes": size.tags}
    config = {"architecture": "swinv2_base_window8_256", "num_classes": size.tags, "model_args": size.tagger}
    (folder / "config.json").write_text(json.dumps(config | {"pretrained_cfg": prepared}))


def random_scorer(size: Size, on: torch.device) -> ViTForImageClassification:
    with on:
        model = ViTForImageClassification(ViTConfig(**size.scorer, num_labels=2))
    randomise(model)
    return model.eval().requires_grad_(False)


@torch.no_grad()
def randomise(network: nn.Module) -> None:
    """The same weights each time."""
    stream = torch.Generator(next(network.parameters()).device).manual_seed(0)
    for name, tensor in network.named_parameters():
        if tensor.ndim >= 2 and "logit_scale" not in name:
            tensor.normal_(std=float(tensor[0].numel()) ** -0.5, generator=stream)
        elif "norm" in name and name.endswith("weight"):
            tensor.fill_(1.0)  # SwinV2 begins with zeros there: its blocks would do nothing


def line(rate: Rate) -> str:
    how = f"{rate.dtype}{' compiled' if rate.compiled else ''}, batch {rate.batch}"
    peak = "" if rate.peak_bytes_per_picture is None else f", {rate.peak_bytes_per_picture / 1e6:,.0f} MB a picture"
    difference = "" if rate.max_difference is None else f", max difference {rate.max_difference:.2g}"
    return (
        f"{rate.model:7} {how:30} {rate.pictures_per_second:10,.1f} pictures/s, "
        f"{rate.of_ceiling:6.1%} of the ceiling{difference}{peak}"
    )


def row(rate: Rate, *, small: bool) -> rows.Row:
    """A rate as it is kept; the author's own goal stands beside the full size."""
    goal = "" if small else f", goal on an H200 {GOALS[rate.model]:,.0f}"
    how = f"{rate.dtype}{' compiled' if rate.compiled else ''}, batch {rate.batch}"
    size = "in miniature" if small else "full size"
    note = f"{rate.of_ceiling:.0%} of one large product{goal}"
    return rows.Row(f"{size}: {rate.model}, {how}", rate.pictures_per_second, "pictures/s", note=note)


if __name__ == "__main__":
    main()
