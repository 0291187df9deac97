from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sote.cluster.errors import SourceError
from sote.data import schema
from sote.train import rows as rows_
from sote.train.rows import Cut, Needs, read_rows

ALL = Needs(latents=True, vqgan=True, pictures=True)


def _changed(curated: Path, folder: Path, **columns: Any) -> Path:
    """A copy of the catalogue with other values: a function of (number, row), or one value for all rows."""
    table = pq.read_table(curated / "catalogue.parquet")
    found = table.to_pylist()
    for number, row in enumerate(found):
        for name, value in columns.items():
            row[name] = value(number, row) if callable(value) else value
    folder.mkdir(exist_ok=True)
    pq.write_table(pa.Table.from_pylist(found, schema=table.schema), folder / "catalogue.parquet", row_group_size=5)
    return folder


@pytest.fixture
def memory() -> Iterator[str]:
    """A folder of fsspec's memory, as its URI."""
    system = fsspec.filesystem("memory")
    yield "memory://rows"
    system.rm("/rows", recursive=True)


def test_rows_are_the_picked_ones_sorted_by_id(curated: Path, tmp_path: Path) -> None:
    rows = read_rows(curated)
    assert rows.id.to_pylist() == [f"{number:064x}" for number in range(22)]
    assert rows.repeat.tolist() == [3] + [1] * 21
    turned = _changed(curated, tmp_path, id=lambda number, _: f"{99 - number:064x}")
    other = read_rows(turned)
    assert other.id.to_pylist() == sorted(other.id.to_pylist())
    assert other.tags.of(21) == rows.tags.of(0)
    assert other.repeat.tolist() == rows.repeat.tolist()[::-1]
    assert [other.buckets[at] for at in other.bucket] == [rows.buckets[at] for at in rows.bucket][::-1]
    assert other.latents is not None
    assert rows.latents is not None
    assert other.latents.offset.tolist() == rows.latents.offset.tolist()[::-1]
    names = [[each.shards[at] for at in each.which] for each in (rows.latents, other.latents)]
    assert names[0] == names[1][::-1]


def test_tags_come_whole_from_every_row_group(curated: Path, tmp_path: Path) -> None:
    rows = read_rows(_changed(curated, tmp_path))  # groups of five rows, each with a dictionary of its own
    for row in range(len(rows)):
        names, groups = rows.tags.of(row)
        assert names == ["best quality", f"{row} shapes", 'The text says "a, b"', "red circle"]
        assert groups == [0, 1, 2, 3]


def test_groups_of_tags_are_read(curated: Path, tmp_path: Path) -> None:
    groups = {3: [0, 1, 2, 1]}
    rows = read_rows(_changed(curated, tmp_path, caption_groups=lambda number, row: groups.get(number, [0, 0, 0, 0])))
    assert rows.tags.of(3)[1] == [0, 1, 2, 1]
    assert rows.tags.of(4)[1] == [0, 0, 0, 0]
    with pytest.raises(SourceError, match="column caption_groups: has not one number for each"):
        read_rows(_changed(curated, tmp_path, caption_groups=[0]))


def test_a_catalogue_of_an_earlier_version_has_every_tag_by_itself(curated: Path, tmp_path: Path) -> None:
    table = pq.read_table(curated / "catalogue.parquet").drop_columns(["caption_groups", "bytes", "offset"])
    pq.write_table(table, tmp_path / "catalogue.parquet")
    rows = read_rows(tmp_path, needs=ALL)
    assert rows.tags.of(2)[1] == [0, 1, 2, 3]
    assert rows.files is not None
    assert rows.files.offset[0].as_py() is None


def test_a_catalogue_may_lie_wherever_fsspec_reaches(curated: Path, memory: str) -> None:
    fsspec.filesystem("memory").pipe("/rows/catalogue.parquet", (curated / "catalogue.parquet").read_bytes())
    assert read_rows(memory).id.equals(read_rows(curated).id)
    with pytest.raises(SourceError, match=r"memory://rows/other: data\.curated: has no catalogue\.parquet"):
        read_rows(f"{memory}/other")
    with pytest.raises(SourceError, match=r"nowhere://a/catalogue\.parquet cannot be read: the protocol nowhere is"):
        read_rows("nowhere://a")


def test_only_what_a_training_needs_is_read_and_asked_for(curated: Path, tmp_path: Path) -> None:
    nothing = {"latent_shard": None, "latent_offset": None, "vqgan_shard": None, "vqgan_offset": None}
    folder = _changed(curated, tmp_path, **nothing)
    rows = read_rows(folder, needs=Needs(pictures=True))
    assert (rows.latents, rows.vqgan) == (None, None)
    assert rows.files is not None
    assert rows.files.crop.shape == (22, 4)
    with pytest.raises(SourceError, match=r"latent_shard: missing in 22 of 22 picked rows; .*data\.encode = true"):
        read_rows(folder)
    with pytest.raises(SourceError, match=r"vqgan_shard: missing in 22 of 22 .*latents\.vqgan_set as data\.set"):
        read_rows(folder, needs=Needs(vqgan=True))
    with pytest.raises(SourceError, match=r"column uri: missing in 22 of 22"):
        read_rows(_changed(curated, tmp_path, uri=None), needs=Needs(pictures=True))


