"""What is trained, from the recipe: the module on its device, how a micro-batch becomes its inputs, its sources.

What learns is float32; what is frozen is held in the type of the arithmetic. Pictures are encoded here, where training
is asked to, with the very encoders of curation, in float32.

Shapes: B images, C channels, H and W cells of the latents that are trained, h and w of the encoder's, N windows of
text, T tokens.

Kind: actor.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn
from transformers import CLIPTextModelWithProjection, CLIPTokenizer

from sote.cluster import weights
from sote.cluster.errors import SourceError, WeightsError
from sote.data.encode import Encoder
from sote.data.vqgan import StageA
from sote.train import decoder, lora, modelfile, models, text
from sote.train.batches import Micro
from sote.train.decoder import Decoder
from sote.train.modelfile import DecoderSources
from sote.train.prior import Prior
from sote.train.recipe import TrainRecipe
from sote.train.source import Source
from sote.train.unet import CascadeUNet


@dataclass(frozen=True)
class Task:
    """What is trained. `model(*feed(micro, device), weight_B)` gives the mean weighted loss and plain losses [B].

    `modules` are the parts of the model that are written into checkpoints, `sources` where their weights come from.
    Dropout draws from torch's own generator: whoever calls the model seeds it with `micro.seed`.
    """

    model: nn.Module
    modules: tuple[str, ...]
    feed: Callable[[Micro, torch.device], tuple[Tensor, ...]]
    sources: Mapping[str, Source]


def make(recipe: TrainRecipe, *, device: torch.device) -> Task:
    """Load what the recipe trains onto `device`. Raises WeightsError or CheckpointError in one line."""
    needs_encoder = recipe.data.encode or (recipe.model.stage == "decoder" and recipe.diffusion.least_encoder_scale < 1)
    if needs_encoder:  # missing is found before gigabytes are read
        weights.locate(recipe.data.encoder, field="data.encoder")
    return _prior(recipe, device=device) if recipe.model.stage == "prior" else _decoder(recipe, device=device)


def frozen_dtype(recipe: TrainRecipe) -> torch.dtype:
    """What weights that do not learn are held in: the type of the arithmetic."""
    return torch.bfloat16 if recipe.workers.precision == "bfloat16" else torch.float32


class Encoders:
    """The nets that make latents of pictures, each loaded when it is first needed. They compute in float32."""

    def __init__(self, encoder: str, *, vqgan: Source | None, device: torch.device) -> None:
        self._encoder, self._vqgan, self._device = encoder, vqgan, device

    @cached_property
    def encoder(self) -> Encoder:
        """The EfficientNet encoder. Raises WeightsError."""
        path = weights.locate(self._encoder, field="data.encoder")
        return Encoder(path, dtype="float32", device=str(self._device))

    @cached_property
    def stage_a(self) -> StageA:
        """Stage A. Raises WeightsError."""
        if self._vqgan is None:
            raise WeightsError(
                "model.decoder: has no Stage A beside it, and the curate run has no latents of it; put "
                "stage_a.safetensors beside it, or curate with latents.vqgan"
            )
        net = models.vqgan_model(self._vqgan, dtype=torch.float32, device=self._device)
        return StageA(net, dtype="float32", device=str(self._device))


@dataclass(frozen=True)
class PriorFeed:
    """Makes the prior's inputs of a micro-batch: latents, noise, time, tokens, mask."""

    tokenizer: CLIPTokenizer
    windows: int
    encoders: Encoders

    def __call__(self, micro: Micro, device: torch.device) -> tuple[Tensor, ...]:
        """The inputs on `device`."""
        latents_BCHW = micro.latents_BCHW
        if latents_BCHW is None:
            pixels_BHWC = _pixels(micro)
            latents_BCHW = self.encoders.encoder.encode(pixels_BHWC.numpy())
        tokens_BNT, mask_BNT = text.tokens(self.tokenizer, micro.captions, windows=self.windows)
        return _moved((latents_BCHW, micro.noise_BCHW, micro.time_B, tokens_BNT, mask_BNT), device)


