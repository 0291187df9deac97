"""What a run keeps of its events, and what its status shows of them."""

import json
import logging
import os
import platform
import time
from pathlib import Path

import pytest
from rich.console import Console

from sote.cluster import events, logs, status, storage
from sote.cluster.errors import Interrupted, RunFailed
from sote.cluster.jsonlines import Who
from sote.cluster.recipe import Recipe
from sote.cluster.storage import RunFolder

log = logging.getLogger("sote.test")
HERE = Who("harvest", "curate", "ab12", "raysubmit_a1", platform.node(), os.getpid())
GONE = 2**22 + 1  # above the largest process id of Linux


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder(tmp_path / "harvest")


def kept(folder: RunFolder) -> list[dict[str, object]]:
    return logs.read_metrics(folder.events)


def looked(folder: RunFolder, *, end: str | None = None, now: float | None = None) -> str:
    """What the status shows of a run whose one verb ended at `end`."""
    said = events.look(folder, {"verbs": {"curate": {"end": end}}}, logs.read_metrics(folder.metrics), now=now)
    console = Console(width=140)
    with console.capture() as captured:
        console.print(*events.render(said))
    return captured.get()


def test_a_run_keeps_its_warnings_and_errors_and_who_ran_it(folder: RunFolder) -> None:
    with logs.events(folder.events, HERE):
        log.info("dug stones=%d", 1)
        log.warning("dug slowly stones=%d", 2)
        logging.getLogger("other").warning("not ours")
        logging.getLogger("other").error("theirs")
    log.warning("after the run")
    lines = kept(folder)
    assert [line["event"] for line in lines] == ["started", "dug slowly", "theirs", "ended"]
    assert (lines[0]["pid"], lines[0]["digest"]) == (os.getpid(), "ab12")
    assert (lines[1]["stones"], lines[1]["job"], lines[1]["run"]) == (2, "raysubmit_a1", "harvest")


def test_the_error_that_ends_a_run_is_kept_and_a_stop_is_none(folder: RunFolder) -> None:
    with pytest.raises(RunFailed), logs.events(folder.events, HERE):
        raise RunFailed("too many stones")
    with pytest.raises(Interrupted), logs.events(folder.events, HERE):
        raise Interrupted("Ctrl-C")
    _, failed, _, stopped = kept(folder)
    assert (failed["level"], failed["error"]) == ("error", "RunFailed: too many stones")
    assert (stopped["level"], stopped["event"]) == ("info", "stopped")
    assert "RunFailed: too many stones" in looked(folder, end="now")
    assert "Ctrl-C" not in looked(folder, end="now")


def test_an_error_that_brings_its_trace_is_shown_in_one_line(folder: RunFolder) -> None:
    with pytest.raises(ValueError, match="ray::dig"), logs.events(folder.events, HERE):
        raise ValueError('ray::dig()\n  File "dig.py", line 3\nKeyError: no such stone')
    assert "ended: ValueError: KeyError: no such stone" in looked(folder, end="now")
    assert "dig.py" in str(kept(folder)[-1]["error"])


def test_a_full_disk_hides_no_error(folder: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(RunFailed), logs.events(folder.events, HERE):
        folder.events.unlink()
        folder.events.symlink_to("/dev/full")
        log.warning("dug slowly")
        raise RunFailed("too many stones")
    assert "No space left" in capsys.readouterr().err


def test_the_status_shows_the_last_warnings_with_their_job(folder: RunFolder) -> None:
    with logs.events(folder.events, HERE):
        for number in range(events.SHOWN + 2):
            log.warning("dug slowly stones=%d", number)
    shown = looked(folder, end="now")
    assert "dug slowly stones=6" in shown
    assert "dug slowly stones=1\n" not in shown
    assert "raysubmit_a1" in shown
    assert "and 2 earlier ones in events.jsonl" in shown
    assert "no progress" not in shown


def test_a_verb_that_is_quiet_for_long_is_said_to_be(folder: RunFolder) -> None:
    logs.Metrics(folder.events).write(event="started", verb="curate", pid=os.getpid(), node=platform.node(), job="j1")
    assert "no progress" not in looked(folder)
    assert "no progress since 34 min; job j1, process" in looked(folder, now=time.time() + 34 * 60)
    logs.Metrics(folder.metrics).write(kind="stage", stage="tag")
    line = json.loads(folder.metrics.read_text()) | {"time": time.time() + 33 * 60}
    folder.metrics.write_text(json.dumps(line) + "\n")
    assert "no progress" not in looked(folder, now=time.time() + 34 * 60)


def test_a_process_that_is_gone_was_killed_but_only_on_its_own_node(folder: RunFolder) -> None:
    logs.Metrics(folder.events).write(event="started", verb="curate", pid=GONE, node=platform.node())
    assert f"was killed (process {GONE} on {platform.node()} is gone)" in looked(folder)
    logs.Metrics(folder.events).write(event="started", verb="curate", pid=GONE, node="elsewhere")
    assert "killed" not in looked(folder)


def test_an_opened_run_says_all_this_by_itself(tmp_path: Path) -> None:
    recipe = Recipe(run=str(tmp_path / "harvest"))
    with storage.open_run(recipe, verb="curate", command="sote curate x.toml") as folder:
        log.warning("dug slowly")
    [warning] = [line for line in kept(folder) if line["level"] == "warning"]
    assert (warning["run"], warning["verb"]) == ("harvest", "curate")
    console = Console(width=140)
    with console.capture() as captured:
        console.print(status.render(status.status(folder.root)))
    assert "dug slowly" in captured.get()
