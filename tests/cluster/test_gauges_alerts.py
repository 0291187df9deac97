"""Dashboards and alerts ask for metrics that exist, and say what they should."""

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
import yaml
from ray._private.ray_constants import PROMETHEUS_SERVICE_DISCOVERY_FILE
from ray.dashboard.modules.reporter.reporter_agent import METRICS_GAUGES

from sote.cluster import gauges
from sote.serve.figures import Figures

HERE = Path(__file__).parent
DEPLOY = HERE.parents[1] / "cluster" / "deploy"
ALERTS = DEPLOY / "alerts.yaml"
BOARDS = ("curate", "train", "serve")
NAME = re.compile(r"\b(?:ray|sote)_\w+")
# What Grafana puts in for its variables, for a parser of PromQL
FILLED = {"$run": ".*", "$__rate_interval": "5m", "$__range": "1h"}
promtool = shutil.which("promtool")  # Debian: prometheus


def board(name: str) -> dict[str, Any]:
    return dict(json.loads((DEPLOY / "grafana" / f"{name}.json").read_text(encoding="utf-8")))


def queries(name: str) -> Iterator[tuple[str, str]]:
    """Each query of a dashboard, with its legend."""
    for panel in board(name)["panels"]:
        yield from ((target["expr"], target["legendFormat"]) for target in panel.get("targets", []))


def rules() -> list[dict[str, Any]]:
    groups = yaml.safe_load(ALERTS.read_text(encoding="utf-8"))["groups"]
    return [rule for group in groups for rule in group["rules"]]


def asked_for() -> set[str]:
    """Every name of a metric in the dashboards and the alerts."""
    exprs = [expr for name in BOARDS for expr, _ in queries(name)] + [rule["expr"] for rule in rules()]
    return {name for expr in exprs for name in NAME.findall(expr)}


def test_every_metric_that_is_asked_for_is_exported() -> None:
    ours = {metric.exported for metric in gauges.METRICS}
    server = {sample for family in Figures().registry.collect() for sample in names_of(family.name, family.type)}
    rays = {f"ray_{name}" for name in METRICS_GAUGES}
    core = (Path(ray.__file__).parent / "core" / "src" / "ray" / "raylet" / "raylet").read_bytes()
    unknown = asked_for() - ours - server - rays
    assert {name for name in unknown if name.removeprefix("ray_").encode() not in core} == set()
    assert {name for name in asked_for() if name.startswith("ray_sote_")} <= ours


def names_of(family: str, kind: str) -> list[str]:
    endings = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count")}.get(kind, ("",))
    return [f"{family}{ending}" for ending in endings]


def test_every_metric_of_curation_and_training_is_drawn() -> None:
    drawn = {
        name for board_name in ("curate", "train") for expr, _ in queries(board_name) for name in NAME.findall(expr)
    }
    assert {metric.exported for metric in gauges.METRICS} <= drawn


@pytest.mark.parametrize("name", BOARDS)
def test_a_dashboard_can_be_taken_into_any_grafana(name: str) -> None:
    found = board(name)
    assert found["uid"].startswith("sote-")
    assert found["schemaVersion"] >= 36
    first, *others = found["templating"]["list"]
    assert (first["type"], first["query"], first["name"]) == ("datasource", "prometheus", "datasource")
    assert all(each["datasource"]["uid"] == "${datasource}" for each in others)
    panels = [panel for panel in found["panels"] if panel["type"] != "row"]
    assert {panel["type"] for panel in panels} <= {"timeseries", "stat"}
    assert all(
        panel["datasource"]["uid"] == "${datasource}" and panel["fieldConfig"]["defaults"]["unit"] for panel in panels
    )
    assert len({panel["id"] for panel in found["panels"]}) == len(found["panels"])
    squares = [
        (x, y)
        for place in (panel["gridPos"] for panel in found["panels"])
        for x in range(place["x"], place["x"] + place["w"])
        for y in range(place["y"], place["y"] + place["h"])
    ]
    assert len(set(squares)) == len(squares)  # none lies on another
    assert max(x for x, _ in squares) < 24  # Grafana's grid