def test_pictures_of_a_run_without_buckets_get_them_by_the_rule_of_curation(curated: Path, tmp_path: Path) -> None:
    sizes = {0: (300, 200), 1: (640, 640), 2: (256, 256)}

    def side(which: int) -> Any:
        return lambda number, _: sizes.get(number, (256, 256))[which]

    folder = _changed(curated, tmp_path, bucket=None, crop=None, width=side(0), height=side(1))
    rows = read_rows(folder, needs=Needs(pictures=True), cut=Cut(resolution=256, step=64))
    assert rows.files is not None
    assert rows.buckets == ("256x256", "256x192")[::-1]
    assert [rows.buckets[at] for at in rows.bucket[:3]] == ["256x192", "256x256", "256x256"]
    assert rows.files.crop[:3].tolist() == [[16, 0, 283, 200], [0, 0, 640, 640], [0, 0, 256, 256]]
    with pytest.raises(SourceError, match="1 of 22 picked rows are smaller than any bucket"):
        read_rows(
            _changed(folder, tmp_path, height=lambda number, _: 63 if number == 4 else 256), needs=Needs(pictures=True)
        )


def test_buckets_of_some_rows_only_are_not_guessed(curated: Path, tmp_path: Path) -> None:
    folder = _changed(curated, tmp_path, bucket=lambda number, row: row["bucket"] if number else None)
    with pytest.raises(SourceError, match="column bucket: missing in 1 of 22"):
        read_rows(folder, needs=Needs(pictures=True))


@pytest.mark.parametrize(
    ("column", "value", "says"),
    [
        ("pick", False, "not one row is picked"),
        ("caption", None, "column caption: missing in 22 of"),
        ("caption", lambda number, row: row["caption"] if number else None, "column caption: missing in 1 of 22"),
        ("caption_tags", None, "column caption_tags: missing in 22 of"),
        ("bucket", None, "column bucket: missing"),
        ("repeat", 0, "repeated less than once"),
    ],
)
def test_a_catalogue_that_cannot_be_trained_on_is_refused(
    curated: Path, tmp_path: Path, column: str, value: object, says: str
) -> None:
    with pytest.raises(SourceError, match=says) as found:
        read_rows(_changed(curated, tmp_path, **{column: value}))
    assert "\n" not in str(found.value)


def test_a_folder_without_a_sound_catalogue_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"has no catalogue\.parquet; run `sote curate`"):
        read_rows(tmp_path)
    (tmp_path / "catalogue.parquet").write_bytes(b"PAR1 and then something else")
    with pytest.raises(SourceError, match=r"catalogue\.parquet: data\.curated: cannot be read") as found:
        read_rows(tmp_path)
    assert "\n" not in str(found.value)


def _with_sets(curated: Path, folder: Path) -> Path:
    """A copy of the catalogue in which rows 0 and 3, and one that is not picked, are of the set `final`."""

    def sets(number: int, row: dict[str, Any]) -> list[str]:
        return ["final"] if number in (0, 3) or not row["pick"] else ["decoder", "other"] if number == 5 else []

    return _changed(curated, folder, sets=sets)


def test_of_a_set_only_its_picked_rows_are_seen_and_each_once(curated: Path, tmp_path: Path) -> None:
    folder = _with_sets(curated, tmp_path)
    rows = read_rows(folder, chosen="final")
    assert rows.id.to_pylist() == [f"{number:064x}" for number in (0, 3)]
    assert rows.repeat.tolist() == [1, 1]  # row 0 is repeated three times in the base run
    assert rows.buckets == ("320x192",)
    assert rows.tags.of(1)[0][1] == "3 shapes"
    assert len(read_rows(folder, chosen="other")) == 1
    assert read_rows(folder).repeat.tolist() == read_rows(curated).repeat.tolist()


def test_a_set_without_rows_is_refused_with_the_sets_that_have_some(curated: Path, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"data\.set: .* 'fnal'; sets with rows: decoder, final, other"):
        read_rows(_with_sets(curated, tmp_path), chosen="fnal")
    with pytest.raises(SourceError, match="sets with rows: none"):
        read_rows(curated, chosen="final")
    table = pq.read_table(curated / "catalogue.parquet")
    pq.write_table(table.drop_columns(["sets"]), tmp_path / "catalogue.parquet")
    with pytest.raises(SourceError, match=r"has no column 'sets'; curate again"):
        read_rows(tmp_path, chosen="final")


def test_each_stage_reads_what_it_learns_from(recipe: Any, tiny: Path) -> None:
    decoder = {"stage": "decoder", "decoder": str(tiny / "decoder")}
    assert Needs.of(recipe()) == Needs(latents=True)
    assert Needs.of(recipe(data={"encode": True})) == Needs(pictures=True)
    assert Needs.of(recipe(model=decoder)) == Needs(vqgan=True, pictures=True)
    assert Needs.of(recipe(model=decoder, data={"encode": True})) == Needs(pictures=True)
    assert Needs.of(recipe(model=decoder, diffusion={"least_encoder_scale": 1.0})) == Needs(latents=True, vqgan=True)


def test_every_column_that_is_read_is_one_of_the_catalogue() -> None:
    known = set(schema.CATALOGUE.names)
    assert {*rows_.ALWAYS, *rows_.LATENTS, *rows_.VQGAN, *rows_.PICTURES, rows_.SETS, *rows_.OPTIONAL} <= known
