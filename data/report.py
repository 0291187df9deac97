"""The curation's part of the report: the river of files, what trains, scores, tags, pictures, duplicates, time.

Reads: catalogue.parquet, metrics.jsonl (lines of kind "stage" and "engine"), the resolved recipe of `curate`, the
index, the pictures.

Kind: pure, but for files.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Any, Final

from sote.cluster import charts, logs, recipe, remote
from sote.cluster.charts import Step
from sote.cluster.page import Chapter, Html, Section, counted, duration, escape, join, number, share, table, tag
from sote.cluster.storage import RunFolder
from sote.data import gallery, report_counts, report_training, sheets
from sote.data.caption_profile import load_profile
from sote.data.gallery import Album
from sote.data.recipe import CurateRecipe
from sote.data.survey import UNEXPLAINED, Limits, Survey, survey

TOO_SMALL: Final = "decode: fewer than"  # data/decode.py: the reason that the rule of size gives
LOST: Final = ("unreadable", "too small", "duplicate", "not scored", "not selected")  # what left at each of STEPS
SECONDS_SHOWN: Final = 1.0  # a stage that took less has no rate worth saying

# The river: what is there after each step, and whether a reason belongs to it. The last one takes what is left.
STEPS: Final = (
    ("readable", "opens as a picture"),
    ("large enough", "has the pixels that training needs"),
    ("one of a kind", "no near-duplicate of a better copy"),
    ("scored and tagged", "every model had its say"),
    ("picked", "is trained on"),
)


def chapter(folder: RunFolder) -> Chapter | None:
    """What the curation of a run has to say; None if it has neither a catalogue nor a committed shard.

    Raises RunFolderError if another version of Sote wrote the catalogue.
    """
    time = [_time(times, engines(folder))] if (times := stage_times(folder)) else []
    if not remote.exists(folder.catalogue):
        story = "The pictures are not all curated yet: there is no catalogue."
        return Chapter(story=story, sections=tuple(time)) if time else None
    curation, found = read(folder)
    album = Album()
    return Chapter(
        story=f"Of {counted(found.rows, 'file')}, {number(found.picked)} were picked to train on.",
        numbers=(("files in", number(found.rows)), ("picked", number(found.picked))),
        sections=(*_sections(found, curation, album), *time),
        strip=gallery.strip(found, album),
    )


def read(folder: RunFolder) -> tuple[CurateRecipe, Survey]:
    """The recipe of a run's curation, and the survey of its catalogue by the thresholds of that recipe."""
    curation = recipe.load(folder.recipe("curate"), CurateRecipe)
    part = curation.caption
    limits = Limits(general_threshold=part.general_threshold, character_threshold=part.character_threshold)
    return curation, survey(folder, limits)


def _sections(found: Survey, curation: CurateRecipe, album: Album) -> list[Section]:
    profile = load_profile(curation.caption.profile)
    return [
        funnel(found),
        report_training.trains(found, curation.select),
        report_counts.scores(found, profile),
        sheets.words(found, album, profile),
        report_counts.tags(found),
        report_counts.characters(found),
        report_counts.dates(found),
        report_counts.lengths(found),
        gallery.samples(found, album),
        gallery.refused(found, album),
        gallery.duplicates(found, album, keep=curation.duplicates.keep),
        report_training.search(found),
    ]


def step_of(reason: str) -> int:
    """The number in STEPS at which a row with this reason leaves the river."""
    stage = reason.partition(":")[0]
    if reason.startswith(TOO_SMALL):
        return 1
    return {"index": 0, "decode": 0, "duplicates": 2, "score": 3, "tag": 3, "text": 3}.get(stage, 4)


def steps_of(found: Survey) -> list[Step]:
    """The river of a survey: files in, then each of STEPS with what left there. The counts add up by construction."""
    lost: list[list[tuple[str, int]]] = [[] for _ in STEPS]
    for reason, count in found.reasons().items():
        lost[step_of(reason)].append((reason, count))
    steps = [Step("files in", f"from {counted(len(found.sources()), 'source')}", found.rows, ())]
    for (name, meaning), left in zip(STEPS, lost, strict=True):
        steps.append(Step(name, meaning, steps[-1].count - sum(count for _, count in left), tuple(left)))
    return steps


def funnel(found: Survey) -> Section:
    """The river with every reason, the sum, and the same by source."""
    reasons = found.reasons()
    aside = sum(reasons.values())
    says = (
        f"{number(found.rows)} files in = {number(found.picked)} picked + {number(aside)} set aside for "
        f"{counted(len(reasons), 'reason')}."
    )
    whole = found.rows == found.picked + aside and not reasons[UNEXPLAINED]
    end = "None is missing." if whole else f"{number(reasons[UNEXPLAINED])} have no reason, which is a fault of Sote."
    lead = (
        f"Every file that was looked at, and where it is now: {share(found.picked, found.rows)} are trained on. The "
        "step and the source that lose the most are where to look first."
    )
    body = [
        charts.river(steps_of(found)),
        tag("p", tag("b", says), " ", end, class_="sum"),
        tag("div", tag("h3", "By source"), _by_source(found), class_="block"),
        _shared_stems(found),
    ]
    return Section("river", "From files to picked pictures", escape(lead), join(body))


