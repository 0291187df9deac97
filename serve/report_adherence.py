"""The report's chapter on what was learnt: does the model paint what it is asked, before and after the finetune?

Reads: adherence.json and the pictures it names; metrics.jsonl of the run and of RUN/control.

Kind: pure, but for files.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from sote.cluster import charts, remote
from sote.cluster.charts import Curve
from sote.cluster.page import Chapter, Html, Section, code, counted, join, number, share, table, tag
from sote.cluster.storage import RunFolder
from sote.serve import adherence_file, report_paintings
from sote.serve.adherence_file import NAMES, Adherence, Goal, Name, Score
from sote.serve.report_adherence_style import STYLE
from sote.train import report as train_report

CONTROL: Final = "control"  # the folder of the control's run, in the run's
LOSS: Final = "Loss of the finetune and of the control"


def chapter(folder: RunFolder) -> Chapter | None:
    """What was measured of a run's paintings; None if nothing was.

    Raises RunFolderError if adherence.json is not of its form.
    """
    measured = adherence_file.read(folder)
    if measured is None:
        return None
    before, after, learnt = measured.known("base"), measured.known("finetuned"), measured.concept.finetuned
    story = (
        f"Asked for what it knew, it paints {share(*after)} of the tags, {share(*before)} before the finetune; "
        f"asked for the new concept, it paints it {share(*learnt)} of the time."
    )
    return Chapter(
        story=story,
        numbers=(("tags painted of those it knew", share(*after)), ("the new concept", share(*learnt))),
        sections=(
            _answer(folder, measured),
            report_paintings.concept(folder, measured, Html(_losses(folder) or "")),
            report_paintings.prompts(folder, measured),
        ),
    )


def _answer(folder: RunFolder, measured: Adherence) -> Section:
    """The figures: a sentence, the goals, each group of tags, and how it was measured."""
    body = join([
        tag("style", Html(STYLE)),
        _goals(measured.goals) if measured.goals else None,
        tag("div", tag("h3", "By what the tag is about"), _groups(measured), class_="block"),
        tag("div", tag("h3", "How it was measured"), *_method(folder.root, measured), class_="block method"),
    ])  # fmt: skip
    return Section("adherence", "Does it paint what it is asked?", _headline(measured), body)


def _headline(measured: Adherence) -> Html:
    (had, asked), (has, total), (control, of) = (measured.known(name) for name in NAMES)
    return join([
        tag("b", f"{number(has)} of the {number(total)} tags"),
        " that were asked for, the new concept's aside, are in the paintings of the finetuned model (",
        tag("b", share(has, total)),
        f"). Before the finetune {number(had)} of {number(asked)} were there ({share(had, asked)}); the control, "
        f"finetuned with shuffled captions, paints {number(control)} of {number(of)} ({share(control, of)}).",
    ])  # fmt: skip


def _goals(goals: Sequence[Goal]) -> Html:
    rows = [(goal.what, _bound(goal), _figure(goal.value, goal), _verdict(goal)) for goal in goals]
    return tag("div", table(("what", "goal", "measured", ""), rows), class_="goals")


def _bound(goal: Goal) -> str:
    if goal.least is not None:
        return f"at least {_figure(goal.least, goal)}"
    return f"at most {_figure(goal.most or 0.0, goal)}"


def _figure(value: float, goal: Goal) -> str:
    """A share in per cent, if the bound is one (0..1); else as it is."""
    bound = goal.least if goal.least is not None else goal.most or 0.0
    return share(value, 1) if 0 <= bound <= 1 and 0 <= value <= 1 else f"{value:,.4g}"


def _verdict(goal: Goal) -> Html:
    return tag("span", "✓ met" if goal.met else "✗ not met", class_="verdict" if goal.met else "verdict missed")


def _groups(measured: Adherence) -> Html:
    """A line for each group of tags, and one for all of them; a group that was not asked for is left out."""
    lines = [("all but the concept", {name: measured.known(name) for name in NAMES}), *measured.groups.items()]
    labels = [(name, measured.models[name].label) for name in NAMES]
    rows = []
    for at, (group, scores) in enumerate(lines):
        if any(total for _, total in scores.values()):
            trials = [_trial(name, label, scores[name]) for name, label in labels]
            rows.append(tag("li", tag("span", group), tag("div", *trials), class_="all" if at == 0 else None))
    legend = charts.key([(f"m-{name}", label) for name, label in labels])
    return Html(tag("ul", *rows, class_="trials") + legend)


def _trial(name: Name, label: str, score: Score) -> Html:
    return tag(
        "div",
        report_paintings.track(score, label=label),
        tag("small", "/".join(map(number, score)), class_="n"),
        tag("span", share(*score), class_="n"),
        class_=f"trial m-{name}",
    )


def _method(root: Path, measured: Adherence) -> Iterator[Html]:
    yield tag(
        "p",
        f"Each model painted the same {counted(len(measured.prompts), 'prompt')} with the same seeds. What is in a "
        "painting was said by a reader of fixed rules, which looks at colours, outlines and places of pixels and was "
        "not trained; the model's own tagger has no say. A tag counts if it was asked for and the reader finds it; "
        "what nobody asked for does not count.",
    )
    yield tag(
        "p",
        "The control is the same finetune on the same pictures, with their captions shuffled among them: if it did as "
        "well as the finetuned model, the measure would show nothing.",
    )
    name = remote.named(root) if remote.uri(root) else root.resolve().name
    yield tag(
        "p",
        "To do all of it: ", code(f"sote demo --out {name}"), "; to write this page again: ",
        code(f"sote report {name}"), ". Every figure of this chapter is in ",
        code(f"{name}/{adherence_file.FILE}"), ".",
    )  # fmt: skip


def _losses(folder: RunFolder) -> Html | None:
    """The loss of the run and of its control in one chart; None if one of them has no steps."""
    runs = [train_report.read_steps(each) for each in (folder, RunFolder(folder.root / CONTROL))]
    if not all(runs):
        return None
    window = min(max(max(map(len, runs)) * train_report.SMOOTH_SHARE, 1.0), train_report.MOST_SMOOTHED_STEPS)
    curves = [_curve(steps, 1 - 1 / window, style) for steps, style in zip(runs, ("smooth", "t2"), strict=True)]
    chart = charts.lines(curves, label=LOSS, unit=f"by step, mean over about {window:.0f} steps")
    key = charts.key((("smooth", "finetuned"), ("t2", "control")))
    title = tag("h3", "The two trainings, with the captions in place and shuffled")
    words = "A loss says little of what was learnt: that is in the rows of paintings above."
    return tag("div", title, chart, key, tag("p", tag("small", words)), class_="block tall")


def _curve(steps: Sequence[dict[str, Any]], weight: float, style: str) -> Curve:
    losses = [float("nan") if line.get("loss") is None else float(line["loss"]) for line in steps]
    return Curve([float(line["step"]) for line in steps], charts.smoothed(losses, weight), style)
