"""Seconds of a whole training step of Stage C on the CPU, ours beside a plain loop: `python tests/bench/train_loop.py`.

Both read the same latents and captions, encode the text with the same frozen text encoder, and run the same UNet in
float32 over the same batch in micro-batches of the same size, with AdamW and with Adafactor, on all cores. Ours is the
bare loop of a run (engine.Plain), with its order, guard, figures and reading ahead; the other is
peers/training_loop.py. Each run is a process of its own; runs alternate, the first steps are left out, and a figure is
the median of a run's steps, and of the runs' medians. `--size stand-in` is the miniature of the tests, in which the
work around the model is most of a step; `narrow` has three times its width and twice its layers. With dropout, ours
also drops weights of the attention, as Stability's code does and diffusers' does not, for which torch has no fast way
on a CPU; so the first optimizer is measured without dropout too, where both compute the same.

Not measured: a GPU, bfloat16, full size. Several workers and a text encoder that learns: train_overhead.py.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

from rows import Answer, Row, add_option, in_turn, write
from train_overhead import make

HERE = Path(__file__).resolve().parent
BATCH, MICRO = 16, 8
WARM_UP = 3  # steps
OPTIMIZERS = ("adamw", "adafactor")
NOT_MEASURED = ("anything at full size, in bfloat16 or on a GPU: this bench is for a CPU", "trained weights")
NARROW: dict[str, Any] = {
    "conditioning_dim": 192,
    "block_out_channels": (192, 192),
    "num_attention_heads": (6, 6),
    "down_num_layers_per_block": (2, 8),
    "up_num_layers_per_block": (8, 2),
}


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("--size", choices=("stand-in", "narrow", "both"), default="both")
    asked.add_argument("--steps", type=int, default=15)
    asked.add_argument("--rounds", type=int, default=2)
    asked.add_argument("--optimizers", default=",".join(OPTIMIZERS), help="with commas")
    asked.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    asked.add_argument("--ours", type=Path, help=argparse.SUPPRESS)
    asked.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    add_option(asked)
    given = asked.parse_args()
    if given.ours is not None:
        ours(given.ours, given)
        return
    print(f"{platform.machine()}, {given.threads} threads, {BATCH} images a step in micro-batches of {MICRO}")
    found, optimizers = [], given.optimizers.split(",")
    for size in ("stand-in", "narrow") if given.size == "both" else (given.size,):
        with tempfile.TemporaryDirectory() as folder:
            given.work = Path(folder)
            make(given.work)
            prior = given.work / "models" / "prior" / "prior"
            if size == "narrow":
                widen(prior)
            for optimizer in optimizers:
                found.append(beside(f"{size} model, {optimizer}", optimizer, given))
                print(found[-1].line(), flush=True)
            config = json.loads((prior / "config.json").read_text())
            (prior / "config.json").write_text(json.dumps(config | {"dropout": [0, 0]}))
            found.append(beside(f"{size} model without dropout, {optimizers[0]}", optimizers[0], given))
            print(found[-1].line(), flush=True)
    print("not measured: " + "; ".join(NOT_MEASURED))
    write(given.json, Answer(found, (), NOT_MEASURED))


def widen(folder: Path) -> None:
    """Put the larger UNet in place of the stand-in's."""
    import torch
    from diffusers.models.unets.unet_stable_cascade import StableCascadeUNet

    from sote.train import standins

    torch.manual_seed(0)
    StableCascadeUNet(**standins.PRIOR_CONFIG | NARROW).save_pretrained(folder)


def beside(what: str, optimizer: str, given: argparse.Namespace) -> Row:
    """Both loops in turn."""
    given.optimizers = optimizer
    numbers = iter(range(given.rounds))
    ways = {"ours": lambda: _ours(f"{what} {next(numbers)}", given), "peer": lambda: _theirs(given)}
    medians = in_turn(ways, rounds=given.rounds)
    return Row(
        f"a step of {BATCH} images, {what}, float32", medians["ours"], "s", "lower",
        medians["peer"], "plain torch and diffusers",
    )  # fmt: skip


def _ours(name: str, given: argparse.Namespace) -> float:
    """Seconds of a step, by what the run logged."""
    from sote.cluster import logs

    run = given.work / name
    _do([str(HERE / "train_loop.py"), "--ours", str(run), "--work", str(given.work), "--steps", str(given.steps),
         "--threads", str(given.threads), "--optimizers", given.optimizers])  # fmt: skip
    lines = [line for line in logs.read_metrics(run / "metrics.jsonl") if line["kind"] == "step"]
    return statistics.median(BATCH / line["images_per_second"] for line in lines[WARM_UP:])


def _theirs(given: argparse.Namespace) -> float:
    words = [str(HERE / "peers" / "training_loop.py"), "--prior", str(given.work / "models" / "prior")]
    words += ["--curated", str(given.work / "curated"), "--optimizer", given.optimizers, "--batch", str(BATCH)]
    words += ["--micro", str(MICRO), "--steps", str(given.steps), "--threads", str(given.threads)]
    return statistics.median(json.loads(_do(words).splitlines()[-1])[WARM_UP:])


def _do(words: list[str]) -> str:
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{words[0]} ended with {done.returncode}:\n{done.stderr[-4000:]}")
    return done.stdout


def ours(run: Path, given: argparse.Namespace) -> None:
    """The loop of a run and nothing around it, in this process."""
    import torch

    from sote.cluster.storage import RunFolder
    from sote.train import worker
    from sote.train.checkpoint import Origin
    from sote.train.engine import Plain
    from sote.train.recipe import TrainRecipe

    torch.set_num_threads(given.threads)
    recipe = TrainRecipe.model_validate({
        "run": str(run),
        "data": {"curated": str(given.work / "curated")},
        "model": {"prior": str(given.work / "models" / "prior")},
        "optimizer": {"name": given.optimizers},
        "batch": {"effective_batch": BATCH, "micro_batch": MICRO},
        "length": {"max_steps": given.steps},
        "workers": {"count": 1, "precision": "float32"},
        "checkpoint": {"every_steps": given.steps},
    })  # fmt: skip
    worker.train(recipe, folder=RunFolder(run), origin=Origin("", 32.0, ""), found=None, make_engine=Plain)


if __name__ == "__main__":
    main()
