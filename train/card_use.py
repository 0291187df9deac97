"""A model card's words on how to use what was trained, and on what it cannot do.

Kind: pure.
"""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Final

from sote.cluster import weights

if TYPE_CHECKING:
    from sote.train.card import Stage

WINDOW: Final = 77  # tokens that diffusers' pipelines read of a prompt
DIFFUSERS: Final = """```python
import torch
from diffusers import StableCascadeDecoderPipeline, StableCascadePriorPipeline

prompt, negative_prompt = "{positives}", "{negatives}"
prior = StableCascadePriorPipeline.from_pretrained("{prior}", torch_dtype=torch.bfloat16).to("cuda")
decoder = StableCascadeDecoderPipeline.from_pretrained("{decoder}", torch_dtype=torch.bfloat16).to("cuda")
latents = prior(
    prompt, negative_prompt=negative_prompt, width={width}, height={height}, guidance_scale=7.0, num_inference_steps=40
)
image = decoder(latents.image_embeddings, prompt, guidance_scale=1.0, num_inference_steps=10).images[0]
image.save("painted.png")
```"""


def sizes(side: int | None) -> tuple[tuple[int, int], ...]:
    """Widths and heights to paint at: the seed's for what was trained at 1024, else the side that it was trained at."""
    return ((1024, 1536), (2048, 1152)) if side in (None, 1024) else ((int(side or 0), int(side or 0)),)


def how(last: "Stage", hashes: Mapping[str, str], *, positives: str, negatives: str) -> Iterator[str]:
    """The section's paragraphs. `hashes` are the exported files: where none lies there, the command that makes them."""
    recipe = last.recipe
    name, is_prior = recipe.export.name, recipe.model.stage == "prior"
    if not hashes:
        yield "`sote export RUN OUT --format diffusers|comfyui|unet` writes the files that are named here."
    side = last.dataset.recipe.latents.resolution if last.dataset and last.dataset.recipe.latents else None
    width, height = sizes(side)[0]
    folders = ("diffusers/prior" if is_prior else weights.BY_KEY["stable-cascade-prior"].repo, "diffusers/decoder")
    prior, decoder = folders
    yield "### Diffusers\n\n" + DIFFUSERS.format(
        positives=positives, negatives=negatives, prior=prior, decoder=decoder, width=width, height=height
    )
    if recipe.text.tokens > WINDOW:
        yield f"Diffusers' pipelines read the first {WINDOW} tokens of a prompt; this model was trained with more."
    yield "### ComfyUI\n\n" + "\n".join(
        f"{number}. {line}"
        for number, line in enumerate(
            (
                f"Put `{name}_main.safetensors` (Stage C) and `{name}_decoder.safetensors` (Stage B) into "
                "`models/checkpoints`, and load each with a Load Checkpoint node.",
                "StableCascade_EmptyLatentImage takes size and compression; a KSampler paints with Stage C.",
                "StableCascade_StageB_Conditioning hands its latents to a second KSampler with Stage B.",
            ),
            start=1,
        )
    )
    if is_prior:
        yield (
            f"### SD.Next\n\nPut `{name}.safetensors`, `{name}.json` and `{name}_text_model.safetensors` of the export "
            "`unet` into `models/UNet`, choose Stable Cascade as the model and this file as its UNet."
        )
    yield f"### Sote\n\n`sote serve` takes any of these, by path, as `{recipe.model.stage}` in `[model]`."


def limits(stages: "list[Stage]") -> Iterator[str]:
    """What the records tell of what it cannot do, one sentence each."""
    first, last = stages[0], stages[-1]
    part = first.recipe.model
    if (part.prior if part.stage == "prior" else str(part.decoder)) not in weights.BY_KEY:
        yield "Its base is no published model: it knows what that was shown and what is in this dataset, nothing else."
    yield "It was trained on tags with commas between them; whole sentences are not what it knows."
    data = last.dataset
    if data and data.recipe.latents:
        side = data.recipe.latents.resolution
        yield f"It has seen pictures of up to {side * side:,} pixels; larger ones repeat themselves sooner."
    if data and data.recipe.text is None:
        yield "Nothing was read of the text in its pictures, so it writes none that is asked for."
    if last.recipe.captions.dropout == 0:
        yield "It has never seen an empty caption, though guidance above 1 asks for one."
    yield "Stage C overflows in float16 and paints black; bfloat16 and float32 do not."
    yield "Nothing in the weights keeps a picture from being explicit; a negative prompt may name the rating tags."
