"""A model in a replica: one thread steps, awaits of the event loop are answered.

Texts are read and latents decoded in the same thread, between the steps: the device does one thing at a time. Files are
encoded beside it. An await that is cancelled takes its pictures out of the next step.

Kind: pure, but for its thread: torch is loaded where a model is.
"""

import asyncio
import contextlib
import logging
import threading
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from sote.cluster.errors import SoteError
from sote.serve import preview
from sote.serve.pictures import Painted
from sote.serve.settings import Latents, Numbers, Progress, Settings, StageName, Work

if TYPE_CHECKING:
    from sote.serve.decoder import Decoded, DecoderModel
    from sote.serve.prior import PriorModel
    from sote.serve.rows import Request, Seen

log = logging.getLogger(__name__)
WRITERS = 2  # threads that encode files; the rest of a replica's cores is the model's


class LineLost(Exception):
    """The thread that steps has ended, and this replica can do nothing any more: another may."""


@dataclass(frozen=True, eq=False)
class DecoderAnswer:
    """The pictures of a request. `flagged`: for each the tags for which it would be withheld; None: nothing looks."""

    images: list[Painted]
    work: Work
    flagged: tuple[tuple[str, ...], ...] | None


@dataclass(eq=False)
class Ask:
    """One await. `begin` gives what is to step, `finish` the answer to it; without `finish` nothing steps, and what
    `begin` gives is the answer. Both are called in the thread that steps."""

    begin: Callable[[], Any]
    finish: Callable[[Any], Any] | None
    future: "asyncio.Future[Any]"
    arrived: float = field(default_factory=time.monotonic)
    request: "Request | None" = None

    def tell(self, answer: Any = None, *, error: Exception | None = None) -> None:
        """Answer the await, if somebody is still there to hear it."""
        with contextlib.suppress(RuntimeError):  # its event loop has ended
            self.future.get_loop().call_soon_threadsafe(_settle, self.future, answer, error)


class Line:
    """The thread of one model, and what waits for it in the order of arrival. A request begins when there is room."""

    def __init__(self, model: "PriorModel | DecoderModel", *, slots: int) -> None:
        from sote.serve.batching import Stepper

        self.stage: StageName = model.name
        self._stepper = Stepper(model, slots=slots)
        self._asks: deque[Ask] = deque()
        self._gone: list[Ask] = []
        self._stepping: dict[Request, Ask] = {}  # the thread's own
        self._is_closing = False
        self._awake = threading.Condition()
        self._thread = threading.Thread(target=self._run, name=f"sote-{self.stage}", daemon=True)
        self._thread.start()

    async def ask(self, begin: Callable[[], Any], finish: Callable[[Any], Any] | None = None) -> Any:
        """What `finish` makes of what `begin` gave, when its pictures have stepped.

        Raises what hit the request; LineLost.
        """
        ask = Ask(begin, finish, asyncio.get_running_loop().create_future())
        with self._awake:
            self.check()
            self._asks.append(ask)
            self._awake.notify()
        try:
            return await ask.future
        except asyncio.CancelledError:
            with self._awake:
                self._gone.append(ask)
                self._awake.notify()
            raise

    async def watched(
        self, begin: "Callable[[Callable[[Seen], None]], Any]", finish: Callable[[Any], Any]
    ) -> AsyncGenerator[Any, None]:
        """Progress now and then, and last the answer. Closing the iterator takes the request out of the next step."""
        loop = asyncio.get_running_loop()
        steps: asyncio.Queue[Seen | None] = asyncio.Queue()

        def seen(step: "Seen") -> None:
            with contextlib.suppress(RuntimeError):  # the event loop has ended
                loop.call_soon_threadsafe(steps.put_nowait, step)

        def ended(answer: "asyncio.Future[Any]") -> None:
            if not answer.cancelled():
                answer.exception()  # heard of, even if nobody waits for it any more
            steps.put_nowait(None)

        answer = asyncio.ensure_future(self.ask(lambda: begin(seen), finish))
        answer.add_done_callback(ended)
        try:
            while (step := await steps.get()) is not None:
                if steps.empty() or step.step == step.steps:  # else a newer one is there
                    yield await asyncio.to_thread(preview.progress, self.stage, step)
            yield await answer
        finally:
            answer.cancel()

    def check(self) -> None:
        """Raises LineLost if the thread has ended."""
        if self._is_closing or not self._thread.is_alive():
            raise self._lost()

    def close(self) -> None:
        """End the thread; whoever waits is told LineLost."""
        with self._awake:
            self._is_closing = True
            self._awake.notify()
        self._thread.join()

    def _run(self) -> None:
        try:
            while not self._stepper.is_broken and self._wait():
                self._admit()
                for request in self._stepper.step():
                    self._answer(request)
        finally:
            with self._awake:
                self._is_closing = True
                left = [*self._asks, *self._stepping.values()]
            for ask in left:
                ask.tell(error=self._lost())

    def _wait(self) -> bool:
        """Until there is something to do, and let go what was cancelled. False: the line was closed."""
        with self._awake:
            while not (self._asks or self._gone or self._is_closing) and self._stepper.is_idle:
                self._awake.wait()
            gone, self._gone = self._gone, []
            self._asks = deque(ask for ask in self._asks if ask not in gone)
        for ask in gone:
            if ask.request is not None and self._stepping.pop(ask.request, None) is not None:
                self._stepper.drop(ask.request)
                ask.request.forget()
        return not self._is_closing

    def _admit(self) -> None:
        """Begin what waits: in order as long as there is room, and at once what takes none."""
        with self._awake:
            asks, self._asks = self._asks, deque()
        waiting = deque[Ask]()
        for ask in asks:
            if ask.finish is None or (not waiting and self._stepper.has_room):
                self._begin(ask)
            else:
                waiting.append(ask)
        with self._awake:
            self._asks = waiting + self._asks

    def _begin(self, ask: Ask) -> None:
        begun = self._tried(ask, ask.begin)
        if begun is None:
            return
        if ask.finish is None:
            ask.tell(begun)
            return
        ask.request, begun.arrived = begun, ask.arrived
        self._stepping[begun] = ask
        self._stepper.add(begun)

    def _answer(self, request: "Request") -> None:
        """Answer the await of a request that is over."""
        ask = self._stepping.pop(request)
        if self._stepper.is_broken:
            ask.tell(error=self._lost())
        elif request.error is not None:
            ask.tell(error=request.error)
        elif ask.finish is not None:
            finish = ask.finish
            answer = self._tried(ask, lambda: finish(request))
            if answer is not None:
                ask.tell(answer)
        request.forget()

    def _tried(self, ask: Ask, work: Callable[[], Any]) -> Any:
        """What `work()` gives; None where it failed, which its await is told."""
        try:
            return work()
        except SoteError as error:
            ask.tell(error=error)
        except Exception as error:
            log.exception("request failed stage=%s", self.stage)
            self._stepper.hear(error)
            ask.tell(error=self._lost() if self._stepper.is_broken else error)
        return None

    def _lost(self) -> LineLost:
        return LineLost(f"{self.stage}: the thread that steps has ended")


