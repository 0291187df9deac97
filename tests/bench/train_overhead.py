"""Prints what Ray Train and DeepSpeed cost around a tiny model: `python tests/bench/train_overhead.py`.

The same recipe (same batches, same micro-batches, one thread for each worker) is trained by the bare loop (engine.Plain
in one process of its own) and by Ray Train and DeepSpeed in turn, with one worker, two and four: with more workers than
cores they share these. The bare figure is the median of all its runs. A step's seconds are images of a step / the
images_per_second that the run logged; the first steps of each run are left out. What Ray's processes do beside the
training on the same cores is in the figures; the start of the workers is not, and is printed by itself.

Not measured: several machines, GPUs, ZeRO stages above the one asked for with --zero.
"""

import argparse
import contextlib
import importlib.util
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rows import Answer, Plot, Row, add_option, write

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

WARM_UP = 5  # steps
MICROS = 4  # micro-batches of a step
CONFTEST = Path(__file__).parent.parent / "train" / "conftest.py"


@dataclass(frozen=True)
class Figure:
    """Of one way to train: seconds of a step, share of it that waits for data, seconds before the first step."""

    name: str
    seconds: list[float]
    waits: list[float]
    start_seconds: float
    workers: int  # 0: the bare loop

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)


def recipe(run: Path, *, work: Path, steps: int, workers: int, zero: int, batch: int) -> Any:
    """The recipe of a run on the stand-ins in `work`."""
    from sote.train.recipe import TrainRecipe

    return TrainRecipe.model_validate({
        "run": str(run),
        "data": {"curated": str(work / "curated")},
        "model": {"prior": str(work / "models" / "prior")},
        "optimizer": {"text_encoder_learning_rate": 4e-6},
        "batch": {"effective_batch": batch, "micro_batch": batch // MICROS},
        "length": {"max_steps": steps},
        "workers": {"count": workers, "zero_stage": zero},
        "checkpoint": {"every_steps": steps},
    })  # fmt: skip


def make(work: Path) -> None:
    """Stand-in models and a small curate run, those of the tests."""
    from sote.train import standins

    standins.make(work / "models", seed=0)
    spec = importlib.util.spec_from_file_location("conftest_of_training", CONFTEST)
    assert spec is not None
    assert spec.loader is not None
    tests = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tests)
    tests.write_curated(work / "curated", images=64)


def bare(run: Path, options: argparse.Namespace) -> None:
    """The loop and nothing else, in this process."""
    import torch

    from sote.cluster.storage import RunFolder
    from sote.train import worker
    from sote.train.checkpoint import Origin
    from sote.train.engine import Plain

    torch.set_num_threads(1)
    made = recipe(run, work=Path(options.work), steps=options.steps, workers=1, zero=0, batch=options.batch)
    origin = Origin("", 32.0, "")
    worker.train(made, folder=RunFolder(run), origin=origin, found=None, make_engine=Plain)


def around(run: Path, options: argparse.Namespace) -> None:
    """The same with Ray Train and DeepSpeed around it."""
    from sote.cluster import storage
    from sote.train import launch

    made = recipe(
        run, work=Path(options.work), steps=options.steps, workers=options.workers, zero=options.zero,
        batch=options.batch,
    )  # fmt: skip
    with storage.open_run(made, verb="train", command="a bench") as folder, cores(options.workers):
        launch.run(made, folder=folder, address=None)


