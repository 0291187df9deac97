"""A curate run's picked rows for other trainers: kohya's files, WebDataset, Hugging Face's imagefolder, Parquet.

Rows are streamed, PART_ROWS at a time; each part counts when its record `OUT/.sote/<part>.json` is there. The same
command continues an export that was killed, to the same files. Originals are never written to, nor beside.
Reads: catalogue.parquet, rows/index, rows/duplicates, the pictures.

Kind: pure, but for files.
"""

import hashlib
import itertools
import json
import logging
import os
import re
import tomllib
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from sote.cluster import logs, remote, storage, store
from sote.cluster.errors import RunFailed, RunFolderError, UserError
from sote.cluster.storage import RunFolder
from sote.data import export_folders, export_rows, export_shards, files
from sote.data.export_pictures import LeftOut
from sote.data.export_rows import Row

SHARDS = {"webdataset": "tar", "parquet": "parquet"}  # forms that hold the pictures' bytes, and their files' ending
FORMATS = ("kohya", "kohya-json", "kohya-jsonl", "webdataset", "imagefolder", "parquet")
PART_ROWS = 1000  # of a tar, of a Parquet file, and of what is done again after a kill
OWN = ".sote"  # hidden, so that no loader takes it for data
THREADS = 8
BASE = "base"  # what kohya's folders are called where no set is chosen
LEFT_OUT = "left_out.jsonl"

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Plan:
    """What is exported where: `form` of FORMATS, `chosen` the set."""

    run: Path
    out: Path
    form: str
    chosen: str | None
    rows: int

    @property
    def record(self) -> Path:
        return self.out / OWN / "export.json"

    def part(self, number: int) -> Path:
        return self.out / OWN / f"{number:05d}.json"


def export(run: Path, out: Path, form: str, *, chosen: str | None = None) -> list[Path]:
    """Export the picked rows of a curate run, or those of its set `chosen`; returns the files to hand to a loader.

    Pictures that cannot be had any more are left out, named in OUT/.sote/left_out.jsonl and counted in the log.
    Raises a UserError: not a finished curate run, no such set, `out` holds something else or lies within a source;
    and RunFailed if not one picture can be had.
    """
    if form not in FORMATS:
        raise UserError(f"--format: {form!r} is no format of pictures; formats: {', '.join(FORMATS)}")
    out = out.expanduser().absolute()
    plan = Plan(run, out, form, chosen, export_rows.count(run, chosen=chosen))
    _refuse_beside_originals(plan)
    _begin(plan)
    if (record := _record(plan)) is not None and record["done"]:
        remote.fetch_tree(plan.out)
        return _made(plan)
    with logs.progress(f"export {form}", plan.rows) as advance:
        for number, rows in enumerate(_parts(plan)):
            advance(len(rows), {} if _done(plan, number) else _write_part(plan, number, rows))
    return _end(plan)


def _write_part(plan: Plan, number: int, rows: list[Row]) -> dict[str, int]:
    """Write the files of a part, then its record; returns the reasons why pictures had to be left out."""
    lines: list[export_folders.Line] = []
    if plan.form in SHARDS:
        write = export_shards.webdataset if plan.form == "webdataset" else export_shards.parquet
        missing = write(rows, plan.out / f"{number:05d}.{SHARDS[plan.form]}")
    else:
        missing, lines = _write_files(plan, number, rows)
        os.sync()  # thousands of small files: one by one would take hours
    left_out = [{"id": row["id"], "uri": row["uri"], "reason": reason} for row, reason in missing]
    storage.write_text(plan.part(number), json.dumps({"left_out": left_out, "lines": lines}))
    return dict(Counter(reason for _, reason in missing))


def _write_files(plan: Plan, number: int, rows: list[Row]) -> tuple[export_shards.Missing, list[export_folders.Line]]:
    """The pictures of a part, and the lines about them."""
    first = number * PART_ROWS
    with ThreadPoolExecutor(THREADS) as pool:
        found = list(pool.map(partial(_write_row, plan), rows, range(first, first + len(rows))))
    missing = [(row, str(made)) for row, made in zip(rows, found, strict=True) if isinstance(made, LeftOut)]
    return missing, [line for made in found if not isinstance(made, LeftOut) for line in made]


def _write_row(plan: Plan, row: Row, number: int) -> list[export_folders.Line] | LeftOut:
    try:
        if plan.form == "kohya":
            return export_folders.kohya(row, plan.out, name=re.sub(r"[^\w.-]", "-", plan.chosen or BASE), number=number)
        if plan.form == "imagefolder":
            return export_folders.imagefolder(row, plan.out)
        return export_folders.kohya_meta(row, plan.out, lines=plan.form == "kohya-jsonl")
    except LeftOut as error:
        return error