class PriorLine:
    """The prior of a replica. Cancelling an await takes its pictures out of the next step. All raise LineLost."""

    def __init__(self, model: "PriorModel", *, slots: int) -> None:
        self.model = model
        self._line = Line(model, slots=slots)

    async def latents(self, settings: Settings) -> Latents:
        """As `PriorModel.latents`."""
        latents: Latents = await self._line.ask(lambda: self.model.request(settings), self.model.finish)
        return latents

    async def watched(self, settings: Settings) -> AsyncGenerator[Progress | Latents, None]:
        """Progress with previews, a few times a second, and last the latents."""
        steps = self._line.watched(lambda seen: self.model.request(settings, seen=seen), self.model.finish)
        async with contextlib.aclosing(steps):
            async for each in steps:
                yield each

    async def pooled(self, settings: Settings) -> Numbers:
        """As `PriorModel.pooled`; takes no slot."""
        pooled: Numbers = await self._line.ask(lambda: self.model.pooled(settings))
        return pooled

    def check(self) -> None:
        """Raises LineLost if nothing steps here any more."""
        self._line.check()

    def close(self) -> None:
        """End its thread."""
        self._line.close()


class DecoderLine:
    """The decoder of a replica. Cancelling an await takes its pictures out of the next step. All raise LineLost."""

    def __init__(self, model: "DecoderModel", *, slots: int) -> None:
        self.model = model
        self._line = Line(model, slots=slots)
        self._writers = ThreadPoolExecutor(max_workers=WRITERS, thread_name_prefix="sote-files")

    async def paint(self, latents: Latents, settings: Settings) -> DecoderAnswer:
        """As `DecoderModel.paint`, and what the tagger sees."""
        decoded = await self._line.ask(lambda: self.model.request(latents, settings), self.model.finish)
        return await self._written(decoded)

    async def watched(self, latents: Latents, settings: Settings) -> AsyncGenerator[Progress | DecoderAnswer, None]:
        """Progress with previews, a few times a second, and last the answer."""
        steps = self._line.watched(lambda seen: self.model.request(latents, settings, seen=seen), self.model.finish)
        async with contextlib.aclosing(steps):
            async for each in steps:
                yield each if isinstance(each, Progress) else await self._written(each)

    def check(self) -> None:
        """Raises LineLost if nothing steps here any more."""
        self._line.check()

    def close(self) -> None:
        """End its threads."""
        self._line.close()
        self._writers.shutdown()

    async def _written(self, decoded: "Decoded") -> DecoderAnswer:
        """Files of the pictures, and the tags they are flagged for: beside the steps of others."""
        loop, places = asyncio.get_running_loop(), range(len(decoded.pixels))
        images = [loop.run_in_executor(self._writers, self.model.painted, decoded, place) for place in places]
        flags = [loop.run_in_executor(self._writers, self.model.flagged, decoded, place) for place in places]
        painted, found = await asyncio.gather(*images), await asyncio.gather(*flags)
        flagged = tuple(tags for tags in found if tags is not None)
        return DecoderAnswer(painted, decoded.work(), flagged if len(flagged) == len(painted) else None)


def _settle(future: "asyncio.Future[Any]", answer: Any, error: Exception | None) -> None:
    if future.done():
        return
    if error is not None:
        future.set_exception(error)
    else:
        future.set_result(answer)
