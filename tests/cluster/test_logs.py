import time
from pathlib import Path

import pytest

from sote.cluster import logs


def test_metrics_are_read_back_line_by_line(tmp_path: Path) -> None:
    metrics = logs.Metrics(tmp_path / "metrics.jsonl")
    metrics.write(kind="step", step=1)
    metrics.write(kind="step", step=2)
    assert [line["step"] for line in logs.read_metrics(metrics.path)] == [1, 2]
    assert logs.read_metrics(tmp_path / "none.jsonl") == []


def test_a_line_cut_by_a_kill_is_left_out_and_mended(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    logs.Metrics(path).write(step=1)
    with path.open("a") as file:
        file.write('{"step": 2, "lo')
    assert [line["step"] for line in logs.read_metrics(path)] == [1]
    logs.Metrics(path).write(step=3)
    assert [line["step"] for line in logs.read_metrics(path)] == [1, 3]


def test_progress_outside_of_a_terminal_is_lines(capsys: pytest.CaptureFixture[str]) -> None:
    with logs.progress("dig", 3, unit="metres") as advance:
        advance(2)
        advance(1)
    assert "dig: 3/3 metres" in capsys.readouterr().err


def test_progress_says_what_failed_and_why(capsys: pytest.CaptureFixture[str]) -> None:
    with logs.progress("dig", 9) as advance:
        advance(4, {"dig: a stone": 2})
        advance(5, {"dig: a stone": 1, "dig: water": 1})
    assert "dig: 9/9 rows" in (said := capsys.readouterr().err)
    assert "4 failed (dig: a stone 3; dig: water 1)" in said


def test_a_tally_knows_its_rate_and_the_time_left() -> None:
    tally = logs.Tally("dig", 100, "rows", start=time.monotonic() - 10)
    tally.add(50, None)
    assert tally.rate == pytest.approx(5, rel=0.01)
    assert tally.rest() == "5.0 rows/s, 10 s left"


def test_the_time_until_the_first_is_done_does_not_count_for_the_rate() -> None:
    tally = logs.Tally("dig", 100, "rows", start=time.monotonic() - 1000)
    tally.first = (10, time.monotonic() - 10)
    tally.done = 10
    tally.add(20, None, "in the north")
    assert tally.rate == pytest.approx(2, rel=0.01)
    assert tally.rest() == "2.0 rows/s, 35 s left, in the north"
