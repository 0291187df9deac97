"""OpenAI's request for images and its answers, on top of the native request: `extra_body` may have any native field.

`n`, `size` and the like become native fields here, and a refusal that names a native field gets OpenAI's name back.

Source: openai-python 3.54 types/image_generate_params.py, images_response.py, image_gen_*_event.py, model.py.

Kind: pure.
"""

import re
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field

from sote.cluster.errors import RequestError
from sote.serve.recipe import Images, PriorSteps
from sote.serve.schema import GenerateRequest, Quality
from sote.serve.settings import OutputFormat

SIZE = re.compile(r"([1-9]\d{0,4})x([1-9]\d{0,4})", re.ASCII)
# Native name -> OpenAI's, where a refusal names the field
NAMES: Final = {
    "image_size": "size",
    "image_size.width": "size",
    "image_size.height": "size",
    "num_images": "n",
    "output_quality": "output_compression",
}
WITHOUT_EFFECT = "Taken for OpenAI's clients, without effect"
EXAMPLES: list[Any] = [
    {"prompt": "1girl, solo, cat ears", "n": 1, "size": "1024x1536", "response_format": "b64_json"},
    {"prompt": "1girl, night sky", "stream": True, "partial_images": 2, "negative_prompt": "worst quality", "seed": 7},
]
Events = Literal["image_generation.partial_image", "image_generation.completed"]


class ImagesRequest(GenerateRequest):
    """A request for images as OpenAI's clients send it, with any field of /v1/generate beside (`extra_body`)."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, json_schema_extra={"examples": EXAMPLES})

    model: str | None = Field(
        default=None,
        max_length=1000,
        description="This server has one, which /v1/models names: it paints whatever is said here",
    )
    n: Images | None = Field(default=None, description="How many; left out: 1")
    size: Annotated[str, Field(max_length=20)] | None = Field(
        default=None, description="`WIDTHxHEIGHT`, each a multiple of 128 pixels; `auto` or left out: the server's"
    )
    response_format: Literal["url", "b64_json"] | None = Field(
        default=None, description="Left out: `url`, an address on this server that is kept for a while"
    )
    output_compression: Quality | None = Field(default=None, description="Quality of JPEG and WebP; left out: 95")
    stream: bool | None = Field(default=None, description="Answer with server-sent events; pictures are in them")
    partial_images: Annotated[int, Field(ge=0, le=3)] | None = Field(
        default=None, description="With `stream`: how many previews are sent on the way at most, as small JPEGs"
    )
    steps: PriorSteps | None = Field(default=None, description="A shorter name of first_stage_steps")
    quality: str | None = Field(default=None, description=WITHOUT_EFFECT)
    style: str | None = Field(default=None, description=WITHOUT_EFFECT)
    background: str | None = Field(default=None, description=f"{WITHOUT_EFFECT}: pictures are opaque")
    moderation: str | None = Field(default=None, description=f"{WITHOUT_EFFECT}: what is not painted is the server's")
    user: str | None = Field(default=None, description=WITHOUT_EFFECT)

    def native(self) -> GenerateRequest:
        """The same as a native request. Raises RequestError: a size that is none, or one thing by two names."""
        own = self.model_dump(include=set(GenerateRequest.model_fields), exclude_unset=True)
        own["num_images"] = _one(self, "n", "num_images") or 1
        if (steps := _one(self, "steps", "first_stage_steps")) is not None:
            own["first_stage_steps"] = steps
        if (quality := _one(self, "output_compression", "output_quality")) is not None:
            own["output_quality"] = quality
        if self.size is not None and self.size != "auto":
            if self.image_size is not None:
                raise RequestError("size: was given as image_size too; leave one out")
            own["image_size"] = size_of(self.size)
        return GenerateRequest.model_validate(own)


class InputDetails(BaseModel):
    """Tokens of the prompt by kind."""

    text_tokens: int
    image_tokens: int = 0


class Usage(BaseModel):
    """`input_tokens` are those of the prompt; `output_tokens` are the cells of the latents of all pictures."""

    input_tokens: int
    output_tokens: int
    total_tokens: int
    input_tokens_details: InputDetails


class ImageData(BaseModel):
    """One picture. `revised_prompt` is the whole prompt, where the server's usual tags were put before it."""

    b64_json: str | None = None
    url: str | None = None
    revised_prompt: str | None = None
    seed: int


class ImagesResponse(BaseModel):
    """OpenAI's answer, and what the model could not take as it was asked (`warnings`)."""

    created: int
    data: list[ImageData]
    size: str
    output_format: OutputFormat
    background: Literal["opaque"] = "opaque"
    usage: Usage
    warnings: list[str] = []


class ImageEvent(BaseModel):
    """One event of a stream: a preview on the way, or a finished picture (which has `usage` and `seed`)."""

    type: Events
    b64_json: str
    created_at: int
    size: str
    output_format: OutputFormat
    quality: Literal["auto"] = "auto"
    background: Literal["opaque"] = "opaque"
    partial_image_index: int | None = None
    usage: Usage | None = None
    seed: int | None = None


class ModelCard(BaseModel):
    """The one model of this server. `created`: when the server started, in seconds of Unix time."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "sote"


class ModelList(BaseModel):
    """OpenAI's list of models."""

    object: Literal["list"] = "list"
    data: list[ModelCard]


def size_of(words: str) -> dict[str, int]:
    """`1024x1536` as native fields. Raises RequestError."""
    found = SIZE.fullmatch(words)
    if found is None:
        raise RequestError(f"size: {words!r} is no size; wanted is `auto`, or WIDTHxHEIGHT such as 1024x1536")
    return {"width": int(found[1]), "height": int(found[2])}


def _one(request: ImagesRequest, name: str, native: str) -> Any:
    """The value of a field that has two names. Raises RequestError where both say something."""
    value, other = getattr(request, name), getattr(request, native)
    if value is not None and other is not None:
        raise RequestError(f"{name}: was given as {native} too; leave one out")
    return other if value is None else value
