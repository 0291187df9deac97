"""The small world's base models as they are committed, under train/world: `pack` writes them, `unpack` makes the
folders of them that every command takes.

Kept is what was learnt, in float16: of the text encoder's 49,408 token vectors only those that training moved. What was
never trained (the other token vectors, CLIP's image encoder and text tower) is drawn again from the seed.
manifest.json says what made the files: recipes, seed, figures, and the SHA-256 of each.

Kind: actor.
"""

import hashlib
import io
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import torch
from safetensors.torch import load_file
from torch import Tensor

from sote.cluster import storage
from sote.cluster.errors import WeightsError
from sote.data import standin_reader, standins
from sote.data.encode import FILE as ENCODER_FILE
from sote.data.score_files import CLIP_FILES, HEAD_FILE
from sote.data.standin_files import write_json, write_safetensors
from sote.train import world_models

HERE: Final = Path(__file__).resolve().parent / "world"
MANIFEST: Final = "manifest.json"
SEED: Final = 20  # of what is drawn before training
TOKENS: Final = "text_model.embeddings.token_embedding.weight"
UNET: Final = "diffusion_pytorch_model.safetensors"
# Committed file -> where its tensors stand below the folder of weights
TENSORS: Final[Mapping[str, str]] = {
    "prior.safetensors": f"prior/prior/{UNET}",
    "decoder.safetensors": f"decoder/decoder/{UNET}",
    "vqgan.safetensors": f"decoder/vqgan/{UNET}",
    "encoder.safetensors": f"encoder/{ENCODER_FILE}",
    "aesthetic.safetensors": "aesthetic/model.safetensors",
    "quality_clip.safetensors": f"quality_clip/{CLIP_FILES[1]}",
}
TEXT: Final = "text_encoder.safetensors"
HEAD: Final = "quality_head.safetensors"
# Committed file -> where it is copied to
COPIES: Final[Mapping[str, str]] = {
    "tagger.onnx": "tagger/model.onnx",
    "selected_tags.csv": "tagger/selected_tags.csv",
    "aesthetic.config.json": "aesthetic/config.json",
    "aesthetic.preprocessor_config.json": "aesthetic/preprocessor_config.json",
    "quality_clip.config.json": f"quality_clip/{CLIP_FILES[0]}",
    "vqgan.config.json": "decoder/vqgan/config.json",
}


def pack(weights: Path, out: Path, *, facts: Mapping[str, Any]) -> None:
    """Write what was learnt from the folder of weights into `out`, and the manifest with these facts."""
    for name, place in TENSORS.items():
        write_safetensors(out / name, {key: _half(tensor) for key, tensor in load_file(weights / place).items()})
    head = torch.load(weights / "quality_head" / HEAD_FILE, map_location="cpu", weights_only=True)
    write_safetensors(out / HEAD, {key: _half(tensor) for key, tensor in head.items()})
    trained = load_file(weights / "prior" / "text_encoder" / "model.safetensors")
    write_safetensors(out / TEXT, _sparse(trained, world_models.text_encoder(SEED).state_dict()))
    for name, place in COPIES.items():
        shutil.copyfile(weights / place, out / name)
    names = sorted((*TENSORS, *COPIES, HEAD, TEXT))
    files = {name: {"bytes": (out / name).stat().st_size, "sha256": sha256(out / name)} for name in names}
    write_json(out / MANIFEST, {**facts, "seed": SEED, "files": files})


def places() -> tuple[str, ...]:
    """Where the files of weights stand that `unpack` writes, below its folder."""
    learnt = (f"quality_head/{HEAD_FILE}", "prior/text_encoder/model.safetensors")
    return (*TENSORS.values(), *COPIES.values(), *learnt)


def unpack(folder: Path) -> None:
    """Write folder/{tagger,aesthetic,quality_clip,quality_head,reader,encoder,prior,decoder} from what is committed.

    Raises WeightsError if a file is not the one that the manifest names.
    """
    _check()
    for name, place in COPIES.items():
        storage.write_bytes(folder / place, (HERE / name).read_bytes())
    world_models.make(folder, seed=SEED)
    for name, place in TENSORS.items():
        write_safetensors(folder / place, {key: _full(tensor) for key, tensor in load_file(HERE / name).items()})
    data = io.BytesIO()
    torch.save({key: _full(tensor) for key, tensor in load_file(HERE / HEAD).items()}, data)
    storage.write_bytes(folder / "quality_head" / HEAD_FILE, data.getvalue())
    path = folder / "prior" / "text_encoder" / "model.safetensors"
    write_safetensors(path, _dense(load_file(HERE / TEXT), load_file(path)))
    standin_reader.make(folder / "reader", seed=standins.READER_SEED)


def _check() -> None:
    """Raise WeightsError if a committed file is missing or another."""
    try:
        files = json.loads((HERE / MANIFEST).read_text(encoding="utf-8"))["files"]
    except FileNotFoundError:
        raise WeightsError(f"{HERE / MANIFEST}: no such file; `make base` makes the small world's models") from None
    for name, said in files.items():
        if not (HERE / name).is_file() or sha256(HERE / name) != said["sha256"]:
            raise WeightsError(f"{HERE / name}: is not the file that {MANIFEST} names; install sote again")


def _sparse(trained: Mapping[str, Tensor], drawn: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The text encoder without the token vectors that training left as they were drawn."""
    moved = (trained[TOKENS].half() != drawn[TOKENS].half()).any(dim=1).nonzero().squeeze(1)
    kept = {key: _half(tensor) for key, tensor in trained.items() if key != TOKENS}
    return kept | {"tokens.ids": moved.int(), "tokens.vectors": trained[TOKENS][moved].half()}


def _dense(kept: Mapping[str, Tensor], drawn: Mapping[str, Tensor]) -> dict[str, Tensor]:
    tokens = drawn[TOKENS].clone()
    tokens[kept["tokens.ids"].long()] = kept["tokens.vectors"].float()
    learnt = {key: _full(tensor) for key, tensor in kept.items() if not key.startswith("tokens.")}
    return {**drawn, **learnt, TOKENS: tokens}


def _half(tensor: Tensor) -> Tensor:
    return tensor.half().contiguous() if tensor.is_floating_point() else tensor.contiguous()


def _full(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.is_floating_point() else tensor


def sha256(path: Path) -> str:
    """A file's SHA-256, in hexadecimal digits."""
    return hashlib.sha256(path.read_bytes()).hexdigest()
