"""A training recipe with absolute paths: Ray's processes have another working directory than the command.

Kind: pure, but for looking which paths are there.
"""

from pathlib import Path

from sote.data import files
from sote.train.recipe import TrainRecipe


def absolute(recipe: TrainRecipe) -> TrainRecipe:
    """The same recipe; keys of models and URIs stay as they are."""
    data = {"curated": files.absolute(recipe.data.curated), "encoder": _whole(recipe.data.encoder)}
    model = {name: _whole(getattr(recipe.model, name)) for name in ("prior", "decoder", "text_encoder")}
    export = {"decoder": _whole(recipe.export.decoder)}
    return recipe.model_copy(
        update={
            "data": recipe.data.model_copy(update=data),
            "model": recipe.model.model_copy(update=model),
            "export": recipe.export.model_copy(update=export),
        }
    )


def _whole(reference: str | None) -> str | None:
    """A path that is there as an absolute one; a key as it is."""
    path = Path(reference).expanduser() if reference is not None else None
    return str(path.resolve()) if path is not None and path.exists() else reference
