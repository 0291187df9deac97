"""The tagger: pictures -> rating, general and character tags with probabilities, by ONNX Runtime.

Reads: tagger_input. Writes: rating, tags (as `tags_json`), tag_error.
A tagger folder holds model.onnx (float32 BGR 0..255 [B,S,S,3] in, probabilities [B,tags] out: the graph normalises and
has its sigmoid inside) and selected_tags.csv (SmilingWolf's WD taggers, version 3). Shape suffixes: B rows of the
batch, T tags, HWC height, width, colour.

Kind: actor.
"""

import csv
import ctypes
import json
import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray
from onnxruntime.capi import onnxruntime_pybind11_state as ort_errors

from sote.cluster.errors import WeightsError
from sote.data import onnxfile
from sote.data.schema import RATINGS, TAG_FLOOR

MODEL, LABELS = "model.onnx", "selected_tags.csv"
# Danbooru's category numbers as selected_tags.csv has them; other categories are not used
RATING, CATEGORIES = 9, {0: "general", 4: "character"}
PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}

# what ONNX Runtime raises for a file that is no model, or none that it knows; anything else is the machine's failure
NOT_A_MODEL = (
    ort_errors.Fail,
    ort_errors.InvalidArgument,
    ort_errors.InvalidGraph,
    ort_errors.InvalidProtobuf,
    ort_errors.NoModel,
    ort_errors.NotImplemented,
)

log = logging.getLogger(__name__)

Batch = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class Label:
    """One output of the tagger. `category` is None for the ratings and for categories that are not used."""

    name: str
    category: str | None


class Tagger:
    """The tagger in `folder`, ready to use. `engine` None takes CUDA where it works, else the CPU.

    `threads` is how many threads one picture may use on the CPU; None takes every core this process may run on.
    """

    def __init__(
        self, folder: Path, *, engine: Literal["cuda", "cpu"] | None = None, threads: int | None = None
    ) -> None:
        model, labels = _files(folder)
        self.labels = read_labels(labels)
        engine = engine or ("cuda" if _cuda_devices() and PROVIDERS["cuda"] in ort.get_available_providers() else "cpu")
        self._session = _session(model, engine=engine, threads=threads)
        given, wanted = self._session.get_inputs()[0], self._session.get_outputs()[0]
        self._input, self._output = given.name, wanted.name
        self.side = _side(model, given.shape)
        self._fixed_rows = given.shape[0] if isinstance(given.shape[0], int) else None
        self._check_outputs(model, labels)

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
        floats_BHWC = pixels_BHWC.astype(np.float32)
        step = self._fixed_rows or len(floats_BHWC)
        return np.concatenate(
            [self._run(floats_BHWC[start : start + step], step) for start in range(0, len(floats_BHWC), step)]
        )

    def _run(self, pixels_BHWC: NDArray[np.float32], rows: int) -> NDArray[np.float32]:
        """Run one batch; a graph with a fixed batch gets it filled up with zeros."""
        missing = rows - len(pixels_BHWC)
        filled = np.concatenate([pixels_BHWC, np.zeros((missing, *pixels_BHWC.shape[1:]), np.float32)])
        (probabilities_BT,) = self._session.run([self._output], {self._input: filled})
        return np.asarray(probabilities_BT[: len(pixels_BHWC)], np.float32)

    def _tags_json(self, probabilities_T: NDArray[np.float32]) -> str:
        """Probabilities are written as the shortest decimal that is the same float32 again."""
        kept = np.flatnonzero(probabilities_T >= np.float32(TAG_FLOOR))
        found = [
            [label.name, float(str(probabilities_T[at])), label.category]
            for at in kept
            if (label := self.labels[at]).category is not None
        ]
        return json.dumps(found, ensure_ascii=False)

    def _check_outputs(self, model: Path, labels: Path) -> None:
        """Run one grey picture: one output for each row of the csv, and probabilities, not logits."""
        grey_BHWC = np.full((1, self.side, self.side, 3), 128, np.uint8)
        probabilities_BT = self.probabilities(grey_BHWC)
        if probabilities_BT.ndim != 2 or probabilities_BT.shape[1] != len(self.labels):
            shape = probabilities_BT.shape[1:]
            raise WeightsError(f"{labels}: has {len(self.labels)} rows, but {model} gives {shape} for a picture")
        if not ((probabilities_BT >= 0) & (probabilities_BT <= 1)).all():
            raise WeightsError(f"{model}: gives numbers outside of 0..1, expected a graph with its sigmoid inside")


def input_side(folder: Path) -> int:
    """The side in pixels of the square that the tagger takes; reads the head of the graph, not its weights."""
    model, _ = _files(folder)
    return _side(model, onnxfile.input_shape(model))


def read_labels(path: Path) -> tuple[Label, ...]:
    """The rows of selected_tags.csv. Raises WeightsError if it is none, or if the ratings do not come first."""
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
    return tuple(Label(name, CATEGORIES.get(category)) for name, category in labels)


def _files(folder: Path) -> tuple[Path, Path]:
    for name in (MODEL, LABELS):
        if not (folder / name).is_file():
            raise WeightsError(f"{folder / name}: no such file; a tagger is a folder with {MODEL} and {LABELS}")
    return folder / MODEL, folder / LABELS


def _side(model: Path, shape: list[int | str | None]) -> int:
    if len(shape) != 4 or shape[3] != 3 or shape[1] != shape[2] or not isinstance(shape[1], int):
        shown = ", ".join(str(size) for size in shape)
        raise WeightsError(f"{model}: takes [{shown}], expected [batch, side, side, 3] with a fixed side")
    return shape[1]


def _session(model: Path, *, engine: str, threads: int | None) -> ort.InferenceSession:
    """Open the model on `engine`. A silent fall-back to another one is an error."""
    options = ort.SessionOptions()
    options.log_severity_level = 3  # errors only
    if engine == "cuda":
        import torch  # noqa: F401  its CUDA libraries are the ones that ONNX Runtime then finds
    else:
        options.intra_op_num_threads = threads or len(os.sched_getaffinity(0))
        options.inter_op_num_threads = 1
        # other actors share the cores: threads that wait must not spin
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        session = ort.InferenceSession(model, options, providers=[PROVIDERS[engine]])
    except NOT_A_MODEL as error:
        first = " ".join(str(error).split())[:300]
        raise WeightsError(f"{model}: cannot be opened by ONNX Runtime on {engine} ({first})") from None
    if (found := session.get_providers()[0]) != PROVIDERS[engine]:
        raise WeightsError(f"{model}: ONNX Runtime fell back from {engine} to {found}; its log says what it lacks")
    log.info("tagger ready engine=%s model=%s", engine, model)
    return session


def _cuda_devices() -> int:
    """How many CUDA devices this process may use, asked of the driver, so that a machine without one needs no torch."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return 0
    count = ctypes.c_int(0)
    return count.value if driver.cuInit(0) == 0 and driver.cuDeviceGetCount(ctypes.byref(count)) == 0 else 0
