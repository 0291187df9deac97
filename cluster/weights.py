"""Every pretrained file that Sote knows by a key: where it is from, which revision and files, under which licence.

A recipe names weights by key, by a local path or by a URI, of which a node keeps a copy. Keys are looked up in the
Hugging Face cache of the machine; nothing is downloaded behind the user's back: a missing file is an error that says
how to fetch it.
Sources of names, sizes and revisions: model pages of the repositories; sizes are those of the listed files.

Kind: pure, but for looking at files.
"""

from dataclasses import dataclass
from pathlib import Path

from sote.cluster import bringing, remote
from sote.cluster.errors import Denied, UserError, WeightsError

GB = 1_000_000_000
RUN = {"run.json", "checkpoints"}  # either is in the folder of a run
# Stems of files and names of folders beside a model at a URI that come with it (train/modelfile.py looks for them)
BESIDE = ("text_encoder", "text_model", "stage_a", "vqgan", "image_encoder", "effnet_encoder", "tokenizer", "scheduler")


@dataclass(frozen=True)
class Weights:
    """Files of one repository that belong together. `bytes` is None where no source states the size.

    `instead` is another set of files of the repository, the same weights in another layout: either is enough.
    """

    key: str
    what: str
    repo: str
    revision: str | None
    files: tuple[str, ...]
    licence: str
    bytes: int | None
    instead: tuple[str, ...] = ()

    @property
    def layouts(self) -> tuple[tuple[str, ...], ...]:
        """The sets of files of which any one is enough."""
        return (self.files, self.instead) if self.instead else (self.files,)

    def fetch_command(self, files: tuple[str, ...] | None = None) -> str:
        """The shell command that brings the files (None: those of the first layout) to this machine's cache."""
        at = f" --revision {self.revision}" if self.revision else ""
        return f"hf download {self.repo} {' '.join(files or self.files)}{at}"


STABILITY = "Stability AI Non-Commercial Research Community License"
FAIR = "Fair AI Public License 1.0-SD, with the Stability AI Non-Commercial Research Community License underneath"
_PRIOR_FOLDER = (
    "model_index.json",
    "prior/config.json",
    "prior/diffusion_pytorch_model.safetensors",
    "text_encoder/config.json",
    "text_encoder/model.safetensors",
    "tokenizer/merges.txt",
    "tokenizer/special_tokens_map.json",
    "tokenizer/tokenizer_config.json",
    "tokenizer/vocab.json",
    "scheduler/scheduler_config.json",
)
_DECODER_FOLDER = (
    "model_index.json",
    "decoder/config.json",
    "decoder/diffusion_pytorch_model.safetensors",
    "vqgan/config.json",
    "vqgan/diffusion_pytorch_model.safetensors",
    "text_encoder/config.json",
    "text_encoder/model.safetensors",
    "tokenizer/merges.txt",
    "tokenizer/special_tokens_map.json",
    "tokenizer/tokenizer_config.json",
    "tokenizer/vocab.json",
    "scheduler/scheduler_config.json",
)

TAGGER_ONNX = ("model.onnx", "selected_tags.csv")
TAGGER_TORCH = ("model.safetensors", "config.json", "selected_tags.csv")


def _tagger(name: str, network: str) -> Weights:
    """One of SmilingWolf's WD taggers, version 3: one list of tags, one input, several networks."""
    return Weights(
        key=name,
        what=f"tagger (10,861 tags): {network}",
        repo=f"SmilingWolf/{name}",
        revision=None,
        files=TAGGER_ONNX,
        licence="Apache-2.0",
        bytes=None,
        instead=TAGGER_TORCH,
    )


