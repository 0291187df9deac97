"""RUN/report.html: everything that a run has to show, as one file that needs no network.

Reads: run.json, and what data/report.py, train/report.py and serve/report_adherence.py read; metrics.jsonl (lines of
kind "image"), images/.
Writes: report.html.

Kind: pure, but for files.
"""

import contextlib
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from sote.cluster import logs, page, remote, storage
from sote.cluster.page import Chapter, Html, Node, Section, blank, counted, duration, escape, facts, figure, join, tag
from sote.cluster.status import read_record
from sote.cluster.storage import RunFolder
from sote.data import report as data_report
from sote.data.gallery import opened
from sote.serve import report_adherence
from sote.train import report as train_report

# Sides in pixels and bytes at most: 250 kB and 6 x 110 kB, 1.2 MB as text.
HERO_SIDE, HERO_BYTES = 1024, 250_000
PAINTED_SIDE, PAINTED_BYTES = 768, 110_000
MOST_PAINTED: Final = 6  # the newest

Line = dict[str, Any]


def write_report(run: Path) -> Path:
    """Write the report of the run folder `run` and return its path.

    Raises RunFolderError if there is no such folder, if it is no run folder, or if a file in it is not of its form.
    """
    folder = RunFolder(run)
    record = read_record(folder)
    found = (data_report.chapter(folder), train_report.chapter(folder), chapter(folder))
    measured = report_adherence.chapter(folder)  # stands before the images
    chapters = [each for each in (*found[:2], measured, found[2]) if each is not None]
    absent = [name for name, each in zip(("curation", "training", "images"), found, strict=True) if each is None]
    name = folder.root.resolve().name
    text = page.page(
        title=f"{name} · Sote",
        header=_header(name, record, _last_time(folder), chapters),
        sections=[section for each in chapters for section in each.sections],
        footer=_footer(record, absent),
    )
    storage.write_text(folder.report, text)
    return folder.report


def chapter(folder: RunFolder) -> Chapter | None:
    """The images that were painted with the run's model; None if there is none."""
    painted = [line for line in logs.read_metrics(folder.metrics) if line.get("kind") == "image"]
    lines = list({line.get("file"): line for line in painted}.values())  # of a file painted twice, the last
    if not lines:
        return None
    newest = lines[-1]
    story = f"The model painted {counted(len(lines), 'image')}."
    shown = lines[::-1][:MOST_PAINTED]
    lead = f"The newest {len(shown)} of {len(lines)}." if len(lines) > len(shown) else ""
    section = Section("images", "Painted by the model", escape(lead), join(_painted(folder, line) for line in shown))
    hero = figure(_picture(folder, newest, side=HERO_SIDE, max_bytes=HERO_BYTES), _quote(newest), _note(newest))
    return Chapter(story=story, sections=(section,), hero=hero)


def _quote(line: Line) -> Html:
    return escape(f"“{line.get('prompt', '')}”")


def _note(line: Line) -> Html | None:
    """What whoever painted it has to say about it."""
    return tag("small", " ", str(line["note"])) if line.get("note") else None


def _painted(folder: RunFolder, line: Line) -> Html:
    negative = line.get("negative_prompt")
    words = tag("blockquote", _quote(line), tag("small", f"not: {negative}") if negative else None)
    return tag(
        "div",
        figure(_picture(folder, line, side=PAINTED_SIDE, max_bytes=PAINTED_BYTES)),
        tag("div", words, facts(_parameters(line))),
        class_="painted",
    )


def _parameters(line: Line) -> Iterator[tuple[str, Node]]:
    if line.get("seed") is not None:
        yield "seed", str(line["seed"])
    if line.get("seconds") is not None:
        yield "time", duration(float(line["seconds"]))
    for name, value in (line.get("parameters") or {}).items():
        if name not in ("prompt", "negative_prompt", "seed"):
            yield name.replace("_", " "), _plain(value)
    yield "file", str(line.get("file", ""))


def _plain(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {_plain(each)}" for name, each in value.items())
    if isinstance(value, list):
        return ", ".join(_plain(each) for each in value)
    return f"{value:g}" if isinstance(value, float) else str(value)


def _picture(folder: RunFolder, line: Line, *, side: int, max_bytes: int) -> Html:
    """The image of a line, or a placeholder that says why it cannot be shown."""
    path = folder.root / str(line.get("file", ""))
    with contextlib.suppress(FileNotFoundError):  # it is said in place of the picture
        remote.fetch(path)
    image = opened(str(path.resolve()))
    if isinstance(image, str):
        return blank(f"{line.get('file')}: {image}")
    return page.picture(image, side=side, max_bytes=max_bytes, alt=str(line.get("prompt", "")))


def _last_time(folder: RunFolder) -> datetime | None:
    """When the last metric was written."""
    lines = logs.read_metrics(folder.metrics)
    return datetime.fromtimestamp(float(lines[-1]["time"]), UTC) if lines else None


def _header(name: str, record: dict[str, Any], last: datetime | None, chapters: Sequence[Chapter]) -> Html:
    story = " ".join(each.story for each in chapters) or "Nothing is in this run yet."
    numbers = [pair for each in chapters for pair in each.numbers]
    hero = next((each.hero for each in chapters if each.hero), None)
    words = tag(
        "div",
        tag("p", "Sote · report of a run", class_="mark-line"),
        tag("h1", name),
        tag("p", story, class_="story"),
        facts(numbers, big=True) if numbers else None,
        facts(_made(record, last)),
    )
    strips = [each.strip for each in chapters if each.strip]
    return join([tag("div", words, hero, class_="hero two" if hero else "hero"), *strips])


def _made(record: dict[str, Any], last: datetime | None) -> Iterator[tuple[str, Node]]:
    """When, how long and from which code."""
    verbs = record["verbs"].values()
    if starts := [verb["start"] for verb in verbs if verb.get("start")]:
        yield "started", datetime.fromisoformat(min(starts)).strftime("%-d %B %Y, %H:%M UTC")
    for name, verb in record["verbs"].items():
        yield name, _outcome(verb, last)
    if commit := record.get("commit"):
        yield "commit", tag("code", commit[:10] + ("+" if commit.endswith("+") else ""))


def _outcome(verb: dict[str, Any], last: datetime | None) -> str:
    """How long a verb took and how it ended; one that is not at its end took until the last metric so far."""
    start = datetime.fromisoformat(verb["start"])
    if verb.get("end") is None:
        return "started" if last is None or last < start else duration((last - start).total_seconds()) + " so far"
    time = (datetime.fromisoformat(verb["end"]) - start).total_seconds()
    ended = "" if verb.get("exit_code") == 0 else f", exit code {verb.get('exit_code')}"
    again = f", continued {verb['continued']}×" if verb.get("continued") else ""
    return duration(time) + ended + again


def _footer(record: dict[str, Any], absent: Sequence[str]) -> Html:
    versions = ", ".join(f"{name} {version}" for name, version in (record.get("versions") or {}).items())
    parts = [f"Not in this run yet: {', '.join(absent)}." if absent else None]
    parts += [f"Made with {versions}." if versions else None]
    digest = record.get("digest")
    parts += [f"Digest of the last recipe: {digest[:16]}." if digest else None]
    return join(tag("p", part) for part in parts if part)
