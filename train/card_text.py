"""The words of a model card: the seed's sections, filled with what the runs' records say.

Kind: pure.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Final

from sote.cluster import weights
from sote.data.caption_profile import Profile, Scale
from sote.train import card_adherence, card_use
from sote.train.card_adherence import Adherence

if TYPE_CHECKING:
    from sote.train.card import Dataset, Stage

AMP: Final = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32"}
OPTIMIZERS: Final = {"adafactor": "Adafactor", "adamw": "AdamW"}
GROUPS: Final = {
    "aesthetic": "aesthetic tags",
    "quality": "quality tags",
    "date": "date tags",
    "custom": "custom tags",
    "rating": "rating tags",
    "character": "character",
    "series": "series",
    "rest": "rest of the tags",
}
# seed: "Inference Parameters"
SAMPLING: Final = (
    ("Main", ("Sampler: DDPM or DPMPP 2M with SGM Uniform", "CFG: 7", "Steps: 30 or 40")),
    ("Decoder", ("Sampler: Euler a Karras", "CFG: 1 or 1.2", "Steps: 10")),
)
FAIR: Final = "Fair AI Public License"
FAIR_POINTS: Final = (
    "Modification sharing: whoever modifies the model shares both the changes and the original licence.",
    "Source code: a modified version that is used over a network tells its users where its source is.",
    "Distribution: only under this licence or another with similar rules.",
    "Compliance: a breach is to be mended within 30 days.",
)
INHERITED: Final = (
    "Anything that it does not cover is inherited from the Stability AI Non-Commercial Research Community License, "
    "Copyright (c) Stability AI Ltd. All Rights Reserved."
)


def render(stages: Sequence["Stage"], hashes: Mapping[str, str], adherence: Adherence | None = None) -> str:
    """The card as Markdown with the head that Hugging Face reads. `stages` in the order of training."""
    last = stages[-1]
    parts = [_head(stages), f"# {last.recipe.export.name}", _about(stages)]
    if hashes:
        parts += ["## Files", _table(("file", "AutoV2"), hashes.items())]
    data = last.dataset or stages[0].dataset
    profile = data.profile if data else None
    parts += ["## Inference parameters", *_inference(stages, profile)]
    positives, negatives = (", ".join(tags) for tags in _prompts(profile))
    parts += ["## How to use", *card_use.how(last, hashes, positives=positives, negatives=negatives)]
    if adherence:
        parts += ["## Prompt adherence", *card_adherence.render(adherence)]
    parts += ["## Training", *_training(stages)]
    parts += ["## Dataset", *_dataset(stages)]
    if data:
        parts += ["## Tags", *_tags(data, shuffled=last.recipe.captions.shuffle)]
    parts += ["## Limitations", _list(card_use.limits(list(stages)))]
    parts += ["## License", *_licence(last.recipe.export.licence)]
    return "\n\n".join(parts) + "\n"


def _head(stages: Sequence["Stage"]) -> str:
    lines = ["license: other", f"license_name: {_slug(stages[-1].recipe.export.licence)}"]
    if known := weights.BY_KEY.get(_reference(stages[0])):
        lines += ["base_model:", f"- {known.repo}"]
    lines += ["pipeline_tag: text-to-image", "tags:", "- stable-cascade", "- text-to-image"]
    if stages[-1].recipe.lora is not None:
        lines.append("- lora")
    return "\n".join(["---", *lines, "---"])


def _about(stages: Sequence["Stage"]) -> str:
    last = stages[-1]
    known = weights.BY_KEY.get(_reference(stages[0]))
    base = f"[{known.repo}](https://huggingface.co/{known.repo})" if known else _model(_reference(stages[0]))
    what = "Stage C, the prior," if last.recipe.model.stage == "prior" else "Stage B, the decoder,"
    what = f"Low-rank adapters for {what}" if last.recipe.lora is not None else what
    seen = sum(stage.images_seen for stage in stages)
    return f"{what} of a Stable Cascade (Würstchen V3) model, trained from {base} on {seen:,} images in all."


def _inference(stages: Sequence["Stage"], profile: Profile | None) -> Iterator[str]:
    for what, tags in zip(("Positives", "Negatives"), _prompts(profile), strict=True):
        if tags:
            yield f"{what}: `{', '.join(tags)},`"
    for name, lines in SAMPLING:
        yield f"{name}:\n\n" + _list(lines)
    prior = next((stage for stage in reversed(stages) if stage.recipe.model.stage == "prior"), None)
    if prior and (compression := _compression(prior)):
        yield f"Compression: {compression:g} as trained (32 to 64)"
    if prior:
        mask = "hidden from" if prior.recipe.text.mask_padding else "read by"
        yield f"Text: up to {prior.recipe.text.tokens} tokens; padding is {mask} the text encoder, as in training."
    data = stages[-1].dataset
    latents = data.recipe.latents if data else None
    sizes = card_use.sizes(latents.resolution if latents else None)
    yield f"Resolution: {', '.join(f'{width}x{height}' for width, height in sizes)}; any multiple of 128 works."


def _prompts(profile: Profile | None) -> tuple[list[str], list[str]]:
    """The words of the best pictures and of the worst, as the seed puts them before and against a prompt."""
    if profile is None:
        return [], []
    dates = [years.word for years in profile.years]
    first = [*dates[:1], profile.aesthetic.steps[0][1], profile.quality.steps[0][1]]
    return first, [profile.aesthetic.rest, profile.quality.rest, *dates[-1:]]


def _training(stages: Sequence["Stage"]) -> Iterator[str]:
    last = stages[-1]
    named = ("sote", "torch", "deepspeed", "ray", "transformers", "diffusers")
    software = ", ".join(f"{name} {last.versions[name]}" for name in named if name in last.versions)
    commit = f" (commit {last.commit})" if last.commit else ""
    used = dict.fromkeys(machine for stage in stages for machine in stage.machines)
    hours = sum(stage.device_hours for stage in stages)
    on_cpu = all(machine.endswith("x cpu") for machine in used)
    yield f"Software used: {software}{commit}"
    yield f"{'CPUs' if on_cpu else 'GPU'} used: {', then '.join(used) or 'not recorded'}"
    yield f"{'Worker' if on_cpu else 'GPU'} hours, measured: {_hours(hours)}"
    for stage in stages:
        yield f"### {stage.name.capitalize()}"
        yield _table(("parameters", "value"), _parameters(stage))


def _parameters(stage: "Stage") -> Iterator[tuple[str, str]]:
    """The seed's rows, and what has to be known besides to do the same again."""
    recipe, data = stage.recipe, stage.dataset
    part, is_prior = recipe.optimizer, recipe.model.stage == "prior"
    yield "amp", AMP[recipe.workers.precision]
    yield "weights", "fp32"  # of what learns, always: train/recipe.py WorkersPart
    yield "save weights", AMP[recipe.export.dtype]
    if data and data.recipe.latents:
        yield "resolution", f"{data.recipe.latents.resolution}x{data.recipe.latents.resolution}"
    yield "effective batch size", str(recipe.batch.effective_batch)
    yield "unet learning rate", _rate(part.prior_learning_rate if is_prior else part.decoder_learning_rate)
    yield "te learning rate", _rate(part.text_encoder_learning_rate if is_prior else None)
    yield "optimizer", OPTIMIZERS[part.name]
    if data:
        yield "images", _short(data.images_an_epoch)
    if stage.epochs is not None:
        yield "epochs", f"{stage.epochs:.4g}"
    yield "steps", f"{stage.step:,}"
    yield "warm-up steps", str(part.warmup_steps)
    if part.decay and part.decay_steps and part.decay_end:
        falls = f"{part.decay}, over {part.decay_steps:,} steps to step {part.decay_end:,}"
        yield "learning rate decay", f"{falls}, down to {part.decay_to or 0:g} of the rate"
    if compression := _compression(stage):
        yield "compression", f"{compression:g}"
    yield "text tokens", f"{recipe.text.tokens}, padding {'masked' if recipe.text.mask_padding else 'unmasked'}"
    yield "caption dropout", f"{recipe.captions.dropout:g}"
    yield "loss weight", recipe.diffusion.loss_weight
    if recipe.lora:
        yield "adapters", f"rank {recipe.lora.rank}, alpha {recipe.lora.alpha:g}"