def _parts(plan: Plan) -> Iterator[list[Row]]:
    rows = export_rows.picked(plan.run, chosen=plan.chosen)
    while part := list(itertools.islice(rows, PART_ROWS)):
        yield part


def _done(plan: Plan, number: int) -> bool:
    """Whether a part is written, with every picture of it: one that lacks some is tried again."""
    return plan.part(number).exists() and not _written(plan, number)["left_out"]


def _refuse_beside_originals(plan: Plan) -> None:
    """Raise RunFolderError where `out` lies in a folder of originals: the next curation would take it for some."""
    recipe = RunFolder(plan.run).recipe("curate")
    if not recipe.is_file():
        return
    for source in tomllib.loads(recipe.read_text(encoding="utf-8")).get("sources", ()):
        path = files.absolute(source["path"])
        if source.get("form", "folder") != "folder" or not files.is_local(path):
            continue
        if Path(os.path.realpath(plan.out)).is_relative_to(os.path.realpath(path)):
            raise RunFolderError(
                f"{plan.out}: lies in {path}, the originals of source {source['name']!r}; name another"
            )


def _begin(plan: Plan) -> None:
    """Make the folder, or find that it holds the same export. Raises RunFolderError if it holds anything else."""
    if plan.out.is_file():
        raise RunFolderError(f"{plan.out}: is a file; name a folder")
    there = _record(plan)
    if there is None:
        if found := [name for name in remote.names(plan.out) if name != OWN]:
            raise RunFolderError(f"{remote.named(plan.out)}: holds {found[0]!r} and is no export; name a new folder")
        storage.write_text(plan.record, json.dumps(_identity(plan) | {"done": False}, indent=2) + "\n")
        return
    for name, value in _identity(plan).items():
        if there.get(name) != value:
            raise RunFolderError(
                f"{plan.out}: holds an export of another {name} ({there.get(name)}, not {value}); name a new folder"
            )
    for folder in (plan.out, plan.out / OWN):
        for path in folder.glob(".*.tmp"):
            path.unlink()


def _identity(plan: Plan) -> dict[str, str | int | None]:
    """What two exports must share for one to continue the other."""
    with remote.fetch(RunFolder(plan.run).catalogue).open("rb") as file:
        catalogue = hashlib.file_digest(file, "sha256").hexdigest()
    return {"format": plan.form, "set": plan.chosen, "catalogue": catalogue, "part_rows": PART_ROWS}


def _record(plan: Plan) -> dict[str, Any] | None:
    try:
        return dict(json.loads(remote.fetch(plan.record).read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None


def _end(plan: Plan) -> list[Path]:
    """Write what is about all pictures, and the record that all is done; returns what to hand to a loader."""
    numbers = range(-(-plan.rows // PART_ROWS))
    names, reasons = set[str](), Counter[str]()
    for part in map(partial(_written, plan), numbers):
        names |= {name for name, _ in part["lines"]}
        reasons.update(each["reason"] for each in part["left_out"])
    if reasons.total() == plan.rows:
        raise RunFailed(f"{plan.out}: not one of {plan.rows} pictures could be had: {dict(reasons)}")
    for name in sorted(names):
        parts = map(partial(_written, plan), numbers)
        lines = (line for part in parts for of, line in part["lines"] if of == name)
        export_folders.write_about_many(plan.out, name, lines)
    if plan.form in ("kohya-json", "kohya-jsonl"):
        export_folders.write_kohya_config(plan.out, sorted(names))
    if reasons:
        left_out = (json.dumps(each) for number in numbers for each in _written(plan, number)["left_out"])
        export_folders.write_about_many(plan.out, f"{OWN}/{LEFT_OUT}", left_out)
    store.each(remote.push, remote.mirrored(plan.out))
    storage.write_text(plan.record, json.dumps(_identity(plan) | {"done": not reasons}, indent=2) + "\n")
    if reasons:
        log.warning("left out pictures=%d of=%d reasons=%s", reasons.total(), plan.rows, dict(reasons))
    else:
        remote.remove(plan.out / OWN / LEFT_OUT, *map(plan.part, numbers))
    return _made(plan)


def _written(plan: Plan, number: int) -> dict[str, Any]:
    return dict(json.loads(plan.part(number).read_text(encoding="utf-8")))


def _made(plan: Plan) -> list[Path]:
    """What to hand to a loader: folders, files about many pictures, or shards."""
    if plan.form == "imagefolder":
        return [plan.out / "metadata.jsonl"]
    patterns = {"kohya": "*_*", "kohya-json": "meta_*.json", "kohya-jsonl": "meta_*.jsonl"}
    patterns |= {form: f"*.{ending}" for form, ending in SHARDS.items()}
    found = sorted(plan.out.glob(patterns[plan.form]))
    return [plan.out / "dataset.toml", *found] if plan.form.startswith("kohya-") else found
