"""One model in a weight file, whatever layout it has: read tensor by tensor under diffusers' and transformers' names.

A file is recognised by its keys and shapes. Its config is the one beside it, else the one in its metadata, else what
the shapes say; every tensor is compared with the config before any is read.

Kind: actor.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from sote.cluster.errors import WeightsError
from sote.train import folders, names, shapes, tensorfile, vision_shapes
from sote.train.folders import Stored
from sote.train.names import Entry, Model

CONFIG = "config"  # metadata key of a model's config; in a file of several models, of its UNet
# What a model is called in folders, in files of a checkpoint and in metadata
MODULES: dict[Model, str] = {
    "prior": "prior",
    "decoder": "decoder",
    "vqgan": "vqgan",
    "text encoder": "text_encoder",
    "image encoder": "image_encoder",
}
DERIVE = {
    "prior": shapes.unet_config,
    "decoder": shapes.unet_config,
    "vqgan": shapes.vqgan_config,
    "text encoder": shapes.text_config,
    "image encoder": vision_shapes.image_config,
}
EXPECT = {
    "prior": shapes.unet_shapes,
    "decoder": shapes.unet_shapes,
    "vqgan": shapes.vqgan_shapes,
    "text encoder": shapes.text_shapes,
    "image encoder": vision_shapes.image_shapes,
}
MISSING: dict[Model, str] = {
    "prior": "Stage C is missing",
    "decoder": "Stage B is missing",
    "vqgan": "Stage A is missing",
    "text encoder": "the text encoder is missing",
    "image encoder": "the image encoder is missing",
    "encoder": "the EfficientNet encoder is missing",
}


@dataclass(frozen=True)
class Tensors:
    """What lies in one weight file, or in the parts of one that was cut: where each tensor is, and the metadata."""

    path: Path
    places: Mapping[str, tuple[Path, Stored]]
    metadata: Mapping[str, str]

    @property
    def parts(self) -> dict[Model, str]:
        """The models in it, with the prefix of their names."""
        return names.parts(self.places)


@dataclass(frozen=True)
class Source:
    """One model on disk. `shapes`, and the names that `read` takes, are those of diffusers and transformers."""

    what: Model
    path: Path
    layout: str
    config: dict[str, Any]
    metadata: dict[str, str]
    shapes: dict[str, tuple[int, ...]]
    entries: Mapping[str, Entry] = field(repr=False)
    places: Mapping[str, tuple[Path, Stored]] = field(repr=False)

    def read(self, name: str) -> Tensor:
        """One tensor as it is stored, on the CPU. Raises WeightsError if it has numbers that are not finite."""
        entry = self.entries[name]
        path, stored = self.places[entry.sources[0]]
        tensor = tensorfile.read(path, stored, third=entry.third)
        if entry.transposed:
            tensor = tensor.T.contiguous()
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            raise WeightsError(f"{path}: tensor {name} has numbers that are not finite; take weights that are sound")
        return tensor

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """All tensors by name, each read when its turn comes."""
        for name in self.entries:
            yield name, self.read(name)

    def stored(self, name: str) -> Stored:
        """Type and shape of a tensor as `read` gives it."""
        first = self.places[self.entries[name].sources[0]][1]
        return Stored(first.dtype, self.shapes[name], first.start, first.end)


def look(paths: Sequence[Path]) -> Tensors:
    """Look into a weight file, or into all parts of one. Raises WeightsError: no whole safetensors file."""
    headers = {path: folders.header(path) for path in paths}
    places: dict[str, tuple[Path, Stored]] = {}
    for path, header in headers.items():
        for name, stored in header.tensors.items():
            if name in places:
                raise WeightsError(f"{path}: tensor {name} lies in {places[name][0].name} too; take one of the files")
            places[name] = path, stored
    metadata = {key: value for header in headers.values() for key, value in header.metadata.items()}
    return Tensors(paths[0] if len(paths) == 1 else paths[0].parent, places, metadata)


def take(found: Tensors, what: Model, *, field: str, config: dict[str, Any] | None = None) -> Source:
    """The model `what` of a file. `config` is the one that stands beside the file, if there is one.

    Raises WeightsError: the file holds another model, a tensor is missing, foreign, misshapen or not of floats, or the
    config is of another size.
    """
    parts = found.parts
    if what not in parts:
        raise WeightsError(f"{found.path}: {field}: this is {folders.WHAT[next(iter(parts), None)]}; {MISSING[what]}")
    entries = _entries(found, what, parts[what])
    sizes = {name: _shape(entry, found) for name, entry in entries.items()}
    try:
        said = _of_tower(config, what) or _declared(found.metadata, what, is_alone=len(parts) == 1)
        used = said or DERIVE[what](sizes)
        problem = _problem(what, used, sizes)
    except WeightsError as error:
        raise WeightsError(f"{found.path}: {field}: {error}") from None
    if problem:
        raise WeightsError(f"{found.path}: {field}: {problem}")
    for name, entry in entries.items():
        stored = found.places[entry.sources[0]][1]
        if stored.dtype not in tensorfile.FLOATS and not name.endswith("num_batches_tracked"):
            raise WeightsError(
                f"{found.path}: {field}: tensor {name} is of type {stored.dtype}, should be F16, BF16 or F32"
            )
    layout = names.layout_of(found.places)
    return Source(what, found.path, layout, used, dict(found.metadata), sizes, entries, found.places)


def _entries(found: Tensors, what: Model, prefix: str) -> dict[str, Entry]:
    if what == "vqgan":
        made = names.vqgan_to_diffusers(found.places)
    elif what == "text encoder":
        made = names.text_to_transformers(found.places)
    elif what == "image encoder":
        made = names.image_to_transformers(found.places, prefix=prefix)
    else:
        made = names.unet_to_diffusers(found.places, prefix=prefix)
    entries: dict[str, Entry] = {}
    for entry in made:
        if entry.name in entries:
            both = f"{entries[entry.name].sources[0]} and as {entry.sources[0]}"
            raise WeightsError(f"{found.path}: tensor {entry.name} lies in it twice, as {both}")
        entries[entry.name] = entry
    return entries


def _shape(entry: Entry, found: Tensors) -> tuple[int, ...]:
    shape = found.places[entry.sources[0]][1].shape
    if entry.third is not None and shape:
        shape = (shape[0] // len(names.PARTS), *shape[1:])
    return shape[::-1] if entry.transposed else shape


def _of_tower(config: dict[str, Any] | None, what: Model) -> dict[str, Any] | None:
    """The part of the config of a whole CLIP that is of its text or image encoder; any other config as it is."""
    part = "vision_config" if what == "image encoder" else "text_config"
    if config is None or not isinstance(config.get(part), dict):
        return config
    return dict(config[part]) | {"projection_dim": config.get("projection_dim")}


def _declared(metadata: Mapping[str, str], what: Model, *, is_alone: bool) -> dict[str, Any] | None:
    """The config in a file's metadata, if there is one."""
    is_main = is_alone or what in ("prior", "decoder")
    text = metadata.get(CONFIG if is_main else f"{CONFIG}.{MODULES[what]}")
    if text is None:
        return None
    try:
        return dict(json.loads(text))
    except (ValueError, TypeError):
        raise WeightsError("the config in its metadata is no JSON object; take the file from its source") from None


def _problem(what: Model, config: dict[str, Any], sizes: shapes.Shapes) -> str | None:
    """What does not fit between config and tensors, in words."""
    try:
        problem = shapes.difference(EXPECT[what](config), sizes)
    except (KeyError, IndexError, TypeError) as error:
        raise WeightsError(
            f"its config is not one of {folders.WHAT[what]} ({error!r}); take it from where the weights are from"
        ) from None
    if problem is None or what not in ("prior", "decoder"):
        return problem
    found = shapes.unet_config(sizes, heads=config.get("num_attention_heads", ()))
    other = shapes.contradiction(config, found)
    if other is None or shapes.difference(EXPECT[what](found), sizes) is not None:
        return problem  # it is the tensors that are not whole
    return (
        f"the config is of another model ({shapes.unet_size(config)}) than the weights ({shapes.unet_size(found)}): "
        f"{other}; take both from one model"
    )
