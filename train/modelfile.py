"""Models by reference: a key, a diffusers folder or one of its subfolders, a ComfyUI checkpoint, Stability's original
file, a UNet-only file with its text encoder beside it, or the run folder of an earlier training.

What a thing is follows from its keys and shapes (source.py); what is wrong with it is one line. Weights are read
by models.py.

Kind: actor.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sote.cluster import bringing, remote, weights
from sote.cluster.errors import CheckpointError, WeightsError
from sote.cluster.storage import RunFolder
from sote.train import checkpoint, folders, source
from sote.train.names import Model
from sote.train.source import MODULES, Source, Tensors

__all__ = ["DecoderSources", "PriorSources", "Source"]

# Beside a file <base>.safetensors: kohya's and OneTrainer's text encoder; in its folder: OneTrainer's, ours, diffusers'
TEXT_FILES = ("{base}_text_model", "{base}_text_encoder", "text_encoder", "text_model")
VQGAN_FILES = ("{base}_vqgan", "stage_a", "vqgan")
IMAGE_FILES = ("{base}_image_encoder", "image_encoder")
ENCODER_FILES = ("{base}_effnet_encoder", "effnet_encoder")  # Stability's name
ADAPTERS_ONLY = "adapters of a LoRA run and no whole model; export it (`sote export`) and name the export"


@dataclass(frozen=True)
class PriorSources:
    """Stage C and its text encoder. `tokenizer` and `scheduler` are folders; None: CLIP's own, and the usual one."""

    unet: Source
    text_encoder: Source
    tokenizer: Path | None
    scheduler: Path | None


@dataclass(frozen=True)
class DecoderSources:
    """Stage B, and what lies beside it of Stage A and of a text encoder."""

    unet: Source
    vqgan: Source | None
    text_encoder: Source | None
    tokenizer: Path | None
    scheduler: Path | None


@dataclass(frozen=True)
class EncoderFile:
    """The EfficientNet encoder in a file; `prefix` stands before its names there."""

    path: Path
    prefix: str


@dataclass(frozen=True)
class _Found:
    """Tensors with the config beside them. `home` is the folder in which other models of the pipeline may lie."""

    tensors: Tensors
    config: dict[str, Any] | None
    home: Path


def prior(reference: str, *, field: str, text_encoder: str | None = None) -> PriorSources:
    """Stage C by reference; `text_encoder` is another reference, taken before what lies beside Stage C.

    Raises WeightsError or CheckpointError in one line: missing, another model, not whole, text of another width.
    """
    found = _find(weights.locate(reference, field=field), "prior", field)
    unet = source.take(found.tensors, "prior", field=field, config=found.config)
    if text_encoder is not None:
        text = text_encoder_of(text_encoder, field="model.text_encoder")
    else:
        beside = _beside(found, "text encoder", TEXT_FILES, field)
        if beside is None:
            raise WeightsError(
                f"{unet.path}: {field}: has no text encoder; put {unet.path.stem}_text_model.safetensors beside it, or "
                "name one in model.text_encoder"
            )
        text = beside
    _check_text(unet, text, field=field)
    return PriorSources(unet, text, _folder(found, "tokenizer"), _folder(found, "scheduler"))


def decoder(reference: str, *, field: str) -> DecoderSources:
    """Stage B by reference, with the Stage A and the text encoder that lie beside it. Raises as `prior` does."""
    found = _find(weights.locate(reference, field=field), "decoder", field)
    unet = source.take(found.tensors, "decoder", field=field, config=found.config)
    return DecoderSources(
        unet=unet,
        vqgan=_beside(found, "vqgan", VQGAN_FILES, field),
        text_encoder=_beside(found, "text encoder", TEXT_FILES, field),
        tokenizer=_folder(found, "tokenizer"),
        scheduler=_folder(found, "scheduler"),
    )


def needed_vqgan(found: DecoderSources, *, field: str) -> Source:
    """The Stage A beside Stage B. Raises WeightsError: there is none."""
    if found.vqgan is None:
        raise WeightsError(f"{found.unet.path}: {field}: has no Stage A; put stage_a.safetensors beside it")
    return found.vqgan


def text_encoder_of(reference: str, *, field: str) -> Source:
    """The text encoder by reference: a file, a model's folder, or whatever else holds one."""
    return _only(reference, "text encoder", field)


def vqgan(reference: str, *, field: str) -> Source:
    """Stage A by reference: stage_a.safetensors, a model's folder, a decoder checkpoint."""
    return _only(reference, "vqgan", field)


def image_encoder_of(reference: str | None, *, prior: str) -> Source | None:
    """The image encoder (CLIP vision) by reference; without one, that inside or beside `prior`, or None.

    Raises WeightsError: named and not there, or not whole.
    """
    if reference is not None:
        return _only(reference, "image encoder", "model.image_encoder")
    field = "model.prior"
    return _beside(_find(weights.locate(prior, field=field), "prior", field), "image encoder", IMAGE_FILES, field)


def encoder_of(reference: str | None, *, prior: str) -> EncoderFile | None:
    """The EfficientNet encoder by reference; without one, that inside or beside `prior`, or None. Raises WeightsError:
    named and not there."""
    if reference is not None:
        return _encoder_at(weights.locate(reference, field="model.encoder"), field="model.encoder")
    found = _find(weights.locate(prior, field="model.prior"), "prior", "model.prior")
    if "encoder" in found.tensors.parts:
        return _encoder_in(found.tensors)
    for path in _files(found, ENCODER_FILES):
        return _encoder_at(path, field="model.prior")
    return None


