"""A search box over a list that stands in the page: no network, one short script.

Every entry is in the page's HTML, so that the list can be read, and searched by the browser, where scripts are off; the
script only hides what does not match.

Kind: pure.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from sote.cluster.page import Html, counted, tag

# All words must be in an entry, in any order and case. A picture that the page shows elsewhere is shown beside its
# entry; it is copied only when its entry is among the first that match.
SCRIPT: Final = """
(() => {
  const PICTURES = 60;
  for (const box of document.querySelectorAll(".search")) {
    const input = box.querySelector("input"), says = box.querySelector("output");
    const all = says.textContent;
    const entries = [...box.querySelectorAll("li")].map((item) => [item, item.textContent.toLowerCase()]);
    const picture = (item) => {
      if (item.querySelector("img")) return;
      const shown = document.querySelector(`figure[data-id="${item.dataset.id}"]`);
      const image = shown && shown.querySelector("img");
      if (!image) return;
      const copy = image.cloneNode();
      copy.alt = "";
      if (shown.classList.contains("veiled")) item.classList.add("veiled");
      item.prepend(copy);
    };
    const look = () => {
      const words = input.value.toLowerCase().split(/\\s+/).filter(Boolean);
      let found = 0;
      for (const [item, text] of entries) {
        const fits = words.every((word) => text.includes(word));
        item.hidden = !fits;
        if (fits && ++found <= PICTURES) picture(item);
      }
      says.textContent = words.length ? `${found} of ${entries.length} match` : all;
    };
    input.addEventListener("input", look);
    input.addEventListener("keydown", (event) => {
      if (event.key !== "Escape") return;
      input.value = "";
      look();
    });
    box.querySelector("label").hidden = false;
    look();
  }
})();
"""


@dataclass(frozen=True)
class Entry:
    """One entry: the id of what it is about (figures of the page carry it too), its name, and the text."""

    id: str
    name: str
    text: str


def search_box(entries: Sequence[Entry], *, what: str, hint: str) -> Html:
    """The box, how many match, and the list. `what` is one entry's name, such as "caption"."""
    items = [
        tag("li", tag("span", entry.text), tag("small", entry.name), data_id=entry.id[:ID_LENGTH]) for entry in entries
    ]
    ask = tag("input", type="search", placeholder=hint, autocomplete="off", spellcheck="false", aria_controls="found")
    label = tag("label", tag("span", f"Words that a {what} must have"), ask, hidden=True)
    count = tag("output", counted(len(entries), what), aria_live="polite")
    return tag("div", label, count, tag("ol", *items, id="found", tabindex="0"), class_="search")


ID_LENGTH: Final = 16  # hex digits of an id that tell the entries of one page apart
