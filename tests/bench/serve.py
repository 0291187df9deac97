"""Pictures a second of the cascade that serves, beside diffusers' own pipelines: `python tests/bench/serve.py`.

Random weights. `--size small` (the default without a GPU) is a narrow cascade in float32, which says nothing about a
GPU; `--size full` is the published one, in bfloat16. In one run, each with the same steps, sizes and modules' weights:

lone        from a prompt to a PNG, nobody else there: ours, compiled too on a GPU or with `--compile`, and diffusers'
throughput  1, 4 and 16 clients that each ask for one picture after the other: ours with step-level batching (the most
            slots), without (1 slot), and diffusers' pipelines, which take one request after the other
of ceiling  the operations that our own pictures need (FlopCounter), over what one large product of the same run reaches
overhead    with `--serve`: what ingress and handles add to a picture in miniature, requests one after the other

Needs torch, transformers and pydantic. What is not there is left out and named: diffusers, open_clip (its vocabulary;
tokens are then any numbers, and diffusers is left out), Ray. `--out FILE` writes all figures as JSON after each row,
`--profile` prints the kernels of a lone picture of ours. Several replicas, in miniature: serve_replicas.py.
"""

import argparse
import asyncio
import json
import platform
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import rows
import torch
from serve_models import FULL, SMALL, Size, built, theirs
from torch.utils.flop_counter import FlopCounterMode

from sote.cluster import devices
from sote.serve.decoder import DecoderModel
from sote.serve.line import DecoderLine, PriorLine
from sote.serve.prior import PriorModel
from sote.serve.recipe import ModelPart
from sote.serve.settings import Settings, Stage

CLIENTS = (1, 4, 16)
NEGATIVE = "worst quality, monochrome"
Way = tuple[Callable[[Settings], object], float]  # and its operations
NOT_MEASURED = (
    "trained weights",
    "diffusers beside several replicas, or beside prior and decoder in processes of their own (ours alone: replicas)",
)
NO_GPU = "anything at full size, in bfloat16, on a GPU, or as compiled code: there is no GPU here"


@dataclass(frozen=True)
class Row:
    """One measurement. `seconds` is the median of one picture from prompt to PNG."""

    name: str
    clients: int
    pictures: int
    seconds: float
    pictures_per_second: float
    of_ceiling: float

    def __str__(self) -> str:
        return (
            f"{self.name:44} {self.clients:3} clients {self.pictures:4} pictures: {self.seconds * 1000:9.1f} ms each, "
            f"{self.pictures_per_second:8.3f} pictures/s, {self.of_ceiling:.1%} of the ceiling"
        )


@dataclass
class Figures:
    """All that is written."""

    machine: str
    commit: str | None
    torch: str = torch.__version__
    python: str = platform.python_version()
    size: str = ""
    ceiling_flops: float = 0.0
    flops: dict[str, int] = field(default_factory=dict)
    rows: list[Row] = field(default_factory=list)
    overhead_seconds: dict[str, float] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=lambda: list(NOT_MEASURED))


