"""The control's data: the same pictures, the same captions, and none with its own."""

from pathlib import Path

import pyarrow.parquet as pq

from sote.train import shuffled
from sote.train.rows import read_rows


def test_every_picked_picture_has_the_caption_of_another(curated: Path, tmp_path: Path) -> None:
    shuffled.make(curated, tmp_path / "out", seed=1)
    before, after = (pq.read_table(folder / "catalogue.parquet") for folder in (curated, tmp_path / "out"))
    assert after.schema.equals(before.schema)
    assert after["id"].equals(before["id"])
    pick = before["pick"].to_pylist()
    old, new = (
        [tuple(tags or ()) for tags, chosen in zip(table["caption_tags"].to_pylist(), pick, strict=True) if chosen]
        for table in (before, after)
    )
    assert sorted(old) == sorted(new)
    assert sum(a == b for a, b in zip(old, new, strict=True)) < len(old) / 2  # pictures may share a caption


def test_it_can_be_trained_on(curated: Path, tmp_path: Path) -> None:
    shuffled.make(curated, tmp_path / "out", seed=1)
    assert len(read_rows(tmp_path / "out")) == len(read_rows(curated))
