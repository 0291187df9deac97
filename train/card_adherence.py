"""What a model card says of prompt adherence: the counts of RUN/adherence.json, where a run has them.

Reads: adherence.json.
Kind: pure, but for files.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from sote.cluster import remote
from sote.cluster.errors import RunFolderError

FILE: Final = "adherence.json"  # serve/adherence_file.py, which this folder must not import
MODELS: Final = ("base", "finetuned", "control")
Score = tuple[int, int]  # tags or pictures that are right, of how many


@dataclass(frozen=True)
class Concept:
    """What the finetune was to learn; `chance` (0..1) is the share that no learning would give."""

    name: str
    tags: tuple[str, ...]
    chance: float
    scores: dict[str, Score]


@dataclass(frozen=True)
class Goal:
    """A figure and the bound that it was to keep, as they are written."""

    what: str
    value: str
    bound: str
    met: bool


@dataclass(frozen=True)
class Adherence:
    """Counts by group of tags and model."""

    prompts: int
    groups: dict[str, dict[str, Score]]
    concept: Concept
    goals: tuple[Goal, ...]


def read(run: Path) -> Adherence | None:
    """The run's counts; None if nothing was counted. Raises RunFolderError for a file that is not in the form."""
    path = run / FILE
    if not remote.exists(path):
        return None
    try:
        said = json.loads(remote.fetch(path).read_text(encoding="utf-8"))
        concept = said["concept"]
        return Adherence(
            prompts=len(said["prompts"]),
            groups={group: _scores(found) for group, found in said["groups"].items()},
            concept=Concept(concept["name"], tuple(concept["tags"]), float(concept["chance"]), _scores(concept)),
            goals=tuple(_goal(goal) for goal in said["goals"]),
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise RunFolderError(
            f"{remote.named(run)}: {FILE} is not in the form that `sote demo` writes ({type(error).__name__}: {error})"
        ) from None


def render(found: Adherence) -> Iterator[str]:
    """The section's paragraphs, without its heading."""
    yield (
        f"{found.prompts} prompts were painted by each model with the same seeds, and a reader with fixed rules, which "
        "is no part of the model, said which of the tags asked for are there. The control was finetuned in the same "
        "way with captions that belong to other pictures."
    )
    rows = [(group, *(_share(scores[model]) for model in MODELS)) for group, scores in found.groups.items()]
    rows.append(("all", *(_share(_sum(scores[model] for scores in found.groups.values())) for model in MODELS)))
    yield _table(("tags", *MODELS), rows)
    concept = found.concept
    scores = ", ".join(f"{model} {_share(concept.scores[model])}" for model in MODELS)
    yield (
        f"The concept that the base never saw, `{concept.name}` ({', '.join(concept.tags)}): {scores}; "
        f"by chance {_percent(concept.chance)}."
    )
    if found.goals:
        yield "\n".join(
            f"- {goal.what}: {goal.value} ({goal.bound}: {'met' if goal.met else 'not met'})" for goal in found.goals
        )


def _scores(found: Mapping[str, Any]) -> dict[str, Score]:
    scores = {}
    for model in MODELS:
        hits, total = found[model]
        scores[model] = (int(hits), int(total))
    return scores


def _goal(said: Mapping[str, Any]) -> Goal:
    """Shares are those whose bound is one, from 0 to 1; other figures have their unit in `what`."""
    least = said.get("least")
    bound = float(said["most"] if least is None else least)
    write = _percent if bound <= 1 else "{:.3g}".format
    words = f"at {'most' if least is None else 'least'} {write(bound)}"
    return Goal(said["what"], write(float(said["value"])), words, bool(said["met"]))


def _sum(scores: Iterator[Score]) -> Score:
    every = list(scores)
    return sum(hits for hits, _ in every), sum(total for _, total in every)


def _share(score: Score) -> str:
    hits, total = score
    return f"{hits} of {total} ({_percent(hits / total)})" if total else "none"


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
