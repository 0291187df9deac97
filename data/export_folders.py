"""Exports that are folders of pictures: kohya's three ways to name captions, and Hugging Face's imagefolder.

    kohya         OUT/<repeat>_<name>/<id>.<ending> and <id>.txt (the folder's name says how often)
    kohya-json    OUT/pictures/..., OUT/meta_<repeat>.json with the pictures' paths as keys, OUT/dataset.toml
    kohya-jsonl   the same with a line for each picture, OUT/meta_<repeat>.jsonl
    imagefolder   OUT/pictures/..., OUT/metadata.jsonl

Sources: kohya-ss/sd-scripts 48d368f and its branch stable-cascade 235a1ea, library/train_util.py (DreamBoothDataset,
FineTuningDataset); Hugging Face datasets 4.8, packaged_modules/folder_based_builder.

Kind: pure, but for files.
"""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from sote.cluster import storage
from sote.data import export_pictures

PICTURES = "pictures"  # in it a folder for each first two digits of ids, so that none holds millions
FOLDER_PICTURES = 100_000  # of kohya's folders, which have no folders in them; what is above goes to a next one
SEPARATOR = ", "  # between the tags of a caption
# What of a row goes into Hugging Face's metadata
FACTS = ("id", "source", "width", "height", "year", "aesthetic_score", "quality_score", "caption_tags", "repeat")

Row = dict[str, Any]
Line = tuple[str, str]  # the file that a line is for, and the line


def kohya(row: Row, out: Path, *, name: str, number: int) -> list[Line]:
    """Picture and caption of the row with this number, in the folder of its repeat. No file about many is needed."""
    more = number // FOLDER_PICTURES
    folder = out / (f"{row['repeat']}_{name}" + (f"_{more + 1}" if more else ""))
    target = export_pictures.place(row, folder, for_kohya=True)
    target.with_suffix(".txt").write_text(one_line(row["caption"]) + "\n", encoding="utf-8")
    return []


def kohya_meta(row: Row, out: Path, *, lines: bool) -> list[Line]:
    """A picture, and its entry in meta_<repeat>.json or .jsonl.

    kohya trains on caption + separator + tags, so the caption is parted: the words that lead it, and the rest. No
    caption is empty or missing: that is read by each of kohya's versions in its own way.
    """
    picture = str(_in_pictures(row, out, for_kohya=True))
    tags = [one_line(tag) for tag in row["caption_tags"]]
    words = {word for word in (row["words"] or {}).values() if word}
    leading = max(1, next((at for at, tag in enumerate(tags) if tag not in words), len(tags)))
    entry: dict[str, Any] = {"caption": SEPARATOR.join(tags[:leading]), "tags": SEPARATOR.join(tags[leading:])}
    entry["image_size"] = [row["width"], row["height"]]
    if row["bucket"] is not None:
        entry["train_resolution"] = [int(side) for side in row["bucket"].split("x")]
    if lines:
        return [(f"meta_{row['repeat']}.jsonl", dumps({"image_path": picture} | entry))]
    return [(f"meta_{row['repeat']}.json", f"{dumps(picture)}: {dumps(entry)}")]


def imagefolder(row: Row, out: Path) -> list[Line]:
    """A picture as it is, and its line in metadata.jsonl."""
    name = _in_pictures(row, out, for_kohya=False).relative_to(out).as_posix()
    return [("metadata.jsonl", dumps({"file_name": name, "text": row["caption"]} | {key: row[key] for key in FACTS}))]


def write_about_many(out: Path, name: str, lines: Iterable[str]) -> None:
    """The file about many pictures that `lines` are for: one JSON object of all of them, or each by itself."""
    with storage.atomic(out / name) as path, path.open("w", encoding="utf-8") as file:
        if name.endswith(".jsonl"):
            file.writelines(f"{line}\n" for line in lines)
        else:
            file.writelines(_object(lines))


def write_kohya_config(out: Path, names: Iterable[str]) -> Path:
    """dataset.toml: kohya's --dataset_config, in which each file about many has its own number of repeats. How buckets
    are made is left to the command line: each of kohya's versions allows other settings beside train_resolution."""
    text = "[[datasets]]\n"
    for name in names:
        repeat = Path(name).stem.removeprefix("meta_")
        text += f"\n  [[datasets.subsets]]\n  image_dir = {dumps(str(out / PICTURES))}\n"
        text += f"  metadata_file = {dumps(str(out / name))}\n  num_repeats = {repeat}\n"
    storage.write_text(out / "dataset.toml", text)
    return out / "dataset.toml"


def one_line(text: str) -> str:
    """Text without breaks of lines."""
    return " ".join(text.splitlines())


def dumps(value: Any) -> str:
    """A value as JSON on one line, readable in any script."""
    return json.dumps(value, ensure_ascii=False)


def _in_pictures(row: Row, out: Path, *, for_kohya: bool) -> Path:
    return export_pictures.place(row, out / PICTURES / row["id"][:2], for_kohya=for_kohya)


def _object(members: Iterable[str]) -> Iterator[str]:
    start = "{\n"
    for member in members:
        yield start + member
        start = ",\n"
    yield "\n}\n"
