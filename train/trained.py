"""What a run has trained, as models to be published: the weights of a checkpoint, their running means, or adapters
added to the base that they were trained on. Nothing is in memory but adapters, and one tensor at a time.

Kind: actor.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path

from torch import Tensor

from sote.cluster.errors import CheckpointError, WeightsError
from sote.train import checkpoint, folders, lora, modelfile, source, tensorfile
from sote.train.checkpoint import Checkpoint
from sote.train.names import Model
from sote.train.recipe import TrainRecipe
from sote.train.source import MODULES, Source


@dataclass(frozen=True)
class Merged(Source):
    """A UNet with adapters added to its layers, in float32."""

    adapters: Mapping[str, Tensor] = field(default_factory=dict, repr=False)
    alpha: float = 1.0

    def read(self, name: str) -> Tensor:
        """One tensor, float32 where it has an adapter."""
        tensor = super().read(name)
        merged = lora.merged(tensor.float(), name=name, adapters=self.adapters, alpha=self.alpha)
        return tensor if f"{name.removesuffix('.weight')}.{lora.DOWN}.weight" not in self.adapters else merged


def prior(recipe: TrainRecipe, found: Checkpoint) -> tuple[Source, Source]:
    """Stage C and its text encoder of a run that trained the prior. Raises WeightsError or CheckpointError."""
    if recipe.lora is None:
        return _module(recipe, found, "prior"), _module(recipe, found, "text encoder")
    model = recipe.model
    base = modelfile.prior(model.prior, field="model.prior", text_encoder=model.text_encoder)
    said = {it.name: getattr(base.unet, it.name) for it in fields(Source)}
    return Merged(**said, adapters=adapters(recipe, found), alpha=recipe.lora.alpha), base.text_encoder


def decoder(recipe: TrainRecipe, found: Checkpoint) -> Source:
    """Stage B of a run that trained the decoder. Raises WeightsError or CheckpointError."""
    return _module(recipe, found, "decoder")


def adapters(recipe: TrainRecipe, found: Checkpoint) -> dict[str, Tensor]:
    """The adapters of a LoRA run by plain name. Raises CheckpointError if the checkpoint is not one's."""
    path = _file(recipe, found, checkpoint.LORA)
    try:
        stored = folders.header(path).tensors
    except WeightsError as error:
        raise CheckpointError(str(error)) from None
    return {name: tensorfile.read(path, it) for name, it in stored.items()}


def _module(recipe: TrainRecipe, found: Checkpoint, what: Model) -> Source:
    """A module of the checkpoint, or its running mean if the recipe publishes that and it was trained."""
    is_trained = what != "text encoder" or recipe.optimizer.text_encoder_learning_rate is not None
    name = checkpoint.weight_file(MODULES[what])
    path = _file(recipe, found, name) if is_trained else found.path / name
    return source.take(source.look([path]), what, field="checkpoint")


def _file(recipe: TrainRecipe, found: Checkpoint, name: str) -> Path:
    if not recipe.export.ema:
        return found.path / name
    path = found.path / f"{checkpoint.AVERAGE}{name}"
    if not path.is_file():
        raise CheckpointError(f"{path}: export.ema: there is no running mean yet; set export.ema = false, or train on")
    return path