@contextlib.contextmanager
def cores(wanted: int) -> Iterator[None]:
    """More workers than cores have a Ray that believes in as many cores; all others an own one, as always."""
    if wanted <= len(os.sched_getaffinity(0)):
        yield
        return
    import ray

    from sote.cluster import session

    os.environ.update(session.QUIET | session.LOCAL)
    ray.init(address="local", num_cpus=wanted, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    try:
        yield
    finally:
        ray.shutdown()


def measure(name: str, way: str, options: argparse.Namespace, *, workers: int = 1) -> Figure:
    """Train in a fresh process, and read what the run logged."""
    from sote.cluster import logs

    run = Path(options.work) / name.replace(" ", "-")
    command = [sys.executable, __file__, "--way", way, "--run", str(run), "--work", options.work]
    command += ["--steps", str(options.steps), "--batch", str(options.batch), "--zero", str(options.zero)]
    began = time.time()
    done = subprocess.run([*command, "--workers", str(workers)], stderr=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{name}: ended with {done.returncode}:\n{done.stderr[-4000:]}")
    lines = [line for line in logs.read_metrics(run / "metrics.jsonl") if line["kind"] == "step"]
    kept = lines[WARM_UP:]
    seconds = [options.batch / line["images_per_second"] for line in kept]
    waits = [line["data_wait_share"] for line in kept]
    return Figure(name, seconds, waits, lines[0]["time"] - began, workers if way == "around" else 0)


def render(figures: list[Figure], options: argparse.Namespace) -> None:
    """The table."""
    own = [seconds for figure in figures if figure.name.startswith("bare") for seconds in figure.seconds]
    base = statistics.median(own)
    print(f"\n{platform.machine()}, {os.cpu_count()} cores, {options.batch} images a step in {MICROS} micro-batches, "
          f"{options.steps} steps of which {WARM_UP} are left out, ZeRO stage {options.zero}")  # fmt: skip
    print(f"{'':32} {'s/step':>8} {'10 %..90 %':>16} {'against bare':>13} {'data wait':>10} {'to step 1':>10}")
    for figure in figures:
        tenths = statistics.quantiles(figure.seconds, n=10)
        wait = statistics.median(figure.waits)
        print(f"{figure.name:32} {figure.median:8.3f} {tenths[0]:7.3f}..{tenths[-1]:7.3f} "
              f"{figure.median / base - 1:+12.1%} {wait:10.2%} {figure.start_seconds:8.1f} s")  # fmt: skip
    print(f"{'bare, all':32} {base:8.3f}")
    print("one worker: goal at most +10 %; two workers share the step, so -50 % would be no cost at all")


def answer(figures: list[Figure]) -> Answer:
    """Rows against the bare loop, and steps a second over workers."""
    base = statistics.median(seconds for figure in figures if not figure.workers for seconds in figure.seconds)
    around = [figure for figure in figures if figure.workers]
    rows = [
        Row(
            f"a step with Ray Train and DeepSpeed, {figure.workers} worker{'s' * (figure.workers > 1)} on "
            f"{len(os.sched_getaffinity(0))} cores", figure.median, "s", "lower", base, "the bare loop, one process",
            note="goal at least 0.91" if figure.workers == 1 else "",
        )
        for figure in around
    ]  # fmt: skip
    lines = {
        "Ray Train and DeepSpeed": [(float(figure.workers), 1 / figure.median) for figure in around],
        "the bare loop, one process": [(1.0, 1 / base)],
    }
    return Answer(rows, [Plot("Training on CPU workers, the same batch for all", "workers", "steps/s", lines)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--zero", type=int, default=0)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--growth", default="1,2,4", help="workers to be tried, with commas")
    add_option(parser)
    parser.add_argument("--way", choices=("bare", "around"))
    parser.add_argument("--run", type=Path)
    parser.add_argument("--work")
    options = parser.parse_args()
    if options.way is not None:
        {"bare": bare, "around": around}[options.way](options.run, options)
        return
    with tempfile.TemporaryDirectory() as work:
        options.work = work
        make(Path(work))
        figures = [measure("bare loop", "bare", options)]
        counts = [int(each) for each in options.growth.split(",")]
        for workers in counts:
            figures.append(measure(f"Ray Train + DeepSpeed, {workers}", "around", options, workers=workers))
            if workers in (counts[0], counts[-1]):
                figures.append(measure(f"bare loop, after {workers}", "bare", options))
    render(figures, options)
    write(options.json, answer(figures))


if __name__ == "__main__":
    main()
