"""A peer: tags by a plain sequential script, in the manner of kohya's tagger (tag_images_by_wd14_tagger.py).

Own code after what that does: one process opens a picture with Pillow, pads it to a white square, resizes it, and
gives batches of four to onnxruntime, one thing after the other. onnxruntime has all cores. Nothing is scored or hashed.
It resizes as that does, by areas where a picture shrinks and by Lanczos where it grows, with Pillow's filters in place
of OpenCV's, which is not a package of this project.
"""

import os
import time
from pathlib import Path

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray
from PIL import Image

BATCH = 4  # kohya's command in the model card
THRESHOLD = 0.35


def rate(tagger: Path, source: Path) -> float:
    """Pictures a second over the files of a folder, after the first batch, which warms up."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = len(os.sched_getaffinity(0))
    session = ort.InferenceSession(tagger / "model.onnx", options, providers=["CPUExecutionProvider"])
    given = session.get_inputs()[0]
    files = sorted(source.iterdir())
    start = time.perf_counter()
    for first in range(0, len(files), BATCH):
        if first == BATCH:
            start = time.perf_counter()
        batch = [opened(file, side=given.shape[1]) for file in files[first : first + BATCH]]
        probabilities = session.run(None, {given.name: np.stack(batch)})[0]
        [np.flatnonzero(row > THRESHOLD) for row in probabilities]
    return (len(files) - BATCH) / (time.perf_counter() - start)


def opened(file: Path, *, side: int) -> NDArray[np.float32]:
    """A picture as the tagger takes it: BGR, 0 to 255."""
    with Image.open(file) as image:
        picture = image.convert("RGB")
    longest = max(picture.size)
    square = Image.new("RGB", (longest, longest), (255, 255, 255))
    square.paste(picture, ((longest - picture.width) // 2, (longest - picture.height) // 2))
    way = Image.Resampling.BOX if longest > side else Image.Resampling.LANCZOS
    small = square.resize((side, side), way)
    return np.asarray(small)[:, :, ::-1].astype(np.float32)
