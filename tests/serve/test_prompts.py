import random

import pytest

from sote.serve.prompts import MAX_WEIGHT, Segment, parse, plain, tags_of


def _weights(prompt: str, *, as_comfy: bool = False) -> list[tuple[str, float]]:
    return [(segment.text, round(segment.weight, 6)) for segment in parse(prompt, as_comfy=as_comfy)]


@pytest.mark.parametrize(
    ("prompt", "wanted"),
    [
        ("a cat", [("a cat", 1)]),
        ("", []),
        ("a (cat:1.2) here", [("a ", 1), ("cat", 1.2), (" here", 1)]),
        ("a (cat)", [("a ", 1), ("cat", 1.1)]),
        ("a [cat]", [("a ", 1), ("cat", 0.909091)]),
        ("((cat))", [("cat", 1.21)]),
        ("(a (b:1.5) c:2)", [("a ", 2), ("b", 3), (" c", 2)]),
        ("(a [b])", [("a ", 1.1), ("b", 1)]),
        ("((a):1.2)", [("a", 1.32)]),
        ("(a:.5)", [("a", 0.5)]),
        ("(a:1)", [("a", 1)]),
        ("(a: 1.2 )", [("a", 1.2)]),
        ("(a:2.)", [("a", 2)]),
        ("(a:-1)(b:+2)", [("a", -1), ("b", 2)]),
        ("(a:b:0.8)", [("a:b", 0.8)]),
        ("a(b:1)c", [("abc", 1)]),
    ],
)
def test_brackets_are_weights(prompt: str, wanted: list[tuple[str, float]]) -> None:
    assert _weights(prompt) == wanted


@pytest.mark.parametrize(
    ("prompt", "wanted"),
    [
        ("re:zero, 1:2, :3, ;)", [("re:zero, 1:2, :3, ;)", 1)]),
        ("(re:zero)", [("re:zero", 1.1)]),
        ("(:3)", [(":3", 1.1)]),
        ("(a:)", [("a:", 1.1)]),
        ("(a:1.2.3)(b:1e3)(c:nan)(d:\u0663)", [("a:1.2.3b:1e3c:nand:\u0663", 1.1)]),
        ("[a:1.2]", [("a:1.2", 0.909091)]),
        (r"rem \(re:zero\)", [("rem (re:zero)", 1)]),
        (r"(rem \(re:zero\):1.2)", [("rem (re:zero)", 1.2)]),
        (r"\[a\] \n \\", [(r"[a] \n \\", 1)]),
        ("(a", [("(a", 1)]),
        ("a)", [("a)", 1)]),
        ("((a:1.2)", [("(", 1), ("a", 1.2)]),
        ("a:1.2)", [("a:1.2)", 1)]),
        ("[(a])", [("(a", 0.909091), (")", 1)]),
        (")(", [(")(", 1)]),
        ("()[]", []),
        (r"(a\)", [("(a)", 1)]),
    ],
)
def test_what_is_no_weight_stays_as_it_is(prompt: str, wanted: list[tuple[str, float]]) -> None:
    assert _weights(prompt) == wanted


def test_weights_are_held_to_what_can_be_seen() -> None:
    assert _weights("(a:1000)(b:-50)") == [("a", MAX_WEIGHT), ("b", -MAX_WEIGHT)]
    assert _weights("(" * 200 + "a" + ")" * 200) == [("a", MAX_WEIGHT)]
    assert _weights(f"(a:{'9' * 1000})") == [("a", MAX_WEIGHT)]


def test_as_comfyui_reads_them_square_brackets_are_text_and_a_number_replaces() -> None:
    assert _weights("(a (b:1.5) c:2) [d]", as_comfy=True) == [("a ", 2), ("b", 1.5), (" c", 2), (" [d]", 1)]
    assert _weights("((a):1.2)", as_comfy=True) == [("a", 1.32)]
    assert _weights(r"\(a\) \[b\]", as_comfy=True) == [(r"(a) \[b\]", 1)]
    assert _weights("a (b:1)(c:1)", as_comfy=True) == [("a ", 1), ("b", 1), ("c", 1)]


def _strange(number: int) -> str:
    draw = random.Random(number)
    return "".join(draw.choices([*"()[]\\:.-, \n\0", "1.2", "a", "ö", "猫"], k=draw.randrange(40)))


def test_whatever_is_written_is_read_and_no_word_is_lost() -> None:
    for number in range(3000):
        prompt = _strange(number)
        for as_comfy in (False, True):
            segments = parse(prompt, as_comfy=as_comfy)
            assert all(segment.text and abs(segment.weight) <= MAX_WEIGHT for segment in segments)
            joined = "".join(segment.text for segment in segments)
            for word in ("a", "ö", "猫", ","):
                assert joined.count(word) == prompt.count(word)
        assert all(tag == " ".join(tag.lower().split()) for tag in tags_of(prompt))


def test_text_with_its_brackets_escaped_is_one_segment_of_weight_one() -> None:
    for number in range(500):
        prompt = _strange(number).replace("\\", "")
        escaped = "".join(f"\\{each}" if each in "()[]" else each for each in prompt)
        assert parse(escaped) == ((Segment(prompt),) if prompt else ())


def test_plain_is_the_text_alone() -> None:
    assert plain(r"a (cat:1.2), [dog], \(x\)") == "a cat, dog, (x)"


def test_tags_are_found_however_they_are_written() -> None:
    assert tags_of("1girl, (Cat_Ears:1.2),  [pink   hair],\nsolo,,") == ("1girl", "cat ears", "pink hair", "solo")
    assert tags_of(r"(a, b:1.3), rem \(re:zero\), rem (re:zero)") == ("a", "b", "rem (re:zero)", "rem re:zero")
    assert tags_of(r"(nsfw, nsfw), \(nsfw\), ns\fw, \(\(nsfw, ( (NSFW) )") == ("nsfw",) * 6
    assert tags_of("\uff2e\uff33\uff26\uff37\uff0cx\u3001y") == ("nsfw", "x", "y")
    assert tags_of(" , ()") == ()


def test_rows_of_brackets_of_any_length_are_read() -> None:
    """In the time of one look at each; one that looks back at each bracket does not come to an end here."""
    half = 25_000
    assert parse("(" * half) == (Segment("(" * half),)
    assert plain("[(" * half + "]" * half) == "(" * half
    assert tags_of("\\(" * half + "a" + "\\)" * half) == ("a",)
    assert tags_of("a" + " " * half + "b") == ("a b",)
    assert plain("(a:" * half) == "(a:" * half
