"""A training while it goes on, for a notebook: the parts of its report as they are now, and again when there is more.

Reads: run.json, and what report.py reads.

Kind: pure, but for files.
"""

import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime
from typing import Any, Final

from sote.cluster import logs
from sote.cluster.page import Html, Section, join, nothing
from sote.cluster.status import read_record
from sote.cluster.storage import RunFolder
from sote.train import report

# What stands where a part of the report has nothing to say, by the part's key
ABSENT: Final = {
    "training": ("How the training went", "No training step yet."),
    "course": ("On the way", "Nothing was skipped, and no checkpoint was written yet."),
    "samples": ("What it paints", "No sample is painted yet, or the recipe asks for none."),
    "parameters": ("Parameters of the training", "No training step yet."),
}


def parts(folder: RunFolder) -> dict[str, Section]:
    """The parts of the training's report by their keys: training, course, samples, parameters. None is ever missing:
    one with nothing to show says so."""
    chapter = report.chapter(folder)
    found = {section.key: section for section in chapter.sections} if chapter else {}
    return {key: found.get(key) or _empty(key) for key in ABSENT}


def now(folder: RunFolder) -> Section:
    """How the training goes, with the time of its last line. Raises RunFolderError: no run folder."""
    section, lines = parts(folder)["training"], logs.read_metrics(folder.metrics)
    last = f"; the last line of the metrics is of {_clock(float(lines[-1]['time']))}." if lines else "."
    return replace(section, lead=join([section.lead, " " if section.lead else None, _course(folder), last]))


def follow(folder: RunFolder, *, seconds: float, every_seconds: float = 2.0) -> Iterator[Section]:
    """`now`, and again whenever there is more to see, for `seconds` or until the training ends."""
    end, seen = time.monotonic() + seconds, -1
    while True:
        goes_on = is_going(folder)  # before the lines: the last of them are seen, too
        lines = len(logs.read_metrics(folder.metrics))
        if lines != seen or not goes_on:
            yield now(folder)
        seen, left = lines, end - time.monotonic()
        if not goes_on or left <= 0:
            return
        time.sleep(min(every_seconds, left))


def is_going(folder: RunFolder) -> bool:
    """Whether the run's training has begun and not ended; of one that was killed nobody wrote the end."""
    verb = _verb(folder)
    return verb is not None and verb.get("end") is None


def _verb(folder: RunFolder) -> dict[str, Any] | None:
    """What the run's record says of its training; None if it never began."""
    found: dict[str, Any] | None = read_record(folder)["verbs"].get("train")
    return found


def _course(folder: RunFolder) -> str:
    verb = _verb(folder)
    if verb is None:
        return "No training has begun"
    if verb.get("end") is None:
        return "The training goes on"
    code = verb.get("exit_code")
    return "The training has ended" if code == 0 else f"The training has ended with exit code {code}"


def _clock(seconds: float) -> str:
    return datetime.fromtimestamp(seconds).astimezone().strftime("%H:%M:%S")


def _empty(key: str) -> Section:
    title, sentence = ABSENT[key]
    return Section(key, title, Html(""), nothing(sentence))
