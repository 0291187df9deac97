"""The model card of a training run in the seed's form, from the run's own records and never by hand.

Reads: recipe, run.json, metrics.jsonl, adherence.json and exports of the run; of the runs that it went on from too;
recipe, run.json, metrics.jsonl and catalogue.parquet of the curate run, here or wherever fsspec reaches.
Writes: card.md.
Kind: pure, but for files.
"""

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet as pq

from sote.cluster import logs, remote, storage
from sote.cluster import recipe as recipes
from sote.cluster.errors import RunFolderError, SourceError
from sote.cluster.storage import RunFolder
from sote.data import caption_profile, files
from sote.data.caption_profile import Profile
from sote.data.recipe import CurateRecipe
from sote.train import card_adherence, card_text, pictures
from sote.train.recipe import TrainRecipe

pc: Any = pyarrow.compute  # its stubs lack overloads that are used here

CARD = "card.md"
CATALOGUE = "catalogue.parquet"
EXPORT = "export.json"  # train/export.py writes it into every export
AUTO_V2 = 10  # hex digits of a file's sha256 that CivitAI shows
COLUMNS = ["source", "words", "pick", "repeat", "sets", "width", "height"]
BY_DATE = ("image board", "plain")  # kinds of source whose pictures the seed counts by the word of their date


@dataclass(frozen=True)
class Stage:
    """One training run: what it was asked for, and what its records say of how it went."""

    name: str
    recipe: TrainRecipe
    versions: dict[str, str]
    commit: str | None
    machines: tuple[str, ...]  # workers and device of each start, each once
    device_hours: float
    step: int
    images_seen: int
    dataset: "Dataset | None"

    @property
    def epochs(self) -> float | None:
        """How often each image was seen that is seen once in an epoch."""
        return self.images_seen / self.dataset.images_an_epoch if self.dataset else None


@dataclass(frozen=True)
class Dataset:
    """What the catalogue says of the rows that a run trained on; `counts` are rows by date word, or by source."""

    recipe: CurateRecipe
    profile: Profile
    counts: dict[str, int]
    repeats: dict[int, int]  # number of rows by how often they are seen in an epoch, where that is more than once
    smallest: tuple[int, int] | None  # width and height of the picture with the fewest pixels
    captioned_on: tuple[str, ...] = ()  # devices that the tagger ran on
    caption_hours: float | None = None  # from start to end of the curation, where one command did it all

    @property
    def images(self) -> int:
        return sum(self.counts.values())

    @property
    def images_an_epoch(self) -> int:
        """With repeats."""
        return self.images + sum((often - 1) * rows for often, rows in self.repeats.items())


def write(run: Path) -> Path:
    """Write RUN/card.md; returns its path. Raises RunFolderError if `run` has not been trained, and SourceError."""
    stages = read(run)
    path = run / CARD
    storage.write_text(path, card_text.render(stages, hashes(run), card_adherence.read(run)))
    return path


def read(run: Path) -> list[Stage]:
    """The run, with the runs that it went on from before it."""
    stage = _stage(run)
    reference = stage.recipe.model.prior if stage.recipe.model.stage == "prior" else str(stage.recipe.model.decoder)
    base = remote.place(reference) if remote.REMOTE.fullmatch(reference) else Path(reference).expanduser()
    if not remote.exists(RunFolder(base).record) or base.resolve() == run.resolve():
        return [stage]
    return [*read(base), stage]


def hashes(run: Path) -> dict[str, str]:
    """AutoV2 of each weight file of the exports in the run folder, by its path there."""
    found = {}
    for record in remote.fetch_tree(run / "export", f"*/{EXPORT}"):
        said = json.loads(record.read_text(encoding="utf-8"))
        for name, digest in said["files"].items():
            found[f"export/{record.parent.name}/{name}"] = digest[:AUTO_V2].upper()
    return found


def _stage(run: Path) -> Stage:
    folder = RunFolder(run)
    path = folder.recipe("train")
    has_record = remote.exists(folder.record)
    record = json.loads(remote.fetch(folder.record).read_text(encoding="utf-8")) if has_record else {"verbs": {}}
    if "train" not in record["verbs"] or not remote.exists(path):
        raise RunFolderError(
            f"{remote.named(run)}: not the run folder of a training; name one that `sote train` has written"
        )
    lines = logs.read_metrics(folder.metrics)
    steps = [line for line in lines if line.get("kind") == "step"]
    if not steps:
        raise RunFolderError(f"{remote.named(run)}: has not made a step of training yet; run `sote train` first")
    recipe, mine = recipes.load(path, TrainRecipe), record["verbs"]["train"]
    last = max(steps, key=lambda line: int(line["step"]))
    starts = [line for line in lines if line.get("kind") == "start"]
    return Stage(
        name=run.resolve().name,
        recipe=recipe,
        versions=dict(mine["versions"]),
        commit=mine["commit"],
        machines=tuple(dict.fromkeys(f"{line['workers']}x {line['device']}" for line in starts)),
        device_hours=device_hours(lines),
        step=int(last["step"]),
        images_seen=int(last["images_seen"]),
        dataset=_dataset(recipe),
    )