def main() -> None:
    asked = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    asked.add_argument("--size", choices=("small", "full"))
    asked.add_argument("--device", choices=("cpu", "cuda"))
    asked.add_argument("--threads", type=int, default=1, help="torch's on a CPU, for all: a replica has one")
    compiling = argparse.BooleanOptionalAction
    asked.add_argument("--compile", action=compiling, help="measure our cascade compiled too; if not said, on a GPU")
    asked.add_argument("--profile", action="store_true", help="print the kernels of a lone picture of ours")
    asked.add_argument("--serve", action="store_true", help="measure what the server adds, in miniature")
    asked.add_argument("--out", type=Path, help="write the figures to this file, as JSON")
    asked.add_argument("--commit", help="where the tree has no .git: its commit")
    rows.add_option(asked)
    options = asked.parse_args()
    device = torch.device(options.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    name = options.size or ("full" if device.type == "cuda" else "small")
    size = FULL if name == "full" else SMALL
    is_compiled = device.type == "cuda" if options.compile is None else options.compile
    torch.set_num_threads(options.threads)
    figures = Figures(devices.here().name, options.commit or _head(), size=name)
    figures.left_out += unseen(name, device, is_compiled=is_compiled)
    figures.ceiling_flops = ceiling(device, size)
    print(f"{figures.machine}, torch {torch.__version__}, torch threads on a CPU: {options.threads}")
    print(f"one product: {figures.ceiling_flops / 1e12:,.3f} TFLOP/s")
    for row in measured(size, device, figures, is_compiled=is_compiled, is_profiled=options.profile):
        figures.rows.append(row)
        print(row, flush=True)
        _write(figures, options.out)
    if options.serve:
        figures.overhead_seconds = overhead()
        print(
            "ingress and handles: " + ", ".join(f"{k} {v * 1000:.1f} ms" for k, v in figures.overhead_seconds.items())
        )
    print(f"one picture is {figures.flops['picture'] / 1e12:,.3f} TFLOP; left out: {', '.join(figures.left_out)}")
    _write(figures, options.out)
    rows.write(options.json, rows.Answer(list(beside(figures)), (), figures.left_out))


def unseen(size: str, device: torch.device, *, is_compiled: bool) -> list[str]:
    """What a run of this kind does not measure, beside what none does."""
    if size == "small" and device.type == "cpu" and not is_compiled:
        return [NO_GPU]
    there = {"full size, bfloat16": size == "full", "a GPU": device.type == "cuda", "compiled blocks": is_compiled}
    return [name for name, is_there in there.items() if not is_there]


def beside(figures: Figures) -> Iterator[rows.Row]:
    """Each of our rows beside diffusers' of the same kind; what the server adds has no peer."""
    at = {(row.name, row.clients): row for row in figures.rows}
    for row in figures.rows:
        name, what = row.name.partition(", ")[::2]
        if name != "ours":
            continue
        note = f"{row.of_ceiling:.0%} of one large product"
        if "slots" in what:
            peer = at.get(("diffusers, one after the other (computed)", row.clients))
            yield rows.Row(
                f"{figures.size} cascade, {what}, {row.clients} clients", row.pictures_per_second, "pictures/s",
                peer=peer and peer.pictures_per_second, note=note,
                peer_is="diffusers, one request after the other (computed from its lone latency)",
            )  # fmt: skip
        else:
            peer = at.get((f"diffusers, {what.removesuffix(', compiled')}", 1))
            yield rows.Row(
                f"{figures.size} cascade, {what}", row.seconds, "s", "lower", peer and peer.seconds,
                "diffusers' pipelines, the same weights", note,
            )  # fmt: skip
    for name, seconds in figures.overhead_seconds.items():
        yield rows.Row(f"ingress and handles, {name} of a picture in miniature", 1000 * seconds, "ms", "lower")


def measured(
    size: Size, device: torch.device, figures: Figures, *, is_compiled: bool, is_profiled: bool
) -> Iterator[Row]:
    prior, decoder = built(size, device, figures.left_out)
    part = ModelPart(prior="random", name="random")
    models = PriorModel(part, device=device, weights=prior), DecoderModel(part, device=device, weights=decoder)
    ours(*models, asking(size, 0))  # the negative prompt is known from here on
    of_prior = flops(models[0].latents, asking(size, 1))
    of_picture = flops(lambda settings: ours(*models, settings), asking(size, 2))
    figures.flops = {"prior": of_prior, "picture": of_picture}
    ways: dict[str, Way] = {
        "ours, prior alone": (models[0].latents, of_prior),
        "ours, lone": (lambda settings: ours(*models, settings), of_picture),
    }
    if (their := theirs(size, prior, decoder, figures.left_out)) is not None:
        ways["diffusers, prior alone"] = their.latents, of_prior
        ways["diffusers, lone"] = their.picture, of_picture

    def row(name: str, clients: int, seconds: list[float], whole: float, needed: float = of_picture) -> Row:
        rate = len(seconds) / whole
        return Row(name, clients, len(seconds), statistics.median(seconds), rate, rate * needed / figures.ceiling_flops)

    def lone(ways: dict[str, Way]) -> Iterator[Row]:
        for name, seconds in alternately(ways, size).items():
            yield row(name, 1, seconds, sum(seconds), ways[name][1])

    def throughput(name: str, slots: int) -> Iterator[Row]:
        for clients in CLIENTS:
            seconds, whole = asyncio.run(served(*models, size, clients=clients, slots=slots))
            yield row(f"{name}, {slots} slots", clients, seconds, whole)

    for each in lone(ways):
        yield each
        if each.name == "diffusers, lone":
            for clients in CLIENTS:
                wait = clients * each.seconds
                yield row("diffusers, one after the other (computed)", clients, [wait] * clients, wait)
    for slots in (size.slots, 1):
        yield from throughput("ours", slots)
    if is_compiled:
        for model in models:
            model.weights.unet.compile_blocks()
        yield from lone({f"{name}, compiled": way for name, way in ways.items() if name.startswith("ours")})
        yield from throughput("ours, compiled", size.slots)
    if is_profiled:
        ours(*models, asking(size, 98))  # prompts that no way asks for
        print(profiled(lambda: ours(*models, asking(size, 99)), device))


def profiled(run: Callable[[], object], device: torch.device) -> str:
    """The kernels of a call by the time that they take."""
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities[: 1 + (device.type == "cuda")]) as profile:
        run()
        _wait(device)
    by = f"self_{device.type}_time_total"
    return profile.key_averages().table(sort_by=by, row_limit=25, max_name_column_width=80)


