"""Sample pictures of a training: a snapshot of its weights, the recipe's prompts and seeds -> PNG files.

What was trained comes from the snapshot, everything else from where the recipe has it: of a run on Stage C the decoder
that it will be exported with, of a run on Stage B the prior that it names. Adapters are added to their base.

Kind: actor.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from sote.cluster.errors import WeightsError
from sote.serve import load
from sote.serve.cascade import Cascade
from sote.serve.decoder import DecoderModel
from sote.serve.load import DecoderWeights, PriorWeights
from sote.serve.prior import PriorModel
from sote.serve.recipe import DefaultsPart, LimitsPart, ModelPart
from sote.serve.settings import MAX_SEED, Settings, Stage
from sote.train import checkpoint, folders, lora, modelfile, models, source, text
from sote.train.absolute import absolute
from sote.train.names import Model
from sote.train.painting import Sample
from sote.train.recipe import SamplesPart, TrainRecipe
from sote.train.source import Source

FIELD = "samples"


@dataclass(frozen=True)
class Painter:
    """Paints the prompts of a recipe with the weights of a snapshot. Can be sent to another process."""

    recipe: TrainRecipe
    part: SamplesPart

    def __call__(self, snapshot: Path) -> list[Sample]:
        """One picture for each prompt, in order. Raises WeightsError or CheckpointError: the weights are not whole;
        RunFailed: values are not finite."""
        device = load.device_here() if self.part.use_gpu else torch.device("cpu")
        compression = float(_metadata(snapshot)["compression"])
        asked = [self._settings(number, compression) for number in range(len(self.part.prompts))]
        named = ModelPart(name=self.recipe.export.name)
        cascade = Cascade(
            lambda: PriorModel(named, device=device, weights=prior_weights(self.recipe, snapshot, device=device)),
            lambda: DecoderModel(named, device=device, weights=decoder_weights(self.recipe, snapshot, device=device)),
            DefaultsPart(),
            LimitsPart(),
        )  # the two are never in memory together
        painted = [pictures[0] for pictures in cascade.paint(asked)]
        return [Sample(each.prompt, each.seed, picture.data) for each, picture in zip(asked, painted, strict=True)]

    def _settings(self, number: int, compression: float) -> Settings:
        """What is asked for with the prompt `number`; how it is sampled is as serving does it by default."""
        part, usual = self.part, DefaultsPart()
        prior = Stage(
            part.steps,
            part.guidance,
            usual.prior_sampler,
            usual.prior_scheduler,
            usual.prior_shift,
            usual.prior_guidance_rescale,
        )
        decoder = Stage(
            usual.decoder_steps,
            usual.decoder_guidance,
            usual.decoder_sampler,
            usual.decoder_scheduler,
            usual.decoder_shift,
        )
        return Settings(
            prompt=part.prompts[number],
            negative_prompt=part.negative_prompt,
            width=part.width,
            height=part.height,
            compression=compression,
            images=1,
            seed=(part.seed + number) % (MAX_SEED + 1),
            output_format="png",
            prior=prior,
            decoder=decoder,
        )


def painter(recipe: TrainRecipe) -> Painter | None:
    """What paints for a recipe; None if it asks for no samples."""
    return Painter(absolute(recipe), recipe.samples) if recipe.samples is not None else None


def prior_weights(recipe: TrainRecipe, snapshot: Path, *, device: torch.device) -> PriorWeights:
    """Stage C and its text encoder, as far as they are in the snapshot; the rest as the recipe names it."""
    part, dtype = recipe.model, load.dtype_for("auto", device)
    if part.stage == "decoder":
        return load.load_prior(ModelPart(prior=part.prior, text_encoder=part.text_encoder), device=device)
    named = modelfile.prior(part.prior, field="model.prior", text_encoder=part.text_encoder)
    unet = models.unet_model(_trained(snapshot, "prior") or named.unet, dtype=dtype, device=device)
    if (adapters := snapshot / checkpoint.LORA).exists() and recipe.lora is not None:
        _add(unet, load_file(adapters), alpha=recipe.lora.alpha)
    words = _trained(snapshot, "text encoder") or named.text_encoder
    return PriorWeights(
        unet=unet,
        text_encoder=models.text_model(words, dtype=dtype, device=device),
        tokenizer=models.tokenizer(named.tokenizer),
        mask_padding=recipe.text.mask_padding,
        windows=text.windows_of(recipe.text.tokens),
    )


def decoder_weights(recipe: TrainRecipe, snapshot: Path, *, device: torch.device) -> DecoderWeights:
    """Stage B, out of the snapshot if it was trained, and Stage A. Raises WeightsError where there is no Stage A."""
    is_trained = recipe.model.stage == "decoder"
    field = "model.decoder" if is_trained else "export.decoder"
    reference = recipe.model.decoder if is_trained else recipe.export.decoder
    if reference is None:
        raise WeightsError(f"{field}: samples need a decoder; name one")
    named = modelfile.decoder(reference, field=field)
    vqgan = modelfile.needed_vqgan(named, field=field)
    unet = _trained(snapshot, "decoder") or named.unet
    return DecoderWeights(
        unet=models.unet_model(unet, dtype=load.dtype_for("auto", device), device=device),
        vqgan=models.vqgan_model(vqgan, dtype=torch.float32, device=device),
        vqgan_scale=ModelPart().vqgan_scale,
    )


def _trained(snapshot: Path, what: Model) -> Source | None:
    """A model of the snapshot; None if it was not trained."""
    path = snapshot / checkpoint.weight_file(source.MODULES[what])
    return source.take(source.look([path]), what, field=FIELD) if path.exists() else None


def _metadata(snapshot: Path) -> Mapping[str, str]:
    """What the snapshot's files say of themselves; all say the same of the run."""
    return folders.header(min(snapshot.glob("*.safetensors"))).metadata


@torch.no_grad()
def _add(unet: torch.nn.Module, adapters: Mapping[str, Tensor], *, alpha: float) -> None:
    """Add the adapters to the weights of their layers."""
    named = {lora.plain(name.removeprefix("prior.")): tensor for name, tensor in adapters.items()}
    for name, weight in unet.named_parameters():
        weight.copy_(lora.merged(weight, name=name, adapters=named, alpha=alpha))
