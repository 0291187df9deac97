"""What paints, as the routes see it: one await for a request, whoever does the work behind it.

Behind it stand Ray's handles (`replicas.Replicas`) in the server, and the two models themselves (`cascade.Local`) in
tests of the routes.

Kind: pure.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from sote.serve.pictures import Painted
from sote.serve.settings import Numbers, Progress, Settings, Work

Watch = Callable[[Progress], None]


@dataclass(frozen=True, eq=False)
class Painting:
    """The pictures of one request and what they took. `flagged`: for each picture the tags for which it would be
    withheld; None where no tagger looks."""

    images: tuple[Painted, ...]
    work: tuple[Work, ...]
    seconds: float
    warnings: tuple[str, ...]
    prompt_tokens: int
    flagged: tuple[tuple[str, ...], ...] | None = None


class Service(Protocol):
    """Cancelling an await stops its work within one step. Both raise Busy where there is no place in the line,
    RunFailed (naming stage and step) where values are not finite, NoMemory, and RayError where the models are lost."""

    async def paint(self, settings: Settings, *, watch: Watch | None = None) -> Painting:
        """The pictures of `settings`. `watch` is called on the event loop, now and then and at most once a step."""
        ...

    async def decode(self, latents: Numbers, settings: Settings, *, watch: Watch | None = None) -> Painting:
        """The pictures of latents [B, 16, h, w] that are there already; their pooled text is made from the prompts."""
        ...

    async def deployments(self) -> dict[str, str]:
        """Status of each part that must be up, by name; HEALTHY is the good one."""
        ...