@pytest.mark.parametrize("name", BOARDS)
def test_a_legend_names_only_labels_that_its_query_keeps(name: str) -> None:
    for expr, legend in queries(name):
        wanted = set(re.findall(r"{{(\w+)}}", legend))
        for labels in re.findall(r"by \(([\w, ]+)\)", expr):
            assert wanted <= set(labels.split(", ")), expr


def test_labels_of_our_metrics_in_queries_are_those_they_have() -> None:
    labels = {metric.exported: {"run", "SessionName", *metric.labels} for metric in gauges.METRICS}
    for expr in [*(expr for name in BOARDS for expr, _ in queries(name)), *(rule["expr"] for rule in rules())]:
        for metric, inside in re.findall(r"\b(ray_sote_\w+)\{([^}]*)\}", expr):
            assert set(re.findall(r"(\w+)=", inside)) <= labels[metric], expr
        for kept, inner in re.findall(r"by \(([\w, ]+)\) \((.*)", expr):
            metric = NAME.search(inner)
            if metric is not None and metric[0] in labels:
                assert set(kept.split(", ")) <= labels[metric[0]], expr


def test_an_alert_says_how_bad_what_happened_and_what_to_do() -> None:
    for rule in rules():
        assert rule["alert"].startswith("Sote")
        assert rule["labels"]["severity"] in ("warning", "critical")
        assert rule["annotations"].keys() == {"summary", "runbook"}
        assert len(rule["annotations"]["runbook"]) > 40, rule["alert"]
    names = [rule["alert"] for rule in rules()]
    assert len(set(names)) == len(names)


def test_every_alert_has_a_case_in_the_tests_for_promtool() -> None:
    text = (HERE / "alerts_test.yaml").read_text(encoding="utf-8")
    assert yaml.safe_load(text)["tests"]
    assert {rule["alert"] for rule in rules()} <= set(re.findall(r"\bSote\w+", text))


@pytest.mark.skipif(promtool is None, reason="promtool (Debian: prometheus) is not on PATH")
def test_the_alerts_fire_when_they_should_and_only_then() -> None:
    done = subprocess.run(
        [str(promtool), "test", "rules", HERE / "alerts_test.yaml"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_prometheus_that_is_shipped_asks_ray_and_the_endpoint_and_has_the_alerts() -> None:
    config = yaml.safe_load((DEPLOY / "prometheus.yaml").read_text(encoding="utf-8"))
    assert config["rule_files"] == [ALERTS.name]
    down = next(rule["expr"] for rule in rules() if rule["alert"] == "SoteTargetDown")
    [jobs] = re.findall(r'job=~"([^"]+)"', down)
    assert all(re.fullmatch(jobs, each["job_name"]) for each in config["scrape_configs"])
    [[found]] = [each["files"] for job in config["scrape_configs"] for each in job.get("file_sd_configs", [])]
    assert Path(found).name == PROMETHEUS_SERVICE_DISCOVERY_FILE
    if promtool is not None:
        subprocess.run([promtool, "check", "config", DEPLOY / "prometheus.yaml"], check=True, capture_output=True)


@pytest.mark.skipif(promtool is None, reason="promtool (Debian: prometheus) is not on PATH")
@pytest.mark.parametrize("name", BOARDS)
def test_every_query_of_a_dashboard_is_promql(name: str, tmp_path: Path) -> None:
    def filled(expr: str) -> str:
        for variable, value in FILLED.items():
            expr = expr.replace(variable, value)
        return expr

    recorded = [{"record": f"x{number}", "expr": filled(expr)} for number, (expr, _) in enumerate(queries(name))]
    (tmp_path / "rules.yaml").write_text(json.dumps({"groups": [{"name": name, "rules": recorded}]}))
    done = subprocess.run(
        [str(promtool), "check", "rules", tmp_path / "rules.yaml"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
