"""Tags, characters and pairs of them, counted by codes: the same as counted one by one."""

import random
from collections import Counter
from itertools import combinations
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sote.data import schema, tag_counts
from sote.data.tag_counts import Pair, count_tags

Tags = list[tuple[str, float, str]]


def write(path: Path, rows: list[Tags | None], *, group: int = 1000) -> Path:
    names = ("name", "probability", "category")
    lists: list[Any] = [None if tags is None else [dict(zip(names, tag, strict=True)) for tag in tags] for tags in rows]
    table = pa.table({"tags": pa.array(lists, schema.BY_NAME["tags"].type)})
    pq.write_table(table, path, row_group_size=group)
    return path


def test_a_tag_counts_from_the_threshold_of_its_category_on(tmp_path: Path) -> None:
    rows: list[Tags | None] = [
        [("hat", 0.35, "general"), ("miku", 0.5, "character"), ("rin", 0.49, "character")],
        [("hat", 0.34, "general"), ("sky", 0.9, "general")],
        [],
        None,
    ]
    found = count_tags(write(tmp_path / "x", rows), general_threshold=0.35, character_threshold=0.5)
    assert (found.general, found.characters) == ({"hat": 1, "sky": 1}, {"miku": 1})
    assert (found.tagged, found.cast) == (3, {1: 1, 0: 1})


def test_a_pair_says_how_often_each_of_it_is_seen_at_all(tmp_path: Path) -> None:
    rows: list[Tags | None] = [[(name, 0.9, "character") for name in names] for names in ("ba", "ab", "b", "cab", "")]
    found = count_tags(write(tmp_path / "x", rows), general_threshold=0.3, character_threshold=0.5)
    assert found.pairs == [Pair("a", "b", 3, 3, 4), Pair("a", "c", 1, 3, 1), Pair("b", "c", 1, 4, 1)]
    assert found.cast == {2: 2, 1: 1, 3: 1}


@pytest.mark.parametrize("group", [7, 1000])
def test_counts_are_those_of_a_count_one_by_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, group: int) -> None:
    monkeypatch.setattr(tag_counts, "PAIRS_HELD", 50)  # so that sums are added up in between
    draw = random.Random(1)
    known = [(f"g{number}", "general") for number in range(30)] + [(f"c{number}", "character") for number in range(20)]
    rows: list[Tags | None] = [
        None if draw.random() < 0.1 else
        [(name, draw.choice([0.2, 0.4, 0.6]), category) for name, category in draw.sample(known, draw.randint(0, 20))]
        for _ in range(300)
    ]  # fmt: skip
    floors = {"general": 0.35, "character": 0.5}
    kept = [
        [(name, kind) for name, chance, kind in tags if chance >= floors[kind]] for tags in rows if tags is not None
    ]
    cast = [sorted(name for name, kind in tags if kind == "character") for tags in kept]
    pairs = Counter(pair for names in cast for pair in combinations(names, 2))
    found = count_tags(
        write(tmp_path / "x", rows, group=group), general_threshold=0.35, character_threshold=0.5, most_pairs=10_000
    )
    assert found.general == Counter(name for tags in kept for name, kind in tags if kind == "general")
    assert found.characters == Counter(name for names in cast for name in names)
    assert {(pair.first, pair.second): pair.count for pair in found.pairs} == pairs
    few = count_tags(tmp_path / "x", general_threshold=0.35, character_threshold=0.5, most_pairs=5).pairs
    assert few == found.pairs[:5]
