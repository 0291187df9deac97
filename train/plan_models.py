"""Which models a training holds: those on disk, or those that are still to come.

What is not there yet is a model known by key whose files are not on this machine, and a base run that another recipe
makes. A plan can be reckoned for both; a training cannot start.

Kind: actor.
"""

import tomllib
from pathlib import Path

from sote.cluster import recipe as recipes
from sote.cluster import remote, weights
from sote.cluster.errors import RecipeError, WeightsError
from sote.cluster.storage import RunFolder
from sote.train import arithmetic, checkpoint, folders, modelfile, published
from sote.train.arithmetic import Values
from sote.train.memory import Models
from sote.train.names import Model
from sote.train.recipe import ExportPart, TrainRecipe
from sote.train.rows import Needs

# facts, counted: the EfficientNet encoder and Stage A, held where pictures are encoded
ENCODER_WEIGHTS, VQGAN_WEIGHTS = 20_197_968, 18_406_894


class ToCome:
    """Called with a reference and its field: whether it names something that is not there yet. Keeps a line of each.

    A base run is to come if a recipe in the folder `beside` has it as its `run`.
    """

    def __init__(self, beside: Path | None = None, *, before: tuple[str, ...] = ()) -> None:
        self.beside, self.before = beside, before  # run folders that asked for this one
        self.lines: list[str] = []

    def __call__(self, reference: str, field: str) -> bool:
        if base := self.base(reference):
            self.note(f"{field}: {reference} is still to be trained, by {base[0]}")
            return True
        known = weights.BY_KEY.get(reference)
        if known is None or weights.present(known) is not None:
            return False
        try:
            weights.locate(reference, field=field)
        except WeightsError as error:
            self.note(str(error))
        return True

    def note(self, line: str) -> None:
        """Keep a line, once."""
        if line not in self.lines:
            self.lines.append(line)

    def base(self, reference: str) -> tuple[str, TrainRecipe] | None:
        """Name and content of the recipe that makes the run folder `reference`, if that has no checkpoint yet."""
        if self.beside is None or reference in weights.BY_KEY or _is_there(reference):
            return None
        for path in sorted(self.beside.glob("*.toml")):
            try:
                made = tomllib.loads(path.read_text(encoding="utf-8")).get("run") == reference
                if made:
                    return path.name, recipes.load(path, TrainRecipe)
            except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError, RecipeError):
                continue  # another recipe's faults are not this one's
        return None


def models(recipe: TrainRecipe, to_come: ToCome | None = None) -> Models:
    """The models of a run; without `to_come` all of them must be there. Raises WeightsError or CheckpointError."""
    part, needs = recipe.model, Needs.of(recipe)
    reference = part.prior if part.stage == "prior" else str(part.decoder)
    text = part.text_encoder
    if text is not None and to_come and to_come(text, "model.text_encoder"):
        text = None
    if to_come and to_come(reference, f"model.{part.stage}"):
        found = _expected(reference, to_come)
    else:
        found = _prior(reference, text) if part.stage == "prior" else _decoder(reference, text, needs)
    if needs.pictures and not (to_come and to_come(recipe.data.encoder, "data.encoder")):
        _check_file(recipe.data.encoder, "data.encoder", "encoder")
    stage_a = VQGAN_WEIGHTS if part.stage == "decoder" and needs.pictures and not needs.vqgan else 0
    return Models(found.unet, found.text, others=stage_a + (ENCODER_WEIGHTS if needs.pictures else 0))


def check_export(part: ExportPart, to_come: ToCome | None = None) -> None:
    """What `sote export` will need is better missed now than after the training. Raises as `models` does."""
    if part.decoder is not None and not (to_come and to_come(part.decoder, "export.decoder")):
        found = modelfile.decoder(part.decoder, field="export.decoder")
        if found.vqgan is None:
            raise WeightsError(f"{found.unet.path}: export.decoder: has no Stage A; put stage_a.safetensors beside it")
    if part.encoder is not None and not (to_come and to_come(part.encoder, "export.encoder")):
        _check_file(part.encoder, "export.encoder", "encoder")
    if part.previewer is not None and not (to_come and to_come(part.previewer, "export.previewer")):
        _check_file(part.previewer, "export.previewer", "previewer")


def check_targets(unet: Values, targets: tuple[str, ...]) -> None:
    """Raise RecipeError for a target of adapters that is the end of no linear layer's name."""
    for target in targets:
        if not arithmetic.adapted(unet, targets=(target,)):
            raise RecipeError(f"lora.targets: no linear layer's name ends with {target!r}; to_q and channelwise.0 do")


def _prior(reference: str, text: str | None) -> Models:
    found = modelfile.prior(reference, field="model.prior", text_encoder=text)
    return Models(found.unet.config, found.text_encoder.config)


def _decoder(reference: str, text: str | None, needs: Needs) -> Models:
    found = modelfile.decoder(reference, field="model.decoder")
    named = found.text_encoder if text is None else modelfile.text_encoder_of(text, field="model.text_encoder")
    if named is None:
        raise WeightsError(f"{found.unet.path}: model.decoder: has no text encoder; name one in model.text_encoder")
    wanted, given = found.unet.config["clip_text_pooled_in_channels"], named.config["projection_dim"]
    if wanted != given:
        raise WeightsError(
            f"{named.path}: model.text_encoder: gives pooled text of width {given}, this decoder takes {wanted}; name "
            "the text encoder that belongs to it"
        )
    if found.vqgan is None and not needs.vqgan:
        raise WeightsError(
            f"{found.unet.path}: model.decoder: has no Stage A beside it to encode the pictures with; put "
            "stage_a.safetensors beside it, or curate with latents.vqgan"
        )
    return Models(found.unet.config, named.config)


def _expected(reference: str, to_come: ToCome) -> Models:
    """The models that a reference will name: the base run's, or the published ones."""
    if base := to_come.base(reference):
        if reference in to_come.before:
            raise RecipeError(f"{base[0]}: model: {reference} goes on from itself; name what its training starts from")
        # what that run lacks, its own plan says
        return models(base[1], ToCome(to_come.beside, before=(*to_come.before, reference)))
    return Models(published.UNETS[reference], published.TEXT)


def _is_there(reference: str) -> bool:
    path = remote.place(reference) if remote.REMOTE.fullmatch(reference) else Path(reference).expanduser()
    run = RunFolder(path)
    return remote.exists(path) and (not remote.exists(run.record) or bool(checkpoint.listed(run.checkpoints)))


def _check_file(reference: str, field: str, wanted: Model) -> None:
    folders.check_file(weights.locate(reference, field=field), field=field, wanted=wanted)
