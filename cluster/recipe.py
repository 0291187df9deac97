"""TOML recipe -> frozen typed recipe, its digest, and errors that name file and field.

Each folder owns its recipe class (`data/recipe.py`, ...) as a child of `Recipe`, built of `Part`s. A default lives in
the class or nowhere. A field that can be off is `None` by default, because TOML has no null.

Kind: pure.
"""

import difflib
import hashlib
import json
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from types import UnionType
from typing import Any, Final, Self, TypeVar, Union, get_args, get_origin

import tomli_w
from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from sote.cluster.errors import RecipeError

R = TypeVar("R", bound="Part")
# user:password@ before the host, or an option of fsspec's file systems or of a signed link
CREDENTIALS: Final = re.compile(
    r"(?P<protocol>[a-z][a-z0-9+.-]*://)([^/?#\s]*:[^/?#\s]*@"
    r"|\S*[?&](key|secret|token|password|account_key|sas_token|aws_\w+|access_key\w*|secret_\w+|x-amz-\w+)=)",
    re.IGNORECASE,
)


class Part(BaseModel):
    """One table of a recipe: frozen, and unknown keys are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Recipe(Part):
    """A whole recipe file. `run` names the run folder: a path, relative to the working directory, or a URI.

    Recipes are kept in the run folder and travel with jobs, so no URI in one has credentials in it.
    """

    run: str

    @model_validator(mode="after")
    def _no_credentials(self) -> Self:
        for field, text in _texts(self.model_dump(mode="json"), ""):
            if found := CREDENTIALS.search(text):
                raise ValueError(
                    f"{field}: the URI {found['protocol']}... has credentials in it; leave them out: they come from "
                    "the environment, from the client's own file or from the machine's role"
                )
        return self


def load(path: Path, kind: type[R]) -> R:
    """Read the recipe at `path` as a `kind`.

    Raises RecipeError with one line for each problem of the file: `file: field: what is wrong, what would be right`.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise RecipeError(f"{path}: no such recipe file") from None
    except (IsADirectoryError, PermissionError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path}: cannot be read as a text file ({error})") from None
    return loads(text, kind, name=str(path))


def loads(text: str, kind: type[R], *, name: str) -> R:
    """The recipe in `text` as a `kind`; `name` is what errors call it. Raises RecipeError as `load` does."""
    try:
        return kind.model_validate(tomllib.loads(text))
    except tomllib.TOMLDecodeError as error:
        raise RecipeError(f"{name}: not valid TOML: {error}") from None
    except ValidationError as error:
        raise RecipeError("\n".join(f"{name}: {line}" for line in _lines(error, kind))) from None


def dumps(recipe: Recipe) -> str:
    """The resolved recipe as TOML; `None` (off) is left out, so that `load` gives an equal recipe."""
    return tomli_w.dumps(recipe.model_dump(mode="json", exclude_none=True))


def digest(part: Part) -> str:
    """sha256 of the canonical JSON of a recipe or of one part, as 64 hex digits."""
    return digest_of(part.model_dump(mode="json"))


def digest_of(value: object) -> str:
    """sha256 of any JSON value with sorted keys, as 64 hex digits."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def difference(old: dict[str, Any], new: dict[str, Any], at: str = "") -> list[str]:
    """The fields in which two dumped recipes differ, each as `field: old there, new here`."""
    found: list[str] = []
    for key in sorted(old.keys() | new.keys()):
        field, was, now = f"{at}{key}", old.get(key), new.get(key)
        if isinstance(was, dict) and isinstance(now, dict):
            found += difference(was, now, f"{field}.")
        elif was != now:
            found.append(f"{field}: {was!r} there, {now!r} here")
    return found


def _texts(value: object, at: str) -> Iterator[tuple[str, str]]:
    """Every text in a dumped recipe, with its field."""
    if isinstance(value, str):
        yield at, value
    elif isinstance(value, dict):
        for name, each in value.items():
            yield from _texts(each, f"{at}.{name}" if at else str(name))
    elif isinstance(value, list):
        for number, each in enumerate(value):
            yield from _texts(each, f"{at}.{number}")


def _lines(error: ValidationError, kind: type[Part]) -> list[str]:
    lines = []
    for item in error.errors(include_url=False):
        field = ".".join(str(step) for step in item["loc"]) or "recipe"
        if item["type"] == "extra_forbidden":
            lines.append(f"{field}: unknown key{_suggestion(kind, item['loc'])}")
        elif item["type"] == "missing":
            lines.append(f"{field}: missing, the recipe must have it")
        else:
            message = item["msg"].removeprefix("Value error, ")
            value = item.get("input")
            shown = f" (is {value!r})" if isinstance(value, str | int | float | bool) else ""
            lines.append(f"{field}: {message[:1].lower()}{message[1:]}{shown}")
    return lines


def _suggestion(kind: type[Part], place: tuple[int | str, ...]) -> str:
    """', did you mean X' or the list of known keys of the table in which the unknown key stands."""
    table: type[Part] | None = kind
    for step in place[:-1]:
        if isinstance(step, str) and table is not None and step in table.model_fields:
            table = _part_in(table.model_fields[step].annotation)
    if table is None:
        return ""
    known = list(table.model_fields)
    close = difflib.get_close_matches(str(place[-1]), known, n=1)
    return f", did you mean {close[0]}" if close else f", known here: {', '.join(known)}"


def _part_in(annotation: Any) -> type[Part] | None:
    """The Part class inside an annotation such as `Part`, `Part | None` or `tuple[Part, ...]`."""
    if isinstance(annotation, type) and issubclass(annotation, Part):
        return annotation
    if get_origin(annotation) in (Union, UnionType, tuple, list):
        for inner in get_args(annotation):
            if found := _part_in(inner):
                return found
    return None
