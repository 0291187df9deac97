"""Files that speak of many pictures: kohya's meta JSON and JSONL, Hugging Face's metadata.jsonl and metadata.csv.

Such a file speaks of the pictures in its folder and below. It names them by `image_path` or `file_name` (gallery-dl:
`filename` and `extension`), kohya's meta JSON by its keys: a path with or without the ending, or the stem. A path
counts from the file's folder; an absolute one that lies elsewhere, from the last folder in it that is called the same.

Kind: pure.
"""

import csv
import io
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

from sote.data import sidecar_json
from sote.data.sidecar_facts import Sidecar

CSV = "metadata.csv"  # Hugging Face's name; other tables beside pictures are not ours
# What an entry of kohya's meta JSON has (finetune/merge_*.py, prepare_buckets_latents.py of sd-scripts)
KOHYA_FIELDS = {"tags", "caption", "train_resolution", "image_size"}
KEYS = ("image_path", "file_name")

Record = Mapping[str, Any]


class BrokenMeta(ValueError):
    """A file about many pictures cannot be read. The message says where."""


@dataclass
class Meta:
    """The records of one file, by path from its folder, as written and without the ending. `used`: those asked for."""

    uri: str
    folder: str
    records: dict[str, Record]
    used: set[str] = field(default_factory=set)

    def of(self, picture: str) -> Sidecar | None:
        """What it says of the picture at a path or URI below its folder. Raises BrokenSidecar."""
        path = picture[len(self.folder) :].lstrip("/")
        for key in (path, str(PurePosixPath(path).with_suffix(""))):
            if key in self.records:
                self.used.add(key)
                return sidecar_json.of_record(self.records[key])
        return None


def is_candidate(name: str) -> bool:
    """Whether a file that belongs to no single picture may be about many, by its name."""
    return name == CSV or name.lower().endswith((".json", ".jsonl"))


def load(name: str, data: bytes, *, uri: str, folder: str) -> Meta | None:
    """The records in a file; None for one that is about something else. Raises BrokenMeta."""
    try:
        if name == CSV:
            named = list(_of_csv(data))
        elif name.lower().endswith(".jsonl"):
            named = list(_of_lines(data))
        else:
            named = list(_of_kohya(json.loads(data)))
    except BrokenMeta:
        raise
    except UnicodeDecodeError:
        raise BrokenMeta("is not UTF-8 text") from None
    except json.JSONDecodeError as error:
        raise BrokenMeta(f"is not valid JSON (line {error.lineno})") from None
    except (ValueError, RecursionError, csv.Error) as error:
        raise BrokenMeta(f"cannot be read ({error})") from None
    records = {_from_folder(key, folder): record for key, record in named}
    return Meta(uri, folder, records) if records else None


def _of_kohya(value: object) -> Iterator[tuple[str, Record]]:
    if isinstance(value, dict):
        for key, record in value.items():
            if isinstance(record, dict) and not KOHYA_FIELDS.isdisjoint(record):
                yield key, record


def _of_lines(data: bytes) -> Iterator[tuple[str, Record]]:
    for number, line in enumerate(data.decode("utf-8-sig").split("\n"), start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            raise BrokenMeta(f"is not valid JSON (line {number})") from None
        if isinstance(record, dict) and (key := _key(record)):
            yield key, record


def _of_csv(data: bytes) -> Iterator[tuple[str, Record]]:
    for record in csv.DictReader(io.StringIO(data.decode("utf-8-sig"), newline="")):
        if key := _key(record):
            yield key, record


def _key(record: Record) -> str | None:
    for name in KEYS:
        if isinstance(record.get(name), str):
            return str(record[name])
    if isinstance(record.get("filename"), str) and isinstance(record.get("extension"), str):
        return f"{record['filename']}.{record['extension']}"
    return None


def _from_folder(key: str, folder: str) -> str:
    """A record's path as counted from the file's folder, where it is absolute or begins with that folder's own path."""
    path = key.replace("\\", "/").removeprefix("./")
    parts, here = path.split("/"), folder.rstrip("/").split("/")
    if path.startswith("/") or "://" in path:
        if parts[: len(here)] == here:
            return "/".join(parts[len(here) :])
        if here[-1] in parts[:-1]:
            return "/".join(parts[len(parts) - parts[::-1].index(here[-1]) :])
        return path
    shared = next((n for n in range(len(parts) - 1, 0, -1) if parts[:n] == here[-n:]), 0)
    return "/".join(parts[shared:])
