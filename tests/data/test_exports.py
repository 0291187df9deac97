import hashlib
import io
import json
import shutil
import tarfile
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from sote.cluster import storage
from sote.cluster.errors import RunFailed, RunFolderError, SourceError, UserError
from sote.data import export_pictures, exports, places, schema
from sote.data.decode import open_picture
from sote.data.shards import table_of

WORDS = {"aesthetic": "very aesthetic", "quality": "best quality", "date": "newest", "rating": "sfw"}
TAGS = ["very aesthetic", "best quality", "newest", "1girl", 'The text says "a, b"', "^_^"]
SHAPES = [(64, 48), (48, 64), (40, 40)]


def encoded(number: int, form: str) -> bytes:
    """A picture as a file; `form` says what is special about it."""
    random = np.random.default_rng(number)
    width, height = SHAPES[number % 3]
    image = Image.fromarray(random.integers(0, 256, (height, width, 3), dtype=np.uint8))
    made, more = io.BytesIO(), {}
    if form in ("see-through", "opaque"):
        image.putalpha(Image.new("L", image.size, 90 if form == "see-through" else 255))
    if form == "turned":
        more["exif"] = Image.Exif()
        more["exif"][export_pictures.ORIENTATION] = 6
    image.save(made, {"turned": "JPEG", "jpeg": "JPEG", "gif": "GIF"}.get(form, "PNG"), **more)
    return made.getvalue()


FORMS = ("png", "jpeg", "gif", "see-through", "opaque", "turned", "in a tar", "not picked", "png")


def write_run(folder: Path) -> Path:
    """A run folder as a curation leaves it: a row for each of FORMS; row 1 is repeated five times, rows 1 and 6 are of
    the set `final`."""
    pictures, rows = folder / "pictures", []
    pictures.mkdir(parents=True)
    with tarfile.open(folder / "more.tar", "w") as tar:
        for number, form in enumerate(FORMS):
            data = encoded(number, form)
            width, height = SHAPES[number % 3][:: -1 if form == "turned" else 1]
            row: dict[str, Any] = {"row": number, "bytes": len(data), "source": "s", "width": width, "height": height}
            row |= {
                "id": hashlib.sha256(data).hexdigest(),
                "format": open_picture(data, export_pictures.ANY_PICTURE).format,
            }
            if form == "in a tar":
                member = tarfile.TarInfo("a/b.png")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
                row |= {"uri": places.in_tar("a/b.png", str(folder / "more.tar")), "offset": 512}  # behind its header
            else:
                (pictures / f"{number}.img").write_bytes(data)
                row["uri"] = str(pictures / f"{number}.img")
            row |= {"caption": ", ".join(TAGS), "caption_tags": TAGS, "words": WORDS, "aesthetic_score": 0.5}
            row |= {"tags": [{"name": "1girl", "probability": 0.75, "category": "general"}], "year": 2024}
            row |= {"pick": form != "not picked", "repeat": 5 if number == 1 else int(form != "not picked")}
            row |= {"bucket": f"{width}x{height}", "sets": ["final"] if number in (1, 6, 7) else []}
            row |= {"date": "2024-05-06", "characters": ["hatsune_miku"], "artist": "A", "quality_score": 0.25}
            rows.append(row)
    for shard, part in enumerate((rows[:4], rows[4:])):
        for stage in ("index", "duplicates"):
            path = folder / "run" / "rows" / stage / f"{shard:05d}.parquet"
            storage.write_table(path, table_of(stage, part))
    catalogue = pa.Table.from_pylist([{name: row.get(name) for name in schema.CATALOGUE.names} for row in rows])
    storage.write_table(folder / "run" / "catalogue.parquet", catalogue.cast(schema.CATALOGUE))
    storage.write_text(folder / "run" / "recipe.toml", f'[[sources]]\nname = "s"\npath = {json.dumps(str(pictures))}\n')
    return folder / "run"


def rows_of(run: Path) -> list[dict[str, Any]]:
    return pq.read_table(run / "catalogue.parquet").to_pylist()


def everything(folder: Path) -> dict[str, bytes | str]:
    """What a folder holds, by relative path; of a link, where it leads."""
    found = sorted(path for path in folder.rglob("*") if path.is_symlink() or path.is_file())
    return {
        str(path.relative_to(folder)): str(path.readlink()) if path.is_symlink() else path.read_bytes()
        for path in found
    }


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return write_run(tmp_path / "made")