def _dataset(stages: Sequence["Stage"]) -> Iterator[str]:
    largest = max((stage.dataset for stage in stages if stage.dataset), key=lambda data: data.images, default=None)
    if largest is None:
        yield f"The curate run {_model(stages[-1].recipe.data.curated)} was not there when this card was written."
        return
    curation = largest.recipe
    if largest.captioned_on:
        yield f"Used for captioning: {', '.join(largest.captioned_on)}"
    if largest.caption_hours is not None:
        yield f"Hours of the whole curation, measured: {_hours(largest.caption_hours)}"
    yield f"Model used for captioning: {_model(curation.tag.tagger)}"
    caption = curation.caption
    yield f"Thresholds: general {caption.general_threshold:.2f}, character {caption.character_threshold:.2f}"
    if curation.text is not None:
        yield f"Model used for text: {_model(curation.text.reader)}"
    rows = [(name, _short(count)) for name, count in largest.counts.items()]
    yield _table(("dataset name", "total images"), [*rows, ("Total", f"{largest.images:,} images")])
    notes = []
    if largest.smallest:
        width, height = largest.smallest
        notes.append(f"Smallest size is {width}x{height} / {width * height:,} pixels")
    how = "perceptual hash" if curation.duplicates.hash == "phash" else "czkawka's gradient hash"
    notes.append(f"Deduped based on image similarity ({how}, up to {curation.duplicates.radius} bits apart)")
    for often, count in largest.repeats.items():
        notes.append(f"{_short(count)} very high quality images are seen {often} times in an epoch")
    if largest.repeats:
        notes.append(f"which makes the total image count {_short(largest.images_an_epoch)}")
    notes += [
        f"{stage.name.capitalize()} was trained on the set `{stage.recipe.data.set}`: {_short(stage.dataset.images)}"
        for stage in stages
        if stage.recipe.data.set is not None and stage.dataset
    ]
    yield "Note:\n\n" + _list(notes)


