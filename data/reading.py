"""What is asked of a reader, and what is accepted of its answer: `The text says "..."`, and nothing else.

The order of the steps is that of the seed's author (text-llava15-7b.py, 2024-04-22 to 2024-06-27). A reader without an
idea describes the picture instead; such answers got into the author's captions, here they are refused and counted.

Kind: pure.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

QUESTION = "what does the text say?"  # the author's, letter for letter

# The whole answer in the form that the seed's card gives: The text says "text". A quote inside means that the answer
# goes on after the text ('The text says "A" and the sign says "B"'), which is a description.
FORM = re.compile(r'The text says "([^"]+)"')

# A comma parts the tags of a caption; braces are wildcards for the trainers that read captions; U+FFFD is a letter that
# the limit of tokens cut.
NEVER_IN_A_TAG = str.maketrans({",": ".", "{": None, "}": None, "\ufffd": None})


@dataclass(frozen=True)
class Unread:
    """Why there is no answer for a picture; the row's error is `text: <reason>`."""

    reason: str


@dataclass(frozen=True)
class Tally:
    """How many rows were to be read, and how that ended: asked = accepted + refused + failed."""

    asked: int
    accepted: int
    refused: int
    failed: int


def accept(answer: str) -> str | None:
    """`The text says "..."` without commas, newlines and braces, or None if the answer has another form or no text."""
    text = answer.removeprefix(" ")
    text = text.replace("The text says,", "The text says", 1)
    text = text.removesuffix("\n").removesuffix(".").removesuffix('"')
    text = text.translate(NEVER_IN_A_TAG) + '"'
    text = "".join(letter for letter in " ".join(text.split()) if letter.isprintable())
    form = FORM.fullmatch(text)
    if form is None or not form[1].strip():
        return None
    return f'The text says "{form[1].strip()}"'


def tally(rows: Iterable[Mapping[str, Any]]) -> Tally:
    """Count rows with `text`, `read_text` and `text_error`; one without any of them was not to be read."""
    accepted = refused = failed = 0
    for row in rows:
        if row.get("text_error"):
            failed += 1
        elif row.get("text") is not None:
            accepted += 1
        elif row.get("read_text") is not None:
            refused += 1
    return Tally(accepted + refused + failed, accepted, refused, failed)
