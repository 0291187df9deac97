"""The pictures of rows as training sees them: upright, RGB, cut to the row's crop, at the size of its bucket.

Opened by the rules of the curate run whose rows these are, and cut by the very function that its latents were made
with. A picture that is gone or no longer the same stops the training: it does not guess.

Reads: what rows.Files names, recipe.toml of the curate run.
Kind: pure, but for reading files.
"""

import hashlib
import tomllib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from sote.cluster.errors import SourceError
from sote.data import files, places
from sote.data.decode import Refused, open_picture
from sote.data.inputs import encoder_input
from sote.data.latentfile import ENCODER_STRIDE, latent_cells
from sote.data.recipe import CurateRecipe, DecodePart, LatentsPart
from sote.train import retries
from sote.train.rows import Cut, Rows

RECIPES = ("recipe.curate.toml", "recipe.toml")  # of a run folder that another verb made, and of its own

Pixels = NDArray[np.uint8]


class Pictures:
    """The pictures of `rows`, opened by `rule`. For any number of threads."""

    def __init__(self, rows: Rows, rule: DecodePart, *, waits: Sequence[float] = retries.WAITS_SECONDS) -> None:
        if rows.files is None:
            raise ValueError("these rows are not of pictures")
        self._rows, self._files, self._rule, self._waits = rows, rows.files, rule, waits

    def read(self, row: int, *, width: int, height: int) -> Pixels:
        """[height, width, 3] of one row. Raises SourceError naming its id and uri; RunFailed: a network."""
        data, uri = self._bytes(row), self._uri(row)
        id = str(self._rows.id[row].as_py())
        if hashlib.sha256(data).hexdigest() != id:
            raise SourceError(f"{uri}: picture {id}: has changed since it was curated; curate again")
        try:
            image = open_picture(data, self._rule).image
            return encoder_input(image, box=self._crop(row), width=width, height=height)
        except (Refused, ValueError) as error:
            raise SourceError(f"{uri}: picture {id}: cannot be used any more ({error}); curate again") from None

    def _uri(self, row: int) -> str:
        return str(self._files.uri[row].as_py())

    def _crop(self, row: int) -> tuple[int, int, int, int]:
        left, top, right, bottom = self._files.crop[row].tolist()
        return left, top, right, bottom

    def _bytes(self, row: int) -> bytes:
        """The whole file."""
        uri = self._uri(row)
        offset, size = self._files.offset[row].as_py(), self._files.bytes[row].as_py()
        most = self._rule.max_file_bytes

        def read(_: Sequence[int]) -> list[bytes | OSError]:
            return [retries.or_error(lambda place: places.read(place, offset=offset, bytes=size, limit=most), uri)]

        try:
            return retries.each(read, [uri.rpartition(places.WITHIN)[2]], waits=self._waits)[0]
        except OSError as error:
            why = "is gone" if isinstance(error, FileNotFoundError) else f"cannot be read ({error.strerror or error})"
            id = self._rows.id[row].as_py()
            raise SourceError(f"{uri}: picture {id}: {why}; bring it back, or curate again") from None


def encoder_size(width: int, height: int, compression: float) -> tuple[int, int]:
    """Width and height that the encoder is shown a picture at, in pixels: its cells are 32 pixels wide."""
    return latent_cells(width, compression) * ENCODER_STRIDE, latent_cells(height, compression) * ENCODER_STRIDE


def curate_recipe(curated: str) -> CurateRecipe | None:
    """The recipe in a curate run's folder; None if there is none. Raises SourceError for one that cannot be read."""
    for name in RECIPES:
        uri = files.join(files.absolute(curated), name)
        try:
            values = tomllib.loads(files.read(uri).decode())
            return CurateRecipe.model_validate(values)
        except FileNotFoundError:
            continue
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError, ValidationError) as error:
            why = str(error).splitlines()[0]
            raise SourceError(f"{uri}: data.curated: cannot be read as the recipe of a curate run ({why})") from None
    return None


def rules(curated: str) -> tuple[DecodePart, LatentsPart]:
    """How a curate run opens pictures, and how it cuts them; the defaults where it does not say, for any size."""
    recipe = curate_recipe(curated)
    if recipe is None:
        return DecodePart(min_pixels=1), LatentsPart()
    return recipe.decode, recipe.latents or LatentsPart()


def cut(part: LatentsPart) -> Cut:
    """The rule of buckets."""
    return Cut(part.resolution, part.bucket_step)