KNOWN: tuple[Weights, ...] = (
    _tagger("wd-swinv2-tagger-v3", "SwinV2 base"),
    _tagger("wd-vit-tagger-v3", "ViT base"),
    _tagger("wd-convnext-tagger-v3", "ConvNeXt base"),
    _tagger("wd-vit-large-tagger-v3", "ViT large"),
    _tagger("wd-eva02-large-tagger-v3", "EVA-02 large"),
    Weights(
        key="aesthetic-shadow-v2",
        what="aesthetic scorer (ViT, 1.09 B parameters, 1024 px)",
        repo="Disty0/aesthetic-shadow-v2",  # a copy; the original shadowlilac/aesthetic-shadow-2 may be gone
        revision=None,
        files=("config.json", "preprocessor_config.json", "model.safetensors"),
        licence="CC-BY-NC-4.0",
        bytes=int(4.37 * GB),
    ),
    Weights(
        key="clip-vit-b-32-openai",
        what="image tower of the quality scorer (open_clip ViT-B-32-quickgelu)",
        repo="timm/vit_base_patch32_clip_224.openai",
        revision="ab5b8ef490e86faa07d3523926b842c765de1de5",  # the first with open_clip's files
        files=("open_clip_config.json", "open_clip_model.safetensors"),
        licence="MIT (OpenAI CLIP)",
        bytes=None,
    ),
    Weights(
        key="aes-b32-v0",
        what="head of the quality scorer",
        repo="hakurei/waifu-diffusion-v1-4",
        revision=None,
        files=("models/aes-B32-v0.pth",),
        licence="not stated with the file: read the card of the repository",
        bytes=659_000,
    ),
    Weights(
        key="llava-1.5-7b",
        what="reader of text in pictures",
        repo="llava-hf/llava-1.5-7b-hf",
        revision=None,
        files=(
            "config.json",
            "generation_config.json",
            "preprocessor_config.json",
            "processor_config.json",
            "tokenizer.json",
            "tokenizer_config.json",
            "special_tokens_map.json",
            "model.safetensors.index.json",
            "model-00001-of-00003.safetensors",
            "model-00002-of-00003.safetensors",
            "model-00003-of-00003.safetensors",
        ),
        licence="Llama 2 Community License",
        bytes=None,
    ),
    Weights(
        key="stable-cascade-effnet",
        what="encoder (EfficientNet): pixels -> latents",
        repo="stabilityai/stable-cascade",
        revision="a89f66d459ae653e3b4d4f992a7c3789d0dc4d16",
        files=("effnet_encoder.safetensors",),
        licence=STABILITY,
        bytes=81_500_000,
    ),
    Weights(
        key="stable-cascade-vqgan",
        what="vqgan (Stage A) alone, for the latents of the decoder's set",
        repo="stabilityai/stable-cascade",
        revision="a89f66d459ae653e3b4d4f992a7c3789d0dc4d16",
        files=("vqgan/config.json", "vqgan/diffusion_pytorch_model.safetensors"),
        licence=STABILITY,
        bytes=None,
    ),
    Weights(
        key="stable-cascade-prior",
        what="prior (Stage C) with text encoder",
        repo="stabilityai/stable-cascade-prior",
        revision="7ca32c21c3b4d4e35bbb94fcfedfb4fa2259bd91",
        files=_PRIOR_FOLDER,
        licence=STABILITY,
        bytes=int(17.14 * GB),
    ),
    Weights(
        key="stable-cascade-image-encoder",
        what="image encoder (CLIP-L/14), for variations of pictures",
        repo="stabilityai/stable-cascade-prior",
        revision="7ca32c21c3b4d4e35bbb94fcfedfb4fa2259bd91",
        files=("image_encoder/config.json", "image_encoder/model.safetensors"),
        licence=STABILITY,
        bytes=int(1.22 * GB),
    ),
    Weights(
        key="stable-cascade-decoder",
        what="decoder (Stage B) and vqgan (Stage A)",
        repo="stabilityai/stable-cascade",
        revision="a89f66d459ae653e3b4d4f992a7c3789d0dc4d16",
        files=_DECODER_FOLDER,
        licence=STABILITY,
        bytes=int(9.1 * GB),
    ),
    Weights(
        key="sotediffusion-wuerstchen3",
        what="the seed's prior (Stage C) with its text encoder",
        repo="Disty0/sotediffusion-wuerstchen3",
        revision=None,
        files=_PRIOR_FOLDER,
        licence=FAIR,
        bytes=None,
    ),
    Weights(
        key="sotediffusion-wuerstchen3-decoder",
        what="the seed's decoder (Stage B) and vqgan (Stage A)",
        repo="Disty0/sotediffusion-wuerstchen3-decoder",
        revision=None,
        files=_DECODER_FOLDER,
        licence=FAIR,
        bytes=None,
    ),
)
BY_KEY = {weights.key: weights for weights in KNOWN}