def _encoder_at(path: Path, *, field: str) -> EncoderFile:
    found = _by_content(path, "encoder", field).tensors if path.is_dir() else source.look([path])
    if "encoder" not in found.parts:
        what = folders.WHAT[next(iter(found.parts), None)]
        raise WeightsError(f"{path}: {field}: this is {what}, here goes {folders.WHAT['encoder']}")
    return _encoder_in(found)


def _encoder_in(found: Tensors) -> EncoderFile:
    prefix = found.parts["encoder"]
    return EncoderFile(next(path for name, (path, _) in found.places.items() if name.startswith(prefix)), prefix)


def _only(reference: str, what: Model, field: str) -> Source:
    found = _find(weights.locate(reference, field=field), what, field)
    return source.take(found.tensors, what, field=field, config=found.config)


def _find(path: Path, what: Model, field: str) -> _Found:
    """Where the tensors of the model `what` lie at `path`. Raises WeightsError: nowhere."""
    if path.is_file():
        if (path.parent / "config.json").is_file() and folders.has_weights(path.parent):
            return _Found(source.look([path]), folders.config(path.parent), path.parent.parent)
        return _Found(source.look([path]), _sibling_config(path), path.parent)
    if is_run(path):
        path = _newest(path, field)
    module = MODULES[what]
    if folders.has_weights(path):
        return _folder_model(path)
    if (path / module).is_dir():
        inner = path / module
        return _folder_model(inner) if folders.has_weights(inner) else _find(inner, what, field)
    return _by_content(path, what, field)


def _by_content(path: Path, what: Model, field: str) -> _Found:
    """The one weight file in a folder that holds the model. Raises WeightsError: none, or several."""
    files = [file for file in sorted(path.glob("*.safetensors")) if not file.name.startswith(checkpoint.AVERAGE)]
    looked = {file: source.look([file]) for file in files}
    fitting = [file for file, tensors in looked.items() if what in tensors.parts]
    if len(fitting) == 1:
        return _Found(looked[fitting[0]], _sibling_config(fitting[0]), path)
    if fitting:
        listed = ", ".join(file.name for file in fitting)
        raise WeightsError(f"{path}: {field}: which file is meant of {listed}? name it")
    there = [part for tensors in looked.values() for part in tensors.parts]
    there += [other for other, module in MODULES.items() if (path / module).is_dir()]
    if not there:
        raise WeightsError(f"{path}: {field}: holds no model of Stable Cascade; name {folders.WHAT[what]}")
    if there == ["adapters"]:
        raise WeightsError(f"{path}: {field}: these are {ADAPTERS_ONLY}")
    found = next((part for part in ("prior", "decoder") if part in there), there[0])
    raise WeightsError(f"{path}: {field}: this is {folders.WHAT[found]}; {source.MISSING[what]}")


def is_run(path: Path) -> bool:
    """Whether it is a training's run folder, or will be once it has a checkpoint."""
    if remote.uri(path) is None:
        return RunFolder(path).checkpoints.is_dir()
    return bool(set(remote.names(path)) & weights.RUN)


def _newest(run: Path, field: str) -> Path:
    """The folder of the newest checkpoint of a run, its weights here."""
    with bringing.alone(run):  # every model of a run folder asks for it
        found = checkpoint.newest(RunFolder(run).checkpoints, has_optimizer=False)
    if found is None:
        raise CheckpointError(f"{remote.named(run)}: {field}: is a run without a checkpoint yet; train it first")
    return found.path


def _folder_model(folder: Path) -> _Found:
    """A model's own folder of diffusers or transformers."""
    config = folders.config(folder) if (folder / "config.json").is_file() else None
    return _Found(source.look(folders.weight_files(folder)), config, folder.parent)


def _beside(found: _Found, what: Model, files: tuple[str, ...], field: str) -> Source | None:
    """Another model of the same file, of a file beside it, or of a folder beside it."""
    if what in found.tensors.parts:
        return source.take(found.tensors, what, field=field)
    for path in _files(found, files):
        return source.take(source.look([path]), what, field=field, config=_sibling_config(path))
    folder = found.home / MODULES[what]
    if folder.is_dir() and folders.has_weights(folder):
        model = _folder_model(folder)
        return source.take(model.tensors, what, field=field, config=model.config)
    return None


def _files(found: _Found, files: tuple[str, ...]) -> list[Path]:
    """Those of `files` that lie beside a model."""
    paths = [found.home / f"{name.format(base=found.tensors.path.stem)}.safetensors" for name in files]
    return [path for path in paths if path.is_file()]


def _sibling_config(path: Path) -> dict[str, Any] | None:
    """The config in <base>.json beside a file, as SD.Next has it. Other programs' notes of that name are no configs."""
    beside = path.with_suffix(".json")
    if not beside.is_file():
        return None
    try:
        values = json.loads(beside.read_text(encoding="utf-8"))
    except ValueError:
        return None
    return values if isinstance(values, dict) and ("block_out_channels" in values or "hidden_size" in values) else None


def _folder(found: _Found, name: str) -> Path | None:
    return found.home / name if (found.home / name).is_dir() else None


def _check_text(unet: Source, text: Source, *, field: str) -> None:
    """The text encoder's widths must be those that the UNet takes."""
    for key, given in (("clip_text_in_channels", "hidden_size"), ("clip_text_pooled_in_channels", "projection_dim")):
        if unet.config[key] != text.config[given]:
            raise WeightsError(
                f"{text.path}: {field}: the prior takes text of width {unet.config[key]}, this text encoder gives "
                f"{text.config[given]}; put the text encoder there that belongs to this prior"
            )
