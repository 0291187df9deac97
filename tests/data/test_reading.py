import pytest

from sote.data.reading import accept


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
