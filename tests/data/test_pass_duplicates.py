"""The pass over all shards: what it reads, what it writes, over Ray and alone."""

import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from sote.cluster import storage
from sote.cluster.errors import RunFailed
from sote.cluster.storage import RunFolder
from sote.data import bands, pass_duplicates, schema, shards
from sote.data.dedup import Bytes, Ints
from sote.data.recipe import CurateRecipe, DuplicatesPart, Source
from sote.data.shards import Row, Work

SHARD_ROWS = 3
WRITTEN = [name for name in schema.written_by("duplicates").names if name != "row"]


def bits(*flipped: int) -> bytes:
    """A hash of half ones, with some bits flipped."""
    pattern = np.random.default_rng(0).permutation(256) < 128
    pattern[list(flipped)] ^= True
    return np.packbits(pattern).tobytes()


def thumb(seed: int) -> bytes:
    return np.random.default_rng(seed).integers(0, 256, 768, dtype=np.uint8).tobytes()


def row(name: str, **facts: Any) -> Row:
    """A sound row; without more facts, one with a picture like all others but other pixels."""
    sound = {
        "id": name.ljust(64, "0"),
        "pixel_id": facts.get("pixels", name).ljust(64, "0"),
        "phash": bits(),
        "czkawka": bits(),
        "thumb": thumb(0),
        "thumb_deviation": 70.0,
        "width": 1000,
        "height": 1000,
        "format": "jpeg",
        "bytes": 1000,
        "aesthetic_score": 0.5,
        "quality_score": 0.5,
    }
    return sound | facts


def work_of(folder: Path, rows: list[Row], part: DuplicatesPart | None = None) -> Work:
    """A run that was indexed, decoded and scored."""
    recipe = CurateRecipe(run=str(folder), sources=(Source(name="a", path="a"),), duplicates=part or DuplicatesPart())
    digests = dict.fromkeys(("index", "decode", "score"), "same") | {"duplicates": str(part)}
    work = Work(recipe, RunFolder(folder), digests)
    pieces = [rows[start : start + SHARD_ROWS] for start in range(0, len(rows), SHARD_ROWS)]
    for stage in ("index", "decode", "score"):
        for shard, piece in enumerate(pieces):
            numbered = [each | {"row": place} for place, each in enumerate(piece)]
            work.commit(stage, shard, shards.table_of(stage, numbered), seconds=0.0)
    storage.commit(work.index_marker, digest="same", shards=len(pieces), rows=len(rows))
    return work


def found(folder: Path, rows: list[Row], part: DuplicatesPart | None = None) -> list[Row]:
    """What the pass writes about each row."""
    work = work_of(folder, rows, part)
    pass_duplicates.run(work)
    assert not work.pending("duplicates")
    return [each for shard in range(work.shard_count()) for each in work.read(shard, WRITTEN)]


def test_a_group_over_three_shards_keeps_the_best_and_says_why_each_other_goes(tmp_path: Path) -> None:
    rows = found(
        tmp_path,
        [
            row("a"),
            row("b", phash=bits(1, 2, 3), width=2000),
            row("c", phash=bits(*range(40)), thumb=thumb(1)),
            row("d", pixels="b", phash=bits(1, 2, 3), bytes=9000),
            row("e", thumb=thumb(2)),
            row("f"),
            row("b", phash=bits(1, 2, 3), width=2000),
        ],
    )
    columns = ("duplicate_group", "keeper", "duplicate_distance", "duplicates_skip")
    b = "b".ljust(64, "0")
    assert [tuple(each[column] for column in columns) for each in rows] == [
        (0, b, 3, "duplicates: near-same as the keeper"),
        (0, b, 0, None),
        (None, None, None, None),
        (0, b, 0, "duplicates: same pixels as the keeper"),
        (None, None, None, None),
        (0, b, 3, "duplicates: near-same as the keeper"),
        (0, b, 0, "duplicates: same file as the keeper"),
    ]


def test_the_keeper_inherits_and_all_others_have_their_own(tmp_path: Path) -> None:
    rows = found(
        tmp_path,
        [
            row("a", post_date="2015-03-04", post_characters=["one", "two"], post_tags=["x"]),
            row("b", width=2000, post_date="2019", post_tags=["y", "x, {z}"], post_series=[]),
            row("c", phash=bits(*range(40)), post_date="2001-02-03", post_tags=["alone"]),
            row("d", pixels="b", width=2000, bytes=9000, post_characters=["two", "three"]),
            row("e", post_date="nobody knows", post_tags=["x", "w"]),
            row("f", thumb=thumb(2), width=3000),
        ],
    )
    columns = ("date", "year", "characters", "series", "sidecar_tags")
    assert [tuple(each[column] for column in columns) for each in rows] == [
        ("2015-03-04", 2015, ["one", "two"], None, ["x"]),
        ("2015-03-04", 2015, ["one", "two", "three"], [], ["y", "x, {z}", "x", "w"]),
        ("2001-02-03", 2001, None, None, ["alone"]),
        (None, None, ["two", "three"], None, None),
        ("nobody knows", None, None, None, ["x", "w"]),
        (None, None, None, None, None),
    ]


def test_of_one_year_the_known_day_is_inherited_and_an_earlier_year_before_it(tmp_path: Path) -> None:
    dates = ["2019", "2019-05-01", "2020-01-01"]
    for place, more in enumerate([[], ["2018"]]):
        rows = [row(f"a{number}", post_date=date, width=1000 - number) for number, date in enumerate([*dates, *more])]
        kept = [each for each in found(tmp_path / str(place), rows) if each["duplicates_skip"] is None]
        assert [(each["date"], each["year"]) for each in kept] == [("2018", 2018) if more else ("2019-05-01", 2019)]


