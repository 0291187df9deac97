"""`make base`: trains the small world's base models from nothing, and writes what is committed under train/world.

Scenes are painted, the five small nets of curation and Stage A are fitted on them, then `sote curate` and `sote train`
make the rest with the recipes of train/world. What is done is not done again: the same command continues.

`make base SIZE=large` trains a larger text encoder, Stage C and Stage B on more pictures, on a GPU. It takes the other
nets as they are committed, commits nothing, and leaves a folder of weights that `sote demo --weights` measures.

Kind: wiring.
"""

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tomli_w
import torch

from sote.cluster import storage
from sote.data import scenes, world, world_encoder, world_samples, world_scorers, world_tagger, world_vqgan
from sote.train import world_files, world_models

SAMPLES, SAMPLES_SEED = 12_000, 11
PICTURES_SEED = 1
STEPS = {"encoder": 1300, "vqgan": 1300, "tagger": 3000, "aesthetic": 500, "quality": 1500}
PARTS = tuple(STEPS)
NETS = (("encoder", "tagger"), ("vqgan", "aesthetic", "quality"))  # about as long as each other, each on one core
STAGES = (("prior", "prior_final"), ("decoder", "decoder_final"))  # Stage C and B do not need each other
RECIPES = ("curate", *STAGES[0], *STAGES[1])
DEFAULT = "runs/base"  # the run that the committed recipes name


@dataclass(frozen=True)
class Size:
    """How much is made. `recipes`: tables of the committed recipes, by name, and what they have otherwise here."""

    pictures: int = 12_000
    configs: world_models.Configs = world_models.SMALL
    recipes: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    is_committed: bool = False  # the other nets are fitted, too, and what comes out is written to train/world
    is_together: bool = True  # Stage C and Stage B are trained beside each other, not one after the other


def _on_gpu(*, batch: int, steps: int) -> dict[str, Any]:
    return {
        "batch": {"effective_batch": batch, "micro_batch": batch},
        "length": {"max_steps": steps},
        "workers": {"use_gpu": True},
    }


SIZES = {
    "small": Size(is_committed=True),
    "large": Size(
        pictures=100_000,
        configs=world_models.LARGE,
        recipes={
            "prior": _on_gpu(batch=256, steps=16_000) | {"optimizer": {"prior_learning_rate": 5e-4}},
            "prior_final": _on_gpu(batch=256, steps=3_000)
            | {"optimizer": {"prior_learning_rate": 5e-4, "text_encoder_learning_rate": 2.5e-4, "decay_steps": 2_900}},
            "decoder": _on_gpu(batch=64, steps=16_000),
            "decoder_final": _on_gpu(batch=64, steps=4_000),
        },
        is_together=False,
    ),
}


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("run", type=Path, help="the run folder; others are made beside it")
    asked.add_argument("--size", choices=tuple(SIZES), default="small")
    asked.add_argument("--part", choices=PARTS, help="fit one net alone")
    given = asked.parse_args()
    root = given.run.resolve()
    if given.part is not None:
        _fit(root, given.part)
    else:
        make(root, SIZES[given.size])


def make(root: Path, size: Size) -> None:
    """The whole way to `root`/weights. Raises CalledProcessError if one of its commands fails."""
    if size.is_committed:
        _once(_nets(root) / "samples", lambda folder: world_samples.paint(folder, count=SAMPLES, seed=SAMPLES_SEED))
        _together([_part(root, name) for name in nets if not _figure(root, name).exists()] for nets in NETS)
    _once(root / "weights", lambda folder: _assemble(root, folder, size))
    _once(
        root / "pictures",
        lambda folder: scenes.draw(
            folder, count=size.pictures, seed=PICTURES_SEED, of=world.plan, processes=os.cpu_count() or 1
        ),
    )
    recipes = {name: _recipe(root, name, size) for name in RECIPES}
    _run([_sote("curate", recipes["curate"])])
    chains = [[_sote("train", recipes[name]) for name in stage] for stage in STAGES]
    for beside in (chains,) if size.is_together else [(chain,) for chain in chains]:
        _together(beside)
    for name in ("prior", "decoder"):
        _export(root, name)
    if size.is_committed:
        _pack(root, size)
    else:
        print(f"weights: {root / 'weights'}\nmeasure: sote demo --weights {root / 'weights'} --out {root}-demo")


