"""Contact sheets of words: every word in order, its highest pictures before its lowest."""

import itertools
import re
from pathlib import Path

from PIL import Image

from sote.data import sheets, survey
from sote.data.caption_profile import load_profile
from sote.data.gallery import Album
from sote.data.survey import Ends, Limits, Survey

PROFILE = load_profile("sote-v1")


def row(folder: Path, number: int, score: float) -> survey.Row:
    path = folder / f"{number}.png"
    Image.new("RGB", (64, 48), (number * 20 % 256, 90, 120)).save(path)
    return {"id": f"{number:064}", "at": number, "uri": str(path), "aesthetic_score": score}


def test_words_stand_from_the_highest_down_with_scores_and_what_is_not_shown(tmp_path: Path) -> None:
    found = Survey(Limits())
    scale = [word for _, word in PROFILE.aesthetic.steps]
    top = Ends(9, [row(tmp_path, 1, 0.999)], [row(tmp_path, 2, 0.901)])
    found.ends = {
        ("aesthetic_score", scale[1]): Ends(1, [row(tmp_path, 3, 0.85)], []),
        ("aesthetic_score", scale[0]): top,
    }
    body = sheets.words(found, Album(), PROFILE).body
    assert body.index(f"<b>{scale[0]}</b>") < body.index(f"<b>{scale[1]}</b>")
    assert re.findall(r"<figcaption>([\d.]+)<", body) == ["0.999", "0.901", "0.850"]
    assert body.index("0.999") < body.index("7 more") < body.index("0.901")
    assert body.count(" more<") == 1
    assert "9 pictures" in body
    assert "Quality" not in body


def test_the_bounds_of_a_scale_meet_and_span_all_scores() -> None:
    spans = sheets.bounds(PROFILE.quality)
    assert (spans[0][2], spans[-1][1]) == (1.0, 0.0)
    assert all(above[1] == below[2] for above, below in itertools.pairwise(spans))


def test_no_word_no_sheet() -> None:
    assert "No picture has a word yet." in sheets.words(Survey(Limits()), Album(), PROFILE).body