@dataclass(frozen=True)
class DecoderFeed:
    """Makes the decoder's inputs of a micro-batch: Stage A's latents, noise, time, tokens, mask, the encoder's latents
    and which of them are shown."""

    tokenizer: CLIPTokenizer
    encoders: Encoders

    def __call__(self, micro: Micro, device: torch.device) -> tuple[Tensor, ...]:
        """The inputs on `device`."""
        vq_BCHW = micro.latents_BCHW
        if vq_BCHW is None:
            pixels_BHWC = _pixels(micro)
            vq_BCHW = self.encoders.stage_a.encode(pixels_BHWC.numpy())
        shown_BChw = micro.encoder_latents_BCHW
        if shown_BChw is None:
            shown_BChw = self._shown(micro)
        tokens_BNT, mask_BNT = text.tokens(self.tokenizer, micro.captions, windows=decoder.WINDOWS)
        inputs = (vq_BCHW, micro.noise_BCHW, micro.time_B, tokens_BNT, mask_BNT, shown_BChw, micro.keep_B)
        return _moved(inputs, device)

    def _shown(self, micro: Micro) -> Tensor:
        """The encoder's latents of the pictures at this step's scale; zeros where they are left out."""
        pixels_BHWC = decoder.encoder_input(_pixels(micro), scale=micro.encoder_scale)
        count, height, width, _ = pixels_BHWC.shape
        cells = (height // decoder.ENCODER_STRIDE, width // decoder.ENCODER_STRIDE)
        shown_BChw = torch.zeros(count, decoder.ENCODER_CHANNELS, *cells)
        if micro.keep_B.any():
            shown_BChw[micro.keep_B] = self.encoders.encoder.encode(pixels_BHWC[micro.keep_B].numpy())
        return shown_BChw


def _prior(recipe: TrainRecipe, *, device: torch.device) -> Task:
    part, learns = recipe.model, recipe.optimizer.text_encoder_learning_rate is not None
    found = modelfile.prior(part.prior, field="model.prior", text_encoder=part.text_encoder)
    text_encoder = models.text_model(
        found.text_encoder, dtype=torch.float32 if learns else frozen_dtype(recipe), device=device
    )
    if learns and part.gradient_checkpointing:
        text_encoder.activation_checkpointing_enable(every_n_layers=round(1 / part.gradient_checkpointing))
    model = Prior(
        _unet(recipe, found.unet, device=device),
        text_encoder,
        mask_padding=recipe.text.mask_padding,
        train_text_encoder=learns,
    )
    feed = PriorFeed(
        models.tokenizer(found.tokenizer),
        text.windows_of(recipe.text.tokens),
        Encoders(recipe.data.encoder, vqgan=None, device=device),
    )
    sources = {"prior": found.unet, "text_encoder": found.text_encoder}
    return Task(model, modules=("prior", "text_encoder"), feed=feed, sources=sources)


def _decoder(recipe: TrainRecipe, *, device: torch.device) -> Task:
    part = recipe.model
    found = modelfile.decoder(str(part.decoder), field="model.decoder")
    model = Decoder(
        _unet(recipe, found.unet, device=device),
        _pooling(recipe, found, device=device),
        mask_padding=recipe.text.mask_padding,
    )
    feed = DecoderFeed(
        models.tokenizer(found.tokenizer), Encoders(recipe.data.encoder, vqgan=found.vqgan, device=device)
    )
    return Task(model, modules=("decoder",), feed=feed, sources={"decoder": found.unet})


def _unet(recipe: TrainRecipe, source: Source, *, device: torch.device) -> CascadeUNet:
    """The UNet that learns, or whose adapters do."""
    part = recipe.model
    dtype = torch.float32 if recipe.lora is None else frozen_dtype(recipe)
    unet = models.unet_model(source, dtype=dtype, device=device)
    if recipe.lora is not None:
        lora.attach(unet, recipe.lora, seed=recipe.batch.seed)
    unet.checkpoint_blocks(part.gradient_checkpointing)
    if device.type == "cpu" and not part.gradient_checkpointing:
        unet.keep_all()  # memory is not short there, and time is
    if part.compile:
        unet.compile_blocks()
    return unet


def _pooling(recipe: TrainRecipe, found: DecoderSources, *, device: torch.device) -> CLIPTextModelWithProjection:
    """The text encoder whose pooled vector Stage B takes. Raises WeightsError: there is none, or of another width."""
    reference = recipe.model.text_encoder
    source = found.text_encoder
    if reference is not None:
        source = modelfile.text_encoder_of(reference, field="model.text_encoder")
    if source is None:
        raise WeightsError(f"{found.unet.path}: model.decoder: has no text encoder; name one in model.text_encoder")
    wanted, given = found.unet.config["clip_text_pooled_in_channels"], source.config["projection_dim"]
    if wanted != given:
        raise WeightsError(
            f"{source.path}: model.text_encoder: gives pooled text of width {given}, this decoder takes {wanted}; name "
            "the text encoder that belongs to it"
        )
    return models.text_model(source, dtype=frozen_dtype(recipe), device=device)


def _pixels(micro: Micro) -> Tensor:
    if micro.pixels_BHWC is None:
        raise SourceError(f"micro-batch {micro.index}: has neither latents nor pictures; set data.encode = true")
    return micro.pixels_BHWC


def _moved(inputs: tuple[Tensor, ...], device: torch.device) -> tuple[Tensor, ...]:
    return tuple(tensor.to(device, non_blocking=True) for tensor in inputs)
