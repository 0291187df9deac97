"""The curation's part of the report: the river of files, scores, tags, sample pictures, duplicates, time.

Reads: catalogue.parquet, metrics.jsonl (lines of kind "stage"), the resolved recipe of `curate`, the pictures.

Kind: pure, but for files.
"""

from collections import Counter
from collections.abc import Iterable
from itertools import pairwise
from typing import Any, Final

from sote.cluster import charts, logs, recipe
from sote.cluster.charts import Band, Step
from sote.cluster.page import Chapter, Html, Section, counted, duration, escape, join, number, share, table, tag
from sote.cluster.storage import RunFolder
from sote.data import gallery, schema
from sote.data.caption_profile import Scale, load_profile
from sote.data.recipe import CurateRecipe
from sote.data.survey import UNEXPLAINED, Limits, Survey, survey

MOST_TAGS: Final = 30
MOST_BUCKETS: Final = 12
TOO_SMALL: Final = "decode: fewer than"  # data/decode.py: the reason that the rule of size gives
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
    """What the curation of a run has to say; None if it has neither a catalogue nor a committed shard."""
    time = stage_times(folder)
    if not folder.catalogue.exists():
        story = "The pictures are not all curated yet: there is no catalogue."
        return Chapter(story=story, sections=(_time(time),)) if time else None
    curation = recipe.load(folder.recipe("curate"), CurateRecipe)
    limits = Limits(
        general_threshold=curation.caption.general_threshold, character_threshold=curation.caption.character_threshold
    )
    found = survey(folder.catalogue, limits)
    sections = [funnel(found), _scores(found, curation.caption.profile), _tags(found)]
    sections += [gallery.samples(found), gallery.refused(found), gallery.duplicates(found)]
    return Chapter(
        story=f"Of {counted(found.rows, 'file')}, {number(found.picked)} were picked to train on.",
        numbers=(("files in", number(found.rows)), ("picked", number(found.picked))),
        sections=(*sections, *([_time(time)] if time else [])),
        strip=gallery.strip(found),
    )


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
        f"Every file that was looked at, and where it is now: {share(found.picked, found.rows)} are trained on, "
        f"{counted(found.repeats, 'image')} in an epoch with repeats."
    )
    body = join([
        charts.river(steps_of(found)),
        tag("p", tag("b", says), " ", end, class_="sum"),
        tag("div", tag("h3", "By source"), _by_source(found), class_="block"),
    ])  # fmt: skip
    return Section("river", "From files to picked pictures", escape(lead), body)


def _by_source(found: Survey) -> Html:
    rows = []
    for source in [*found.sources(), None]:
        reasons = found.reasons(source)
        lost = Counter[int]()
        for reason, count in reasons.items():
            lost[step_of(reason)] += count
        files = sum(count for (where, _), count in found.outcomes.items() if source in (None, where))
        picked = files - sum(reasons.values())
        rows.append((source or tag("b", "all"), number(files), *(number(lost[at]) for at in range(5)), number(picked),
                     share(picked, files)))  # fmt: skip
    head = ("source", "files", "unreadable", "too small", "duplicate", "not scored", "not selected", "picked", "share")
    return table(head, rows if len(rows) > 2 else rows[:1])


def _scores(found: Survey, profile_name: str) -> Section:
    profile = load_profile(profile_name)
    pairs = [
        tag("div", tag("h3", title), charts.ladder(
            [int(count) for count in found.scores[f"{name}_score"].every],
            [int(count) for count in found.scores[f"{name}_score"].picked],
            bands=bands(scale, found.words[name]), label=title))
        for title, name, scale in (
            ("Aesthetic", "aesthetic", profile.aesthetic), ("Quality", "quality", profile.quality)
        )
    ]  # fmt: skip
    lead = (
        "What the two models gave, from 0 at the foot to 1, and the words that scores become in a caption. "
        "The numbers at the right count the pictures that carry the word."
    )
    legend = charts.key((("pick", "picked"), ("all", "set aside")))
    return Section("scores", "Scores and their words", escape(lead), join([tag("div", *pairs, class_="pair"), legend]))


def bands(scale: Scale, counts: Counter[str]) -> list[Band]:
    """The words of a scale as bands from 0 to 1, lowest first, with how many rows carry each."""
    bounds = [1.0, *(bound for bound, _ in scale.steps), 0.0]
    names = [*(word for _, word in scale.steps), scale.rest]
    found = [
        Band(name, low, high, counts[name]) for name, (high, low) in zip(names, pairwise(bounds), strict=True)
    ]  # fmt: skip
    return found[::-1]


def _tags(found: Survey) -> Section:
    common = sorted(found.tags.items(), key=lambda item: (-item[1], item[0]))[:MOST_TAGS]
    lead = (
        f"{counted(len(found.tags), 'different tag')} on {counted(found.tagged, 'tagged picture')}, above the "
        f"thresholds of the caption. The {len(common)} most common:"
    )
    named = [(name.replace("_", " "), count) for name, count in common]
    years = [(str(year), found.years[year]) for year in _span(found.years)]
    ratings = [(name, found.ratings[name]) for name in schema.RATINGS]
    buckets = sorted(found.buckets.items(), key=lambda item: (-item[1], item[0]))[:MOST_BUCKETS]
    dates = [(word, count) for word, count in found.words["date"].most_common()]
    blocks = [
        ("Ratings", charts.bars(ratings, marked=len(ratings))) if found.tagged else None,
        ("Date words", charts.bars(dates, marked=len(dates))) if dates else None,
        ("Most common buckets", charts.bars(buckets, marked=len(buckets))) if buckets else None,
    ]
    shown = [tag("div", tag("h3", block[0]), block[1]) for block in blocks if block is not None]
    body = [tag("div", charts.bars(named, marked=len(named)), class_="twice")]
    if years:
        body.append(tag("div", tag("h3", "Years of the posts"), charts.columns(years), class_="block"))
    body.append(tag("div", *shown, class_="pair block"))
    return Section("tags", "Tags, ratings, years", escape(lead), join(body))


def _span(years: Iterable[int]) -> list[int]:
    """Every year from the first to the last; the known ones only, if they are more than half a century apart."""
    known = sorted(years)
    if not known or known[-1] - known[0] > 50:
        return known
    return list(range(known[0], known[-1] + 1))


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


def _time(times: dict[str, dict[str, float]]) -> Section:
    items = [(stage, sums["seconds"]) for stage, sums in times.items()]
    values = [_pace(sums) for sums in times.values()]
    total = duration(sum(seconds for _, seconds in items))
    longest = max(items, key=lambda item: item[1])[0]
    lead = f"{total} in all stages together; the longest is {longest}."
    failed = [f"{stage} {number(sums['failed'])}" for stage, sums in times.items() if sums["failed"]]
    body = [tag("div", charts.bars(items, values=values, marked=len(items)), class_="stages")]
    body += [tag("p", tag("small", f"Failed rows by stage: {', '.join(failed)}."))] if failed else []
    return Section("time", "Time of each stage", escape(lead), join(body))


def _pace(sums: dict[str, float]) -> str:
    time = duration(sums["seconds"])
    return f"{time} · {sums['rows'] / sums['seconds']:,.1f} rows/s" if sums["seconds"] >= SECONDS_SHOWN else time
