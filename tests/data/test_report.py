"""The curation's part of the report: counts that add up, pictures that may be broken, chosen always alike."""

import hashlib
import json
import re
import tarfile
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from sote.cluster import storage
from sote.cluster.charts import Band
from sote.cluster.errors import RunFolderError
from sote.cluster.storage import RunFolder
from sote.data import gallery, report, report_counts, schema, survey
from sote.data.caption_profile import load_profile
from sote.data.gallery import Album
from sote.data.recipe import CurateRecipe, DuplicatesPart, Source
from sote.data.survey import Limits

KEEP = DuplicatesPart().keep
RATING = {"general": 0.9, "sensitive": 0.1, "questionable": 0.0, "explicit": 0.0}
EXPLICIT = {"general": 0.1, "sensitive": 0.1, "questionable": 0.2, "explicit": 0.6}


def picked(folder: Path, number: int, **other: Any) -> dict[str, Any]:
    """A row that is trained on, with its file."""
    path = folder / f"{number}.png"
    Image.new("RGB", (64, 48), (number * 40 % 256, 90, 120)).save(path)
    row: dict[str, Any] = {
        "id": hashlib.sha256(path.read_bytes()).hexdigest(), "uri": str(path), "source": "board", "format": "png",
        "width": 64, "height": 48, "year": 2020 + number % 3, "aesthetic_score": 0.85, "quality_score": 0.99,
        "rating": RATING, "pick": True, "repeat": 1, "bucket": "512x512", "latent_shard": "a",
        "words": {"aesthetic": "very aesthetic", "quality": "best quality", "date": "recent", "rating": "general"},
        "caption_tags": ["very aesthetic", "best quality", "<script>alert(1)</script>"],
        "tags": [tag("red_circle", 0.9), tag("blue_star", 0.34), tag("knight", 0.45, "character")],
    }  # fmt: skip
    return row | {"caption": ", ".join(row["caption_tags"])} | other


def tag(name: str, probability: float, category: str = "general") -> dict[str, Any]:
    return {"name": name, "probability": probability, "category": category}


def aside(folder: Path, name: str, data: bytes | None, **reason: str) -> dict[str, Any]:
    """A row that is not trained on; without `data` its file is gone."""
    if data is not None:
        (folder / name).write_bytes(data)
    return {"id": None, "uri": str(folder / name), "source": "pixiv", "pick": False, "repeat": 0} | reason


def rows(folder: Path) -> list[dict[str, Any]]:
    kept = picked(folder, 1, duplicate_group=7, duplicate_distance=0)
    copy = picked(folder, 2, duplicate_group=7, duplicate_distance=2, format="jpeg", pick=False, repeat=0,
                  skip_reason="duplicates: near-copy")  # fmt: skip
    return [
        kept | {"keeper": kept["id"]},
        copy | {"keeper": kept["id"]},
        picked(folder, 3, repeat=5, rating=EXPLICIT, aesthetic_score=None, quality_score=float("nan")),
        picked(folder, 4, pick=False, repeat=0, skip_reason="select: aesthetic score below 0.9", year=None),
        aside(folder, "half.png", b"\x89PNG\r\n\x1a\n cut", error="decode: broken data"),
        aside(folder, "gone.png", None, error="decode: file vanished"),
        aside(folder, "gone2.png", None, error="decode: file vanished"),
        aside(folder, "clip.mp4", b"no picture", skip_reason="index: not a picture file (.mp4)"),
        aside(folder, "small.png", b"", skip_reason="decode: fewer than 768000 pixels"),
        aside(folder, "odd.png", b"", error="tag: NaN from the model", skip_reason="duplicates: both"),
    ]  # fmt: skip


def write_run(root: Path, table_rows: list[dict[str, Any]]) -> RunFolder:
    source = Source(name="board", path=str(root))
    with storage.open_run(
        CurateRecipe(run=str(root), sources=(source,)), verb="curate", command="sote curate x"
    ) as folder:
        storage.write_table(folder.catalogue, pa.Table.from_pylist(table_rows, schema=schema.CATALOGUE))
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    (tmp_path / "pictures").mkdir()
    return write_run(tmp_path / "run", rows(tmp_path / "pictures"))


