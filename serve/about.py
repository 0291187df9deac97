"""What this server is: its models, their licences and hashes, where their source is, and what may be asked of it.

The Fair AI Public License asks whoever lets others use a modified model over a network to offer them its source; the
AGPL asks the same. The document at /v1/about and the `Link` header of every answer are that offer.

Kind: pure, but for files.
"""

import hashlib
import re
from dataclasses import asdict, dataclass
from importlib import metadata
from typing import Any, Final
from urllib.parse import quote

from pydantic import TypeAdapter
from typing_extensions import TypedDict  # pydantic takes the standard one from Python 3.12 on

from sote.cluster import remote, weights
from sote.cluster.errors import UserError
from sote.serve import weightfiles
from sote.serve.profiles import PROFILES
from sote.serve.recipe import Compression, DecoderSteps, DefaultsPart, Guidance, PriorSteps, Rescale, ServeRecipe, Shift
from sote.serve.schedules import SAMPLERS, SCHEDULERS
from sote.serve.schema import MAX_VARIATIONS
from sote.serve.settings import CONTENT_TYPES, MAX_SEED
from sote.serve.sizes import MAX_SIDE, MIN_SIDE, PRESETS, SIDE_STEP
from sote.serve.weightfiles import Hashes, Named

PATH: Final = "/v1/about"
ASKS_FOR_SOURCE = re.compile(r"fair[\s-]ai[\s-]public|\bfaipl|affero|\bagpl", re.IGNORECASE)
# Stability's, on whose weights every model of the family stands
BASE: Final = {"name": "Stable Cascade", "licence": weights.STABILITY}
# Fields of a request, by the names that it has, and where the recipe has their defaults
FIELDS: Final = {
    "negative_prompt": "negative_prompt",
    "first_stage_steps": "prior_steps",
    "second_stage_steps": "decoder_steps",
    "guidance_scale": "prior_guidance",
    "second_stage_guidance_scale": "decoder_guidance",
    "num_images": "images",
    "use_default_tags": "use_default_tags",
    "weights": "weights",
    "profile": "profile",
    "sampler": "prior_sampler",
    "scheduler": "prior_scheduler",
    "shift": "prior_shift",
    "guidance_rescale": "prior_guidance_rescale",
    "decoder_sampler": "decoder_sampler",
    "decoder_scheduler": "decoder_scheduler",
    "decoder_shift": "decoder_shift",
    "compression": "compression",
    "size_policy": "size_policy",
    "output_format": "output_format",
    "embed_parameters": "embed_parameters",
}
RANGES: Final[dict[str, Any]] = {
    "first_stage_steps": PriorSteps,
    "second_stage_steps": DecoderSteps,
    "guidance_scale": Guidance,
    "second_stage_guidance_scale": Guidance,
    "guidance_rescale": Rescale,
    "compression": Compression,
    "shift": Shift,
    "decoder_shift": Shift,
}


class FileOut(TypedDict):
    """One weight file. `sha256` is null until it is known, a while after the server's start."""

    name: str
    bytes: int
    sha256: str | None


class ModelOut(TypedDict):
    """What one field of the recipe names. `tensors_sha256` is the hash that ModelSpec metadata have."""

    role: str
    name: str
    repository: str | None
    licence: str | None
    asks_for_source: bool
    tensors_sha256: str | None
    files: list[FileOut]


class Choice(TypedDict):
    """One of several names that a field may have, and its name for people."""

    name: str
    label: str


class Form(TypedDict):
    """`defaults` and `ranges` are by the names of a request's fields; a range is {min, max}. `sizes` are presets that
    this server's limits allow: {name, width, height}."""

    defaults: dict[str, Any]
    default_tags: dict[str, str]
    ranges: dict[str, dict[str, float]]
    limits: dict[str, int]
    side: dict[str, int]
    sizes: list[dict[str, Any]]
    samplers: list[Choice]
    schedulers: list[Choice]
    profiles: list[dict[str, Any]]
    output_formats: list[Choice]


class Document(Form):
    """What the server is, and what its form needs. `licences` names each licence once, that of the base last."""

    software: str
    version: str
    model: str
    model_hash: str | None
    models: list[ModelOut]
    base: dict[str, str]
    licences: list[str]
    asks_for_source: bool
    source_url: str | None
    source_offer: str | None
    needs_key: bool
    looks_at_pictures: bool
    takes_pictures: bool
    takes_variations: bool
    max_variations: int


