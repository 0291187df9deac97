"""Step-level batching: pictures of many requests, each at its own step, step together.

Each step takes the rows of one bucket (latents of one shape) and asks the network once for all of them (`batch.Batch`).
Rows may differ in step, sampler, guidance, seed and prompt. A request joins at the next step and leaves at the next
step. What a row becomes does not depend on the rows beside it: its noise is its own, and a step works row by row.

On CUDA the host is one step ahead of the device: whether a step's values are finite is read when the next has been
sent, so that the device never waits for that.

Suffixes: B rows, C channels, H and W cells.

Kind: actor.
"""

import logging
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from sote.cluster.errors import RunFailed
from sote.serve import room
from sote.serve.batch import Batch, fetch
from sote.serve.recipe import BEGUN_PER_SLOT
from sote.serve.rows import Request, Row, Seen, Stage
from sote.serve.settings import StageName

SEEN_PER_SECOND = 8  # of a request that is watched; more than an eye needs of a preview
Shape = tuple[int, ...]

log = logging.getLogger(__name__)


@dataclass(eq=False)
class Bucket:
    """Rows of one shape. `spent`: pixels times passes since it is there; `most`: rows of one pass, after one did not
    fit the device."""

    spent: float
    most: int | None = None
    batch: Batch | None = None


@dataclass(frozen=True, eq=False)
class Flight:
    """A step that was sent to the device: the rows with the step's number, whether they are finite, and what is to be
    seen of them."""

    steps: dict[Row, int]
    is_finite_B: Tensor
    looks: dict[Row, Tensor]
    event: "torch.cuda.Event | None"


