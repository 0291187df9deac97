"""One self-contained HTML page: escaping, elements, tables, embedded pictures, and the page around the sections.

Text is escaped by construction: whatever is not `Html` already is escaped when it is put into an element. The page
loads nothing (its content security policy refuses it), so it works without a network and can be sent to somebody.

Kind: pure.
"""

import base64
import hashlib
import html
import io
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from PIL import Image

from sote.cluster.stylesheet import STYLESHEET

VOID: Final = frozenset({"br", "hr", "img", "input", "link", "meta"})
# Only what stands in the page itself: pictures as data URIs, styles inline, scripts only by their hash.
POLICY: Final = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
ICON: Final = (
    "<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 32 32'>"
    "<path d='M5 2h22c0 12-14 12-14 28H5z' fill='#0f6b73'/></svg>"
)
QUALITIES: Final = (82, 62, 42)  # WebP; below 40 blocks are seen at thumbnail size
SMALLEST_SIDE: Final = 32  # pixels; a picture is not made smaller than this to fit its bytes


class Html(str):
    """Text that is HTML already and is not escaped again."""

    __slots__ = ()


Node = Html | str | int | float | None


@dataclass(frozen=True)
class Section:
    """One part of the page. `key` is its anchor and its name in the list on top; `lead` stands below the title.

    `script` is what it needs to be handy; without it the section must still say all that it has to say.
    """

    key: str
    title: str
    lead: Html
    body: Html
    script: str | None = None

    def _repr_html_(self) -> str:
        """The section with its looks, for a notebook's cell; the style reaches no further."""
        style = STYLESHEET.replace(":root", ":scope").replace("\nbody {", "\n:scope {")
        inside = [tag("style", Html(f"@scope (.sote) {{{style}}}")), _section(self)]
        return tag("div", *inside, _script(self.script) if self.script else None, class_="sote")


@dataclass(frozen=True)
class Chapter:
    """What one folder of the project has to say of a run.

    `story` is a sentence or two for the header, `numbers` are its large figures, `strip` pictures that go with them,
    `hero` one large picture.
    """

    story: str
    numbers: tuple[tuple[str, Node], ...] = ()
    sections: tuple[Section, ...] = ()
    strip: Html | None = None
    hero: Html | None = None


def escape(value: Node) -> Html:
    """`value` as HTML: `Html` as it is, None as nothing, all else as escaped text (lone surrogates become `?`)."""
    if isinstance(value, Html):
        return value
    if value is None:
        return Html("")
    return Html(html.escape(str(value).encode("utf-8", "replace").decode("utf-8")))


def join(parts: Iterable[Node], between: str = "") -> Html:
    """All `parts` one after the other, with `between` (escaped) between them."""
    return Html(escape(between).join(escape(part) for part in parts))


def tag(name: str, /, *inside: Node, **attributes: str | float | bool | None) -> Html:
    """The element `name`. `class_` is `class`, `a_b` is `a-b`; an attribute that is None or False is left out."""
    written = "".join(_attribute(key, value) for key, value in attributes.items())
    if name in VOID:
        return Html(f"<{name}{written}>")
    return Html(f"<{name}{written}>{join(inside)}</{name}>")


def _attribute(key: str, value: str | float | bool | None) -> str:
    if value is None or value is False:
        return ""
    name = key.rstrip("_").replace("_", "-")
    return f" {name}" if value is True else f' {name}="{escape(value)}"'


def number(value: float, digits: int = 0) -> str:
    """A number for people: `6,012,345`, or with `digits` behind the point."""
    return f"{value:,.{digits}f}"


def share(part: float, whole: float) -> str:
    """`part` of `whole` in per cent, with a narrow blank that does not break; 0 % of nothing."""
    percent = 100 * part / whole if whole else 0.0
    if percent not in (0.0, 100.0):
        percent = min(max(percent, 0.1), 99.9)  # neither none nor all
    digits = 0 if percent in (0.0, 100.0) or 10 <= percent < 99.5 else 1
    return f"{percent:.{digits}f}\u202f%"


