"""RUN/adherence.json: what was asked of three models, and what a reader of fixed rules found in their paintings.

Reads: adherence.json.

Kind: pure, but for files.
"""

from collections.abc import Iterator
from typing import Annotated, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from sote.cluster import remote
from sote.cluster.errors import RunFolderError
from sote.cluster.storage import RunFolder
from sote.data.world_prompts import CONCEPT

FILE: Final = "adherence.json"
Name = Literal["base", "finetuned", "control"]
NAMES: Final[tuple[Name, ...]] = ("base", "finetuned", "control")
Whole = Annotated[int, Field(ge=0)]
Score = tuple[Whole, Whole]  # hits, total


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)


class Prompt(_Part):
    """One prompt of the fixed list. `groups` says of each tag in `wanted` what it is about."""

    prompt: str
    seed: int
    wanted: tuple[str, ...]
    groups: dict[str, str]


class Painted(_Part):
    """What one model painted: images relative to the run folder, and the tags in each; parallel to the prompts."""

    label: str
    images: tuple[str, ...]
    found: tuple[tuple[str, ...], ...]


class Concept(_Part):
    """What the finetune was to learn: `chance` (0..1) is the share that no learning would give.

    `truth` are examples of it; `tags` are what the reader must find for a hit.
    """

    name: str
    tags: tuple[str, ...]
    chance: float = Field(ge=0, le=1)
    base: Score
    finetuned: Score
    control: Score
    images: dict[Name, tuple[str, ...]]
    truth: tuple[str, ...]

    def score(self, name: Name) -> Score:
        """Hits and total of one model."""
        return {"base": self.base, "finetuned": self.finetuned, "control": self.control}[name]


class Goal(_Part):
    """A figure with its bound, and whether it is met."""

    what: str
    least: float | None = None
    most: float | None = None
    value: float
    met: bool

    @model_validator(mode="after")
    def _one_bound(self) -> Self:
        if (self.least is None) == (self.most is None):
            raise ValueError("a goal has one of `least` and `most`")
        return self


class Adherence(_Part):
    """The whole file."""

    prompts: tuple[Prompt, ...]
    models: dict[Name, Painted]
    groups: dict[str, dict[Name, Score]]
    concept: Concept
    goals: tuple[Goal, ...]

    @model_validator(mode="after")
    def _whole(self) -> Self:
        for where, have in self._named():
            if missing := [name for name in NAMES if name not in have]:
                raise ValueError(f"{where}: nothing of {', '.join(missing)}")
        for name, each in self.models.items():
            if not len(each.images) == len(each.found) == len(self.prompts):
                raise ValueError(f"models.{name}: not as many images and lists of found tags as prompts")
        scores = [score for group in self.groups.values() for score in group.values()]
        if any(hits > total for hits, total in [*scores, *map(self.concept.score, NAMES)]):
            raise ValueError("more hits than there were to be had")
        return self

    def _named(self) -> Iterator[tuple[str, dict[Name, object]]]:
        yield "models", dict(self.models)
        yield "concept.images", dict(self.concept.images)
        for group, scores in self.groups.items():
            yield f"groups.{group}", dict(scores)

    def known(self, name: Name) -> Score:
        """Hits and total of one model over all groups but the new concept's: what the base learnt."""
        scores = [scores[name] for group, scores in self.groups.items() if group != CONCEPT]
        return sum(hits for hits, _ in scores), sum(total for _, total in scores)


def read(folder: RunFolder) -> Adherence | None:
    """What was measured in a run; None if nothing was. Raises RunFolderError: the file is not of this form."""
    path = folder.root / FILE
    if not remote.exists(path):
        return None
    try:
        return Adherence.model_validate_json(remote.fetch(path).read_bytes())
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"]))
        said = f"{where}: {first['msg']}" if where else first["msg"]
        raise RunFolderError(f"{remote.named(path)}: {said}; take it away, or measure again") from None
