"""How `make base` runs its commands, what its sizes change of the recipes, and the whole of it in miniature."""

import hashlib
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

from sote.cluster import recipe as recipes
from sote.train import world_base, world_files, world_models
from sote.train.recipe import TrainRecipe

BRIEF = {  # a table that each recipe of training has otherwise
    "batch": {"effective_batch": 4, "micro_batch": 4},
    "length": {"max_steps": 2},
    "checkpoint": {"every_steps": 2},
}


def _write(path: Path, *, after: Path | None = None) -> list[str]:
    """A command that waits for the file `after`, then writes `path`."""
    code = "import pathlib, sys, time\n"
    if after is not None:
        code += f"while not pathlib.Path({str(after)!r}).exists(): time.sleep(0.01)\n"
    return [sys.executable, "-c", f"{code}pathlib.Path({str(path)!r}).touch()"]


def test_chains_run_beside_each_other_and_each_in_its_order(tmp_path: Path) -> None:
    first, second, third = (tmp_path / name for name in ("first", "second", "third"))
    # The first chain waits for the second's first command, the second chain for the first's: one by one they would hang
    world_base._together([[_write(first, after=second)], [_write(second), _write(third, after=first)]])
    assert all(path.exists() for path in (first, second, third))


def test_a_chain_that_fails_ends_alone_and_is_told(tmp_path: Path) -> None:
    fails, never, kept = [sys.executable, "-c", "raise SystemExit(3)"], tmp_path / "never", tmp_path / "kept"
    with pytest.raises(subprocess.CalledProcessError, match="3"):
        world_base._together([[fails, _write(never)], [_write(kept)]])
    assert kept.exists()
    assert not never.exists()


@pytest.mark.parametrize("name", [name for stage in world_base.STAGES for name in stage])
def test_a_size_changes_what_it_names_of_a_recipe_and_nothing_else(tmp_path: Path, name: str) -> None:
    small, large = (
        recipes.load(world_base._recipe(tmp_path / "runs" / "base", name, size), TrainRecipe).model_dump(mode="json")
        for size in (world_base.SIZES["small"], world_base.SIZES["large"])
    )
    assert large["workers"]["use_gpu"]
    changed = world_base.SIZES["large"].recipes[name]
    named = {f"{table}.{key}" for table, values in changed.items() for key in values}
    assert {line.split(":")[0] for line in recipes.difference(small, large)} <= named
    for table, values in changed.items():
        assert {key: large[table][key] for key in values} == values


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_size_that_is_not_committed_is_made_whole_and_leaves_the_committed_files_alone(tmp_path: Path) -> None:
    committed = {path: hashlib.sha256(path.read_bytes()).digest() for path in world_files.HERE.iterdir()}
    names = [name for stage in world_base.STAGES for name in stage]
    size = world_base.Size(pictures=60, recipes=dict.fromkeys(names, BRIEF), is_together=False)
    root = tmp_path / "base-brief"
    world_base.make(root, size)
    weights = root / "weights"
    assert all((weights / place).is_file() for place in world_files.places())
    before = tmp_path / "before"
    world_models.make(before, seed=world_files.SEED)
    for place in (f"prior/prior/{world_files.UNET}", f"decoder/decoder/{world_files.UNET}"):
        drawn, learnt = load_file(before / place), load_file(weights / place)
        assert drawn.keys() == learnt.keys()
        assert any(not drawn[key].equal(learnt[key]) for key in drawn)
        assert all(bool(tensor.isfinite().all()) for tensor in learnt.values())
    assert committed == {path: hashlib.sha256(path.read_bytes()).digest() for path in world_files.HERE.iterdir()}
    world_base.make(root, size)  # the same again has nothing to do but to export