def test_every_row_leaves_the_river_once_and_the_counts_add_up(folder: RunFolder) -> None:
    found = survey.survey(folder, Limits())
    steps = report.steps_of(found)
    assert [step.count for step in steps] == [10, 6, 5, 4, 3, 2]
    assert [step.name for step in steps[1:]] == [name for name, _ in report.STEPS]
    assert steps[-1].count == found.picked
    assert found.picked + sum(found.reasons().values()) == found.rows == 10
    assert found.reasons("pixiv")["decode: file vanished"] == 2
    assert found.reasons("board")["decode: file vanished"] == 0
    assert found.images == 6
    assert found.repeats == {1: 1, 5: 1}
    text = report.funnel(found).body
    assert "10 files in = 2 picked + 8 set aside for 7 reasons." in text
    assert "None is missing." in text
    assert re.search(r"<td><b>all</b></td><td>.*?</td>(<td class=\"n\">\d+</td>){7}", text)


def test_a_row_without_any_reason_is_said_to_be_a_fault(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", [aside(tmp_path, "x.png", None)])
    found = survey.survey(folder, Limits())
    assert found.reasons() == {survey.UNEXPLAINED: 1}
    assert "1 have no reason" in report.funnel(found).body


def test_counts_do_not_depend_on_how_the_catalogue_is_cut(folder: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = survey.survey(folder, Limits(samples=1, refused=3))
    monkeypatch.setattr(survey, "BATCH_ROWS", 1)
    pieces = survey.survey(folder, Limits(samples=1, refused=3))
    for name in (
        *("rows", "outcomes", "repeats", "sets", "words", "ratings", "years", "undated", "distances", "group_count"),
        *("grouped", "samples", "refused", "groups", "ends", "captions"),
    ):
        assert getattr(whole, name) == getattr(pieces, name), name
    assert whole.scores["aesthetic_score"].every.tolist() == pieces.scores["aesthetic_score"].every.tolist()


def test_tags_are_counted_from_the_threshold_of_their_category_on(folder: RunFolder) -> None:
    assert survey.survey(folder, Limits()).tags.general == {"red_circle": 4}
    low = Limits(general_threshold=0.3, character_threshold=0.4)
    assert survey.survey(folder, low).tags.general == {"red_circle": 4, "blue_star": 4}
    assert survey.survey(folder, low).tags.characters == {"knight": 4}


def test_scores_that_are_missing_are_in_no_bin(folder: RunFolder) -> None:
    found = survey.survey(folder, Limits())
    scores = found.scores["aesthetic_score"]
    assert (scores.every.sum(), scores.picked.sum()) == (3, 1)
    assert scores.every[42] == 3  # 0.85 of 50 bins
    assert found.scores["quality_score"].every.sum() == 3
    assert found.ratings == {"general": 3, "sensitive": 0, "questionable": 0, "explicit": 1}
    assert found.years == {2021: 1, 2022: 1, 2020: 1}


def test_bands_of_a_profile_meet_and_span_all_scores() -> None:
    scale = load_profile("sote-v1").quality
    bands = report_counts.bands(scale, survey.Counter({"best quality": 3}))
    assert bands[0] == Band("worst quality", 0.0, 0.025, 0)
    assert bands[-1] == Band("best quality", 0.98, 1.0, 3)
    assert all(low.high == high.low for low, high in pairwise(bands))


def test_samples_are_those_of_the_smallest_ids_and_refused_rows_come_from_each_reason(folder: RunFolder) -> None:
    found = survey.survey(folder, Limits(samples=1, refused=7))
    ids = [row["id"] for row in pq.read_table(folder.catalogue).to_pylist() if row["pick"]]
    assert [row["id"] for row in found.samples] == [min(ids)]
    assert {reason for reason, _ in found.refused_rows()} == set(found.reasons())
    assert len(found.refused_rows()) == 7


def test_a_group_shows_its_keeper_first_the_distance_and_why_the_copy_goes(folder: RunFolder) -> None:
    found = survey.survey(folder, Limits())
    (group,) = found.groups
    assert [(Path(row["uri"]).name, row["duplicate_distance"]) for row in group.members] == [("1.png", 0), ("2.png", 2)]
    assert (found.group_count, found.grouped, found.distances) == (1, 2, {2: 1})
    text = gallery.duplicates(found, Album(), keep=KEEP).body
    assert text.index("kept") < text.index("2 bits away")
    assert "near-copy: the other is lossless" in text


def test_the_reason_to_keep_is_the_first_key_in_which_two_rows_differ_by_a_step() -> None:
    row = {"width": 1000, "height": 1000, "format": "png", "aesthetic_score": 0.5, "quality_score": 0.5}
    larger = row | {"width": 1300}
    assert gallery.why_kept(larger, row, KEEP) == "the other is larger"
    assert gallery.why_kept(larger, row, ("score", "size")) == "the other is larger"
    better = row | {"width": 1001, "aesthetic_score": 0.55}
    assert gallery.why_kept(better, row, KEEP) == "the other has the higher scores"
    assert gallery.why_kept(row, row, KEEP) == "the other is before it by bytes, or by what follows that in keep"
    assert gallery.why_kept(row, row, ("size",)) == "the other has the smaller id"


def test_the_groups_to_look_at_are_the_farthest_apart_and_the_largest(tmp_path: Path) -> None:
    def member(group: int, distance: int, number: int) -> dict[str, Any]:
        name = f"{group}-{number}"
        return {"id": name, "uri": name, "source": "board", "pick": not distance, "keeper": f"{group}-0",
                "duplicate_group": group, "duplicate_distance": distance}  # fmt: skip

    near = [member(group, bits, number) for group in range(8) for number, bits in enumerate((0, group))]
    many = [member(9, 1 if number else 0, number) for number in range(5)]
    folder = write_run(tmp_path / "run", [*many, *reversed(near)])
    found = survey.survey(folder, Limits(groups=3, members=3))
    assert [(group.number, group.size) for group in found.groups] == [(7, 2), (6, 2), (9, 5)]
    assert [row["id"] for row in found.groups[0].members] == ["7-0", "7-1"]
    assert [row["id"] for row in found.groups[2].members] == ["9-0", "9-1", "9-2"]


def test_of_two_files_with_the_same_bytes_only_the_one_that_was_not_skipped_is_the_keeper() -> None:
    same = {"id": "a", "keeper": "a", "uri": "2", "skip_reason": None}
    assert survey.is_kept(same)
    assert not survey.is_kept(same | {"skip_reason": "duplicates: same bytes"})


def test_the_ends_of_a_word_are_its_highest_and_lowest_scores_without_copies(tmp_path: Path) -> None:
    def scored(number: int, score: float | None, **other: Any) -> dict[str, Any]:
        words = {"aesthetic": "aesthetic", "quality": None, "date": None, "rating": None}
        return {"id": f"{number:02}", "uri": str(number), "source": "board", "pick": True, "words": words,
                "aesthetic_score": score} | other  # fmt: skip

    rows = [scored(number, score) for number, score in enumerate((0.75, 0.72, 0.75, 0.71, 0.79, None))]
    rows += [scored(6, 0.799, pick=False, skip_reason="duplicates: near-same as the keeper")]
    rows += [scored(7, 0.701, pick=False, skip_reason="select: aesthetic score below 0.8")]
    folder = write_run(tmp_path / "run", rows)
    (ends,) = survey.survey(folder, Limits(ends=2)).ends.values()
    assert ends.count == 6
    assert [row["id"] for row in ends.highest] == ["04", "00"]  # 00 and 02 are equal: the smaller id
    assert [row["id"] for row in ends.lowest] == ["03", "07"]
    (ends,) = survey.survey(folder, Limits(ends=4)).ends.values()
    assert [row["id"] for row in [*ends.highest, *ends.lowest]] == ["04", "00", "02", "01", "03", "07"]


def test_pictures_in_a_tar_are_shown_by_the_place_that_the_index_knows(tmp_path: Path) -> None:
    Image.new("RGB", (64, 48), "teal").save(tmp_path / "x.png")
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        tar.add(tmp_path / "x.png", arcname="deep/x.png")
    row = {"id": "a", "uri": f"tar://deep/x.png::{tmp_path / 'x.tar'}", "source": "board", "pick": True}
    folder = write_run(tmp_path / "run", [aside(tmp_path, "gone.png", None), row])
    place = {"uri": row["uri"], "source": "board", "shared_stem": True, "offset": 512, "bytes": 5}
    index = {name: [None, place[name]] for name in place}
    storage.write_table(folder.rows("index", 0), pa.table(index))
    found = survey.survey(folder, Limits())
    assert found.index.shared_stems == {"board": 1}
    assert (found.samples[0]["offset"], found.samples[0]["bytes"]) == (512, 5)
    assert "not a picture" in gallery.samples(found, Album()).body  # five bytes are what the index says
    found.samples[0] |= {"offset": None, "bytes": None}
    assert 'alt="x.png"' in gallery.samples(found, Album()).body
    assert "another picture in their folder: 1 (board 1)" in report.funnel(found).body


def test_a_catalogue_of_another_version_is_refused_in_one_line(folder: RunFolder) -> None:
    storage.write_table(folder.catalogue, pq.read_table(folder.catalogue).drop_columns(["sets"]))
    with pytest.raises(RunFolderError, match=r"has no column 'sets'.*run `sote curate` again") as raised:
        report.chapter(folder)
    assert "\n" not in str(raised.value)


def test_captions_are_escaped_and_explicit_pictures_are_veiled(folder: RunFolder) -> None:
    found = survey.survey(folder, Limits())
    text = gallery.samples(found, Album()).body
    assert "<script" not in text
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in text
    assert "<b>very aesthetic</b>" in text
    assert text.count('class="veiled"') == 1
    strip = gallery.strip(found, Album())
    assert strip is not None
    assert strip.count("<img") == 1


def test_broken_and_vanished_files_are_placeholders_that_say_why(folder: RunFolder) -> None:
    found = survey.survey(folder, Limits())
    Path(found.samples[0]["uri"]).unlink()
    assert gallery.samples(found, Album()).body.count("<span>the file is gone</span>") == 1
    text = gallery.refused(found, Album()).body
    assert text.count("<span>the file is gone</span>") == 2
    assert text.count("<span>empty file</span>") == 2
    assert all(reason in text for reason in found.reasons())


def test_a_run_without_a_catalogue_shows_its_times_only(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    assert report.chapter(folder) is None
    lines = [("decode", 0, 4.0), ("score", 0, 8.0), ("decode", 1, 1.0), ("decode", 0, 2.0)]  # shard 0 was done again
    common = {"time": 1.0, "kind": "stage", "rows": 10, "failed": 1}
    found = [common | {"stage": stage, "shard": shard, "seconds": seconds} for stage, shard, seconds in lines]
    folder.metrics.write_text("".join(json.dumps(line) + "\n" for line in found))
    assert report.stage_times(folder) == {
        "decode": {"rows": 20, "failed": 2, "seconds": 3.0}, "score": {"rows": 10, "failed": 1, "seconds": 8.0},
    }  # fmt: skip
    chapter = report.chapter(folder)
    assert chapter is not None
    assert [section.key for section in chapter.sections] == ["time"]
    assert "3.0 s · 6.7 rows/s" in chapter.sections[0].body


def test_an_empty_catalogue_gives_every_section_a_sentence(tmp_path: Path) -> None:
    chapter = report.chapter(write_run(tmp_path / "run", []))
    assert chapter is not None
    assert "0 files in = 0 picked + 0 set aside" in chapter.sections[0].body
    assert [section.key for section in chapter.sections if not section.body] == []
    assert sum('class="nothing"' in section.body for section in chapter.sections) >= 7
    assert chapter.strip is None