def _tags(data: "Dataset", *, shuffled: bool) -> Iterator[str]:
    profile = data.profile
    order = ", ".join(GROUPS[group] for group in profile.groups)
    said = "Trained with random tag order; this is the order in the dataset" if shuffled else "Trained in this order"
    yield f"### Tag format\n\n{said}:\n\n{order}"
    yield "### Date\n\n" + _list(f"{years.word} : {years.first} to {years.last}" for years in profile.years)
    yield f"### Aesthetic tags\n\nModel used: {_model(data.recipe.score.aesthetic)}\n\n{_scale(profile.aesthetic)}"
    yield f"### Quality tags\n\nModel used: {_model(data.recipe.score.quality_head)}\n\n{_scale(profile.quality)}"
    yield "### Rating tags\n\n" + _list(profile.rating.in_order)
    yield "### Custom tags\n\n" + _list(_custom(data))


def _custom(data: "Dataset") -> Iterator[str]:
    """By kind of source that the dataset has, the seed's list."""
    profile, kinds = data.profile, {source.kind for source in data.recipe.sources}
    if data.recipe.text is not None:
        yield 'text: The text says "text",'
    yield "characters: character, series"
    for kind, custom in profile.custom.items():
        templates = [choices[0].replace("{", "").replace("}", "") for choices in custom.tags]
        said = [*(("date",) if custom.date else ()), *templates]
        if kind in kinds and said:
            yield f"{kind}: {', '.join(said)},"


def _licence(licence: str) -> Iterator[str]:
    yield f"This model falls under the {licence} license."
    if licence.startswith(FAIR):
        yield "Key points:\n\n" + "\n".join(f"{number}. {point}" for number, point in enumerate(FAIR_POINTS, start=1))
    yield INHERITED


def _scale(scale: Scale) -> str:
    digits = 3 if any(round(bound, 2) != bound for bound, _ in scale.steps) else 2
    steps = (f"score > {bound:.{digits}f} : {word}" for bound, word in scale.steps)
    return _list([*steps, f"rest of them : {scale.rest}"])


def _reference(stage: "Stage") -> str:
    part = stage.recipe.model
    return part.prior if part.stage == "prior" else str(part.decoder)


def _compression(stage: "Stage") -> float | None:
    """Pixels of a cell that Stage C was trained at; None for Stage B, or where nothing says it."""
    if stage.recipe.model.stage != "prior":
        return None
    part = stage.dataset.recipe.latents if stage.dataset else None
    return stage.recipe.data.compression or (part.compression if part else None)


def _model(reference: str) -> str:
    """A model's repository, or the last part of a local path: a card names no folders of a machine."""
    known = weights.BY_KEY.get(reference)
    return known.repo if known else reference.rstrip("/").rpartition("/")[2]


def _rate(rate: float | None) -> str:
    if rate is None:
        return "none"
    digits, _, power = f"{rate:e}".partition("e")
    return f"{float(digits):g}e{int(power)}"


def _short(count: int) -> str:
    """As the seed writes counts: 1.85M, 993K, 412."""
    for unit, size in (("M", 1_000_000), ("K", 1_000)):
        if count >= size:
            return f"{count / size:.3g}{unit}"
    return str(count)


def _hours(hours: float) -> str:
    return f"{hours:,.0f}" if hours >= 10 else f"{hours:.2g}"


def _slug(words: str) -> str:
    return "-".join(words.lower().replace(",", "").split())


def _table(columns: tuple[str, str], rows: Iterable[tuple[str, str]]) -> str:
    lines = [f"| {columns[0]} | {columns[1]} |", "|---|---|"]
    return "\n".join([*lines, *(f"| {left} | {right} |" for left, right in rows)])


def _list(lines: Iterable[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)
