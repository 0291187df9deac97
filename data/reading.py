"""What is accepted of a reader's answer: `The text says "..."`, cleaned of everything a caption cannot hold.

The order of the steps is that of the seed's author (text-llava15-7b.py, 2024-04-22 to 2024-06-27). A reader without an
idea describes the picture instead; such answers got into the author's captions, here they are refused.

Kind: pure.
"""

import re

# The whole answer in the form that the seed's card gives: The text says "text". A quote inside means that the answer
# goes on after the text ('The text says "A" and the sign says "B"'), which is a description.
FORM = re.compile(r'The text says "([^"]+)"')

# A comma parts the tags of a caption; braces are wildcards for the trainers that read captions.
NEVER_IN_A_TAG = str.maketrans({",": ".", "{": None, "}": None})


def accept(answer: str) -> str | None:
    """`The text says "..."` without commas, newlines and braces, or None if the answer has another form or no text."""
    text = answer.removeprefix(" ")
    text = text.replace("The text says,", "The text says", 1)
    text = text.removesuffix("\n").removesuffix(".").removesuffix('"')
    text = text.translate(NEVER_IN_A_TAG) + '"'
    text = " ".join(text.split())
    form = FORM.fullmatch(text)
    if form is None or not form[1].strip():
        return None
    return f'The text says "{form[1].strip()}"'
