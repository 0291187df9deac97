"""Images a second of Stage C's training step at full size: `PYTHONPATH=. python tests/bench/train_step.py`.

On a GPU: the 3.6-billion UNet with random weights, forward and backward and the clipping of the gradient's norm, with
bfloat16 arithmetic over float32 weights (autocast) and with bfloat16 weights (as DeepSpeed holds them); by diffusers'
class where that can be imported, by train/unet.py eager, and by it compiled. What does not fit the memory is tried
again with a part of the blocks computed twice. Beside each rate: what share of the matrix ceiling the model's own
operations are (recomputation not counted), the ceiling being one large bfloat16 product of the same run; the peak of
memory; and how far output and loss lie from eager float32's. What the pieces of a layer cost: train_pieces.py.
Without a GPU: the same in miniature, to see that it runs; the figures say nothing about a GPU. There torch.compile only
traces (backend "eager"): no code is compiled, and the rows say so. On a CPU no layer computes anything twice for the
backward pass, as in training; on a GPU eager ones do a little (ResBlock.keep_little), traced ones nothing.

The optimizer's update and the text encoder are in train_loop.py's steps, data in train_data.py, workers in
train_overhead.py, all in miniature.

Needs torch alone. `--only TEXT` takes the rows whose name has TEXT, `--profile` prints the kernels of the last row,
`--out FILE` writes all figures as JSON after each row.
"""

import argparse
import importlib.util
import json
import platform
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import rows
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from sote.cluster import devices
from sote.train.unet import ATTENTION, RES, TIME, CascadeUNet, Config

# The seed's author: 3.24 images/s on an A100 at 32x32 and 227 tokens, everything computed twice; about 25 % of its peak
GOAL = 0.5  # of the ceiling, on an H200
SHARES = (0.0, 0.25, 0.5, 1.0)  # of the layers computed twice, until it fits
NOT_MEASURED = ("trained weights",)
NO_GPU = "anything at full size, on a GPU, or as compiled code: there is no GPU here"

Run = Callable[[dict[str, Tensor]], Tensor]


@dataclass(frozen=True)
class Case:
    """What one step sees: latents, tokens of the text, images."""

    height: int
    width: int
    tokens: int
    batch: int

    def __str__(self) -> str:
        return f"{self.height}x{self.width}, {self.tokens} tokens, batch {self.batch}"


@dataclass(frozen=True)
class Size:
    """What is built, and how long it is looked at."""

    config: Config
    cases: tuple[Case, ...]
    ceiling_side: int
    seconds: float
    backend: str


# config.json of stabilityai/stable-cascade-prior; the author's latents and captions, then Stability's
FULL = Size(
    config=Config(clip_text_in_channels=1280, clip_image_in_channels=768, switch_level=(False,)),
    cases=(Case(32, 32, 227, 16), Case(24, 24, 77, 16)),
    ceiling_side=8192,
    seconds=6.0,
    backend="inductor",
)
SMALL = Size(
    config=Config(
        conditioning_dim=64,
        block_out_channels=(64, 64),
        num_attention_heads=(2, 2),
        down_num_layers_per_block=(1, 2),
        up_num_layers_per_block=(2, 1),
        block_types_per_layer=((RES, TIME, ATTENTION),) * 2,
        clip_text_in_channels=40,
        clip_text_pooled_in_channels=40,
        clip_image_in_channels=40,
        switch_level=(False,),
    ),
    cases=(Case(8, 8, 77, 2),),
    ceiling_side=512,
    seconds=0.3,
    backend="eager",
)


@dataclass(frozen=True)
class Row:
    """One measurement. The distances are from eager float32, on two images, without dropout."""

    name: str
    case: str
    recomputed: float
    images_per_second: float
    of_ceiling: float
    peak_bytes: int | None
    output_distance: float
    loss: float
    reference_loss: float

    def __str__(self) -> str:
        peak = "" if self.peak_bytes is None else f", peak {self.peak_bytes / 1e9:.1f} GB"
        twice = "" if self.recomputed == 0 else f", {self.recomputed:.0%} of the blocks computed twice"
        return (
            f"{self.name:38} {self.case}: {self.images_per_second:.2f} images/s, {self.of_ceiling:.1%} of the ceiling"
            f"{peak}{twice}; loss {self.loss:.6f} (float32: {self.reference_loss:.6f}), output off by "
            f"{self.output_distance:.2%}"
        )


