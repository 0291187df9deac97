"""`sote generate`: pictures of one prompt into files, without a server.

The same models, defaults and parameters as `sote serve` of the recipe. The two models are loaded one after the other,
so that a device has to hold only one.

Kind: wiring.
"""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from pydantic import ValidationError

from sote.cluster import devices, storage
from sote.cluster.errors import RequestError, UserError
from sote.serve.recipe import AccessPart, ReplicasPart, ServeRecipe
from sote.serve.schema import GenerateRequest
from sote.serve.settings import OutputFormat

ENDINGS: Final[dict[str, OutputFormat]] = {".png": "png", ".jpg": "jpeg", ".jpeg": "jpeg", ".webp": "webp"}


def run(
    recipe: ServeRecipe, prompt: str, *, out: Path, seed: int | None = None, say: Callable[[str], object] = print
) -> list[Path]:
    """Paint `defaults.images` pictures of `prompt`; `say` is told of each file. Returns the files.

    Several are OUT-1, OUT-2 and so on. Without a `seed` each call has another. Raises UserError, before anything is
    loaded, for an unknown ending, a missing folder, a file that is there, weights that are not.
    """
    files = check(recipe, out)
    request = _request(prompt, output_format=ENDINGS[out.suffix.lower()], seed=seed)
    begin = time.monotonic()
    from sote.serve.cascade import Cascade

    cascade = Cascade.load(recipe.model, defaults=recipe.defaults, limits=recipe.limits, sequential=True)
    painted = cascade.generate(request)
    for path, picture in zip(files, painted, strict=True):
        storage.write_bytes(path, picture.data)
        say(f"{path}  seed {picture.seed}  {time.monotonic() - begin:.1f} s")
    return files


def check(recipe: ServeRecipe, out: Path) -> list[Path]:
    """The files that will be written. Raises UserError for what `run` refuses."""
    if out.suffix.lower() not in ENDINGS:
        raise UserError(f"--out {out}: the ending says the format; known: {', '.join(ENDINGS)}")
    if not out.parent.is_dir():
        raise UserError(f"--out {out}: no such folder: {out.parent}")
    images = recipe.defaults.images
    numbers = [f"-{number}" for number in range(1, images + 1)] if images > 1 else [""]
    files = [out.with_name(f"{out.stem}{number}{out.suffix}") for number in numbers]
    if there := [path for path in files if path.exists()]:
        raise UserError(f"--out {out}: {there[0]} is there already; name another file, or remove it")
    from sote.serve import plan

    if any(device.torch_name.startswith("cuda") for device in devices.found()):
        plan.weights(recipe)
    else:
        plan.check(_alone(recipe))
    return files


def _alone(recipe: ServeRecipe) -> ServeRecipe:
    """The recipe of a server for one picture at a time on this machine's cores, open to nobody."""
    one = ReplicasPart(slots=1)
    return recipe.model_copy(
        update={"host": "127.0.0.1", "access": AccessPart(), "prior_replicas": one, "decoder_replicas": one}
    )


def _request(prompt: str, *, output_format: OutputFormat, seed: int | None) -> GenerateRequest:
    try:
        return GenerateRequest(prompt=prompt, output_format=output_format, seed=seed)
    except ValidationError as error:
        first = error.errors(include_input=False)[0]
        raise RequestError(f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from None
