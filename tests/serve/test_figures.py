"""Figures as Prometheus reads them, and the dashboard that draws them."""

import json
import re
from importlib import resources

import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families

from sote.serve.figures import Figures
from sote.serve.pictures import Painted
from sote.serve.service import Painting
from sote.serve.settings import Settings, Stage, Work

STAGE = Stage(steps=4, guidance=4.0, sampler="ddpm", scheduler="simple", shift=1.0)
SETTINGS = Settings("a", "", 256, 256, 42, images=2, seed=1, output_format="webp", prior=STAGE, decoder=STAGE)


def painting(*work: Work, seconds: float = 1.5) -> Painting:
    picture = Painted(b"x", "webp", 256, 256, 1, "", np.zeros((16, 6, 6), np.float32))
    return Painting((picture, picture), work, seconds, warnings=(), prompt_tokens=1)


def values(figures: Figures) -> dict[tuple[str, tuple[str, ...]], float]:
    """Every sample by name and the values of its labels."""
    families = text_string_to_metric_families(figures.text().decode())
    return {(each.name, tuple(each.labels.values())): each.value for family in families for each in family.samples}


def test_a_painting_is_counted_by_its_pictures_stages_and_steps() -> None:
    figures = Figures()
    prior = Work("prior", seconds=1.0, waited_seconds=0.25, megapixel_steps=0.5, occupancy={1: 3, 8: 2})
    decoder = Work("decoder", seconds=0.25, waited_seconds=0.0, megapixel_steps=0.25, occupancy={2: 4})
    figures.painted(painting(prior, decoder), SETTINGS)
    figures.painted(painting(prior), SETTINGS)
    found = values(figures)
    assert found["sote_images_total", ("webp",)] == 4
    assert found["sote_painting_seconds_sum", ()] == 3
    assert found["sote_stage_seconds_sum", ("prior",)] == 1.5  # the wait is none of it
    assert found["sote_stage_waited_seconds_sum", ("prior",)] == 0.5
    assert found["sote_stage_seconds_count", ("decoder",)] == 1
    assert found["sote_megapixel_steps_total", ("prior",)] == 1
    steps = {pictures: found["sote_batch_steps_total", (pictures, "prior")] for pictures in ("1", "8")}
    assert steps == {"1": 6, "8": 4}
    assert found["sote_batch_picture_steps_total", ("prior",)] == 2 * (1 * 3 + 8 * 2)
    assert found["sote_batch_picture_steps_total", ("decoder",)] == 8


def test_who_is_at_a_stage_is_counted_until_it_leaves_however_it_leaves() -> None:
    figures = Figures()
    with pytest.raises(ValueError, match="lost"), figures.inside("prior"):
        with figures.inside("decoder"):
            assert values(figures)["sote_stage_requests", ("decoder",)] == 1
        assert values(figures)["sote_stage_requests", ("prior",)] == 1
        raise ValueError("lost")
    assert values(figures)["sote_stage_requests", ("prior",)] == 0


def test_jobs_are_those_of_the_last_count() -> None:
    figures = Figures()
    figures.jobs({"waiting": 3, "running": 1})
    figures.jobs({"running": 2})
    assert {key: value for key, value in values(figures).items() if key[0] == "sote_jobs"} == {
        ("sote_jobs", ("running",)): 2
    }


def test_failures_and_refusals_are_counted_by_their_word() -> None:
    figures = Figures()
    figures.failed("no memory")
    figures.refused("max_steps")
    figures.refused("max_steps")
    found = values(figures)
    assert found["sote_failures_total", ("no memory",)] == 1
    assert found["sote_refusals_total", ("max_steps",)] == 2


def test_two_sets_of_figures_share_nothing() -> None:
    first, second = Figures(), Figures()
    first.failed("busy")
    assert ("sote_failures_total", ("busy",)) not in values(second)


def test_the_dashboard_draws_every_figure_and_no_other() -> None:
    dashboard = json.loads(resources.files("sote.cluster").joinpath("deploy/grafana/serve.json").read_text())
    figures = Figures()
    figures.answered(method="GET", route="/", status=200, seconds=0.1)
    work = Work("prior", seconds=1.0, waited_seconds=0.25, megapixel_steps=0.5, occupancy={1: 3})
    figures.painted(painting(work), SETTINGS)
    figures.failed("lost")
    figures.refused("concurrency")
    figures.jobs({"running": 1})
    samples = {name for name, _ in values(figures) if not name.endswith("_created")}
    queries = [target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", [])]
    drawn = {name for query in queries for name in re.findall(r"sote_\w+", query)}
    assert drawn <= samples
    shown = {name.removesuffix("_bucket") for name in drawn}
    assert {re.sub(r"_(bucket|sum|count)$", "", name) for name in samples} == shown


def test_the_dashboard_can_be_taken_into_any_grafana() -> None:
    dashboard = json.loads(resources.files("sote.cluster").joinpath("deploy/grafana/serve.json").read_text())
    (variable,) = dashboard["templating"]["list"]
    assert (variable["type"], variable["query"]) == ("datasource", "prometheus")
    panels = [panel for panel in dashboard["panels"] if panel["type"] != "row"]
    assert all(panel["datasource"]["uid"] == "${datasource}" for panel in panels)
    places = [(each["gridPos"]["x"], each["gridPos"]["y"], each["gridPos"]["w"]) for each in dashboard["panels"]]
    assert len({place[:2] for place in places}) == len(places)
    assert all(x + w <= 24 for x, _, w in places)  # Grafana's grid
    for panel in panels:
        for target in panel["targets"]:
            for group in re.findall(r"by \(([\w, ]+)\)", target["expr"]):
                wanted = set(re.findall(r"{{(\w+)}}", target["legendFormat"]))
                assert wanted <= set(group.split(", ")), target