@dataclass
class Figures:
    """All that is written."""

    machine: str
    commit: str | None
    torch: str = torch.__version__
    python: str = platform.python_version()
    is_full: bool = False
    ceiling_flops: float = 0.0
    forward_flops_per_image: dict[str, float] = field(default_factory=dict)
    rows: list[Row] = field(default_factory=list)
    not_measured: tuple[str, ...] = NOT_MEASURED


def main() -> None:
    asked = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    asked.add_argument("--only", default="", help="measure the rows whose name has this text")
    asked.add_argument("--profile", action="store_true", help="print the kernels of the last row's step")
    asked.add_argument("--out", type=Path, help="write the figures to this file, as JSON")
    asked.add_argument("--commit", help="where the tree has no .git: its commit")
    rows.add_option(asked)
    options = asked.parse_args()
    on = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    size = FULL if on.type == "cuda" else SMALL
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    figures = Figures(devices.here().name, options.commit or _head(), is_full=size is FULL)
    if size is not FULL:
        figures.not_measured += (NO_GPU,)
    figures.ceiling_flops = ceiling(on, size.ceiling_side)
    print(f"{figures.machine}, torch {torch.__version__}: {figures.ceiling_flops / 1e12:,.2f} TFLOP/s in one product")
    for row in measured(size, on, figures, only=options.only, is_profiled=options.profile):
        figures.rows.append(row)
        print(row, flush=True)
        _write(figures, options.out)
    best = max((row.of_ceiling for row in figures.rows), default=0.0)
    print(f"best: {best:.1%} of the ceiling" + (f"; goal on an H200 {GOAL:.0%}" if size is FULL else ", in miniature"))
    print("not measured: " + "; ".join(figures.not_measured))
    rows.write(options.json, rows.Answer(list(beside(figures)), (), figures.not_measured))


def beside(figures: Figures) -> Iterator[rows.Row]:
    """Each of our rows beside diffusers' with the same weights and case."""
    theirs = {(_held(row), row.case): row.images_per_second for row in figures.rows if row.name.startswith("diffusers")}
    size = "full size" if figures.is_full else "in miniature"
    for row in figures.rows:
        if not row.name.startswith("diffusers"):
            peak = "" if row.peak_bytes is None else f", peak {row.peak_bytes / 1e9:.0f} GB"
            yield rows.Row(
                f"{size}: {row.name}, {row.case}", row.images_per_second, "images/s",
                peer=theirs.get((_held(row), row.case)), peer_is="diffusers' class, eager",
                note=f"{row.of_ceiling:.0%} of one large product{peak}",
            )  # fmt: skip


def _held(row: Row) -> str:
    return row.name.partition(", ")[2]


def measured(size: Size, on: torch.device, figures: Figures, *, only: str, is_profiled: bool) -> Iterator[Row]:
    """Every model on every case, for both ways to hold the weights."""
    state = weights(size.config, on)
    few = inputs(size.config, Case(size.cases[0].height, size.cases[0].width, size.cases[0].tokens, 2), on)
    with torch.no_grad():
        exact = ours(size, state)[1](few)
    for case in size.cases:
        figures.forward_flops_per_image[str(case)] = forward_flops(size.config, case)
    for dtype in (torch.float32, torch.bfloat16):
        state = {name: tensor.to(dtype) for name, tensor in state.items()}
        held = "autocast over float32" if dtype is torch.float32 else "bfloat16 weights"
        for name, make in makers(size, figures):
            label = f"{name}, {held}"
            if only not in label:
                continue
            with torch.no_grad(), autocast(on, dtype):
                found = make(state)[1](few).float()
            loss, reference = (float(functional.mse_loss(output, few["noise"])) for output in (found, exact))
            distance = float((found - exact).norm() / exact.norm())
            for case in size.cases:
                fit = fitting(make, state, case, size)
                if fit is None:
                    figures.not_measured += (f"{label} at {case}: it does not fit the memory",)
                    continue
                seconds, peak, share = fit
                per_second = case.batch / seconds
                of_ceiling = 3 * figures.forward_flops_per_image[str(case)] * per_second / figures.ceiling_flops
                yield Row(label, str(case), share, per_second, of_ceiling, peak, distance, loss, reference)
    if is_profiled:
        print(profiled(make, state, size))


