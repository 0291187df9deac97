"""The pass that reads text in pictures, on the rows that the tagger says have some.

Only rows tagged `english_text` that are no duplicates are read; without a `[text]` table in the recipe, none is. One
actor for each accelerator runs LLaVA; with text.url the driver asks the server there, and no accelerator is taken.
Pictures are opened in threads, ahead of the reader.
Reads: uri, offset, bytes, tags, errors and skips so far. Writes: text, read_text, text_error; and to the metrics, for
each shard a line of kind "text" with its tally, and for each engine one of kind "engine".

Kind: wiring.
"""

import contextlib
import dataclasses
import itertools
import json
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet as pq
import ray
from PIL import Image

from sote.cluster import logs, remote, weights
from sote.cluster.storage import RunFolder
from sote.data import needs, places, reading, shards, watchdog
from sote.data.ahead import in_order
from sote.data.decode import Refused, open_picture
from sote.data.reading import Unread
from sote.data.recipe import CurateRecipe, TextPart
from sote.data.shards import Late, Row, Work
from sote.data.watchdog import Patience, Watchdog

pc: Any = pyarrow.compute  # its stubs lack overloads that are used here

STAGE = "text"
TEXT_TAG = "english_text"  # the author read only pictures with this tag
MODEL_CPUS = 1.0  # where there is no accelerator
OPENERS, OPENED = 4, 16  # threads that open pictures, and how many pictures they may be ahead
COLUMNS = ("row", "uri", "offset", "bytes")
ASIDE = ("index_error", "index_skip", "decode_error", "decode_skip", "tag_error", "duplicates_skip")


class Engine(Protocol):
    """What reads: LLaVA (data/text.py) or the client of a server (data/reader_http.py)."""

    facts: dict[str, str | float]

    def prepare(self, image: Image.Image) -> Any:
        """The picture as the engine takes it; may run in any thread."""

    def answers(self, pictures: Iterable[Any]) -> Iterator[str | Unread]:
        """The answer for each prepared picture or Unread, in order."""


def run(work: Work) -> None:
    """Bring text up to date; shards without a row to read are committed at once, without a model."""
    part, to_read = work.recipe.text, dict[int, int]()
    for shard in work.pending(STAGE):
        if count := len(wanted(work.folder, part, shard)):
            to_read[shard] = count
        else:
            _commit(work, shard, pa.table({"row": []}), seconds=0.0)
    if part is None or not to_read:
        return
    engines: set[str] = set()
    with logs.progress("text", sum(to_read.values()), unit="pictures") as advance:
        for piece in _pieces(work, part, list(to_read)):
            shard, facts = int(piece["shard"]), str(piece["engine"])
            if facts not in engines:
                engines.add(facts)
                work.metrics.write(kind="engine", **json.loads(facts))
            reasons = _commit(work, shard, shards.from_bytes(piece["text"]), seconds=float(piece["seconds"]))
            advance(to_read[shard], reasons)


def wanted(folder: RunFolder, part: TextPart | None, shard: int) -> list[Row]:
    """The rows of a shard whose text is to be read: row, uri, offset, bytes."""
    if part is None:
        return []
    tags = remote.known(folder.rows("tag", shard))
    numbers = _with_text(pq.read_table(tags, columns=["tags"])["tags"], part.threshold)
    if not len(numbers):
        return []
    rows = shards.read_rows(folder, shard, (*COLUMNS, *ASIDE))
    at_hand = [rows[number] for number in numbers if not any(rows[number][name] for name in ASIDE)]
    return [{name: row[name] for name in COLUMNS} for row in at_hand]


def _with_text(tags: Any, threshold: float) -> list[int]:
    """The numbers of the rows that have TEXT_TAG with at least the threshold, as float32."""
    lists = tags.combine_chunks()
    flat, rows = lists.flatten(), pc.list_parent_indices(lists)
    enough = pc.greater_equal(flat.field("probability"), pa.scalar(threshold, pa.float32()))
    found: list[int] = rows.filter(pc.and_(pc.equal(flat.field("name"), TEXT_TAG), enough)).to_pylist()
    return found


def _pieces(work: Work, part: TextPart, to_read: list[int]) -> Iterator[dict[str, Any]]:
    """Each shard's read rows as soon as they are done."""
    if part.url is None:
        with watchdog.patience(work, STAGE) as patience:
            reader = remote.named(weights.locate(part.reader, field="text.reader"))
            given = (reader, work.folder, work.recipe, patience)
            for wave in shards.waves(to_read):
                numbers, ask = shards.each(wave), needs.text(work.recipe)
                pool = shards.pooled(numbers, ReadShards, given, cpus=MODEL_CPUS, device_bytes=ask)
                yield from shards.stream(pool)
        return
    from sote.data import reader_http  # only where a server is asked

    with contextlib.closing(reader_http.HttpReader.of(part, api_key=reader_http.key_of(part))) as engine:
        yield from read(engine, work.folder, work.recipe, numbers=to_read)


