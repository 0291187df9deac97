"""The report's strips of sample pictures: one row for each prompt, one column for each step they were painted at.

Reads: metrics.jsonl (lines of kind "sample"), images/samples/.

Kind: pure, but for files.
"""

from collections.abc import Sequence
from typing import Any, Final

from PIL import Image

from sote.cluster import remote
from sote.cluster.page import Html, Section, blank, counted, escape, figure, join, number, picture, tag
from sote.cluster.storage import RunFolder

Line = dict[str, Any]

# 16 prompts of 8 columns at their most: 1.3 MB, 1.7 MB as text. Sides in pixels, twice what is shown.
SIDE, BYTES = 224, 10_000
MOST_COLUMNS: Final = 8


def section(folder: RunFolder, samples: Sequence[Line]) -> Section | None:
    """The strips of the lines of kind "sample"; None if there is none. Of a picture painted twice, the last counts."""
    found = {(str(line["prompt"]), int(line["seed"]), int(line["step"])): str(line["file"]) for line in samples}
    if not found:
        return None
    steps = sorted({step for _, _, step in found})
    shown = spread(steps, MOST_COLUMNS)
    rows = dict.fromkeys((prompt, seed) for prompt, seed, _ in found)
    reels = [
        tag("div", _name(prompt, seed), tag("div", *_film(folder, prompt, row, shown), class_="film whole"),
            class_="reel")
        for (prompt, seed), row in (
            (row, {step: found.get((*row, step)) for step in shown}) for row in rows
        )
    ]  # fmt: skip
    of = f"{len(shown)} of the {len(steps)}" if len(shown) < len(steps) else counted(len(steps), "moment")
    lead = f"The same {counted(len(rows), 'prompt')} and seeds, painted at {of}{_moments(shown, steps)}."
    return Section("samples", "What it paints", escape(lead), join(reels))


def spread(steps: Sequence[int], most: int) -> list[int]:
    """At most `most` of the steps, evenly over them, with the first and the last."""
    if len(steps) <= most:
        return list(steps)
    return [steps[round(at * (len(steps) - 1) / (most - 1))] for at in range(most)]


def _moments(shown: Sequence[int], steps: Sequence[int]) -> str:
    return " moments of the training" if len(shown) < len(steps) else " of the training"


def _name(prompt: str, seed: int) -> Html:
    words = tag("details", tag("summary", prompt), class_="caption")
    return tag("div", words, tag("small", f"seed {seed}"), class_="name")


def _film(folder: RunFolder, prompt: str, row: dict[int, str | None], shown: Sequence[int]) -> list[Html]:
    return [figure(_picture(folder, row[step], prompt), f"step {number(step)}") for step in shown]


def _picture(folder: RunFolder, file: str | None, prompt: str) -> Html:
    """The picture of one cell, or a placeholder that says why there is none."""
    if file is None:
        return blank("not painted")
    try:
        with Image.open(remote.fetch(folder.root / file)) as image:
            return picture(image, side=SIDE, max_bytes=BYTES, alt=prompt)
    except OSError as error:
        return blank(f"{file}: {error.strerror or 'cannot be read'}")