def duration(seconds: float) -> str:
    """Seconds for people, in the two largest units: `0.4 s`, `12 s`, `4 min 10 s`, `3 h 5 min`, `2 d 4 h`."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    for size, unit, smaller, name in ((86400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")):
        if whole >= size:
            rest = whole % size // smaller
            return f"{whole // size} {unit} {rest} {name}" if rest else f"{whole // size} {unit}"
    return f"{whole} s"


def counted(count: int, one: str, many: str | None = None) -> str:
    """`1 picture`, `2 pictures`."""
    return f"{number(count)} {one if count == 1 else many or one + 's'}"


def code(words: str) -> Html:
    """What is typed as it stands, such as a command."""
    return tag("code", words)


def nothing(sentence: str) -> Html:
    """What stands where there is nothing yet: one sentence."""
    return tag("p", sentence, class_="nothing")


def table(
    head: Sequence[Node], rows: Iterable[Sequence[Node]], *, numbers_from: int = 1, words_from: int | None = None
) -> Html:
    """A table; the columns from `numbers_from` up to `words_from` are numbers, to the right.

    It scrolls by itself where it is too wide. Without a `head` there is no line of names.
    """

    def style(at: int) -> str | None:
        if words_from is not None and at >= words_from:
            return "words"
        return "n" if at >= numbers_from else None

    tops = [tag("th", cell, class_=style(at), scope="col") for at, cell in enumerate(head)]
    lines = [tag("tr", *(tag("td", cell, class_=style(at)) for at, cell in enumerate(row))) for row in rows]
    top = tag("thead", tag("tr", *tops)) if tops else None
    return tag("div", tag("table", top, tag("tbody", *lines)), class_="scroll")


def facts(pairs: Iterable[tuple[str, Node]], *, big: bool = False) -> Html:
    """Names and values, as a list of definitions; `big` for the few large figures of a page."""
    rows = [tag("div", tag("dt", name), tag("dd", value)) for name, value in pairs]
    return tag("dl", *rows, class_="facts big" if big else "facts")


def figure(picture: Html, *below: Node, class_: str | None = None, data_id: str | None = None) -> Html:
    """A picture with what is said below it. `data_id` says to scripts what it shows."""
    return tag("figure", picture, tag("figcaption", *below) if below else None, class_=class_, data_id=data_id)


def picture(image: Image.Image, *, side: int, max_bytes: int, alt: str) -> Html:
    """`image` (RGB) as an embedded WebP of at most `side` pixels and `max_bytes` bytes."""
    small = image.convert("RGB")
    small.thumbnail((side, side), Image.Resampling.LANCZOS)
    data = b""
    for quality in QUALITIES:
        data = _webp(small, quality)
        if len(data) <= max_bytes:
            break
    while len(data) > max_bytes and max(small.size) > SMALLEST_SIDE:
        factor = min(math.sqrt(max_bytes / len(data)), 0.95)  # bytes go with the area
        small.thumbnail((max(round(max(small.size) * factor), SMALLEST_SIDE),) * 2, Image.Resampling.LANCZOS)
        data = _webp(small, QUALITIES[-1])
    uri = "data:image/webp;base64," + base64.b64encode(data).decode("ascii")
    return tag("img", src=uri, width=small.width, height=small.height, alt=alt)


def _webp(image: Image.Image, quality: int) -> bytes:
    out = io.BytesIO()
    image.save(out, "WEBP", quality=quality, method=4)
    return out.getvalue()


def blank(words: str) -> Html:
    """What stands for a picture that cannot be shown; `words` say why."""
    return tag("div", tag("span", words), class_="blank", role="img", aria_label=words)


def page(*, title: str, header: Html, sections: Sequence[Section], footer: Html) -> str:
    """The whole page, ready to be written to a file."""
    scripts = sorted({section.script for section in sections if section.script})
    icon = "data:image/svg+xml;base64," + base64.b64encode(ICON.encode()).decode("ascii")
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=_policy(scripts)),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("title", title),
        tag("link", rel="icon", href=icon),
        tag("style", Html(STYLESHEET)),
    )
    links = [tag("a", section.key.replace("-", " ").capitalize(), href=f"#{section.key}") for section in sections]
    body = tag(
        "body",
        tag("header", header, class_="top"),
        tag("nav", *links, aria_label="Sections"),
        tag("main", *(_section(section) for section in sections)),
        tag("footer", footer),
        *map(_script, scripts),
    )
    return "<!doctype html>\n" + tag("html", head, body, lang="en") + "\n"


def _policy(scripts: Sequence[str]) -> str:
    """POLICY, and that only these scripts may run: browsers compare their hashes (W3C, CSP Level 3)."""
    digests = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii") for script in scripts]
    allowed = " ".join(f"'sha256-{digest}'" for digest in digests)
    return f"{POLICY}; script-src {allowed}" if allowed else POLICY


def _script(script: str) -> Html:
    return tag("script", Html(script))


def _section(section: Section) -> Html:
    title = tag("h2", section.title, id=f"{section.key}-title")
    lead = tag("p", section.lead, class_="lead") if section.lead else None
    return tag("section", title, lead, section.body, id=section.key, aria_labelledby=f"{section.key}-title")