def device_hours(lines: Sequence[dict[str, Any]]) -> float:
    """Hours of all workers together: of each start, from it to the last line before the next one."""
    ours = [line for line in lines if line.get("kind") in ("start", "step", "checkpoint")]
    places = [at for at, line in enumerate(ours) if line["kind"] == "start"]
    spans = ((ours[first], ours[end - 1]) for first, end in pairwise([*places, len(ours)]))
    return sum(float(first["workers"] * (last["time"] - first["time"])) for first, last in spans) / 3600


def _dataset(recipe: TrainRecipe) -> Dataset | None:
    """What the curate run says; None if it is not there any more. Raises SourceError."""
    curated = recipe.data.curated
    found = pictures.curate_recipe(curated)
    if found is None:
        return None
    profile = caption_profile.load_profile(found.caption.profile)
    counts: Counter[str] = Counter()
    repeats: Counter[Any] = Counter()
    smallest: tuple[int, int] | None = None
    for table in _tables(curated, recipe.data.set):
        counts.update(_named(table, found))
        if recipe.data.set is None:
            repeats.update(table.filter(pc.greater(table["repeat"], 1))["repeat"].to_pylist())
        smallest = _smaller(smallest, table)
    order = [*(years.word for years in profile.years), *(source.name for source in found.sources)]
    ordered = {name: counts[name] for name in dict.fromkeys(order) if counts[name]}
    return Dataset(found, profile, ordered, dict(sorted(repeats.items())), smallest, *_captioning(curated))


def _captioning(curated: str) -> tuple[tuple[str, ...], float | None]:
    """What the tagger ran on, and the hours of the curation if one command did it all."""
    folder = RunFolder(remote.place(curated) if remote.REMOTE.fullmatch(curated) else Path(curated).expanduser())
    lines = logs.read_metrics(folder.metrics)
    tagged = [line["device"] for line in lines if line.get("kind") == "engine" and line.get("stage") == "tag"]
    devices = tuple(dict.fromkeys(tagged))
    if not remote.exists(folder.record):
        return devices, None
    mine = json.loads(remote.fetch(folder.record).read_text(encoding="utf-8"))["verbs"].get("curate", {})
    if mine.get("continued") or not mine.get("end"):
        return devices, None
    took = datetime.fromisoformat(mine["end"]) - datetime.fromisoformat(mine["start"])
    return devices, took.total_seconds() / 3600


def _tables(curated: str, chosen: str | None) -> Iterator[pa.Table]:
    """The picked rows, some at a time; of a set, its rows."""
    uri = files.join(files.absolute(curated), CATALOGUE)
    try:
        with files.opened(uri) as there, pq.ParquetFile(there) as file:
            columns = [name for name in COLUMNS if name in file.schema_arrow.names]
            for group in range(file.num_row_groups):
                table = file.read_row_group(group, columns=columns)
                table = table.filter(table["pick"])
                if chosen is not None:
                    table = table.filter(pa.array([chosen in (sets or ()) for sets in table["sets"].to_pylist()]))
                if table.num_rows:
                    yield table
    except (OSError, pa.ArrowInvalid) as error:
        raise SourceError(f"{uri}: cannot be read ({' '.join(str(error).split())}); the card counts its rows") from None


def _named(table: pa.Table, recipe: CurateRecipe) -> Iterator[str]:
    """What each row is counted as: the word of its date where its source is a board, else the source."""
    by_date = {source.name for source in recipe.sources if source.kind in BY_DATE}
    words = pc.struct_field(table["words"].combine_chunks(), "date").to_pylist()
    for source, word in zip(table["source"].to_pylist(), words, strict=True):
        yield word if source in by_date and word is not None else str(source)


def _smaller(before: tuple[int, int] | None, table: pa.Table) -> tuple[int, int] | None:
    known = table.filter(pc.is_valid(table["width"]))
    if not known.num_rows:
        return before
    pixels = pc.multiply(known["width"].cast(pa.int64()), known["height"].cast(pa.int64()))
    at = int(pc.index(pixels, pc.min(pixels)).as_py())
    here = (known["width"][at].as_py(), known["height"][at].as_py())
    return here if before is None or here[0] * here[1] < before[0] * before[1] else before
