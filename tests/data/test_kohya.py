"""The tag string of sd-scripts' tagger against the output of the script itself."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sote.data.kohya import KohyaOptions, kohya_tags

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "kohya_tagger.json").read_text(encoding="utf-8"))


def _tags(probabilities: dict[str, float]) -> list[tuple[str, float, str]]:
    listed = [(name, "general") for name in GOLDEN["generals"]] + [(name, "character") for name in GOLDEN["characters"]]
    return [(name, float(np.float32(probabilities.get(name, 0))), category) for name, category in listed]


@pytest.mark.parametrize("case", GOLDEN["cases"], ids=[case["case"] for case in GOLDEN["cases"]])
def test_the_tag_string_is_that_of_the_script(case: dict[str, Any]) -> None:
    options = KohyaOptions(**{**GOLDEN["starts"][case["start"]], **case["flags"]})
    tags = _tags(case["probabilities"])
    assert kohya_tags(tags, case["rating"], options=options, existing=case["existing"]) == case["output"]


def test_the_options_start_as_the_seeds_command_has_them() -> None:
    assert KohyaOptions() == KohyaOptions(**GOLDEN["starts"]["seed"])


def test_tags_below_the_threshold_need_not_be_given() -> None:
    tags = [tag for tag in _tags({"1girl": 0.9, "ganyu_(genshin_impact)": 0.6}) if tag[1] > 0]
    assert len(tags) == 2
    assert kohya_tags(tags, (0, 0, 1, 0), options=KohyaOptions()) == "questionable, ganyu, genshin impact, 1girl\n"


def test_a_replacement_without_a_target_is_refused() -> None:
    with pytest.raises(ValueError, match="'solo' must be `source,target`"):
        kohya_tags([], (1, 0, 0, 0), options=KohyaOptions(tag_replacement="1girl,woman;solo"))
