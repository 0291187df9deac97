"""Newest checkpoint of a run -> published weights in one of four layouts.

    diffusers   OUT/prior, OUT/decoder: folders of the two pipelines
    comfyui     OUT/<name>_main.safetensors, OUT/<name>_decoder.safetensors
    unet        OUT/<name>.safetensors (original names) with its config <name>.json, OUT/<name>_text_model.safetensors
    lora        OUT/<name>.safetensors: adapters under kohya's names, which ComfyUI reads too

A run that trained Stage B writes the decoder's half alone. In all but `lora` adapters are added to their base.
Only one tensor is in memory at a time. What is there is replaced only by a whole new export; at a URI, where folders
have no names to change, what marks it as an export goes first and comes last.

Kind: actor.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from sote.cluster import logs, remote, storage, weights
from sote.cluster import recipe as recipes
from sote.cluster.errors import CheckpointError, RunFolderError, UserError, WeightsError
from sote.cluster.storage import RunFolder
from sote.train import (
    checkpoint,
    folders,
    lora,
    modelfile,
    modelspec,
    names,
    pictures,
    pipelines,
    source,
    tensorfile,
    trained,
)
from sote.train.checkpoint import Checkpoint
from sote.train.folders import Stored
from sote.train.modelfile import DecoderSources
from sote.train.names import Entry, Layout
from sote.train.recipe import DType, TrainRecipe
from sote.train.source import Source
from sote.train.tensorfile import Planned

Form = Literal["diffusers", "comfyui", "unet", "lora"]
RECORD = "export.json"  # marks a folder as an export of ours, and says what is in it
DTYPES: dict[DType, torch.dtype] = {
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "float32": torch.float32,
}
TITLES = {"prior": "Stage C", "decoder": "Stage B", "vqgan": "Stage A", "text_encoder": "text encoder"}
UNKNOWN_LICENCE = "that of the file which these weights are from"


def export(run: Path, out: Path, form: Form, *, dtype: DType | None = None) -> list[Path]:
    """Write the newest checkpoint of the run folder `run` to `out`; returns the weight files. `dtype` is taken before
    the recipe's.

    Raises a UserError: `run` has not been trained, `out` holds something else, a tensor does not fit into the type,
    what goes beside the trained weights is not there.
    """
    recipe, found = _newest(run)
    _refuse_foreign(out)
    chosen = dtype or recipe.export.dtype
    if remote.uri(out) is not None:
        remote.remove(out / RECORD)
        remote.remove(out)
        return _fill(out, out, recipe, found, form=form, dtype=chosen)
    making = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    shutil.rmtree(making, ignore_errors=True)
    making.mkdir(parents=True)
    try:
        files = _fill(making, out, recipe, found, form=form, dtype=chosen)
        shutil.rmtree(out, ignore_errors=True)
        making.rename(out)
    finally:
        shutil.rmtree(making, ignore_errors=True)
    return files


def _fill(making: Path, out: Path, recipe: TrainRecipe, found: Checkpoint, *, form: Form, dtype: DType) -> list[Path]:
    """Write an export into `making`, the record last; returns where its weight files will be in `out`."""
    writer = _Writer(making, recipe, found, dtype=DTYPES[dtype])
    getattr(writer, form)(out)
    record = {
        "form": form,
        "dtype": dtype,
        "step": found.state.step,
        "files": {name: _sha256(making / name) for name in writer.files},
    }
    storage.write_text(making / RECORD, json.dumps(record, indent=2) + "\n")
    return [out / name for name in writer.files]


class _Writer:
    """Writes one export into `folder`, which will be renamed; remembers the weight files."""

    def __init__(self, folder: Path, recipe: TrainRecipe, found: Checkpoint, *, dtype: torch.dtype) -> None:
        self.folder, self.recipe, self.found, self.dtype = folder, recipe, found, dtype
        self.part, self.name = recipe.export, recipe.export.name
        self.is_prior = recipe.model.stage == "prior"
        self.resolution = _resolution(recipe)
        self.seconds = _seconds(found)
        self.files: list[str] = []

    def diffusers(self, out: Path) -> None:
        """The folders of the two pipelines, as today's diffusers loads them."""
        if self.is_prior:
            self._pipeline("prior", self._prior())
        if models := self._decoder():
            self._pipeline("decoder", models)
            beside = remote.uri(out) or str(out.resolve())
            prior = f"{beside}/prior" if self.is_prior else _published(self.recipe.model.prior)
            pipelines.write_card(self.folder / "decoder", prior=prior)

    def comfyui(self, _: Path) -> None:
        """The checkpoints that ComfyUI's loader takes: UNet, text encoder and, where there is one, VAE in each."""
        if self.is_prior:
            extra = [each for what in ("encoder", "previewer") for each in self._vae(what)]
            self._write(f"{self.name}_main.safetensors", self._prior(), "comfyui", extra=extra)
        if models := self._decoder():
            self._write(f"{self.name}_decoder.safetensors", models, "comfyui")

    def unet(self, _: Path) -> None:
        """The UNet alone under its original names, and the text encoder, as kohya's trainer names the two files."""
        models = self._prior() if self.is_prior else {"decoder": trained.decoder(self.recipe, self.found)}
        for module, model in models.items():
            ending = "_text_model" if module == "text_encoder" else ""
            self._write(f"{self.name}{ending}.safetensors", {module: model}, "original")
            if not ending:  # SD.Next reads it, and diffusers' from_single_file
                storage.write_text(self.folder / f"{self.name}.json", json.dumps(model.config, indent=2) + "\n")

    def lora(self, _: Path) -> None:
        """The adapters alone, under kohya's names. Raises UserError if the run has none."""
        part = self.recipe.lora
        if part is None:
            raise UserError("--format lora: this run trained whole weights and has no adapters; name another format")
        made = trained.adapters(self.recipe, self.found)
        spec = modelspec.spec(
            self.name, licence=self.part.licence, seconds=self.seconds, architecture=modelspec.LORA_ARCHITECTURE
        )
        metadata = spec | self._training() | modelspec.adapters(rank=part.rank, alpha=part.alpha)
        kind = tensorfile.NAMES[self.dtype]
        tensors = [
            Planned(name, kind, tuple(tensor.shape), partial(_same, tensor))
            for name, tensor in lora.kohya_entries(made, alpha=part.alpha)
        ]
        self._file(f"{self.name}.safetensors", tensors, metadata)

    def _prior(self) -> dict[str, Source]:
        return dict(zip(("prior", "text_encoder"), trained.prior(self.recipe, self.found), strict=True))

    def _decoder(self) -> dict[str, Source]:
        """The decoder's half: what was trained of it, and what goes beside it. Empty if the recipe names none."""
        model, named = self.recipe.model, self.part.decoder
        if self.is_prior:
            if named is None:
                return {}
            beside = modelfile.decoder(named, field="export.decoder")
            return _half(beside.unet, beside, text=beside.text_encoder or self._prior()["text_encoder"])
        field = "model.decoder" if named is None else "export.decoder"
        beside = modelfile.decoder(named or str(model.decoder), field=field)
        text = beside.text_encoder
        if model.text_encoder is not None:
            text = modelfile.text_encoder_of(model.text_encoder, field="model.text_encoder")
        return _half(trained.decoder(self.recipe, self.found), beside, text=text)

    def _pipeline(self, kind: str, models: Mapping[str, Source]) -> None:
        for module, model in models.items():
            self._write(f"{kind}/{module}/{pipelines.weight_name(model.what)}", {module: model}, "diffusers")
            pipelines.write_config(self.folder / kind / module, model.config, model.what)
        pipelines.furnish(self.folder / kind, kind)

    def _vae(self, what: Literal["encoder", "previewer"]) -> Iterator[Planned]:
        """The tensors of the encoder, or of the previewer, for ComfyUI's file."""
        reference = getattr(self.part, what)
        if reference is None:
            return
        path = weights.locate(reference, field=f"export.{what}")
        folders.check_file(path, field=f"export.{what}", wanted=what)
        found = source.look([path])
        prefix = names.COMFY_ENCODER if what == "encoder" else names.COMFY_PREVIEWER
        before = found.parts[what]
        stored = {name: place for name, (_, place) in found.places.items() if name.startswith(before)}
        read = partial(_read, path, stored)
        for name in stored:
            entry = Entry(prefix + name.removeprefix(before), (name,))
            yield tensorfile.planned(entry, stored=stored, read=read, dtype=self.dtype)

    def _write(self, name: str, models: Mapping[str, Source], layout: Layout, extra: Iterable[Planned] = ()) -> None:
        tensors = list(extra)
        for model in models.values():
            stored = {each: model.stored(each) for each in model.shapes}
            for entry in ENTRIES[layout](model):
                tensors.append(tensorfile.planned(entry, stored=stored, read=model.read, dtype=self.dtype))
        self._file(name, tensors, self._metadata(models))

    def _file(self, name: str, tensors: list[Planned], metadata: dict[str, str]) -> None:
        tensorfile.write(self.folder / name, tensors, metadata=metadata, hash_key=modelspec.HASH)
        self.files.append(name)

    def _metadata(self, models: Mapping[str, Source]) -> dict[str, str]:
        first = next(iter(models))
        title = f"{self.name}: {TITLES[first]}"
        configs = modelspec.configs({module: model.config for module, model in models.items()})
        if (first in ("prior", "text_encoder")) == self.is_prior:
            return modelspec.spec(title, licence=self.part.licence, seconds=self.seconds) | self._training() | configs
        reference = str(self.part.decoder or self.recipe.model.decoder)
        known, said = weights.BY_KEY.get(reference), models[first].metadata
        licence = known.licence if known else said.get("licence") or said.get("modelspec.license") or UNKNOWN_LICENCE
        return modelspec.spec(title, licence=licence, seconds=self.seconds) | configs | {"base": reference}

    def _training(self) -> dict[str, str]:
        return modelspec.training(asdict(self.found.state), self.part, resolution=self.resolution)


