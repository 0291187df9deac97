"""Sections made of counts: what each says, and what stands where there is nothing."""

from sote.data import report_counts
from sote.data.survey import Limits, Survey
from sote.data.tag_counts import Pair, TagCounts


def found(**counts: object) -> Survey:
    made = Survey(Limits())
    made.outcomes.update({("a", None): 4})
    for name, value in counts.items():
        setattr(made, name, value)
    return made


def test_pairs_are_said_of_the_rarer_one() -> None:
    tags = TagCounts(tagged=9)
    tags.characters.update({"hatsune_miku": 8, "kagamine_rin": 4})
    tags.cast.update({0: 1, 1: 4, 2: 4})
    tags.pairs = [Pair("hatsune_miku", "kagamine_rin", 3, 8, 4)]
    body = report_counts.characters(found(tags=tags)).body
    assert 'hatsune miku + kagamine rin</td><td class="n">3</td><td class="n">75\u202f%' in body
    assert "2 characters" in body
    assert "knows no character" in report_counts.characters(found()).body


def test_lengths_are_of_the_captions_at_hand_and_say_how_many() -> None:
    rows = [{"id": "0", "uri": "x", "caption": caption} for caption in ("red, " * 20, "red, " * 50, "red")]
    section = report_counts.lengths(found(captions=rows))
    assert "3 captions of picked pictures, drawn by hash from 4," in section.lead
    assert "half have 42 or fewer" in section.lead  # 20 times `red` and `,`, and two marks
    assert "the longest 102" in section.lead
    assert [text.split("\u202f")[0] for text in section.body.split('class="n">')[1:3]] == ["2 · 67", "1 · 33"]
    assert "No picked picture has a caption." in report_counts.lengths(found()).body


def test_pictures_without_a_year_are_counted_and_so_are_gaps() -> None:
    made = found(undated=3)
    made.years.update({2005: 1, 2007: 2})
    section = report_counts.dates(made)
    assert "3 of 4 picked pictures have none" in section.lead
    assert section.body.count("<li>") == 3
    assert "No picture has a year." in report_counts.dates(found()).body
