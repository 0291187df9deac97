"""The page's helpers and charts: what is escaped, what is embedded, and that nothing is loaded from elsewhere."""

import base64
import io
import math
import re
from itertools import pairwise

import numpy as np
import pytest
from PIL import Image

from sote.cluster import charts, page
from sote.cluster.charts import Band, Curve, Step
from sote.cluster.page import Html, Section, escape, tag


def test_text_is_escaped_and_html_is_not_escaped_twice() -> None:
    inner = tag("b", "<script>alert('1 & 2')</script>")
    outer = tag("p", inner, title='"<x>"')
    assert inner == "<b>&lt;script&gt;alert(&#x27;1 &amp; 2&#x27;)&lt;/script&gt;</b>"
    assert outer == f'<p title="&quot;&lt;x&gt;&quot;">{inner}</p>'


def test_a_lone_surrogate_can_be_written_as_utf_8() -> None:
    assert escape("a\ud800b").encode("utf-8") == b"a?b"


def test_attributes_that_are_off_are_left_out_and_void_elements_have_no_end() -> None:
    assert (
        tag("img", src="x", alt="", hidden=True, title=None, class_="a b") == '<img src="x" alt="" hidden class="a b">'
    )
    assert tag("td", 0, None, "x") == "<td>0x</td>"


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.04, "0.0 s"), (9.94, "9.9 s"), (12.4, "12 s"), (59.6, "1 min"), (250, "4 min 10 s"), (3600, "1 h"),
     (11_100, "3 h 5 min"), (187_200, "2 d 4 h")],
)  # fmt: skip
def test_durations_are_said_in_two_units(seconds: float, words: str) -> None:
    assert page.duration(seconds) == words


def test_a_share_never_says_all_or_none_when_it_is_not() -> None:
    pairs = ((0, 0), (0, 5), (5, 5), (1, 8), (1, 20_000), (9999, 10_000))
    words = [page.share(*pair).replace("\u202f", " ") for pair in pairs]
    assert words == ["0 %", "0 %", "100 %", "12 %", "0.1 %", "99.9 %"]


def decoded(image: Html) -> Image.Image:
    found = re.search(r'src="data:image/webp;base64,([^"]+)"', image)
    assert found
    return Image.open(io.BytesIO(base64.b64decode(found[1])))


def test_an_embedded_picture_keeps_its_side_and_its_bytes_even_if_it_is_noise() -> None:
    pixels = np.random.Generator(np.random.Philox(1)).integers(0, 256, (300, 500, 3), dtype=np.uint8)
    noise = Image.fromarray(pixels)
    calm = page.picture(Image.new("RGB", (500, 300), "navy"), side=200, max_bytes=9000, alt="calm")
    assert decoded(calm).size == (200, 120)
    assert 'width="200" height="120" alt="calm"' in calm
    shown = page.picture(noise, side=400, max_bytes=6000, alt="noise")
    assert len(base64.b64decode(shown.split("base64,")[1].split('"')[0])) <= 6000
    assert max(decoded(shown).size) < 400


def test_the_page_forbids_loading_and_links_its_sections() -> None:
    text = page.page(
        title="a <b>",
        header=tag("h1", "x"),
        sections=[Section("set-aside", "Set & aside", escape("lead"), tag("p", "body"))],
        footer=escape("end"),
    )
    assert text.startswith("<!doctype html>")
    assert "<title>a &lt;b&gt;</title>" in text
    assert "default-src &#x27;none&#x27;; img-src data:" in text
    assert '<a href="#set-aside">Set aside</a>' in text
    assert "Set &amp; aside</h2>" in text
    assert "<script" not in text


def test_a_script_may_run_only_by_its_hash_and_stands_once() -> None:
    section = Section("a", "A", escape(""), tag("p", "x"), script="let a = '<&';")
    text = page.page(title="t", header=escape(""), sections=[section, section], footer=escape(""))
    # printf %s "let a = '<&';" | openssl dgst -sha256 -binary | base64
    assert "script-src &#x27;sha256-xJ6uagBU6rXJVFvGhiqfs7FcrfNtOwwXgMJJdltD7Yo=&#x27;" in text
    assert text.count("<script>let a = '<&';</script>") == 1


def test_a_section_shows_itself_in_a_notebook_with_a_style_that_reaches_no_further() -> None:
    shown = Section("a", "A & B", escape("lead"), tag("p", "x"))._repr_html_()
    assert shown.startswith('<div class="sote"><style>@scope (.sote) {')
    assert ":root" not in shown
    assert "\nbody {" not in shown
    assert "A &amp; B</h2>" in shown


def test_a_table_has_numbers_to_the_right_and_words_after_them() -> None:
    drawn = page.table(("name", "count", "rule"), [("a", 1, "<b>")], words_from=2)
    assert '<td>a</td><td class="n">1</td><td class="words">&lt;b&gt;</td>' in drawn