def _half(unet: Source, beside: DecoderSources, *, text: Source | None) -> dict[str, Source]:
    """Stage B, Stage A and a text encoder. Raises WeightsError: one is missing."""
    if beside.vqgan is None or text is None:
        lacking = "Stage A" if beside.vqgan is None else "text encoder"
        raise WeightsError(
            f"{beside.unet.path}: export.decoder: has no {lacking} beside it; name a decoder's folder or checkpoint"
        )
    return {"decoder": unet, "vqgan": beside.vqgan, "text_encoder": text}


def _comfyui(model: Source) -> list[Entry]:
    if model.what == "text encoder":
        return names.text_to_comfyui(model.shapes)
    if model.what == "vqgan":
        return names.vqgan_to_original(model.shapes, prefix=names.COMFY_VQGAN)
    return names.unet_to_comfyui(model.shapes)


def _original(model: Source) -> list[Entry]:
    return _diffusers(model) if model.what == "text encoder" else names.unet_to_original(model.shapes)


def _diffusers(model: Source) -> list[Entry]:
    return names.prefixed(model.shapes, "")


ENTRIES: dict[Layout, Callable[[Source], list[Entry]]] = {
    "comfyui": _comfyui,
    "original": _original,
    "diffusers": _diffusers,
}


def _read(path: Path, stored: Mapping[str, Stored], name: str) -> Tensor:
    return tensorfile.read(path, stored[name])


