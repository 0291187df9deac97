"""Lines that several processes append to a file at a URI, against a real S3 server."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from sote.cluster import logs, parts, remote
from tests.stores import Store

OTHER = """
import sys
from sote.cluster import logs, parts, remote
path = remote.place(sys.argv[1])
logs.Metrics(path).write(step=int(sys.argv[2]))
"""


def test_the_lines_of_all_processes_are_one_file_at_the_end(s3: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    path = remote.place(f"{s3.uri}/run/metrics.jsonl")
    assert logs.read_metrics(path) == []
    logs.Metrics(path).write(step=1)
    subprocess.run([sys.executable, "-c", f"{OTHER}parts.bring(path)", f"{s3.uri}/run/metrics.jsonl", "2"], check=True)
    logs.Metrics(path).write(step=3)
    assert [line["step"] for line in logs.read_metrics(path)] == [1, 2, 3]
    assert len([name for name in s3.files() if name.startswith("run/metrics/")]) == 2
    parts.merge(path)
    assert list(s3.files()) == ["run/metrics.jsonl"]
    logs.Metrics(path).write(step=4)
    assert [line["step"] for line in logs.read_metrics(path)] == [1, 2, 3, 4]


def test_a_merge_that_was_cut_short_doubles_no_line(s3: Store) -> None:
    path = remote.place(f"{s3.uri}/run/metrics.jsonl")
    logs.Metrics(path).write(step=1)
    parts.lines(path)
    [part] = s3.files().items()
    parts.merge(path)
    remote.put(path.parent / part[0].removeprefix("run/"), part[1])  # as if it had not been taken away
    assert [line["step"] for line in logs.read_metrics(path)] == [1]


def test_a_part_that_is_full_is_followed_by_another(s3: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "FULL_BYTES", 50)
    path = remote.place(f"{s3.uri}/run/metrics.jsonl")
    for step in range(4):
        logs.Metrics(path).write(step=step)
        parts.bring(path)
    assert len(s3.files()) > 1
    assert [line["step"] for line in logs.read_metrics(path)] == [0, 1, 2, 3]


def test_lines_are_brought_without_being_asked_for(s3: Store, tmp_path: Path) -> None:
    code = f"{OTHER}import time, os; time.sleep(3); os._exit(9)"
    environment = os.environ | {"XDG_CACHE_HOME": str(tmp_path / "other")}
    subprocess.run([sys.executable, "-c", code, f"{s3.uri}/metrics.jsonl", "7"], check=False, env=environment)
    assert [line["step"] for line in logs.read_metrics(remote.place(f"{s3.uri}/metrics.jsonl"))] == [7]
