"""The tagger: pictures -> rating, general and character tags with probabilities.

Reads: tagger_input. Writes: rating, tags (as `tags_json`), tag_error.
A tagger folder holds selected_tags.csv and the network in one of two layouts or both (SmilingWolf's WD taggers, version
3): model.onnx for ONNX Runtime, config.json and model.safetensors for torch. Which engine runs it is a matter of the
recipe and of the device that the worker has. Shape suffixes: B rows of the batch, T tags, HWC height, width, colour.

Kind: actor.
"""

import csv
import json
import logging
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from sote.cluster import devices
from sote.cluster.devices import INSTALL, Device
from sote.cluster.errors import RunFailed, WeightsError
from sote.data import fitting, gate
from sote.data.recipe import CurateRecipe, TagPart
from sote.data.schema import RATINGS, TAG_FLOOR

LABELS = "selected_tags.csv"
MODEL = "model.onnx"
TORCH_FILES = ("config.json", "model.safetensors")
# Danbooru's category numbers as selected_tags.csv has them: general and character are used, 9 is the ratings' own
RATING, CATEGORIES = 9, {0: "general", 4: "character"}
NOT_USED = {1: "artist", 3: "copyright", 5: "meta"}
# Engines that compute in another dtype than float32 when they are asked to
NARROW = ("torch", "tensorrt")
# What one picture takes while a network of the family runs in float32 at 448 px. An estimate: SwinV2's first stage has
# 12,544 tokens x 128 x 4 bytes = 6.4 MB in one tensor, four times that inside the MLP, 39 MB of attention scores twice
# over, and what the allocator keeps. tests/bench/bench_models.py prints the real figure on a CUDA device.
ROW_BYTES, ROW_SIDE = 200_000_000, 448

log = logging.getLogger(__name__)

Batch = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class Label:
    """One output of the tagger. `category` is None for the ratings and for categories that are not used."""

    name: str
    category: str | None


class Engine(Protocol):
    """A network on a device (engine_onnx.OnnxEngine, engine_timm.TimmEngine): uint8 BGR [B,S,S,3] -> float32 [B,T].

    `dtype` is what it computes in; `fixed_rows` the only batch that it takes, if there is one; `wants_one_shape` says
    that each other number of rows costs it a build; `is_reference` that it is what others are measured against.
    """

    name: str
    dtype: str
    side: int
    model_bytes: int
    fixed_rows: int | None
    wants_one_shape: bool
    is_reference: bool

    def __call__(self, pixels_BHWC: NDArray[np.uint8]) -> NDArray[np.float32]: ...

    def reference(self, pixels_BHWC: NDArray[np.uint8]) -> NDArray[np.float32]:
        """What float32 says of the same pictures."""
        ...