def test_rows_that_failed_or_are_no_pictures_take_no_part_but_have_their_date(tmp_path: Path) -> None:
    reasons = {
        "index_error": "index: a",
        "decode_error": "decode: b",
        "decode_skip": "decode: c",
        "index_skip": "index: d",
    }
    nothing = dict.fromkeys(("id", "pixel_id", "phash", "thumb", "thumb_deviation", "width", "height", "format"))
    rows = found(
        tmp_path,
        [
            row("a", post_date="2014"),
            *(row(name, pixels="a", post_date="2013", **{name: reason}) for name, reason in reasons.items()),
            row("b") | nothing | {"decode_error": "decode: broken", "post_date": "2012-01-01"},
        ],
    )
    assert {each["duplicate_group"] for each in rows} == {None}
    assert [each["year"] for each in rows] == [2014, 2013, 2013, 2013, 2013, 2012]


def test_flat_pictures_are_the_same_by_their_pixels_only(tmp_path: Path) -> None:
    flat = {"thumb_deviation": 1.9}
    rows = [row("a", **flat), row("b", **flat), row("c", pixels="a", **flat), row("d", thumb_deviation=2.0), row("e")]
    assert [each["keeper"] and each["keeper"][0] for each in found(tmp_path, rows)] == [
        "a",
        None,
        "a",
        "d",
        "d",
    ]


def test_a_deviation_that_is_not_known_is_taken_from_the_thumbnail(tmp_path: Path) -> None:
    plain = bytes([100, 110, 120]) * 256
    rows = [row("a", thumb=plain), row("b", thumb=plain), row("c"), row("d")]
    for each in rows:
        each["thumb_deviation"] = None
    assert [each["duplicate_group"] for each in found(tmp_path, rows)] == [None, None, 0, 0]


def test_with_the_other_hash_nearly_empty_ones_are_not_compared(tmp_path: Path) -> None:
    hashes = [
        bits(),
        bits(3),
        bytes(32),
        bytes(32),
        b"\xff" * 32,
        b"\xff" * 32,
        b"\xff" * 29 + bytes(3),
        b"\xff" * 29 + bytes(3),
    ]
    names = "abcdef01"
    rows = [
        row(name, czkawka=each, phash=thumb(number)[:32])
        for number, (name, each) in enumerate(zip(names, hashes, strict=True))
    ]
    part = DuplicatesPart(hash="czkawka", radius=5, thumbs=False)
    assert [each["duplicate_group"] for each in found(tmp_path, rows, part)] == [0, 0] + [None] * 6


def test_a_run_without_the_hash_that_the_recipe_asks_for_is_said(tmp_path: Path) -> None:
    work = work_of(tmp_path, [row("a", czkawka=None)], DuplicatesPart(hash="czkawka"))
    with pytest.raises(RunFailed, match=r"^duplicates: shard 0 was decoded without the hash 'czkawka'"):
        pass_duplicates.run(work)


def test_without_thumbnails_every_pair_within_the_radius_counts(tmp_path: Path) -> None:
    rows = [row("a"), row("b", phash=bits(1), thumb=thumb(1)), row("c", phash=bits(*range(2, 10)), thumb=thumb(2))]
    assert [each["keeper"] for each in found(tmp_path / "with", rows)] == [None] * 3
    part = DuplicatesPart(thumbs=False)
    assert [each["duplicate_distance"] for each in found(tmp_path / "without", rows, part)] == [0, 1, 8]


def test_only_shards_that_are_not_committed_are_written_and_as_before(tmp_path: Path) -> None:
    work = work_of(tmp_path, [row(f"{number:x}", phash=bits(*range(number % 3))) for number in range(10)])
    pass_duplicates.run(work)
    files = [work.folder.rows("duplicates", shard) for shard in range(work.shard_count())]
    before = [(path.read_bytes(), path.stat().st_mtime_ns) for path in files]
    storage.marker(files[2]).unlink()
    pass_duplicates.run(work)
    after = [(path.read_bytes(), path.stat().st_mtime_ns) for path in files]
    assert [one[0] for one in before] == [one[0] for one in after]
    assert [one == other for one, other in zip(before, after, strict=True)] == [True, True, False, True]
    assert pq.read_schema(files[0]).equals(schema.written_by("duplicates"))
    assert not [path.name for path in tmp_path.iterdir() if path.is_file() and path.name != "metrics.jsonl"]


def hashes_with_copies(count: int) -> Bytes:
    rng = np.random.default_rng(0)
    hashes = rng.integers(0, 256, (count, 32), dtype=np.uint8)
    hashes[: count // 2, :31] = hashes[count // 2 : count // 2 * 2, :31]
    return hashes


def test_bands_searched_by_ray_give_the_same_pairs_though_a_worker_is_killed(
    tmp_path: Path, local_ray: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    hashes = hashes_with_copies(2000)
    alone = pass_duplicates.near_pairs(hashes, radius=2)
    assert len(alone) > 100
    search, folder = bands.band_pairs, str(tmp_path)

    def deadly(hashes_UB: Bytes, *, band: int, radius: int) -> Ints:
        found = search(hashes_UB, band=band, radius=radius)
        tried = f"{folder}/{band}"
        if band == 1 and not os.path.exists(tried):  # noqa: PTH110
            os.close(os.open(tried, os.O_CREAT))
            os.kill(os.getpid(), signal.SIGKILL)
        os.close(os.open(f"{tried} done", os.O_CREAT))
        return found

    monkeypatch.setattr(pass_duplicates, "RAY_ROWS", 0)
    monkeypatch.setattr(bands, "band_pairs", deadly)
    assert pass_duplicates.near_pairs(hashes, radius=2).tolist() == alone.tolist()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0 done", "1", "1 done", "2 done"]
