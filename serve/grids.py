"""Pictures side by side, each with its name below it, in named rows: what a notebook compares them in.

Kind: pure.
"""

from collections.abc import Mapping, Sequence
from typing import Final

from PIL import Image

from sote.cluster.page import Html, Section, escape, figure, join, picture, tag

SIDE: Final = 512  # pixels of a picture at most: twice what is shown
BYTES: Final = 60_000  # of a picture at most; forty of them are 2.4 MB, 3.2 MB as text
WIDEST: Final = "16rem"  # of a column

Named = tuple[str, Image.Image]


def grid(title: str, rows: Mapping[str, Sequence[Named]], *, lead: str = "") -> Section:
    """The pictures of each row under the row's name, so that columns stand below each other. A row may be shorter.

    A row without a name has none above it; one without pictures is its name alone.
    """
    columns = max((len(row) for row in rows.values()), default=0)
    return Section("grid", title, escape(lead), join(_row(name, row, columns) for name, row in rows.items()))


def _row(name: str, row: Sequence[Named], columns: int) -> Html:
    looks = f"display:grid;grid-template-columns:repeat({columns},minmax(3.6rem,{WIDEST}));margin-bottom:1.6rem"
    pictures = [figure(picture(image, side=SIDE, max_bytes=BYTES, alt=f"{name} {below}".strip()), below)
                for below, image in row]  # fmt: skip
    return join([tag("h3", name) if name else None, tag("div", *pictures, class_="film whole", style=looks)])