def tagger_layouts(engine: str) -> tuple[tuple[str, ...], ...]:
    """The layouts of a tagger that the engine of a recipe takes: for `locate`."""
    return {"torch": (TAGGER_TORCH,), "auto": (TAGGER_ONNX, TAGGER_TORCH)}.get(engine, (TAGGER_ONNX,))


def locate(reference: str, *, field: str, layouts: tuple[tuple[str, ...], ...] | None = None) -> Path:
    """The folder (or file) with the weights that a recipe's `field` names by key, by local path or by URI.

    A key of one single file gives that file, a key of several gives their folder. `layouts` narrows the sets of files
    of which one must be there (None: any that the key knows).
    Raises WeightsError in one line: which file is missing, where from, under which licence, how to fetch it.
    """
    if weights := BY_KEY.get(reference):
        if found := present(weights, layouts):
            return found
        first = (layouts or weights.layouts)[0]
        size = f", {weights.bytes / GB:.2f} GB" if weights.bytes else ""
        raise WeightsError(
            f"{field}: {missing(weights, first)[0]} of {reference} is not on this machine: it is in the repository "
            f"{weights.repo} on huggingface.co (licence: {weights.licence}{size}); fetch it with "
            f"`{weights.fetch_command(first)}` or name a local folder"
        )
    if remote.REMOTE.fullmatch(reference):
        return _brought(reference, field)
    path = Path(reference).expanduser()
    if path.exists():
        return path
    raise WeightsError(f"{field}: {reference!r} is neither a path here nor known by key; keys: {', '.join(BY_KEY)}")


def here(place: str | Path) -> Path:
    """Weights at a path or URI as they lie on this node: those of a URI are brought once, by one of its processes.

    Raises FileNotFoundError.
    """
    path = remote.place(str(place))
    if remote.uri(path) is None:
        return path
    names = remote.names(path)
    if set(names) & RUN:  # its newest checkpoint is brought by who reads it: a run folder may hold terabytes
        path.mkdir(parents=True, exist_ok=True)
        return path
    if names:
        bringing.bring_tree(path)
    else:
        bringing.bring(path)
    if not names or "config.json" in names:
        _bring_beside(path)
    return path


def _bring_beside(path: Path) -> None:
    """What belongs to one model may lie beside it: its text encoder, its tokenizer, its config."""
    stem = path.stem
    for name in remote.names(path.parent):
        kind = name.partition(".")[0]
        if kind in BESIDE and "." not in name:
            bringing.bring_tree(path.parent / name)
        elif name != path.name and (
            kind in BESIDE or name in ("config.json", f"{stem}.json") or name.startswith(f"{stem}_")
        ):
            bringing.bring(path.parent / name)


def _brought(reference: str, field: str) -> Path:
    try:
        found = here(reference)
        found.stat()
        return found
    except FileNotFoundError:
        raise WeightsError(f"{field}: nothing lies at {reference}; name a folder or file that is there") from None
    except (UserError, Denied) as error:
        raise WeightsError(f"{field}: {error}") from None


def present(weights: Weights, layouts: tuple[tuple[str, ...], ...] | None = None) -> Path | None:
    """Where the weights lie in the cache of this machine, or None if no layout is whole."""
    for files in layouts or weights.layouts:
        whole = [path for file in files if (path := _cached(weights, file)) is not None]
        if len(whole) == len(files):
            return whole[0] if len(whole) == 1 else whole[0].parents[files[0].count("/")]
    return None


def missing(weights: Weights, files: tuple[str, ...] | None = None) -> list[str]:
    """The names of the files (None: those of the first layout) that are not in the cache of this machine."""
    return [file for file in files or weights.files if _cached(weights, file) is None]


def _cached(weights: Weights, file: str) -> Path | None:
    from huggingface_hub import try_to_load_from_cache  # half a second to import: not for `sote --help`

    found = try_to_load_from_cache(weights.repo, file, revision=weights.revision)
    return Path(found) if isinstance(found, str) else None
