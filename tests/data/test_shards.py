"""Shards as units of work: parts of a run that are a dataset each, and rows counted without opening files."""

from pathlib import Path

import pytest
import ray

from sote.cluster import storage
from sote.cluster.storage import RunFolder
from sote.data import shards
from sote.data.recipe import CurateRecipe, Source
from sote.data.shards import Work


def work_of(root: Path, *, shard_rows: int) -> Work:
    source = Source(name="board", kind="image board", path="a")
    recipe = CurateRecipe(run=str(root), sources=(source,), shard_rows=shard_rows)
    return Work(recipe, RunFolder(root), {"index": "digest of index", "decode": "digest of decode"})


def commit(work: Work, *sizes: int) -> None:
    for shard, size in enumerate(sizes):
        rows = [{"row": at, "uri": f"{shard}-{at}.png"} for at in range(size)]
        work.commit("index", shard, shards.table_of("index", rows), seconds=0.0)
    storage.commit(work.index_marker, digest=work.digests["index"], shards=len(sizes), rows=sum(sizes))


def test_waves_hold_every_pending_shard_once_and_in_order() -> None:
    pending = [shard for shard in range(50_000) if shard % 7]
    waves = list(shards.waves(pending, pieces=250))
    assert [shard for wave in waves for shard in wave] == pending
    assert max(map(len, waves)) * 250 <= shards.WAVE_PIECES


def test_a_wave_is_never_of_more_shards_than_can_be_laid_out_nor_of_none() -> None:
    assert [len(wave) for wave in shards.waves(range(2 * shards.WAVE_SHARDS + 1))] == [shards.WAVE_SHARDS] * 2 + [1]
    assert [len(wave) for wave in shards.waves(range(3), pieces=10 * shards.WAVE_PIECES)] == [1, 1, 1]
    assert list(shards.waves([])) == []


def test_a_run_of_six_million_pictures_is_one_wave() -> None:
    assert len(list(shards.waves(range(1500), pieces=4000 // 16))) == 1


def test_rows_of_shards_that_are_cut_alike_are_counted_without_opening_a_file(tmp_path: Path) -> None:
    work = work_of(tmp_path, shard_rows=3)
    commit(work, 3, 3, 2)
    for shard in range(3):
        work.folder.rows("index", shard).write_bytes(b"is not opened")
    assert [work.rows_in(shard) for shard in range(3)] == [3, 3, 2]


def test_rows_of_shards_that_are_cut_otherwise_are_read_from_their_files(tmp_path: Path) -> None:
    work = work_of(tmp_path, shard_rows=1000)
    commit(work, 1, 4, 2)
    assert [work.rows_in(shard) for shard in range(3)] == [1, 4, 2]


def test_no_row_is_counted_before_the_index_is_whole(tmp_path: Path) -> None:
    work = work_of(tmp_path, shard_rows=3)
    rows = [{"row": at, "uri": f"{at}.png"} for at in range(2)]
    work.commit("index", 0, shards.table_of("index", rows), seconds=0.0)
    assert work.rows_in(0) == 2  # of its file: how many there will be is not known yet


@pytest.mark.usefixtures("local_ray")
def test_waves_through_ray_give_what_one_dataset_gives() -> None:
    def squared(batch: dict[str, list[int]]) -> dict[str, object]:
        return shards.batch_of({"shard": int(batch["shard"][0]), "square": int(batch["shard"][0]) ** 2})

    def made(pending: list[int]) -> list[dict[str, object]]:
        dataset: ray.data.Dataset = shards.each(pending).map_batches(squared, batch_size=1)
        return list(shards.stream(dataset))

    pending = [3, 1, 4, 1, 5, 9, 2, 6]
    waved = [cells for wave in shards.waves(pending, pieces=shards.WAVE_PIECES // 3) for cells in made(list(wave))]
    assert sorted(int(cells["square"]) for cells in waved) == sorted(shard**2 for shard in pending)
    assert sorted(map(str, waved)) == sorted(map(str, made(pending)))
