import pytest

from sote.data.reading import Tally, accept, tally


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        ('The text says "Hello"', 'The text says "Hello"'),
        (' The text says "Hello".', 'The text says "Hello"'),
        ('The text says, "Hello."\n', 'The text says "Hello."'),
        ('The text says, "Hello, world!"', 'The text says "Hello. world!"'),
        ('The text says "line one\nline two"', 'The text says "line one line two"'),
        ('The text says "a {b|c} d"', 'The text says "a b|c d"'),
        ('The text says "cut off in the mid', 'The text says "cut off in the mid"'),
        ('The text says "川"', 'The text says "川"'),
        ('The text says "cut off in the mid of a let\ufffd', 'The text says "cut off in the mid of a let"'),
        ('The text says "tab\tbell\x07 line\u2028end\u200b"', 'The text says "tab bell line end"'),
    ],
)
def test_an_answer_that_quotes_the_text_is_cleaned_and_accepted(answer: str, text: str) -> None:
    assert accept(answer) == text


@pytest.mark.parametrize(
    "answer",
    [
        "",
        "The image features a girl with long hair.",
        "The text says hello",
        'The text says ""',
        'The text says " "',
        'The text says "{}"',
        'In the image, the text says "Hello"',
        'The text says "A" and the sign behind her says "B"',
        'The text says "Hello" in a speech bubble',
        'the text says "Hello"',
    ],
)
def test_any_other_answer_is_refused(answer: str) -> None:
    assert accept(answer) is None


def test_what_is_accepted_is_one_tag_and_is_accepted_again() -> None:
    text = accept('The text says "one, two,\n{three}"')
    assert text == 'The text says "one. two. three"'
    assert accept(text) == text


def test_every_row_that_was_to_be_read_is_counted_once() -> None:
    rows = [
        {"text": 'The text says "A"', "read_text": 'The text says "A".', "text_error": None},
        {"text": None, "read_text": "A girl.", "text_error": None},
        {"text": None, "read_text": "", "text_error": None},
        {"text": None, "read_text": None, "text_error": "text: file vanished"},
        {"text": None, "read_text": None, "text_error": None},
    ]
    assert tally(rows) == Tally(asked=4, accepted=1, refused=2, failed=1)
    assert tally([]) == Tally(0, 0, 0, 0)
