"""What recipes cost on a cluster's profile."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sote.cluster.cluster_profile import ClusterProfile, Group, Price
from sote.cluster.errors import UserError
from sote.cluster.prices import Estimate
from sote.data import plan as data_plan
from sote.data.costs import Machine
from sote.data.recipe import CurateRecipe, LatentsPart, Source
from sote.serve import pricing
from sote.serve.recipe import ModelPart, ReplicasPart, ServeRecipe
from sote.train import plan as train_plan
from sote.train.recipe import TrainRecipe

ROOT = Path(__file__).parents[2]
RECIPE = "train/recipes/base.toml"
ROWS = 1_000_000
CURATE = CurateRecipe(run="run", sources=(Source(name="mine", path="pictures"),), latents=LatentsPart())


def group(name: str, device: str | None, *, use: tuple[str, ...], **fields: object) -> Group:
    made = {"cpus": 16, "memory_gb": 64, "max_nodes": 2, "price": Price(on_demand=1.0)} | fields
    if device is not None:
        made = {"accel": "cuda", "device": device, "devices": 8} | made
    return Group.model_validate({"name": name, "use": use} | made)


def cluster(*groups: Group) -> ClusterProfile:
    return ClusterProfile(name="mixed", groups=groups)


def training(tmp_path: Path, **workers: object) -> train_plan.Plan:
    """The plan of the base run on latents that are still to come."""
    return train_plan.outline(
        TrainRecipe.model_validate(
            {
                "run": "runs/base",
                "data": {"curated": str(tmp_path), "compression": 32, "expected_images": 1_000_000},
                "text": {"tokens": 227},
                "length": {"epochs": 3},
                "batch": {"micro_batch": 4},
                "workers": {"count": 8, "use_gpu": True, "zero_stage": 1} | workers,
            }
        )
    )


def hours(priced: Estimate) -> dict[str, float | None]:
    return {line.group: line.hours for line in priced.lines}


def test_curation_is_reckoned_anew_for_all_nodes_that_decode_and_caption() -> None:
    profile = cluster(group("l4", "L4", use=("caption",), devices=1), group("cores", None, use=("decode",)))
    priced = pricing.curating(CURATE, profile, rows=ROWS)
    [first, *_] = data_plan.hours_of(CURATE, Machine(32, {"L4": 2}), rows=ROWS)
    lines = [(line.what, line.group, line.nodes) for line in priced.lines]
    assert lines[:3] == [
        ("decode, score, tag", "l4", 2),
        ("decode, score, tag", "cores", 2),
        ("duplicates", "cores", 2),
    ]
    assert priced.lines[0].hours == first.hours
    assert priced.on_demand.without == ("head",)


def test_curation_on_cpu_nodes_alone_has_the_cores_do_everything() -> None:
    slots = group("slots", None, use=("caption",), device_slots=4)
    alone = pricing.curating(CURATE, cluster(slots), rows=ROWS)
    [first, *_] = data_plan.hours_of(CURATE, Machine(32, {}), rows=ROWS)
    assert alone.lines[0].hours == first.hours


def test_training_takes_the_fewest_nodes_that_hold_its_workers_and_names_every_way(tmp_path: Path) -> None:
    found = training(tmp_path)
    a100 = group("a100", "A100", use=("train",), device_memory_gb=80)
    h100 = group("h100", "H100", use=("train",), devices=4, device_memory_gb=80)
    priced = pricing.training(found, cluster(a100, h100))
    assert [(line.group, line.nodes, line.instead) for line in priced.lines[:2]] == [
        ("a100", 1, False),
        ("h100", 2, True),
    ]
    took = hours(priced)
    assert took["a100"] == pytest.approx(found.flop * (found.images_seen or 0) / (8 * 312e12 * 0.25) / 3600)
    assert took["h100"] == pytest.approx((took["a100"] or 0) * 312 / 989)
    assert took["head"] == took["a100"]


def test_a_profile_that_cannot_train_is_refused_in_one_line(tmp_path: Path) -> None:
    found = training(tmp_path)
    with pytest.raises(UserError, match="none is of use 'train'"):
        pricing.training(found, cluster(group("l4", "L4", use=("caption",))))
    with pytest.raises(
        UserError, match=r"needs 8 accelerators of \d+ GB in one group of use 'train'; t4 has 2 at most"
    ):
        pricing.training(found, cluster(group("t4", "T4", use=("train",), devices=1)))
    with pytest.raises(UserError, match="one of a100 has 24 GB"):
        pricing.training(found, cluster(group("a100", "A100", use=("train",), device_memory_gb=24)))
    with pytest.raises(UserError, match=r"groups\.odd\.device: 'Abacus' is no device with a known peak; known: H200"):
        pricing.training(found, cluster(group("odd", "Abacus", use=("train",))))


def test_an_elastic_training_goes_on_with_what_there_is(tmp_path: Path) -> None:
    whole = pricing.training(training(tmp_path), cluster(group("a100", "A100", use=("train",))))
    few = group("a100", "A100", use=("train",), devices=1)
    elastic = pricing.training(training(tmp_path, min_count=2), cluster(few))
    assert elastic.lines[0].nodes == 2
    assert hours(elastic)["a100"] == pytest.approx(4 * (hours(whole)["a100"] or 0))


def test_a_training_on_cpus_has_no_hours_and_says_so(tmp_path: Path) -> None:
    found = training(tmp_path, use_gpu=False, cpus_per_worker=5)
    priced = pricing.training(found, cluster(group("cores", None, use=("train",), max_nodes=4)))
    assert (priced.lines[0].hours, priced.lines[0].nodes) == (None, 3)
    assert "nothing is known" in priced.lines[0].note


def test_serving_is_priced_by_the_hour_and_by_the_thousand_pictures() -> None:
    part = ModelPart(prior="prior", decoder="decoder")
    replicas = ReplicasPart(min_replicas=1, max_replicas=4, gpus=1)
    recipe = ServeRecipe(run="r", model=part, prior_replicas=replicas, decoder_replicas=replicas)
    priced = pricing.serving(recipe, cluster(group("a100", "A100", use=("serve",), devices=2, max_nodes=8)), tflop=200)
    found = {line.what: (line.nodes, round(line.hours or 0, 4)) for line in priced.lines}
    assert found["an hour, at most"] == (4, 1.0)
    assert found["an hour, at least"] == (1, 1.0)
    assert found["1,000 pictures"] == (4, 0.0694)  # 200 TFLOP at 100 TFLOP/s are 2 s a picture on each of 8
    assert priced.on_demand.amount == 4
    with pytest.raises(UserError, match="needs 2 accelerators in one group of use 'serve'; l4 has 1 at most"):
        pricing.serving(recipe, cluster(group("l4", "L4", use=("serve",), devices=1, max_nodes=1)), tflop=200)


@pytest.mark.parametrize("profile", ["kubernetes", "aws", "onprem"])
def test_a_profile_that_is_shipped_prices_a_recipe_that_is(profile: str, sote: Callable[..., Any]) -> None:
    code, out, err = sote(
        "check", str(ROOT / RECIPE), "--cluster", str(ROOT / f"cluster/deploy/profiles/{profile}.toml")
    )
    assert (code, err) == (0, "")
    assert "Cost on the cluster" in out
    assert "node-hours" in out


def test_a_profile_with_a_field_that_is_wrong_is_refused_by_name(tmp_path: Path, sote: Callable[..., Any]) -> None:
    wrong = tmp_path / "cluster.toml"
    wrong.write_text(
        '[[groups]]\nname = "l4"\nuse = ["caption"]\ncpus = 8\nmemory_gb = 32\nmax_nodes = 2\nspott = true\n'
    )
    code, _, err = sote("check", str(ROOT / RECIPE), "--cluster", str(wrong))
    assert code == 2
    assert "cluster.toml: groups.0.spott: unknown key, did you mean spot" in err
