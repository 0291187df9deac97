"""What trains, in words: counts and the rules of the recipe that made them."""

from sote.data.recipe import SelectPart, SetPart
from sote.data.report_training import MOST_SEARCHED, base_rule, search, set_rule, trains
from sote.data.survey import Limits, Survey


def test_the_rules_of_the_recipe_are_said_in_words() -> None:
    part = SelectPart(min_aesthetic_score=0.1, best_most=120_000)
    assert list(base_rule(part)) == [
        "aesthetic score at least 0.1",
        "5 times in an epoch where aesthetic is above 0.9 and quality above 0.98 (at most 120,000 of them)",
    ]
    rule = SetPart(best=True, quality_above=0.98, date_words=("newest", "recent"), sources=("a",), most=1000)
    assert "; ".join(set_rule(rule)) == (
        "only what the base run repeats; quality score above 0.98; date word newest or recent; source a; "
        "of these at most 1,000, the highest by the sum of both scores"
    )
    assert list(set_rule(SetPart())) == []


def test_every_set_of_the_recipe_is_there_with_its_count_even_if_it_is_empty() -> None:
    found = Survey(Limits(), rows=100)
    found.outcomes.update({("a", None): 60, ("a", "select: x"): 40})
    found.repeats.update({1: 50, 5: 10})
    found.sets.update({"final": 10})
    sets = {"final": SetPart(best=True), "decoder": SetPart()}
    body = trains(found, SelectPart(best_repeat=5, sets=sets)).body
    assert '<b>base</b></td><td class="n">60</td><td class="n">100</td><td class="n">60\u202f%' in body
    assert '<b>final</b></td><td class="n">10</td><td class="n">10</td>' in body
    assert '<b>decoder</b></td><td class="n">0</td>' in body
    assert "every picture that no earlier stage set aside" in body
    assert "50 pictures once, 10 pictures 5 times" in body


def test_the_search_box_holds_the_first_captions_only_and_says_so() -> None:
    found = Survey(Limits())
    found.outcomes.update({("a", None): 9000})
    found.captions = [{"id": str(at), "uri": f"/x/{at}.png", "caption": "1girl"} for at in range(MOST_SEARCHED + 1)]
    section = search(found)
    assert section.body.count("<li ") == MOST_SEARCHED
    assert f"{MOST_SEARCHED:,} of 9,000, drawn by hash" in section.lead
    assert section.script
    assert search(Survey(Limits())).script is None
