"""Newest checkpoint of a run -> published weights: fp16 safetensors in one of three layouts.

    diffusers   OUT/prior, OUT/decoder: folders of the two pipelines
    comfyui     OUT/<name>_main.safetensors, OUT/<name>_decoder.safetensors
    unet        OUT/<name>.safetensors (original names), OUT/<name>_text_model.safetensors

Only one tensor is in memory at a time. What is there is replaced only by a whole new export.

Kind: actor.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import safe_open

from sote.cluster import recipe as recipes
from sote.cluster import storage, weights
from sote.cluster.errors import CheckpointError, RunFolderError, UserError
from sote.cluster.storage import RunFolder
from sote.train import checkpoint, folders, names, tensorfile
from sote.train.checkpoint import Checkpoint
from sote.train.names import Entry
from sote.train.recipe import ExportPart, TrainRecipe

Form = Literal["diffusers", "comfyui", "unet"]
RECORD = "export.json"  # marks a folder as an export of ours, and says what is in it
VQGAN_SCALE = 0.43  # Stability's StageA, as Stage B was trained; published vqgan configs have Wuerstchen v2's 0.3764
# Of modelspec: how ComfyUI, kohya and CivitAI recognise the family
ARCHITECTURE = "stable-cascade"


# diffusers' combined pipeline finds the prior through the list `prior` in the head of the decoder's card
CARD = """---
prior:
- {prior}
---
Stage B and Stage A of Stable Cascade, beside the trained prior named above (a folder, or a repository once published).
"""


@dataclass(frozen=True)
class Source:
    """Tensors of one safetensors file, to be written under other names."""

    path: Path
    entries: list[Entry]


def export(run: Path, out: Path, form: Form) -> list[Path]:
    """Write the newest checkpoint of the run folder `run` to `out`; returns the weight files.

    Raises a UserError: `run` has not been trained, `out` holds something else, a tensor does not fit into fp16.
    """
    recipe, found = _newest(run)
    _refuse_foreign(out)
    making = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    shutil.rmtree(making, ignore_errors=True)
    making.mkdir(parents=True)
    try:
        writer = _Writer(making, recipe, found, out=out)
        {"diffusers": writer.diffusers, "comfyui": writer.comfyui, "unet": writer.unet}[form]()
        record = {
            "form": form,
            "step": found.state.step,
            "files": {name: _sha256(making / name) for name in writer.files},
        }
        storage.write_text(making / RECORD, json.dumps(record, indent=2) + "\n")
        shutil.rmtree(out, ignore_errors=True)
        making.rename(out)
    finally:
        shutil.rmtree(making, ignore_errors=True)
    return [out / name for name in writer.files]


class _Writer:
    """Writes one export into `folder`, which will be renamed to `out`; remembers the weight files."""

    def __init__(self, folder: Path, recipe: TrainRecipe, found: Checkpoint, *, out: Path) -> None:
        self.folder, self.found, self.out = folder, found, out
        self.part: ExportPart = recipe.export
        self.prior = weights.locate(recipe.model.prior, field="model.prior")
        self.decoder = _decoder(self.part)
        self.files: list[str] = []

    def diffusers(self) -> None:
        """Both pipeline folders: trained weights beside the configs and the tokenizer that training started from."""
        trained = {"prior": self.found.path / "prior.safetensors", "text_encoder": self._text_file()}
        for name, path in trained.items():
            target = f"prior/{name}/{_weight_name(name)}"
            self._write(target, [Source(path, names.prefixed(folders.header(path).tensors, ""))])
            self._config(self.prior / name, f"prior/{name}")
        self._others(self.prior, "prior", index=names.PRIOR_INDEX)
        if self.decoder is None:
            return
        for name in ("decoder", "vqgan", "text_encoder"):
            path = folders.weights(self.decoder / name)
            entries = names.prefixed(folders.header(path).tensors, "")
            self._write(f"decoder/{name}/{_weight_name(name)}", [Source(path, entries)])
            self._config(self.decoder / name, f"decoder/{name}")
        self._others(self.decoder, "decoder", index=names.DECODER_INDEX)
        storage.write_text(self.folder / "decoder" / "README.md", CARD.format(prior=self.out.resolve() / "prior"))

    def comfyui(self) -> None:
        """The two checkpoints that ComfyUI's loader takes: UNet, text encoder and, where there is one, VAE in each."""
        sources = [self._unet(names.unet_to_comfyui), self._text(self._text_file())]
        for path, prefix in ((self.part.encoder, names.COMFY_ENCODER), (self.part.previewer, names.COMFY_PREVIEWER)):
            if path is not None:
                file = weights.locate(path, field="export")
                sources.append(Source(file, names.prefixed(folders.header(file).tensors, prefix)))
        self._write(f"{self.part.name}_main.safetensors", sources)
        if self.decoder is not None:
            unet, vqgan = folders.weights(self.decoder / "decoder"), folders.weights(self.decoder / "vqgan")
            stage_a = names.vqgan_to_original(folders.header(vqgan).tensors, prefix=names.COMFY_VQGAN)
            sources = [
                Source(unet, names.unet_to_comfyui(folders.header(unet).tensors)),
                self._text(folders.weights(self.decoder / "text_encoder")),
                Source(vqgan, stage_a),
            ]
            self._write(f"{self.part.name}_decoder.safetensors", sources)

    def unet(self) -> None:
        """Stage C alone under its original names, and the text encoder, as kohya's trainer names the two files."""
        self._write(f"{self.part.name}.safetensors", [self._unet(names.unet_to_original)])
        path = self._text_file()
        entries = names.prefixed(folders.header(path).tensors, "")
        self._write(f"{self.part.name}_text_model.safetensors", [Source(path, entries)])

    def _unet(self, layout: Any) -> Source:
        path = self.found.path / "prior.safetensors"
        return Source(path, layout(folders.header(path).tensors))

    def _text(self, path: Path) -> Source:
        return Source(path, names.text_to_comfyui(folders.header(path).tensors))

    def _text_file(self) -> Path:
        return self.found.path / "text_encoder.safetensors"

    def _write(self, name: str, sources: list[Source]) -> None:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with ExitStack() as stack:
            tensors = list(_planned(sources, stack))
            tensorfile.write(path, tensors, metadata=self._metadata(name))
        self.files.append(name)

    def _metadata(self, name: str) -> dict[str, str]:
        state = self.found.state
        return {
            "format": "pt",
            "modelspec.sai_model_spec": "1.0.0",
            "modelspec.architecture": ARCHITECTURE,
            "modelspec.title": f"{self.part.name} {Path(name).name}",
            "modelspec.implementation": "https://github.com/Stability-AI/StableCascade",
            "recipe": state.recipe,
            "step": str(state.step),
            "images_seen": str(state.images_seen),
            "compression": f"{state.compression:g}",
            "text_mask": state.text_mask,
        }

    def _config(self, source: Path, target: str) -> None:
        """Copy config.json; float32 stays the type that a loader without another wish computes in."""
        values = folders.config(source)
        if target.endswith("text_encoder"):
            values = {key: value for key, value in values.items() if key != "torch_dtype"} | {"dtype": "float32"}
        if target.endswith("vqgan"):
            values |= {"scale_factor": VQGAN_SCALE}
        storage.write_text(self.folder / target / "config.json", json.dumps(values, indent=2, sort_keys=True) + "\n")

    def _others(self, source: Path, target: str, *, index: dict[str, Any]) -> None:
        """Tokenizer and scheduler as they are, and the index that today's diffusers loads."""
        for name in ("tokenizer", "scheduler"):
            shutil.copytree(source / name, self.folder / target / name)
        storage.write_text(self.folder / target / "model_index.json", json.dumps(index, indent=2) + "\n")