Make = Callable[[dict[str, Tensor]], tuple[nn.Module, Run]]


def makers(size: Size, figures: Figures) -> Iterator[tuple[str, Make]]:
    """The models, made from weights that they share."""
    if importlib.util.find_spec("diffusers") is not None:
        yield "diffusers eager", lambda state: theirs(size, state)
    elif "diffusers: it is not installed" not in figures.not_measured:
        figures.not_measured += ("diffusers: it is not installed",)
    yield "own eager", lambda state: ours(size, state)
    name = "own compiled" if size.backend == "inductor" else "own traced (not compiled)"
    yield name, lambda state: ours(size, state, backend=size.backend)


def ours(size: Size, state: dict[str, Tensor], *, backend: str | None = None) -> tuple[CascadeUNet, Run]:
    with torch.device("meta"):
        unet = CascadeUNet(size.config)
    unet.load_state_dict(state, assign=True)
    if backend is not None:
        torch.compiler.reset()  # codes of another size would make this one's general, and slower
        unet.compile_blocks(backend)
    names = ("time_B", "pooled_B1D", "text_BTD")
    return unet.eval(), lambda given: unet(given["noised_BCHW"], **{name: given[name] for name in names})


def theirs(size: Size, state: dict[str, Tensor]) -> tuple[nn.Module, Run]:
    from diffusers.models.unets.unet_stable_cascade import StableCascadeUNet

    with torch.device("meta"):
        unet = StableCascadeUNet.from_config(size.config.to_diffusers())
    unet.load_state_dict(state, assign=True)
    dtype = unet.dtype

    def run(given: dict[str, Tensor]) -> Tensor:
        noised, pooled, text = (given[name].to(dtype) for name in ("noised_BCHW", "pooled_B1D", "text_BTD"))
        image = pooled.new_zeros(len(pooled), 1, size.config.clip_image_in_channels or 0)
        found: Tensor = unet(noised, given["time_B"].to(dtype), pooled, text, image, return_dict=False)[0]
        return found

    return unet.eval(), run


def fitting(make: Make, state: dict[str, Tensor], case: Case, size: Size) -> tuple[float, int | None, float] | None:
    """Seconds of a step, the peak of memory, and the smallest share of recomputation with which it fits; or None."""
    for share in SHARES:
        model, run = make(state)
        if isinstance(model, CascadeUNet):
            model.checkpoint_blocks(share)
            if not torch.cuda.is_available():
                model.keep_all()  # as training does on a CPU (train/task.py)
        elif share == 1.0:
            model.enable_gradient_checkpointing()  # type: ignore[operator]
        elif share > 0.0:  # diffusers computes all blocks twice, or none
            continue
        try:
            return (*timed(model.train(), run, case, size), share)
        except torch.OutOfMemoryError:
            print(f"{case} does not fit the memory with {share:.0%} of the blocks computed twice", flush=True)
        del model, run
        torch.cuda.empty_cache()
    return None


