"""The passes of captions and selection over a run's folder, without Ray."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from sote.cluster import storage
from sote.cluster.storage import RunFolder
from sote.data import pass_captions, schema, shards
from sote.data.pass_captions import Derive
from sote.data.recipe import CurateRecipe, SelectPart, SetPart, Source
from sote.data.selection import Cutoffs
from sote.data.shards import Work

BEFORE = ("index", "decode", "score", "tag", "duplicates", "text")
SCORES = ((0.95, 0.99), (0.99, 0.99), (0.92, 0.99), (0.5, 0.5), (0.99, 0.985), (0.1, 0.1))


def work_of(root: Path, select: SelectPart | None = None) -> Work:
    sources = (
        Source(name="board", kind="image board", path="a", date_word="oldest", sidecar_tags=True),
        Source(name="pixiv", kind="pixiv", path="b", tags=("drawn",)),
    )
    recipe = CurateRecipe(run=str(root), sources=sources, select=select or SelectPart())
    return Work(recipe, RunFolder(root), {stage: f"digest of {stage}" for stage in (*BEFORE, "caption", "select")})


def made_rows() -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = [
        {
            "row": at,
            "uri": f"{at}.png",
            "source": "board" if at % 2 == 0 else "pixiv",
            "id": f"{at}" * 64,
            "aesthetic_score": aesthetic,
            "quality_score": quality,
            "rating": dict(zip(schema.RATINGS, (0.1, 0.7, 0.1, 0.1), strict=True)),
            "tags": [{"name": "long_hair", "probability": 0.4, "category": "general"}],
            "year": 2023 if at < 2 else None,
            "artist": "Some One",
            "sidecar_tags": ["red_hat", "long_hair"],
        }
        for at, (aesthetic, quality) in enumerate(SCORES)
    ]
    rows[5] |= {"aesthetic_score": None, "quality_score": None, "rating": None, "tags": None}
    rows[5] |= {"decode_error": "decode: truncated"}
    return rows


def made_run(work: Work, *, size: int = 2) -> Work:
    """Commit the earlier stages of a run with `size` rows a shard."""
    made = made_rows()
    parts = [made[at : at + size] for at in range(0, len(made), size)]
    for shard, part in enumerate(parts):
        for stage in BEFORE:
            rows = [row | {"row": at} for at, row in enumerate(part)]
            work.commit(stage, shard, shards.table_of(stage, rows), seconds=0.0)
    storage.commit(work.index_marker, digest=work.digests["index"], shards=len(parts), rows=len(SCORES))
    return work


def captioned(work: Work) -> Work:
    """Commit the captions as the driver does."""
    for shard in work.pending("caption"):
        piece = shards.cells_of(Derive(work.folder, work.recipe)(shards.batch_of({"shard": shard})))
        work.commit("caption", int(piece["shard"]), shards.from_bytes(piece["caption"]), seconds=0.0)
    return work


def selected(work: Work) -> list[dict[str, Any]]:
    pass_captions.select(work)
    tables = [pq.read_table(work.folder.rows("select", shard)) for shard in range(work.shard_count())]
    return pa.concat_tables(tables).to_pylist()


def test_a_shard_is_captioned_from_what_earlier_stages_and_its_source_say(tmp_path: Path) -> None:
    work = captioned(made_run(work_of(tmp_path)))
    rows = [row for shard in range(3) for row in pq.read_table(work.folder.rows("caption", shard)).to_pylist()]
    assert [row["caption"] for row in rows] == [
        "extremely aesthetic, best quality, newest, sensitive, long hair, red hat",
        "extremely aesthetic, best quality, art by Some One, drawn, sensitive, long hair",
        "extremely aesthetic, best quality, oldest, sensitive, long hair, red hat",
        "not displeasing, normal quality, art by Some One, drawn, sensitive, long hair",
        "extremely aesthetic, best quality, oldest, sensitive, long hair, red hat",
        None,
    ]
    assert [row["caption_tags"] is None for row in rows] == [False] * 5 + [True]
    assert [row["words"] and row["words"]["date"] for row in rows] == [
        "newest",
        "newest",
        "oldest",
        None,
        "oldest",
        None,
    ]
    assert [row["row"] for row in rows] == [0, 1] * 3


def test_the_best_of_all_shards_are_repeated_and_named_in_their_sets(tmp_path: Path) -> None:
    part = SelectPart(
        best_most=2, best_repeat=3, sets={"final": SetPart(best=True), "old": SetPart(date_words=("oldest",))}
    )
    rows = selected(captioned(made_run(work_of(tmp_path, part))))
    assert [row["select_repeat"] for row in rows] == [1, 3, 1, 1, 3, 0]
    assert [row["sets"] for row in rows] == [None, ["final"], ["old"], None, ["final", "old"], None]
    assert {row["select_skip"] for row in rows} == {None}


def test_a_selection_continued_for_some_shards_still_looks_at_all_of_them(tmp_path: Path) -> None:
    part = SelectPart(best_most=1, sets={"two": SetPart(most=2)})
    work = captioned(made_run(work_of(tmp_path, part)))
    whole = selected(work)
    assert [row["select_repeat"] for row in whole] == [1, 5, 1, 1, 1, 0]
    written = {shard: work.folder.rows("select", shard).read_bytes() for shard in range(3)}
    captions = {shard: work.folder.rows("caption", shard).stat().st_mtime_ns for shard in range(3)}
    for shard in (1, 2):
        storage.marker(work.folder.rows("select", shard)).unlink()
        work.folder.rows("select", shard).unlink()
    assert work.pending("select") == [1, 2]
    assert selected(work) == whole
    assert {shard: work.folder.rows("select", shard).read_bytes() for shard in range(3)} == written
    assert {shard: work.folder.rows("caption", shard).stat().st_mtime_ns for shard in range(3)} == captions


def test_the_cutoff_is_of_the_whole_run_in_one_shard_too(tmp_path: Path) -> None:
    work = captioned(made_run(work_of(tmp_path, SelectPart(best_most=2)), size=6))
    found = pass_captions.cutoffs(work.folder, work.recipe, work.shard_count())
    assert found.best is not None
    assert found.best.id == "4" * 64


def test_without_a_rule_about_all_rows_no_row_is_read_for_it(tmp_path: Path) -> None:
    assert pass_captions.cutoffs(RunFolder(tmp_path / "absent"), work_of(tmp_path).recipe, 3) == Cutoffs()
