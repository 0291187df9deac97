from pathlib import Path

import pytest
from rich.console import Console

from sote.cluster.errors import RecipeError, WeightsError
from sote.data import plan
from sote.data.recipe import CurateRecipe, LatentsPart, Source, TagPart, WorkPart


def recipe(**changes: object) -> CurateRecipe:
    made = CurateRecipe(run="run", sources=(Source(name="mine", path="pictures"),), latents=LatentsPart())
    return made.model_copy(update=changes)


def test_hours_are_reckoned_for_the_machine_that_the_recipe_names() -> None:
    named = recipe(work=WorkPart(cores=64, devices={"A770": 1}))
    machine = plan.machine_of(named)
    assert (machine.cores, dict(machine.devices)) == (64, {"A770": 1})
    hours = {each.what: each for each in plan.hours_of(named, machine, rows=5_628_499)}
    assert list(hours) == ["decode, score, tag", "duplicates", "caption, select", "latents"]
    # the card: 350 hours on one A770 in float32, of which these two models are the most; ours is arithmetic
    assert 100 < hours["decode, score, tag"].hours < 350
    assert hours["decode, score, tag"].binds == "accelerators"
    assert hours["duplicates"].binds == "CPU cores"


def test_cores_alone_mean_a_machine_without_accelerators() -> None:
    machine = plan.machine_of(recipe(work=WorkPart(cores=2)))
    assert (machine.cores, machine.devices) == (2, {})


def test_an_unknown_device_is_refused_with_those_that_are_known() -> None:
    with pytest.raises(RecipeError, match=r"work\.devices: 'Abacus' is no device with a known peak; known: H200"):
        plan.machine_of(recipe(work=WorkPart(devices={"Abacus": 1})))


def test_a_tagger_that_is_none_is_refused_before_anything_starts(tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "a.jpg").write_bytes(b"")
    tagger = tmp_path / "tagger"
    tagger.mkdir()
    (tagger / "selected_tags.csv").write_text("name,count\nsolo,1\n")
    (tagger / "model.onnx").write_bytes(b"no model")
    sources = (Source(name="mine", path=str(tmp_path / "pictures")),)
    with pytest.raises(WeightsError, match=r"selected_tags\.csv: expected columns"):
        plan.check(recipe(sources=sources, tag=TagPart(tagger=str(tagger))))


def test_the_plan_names_the_resource_that_binds(tmp_path: Path) -> None:
    named = recipe(work=WorkPart(cores=2, devices={"H200": 8}))
    machine = plan.machine_of(named)
    hours = tuple(plan.hours_of(named, machine, rows=1_000_000))
    made = plan.Plan({"mine": 1_000_000}, 1000, {}, machine, named=True, hours=hours, memory_bytes=10**9)
    with (tmp_path / "out").open("w") as file:
        Console(file=file, width=120).print(plan.render(made))
    text = (tmp_path / "out").read_text()
    assert "2 cores, 8 x H200" in text
    assert "CPU cores bind in decode, score, tag" in text
