"""The report on what trains: the base run and each set of the recipe, with counts and rules, and the search box.

Kind: pure.
"""

from collections.abc import Iterator
from typing import Final

from sote.cluster import searchbox
from sote.cluster.page import Html, Section, code, counted, escape, join, nothing, number, share, table, tag
from sote.cluster.searchbox import Entry
from sote.data import places
from sote.data.recipe import SelectPart, SetPart
from sote.data.survey import Survey

MOST_SEARCHED: Final = 3_000  # captions in the page: at about 300 bytes, 900 kB
BASE: Final = "base"


def trains(found: Survey, part: SelectPart) -> Section:
    """How many rows train, how often, and which rule of the recipe made it so."""
    lead = (
        f"{counted(found.picked, 'picture')}, {counted(found.images, 'image')} in an epoch with repeats. If a count is "
        "not what a run is meant to see, change [select] in the recipe and run "
    )
    mend = [code("sote curate RECIPE --stage select"), ": no model is needed."]
    rows = [(tag("b", BASE), number(found.picked), number(found.images), share(found.picked, found.rows),
             _sentence(base_rule(part)))]  # fmt: skip
    for name, rule in part.sets.items():
        count = found.sets[name]
        rows.append((tag("b", name), number(count), number(count), share(count, found.rows), _sentence(set_rule(rule))))
    head = ("run", "pictures", "images in an epoch", "of all files", "rule")
    times = sorted(found.repeats.items())
    seen = ", ".join(
        f"{counted(count, 'picture')} {'once' if often == 1 else f'{often} times'}" for often, count in times
    )
    body = [table(head, rows, words_from=4)]
    body += [tag("p", tag("small", f"In an epoch of the base run: {seen}."))] if times else []
    return Section("trains", "What trains", join([lead, *mend]), join(body))


def base_rule(part: SelectPart) -> Iterator[str]:
    """The rule of [select], in parts."""
    for name, least in (("aesthetic", part.min_aesthetic_score), ("quality", part.min_quality_score)):
        if least is not None:
            yield f"{name} score at least {least:g}"
    if part.best_repeat > 1:
        most = f" (at most {number(part.best_most)} of them)" if part.best_most else ""
        yield (
            f"{part.best_repeat} times in an epoch where aesthetic is above {part.best_aesthetic_score:g} and quality "
            f"above {part.best_quality_score:g}{most}"
        )


def set_rule(rule: SetPart) -> Iterator[str]:
    """The rule of one of [select.sets], in parts."""
    if rule.best:
        yield "only what the base run repeats"
    for name, bound in (("aesthetic", rule.aesthetic_above), ("quality", rule.quality_above)):
        if bound is not None:
            yield f"{name} score above {bound:g}"
    if rule.date_words:
        yield "date word " + " or ".join(rule.date_words)
    if rule.sources:
        yield "source " + " or ".join(rule.sources)
    if rule.most:
        yield f"of these at most {number(rule.most)}, the highest by the sum of both scores"


def _sentence(parts: Iterator[str]) -> str:
    return "; ".join(parts) or "every picture that no earlier stage set aside"


def search(found: Survey) -> Section:
    """A box to search the captions of picked pictures."""
    title = "Search the captions"
    rows = found.captions[:MOST_SEARCHED]
    if not rows:
        return Section("search", title, Html(""), nothing("No picked picture has a caption."))
    part = f"{number(len(rows))} of {number(found.picked)}, drawn by hash" if len(rows) < found.picked else "all"
    lead = (
        f"The captions of picked pictures ({part}). Type words that a caption must have, to see what a tag is used for "
        "before you ask for it, or take it out."
    )
    entries = [Entry(str(row["id"]), places.name(row["uri"]), row["caption"]) for row in rows]
    body = searchbox.search_box(entries, what="caption", hint="1girl rain smile")
    return Section("search", title, escape(lead), Html(body), script=searchbox.SCRIPT)
