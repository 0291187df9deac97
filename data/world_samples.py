"""Many scenes of the small world as arrays, with what is true of them: what the small models are fitted on.

Written once into a folder by all cores, then mapped into memory: N scenes, SIDE x SIDE pixels, T tags.

Kind: actor.
"""

import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sote.cluster import storage
from sote.data import painting, world

Pixels = NDArray[np.uint8]
# Of 22 scenes one is cut out of its ground and one is grey, as among drawn files
CUTOUT_AT, GREY_AT, CYCLE = 5, 10, 22
ARRAYS = ("pixels", "tags", "beauty", "quality")


@dataclass(frozen=True)
class Samples:
    """pixels uint8 [N, SIDE, SIDE, 3] RGB; tags bool [N, T] by world.TAGS; beauty and quality float32 [N], 0 to 1."""

    pixels: Pixels
    tags: NDArray[np.bool_]
    beauty: NDArray[np.float32]
    quality: NDArray[np.float32]


def paint(folder: Path, *, count: int, seed: int) -> None:
    """Paint `count` scenes of `seed` into `folder`. Equal arguments give equal files."""
    folder.mkdir(parents=True, exist_ok=True)
    pixels = np.lib.format.open_memmap(
        folder / "pixels.npy", mode="w+", dtype=np.uint8, shape=(count, world.SIDE, world.SIDE, 3)
    )
    tags = np.zeros((count, len(world.TAGS)), bool)
    beauty, quality = np.zeros(count, np.float32), np.zeros(count, np.float32)
    with ProcessPoolExecutor(os.cpu_count(), mp_context=multiprocessing.get_context("spawn")) as pool:
        for at, (image, true, fair, sound) in enumerate(pool.map(partial(sample, seed), range(count), chunksize=64)):
            pixels[at], tags[at] = image, [tag in true for tag in world.TAGS]
            beauty[at], quality[at] = fair, sound
    pixels.flush()
    for name, values in (("tags", tags), ("beauty", beauty), ("quality", quality)):
        np.save(folder / f"{name}.npy", values)
    storage.write_text(folder / "seed.txt", f"{seed}\n")


def load(folder: Path) -> Samples:
    """The samples of a folder; pixels stay on the disk until they are looked at."""
    found: dict[str, Any] = {
        name: np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False) for name in ARRAYS
    }
    return Samples(**found)


def sample(seed: int, index: int) -> tuple[Pixels, set[str], float, float]:
    """Scene `index` of `seed`: its pixels, tags, beauty (1 without scribbles) and quality (1 without wear)."""
    scene = world.plan(seed, index)
    if index % CYCLE == CUTOUT_AT:
        scene = replace(scene, background=painting.Background("transparent", "white"))
    image = painting.paint(scene)
    tags = set(scene.tags) | ({scene.character} if scene.character else set())
    if index % CYCLE == GREY_AT:
        image = image.convert("L").convert("RGB")
        coloured = tuple(f"{colour}_" for colour in (*painting.COLOURS, *painting.BACKGROUND_COLOURS))
        tags = {tag for tag in tags if not tag.startswith(coloured)} | {"monochrome"}
    beauty = 1.0 - min(1.0, scene.scribbles / world.MOST_SCRIBBLES)
    return np.asarray(image), tags, beauty, 1.0 - scene.wear