def test_kohyas_folders_say_how_often_and_have_a_caption_of_one_line_beside_each_picture(
    run: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    assert exports.export(run, out, "kohya") == [out / "1_base", out / "5_base"]
    rows = rows_of(run)
    for number in (0, 1, 4, 8):  # what kohya sees as we do is a link
        folder, ending = ("5_base", "jpg") if number == 1 else ("1_base", "png")
        picture = out / folder / f"{rows[number]['id']}.{ending}"
        assert str(picture.readlink()) == rows[number]["uri"]
        assert picture.with_suffix(".txt").read_text() == ", ".join(TAGS) + "\n"
    assert len(list((out / "1_base").iterdir())) == 2 * 7


def test_what_kohya_would_not_read_or_see_otherwise_becomes_a_png_of_what_was_curated(
    run: Path, tmp_path: Path
) -> None:
    exports.export(run, tmp_path / "out", "kohya")
    for number in (2, 3, 5):
        row = rows_of(run)[number]
        picture = tmp_path / "out" / "1_base" / f"{row['id']}.png"
        assert not picture.is_symlink()
        with Image.open(picture) as image:
            assert (image.mode, image.size) == ("RGB", (row["width"], row["height"]))
            curated = open_picture(Path(row["uri"]).read_bytes(), export_pictures.ANY_PICTURE).image
            assert image.tobytes() == curated.tobytes()
    in_a_tar = rows_of(run)[6]
    written = tmp_path / "out" / "1_base" / f"{in_a_tar['id']}.png"
    assert written.read_bytes() == encoded(6, "in a tar")


def test_kohyas_meta_parts_the_caption_so_that_it_is_trained_on_once(run: Path, tmp_path: Path) -> None:
    out, rows = tmp_path / "out", rows_of(run)
    exports.export(run, out, "kohya-json")
    exports.export(run, tmp_path / "lines", "kohya-jsonl")
    found = {name: json.loads((out / name).read_text()) for name in ("meta_1.json", "meta_5.json")}
    assert [len(entries) for entries in found.values()] == [7, 1]
    ((path, entry),) = found["meta_5.json"].items()
    assert path == str(out / "pictures" / rows[1]["id"][:2] / f"{rows[1]['id']}.jpg")
    assert entry["caption"] + ", " + entry["tags"] == rows[1]["caption"]
    assert entry["caption"] == "very aesthetic, best quality, newest"
    assert (entry["image_size"], entry["train_resolution"]) == ([48, 64], [48, 64])
    for path, entry in found["meta_1.json"].items():
        with Image.open(path) as image:
            assert list(image.size) == entry["image_size"]
    lines = [json.loads(line) for line in (tmp_path / "lines" / "meta_1.jsonl").read_text().splitlines()]
    assert [line.pop("image_path").rpartition("/")[2] for line in lines] == [
        path.rpartition("/")[2] for path in found["meta_1.json"]
    ]
    assert lines == list(found["meta_1.json"].values())
    subsets = tomllib.loads((out / "dataset.toml").read_text())["datasets"][0]["subsets"]
    assert [(subset["num_repeats"], subset["metadata_file"]) for subset in subsets] == [
        (1, str(out / "meta_1.json")),
        (5, str(out / "meta_5.json")),
    ]


def test_an_imagefolder_names_each_picture_once_and_leaves_its_bytes_alone(run: Path, tmp_path: Path) -> None:
    assert exports.export(run, tmp_path / "out", "imagefolder") == [tmp_path / "out" / "metadata.jsonl"]
    lines = [json.loads(line) for line in (tmp_path / "out" / "metadata.jsonl").read_text().splitlines()]
    picked = [row for row in rows_of(run) if row["pick"]]
    assert [line["id"] for line in lines] == [row["id"] for row in picked]
    for line, row in zip(lines, picked, strict=True):
        assert hashlib.sha256((tmp_path / "out" / line["file_name"]).read_bytes()).hexdigest() == row["id"]
        assert (line["text"], line["repeat"], line["caption_tags"]) == (row["caption"], row["repeat"], TAGS)


def test_tars_hold_picture_caption_and_facts_under_one_key(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exports, "PART_ROWS", 3)
    made = exports.export(run, tmp_path / "out", "webdataset")
    assert made == [tmp_path / "out" / f"0000{number}.tar" for number in range(3)]
    members = []
    for path in made:
        with tarfile.open(path) as tar:
            for member in tar:
                assert (member.mtime, member.uid, member.gid, member.uname) == (0, 0, 0, "")
                members.append((*member.name.split("."), tar.extractfile(member).read()))  # type: ignore[union-attr]
    picked = [row for row in rows_of(run) if row["pick"]]
    assert [key for key, _, _ in members] == [row["id"] for row in picked for _ in range(3)]
    assert [ending for _, ending, _ in members[3:6]] == ["jpg", "txt", "json"]
    for row, (_, _, picture), (_, _, caption), (_, _, facts) in zip(
        picked, members[::3], members[1::3], members[2::3], strict=True
    ):
        assert hashlib.sha256(picture).hexdigest() == row["id"]
        assert caption.decode() == row["caption"]
        known = json.loads(facts)
        assert {name: known[name] for name in ("id", "uri", "aesthetic_score", "tags", "words", "repeat")} == {
            name: row[name] for name in ("id", "uri", "aesthetic_score", "tags", "words", "repeat")
        }
        assert (known["date"], known["tags_character"], known["artist"]) == ("2024-05-06", ["hatsune_miku"], "A")


def test_parquet_has_pictures_that_datasets_knows_as_such(run: Path, tmp_path: Path) -> None:
    (path,) = exports.export(run, tmp_path / "out", "parquet", chosen="final")
    table = pq.read_table(path)
    first, second = table.to_pylist()
    assert [row["id"] for row in (first, second)] == [rows_of(run)[number]["id"] for number in (1, 6)]
    assert first["image"] == {"bytes": encoded(1, "jpeg"), "path": f"{first['id']}.jpg"}
    assert second["image"]["bytes"] == encoded(6, "in a tar")
    assert (first["text"], first["repeat"]) == (", ".join(TAGS), 1)  # of a set, each counts once
    assert (first["tags"], first["tag_probabilities"]) == (["1girl"], [0.75])
    features = json.loads(table.schema.metadata[b"huggingface"])["info"]["features"]
    assert list(features) == table.column_names
    assert features["image"] == {"_type": "Image"}


class Killed(Exception):
    """Stands for the end of the process."""


@pytest.mark.parametrize("form", exports.FORMATS)
def test_an_export_that_was_killed_is_continued_to_the_same_files(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    monkeypatch.setattr(exports, "PART_ROWS", 2)
    made = exports.export(run, tmp_path / "out", form)
    whole = everything(tmp_path / "out")
    assert exports.export(run, tmp_path / "out", form) == made
    shutil.rmtree(tmp_path / "out")
    commit = storage.write_text

    def dies(path: Path, text: str) -> None:
        if path.name == "00002.json":  # the files of its part are there, half of them broken
            for found in (tmp_path / "out").rglob(f"{rows_of(run)[5]['id']}.*"):
                found.unlink()
                found.write_bytes(b"half")
            raise Killed
        commit(path, text)

    monkeypatch.setattr(storage, "write_text", dies)
    with pytest.raises(Killed):
        exports.export(run, tmp_path / "out", form)
    monkeypatch.setattr(storage, "write_text", commit)
    (tmp_path / "out" / ".00002.tar.99.tmp").write_bytes(b"half")
    assert exports.export(run, tmp_path / "out", form) == made
    assert everything(tmp_path / "out") == whole


def test_pictures_that_are_gone_are_left_out_named_and_tried_again(run: Path, tmp_path: Path) -> None:
    rows, out = rows_of(run), tmp_path / "out"
    kept = Path(rows[0]["uri"]).read_bytes()
    Path(rows[0]["uri"]).unlink()
    Path(rows[1]["uri"]).write_bytes(b"changed")
    for form in ("webdataset", "imagefolder"):
        exports.export(run, out / form, form)
        left_out = [json.loads(line) for line in (out / form / ".sote" / exports.LEFT_OUT).read_text().splitlines()]
        assert [(each["id"], each["reason"]) for each in left_out] == [
            (rows[0]["id"], "file vanished"),
            (rows[1]["id"], "file changed since it was looked at"),
        ]
    assert len((out / "imagefolder" / "metadata.jsonl").read_text().splitlines()) == 6
    Path(rows[0]["uri"]).write_bytes(kept)
    exports.export(run, out / "imagefolder", "imagefolder")
    assert len((out / "imagefolder" / "metadata.jsonl").read_text().splitlines()) == 7
    shutil.rmtree(run.parent / "pictures")
    (run.parent / "more.tar").unlink()
    with pytest.raises(RunFailed, match=r"not one of 8 pictures could be had: \{'file vanished': 8}"):
        exports.export(run, out / "again", "parquet")


def test_what_cannot_be_exported_or_not_there_is_said_in_one_line(run: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "mine.txt").write_text("mine")
    with pytest.raises(RunFolderError, match=r"holds 'mine\.txt' and is no export; name a new folder"):
        exports.export(run, other, "kohya")
    with pytest.raises(RunFolderError, match=r"lies in .*pictures, the originals of source 's'"):
        exports.export(run, run.parent / "pictures" / "export", "kohya")
    with pytest.raises(UserError, match="'zip' is no format of pictures; formats: kohya, "):
        exports.export(run, tmp_path / "out", "zip")
    with pytest.raises(SourceError, match="no picked row is of the set 'fnal'; sets with rows: final"):
        exports.export(run, tmp_path / "out", "kohya", chosen="fnal")
    with pytest.raises(SourceError, match=r"has no catalogue\.parquet"):
        exports.export(other, tmp_path / "out", "kohya")
    assert not (tmp_path / "out").exists()
    exports.export(run, tmp_path / "out", "imagefolder", chosen="final")
    with pytest.raises(RunFolderError, match=r"holds an export of another set \(final, not None\)"):
        exports.export(run, tmp_path / "out", "imagefolder")
    assert sorted(path.name for path in other.iterdir()) == ["mine.txt"]


def test_a_run_folder_of_which_only_the_catalogue_is_left_gives_the_same_pictures(run: Path, tmp_path: Path) -> None:
    exports.export(run, tmp_path / "one", "imagefolder")
    shutil.rmtree(run / "rows")
    exports.export(run, tmp_path / "two", "imagefolder")
    assert everything(tmp_path / "one") == everything(tmp_path / "two")
