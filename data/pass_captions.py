"""Two passes without pixels: captions, then the selection among them. No model is needed.

Captions are made shard by shard by all workers. The selection is of a few numbers a row, and some of its rules are
about all rows at once: the driver does it, reading only the columns that it needs.
Reads: what caption_rows and selection name. Writes: caption's and select's columns.

Kind: wiring.
"""

import contextlib
import gc
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from sote.cluster import logs
from sote.cluster.storage import RunFolder
from sote.data import caption_rows, schema, selection, shards
from sote.data.caption_profile import load_profile
from sote.data.columns import read_columns
from sote.data.recipe import CurateRecipe
from sote.data.selection import Cutoffs, Ranking
from sote.data.shards import Work

CODED = ["tags.list.element.name", "tags.list.element.category", "sidecar_tags.list.element"]


def run(work: Work) -> None:
    """Bring caption, then select, up to date for every shard that lacks them."""
    if pending := work.pending("caption"):
        with logs.progress("caption", sum(work.rows_in(shard) for shard in pending)) as advance:
            for piece in _pieces(work, pending):
                shard, table = int(piece["shard"]), shards.from_bytes(piece["caption"])
                work.commit("caption", shard, table, seconds=float(piece["seconds"]))
                advance(table.num_rows)
    select(work)


def _pieces(work: Work, pending: list[int]) -> Iterator[dict[str, Any]]:
    derive = Derive(work.folder, work.recipe)
    for wave in shards.waves(pending):
        yield from shards.stream(shards.each(wave).map_batches(derive, batch_size=1))


@dataclass(frozen=True)
class Derive:
    """Captions the rows of one shard, as a Ray Data function."""

    folder: RunFolder
    recipe: CurateRecipe

    def __call__(self, batch: Any) -> dict[str, Any]:
        started, shard = time.monotonic(), int(batch["shard"][0])
        table = captioned(self.folder, shard, self.recipe)
        cells = {"shard": shard, "seconds": time.monotonic() - started, "caption": shards.to_bytes(table)}
        return shards.batch_of(cells)


def captioned(folder: RunFolder, shard: int, recipe: CurateRecipe) -> pa.Table:
    """caption's table of one shard."""
    table = read_columns(folder, shard, ("row", *caption_rows.COLUMNS), coded=CODED)
    profile = load_profile(recipe.caption.profile)
    sources = {source.name: source for source in recipe.sources}
    with _no_search_for_cycles():
        made = caption_rows.captions(table, profile, part=recipe.caption, sources=sources)
    return pa.table({"row": table["row"], **made}).select(schema.written_by("caption").names)


def select(work: Work) -> None:
    """Bring select up to date for every shard that lacks it; all captions are there."""
    pending = work.pending("select")
    if not pending:
        return
    found = cutoffs(work.folder, work.recipe, work.shard_count())
    with logs.progress("select", sum(work.rows_in(shard) for shard in pending)) as advance:
        for shard in pending:
            started = time.monotonic()
            table = read_columns(work.folder, shard, ("row", *selection.COLUMNS))
            made = selection.select(table, work.recipe.select, cutoffs=found)
            work.commit("select", shard, made.append_column("row", table["row"]), seconds=time.monotonic() - started)
            advance(table.num_rows)


def cutoffs(folder: RunFolder, recipe: CurateRecipe, shard_count: int) -> Cutoffs:
    """What the rules about all rows take, from every shard's captions, whichever shards are pending."""
    if not Ranking.is_needed(recipe.select):
        return Cutoffs()
    ranking = Ranking(recipe.select)
    with logs.progress("select: best rows", shard_count, unit="shards") as advance:
        for shard in range(shard_count):
            ranking.add(read_columns(folder, shard, selection.COLUMNS))
            advance(1)
    return ranking.cutoffs()


@contextlib.contextmanager
def _no_search_for_cycles() -> Iterator[None]:
    """Keep Python from looking through a worker's million objects for cycles; a shard's captions have none, and the
    search takes a quarter of their time."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()