class Stepper:
    """Steps the rows of all requests, of each shape `slots` of them at most; others wait in the order of arrival.

    Belongs to one thread. `is_broken`: the device itself failed, and nothing can be done in this process any more.
    """

    def __init__(self, stage: Stage, *, slots: int) -> None:
        self.stage, self.slots = stage, slots
        self.is_broken = False
        self._is_cuda = stage.device.type == "cuda"
        self._line: list[Row] = []  # that have steps left, in the order of arrival
        self._buckets: dict[Shape, Bucket] = {}
        self._flights: deque[Flight] = deque()
        self._over: list[Request] = []
        self._unclaimed: Counter[int] = Counter()  # steps counted for requests that did not end well

    @property
    def is_idle(self) -> bool:
        """Whether a step would do nothing."""
        return not (self._line or self._flights or self._over)

    @property
    def rows(self) -> int:
        """Pictures that have steps left; those beyond the slots of their shape wait."""
        return len(self._line)

    @property
    def has_room(self) -> bool:
        """Whether another request may begin. There is room beyond the slots, so that pictures of one size that have
        them all do not keep those of another from stepping between them."""
        return len(self._line) < BEGUN_PER_SLOT * self.slots

    def add(self, request: Request) -> None:
        """Let the rows of `request` step, from the next step on."""
        self._line.extend(request.rows)

    def drop(self, request: Request) -> None:
        """Forget a request: its rows are in no step from the next on."""
        if not request.is_over:
            self._leave(request)

    def hear(self, error: Exception) -> None:
        """Of an error of other work of the same device."""
        self.is_broken = self.is_broken or isinstance(error, torch.AcceleratorError)

    @torch.inference_mode()
    def step(self) -> list[Request]:
        """Make one step of one bucket; gives the requests that are over with it, failed ones with their `error`.

        What goes wrong is told to the requests that it hits: RunFailed names stage and step of values that are not
        finite, NoMemory is for a picture that does not fit alone. Any other error of a step is that of all its rows.
        """
        shape, rows = self._chosen()
        if rows:
            self._advance(self._buckets[shape], rows)
        ahead = 1 if rows and self._is_cuda else 0
        while len(self._flights) > ahead:
            self._land(self._flights.popleft())
        self._stepping()
        over, self._over = self._over, []
        return over

    def _chosen(self) -> tuple[Shape, list[Row]]:
        """The rows to step now: of the bucket that has had the least, so that no size waits for another."""
        found = self._stepping()
        least = min((bucket.spent for bucket in self._buckets.values()), default=0.0)
        for shape in found.keys() - self._buckets.keys():
            self._buckets[shape] = Bucket(spent=least)
        shape = min(found, key=lambda each: self._buckets[each].spent, default=())  # the oldest of equals
        return shape, found.get(shape, [])

    def _stepping(self) -> dict[Shape, list[Row]]:
        """The rows that have slots, by their shape. A bucket that has none any more is forgotten."""
        found: dict[Shape, list[Row]] = {}
        for row in self._line:
            rows = found.setdefault(tuple(row.x.shape), [])
            if len(rows) < self.slots:
                rows.append(row)
        for shape in self._buckets.keys() - found.keys():
            del self._buckets[shape]
        return found

    def _advance(self, bucket: Bucket, rows: list[Row]) -> None:
        is_full = False
        try:
            self._send(bucket, rows)
        except torch.OutOfMemoryError:
            is_full = True  # while it is handled, the error still holds what the pass had taken
        except Exception as error:
            log.exception("step failed stage=%s rows=%d", self.stage.name, len(rows))
            self._fail(rows, error)
        if is_full:
            self._shrink(bucket, rows)

    def _shrink(self, bucket: Bucket, rows: list[Row]) -> None:
        """After a step that did not fit: ask for half as many at a time; a picture that was alone fails."""
        tried = bucket.batch.trying if bucket.batch is not None else ()
        size = len(tried) or bucket.most or 2 * len(rows)
        bucket.batch = None
        room.free(self.stage.device)
        log.warning("out of memory stage=%s rows=%d", self.stage.name, size)
        if size > 1:
            bucket.most = size // 2
        else:
            self._fail(tried or rows[-1:], room.no_memory(self.stage.name))

    def _send(self, bucket: Bucket, rows: list[Row]) -> None:
        """Send one step of `rows` to the device. They change when all of it is sent, so that it can be repeated."""
        if bucket.batch is None or bucket.batch.rows != tuple(rows):
            bucket.batch = None
            bucket.batch = Batch(rows, self.stage, most=bucket.most)
        x_BCHW, x0_BCHW = bucket.batch.step()
        is_finite_B = fetch(torch.isfinite(x_BCHW).flatten(1).all(dim=1))
        looks = {row: fetch(self.stage.look(x0_BCHW[place])) for place, row in enumerate(rows) if _is_due(row)}
        for place, row in enumerate(rows):
            row.end = fetch(x_BCHW[place]) if row.is_last else None
        event = torch.cuda.Event() if self._is_cuda else None  # type: ignore[no-untyped-call]
        if event is not None:
            event.record()
        for row, x_CHW, x0_CHW in zip(rows, x_BCHW, x0_BCHW, strict=True):
            row.x, row.x0, row.noise = x_CHW, x0_CHW, None
            row.step += 1
        self._count(bucket, rows)
        self._line = [row for row in self._line if row.end is None]
        self._flights.append(Flight({row: row.step for row in rows}, is_finite_B, looks, event))

    def _count(self, bucket: Bucket, rows: list[Row]) -> None:
        now = time.monotonic()
        for row in rows:
            bucket.spent += row.pixels * (1 if row.unconditional is None else 2)
            row.request.pixel_steps += row.pixels
            if row.request.began is None:
                row.request.began = now
        rows[0].request.occupancy[len(rows)] += 1  # for one of those that share the step: the oldest

    def _land(self, flight: Flight) -> None:
        """Look at a step that the device has done."""
        try:
            if flight.event is not None:
                flight.event.synchronize()
        except RuntimeError as error:  # the device's, from whatever it was doing
            log.exception("device failed stage=%s", self.stage.name)
            self._fail(flight.steps, error)
        for (row, step), is_finite in zip(flight.steps.items(), flight.is_finite_B.tolist(), strict=True):
            if row.request.is_over:
                continue
            if not is_finite:
                self._fail([row], _broken(self.stage.name, step, row.plan.steps))
                continue
            if row.request.seen is not None and row in flight.looks:
                row.request.seen(Seen(step, row.plan.steps, flight.looks[row]))
            if step == row.plan.steps:
                self._end(row.request)

    def _end(self, request: Request) -> None:
        """One more row of it has ended."""
        request.left -= 1
        if request.left == 0:
            request.rest()
            request.occupancy.update(self._unclaimed)
            self._unclaimed.clear()
            self._over.append(request)

    def _fail(self, rows: Iterable[Row], error: Exception) -> None:
        """Tell `error` to the requests of `rows`."""
        self.hear(error)
        for request in {row.request: None for row in rows}:
            if not request.is_over:
                request.error = error
                self._leave(request)
                self._over.append(request)

    def _leave(self, request: Request) -> None:
        request.rest()
        self._unclaimed.update(request.occupancy)
        self._line = [row for row in self._line if row.request is not request]


def run(stage: Stage, request: Request, *, each_step: Callable[[int], None] | None = None) -> None:
    """Sample one request alone. `each_step(i)` is called before step i; what it raises ends the sampling.

    Raises what `Stepper.step` tells the request.
    """
    stepper = Stepper(stage, slots=len(request.rows))
    stepper.add(request)
    while not request.is_over:
        if each_step is not None and stepper.rows:
            each_step(request.rows[0].step)
        stepper.step()
    if request.error is not None:
        raise request.error


def _is_due(row: Row) -> bool:
    """Whether the step that the row makes is to be seen: of a watched request's first picture, and not too often."""
    request, now = row.request, time.monotonic()
    if request.seen is None or row is not request.rows[0]:
        return False
    if now - request.seen_last < 1 / SEEN_PER_SECOND and not row.is_last:
        return False
    request.seen_last = now
    return True


def _broken(stage: StageName, step: int, steps: int) -> RunFailed:
    return RunFailed(
        f"{stage}: step {step} of {steps} gave values that are not finite (NaN or infinity); no picture was made. "
        "Broken weights or too narrow a number format do this"
    )
