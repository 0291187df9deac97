"""Every bench: its script, what it needs, and for each size its arguments and the most seconds that it may take.

Sizes: `usual` is `make bench`, 80 minutes on two idle cores; `quick` shows in some minutes that all runs; `tiny` is
for the test of the runner, without Ray; `long` takes an hour more. A bench that lacks a size is not run at it. A run
takes the place of all that is kept of its bench, so `usual` measures every point that is to be kept. A limit is far
above what a bench needs: it is there for what hangs.
"""

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from machine import Machine

TOP = Path(__file__).resolve().parents[2]
Size = Literal["tiny", "quick", "usual", "long"]
SIZES: tuple[Size, ...] = ("tiny", "quick", "usual", "long")


@dataclass(frozen=True)
class Run:
    """One size of a bench: a limit in seconds, and the script's arguments."""

    limit_seconds: int
    arguments: str = ""


@dataclass(frozen=True)
class Bench:
    """`peers` are modules without which only the peers' figures are missing; without `needs` nothing is run, nor
    without `file`, a path of the checkout that `made_by` makes.
    """

    name: str
    about: str
    script: str
    sizes: Mapping[Size, Run]
    needs: tuple[str, ...] = ()
    peers: tuple[str, ...] = ()
    gpu_only: bool = False
    file: str | None = None
    made_by: str = ""

    def at(self, size: Size) -> Run | None:
        """How it is run at this size; `long` is as `usual` where nothing else is said."""
        return self.sizes.get(size) or (self.sizes.get("usual") if size == "long" else None)

    def why_not(self, size: Size, machine: Machine) -> str | None:
        """What keeps it from being run here; None: nothing."""
        if self.gpu_only and machine.gpu is None:
            return "needs a GPU, and there is none here"
        if missing := [name for name in self.needs if importlib.util.find_spec(name) is None]:
            return f"needs {' and '.join(missing)}, which is not installed"
        if self.file is not None and not (TOP / self.file).exists():
            return f"needs {self.file}, which `{self.made_by}` makes"
        if self.at(size) is None:
            return f"is not run with --{size}" if size != "usual" else "only --long runs it: it takes many minutes"
        return None

    def left_out(self) -> list[str]:
        """Peers that are not installed."""
        return [f"peer {name}: it is not installed" for name in self.peers if importlib.util.find_spec(name) is None]


def _same(limit_seconds: int, arguments: str = "", *, tiny: str | None = None) -> Mapping[Size, Run]:
    """One way to be run for both larger sizes; `tiny` are that size's arguments."""
    run = Run(limit_seconds, arguments)
    found: dict[Size, Run] = {"quick": run, "usual": run}
    return found | ({"tiny": Run(120, tiny)} if tiny is not None else {})