def _planned(sources: list[Source], stack: ExitStack) -> Iterator[tensorfile.Planned]:
    """What is to be written, with how to read each tensor when its turn comes."""
    for source in sources:
        file = stack.enter_context(safe_open(source.path, framework="pt"))
        stored = folders.header(source.path).tensors
        for entry in source.entries:
            yield tensorfile.planned(entry, stored=stored, read=file.get_tensor, dtype=torch.float16)


def _newest(run: Path) -> tuple[TrainRecipe, Checkpoint]:
    folder = RunFolder(run)
    path = folder.recipe("train")
    if not folder.record.exists() or not path.exists():
        raise RunFolderError(f"{run}: not the run folder of a training (no {path.name} of one); run `sote train` first")
    recipe = recipes.load(path, TrainRecipe)
    found = checkpoint.newest(folder.checkpoints)
    if found is None:
        raise CheckpointError(f"{folder.checkpoints}: no checkpoint yet; run `sote train` until there is one")
    return recipe, found


def _refuse_foreign(out: Path) -> None:
    if out.is_file() or (out.is_dir() and any(out.iterdir()) and not (out / RECORD).exists()):
        raise UserError(f"{out}: holds something that is not an export of ours; name a new or an empty folder")


def _decoder(part: ExportPart) -> Path | None:
    return None if part.decoder is None else weights.locate(part.decoder, field="export.decoder")


def _weight_name(name: str) -> str:
    return "model.safetensors" if name == "text_encoder" else "diffusion_pytorch_model.safetensors"


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