class Tagger:
    """The tagger in `folder`, ready to use on `device` (None: what this worker has), by the engine of `part`.

    `rows` is the batch that will come (None: the recipe's default); `threads` is how many threads one batch may use on
    the CPU (None: every core this process may run on). `facts` says for the run's record what runs here and how far it
    is from float32.
    """

    def __init__(
        self,
        folder: Path,
        *,
        part: TagPart = TagPart(),  # noqa: B008  frozen
        device: Device | None = None,
        rows: int | None = None,
        threads: int | None = None,
    ) -> None:
        self.labels = read_labels(_file(folder, LABELS))
        device = device or devices.here()
        name = engine_name(folder, part=part, device=device)
        self.device = devices.cpu() if name == "cpu" else device
        rows = rows or int(CurateRecipe.model_fields["slice_rows"].default)
        self._engine = _open(folder, name, part=part, device=self.device, rows=rows, threads=threads)
        self.side = self._engine.side
        self._pieces = _pieces(self._engine, self.device, rows)
        self._check_outputs(folder)
        self.facts: dict[str, str | float] = {
            "stage": "tag",
            "device": self.device.name,
            "engine": self._engine.name,
            "dtype": self._engine.dtype,
            "compile": name == "torch" and part.compile,
            "max_difference": self._measure(part.max_difference),
        }

    def __call__(self, batch: Batch) -> Batch:
        """Batch with `tagger_input` uint8 BGR [B,S,S,3] and `sound` bool [B] -> the batch without the former, and with

        `rating` float32 [B,4] (NaN where there is none), `tags_json` (JSON list of [name, probability, category] with
        probability >= TAG_FLOOR in the order of the csv; null where there is none) and `tag_error` (str or null).
        """
        out = {name: values for name, values in batch.items() if name != "tagger_input"}
        sound = batch["sound"].astype(bool)
        rows = len(sound)
        out["rating"] = np.full((rows, len(RATINGS)), np.nan, np.float32)
        out["tags_json"] = np.full(rows, None, object)
        out["tag_error"] = np.full(rows, None, object)
        if not sound.any():
            return out
        probabilities_BT = self.probabilities(batch["tagger_input"])
        for row in np.flatnonzero(sound):
            if np.isfinite(probabilities_BT[row]).all():
                out["rating"][row] = probabilities_BT[row, : len(RATINGS)]
                out["tags_json"][row] = self._tags_json(probabilities_BT[row])
            else:
                out["tag_error"][row] = "tag: not finite"
        return out

    def probabilities(self, pixels_BHWC: NDArray[np.uint8]) -> NDArray[np.float32]:
        """uint8 BGR [B,S,S,3] -> float32 [B,T] in the order of the csv, as the model gives them."""
        return self._pieces.run(self._engine, pixels_BHWC)

    def _tags_json(self, probabilities_T: NDArray[np.float32]) -> str:
        """Probabilities are written as the shortest decimal that is the same float32 again."""
        kept = np.flatnonzero(probabilities_T >= np.float32(TAG_FLOOR))
        found = [
            [label.name, float(str(probabilities_T[at])), label.category]
            for at in kept
            if (label := self.labels[at]).category is not None
        ]
        return json.dumps(found, ensure_ascii=False)

    def _check_outputs(self, folder: Path) -> None:
        """Run one grey picture: one output for each row of the csv, and probabilities, not logits."""
        grey_BHWC = np.full((1, self.side, self.side, 3), 128, np.uint8)
        probabilities_BT = self.probabilities(grey_BHWC)
        if probabilities_BT.ndim != 2 or probabilities_BT.shape[1] != len(self.labels):
            shape = probabilities_BT.shape[1:]
            labels = folder / LABELS
            raise WeightsError(f"{labels}: has {len(self.labels)} rows, but the model gives {shape} for a picture")
        if not ((probabilities_BT >= 0) & (probabilities_BT <= 1)).all():
            raise WeightsError(f"{folder}: gives numbers outside of 0..1, expected a graph with its sigmoid inside")

    def _measure(self, limit: float) -> float:
        """How far the engine is from float32 on the gate's sample; RunFailed above `limit`."""
        if self._engine.is_reference:
            return 0.0
        pixels_BHWC = gate.sample(width=self.side, height=self.side)[..., ::-1]
        what = f"tag: engine {self._engine.name} on {self.device.name} in {self._engine.dtype}"
        found_BT, reference_BT = self.probabilities(pixels_BHWC), self._engine.reference(pixels_BHWC)
        return gate.difference(found_BT, reference_BT, limit=limit, what=what)


def check(folder: Path) -> None:
    """Raise WeightsError in one line if a folder's files cannot be a tagger's; reads no weights."""
    read_labels(_file(folder, LABELS))
    input_side(folder)


def input_side(folder: Path) -> int:
    """The side in pixels of the square that the tagger takes; reads no weights."""
    if (folder / MODEL).is_file():
        from sote.data import engine_onnx

        return engine_onnx.input_side(folder / MODEL)
    if all((folder / name).is_file() for name in TORCH_FILES):
        from sote.data import engine_timm

        return engine_timm.input_side(folder)
    raise WeightsError(_lacks(folder))


