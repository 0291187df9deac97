"""A control: the same pictures with each other's captions. What a model learns from it, it did not learn from words.

Reads: catalogue.parquet and latents of a curate run. Writes: a folder that can be trained on in its place.

Kind: actor.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from sote.cluster import storage
from sote.train.latents import FOLDER
from sote.train.rows import CATALOGUE, GROUPS

COLUMNS = ("caption", "caption_tags", GROUPS)


def make(curated: Path, out: Path, *, seed: int) -> None:
    """Write `out`/catalogue.parquet, in which the captions of picked rows are dealt anew, and link the latents.

    Every caption is some picture's, and no picked picture keeps its own unless it is the only one.
    """
    table = pq.read_table(curated / CATALOGUE)
    picked = np.flatnonzero(table["pick"].to_numpy())
    order = np.arange(len(table))
    shuffled = np.random.default_rng(seed).permutation(picked)
    order[shuffled] = np.roll(shuffled, 1)  # one cycle through all
    for name in COLUMNS:
        column: Any = table[name].take(order)
        table = table.set_column(table.column_names.index(name), table.schema.field(name), column)
    storage.write_table(out / CATALOGUE, table)
    link = out / FOLDER
    if not link.exists():
        link.symlink_to((curated / FOLDER).resolve(), target_is_directory=True)
