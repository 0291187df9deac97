"""The pass that reads text in pictures, on the rows that the tagger says have some.

Only rows tagged `english_text` that are no duplicates are read; without a `[text]` table in the recipe, none is.
Reads: uri, tags, errors and skips so far. Writes: text, read_text, text_error.

Kind: wiring.
"""

import time
from pathlib import Path
from typing import Any

from ray.data import ActorPoolStrategy

from sote.cluster import logs, session, weights
from sote.cluster.storage import RunFolder
from sote.data import reading, shards
from sote.data.decode import Refused, open_picture
from sote.data.recipe import CurateRecipe, DecodePart, TextPart
from sote.data.shards import Late, Row, Work

STAGE = "text"
TEXT_TAG = "english_text"  # the author read only pictures with this tag
MODEL_CPUS = 1.0
COLUMNS = ("row", "uri", "tags", "index_error", "index_skip", "decode_error", "decode_skip", "tag_error")


def run(work: Work) -> None:
    """Bring text up to date; shards without a row to read are committed at once, without a model."""
    pending = work.pending(STAGE)
    to_read = [shard for shard in pending if wanted(work.folder, work.recipe, shard)]
    for shard in set(pending) - set(to_read):
        _commit(work, shard, {}, seconds=0.0)
    if not to_read or work.recipe.text is None:
        return
    cpus, gpus, actors = session.model_pool(cpus=MODEL_CPUS, gpus=1.0)
    reader = weights.locate(work.recipe.text.reader, field="text.reader")
    answers = shards.each(to_read).map_batches(
        ReadShard,
        fn_constructor_args=(reader, work.folder, work.recipe),
        batch_size=1,
        compute=ActorPoolStrategy(size=actors),
        num_cpus=cpus,
        num_gpus=gpus,
    )
    with logs.progress("text", len(to_read), unit="shards") as advance:
        for piece in shards.stream(answers):
            found = {row["row"]: row for row in shards.from_bytes(piece["text"]).to_pylist()}
            _commit(work, int(piece["shard"]), found, seconds=float(piece["seconds"]))
            advance(1)


def wanted(folder: RunFolder, recipe: CurateRecipe, shard: int) -> list[Row]:
    """The rows of a shard whose text is to be read."""
    if recipe.text is None:
        return []
    rows = shards.read_rows(folder, shard, (*COLUMNS, "duplicates_skip"))
    return [row for row in rows if _has_text(row, recipe.text)]


def _has_text(row: Row, part: TextPart) -> bool:
    if any(row[name] for name in (*COLUMNS[3:], "duplicates_skip")):
        return False
    return any(tag["name"] == TEXT_TAG and tag["probability"] >= part.threshold for tag in row["tags"] or ())


class ReadShard:
    """The reader as a Ray Data actor: the number of a shard in, the read rows of the shard out."""

    def __init__(self, model: Path, folder: RunFolder, recipe: CurateRecipe) -> None:
        from sote.data.text import Reader

        self.folder, self.recipe = folder, recipe
        tokens = recipe.text.max_new_tokens if recipe.text else 0
        self.reader = Late(lambda: Reader(model, max_new_tokens=tokens))

    def __call__(self, batch: Any) -> dict[str, Any]:
        started, shard = time.monotonic(), int(batch["shard"][0])
        rows = [self._read(row, self.recipe.decode) for row in wanted(self.folder, self.recipe, shard)]
        table = shards.to_bytes(shards.table_of(STAGE, rows))
        return shards.batch_of({"shard": shard, "seconds": time.monotonic() - started, "text": table})

    def _read(self, row: Row, rule: DecodePart) -> Row:
        try:
            image = open_picture(Path(row["uri"]).read_bytes(), rule).image
        except FileNotFoundError:
            return {"row": row["row"], "text_error": "text: file vanished"}
        except OSError as error:
            return {"row": row["row"], "text_error": f"text: cannot be read ({error.strerror})"}
        except Refused as error:
            return {"row": row["row"], "text_error": f"text: {error.reason}"}
        answer = self.reader.get().read([image])[0]
        return {"row": row["row"], "read_text": answer, "text": reading.accept(answer)}


def _commit(work: Work, shard: int, found: dict[int, Row], *, seconds: float) -> None:
    rows = [found.get(row, {"row": row}) for row in range(work.rows_in(shard))]
    work.commit(STAGE, shard, shards.table_of(STAGE, rows), seconds=seconds)
