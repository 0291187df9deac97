"""The catalogue: every row once, picked or with its first reason, in row groups that can be streamed."""

from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from sote.cluster import storage
from sote.cluster.storage import RunFolder
from sote.data import catalogue, schema, shards
from sote.data.recipe import CurateRecipe, Source
from sote.data.shards import Work

STAGES = ("index", "decode", "score", "tag", "duplicates", "text", "caption", "select", "latents")
TAGS = [{"name": "long_hair", "probability": 0.25, "category": "general"}]
SOUND = {"select_repeat": 1, "caption": "a, b", "caption_tags": ["a", "b"], "tags": TAGS, "crop": [0, 1, 2, 3]}


def made_run(root: Path, parts: list[list[dict[str, Any]]]) -> Work:
    """A run whose shards hold these rows, committed in every stage."""
    recipe = CurateRecipe(run=str(root), sources=(Source(name="board", path="a"),))
    work = Work(recipe, RunFolder(root), {stage: stage for stage in STAGES})
    for shard, part in enumerate(parts):
        rows = [
            {"id": f"{shard}{at}", "uri": f"{shard}/{at}", "source": "board", "select_repeat": 0, **row, "row": at}
            for at, row in enumerate(part)
        ]
        for stage in STAGES:
            work.commit(stage, shard, shards.table_of(stage, rows), seconds=0.0)
    storage.commit(work.index_marker, digest="index", shards=len(parts), rows=sum(map(len, parts)))
    return work


def test_each_row_is_picked_or_has_the_first_error_or_else_the_first_skip(tmp_path: Path) -> None:
    rows = [
        SOUND | {"select_repeat": 5, "sets": ["final"]},
        {"decode_error": "decode: truncated", "index_skip": "index: no picture", "text_error": "text: later"},
        {"duplicates_skip": "duplicates: copy", "select_skip": "select: later"},
        SOUND | {"latents_error": "latents: NaN", "sets": ["final"]},
        SOUND | {"latents_skip": "latents: smaller than any bucket", "sets": ["final", "decoder"]},
        SOUND,
    ]
    count = catalogue.write(made_run(tmp_path, [rows[:4], rows[4:]]))
    table = pq.read_table(tmp_path / "catalogue.parquet")
    assert table.schema.equals(schema.CATALOGUE)
    found = table.to_pylist()
    ends = [(row["pick"], row["repeat"], row["error"], row["skip_reason"], row["sets"]) for row in found]
    assert ends == [
        (True, 5, None, None, ["final"]),
        (False, 0, "decode: truncated", None, None),
        (False, 0, None, "duplicates: copy", None),
        (False, 0, "latents: NaN", None, None),
        (False, 0, None, "latents: smaller than any bucket", None),
        (True, 1, None, None, None),
    ]
    assert [row["uri"] for row in found] == ["0/0", "0/1", "0/2", "0/3", "1/0", "1/1"]
    assert (found[0]["tags"], found[0]["caption_tags"], found[0]["crop"]) == (TAGS, ["a", "b"], [0, 1, 2, 3])
    assert (count.rows, count.picked, count.skipped, count.failed) == (6, 2, 2, 2)
    assert count.errors == {"decode: truncated": 1, "latents: NaN": 1}
    assert str(count) == "6 files: 2 picked, 2 skipped, 2 failed"


def test_shards_are_put_together_to_row_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalogue, "GROUP_ROWS", 3)
    work = made_run(tmp_path, [[SOUND] * 2] * 3 + [[SOUND]])
    assert catalogue.write(work).picked == 7
    facts = pq.read_metadata(tmp_path / "catalogue.parquet")
    assert [facts.row_group(at).num_rows for at in range(facts.num_row_groups)] == [4, 3]
    first = (tmp_path / "catalogue.parquet").read_bytes()
    catalogue.write(work)
    assert (tmp_path / "catalogue.parquet").read_bytes() == first


def test_names_that_repeat_are_written_once_and_values_that_do_not_get_no_dictionary(tmp_path: Path) -> None:
    catalogue.write(made_run(tmp_path, [[SOUND]]))
    group = pq.read_metadata(tmp_path / "catalogue.parquet").row_group(0)
    columns = {group.column(at).path_in_schema: group.column(at) for at in range(group.num_columns)}
    with_dictionary = {path for path, column in columns.items() if column.has_dictionary_page}
    assert {"source", "tags.list.element.name", "caption_tags.list.element"} <= with_dictionary
    assert not with_dictionary & {"id", "uri", "caption", "tags.list.element.probability", "aesthetic_score"}


def test_a_run_without_a_row_has_an_empty_catalogue(tmp_path: Path) -> None:
    work = made_run(tmp_path, [[]])
    assert catalogue.write(work).rows == 0
    assert pq.read_table(tmp_path / "catalogue.parquet").schema.equals(schema.CATALOGUE)