def _by_source(found: Survey) -> Html:
    rows = []
    for source in [*found.sources(), None]:
        lost = _lost(found, source)
        files = sum(count for (where, _), count in found.outcomes.items() if source in (None, where))
        picked = files - sum(lost)
        parts = [("s5", picked), *((f"s{at}", lost[at]) for at in reversed(range(len(STEPS))))]
        bar = charts.stack(parts, whole=files, label=f"{number(picked)} of {number(files)} picked")
        rows.append((source or tag("b", "all"), bar, number(files), *map(number, lost), number(picked),
                     share(picked, files)))  # fmt: skip
    head = ("source", "", "files", *LOST, "picked", "share")
    legend = charts.key([("s5", "picked"), *((f"s{at}", LOST[at]) for at in reversed(range(len(STEPS))))])
    return Html(table(head, rows if len(rows) > 2 else rows[:1], numbers_from=2) + legend)


def _lost(found: Survey, source: str | None) -> list[int]:
    """How many files of a source leave the river at each of STEPS."""
    lost = Counter[int]()
    for reason, count in found.reasons(source).items():
        lost[step_of(reason)] += count
    return [lost[at] for at in range(len(STEPS))]


def _shared_stems(found: Survey) -> Html | None:
    if not (shared := found.index.shared_stems):
        return None
    by_source = ", ".join(f"{source} {number(count)}" for source, count in sorted(shared.items()))
    says = (
        f"Pictures with the stem of another picture in their folder: {number(shared.total())} ({by_source}). A sidecar "
        "named by the stem alone may belong to either; rename the pictures, or the sidecars to the whole name."
    )
    return tag("p", says, class_="sum")


def stage_times(folder: RunFolder) -> dict[str, dict[str, float]]:
    """Rows, failed rows and seconds of each stage, in the order in which the stages first committed a shard.

    Of a shard that was done again, the last time counts.
    """
    last: dict[tuple[str, int], dict[str, Any]] = {}
    for line in logs.read_metrics(folder.metrics):
        if line.get("kind") == "stage":
            last[str(line["stage"]), int(line.get("shard", 0))] = line
    found: dict[str, dict[str, float]] = {}
    for (stage, _), line in last.items():
        sums = found.setdefault(stage, {"rows": 0, "failed": 0, "seconds": 0.0})
        for name in sums:
            sums[name] += line.get(name) or 0
    return found


def engines(folder: RunFolder) -> list[dict[str, Any]]:
    """The lines about engines, one for each stage, node, device and engine: the last."""
    last: dict[tuple[str, ...], dict[str, Any]] = {}
    for line in logs.read_metrics(folder.metrics):
        if line.get("kind") == "engine":
            last[tuple(str(line.get(name)) for name in ("stage", "node", "device", "engine", "dtype"))] = line
    return [last[key] for key in sorted(last)]


def _time(times: dict[str, dict[str, float]], ran: Sequence[dict[str, Any]]) -> Section:
    items = [(stage, sums["seconds"]) for stage, sums in times.items()]
    values = [_pace(sums) for sums in times.values()]
    total = duration(sum(seconds for _, seconds in items))
    longest = max(items, key=lambda item: item[1])[0]
    lead = f"{total} in all stages together; the longest is {longest}, which is where another machine helps first."
    failed = [f"{stage} {number(sums['failed'])}" for stage, sums in times.items() if sums["failed"]]
    body = [tag("div", charts.bars(items, values=values, marked=len(items)), class_="stages")]
    body += [tag("p", tag("small", f"Failed rows by stage: {', '.join(failed)}."))] if failed else []
    body += [tag("div", tag("h3", "What the models ran on"), _engines(ran), class_="block")] if ran else []
    return Section("time", "Time of each stage", escape(lead), join(body))


def _engines(ran: Sequence[dict[str, Any]]) -> Html:
    head = ("stage", "node", "device", "engine", "dtype", "largest difference to float32")
    names = ("stage", "node", "device", "engine", "dtype")
    rows = [(*(str(line.get(name, "")) for name in names), _difference(line)) for line in ran]
    return table(head, rows, numbers_from=5)


def _difference(line: dict[str, Any]) -> str:
    difference = line.get("max_difference")
    return "" if difference is None else f"{float(difference):.2g}"


def _pace(sums: dict[str, float]) -> str:
    time = duration(sums["seconds"])
    return f"{time} · {sums['rows'] / sums['seconds']:,.1f} rows/s" if sums["seconds"] >= SECONDS_SHOWN else time