def timed(model: nn.Module, run: Run, case: Case, size: Size) -> tuple[float, int | None]:
    """Seconds of a step, and the peak of memory."""
    parameters = list(model.parameters())
    given = inputs(size.config, case, parameters[0].device)
    on = parameters[0].device

    def step() -> None:
        with autocast(on, parameters[0].dtype):
            found = run(given)
        functional.mse_loss(found.float(), given["noise"]).backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        model.zero_grad(set_to_none=True)

    def seconds(steps: int) -> float:
        wait(on)
        started = time.perf_counter()
        for _ in range(steps):
            step()
        wait(on)
        return (time.perf_counter() - started) / steps

    seconds(3)  # the first compiles
    if on.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    found = seconds(max(2, round(size.seconds / seconds(1))))
    return found, torch.cuda.max_memory_allocated() if on.type == "cuda" else None


def profiled(make: Make, state: dict[str, Tensor], size: Size) -> str:
    """The kernels of a step by the time that they take."""
    model, run = make(state)
    brief = replace(size, seconds=0.0)
    timed(model.train(), run, size.cases[0], brief)
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities[: 1 + torch.cuda.is_available()]) as profile:
        timed(model, run, size.cases[0], brief)
    by = "cuda" if torch.cuda.is_available() else "cpu"
    return profile.key_averages().table(sort_by=f"self_{by}_time_total", row_limit=25, max_name_column_width=80)


def weights(config: Config, on: torch.device) -> dict[str, Tensor]:
    """Random ones that let every weight matter: Stability's initialisation starts some as zeros."""
    with on:
        unet = CascadeUNet(config)
    unet.initialise(0)
    random = torch.Generator(on).manual_seed(1)
    with torch.no_grad():
        for parameter in unet.parameters():
            if parameter.abs().max() == 0:
                parameter.normal_(std=0.02, generator=random)
    return {name: tensor.detach() for name, tensor in unet.state_dict().items()}


def inputs(config: Config, case: Case, on: torch.device) -> dict[str, Tensor]:
    """Those of a micro-batch, the same each time."""
    random = torch.Generator(on).manual_seed(2)

    def normal(*shape: int) -> Tensor:
        return torch.randn(case.batch, *shape, generator=random, device=on)

    return {
        "noised_BCHW": normal(config.in_channels, case.height, case.width),
        "noise": normal(config.in_channels, case.height, case.width),
        "time_B": torch.rand(case.batch, generator=random, device=on),
        "pooled_B1D": normal(1, config.clip_text_pooled_in_channels),
        "text_BTD": normal(case.tokens, config.clip_text_in_channels or 0),
    }


def forward_flops(config: Config, case: Case) -> float:
    """Operations of the forward pass for an image, two for a multiply-add, counted without computing."""
    meta = torch.device("meta")
    with meta:
        unet = CascadeUNet(config).eval()
        given = {
            "time_B": torch.empty(1),
            "pooled_B1D": torch.empty(1, 1, config.clip_text_pooled_in_channels),
            "text_BTD": torch.empty(1, case.tokens, config.clip_text_in_channels or 0),
        }
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            unet(torch.empty(1, config.in_channels, case.height, case.width), **given)
    return float(counter.get_total_flops())


def ceiling(on: torch.device, side: int) -> float:
    """FLOP/s of one large bfloat16 product: what no network on this device exceeds."""
    left, right = (torch.randn(side, side, device=on).to(torch.bfloat16) for _ in range(2))
    best = float("inf")
    for _ in range(20):
        wait(on)
        started = time.perf_counter()
        left @ right
        wait(on)
        best = min(best, time.perf_counter() - started)
    return 2 * side**3 / best


def autocast(on: torch.device, dtype: torch.dtype) -> AbstractContextManager[Any]:
    """bfloat16 arithmetic over float32 weights; nothing over others."""
    return torch.autocast(on.type, dtype=torch.bfloat16, enabled=dtype is torch.float32)


def wait(on: torch.device) -> None:
    if on.type == "cuda":
        torch.cuda.synchronize()


def _head() -> str | None:
    found = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    return found.stdout.strip() or None


def _write(figures: Figures, out: Path | None) -> None:
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(asdict(figures), indent=1) + "\n")


if __name__ == "__main__":
    main()