def _fit(root: Path, part: str) -> None:
    """Fit one net on the samples, on one core, and keep its figure."""
    torch.set_num_threads(1)
    samples, folder, steps = world_samples.load(_nets(root) / "samples"), _nets(root) / "fitted", STEPS[part]
    seed = 3 + PARTS.index(part)
    fits: dict[str, Callable[[], float]] = {
        "encoder": lambda: world_encoder.fit(samples, folder / "encoder", steps=steps, seed=seed),
        "vqgan": lambda: world_vqgan.fit(samples, folder / "vqgan", steps=steps, seed=seed),
        "tagger": lambda: world_tagger.fit(samples, folder / "tagger", steps=steps, seed=seed),
        "aesthetic": lambda: world_scorers.fit_aesthetic(samples, folder / "aesthetic", steps=steps, seed=seed),
        "quality": lambda: world_scorers.fit_quality(
            samples, folder / "quality_clip", folder / "quality_head", steps=steps, seed=seed
        ),
    }
    figure = fits[part]()
    storage.write_text(_figure(root, part), json.dumps({"steps": steps, "seed": seed, "figure": figure}) + "\n")


def _assemble(root: Path, folder: Path, size: Size) -> None:
    """The folder of weights before Stage C, Stage B and the text encoder are trained."""
    if not size.is_committed:
        world_files.unpack(folder)
        world_models.make(folder, seed=world_files.SEED, configs=size.configs)
        return
    for name in ("encoder", "tagger", "aesthetic", "quality_clip", "quality_head"):
        shutil.copytree(_nets(root) / "fitted" / name, folder / name, dirs_exist_ok=True)
    world_models.make(folder, seed=world_files.SEED, configs=size.configs)
    shutil.copytree(_nets(root) / "fitted" / "vqgan", folder / "decoder" / "vqgan", dirs_exist_ok=True)


def _nets(root: Path) -> Path:
    """Beside the run folder: what the small nets are fitted on, and what comes of it."""
    return root.with_name(f"{root.name}-nets")


def _figure(root: Path, part: str) -> Path:
    """Written when a net is fitted: its steps, seed and figure."""
    return _nets(root) / "fitted" / f"{part}.json"


def _part(root: Path, part: str) -> list[str]:
    return [sys.executable, "-m", "sote.train.world_base", str(root), "--part", part]


def _recipe(root: Path, name: str, size: Size) -> Path:
    """The committed recipe, with `root` in place of the run that it names, and with what this size has otherwise."""
    text = (world_files.HERE / f"{name}.toml").read_text(encoding="utf-8").replace(f'"{DEFAULT}', f'"{root}')
    if changed := size.recipes.get(name):
        tables = tomllib.loads(text)
        text = tomli_w.dumps(tables | {part: tables.get(part, {}) | values for part, values in changed.items()})
    path = root / "recipes" / f"{name}.toml"
    storage.write_text(path, text)
    return path


def _export(root: Path, name: str) -> None:
    """What was trained, into the folder of weights."""
    out, run = _nets(root) / "packed" / name, root.with_name(f"{root.name}-{name}-final")
    shutil.rmtree(out, ignore_errors=True)
    _run([[*_sote("export", run), str(out), "--format", "diffusers", "--dtype", "float32"]])
    shutil.copytree(out / name, root / "weights" / name, dirs_exist_ok=True)


def _pack(root: Path, size: Size) -> None:
    """Write the committed files."""
    figures = {part: json.loads(_figure(root, part).read_text()) for part in PARTS}
    facts: dict[str, Any] = {
        "made_by": "make base",
        "commit": storage.code_commit(),
        "recipes": {f"{name}.toml": world_files.sha256(world_files.HERE / f"{name}.toml") for name in RECIPES},
        "samples": {"count": SAMPLES, "seed": SAMPLES_SEED},
        "pictures": {"count": size.pictures, "seed": PICTURES_SEED},
        "fitted": figures,
        "torch": torch.__version__,
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads",
    }
    world_files.pack(root / "weights", world_files.HERE, facts=facts)


def _sote(verb: str, subject: Path) -> list[str]:
    return [sys.executable, "-m", "sote.cluster.cli", verb, str(subject)]


def _once(folder: Path, make: Callable[[Path], None]) -> None:
    storage.once(folder, make)


def _run(commands: Iterable[list[str]]) -> None:
    for command in commands:
        subprocess.run(command, check=True)


def _together(chains: Iterable[Iterable[list[str]]]) -> None:
    """Run the commands of each chain one after the other, all chains at once. Raises when all have ended if one failed:
    what the others made is kept, and the same command continues."""
    with ThreadPoolExecutor() as pool:
        for chain in [pool.submit(_run, chain) for chain in chains]:
            chain.result()


if __name__ == "__main__":
    try:
        main()
    except subprocess.CalledProcessError as error:
        said = f"{' '.join(error.cmd)}: exit code {error.returncode}"
        raise SystemExit(f"{said}; what is done is kept, and `make base` goes on from it") from None
