"""What metrics.jsonl says, as Prometheus reads it from Ray."""

import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
import ray
from prometheus_client.parser import text_string_to_metric_families

from sote.cluster import gauges, jsonlines, logs
from sote.cluster.jsonlines import Who

SHARD = {
    "kind": "stage",
    "stage": "decode",
    "shard": 3,
    "rows": 10,
    "failed": 2,
    "seconds": 4.0,
    "errors": {"decode: truncated": 2},
    "skips": {"decode: too small": 3},
}
STEP = {"kind": "step", "step": 7, "loss": 0.25, "lr": 1e-4, "images_per_second": 3.5, "skipped": None, "bucket": "a"}


def values(line: dict[str, object]) -> dict[tuple[str, tuple[str, ...]], float]:
    return {(each.metric.name, each.labels): each.value for each in gauges.samples(line)}


def test_a_shard_is_counted_by_what_became_of_its_rows() -> None:
    found = values(SHARD)
    outcomes = {outcome: found["sote_rows_total", ("decode", outcome)] for outcome in ("done", "failed", "skipped")}
    assert outcomes == {"done": 5, "failed": 2, "skipped": 3}
    assert found["sote_rows_failed_total", ("decode", "truncated")] == 2
    assert found["sote_rows_skipped_total", ("decode", "too small")] == 3
    assert found["sote_stage_seconds_total", ("decode",)] == 4
    assert found["sote_last_progress_timestamp_seconds", ("curate",)] == pytest.approx(time.time(), abs=60)


def test_a_step_without_a_finite_loss_is_counted_for_a_gauge_cannot_say_it() -> None:
    found = values(STEP | {"loss": None, "skipped": "loss: not finite"})
    assert found["sote_train_losses_not_finite_total", ()] == 1
    assert found["sote_train_steps_skipped_total", ("loss: not finite",)] == 1
    assert "sote_train_loss" not in {name for name, _ in found}
    assert values(STEP)["sote_train_loss", ()] == 0.25


def test_a_line_that_is_not_drawn_says_nothing() -> None:
    assert gauges.samples({"kind": "engine", "device": "cpu"}) == []
    assert gauges.samples({"event": "started", "level": "info"}) == []


def test_names_differ_and_counters_end_in_total() -> None:
    names = [metric.name for metric in gauges.METRICS]
    assert len(set(names)) == len(names)
    assert all(metric.name.endswith("_total") == (metric.kind == "counter") for metric in gauges.METRICS[:-2])


def test_writing_metrics_brings_no_ray_into_a_process(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from sote.cluster.logs import Metrics; "
        "Metrics(Path(sys.argv[1])).write(kind='step', step=1, loss=1.0); sys.exit('ray' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code, tmp_path / "metrics.jsonl"], check=False).returncode == 0


def test_prometheus_reads_from_ray_what_a_run_writes(local_ray: None, tmp_path: Path) -> None:
    metrics = logs.Metrics(tmp_path / "harvest" / "metrics.jsonl")
    with jsonlines.being(Who.here(run="harvest", verb="curate", digest="d")):
        with logs.progress("decode", 30) as advance:
            advance(10)
        metrics.write(**SHARD)
        metrics.write(**STEP)
        metrics.write(kind="checkpoint", step=7, seconds=1.5, bytes=100)
        for number in range(gauges.MOST_REASONS + 2):
            metrics.write(**SHARD | {"stage": "odd", "errors": {f"odd: reason {number}: of file {number}": 1}})
    found = scraped(wanted="ray_sote_checkpoint_bytes")
    assert found["rows_total outcome=done stage=decode"] == 5
    assert found["rows_failed_total reason=truncated stage=decode"] == 2
    assert found["rows_failed_total reason=other stage=odd"] == 2
    assert found["rows_failed_total reason=reason 1 stage=odd"] == 1
    assert (found["train_loss"], found["train_step"]) == (0.25, 7)
    assert found["progress_done pass=decode verb=curate"] == 10
    assert found["progress_total pass=decode verb=curate"] == 30
    assert {"last_progress_timestamp_seconds verb=curate", "last_progress_timestamp_seconds verb=train"} <= set(found)


def scraped(*, wanted: str) -> dict[str, float]:
    """Our metrics of the run `harvest` on this Ray's port for Prometheus, by name and labels."""
    [node] = ray.nodes()  # type: ignore[no-untyped-call]
    url = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    end = time.monotonic() + 60  # Ray reports every 10 s if it is not told otherwise
    while wanted not in (text := urllib.request.urlopen(url, timeout=30).read().decode()):
        assert time.monotonic() < end, "Ray does not export it"
        time.sleep(0.2)
    samples = [each for family in text_string_to_metric_families(text) for each in family.samples]
    return {
        " ".join([each.name.removeprefix("ray_sote_"), *labels(each.labels)]): each.value
        for each in samples
        if each.labels.get("run") == "harvest"
    }


def labels(given: dict[str, str]) -> list[str]:
    """Those of ours but for the run."""
    return [f"{name}={given[name]}" for name in ("outcome", "pass", "reason", "stage", "verb") if name in given]
