"""Tags as text."""

import pytest

from sote.data import sidecar_text
from sote.data.sidecar_facts import BrokenSidecar, Sidecar


@pytest.mark.parametrize(
    ("text", "tags"),
    [
        ("1girl, solo, long hair\n", ("1girl", "solo", "long hair")),
        ("1girl,solo,, 1girl ,", ("1girl", "solo")),
        ("a girl in a field", ("a girl in a field",)),
        ("\ufeff1girl\r\n", ("1girl",)),
        ("re:zero, :d, 12:30", ("re:zero", ":d", "12:30")),
        ("\n \n", ()),
        ("", ()),
    ],
)
def test_one_line_is_kohyas_with_commas_between(text: str, tags: tuple[str, ...]) -> None:
    assert sidecar_text.parse(text.encode()) == Sidecar(tags=tags)


def test_lines_are_hydrus_tags_one_each_commas_and_all() -> None:
    text = "creator:mika, the second\nseries:fate/stay night\ncharacter:saber\ncharacter:rin\nlong hair\nhello, world\n"
    assert sidecar_text.parse(text.encode()) == Sidecar(
        artist="mika, the second",
        characters=("saber", "rin"),
        series=("fate/stay night",),
        tags=("long hair", "hello, world"),
    )


def test_one_line_with_a_namespace_is_hydrus_too() -> None:
    assert sidecar_text.parse(b"Series:foo, bar") == Sidecar(series=("foo, bar",))


def test_namespaces_of_the_file_are_no_tags_and_unknown_ones_are_part_of_the_name() -> None:
    text = "rating:explicit\npage:3\nsource:https://a.b/c\ntitle:A Day\nre:zero\nclothing:dress\ncharacter:\n"
    assert sidecar_text.parse(text.encode()) == Sidecar(title="A Day", tags=("re:zero", "clothing:dress", "character:"))


def test_text_that_is_not_utf_8_is_broken() -> None:
    with pytest.raises(BrokenSidecar, match="sidecar is not UTF-8 text"):
        sidecar_text.parse("ü".encode("latin-1"))
