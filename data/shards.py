"""The rows of a run, shard by shard: what is committed, what is pending, reading and committing.

The driver commits; workers compute, and hand on pieces: rows of a Ray dataset that hold a slice or a shard each. A
shard of a stage counts when its marker carries the digest of the recipe parts that the stage and those before it depend
on, so a changed recipe is never mixed with old rows.

Kind: wiring.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Generic, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet as pq
import ray
import ray.exceptions

from sote.cluster import remote, session, storage
from sote.cluster.errors import SoteError
from sote.cluster.logs import Metrics
from sote.cluster.recipe import digest_of
from sote.cluster.storage import RunFolder
from sote.data import schema
from sote.data.columns import read_columns
from sote.data.recipe import CurateRecipe

pc: Any = pyarrow.compute  # its stubs lack overloads that are used here

APPENDED = "\nFailed to apply UDF"  # how what begins that Ray Data puts behind an error's message

Row = dict[str, Any]
T = TypeVar("T")

# One dataset begins with at most so many shards and hands on about so many pieces: until it ends, Ray Data keeps a
# record of each in the driver, and all shards are laid out before the first begins (tests/bench/scale.py)
WAVE_SHARDS: Final = 8_000
WAVE_PIECES: Final = 400_000
# Slices of one actor, at work or next: Ray Data hands on every 0.1 s (WAIT_FOR_TASK_COMPLETION_TIMEOUT_S), and with one
# slice a device that takes 33 ms for it stands idle for two thirds of its time (tests/bench/scale.py)
SLICES_IN_FLIGHT: Final = 2


@dataclass(frozen=True)
class Work:
    """What every stage gets: its recipe, its run folder, and the digest that each stage's markers must carry."""

    recipe: CurateRecipe
    folder: RunFolder
    digests: dict[str, str]
    _rows: list[int] = field(default_factory=list, init=False, repr=False, compare=False)  # files, once they are known

    @property
    def metrics(self) -> Metrics:
        return Metrics(self.folder.metrics)

    @property
    def index_marker(self) -> Path:
        """Stands for the whole index: its marker says how many shards and rows there are."""
        return self.folder.root / "rows" / "index"

    def shard_count(self) -> int:
        """How many shards the index has; 0 before the index is whole."""
        facts = storage.committed(self.index_marker)
        return int(facts["shards"]) if facts and facts["digest"] == self.digests["index"] else 0

    def row_count(self) -> int:
        """How many files the index holds."""
        facts = storage.committed(self.index_marker)
        return int(facts["rows"]) if facts else 0

    @property
    def slices(self) -> int:
        """How many slices a whole shard is cut into."""
        return -(-self.recipe.shard_rows // self.recipe.slice_rows)

    def pending(self, stage: str) -> list[int]:
        """The shards that `stage` has not committed under this recipe, in order."""
        return [shard for shard in range(self.shard_count()) if not self.is_committed(stage, shard)]

    def is_committed(self, stage: str, shard: int) -> bool:
        facts = storage.committed(self.folder.rows(stage, shard))
        if facts is None or (stage == "latents" and not self.is_committed("select", shard)):
            return False
        return bool(facts["digest"] == self.digest(stage, shard))

    def digest(self, stage: str, shard: int) -> str:
        """What the marker of a shard must carry. Latents hold for the rows that are picked, however they came to be:
        new captions alone do not undo them."""
        if stage != "latents":
            return self.digests[stage]
        part = self.recipe.latents
        if part is None:
            return self.digests[stage]
        found = read_columns(self.folder, shard, ("select_repeat", "sets"))
        picks = pc.greater(found["select_repeat"], 0).to_pylist()
        if part.vqgan is None:
            return digest_of([self.digests[stage], picks])
        sets = found["sets"].to_pylist()
        return digest_of([self.digests[stage], picks, [part.vqgan_set in (names or ()) for names in sets]])

    def rows_in(self, shard: int) -> int:
        """How many rows a shard has. Where all are cut alike it is arithmetic: it is asked for each piece, and opening
        files for that would hold the driver up."""
        count = 0 if self._rows else self.shard_count()
        if count and count == -(-self.row_count() // self.recipe.shard_rows):
            self._rows.append(self.row_count())
        if self._rows:
            return min(self.recipe.shard_rows, self._rows[0] - shard * self.recipe.shard_rows)
        return int(pq.read_metadata(remote.known(self.folder.rows("index", shard))).num_rows)

    def read(self, shard: int, columns: Iterable[str]) -> list[Row]:
        """The rows of one shard with the named columns, each from the stage that writes it, in order of `row`."""
        return read_rows(self.folder, shard, columns)

    def commit(self, stage: str, shard: int, table: pa.Table, *, seconds: float) -> dict[str, int]:
        """Write one shard of a stage and its marker, and say so in the metrics. Returns how often each error stands
        in it.

        Raises ValueError if the table is not one row for each row of the shard, in order: a stage never drops rows.
        """
        wanted = schema.written_by(stage)
        table = table.select(wanted.names).cast(wanted)
        rows = self.rows_in(shard) if stage != "index" else table.num_rows
        if not np.array_equal(table["row"].to_numpy(), np.arange(rows)):
            raise ValueError(f"stage {stage} shard {shard}: {table.num_rows} rows, not one for each row of the shard")
        reasons = reasons_in(table, stage)
        path = self.folder.rows(stage, shard)
        storage.write_table(path, table)
        facts = {
            "rows": table.num_rows,
            "failed": sum(reasons[f"{stage}_error"].values()),
            "seconds": round(seconds, 3),
            "errors": dict(sorted(reasons[f"{stage}_error"].items())),
            "skips": dict(sorted(reasons[f"{stage}_skip"].items())),
        }
        storage.commit(path, digest=self.digest(stage, shard), **facts)
        self.metrics.write(kind="stage", stage=stage, shard=shard, **facts)
        return dict(reasons[f"{stage}_error"])


def read_rows(folder: RunFolder, shard: int, columns: Iterable[str]) -> list[Row]:
    """The rows of one shard with the named columns, joined over the stages that write them."""
    return read_columns(folder, shard, columns).to_pylist()


def table_of(stage: str, rows: Sequence[Row]) -> pa.Table:
    """Rows as a table with the columns that `stage` writes; a key that a row lacks is null."""
    wanted = schema.written_by(stage)
    columns = {field.name: pa.array([row.get(field.name) for row in rows], type=field.type) for field in wanted}
    return pa.table(columns, schema=wanted)


def blank(stage: str, rows: int) -> pa.Table:
    """What a stage writes that has nothing to say of any row."""
    wanted = schema.written_by(stage)
    columns = [pa.nulls(rows, field.type) for field in wanted]
    return pa.table([pa.array(np.arange(rows), pa.int32()), *columns[1:]], schema=wanted)


def to_bytes(table: pa.Table) -> bytes:
    """A table as Arrow IPC bytes, to travel in one cell."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return bytes(sink.getvalue())


def from_bytes(data: bytes) -> pa.Table:
    """The table that `to_bytes` packed."""
    with pa.ipc.open_stream(data) as reader:
        return reader.read_all()


def batch_of(cells: dict[str, Any]) -> dict[str, Any]:
    """Cells as a Ray Data batch of one. Bytes go as objects: numpy's own bytes type would cut trailing zeros."""
    return {
        name: np.array([value], dtype=object if isinstance(value, bytes) else None) for name, value in cells.items()
    }


def cells_of(batch: Any) -> dict[str, Any]:
    """The cells of a batch of one: what `batch_of` packed."""
    return {name: values[0] for name, values in batch.items()}


def stream(dataset: ray.data.Dataset) -> Iterator[dict[str, Any]]:
    """Run a dataset whose rows are single pieces, and yield each piece's cells as it is ready, in no set order.

    A SoteError of a worker is raised here as itself.
    """
    try:
        for batch in dataset.iter_batches(batch_size=1, batch_format="numpy", prefetch_batches=1):
            yield cells_of(batch)
    except Exception as error:
        ours = _ours(error)
        if ours is None:
            raise
        raise ours from None


class Late(Generic[T]):
    """A model made when an actor starts; what the user did wrong about it is said at its first use.

    An actor whose `__init__` raises is tried again and then dies without its error; one whose call raises passes it on.
    """

    def __init__(self, make: Callable[[], T]) -> None:
        try:
            self._made: T | SoteError = make()
        except SoteError as error:
            self._made = error

    def get(self) -> T:
        """The model, or the error that its making ended with."""
        if isinstance(self._made, SoteError):
            raise self._made
        return self._made


def _ours(error: BaseException | None) -> SoteError | None:
    """The SoteError that a Ray error was caused by, if it was. Ray's is of that class, too, and says more."""
    while error is not None:
        cause = getattr(error, "cause", None) or error.__cause__
        if isinstance(error, SoteError) and not isinstance(error, ray.exceptions.RayError):
            error.args = (str(error).partition(APPENDED)[0], *error.args[1:])
            return error
        error = cause
    return None


def each(shards: Sequence[int]) -> ray.data.Dataset:
    """A dataset with one row and one block for each shard: the unit of work of every pass."""
    return ray.data.from_items([{"shard": shard} for shard in shards], override_num_blocks=len(shards))


def waves(pending: Sequence[int], *, pieces: int = 1) -> Iterator[Sequence[int]]:
    """The pending shards in parts of which each is a dataset of its own; `pieces` is what a shard is cut into.

    Neither memory nor the time to begin then grows with the run. Between two waves the models are loaded anew, which is
    little: a wave is six million pictures in slices of 16.
    """
    most = max(1, min(WAVE_SHARDS, WAVE_PIECES // max(pieces, 1)))
    for start in range(0, len(pending), most):
        yield pending[start : start + most]


def pooled(
    pieces: ray.data.Dataset,
    actor: type[Any],
    given: tuple[Any, ...],
    *,
    cpus: float,
    device_bytes: int = 0,
    in_flight: int = 1,
) -> ray.data.Dataset:
    """Pieces -> what `actor(*given)` makes of each: one actor for each accelerator of the cluster that has
    `device_bytes` of memory, whatever its make, and for each that joins meanwhile (`session.model_pool`). An actor
    has `in_flight` pieces, one at work and the others next, and a slow device never holds the end back by more."""
    pool = session.model_pool(cpus=cpus, device_bytes=device_bytes)
    return pieces.map_batches(
        actor,
        fn_constructor_args=given,
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(
            min_size=1, initial_size=pool.actors, max_size=pool.most, max_tasks_in_flight_per_actor=in_flight
        ),
        num_cpus=pool.cpus,
        num_gpus=pool.gpus,
        label_selector=pool.selector or None,
    )


def reasons_in(table: pa.Table, stage: str) -> dict[str, Counter[str]]:
    """How often each reason stands in the error and the skip column of a stage."""
    return {name: _counts(table, name) for name in (f"{stage}_error", f"{stage}_skip")}


def _counts(table: pa.Table, name: str) -> Counter[str]:
    if name not in table.column_names:
        return Counter()
    found = pc.value_counts(table[name].drop_null()).to_pylist()
    return Counter({each["values"]: each["counts"] for each in found})