@dataclass(frozen=True)
class About:
    """The facts of one recipe. `hashes` grows while the server runs."""

    recipe: ServeRecipe
    models: tuple[Named, ...]
    hashes: Hashes

    @staticmethod
    def of(recipe: ServeRecipe) -> "About":
        """Looks at the headers of the weight files. Raises WeightsError: missing, or broken."""
        models = weightfiles.named(recipe.model)
        files = list(dict.fromkeys(file for model in models for file in model.files))
        return About(recipe, models, Hashes(files, kept=remote.place(recipe.run) / "hashes.json"))

    @property
    def name(self) -> str:
        """The model, as it stands in the pictures' parameters."""
        return self.recipe.model.name or self.models[0].name

    @property
    def model_hash(self) -> str | None:
        """sha256 of the prior's file; of the hashes of its parts, joined, where it was cut; None until it is known."""
        parts = [self.hashes.of(file) for file in self.models[0].files]
        if len(parts) == 1:
            return parts[0]
        whole = [part for part in parts if part is not None]
        return hashlib.sha256("".join(whole).encode()).hexdigest() if parts and len(whole) == len(parts) else None

    @property
    def licences(self) -> tuple[str, ...]:
        """Each licence of what is served, once; that of the base model last."""
        own = [licence for model in self.models if (licence := self._licence(model)) is not None]
        return tuple(dict.fromkeys((*own, BASE["licence"])))

    @property
    def asks_for_source(self) -> bool:
        return any(asks_for_source(licence) for licence in self.licences)

    def headers(self) -> dict[str, str]:
        """What every answer carries."""
        links = [f'<{PATH}>; rel="license"']
        if (url := self.recipe.about.source_url) is not None:
            links.append(f'<{quote(url, safe=":/?#[]@!$&()*+,;=%~")}>; rel="source"')
        return {"Link": ", ".join(links)}

    def document(self) -> Document:
        """All of it, as /v1/about answers. The first call begins to compute the hashes that are not known."""
        self.hashes.start()
        return self.known()

    def known(self) -> Document:
        """The document as far as it is known now."""
        recipe, source = self.recipe, self.recipe.about.source_url
        return Document(
            software="sote",
            version=metadata.version("sote"),
            model=self.name,
            model_hash=self.model_hash,
            models=[self._model(model) for model in self.models],
            base=dict(BASE),
            licences=list(self.licences),
            asks_for_source=self.asks_for_source,
            source_url=source,
            source_offer=f"The source of this model, its weights, can be had from {source}" if source else None,
            needs_key=recipe.access.keys is not None,
            looks_at_pictures=recipe.safety.tagger is not None,
            takes_pictures=self._has("encoder"),
            takes_variations=self._has("image_encoder"),
            max_variations=MAX_VARIATIONS,
            **_form(recipe),
        )

    def _has(self, role: str) -> bool:
        return any(model.role == role for model in self.models) or weightfiles.lies_beside(self.models[0], role)

    def _licence(self, model: Named) -> str | None:
        return self.recipe.about.licence or model.licence

    def _model(self, model: Named) -> ModelOut:
        licence = self._licence(model)
        return ModelOut(
            role=model.role,
            name=model.name,
            repository=model.repository,
            licence=licence,
            asks_for_source=licence is not None and asks_for_source(licence),
            tensors_sha256=model.tensors_sha256,
            files=[
                FileOut(name=file.name, bytes=file.stat().st_size, sha256=self.hashes.of(file)) for file in model.files
            ],
        )


def asks_for_source(licence: str) -> bool:
    """Whether a licence of that name asks who serves the model to offer its source."""
    return ASKS_FOR_SOURCE.search(licence) is not None


def check(recipe: ServeRecipe) -> None:
    """Raises UserError for a public server whose model's licence is not known, or asks for an offer of source that the
    recipe does not make; WeightsError where weights are missing."""
    if not recipe.is_public:
        return
    about = About.of(recipe)
    for model in about.models:
        if (licence := about._licence(model)) is None:
            raise UserError(
                f"about.licence: {model.name} (model.{model.role}) does not say its licence, and a public server must; "
                "set it, or serve on 127.0.0.1"
            )
        if asks_for_source(licence) and recipe.about.source_url is None:
            raise UserError(
                f"about.source_url: {model.name} (model.{model.role}) is under the {licence}, which asks who serves it "
                "publicly to offer its source; set the address where it can be had, or serve on 127.0.0.1"
            )


def _form(recipe: ServeRecipe) -> Form:
    """What a form needs: defaults, ranges, and the names that can be chosen."""
    defaults, limits = recipe.defaults, recipe.limits
    fitting = {name: size for name, size in PRESETS.items() if size[0] * size[1] <= limits.max_pixels}
    ranges: dict[str, dict[str, float]] = {name: _range(kind) for name, kind in RANGES.items()} | {
        "num_images": {"min": 1, "max": limits.max_images},
        "seed": {"min": 0, "max": MAX_SEED},
        "strength": {"min": 0, "max": 1},
    }
    return Form(
        defaults=_defaults(defaults),
        default_tags={"positive": defaults.positive_tags, "negative": defaults.negative_tags},
        ranges=ranges,
        limits=limits.model_dump(),
        side={"min": MIN_SIDE, "max": MAX_SIDE, "step": SIDE_STEP},
        sizes=[{"name": name, "width": width, "height": height} for name, (width, height) in fitting.items()],
        samplers=[Choice(name=name, label=label) for name, label in SAMPLERS.items()],
        schedulers=[Choice(name=name, label=label) for name, label in SCHEDULERS.items()],
        profiles=[{"name": name} | asdict(fixed) for name, fixed in PROFILES.items()],
        output_formats=[Choice(name=name, label=name.upper()) for name in CONTENT_TYPES],
    )


def _defaults(defaults: DefaultsPart) -> dict[str, Any]:
    values = defaults.model_dump(mode="json")
    by_request = {name: values[field] for name, field in FIELDS.items()}
    return by_request | {"image_size": {"width": defaults.width, "height": defaults.height}}


def _range(kind: Any) -> dict[str, float]:
    """{min, max} of a number's type."""
    schema = TypeAdapter(kind).json_schema()
    ends = {"min": ("minimum", "exclusiveMinimum"), "max": ("maximum", "exclusiveMaximum")}
    return {end: next(schema[name] for name in names if name in schema) for end, names in ends.items()}