def engine_name(folder: Path, *, part: TagPart, device: Device) -> str:
    """The recipe's engine, or what "auto" means for the device and the files of the folder."""
    if part.engine != "auto":
        return part.engine
    has_onnx, has_torch = (folder / MODEL).is_file(), all((folder / name).is_file() for name in TORCH_FILES)
    if not has_onnx and not has_torch:
        raise WeightsError(_lacks(folder))
    installed = devices.offered_engines(device)
    offered = [engine for engine in installed if (has_torch if engine == "torch" else has_onnx)]
    wants_torch = part.compile or part.dtype != "float32"
    found = devices.pick_engine(device, offered=offered, prefer_torch=wants_torch)
    if found is None:
        missing = INSTALL[devices.ONNX_ENGINE[device.kind] if has_onnx else "torch"]
        raise RunFailed(f"{folder}: no engine for {device.name} ({device.kind}) is installed: install {missing}")
    return found


def _open(folder: Path, name: str, *, part: TagPart, device: Device, rows: int, threads: int | None) -> Engine:
    """The engine of that name on `device`; RunFailed if it does not work there."""
    if name == "torch":
        from sote.data.engine_timm import TimmEngine

        for file in TORCH_FILES:
            _file(folder, file)
        return TimmEngine(folder, device=device, dtype=part.dtype, compiled=part.compile, rows=rows)
    from sote.data.engine_onnx import OnnxEngine

    dtype = part.dtype if name in NARROW else "float32"
    return OnnxEngine(_file(folder, MODEL), engine=name, device=device, dtype=dtype, rows=rows, threads=threads)


def _pieces(engine: Engine, device: Device, rows: int) -> fitting.Pieces:
    if engine.fixed_rows is not None:
        return fitting.Pieces(engine.fixed_rows, fill=True, least=engine.fixed_rows)
    row_bytes = ROW_BYTES * engine.side**2 // ROW_SIDE**2
    most = fitting.first_rows(
        rows, memory_bytes=device.memory_bytes, row_bytes=row_bytes, model_bytes=2 * engine.model_bytes
    )
    return fitting.Pieces(most, fill=engine.wants_one_shape)


def _file(folder: Path, name: str) -> Path:
    if not (folder / name).is_file():
        raise WeightsError(_lacks(folder, name))
    return folder / name


def _lacks(folder: Path, name: str = MODEL) -> str:
    layouts = f"{LABELS} and {MODEL}, or {LABELS}, {' and '.join(TORCH_FILES)}"
    return f"{folder / name}: no such file; a tagger is a folder with {layouts}"


def read_labels(path: Path) -> tuple[Label, ...]:
    """The rows of selected_tags.csv. Raises WeightsError if it is none, if the ratings do not come first, if a tag

    stands there twice, or if a category is none of Danbooru's.
    """
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        labels = [(row["name"], int(row["category"])) for row in rows]
    except (KeyError, TypeError, ValueError, csv.Error) as error:
        wanted = "expected columns tag_id,name,category,count with a number as category"
        raise WeightsError(f"{path}: {wanted} ({type(error).__name__}: {error})") from None
    ratings = tuple(name for name, category in labels if category == RATING)
    if ratings != RATINGS or any(category != RATING for _, category in labels[: len(RATINGS)]):
        raise WeightsError(f"{path}: expected the ratings {', '.join(RATINGS)} as its first rows (category {RATING})")
    _refuse_unclear(path, labels)
    return tuple(Label(name, CATEGORIES.get(category)) for name, category in labels)


def _refuse_unclear(path: Path, labels: list[tuple[str, int]]) -> None:
    """A name without a meaning of its own: none, one that two outputs share, or one of an unknown category."""
    known = {RATING: "rating"} | CATEGORIES | NOT_USED
    for number, (name, category) in enumerate(labels, start=2):  # line 1 has the columns' names
        if category not in known:
            shown = ", ".join(f"{each} {word}" for each, word in sorted(known.items()))
            raise WeightsError(f"{path}: line {number}: category of {name!r} is {category}, expected one of {shown}")
        if not name:
            raise WeightsError(f"{path}: line {number}: has no name")
    used = Counter(name for name, category in labels if category in CATEGORIES)
    if twice := [name for name, count in used.items() if count > 1]:
        raise WeightsError(f"{path}: {twice[0]!r} stands there {used[twice[0]]} times; one tag is one row")
