"""`make base`: trains the small world's base models from nothing, and writes what is committed under train/world.

Scenes are painted, the five small nets of curation and Stage A are fitted on them, then `sote curate` and `sote train`
make the rest with the recipes of train/world. What is done is not done again: the same command continues.

Kind: wiring.
"""

import json
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from sote.cluster import storage
from sote.data import scenes, world, world_encoder, world_samples, world_scorers, world_tagger, world_vqgan
from sote.train import world_files, world_models

SAMPLES, SAMPLES_SEED = 12_000, 11
PICTURES, PICTURES_SEED = 12_000, 1
STEPS = {"encoder": 1300, "vqgan": 1300, "tagger": 3000, "aesthetic": 500, "quality": 1500}
PARTS = tuple(STEPS)
NETS = (("encoder", "tagger"), ("vqgan", "aesthetic", "quality"))  # about as long as each other, each on one core
STAGES = (("prior", "prior_final"), ("decoder", "decoder_final"))  # Stage C and B do not need each other
RECIPES = ("curate", *STAGES[0], *STAGES[1])
DEFAULT = "runs/base"  # the run that the committed recipes name


def main(arguments: list[str]) -> None:
    """OUT: the whole way. OUT NAME: one net of PARTS, in a process of its own."""
    root = Path(arguments[0]).resolve()
    if len(arguments) > 1:
        _fit(root, arguments[1])
        return
    _once(_nets(root) / "samples", lambda folder: world_samples.paint(folder, count=SAMPLES, seed=SAMPLES_SEED))
    _together([_part(root, name) for name in nets if not _figure(root, name).exists()] for nets in NETS)
    _once(root / "weights", lambda folder: _assemble(root, folder))
    _once(
        root / "pictures",
        lambda folder: scenes.draw(folder, count=PICTURES, seed=PICTURES_SEED, of=world.plan, processes=2),
    )
    recipes = {name: _recipe(root, name) for name in RECIPES}
    _run([_sote("curate", recipes["curate"])])
    _together([_sote("train", recipes[name]) for name in stage] for stage in STAGES)  # each on one core
    _pack(root)


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


def _assemble(root: Path, folder: Path) -> None:
    """The folder of weights before Stage C, Stage B and the text encoder are trained."""
    for name in ("encoder", "tagger", "aesthetic", "quality_clip", "quality_head"):
        shutil.copytree(_nets(root) / "fitted" / name, folder / name, dirs_exist_ok=True)
    world_models.make(folder, seed=world_files.SEED)
    shutil.copytree(_nets(root) / "fitted" / "vqgan", folder / "decoder" / "vqgan", dirs_exist_ok=True)


def _nets(root: Path) -> Path:
    """Beside the run folder: what the small nets are fitted on, and what comes of it."""
    return root.with_name(f"{root.name}-nets")


def _figure(root: Path, part: str) -> Path:
    """Written when a net is fitted: its steps, seed and figure."""
    return _nets(root) / "fitted" / f"{part}.json"


def _part(root: Path, part: str) -> list[str]:
    return [sys.executable, "-m", "sote.train.world_base", str(root), part]


def _recipe(root: Path, name: str) -> Path:
    """The committed recipe, with `root` in place of the run that it names."""
    text = (world_files.HERE / f"{name}.toml").read_text(encoding="utf-8")
    path = root / "recipes" / f"{name}.toml"
    storage.write_text(path, text.replace(f'"{DEFAULT}', f'"{root}'))
    return path


def _pack(root: Path) -> None:
    """Export what was trained, and write the committed files."""
    made = _nets(root) / "packed"
    for name in ("prior", "decoder"):
        out = made / name
        shutil.rmtree(out, ignore_errors=True)
        run = root.with_name(f"{root.name}-{name}-final")
        _run(
            [
                [
                    sys.executable,
                    "-m",
                    "sote.cluster.cli",
                    "export",
                    str(run),
                    str(out),
                    "--format",
                    "diffusers",
                    "--dtype",
                    "float32",
                ]
            ]
        )
        shutil.copytree(out / name, root / "weights" / name, dirs_exist_ok=True)
    figures = {part: json.loads(_figure(root, part).read_text()) for part in PARTS}
    facts: dict[str, Any] = {
        "made_by": "make base",
        "commit": storage.code_commit(),
        "recipes": {f"{name}.toml": world_files.sha256(world_files.HERE / f"{name}.toml") for name in RECIPES},
        "samples": {"count": SAMPLES, "seed": SAMPLES_SEED},
        "pictures": {"count": PICTURES, "seed": PICTURES_SEED},
        "fitted": figures,
        "torch": torch.__version__,
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads",
    }
    world_files.pack(root / "weights", world_files.HERE, facts=facts)


def _sote(verb: str, recipe: Path) -> list[str]:
    return [sys.executable, "-m", "sote.cluster.cli", verb, str(recipe)]


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
        main(sys.argv[1:])
    except subprocess.CalledProcessError as error:
        said = f"{' '.join(error.cmd)}: exit code {error.returncode}"
        raise SystemExit(f"{said}; what is done is kept, and `make base` goes on from it") from None