def test_labels_of_narrow_bands_are_moved_apart_in_order_and_stay_inside() -> None:
    bounds = [0, 0.01, 0.02, 0.03, 0.97, 0.98, 0.99, 1]
    bands = [Band(f"word {at}", low, high, at) for at, (low, high) in enumerate(pairwise(bounds))]
    drawn = charts.ladder([1] * 50, [0] * 50, bands=bands, label="score")
    tops = [float(top) for top in re.findall(r'<li style="top:([\d.]+)%"', drawn.replace(' class="none"', ""))]
    names = re.findall(r"<span>(word \d)</span>", drawn)
    assert names == [f"word {at}" for at in range(6, -1, -1)]
    assert len(tops) == 7
    assert all(after - before >= charts.LABEL_GAP - 0.01 for before, after in pairwise(tops))
    assert tops[0] >= 0
    assert tops[-1] <= 100


@pytest.mark.parametrize(("low", "high"), [(0, 1), (0.41, 0.87), (-3, 12), (1e-6, 1e-5), (5, 5), (0, 0), (1, 50_000)])
def test_ticks_are_round_few_and_span_the_values(low: float, high: float) -> None:
    ticks = charts.round_ticks(low, high)
    assert 2 <= len(ticks) <= 7
    assert ticks[0] <= low + 1e-9
    assert ticks[-1] >= high - 1e-9
    gap = ticks[1] - ticks[0]
    assert round(gap / 10 ** math.floor(math.log10(gap) + 1e-9), 6) in (1, 2, 5, 10)


def test_a_long_line_keeps_its_highest_and_lowest_point() -> None:
    ys = [math.sin(at / 90) for at in range(50_000)]
    ys[31_234], ys[7] = 9.0, -9.0
    points = charts.thin(range(50_000), ys)
    assert len(points) <= charts.MOST_POINTS
    assert (31_234, 9.0) in points
    assert (7, -9.0) in points
    assert points == sorted(points)


def test_the_smoothed_mean_of_a_constant_is_the_constant_from_the_start() -> None:
    assert charts.smoothed([2.0, math.nan, 2.0, 2.0], 0.9) == pytest.approx([2.0] * 4)
    # by hand: weight 0.5 on (1, 3): first 0.5/0.5 = 1, then (0.5 * 0.5 + 0.5 * 3) / 0.75
    assert charts.smoothed([1.0, 3.0], 0.5) == pytest.approx([1.0, 1.75 / 0.75])


def test_a_line_chart_leaves_out_what_is_not_finite_and_says_so_if_nothing_is_left() -> None:
    drawn = charts.lines([Curve([1, 2, 3], [0.5, math.inf, 0.1], "smooth")], label="Loss")
    assert drawn.count("polyline") == 2
    assert len(re.findall(r'points="([^"]*)"', drawn)[0].split()) == 2
    assert "no finite value" in charts.lines([Curve([1], [math.nan], "raw")], label="Loss")


def test_a_histogram_draws_marks_where_they_are_and_what_lies_beyond_the_last_paler() -> None:
    drawn = charts.histogram([0, 3, 1, 2], width=10, marks=[(20, "one"), (25, "two")], label="tokens")
    assert re.findall(r'<rect x="([\d.]+)".*?class="(\w+)"', drawn) == [
        ("25.000", "pick"), ("50.000", "pick"), ("75.000", "all"),
    ]  # fmt: skip
    assert re.findall(r'<line x1="([\d.]+)"', drawn) == ["50.000", "62.500"]
    wide = charts.histogram([1], width=10, marks=[(77, "one")], label="tokens")
    assert 'width="10.417"' in wide  # eight bins, so that the mark is inside


def test_counts_above_columns_stay_short() -> None:
    drawn = charts.columns([("2018", 999), ("2019", 9_940), ("2020", 412_345), ("2021", 999_500), ("2022", 6_012_345)])
    assert re.findall(r'class="n" title="[\d,]+">([^<]+)<', drawn) == ["999", "9.9k", "412k", "1.0M", "6.0M"]


def test_the_parts_of_a_stack_are_of_the_whole() -> None:
    drawn = charts.stack([("s5", 3), ("s4", 0), ("s0", 1)], whole=4, label="three of four")
    assert re.findall(r'class="(s\d)" style="width:([\d.]+)%"', drawn) == [("s5", "75.00"), ("s0", "25.00")]


def test_a_river_folds_rare_reasons_away_but_keeps_every_one() -> None:
    lost = tuple((f"decode: reason {at}", at + 1) for at in range(9))
    drawn = charts.river([Step("files in", "", 100, ()), Step("readable", "", 55, lost)])
    assert all(f"−{count}</b><span>{reason}" in drawn for reason, count in lost)
    assert "3 more reasons, 6 of 45" in drawn
    assert charts.river([Step("files in", "", 0, ())]).count("<li") == 1