@dataclass(frozen=True)
class Opener:
    """Opens the picture of a row and prepares it for the engine."""

    engine: Engine
    recipe: CurateRecipe

    def __call__(self, row: Row) -> Any:
        """What the engine takes, or Unread with the reason that the picture cannot be opened for."""
        try:
            data = places.read(row["uri"], offset=row["offset"], bytes=row["bytes"])
            return self.engine.prepare(open_picture(bytes(data), self.recipe.decode).image)
        except FileNotFoundError:
            return Unread("file vanished")
        except OSError as error:
            return Unread(f"cannot be read ({error.strerror})")
        except Refused as error:
            return Unread(error.reason)


class ReadShards:
    """LLaVA as a Ray Data actor: the number of a shard in, the read rows of the shard out."""

    def __init__(self, model: Path | str, folder: RunFolder, recipe: CurateRecipe, patience: Patience) -> None:
        self.folder, self.recipe = folder, recipe
        self.engine = Late(lambda: _llava(weights.here(model), recipe))
        self.watchdog = Watchdog(patience)

    def __call__(self, batch: Any) -> Iterator[dict[str, Any]]:
        engine, node = self.engine.get(), ray.get_runtime_context().get_node_id()
        for number in map(int, batch["shard"]):
            watched = _Watched(engine, self.watchdog, number)
            yield from map(shards.batch_of, read(watched, self.folder, self.recipe, numbers=[number], node=node))


class _Watched:
    """An engine whose every answer must come within the recipe's patience."""

    def __init__(self, engine: Engine, watchdog: Watchdog, shard: int) -> None:
        self.engine, self.watchdog, self.shard = engine, watchdog, shard
        self.facts = engine.facts

    def prepare(self, image: Image.Image) -> Any:
        return self.engine.prepare(image)

    def answers(self, pictures: Iterable[Any]) -> Iterator[str | Unread]:
        yield from self.watchdog.each(self.engine.answers(pictures), self.shard)


def _llava(model: Path, recipe: CurateRecipe) -> Engine:
    from sote.data.text import Reader  # heavy: only where it runs

    return Reader(model, max_new_tokens=recipe.text.max_new_tokens if recipe.text else 0, rows=recipe.slice_rows)


def read(
    engine: Engine, folder: RunFolder, recipe: CurateRecipe, *, numbers: list[int], node: str | None = None
) -> Iterator[dict[str, Any]]:
    """The wanted rows of the shards, read by `engine`: cells shard, seconds, engine (its facts) and text (a table).

    A shard is handed on when its last row is answered, while the next one's pictures are opened and asked about.
    """
    facts, started = json.dumps(engine.facts | {"node": node}), time.monotonic()
    rows, asked = itertools.tee((shard, row) for shard in numbers for row in wanted(folder, recipe.text, shard))
    opened = in_order(Opener(engine, recipe), (row for _, row in asked), threads=OPENERS, ahead=OPENED)
    answered = zip(rows, engine.answers(opened), strict=True)
    for shard, members in itertools.groupby(answered, key=lambda pair: pair[0][0]):
        table = shards.table_of(STAGE, [_row(int(row["row"]), answer) for (_, row), answer in members])
        now, before = time.monotonic(), started
        started = now
        yield {"shard": shard, "seconds": now - before, "engine": facts, "text": shards.to_bytes(table)}


def _row(number: int, answer: str | Unread) -> Row:
    if isinstance(answer, Unread):
        return {"row": number, "text_error": f"text: {answer.reason}"}
    return {"row": number, "read_text": answer, "text": reading.accept(answer)}


def _commit(work: Work, shard: int, found: pa.Table, *, seconds: float) -> dict[str, int]:
    """Commit a shard of which `found` has the rows that were read, and write its tally; the reasons of failure."""
    read = found.to_pylist()
    if read:
        work.metrics.write(kind="text", shard=shard, **dataclasses.asdict(reading.tally(read)))
    by_number = {row["row"]: row for row in read}
    rows = [by_number.get(number, {"row": number}) for number in range(work.rows_in(shard))]
    return work.commit(STAGE, shard, shards.table_of(STAGE, rows), seconds=seconds)