def _seconds(found: Checkpoint) -> float:
    """When a checkpoint was made, in seconds since 1970. At a URI files have no such time; the run's metrics have."""
    if remote.uri(found.path) is None:
        return (found.path / checkpoint.STATE).stat().st_mtime
    lines = logs.read_metrics(RunFolder(found.path.parent.parent).metrics)
    made = [line for line in lines if line.get("kind") == "checkpoint" and line["step"] == found.state.step]
    return float((made or lines or [{"time": 0.0}])[-1]["time"])


def _same(tensor: Tensor) -> Tensor:
    return tensor


def _resolution(recipe: TrainRecipe) -> int | None:
    """The side of the buckets that the pictures were fitted into, if the curate run is at hand."""
    found = pictures.curate_recipe(recipe.data.curated)
    return found.latents.resolution if found is not None and found.latents is not None else None


def _published(reference: str) -> str:
    """A model by reference as a card names it: the repository of a key, else the path."""
    known = weights.BY_KEY.get(reference)
    return known.repo if known else reference


def _newest(run: Path) -> tuple[TrainRecipe, Checkpoint]:
    folder = RunFolder(run)
    path = folder.recipe("train")
    if not remote.exists(folder.record) or not remote.exists(path):
        raise RunFolderError(
            f"{remote.named(run)}: not the run folder of a training (no {path.name} of one); run `sote train` first"
        )
    recipe = recipes.load(remote.fetch(path), TrainRecipe)
    found = checkpoint.newest(folder.checkpoints, has_optimizer=False)
    if found is None:
        raise CheckpointError(
            f"{remote.named(folder.checkpoints)}: no checkpoint yet; run `sote train` until there is one"
        )
    return recipe, found


def _refuse_foreign(out: Path) -> None:
    if out.is_file() or (remote.names(out) and not remote.exists(out / RECORD)):
        raise UserError(
            f"{remote.named(out)}: holds something that is not an export of ours; name a new or an empty folder"
        )


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