def flops(run: Callable[[Settings], object], settings: Settings) -> int:
    """Floating point operations of products, convolutions and attention."""
    with FlopCounterMode(display=False) as counter:
        run(settings)
    return int(counter.get_total_flops())


def asking(size: Size, number: int) -> Settings:
    """A request that nobody has made before; the negative prompt is always the same."""
    steps, decoder_steps = size.steps
    return Settings(
        prompt=f"1girl, solo, pink hair, number {number}",
        negative_prompt=NEGATIVE,
        width=size.side,
        height=size.side,
        compression=42,
        images=1,
        seed=number,
        output_format="png",
        prior=Stage(steps, 7.0, "ddpm", "wuerstchen", shift=1.0),
        decoder=Stage(decoder_steps, 1.0, "ddpm", "wuerstchen", shift=1.0),
        profile="diffusers",
    )


def ours(prior: PriorModel, decoder: DecoderModel, settings: Settings) -> None:
    decoder.paint(prior.latents(settings), settings)


def alternately(ways: dict[str, Way], size: Size) -> dict[str, list[float]]:
    """Seconds of each picture; one way after the other, so that all see the same machine. The first is not counted."""
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(size.lone + 1):
        for place, (name, (run, _)) in enumerate(ways.items()):
            settings = asking(size, 1000 * (place + 1) + number)  # no way reads a prompt that another has read
            started = time.perf_counter()
            run(settings)
            if number:
                taken[name].append(time.perf_counter() - started)
    return taken


async def served(
    prior: PriorModel, decoder: DecoderModel, size: Size, *, clients: int, slots: int
) -> tuple[list[float], float]:
    """Seconds of each picture, and of all together."""
    lines = PriorLine(prior, slots=slots), DecoderLine(decoder, slots=slots)
    taken: list[float] = []

    async def ask(number: int) -> None:
        settings = asking(size, number)
        await lines[1].paint(await lines[0].latents(settings), settings)

    async def client(first: int) -> None:
        for number in range(first, first + size.rounds):
            started = time.perf_counter()
            await ask(number)
            taken.append(time.perf_counter() - started)

    try:
        await asyncio.gather(*(ask(number) for number in range(min(clients, slots))))
        started = time.perf_counter()
        await asyncio.gather(*(client(100 * (number + 1)) for number in range(clients)))
        return taken, time.perf_counter() - started
    finally:
        for line in lines:
            line.close()


def overhead(requests: int = 60) -> dict[str, float]:
    """Of one request after the other: the whole answer, less what prior and decoder say that they took."""
    import httpx

    from sote.cluster import session, storage
    from sote.serve import app, retrying
    from sote.serve.recipe import DefaultsPart, ServeRecipe
    from sote.train import standins

    with tempfile.TemporaryDirectory() as folder:
        standins.make(Path(folder))
        model = ModelPart(prior=f"{folder}/prior", decoder=f"{folder}/decoder", name="stand-in")
        defaults = DefaultsPart(width=256, height=256, prior_steps=4, decoder_steps=4)
        recipe = ServeRecipe(run=f"{folder}/run", port=_free_port(), model=model, defaults=defaults)
        opened = storage.open_run(recipe, verb="serve", command="a bench")
        with opened, session.connect(environment=retrying.ENVIRONMENT):
            url = app.start(recipe)
            try:
                with httpx.Client(base_url=url, trust_env=False, timeout=120) as client:
                    added = [_added(client, number) for number in range(requests)][10:]
            finally:
                app.stop()
    cuts = statistics.quantiles(added, n=20)
    return {"p50": statistics.median(added), "p95": cuts[-1]}


def _added(client: Any, number: int) -> float:
    started = time.perf_counter()
    answer = client.post("/v1/generate", json={"prompt": f"a cat, number {number}", "seed": number})
    seconds = time.perf_counter() - started
    timings = answer.raise_for_status().json()["timings"]
    return float(seconds - timings["prior"] - timings["decoder"])


def ceiling(device: torch.device, size: Size) -> float:
    """FLOP/s of one large product: what no network on this device exceeds."""
    side = size.ceiling_side
    left, right = (torch.randn(side, side, device=device).to(size.dtype) for _ in range(2))
    best = float("inf")
    for _ in range(20):
        _wait(device)
        started = time.perf_counter()
        left @ right
        _wait(device)
        best = min(best, time.perf_counter() - started)
    return 2 * side**3 / best


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def _free_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _head() -> str | None:
    found = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    return found.stdout.strip() or None


def _write(figures: Figures, out: Path | None) -> None:
    if out is not None:
        out.write_text(json.dumps(asdict(figures), indent=2) + "\n")


if __name__ == "__main__":
    main()
