"""The paintings that were measured: the new concept before and after, and prompt by prompt what is there.

Reads: the pictures that adherence.json names.

Kind: pure, but for files.
"""

from typing import Final

from PIL import Image

from sote.cluster import charts, remote
from sote.cluster.page import Html, Section, blank, counted, escape, figure, join, number, picture, share, tag
from sote.cluster.storage import RunFolder
from sote.serve.adherence_file import NAMES, Adherence, Concept, Name, Score
from sote.train.strips import spread

# Sides in pixels, twice what is shown, and bytes: 80 prompts of three and four rows of the concept come to 1.6 MB at
# their most, 2.1 MB as text.
SIDE, BYTES = 224, 5_500
MOST_OF_CONCEPT: Final = 16  # pictures in a row
MOST_OPEN: Final = 12  # prompts that are not folded away
FOUND, MISSING = "✓", "✗"


def track(score: Score, *, label: str, chance: float | None = None) -> Html:
    """A bar of hits among all; `chance` (0..1) is marked."""
    hits, total = score
    bar = tag("i", style=f"width:{100 * hits / max(total, 1):.2f}%")
    mark = None if chance is None else tag("i", class_="chance", style=f"left:{100 * chance:.2f}%")
    said = f"{label}: {number(hits)} of {number(total)}"
    return tag("span", bar, mark, class_="track", role="img", aria_label=said)


def concept(folder: RunFolder, measured: Adherence, more: Html) -> Section:
    """Examples of the new concept, and what each model paints for its name; `more` stands below."""
    new = measured.concept
    (had, before), (has, after), (control, of) = new.base, new.finetuned, new.control
    lead = join([
        "The base model has never seen ", tag("b", new.name), ". After the finetune ",
        tag("b", f"{number(has)} of {counted(after, 'painting')}"), f" show it ({share(has, after)}), before "
        f"{number(had)} of {number(before)}, with shuffled captions {number(control)} of {number(of)}; by chance it "
        f"would be {share(new.chance, 1)}. A painting shows it if the reader finds ",
        join((tag("b", each) for each in new.tags), " and "), ".",
    ])  # fmt: skip
    reels = [
        _reel(tag("b", "examples"), tag("small", "drawn, to learn from"), _film(folder, new.truth, new, "example"))
    ]
    reels += [_painted(folder, measured, name) for name in NAMES]
    key = charts.key((("chance", f"chance, {share(new.chance, 1)}"),))
    return Section("concept", "The new concept", lead, join([tag("div", *reels, key, class_="learnt"), more]))


def _painted(folder: RunFolder, measured: Adherence, name: Name) -> Html:
    """The row of one model: how often it paints the concept, and its paintings."""
    new, label = measured.concept, measured.models[name].label
    score = new.score(name)
    bar = tag(
        "div", track(score, label=label, chance=new.chance), tag("span", share(*score), class_="n"),
        class_=f"trial m-{name}",
    )  # fmt: skip
    said = tag("small", f"{number(score[0])} of {counted(score[1], 'painting')}")
    return _reel(tag("b", label), join([said, bar]), _film(folder, new.images[name], new, label))


def _reel(name: Html, below: Html, film: Html) -> Html:
    return tag("div", tag("div", name, below, class_="name"), film, class_="reel")


def _film(folder: RunFolder, files: tuple[str, ...], new: Concept, whose: str) -> Html:
    shown = [
        figure(_picture(folder, file, f"{new.name}, {whose}, number {at}"))
        for at, file in enumerate(files[:MOST_OF_CONCEPT], 1)
    ]
    rest = len(files) - len(shown)
    more = tag("span", f"{number(rest)} more", class_="gap") if rest else None
    return tag("div", *shown, more, class_="film")


def prompts(folder: RunFolder, measured: Adherence) -> Section:
    """Each prompt with the pictures of all models and what is in them; the most of a long list are folded away."""
    rows = [_asked(folder, measured, at) for at in range(len(measured.prompts))]
    open_at = spread(range(len(rows)), MOST_OPEN)
    folded = [row for at, row in enumerate(rows) if at not in open_at]
    lead = f"All {counted(len(rows), 'prompt')} of the fixed list, each with one seed for all models."
    if folded:
        lead = (
            f"{len(open_at)} of the {counted(len(rows), 'prompt')}, evenly over the fixed list and not picked "
            "by hand; the others are folded away below. Each has one seed for all models."
        )
    lead += f" Below a painting, {FOUND} is a tag that the reader finds and {MISSING} one that it does not."
    body = [tag("div", *(rows[at] for at in open_at), class_="askeds")]
    if folded:
        summary = tag("summary", f"The other {counted(len(folded), 'prompt')}")
        body.append(tag("details", summary, tag("div", *folded, class_="askeds")))
    return Section("prompts", "Prompt by prompt", escape(lead), join(body))


def _asked(folder: RunFolder, measured: Adherence, at: int) -> Html:
    """One prompt: pictures side by side, and below them for each tag whether it is there."""
    asked = measured.prompts[at]
    found = {name: set(measured.models[name].found[at]) for name in NAMES}
    cells = [tag("p", asked.prompt, class_="words"), tag("small", f"seed {asked.seed}")]
    for name in NAMES:
        each = measured.models[name]
        hits = len(found[name].intersection(asked.wanted))
        said = f"{each.label}: {asked.prompt}, seed {asked.seed}"
        caption = (name, tag("b", f" {hits}/{len(set(asked.wanted))}"))
        cells.append(figure(_picture(folder, each.images[at], said), *caption, class_=f"m-{name}"))
    for wanted in dict.fromkeys(asked.wanted):
        breakable = Html(escape(wanted).replace("_", "_<wbr>"))
        cells.append(tag("span", breakable, class_="chip", title=asked.groups.get(wanted)))
        cells += [_mark(measured.models[name].label, wanted in found[name]) for name in NAMES]
    return tag("div", *cells, class_="asked")


def _mark(label: str, is_there: bool) -> Html:
    said, sign = ("there", FOUND) if is_there else ("gone", MISSING)
    words = f"{label}: {'found' if is_there else 'missing'}"
    return tag("span", sign, class_=f"mark {said}", role="img", aria_label=words, title=words)


def _picture(folder: RunFolder, file: str, alt: str) -> Html:
    """A picture of the run, or a placeholder that says why it cannot be shown."""
    try:
        with Image.open(remote.fetch(folder.root / file)) as image:
            return picture(image, side=SIDE, max_bytes=BYTES, alt=alt)
    except OSError as error:
        return blank(f"{file}: {error.strerror or 'cannot be read'}")
