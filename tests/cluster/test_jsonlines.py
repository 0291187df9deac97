"""Events as lines of JSON."""

import ast
import json
import logging
import subprocess
import sys
from pathlib import Path

import pytest

from sote.cluster import jsonlines
from sote.cluster.jsonlines import Who

ROOT = Path(__file__).parents[2]
JOB = {"RAY_JOB_CONFIG_JSON_ENV_VAR": '{"runtime_env": {}, "metadata": {"job_submission_id": "raysubmit_a1"}}'}


def line(message: str, *given: object, error: BaseException | None = None) -> dict[str, object]:
    info = (type(error), error, error.__traceback__) if error is not None else None
    record = logging.LogRecord("sote.data.shards", logging.WARNING, "f.py", 1, message, given, info)
    written = jsonlines.Lines().format(record)
    assert "\n" not in written
    return dict(json.loads(written))


def test_values_of_an_event_are_fields() -> None:
    found = line("shard done stage=%s rows=%d seconds=%.1f why=%r", "tag", 12, 1.26, None)
    assert found["event"] == "shard done"
    assert (found["stage"], found["rows"], found["seconds"], found["why"]) == ("tag", 12, 1.3, None)
    assert (found["level"], found["logger"]) == ("warning", "sote.data.shards")
    assert str(found["time"]).endswith("+00:00")


def test_words_around_the_values_stay_in_the_event() -> None:
    found = line("log of step %d not written file=%s error=%r; it goes on, %d%% full", 3, "a.log", OSError(5, "x"), 99)
    assert found["event"] == "log of step 3 not written; it goes on, 99% full"
    assert (found["file"], found["error"]) == ("a.log", "OSError(5, 'x')")


def test_a_value_never_takes_the_place_of_what_every_line_has() -> None:
    found = line("set level=%s run=%s", "deep", "b")
    assert (found["level"], found["level_"], found["run_"]) == ("warning", "deep", "b")


def test_an_exception_is_in_the_line_with_its_trace() -> None:
    try:
        raise ValueError("no such stone")
    except ValueError as error:
        found = line("dig failed", error=error)
    assert found["error"] == "ValueError: no such stone"
    assert "test_jsonlines.py" in str(found["trace"])


def test_an_event_says_the_run_the_job_and_the_node(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in JOB.items():
        monkeypatch.setenv(name, value)
    with jsonlines.being(Who.here(run="harvest", verb="curate", digest="ab12")):
        found = line("dug")
    assert (found["run"], found["verb"], found["digest"], found["job"]) == ("harvest", "curate", "ab12", "raysubmit_a1")
    assert found["node"]
    assert "run" not in line("dug")


def test_the_job_is_the_submission_or_rays_number_of_it_or_none(monkeypatch: pytest.MonkeyPatch) -> None:
    assert jsonlines.job_id() is None
    monkeypatch.setenv("RAY_JOB_ID", "02000000")
    assert jsonlines.job_id() == "02000000"
    for name, value in JOB.items():
        monkeypatch.setenv(name, value)
    assert jsonlines.job_id() == "raysubmit_a1"


def test_where_no_person_reads_events_are_json_and_progress_is_plain() -> None:
    code = (
        "import logging; from sote.cluster import logs; logs.setup(); log = logging.getLogger('sote.x');\n"
        "log.info('dug stones=%d', 3)\n"
        "with logs.progress('dig', 1) as advance: advance(1)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    event, progress = done.stderr.splitlines()
    assert json.loads(event)["stones"] == 3
    assert progress.startswith("  dig: 1/1 rows")


def test_no_event_has_a_prompt_or_a_caption() -> None:
    for folder in ("cluster", "data", "train", "serve"):
        for path in (ROOT / folder).glob("*.py"):
            text = path.read_text(encoding="utf-8")
            for call in ast.walk(ast.parse(text)) if "log." in text else ():
                if isinstance(call, ast.Call) and ast.unparse(call.func).startswith("log."):
                    names = {each.id for each in ast.walk(call) if isinstance(each, ast.Name)}
                    names |= {each.attr for each in ast.walk(call) if isinstance(each, ast.Attribute)}
                    assert not names & {"prompt", "prompts", "caption", "captions", "negative_prompt"}, path