BENCHES: tuple[Bench, ...] = (
    Bench(
        "caption",
        "captions and buckets on one core",
        "bench_caption.py",
        _same(60, tiny="--rows 200"),
    ),
    Bench(
        "decode",
        "from a picture's file to the models' inputs, and a picture's hash, on one core",
        "bench_decode.py",
        {"quick": Run(120, "--small"), "usual": Run(240)},
        peers=("imagehash",),
    ),
    Bench(
        "index",
        "rows of files and tars with sidecars, on one core",
        "bench_index.py",
        {
            "tiny": Run(60, "--files 200 --members 100"),
            "quick": Run(60, "--files 1000,5000 --members 1000"),
            "usual": Run(180),
        },
    ),
    Bench(
        "catalogue",
        "captions, selection, catalogue and report of made-up rows",
        "bench_catalogue.py",
        {
            "quick": Run(150, "--growth 1000"),
            "usual": Run(5400, "--growth 1000,10000,100000,1000000,6000000"),  # about 12 minutes on two cores
        },
    ),
    Bench(
        "duplicates",
        "near-duplicates among 256-bit hashes",
        "bench_dedup.py",
        {
            "tiny": Run(120, "--sizes 2000 --peers 500,2000,1000 --rounds 1 --alone"),
            "quick": Run(150, "--small --alone"),
            "usual": Run(900),
        },
        peers=("faiss", "imagehash"),
    ),
    Bench(
        "tagging",
        "the pixel pass beside bare models and a plain sequential tagger",
        "bench_pipeline.py",
        {"quick": Run(240, "--small"), "usual": Run(900)},
    ),
    Bench(
        "serving",
        "the cascade that serves beside diffusers' pipelines",
        "serve.py",
        {"quick": Run(1200), "usual": Run(2400, "--serve")},  # a GPU compiles, too: minutes
        peers=("diffusers",),
    ),
    Bench(
        "replicas",
        "pictures a second of the server against replicas, in miniature",
        "serve_replicas.py",
        {"quick": Run(240, "--most 1 --seconds 5"), "usual": Run(480)},
    ),
    Bench(
        "training step",
        "forward, backward and clipping of Stage C beside diffusers' class",
        "train_step.py",
        _same(900, tiny='--only "own eager"'),
        peers=("diffusers",),
    ),
    Bench(
        "training loop",
        "a whole step of the training loop beside a plain loop in torch and diffusers",
        "train_loop.py",
        {
            "tiny": Run(200, "--size stand-in --steps 8 --rounds 1 --optimizers adamw"),
            "quick": Run(200, "--size stand-in --steps 8 --rounds 1 --optimizers adamw"),
            "usual": Run(1500),
        },
    ),
    Bench(
        "training workers",
        "what Ray Train and DeepSpeed cost around a tiny model, and steps a second against CPU workers",
        "train_overhead.py",
        {"quick": Run(300, "--steps 8 --growth 2"), "usual": Run(600)},
    ),
    Bench(
        "training data",
        "what reading costs a training",
        "train_data.py",
        {"tiny": Run(120, "2000 --order 50000"), "quick": Run(120, "20000"), "usual": Run(240)},
    ),
    Bench(
        "training pieces",
        "what a layer of Stage C is made of, at full size",
        "train_pieces.py",
        _same(600),
        gpu_only=True,
    ),
    Bench(
        "models",
        "tagger and aesthetic scorer at full size",
        "bench_models.py",
        _same(1200),
        gpu_only=True,
    ),
    Bench(
        "adherence",
        "what the demo's models paint of what they are asked for, and what the demo takes",
        "adherence.py",
        {"usual": Run(2400)},  # eight to ten minutes on two cores
    ),
    Bench(
        "adherence large",
        "the same of larger models, trained by `make base SIZE=large`",
        "adherence.py",
        {"usual": Run(7200, "--weights runs/base-large/weights")},
        gpu_only=True,
        file="runs/base-large/weights",
        made_by="make base SIZE=large",
    ),
    Bench(
        "base adherence",
        "what the small world's base models paint of random scenes' prompts",
        "base_adherence.py",
        {"usual": Run(1200)},  # some two minutes on two cores
    ),
    Bench(
        "load",
        "200 clients for two minutes at the server in miniature",
        "serve_load.py",
        {"long": Run(600)},
        needs=("psutil",),
    ),
    Bench(
        "fuzzing",
        "the endpoint's document against schemathesis",
        "serve_fuzz.py",
        {"long": Run(1200)},
        needs=("schemathesis",),
    ),
    Bench(
        "faults",
        "what lost nodes, hangs and full stores cost a run, on simulated nodes",
        "faults.py",
        {"long": Run(2400)},
    ),
    Bench(
        "scale",
        "what grows with a run in the driver and on disk, with fake devices",
        "scale.py",
        {"long": Run(1800)},
        needs=("psutil",),
    ),
)
BY_NAME = {bench.name: bench for bench in BENCHES}
LONG_ALONE = tuple(bench.name for bench in BENCHES if bench.at("usual") is None)
