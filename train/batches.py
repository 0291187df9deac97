"""What a worker computes at a time: latents or pixels, noise, times, captions; and reading them ahead of the training.

All of it is a pure function of (seed, step, place in the batch): whichever worker computes a micro-batch, and whatever
was read before, it is the same.

Shapes: B images of a micro-batch, C channels, H and W cells (of pixels_BHWC: pixels).
Reads: latents/<shard>, or the pictures of the rows.
Kind: actor.
"""

import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import numpy as np
import torch
from torch import Tensor

from sote.data.latentfile import VQGAN_STRIDE, latent_cells
from sote.train import captions, diffusion, noise, pictures
from sote.train.captions import SEPARATOR
from sote.train.latents import LatentFacts, Store
from sote.train.order import (
    DROPOUT,
    ENCODER_DROPOUT,
    ENCODER_SCALE,
    NOISE,
    ORDER_OF_BATCHES,
    ORDER_OF_IMAGES,
    TIME,
    WORDS,
    Batch,
    Order,
    generator,
    last_step,
)
from sote.train.pictures import Pictures
from sote.train.recipe import BatchPart, CaptionsPart, DataPart, DiffusionPart, Stage, TrainRecipe
from sote.train.rows import Needs, Rows, read_for, read_rows

__all__ = [
    "DROPOUT",
    "ENCODER_DROPOUT",
    "ENCODER_SCALE",
    "NOISE",
    "ORDER_OF_BATCHES",
    "ORDER_OF_IMAGES",
    "SEPARATOR",
    "TIME",
    "WORDS",
    "Batch",
    "Inputs",
    "LatentFacts",
    "Loader",
    "Micro",
    "Needs",
    "Order",
    "Prefetch",
    "Rows",
    "Store",
    "generator",
    "last_step",
    "make_loader",
    "read_for",
    "read_rows",
]

CHANNELS = {"prior": 16, "decoder": 4}  # of the latents of Stage C and of Stage A


@dataclass(frozen=True)
class Micro:
    """What a worker computes at a time. `seed` is for the model's own dropout.

    Stage C is trained on latents, or on pixels that are still to be encoded, which then have the size that the encoder
    is to see (the bucket's, at compression 32). Stage B is trained on Stage A's latents (or pixels at the size of the
    bucket, still to be encoded), and sees the encoder's latents, or pixels that the encoder is to see at
    `encoder_scale`, which is one number for all micro-batches of a step; where not `keep_B` it does not see them.
    """

    index: int  # of the micro-batch in the step
    latents_BCHW: Tensor | None  # float32, of what is trained; Stage A's without any scale
    pixels_BHWC: Tensor | None  # uint8
    encoder_latents_BCHW: Tensor | None  # float32, Stage C's, for Stage B
    encoder_scale: float
    keep_B: Tensor  # bool
    noise_BCHW: Tensor
    time_B: Tensor
    captions: list[str]
    seed: int


@dataclass(frozen=True)
class Inputs:
    """Where pictures and latents come from. `compression` is that of Stage C's latents, in pixels per cell."""

    store: Store
    pictures: Pictures | None = None
    compression: float = 32.0


class Loader:
    """Turns places of a batch into what the model computes on. For any number of threads."""

    def __init__(
        self,
        rows: Rows,
        *,
        inputs: Inputs,
        stage: Stage = "prior",
        batch: BatchPart,
        captions: CaptionsPart,
        diffusion: DiffusionPart,
    ) -> None:
        self.rows, self.inputs, self.stage = rows, inputs, stage
        self.part, self.captions, self.diffusion = batch, captions, diffusion

    def micro(self, batch: Batch, index: int) -> Micro:
        """Micro-batch `index` of `batch`: the same whichever worker computes it. Raises what reading raises."""
        places = range(index * self.part.micro_batch, (index + 1) * self.part.micro_batch)
        rows = [int(batch.rows[place]) for place in places]
        learnt, shown = self._latents(rows)
        shape = self._shape(batch) if learnt is None else (learnt.shape[1], learnt.shape[2], learnt.shape[3])
        randoms = [self._random(NOISE, batch, place) for place in places]
        uniform = [self._random(TIME, batch, place).random() for place in places]
        kept = [self._random(ENCODER_DROPOUT, batch, place).random() for place in places]
        least, decoder = self.diffusion.least_encoder_scale, self.stage == "decoder"
        return Micro(
            index=index,
            latents_BCHW=learnt,
            pixels_BHWC=self._pixels(batch, rows),
            encoder_latents_BCHW=shown,
            encoder_scale=least + (1 - least) * self._random(ENCODER_SCALE, batch, 0).random() if decoder else 1.0,
            keep_B=torch.tensor([not decoder or one >= self.diffusion.encoder_dropout for one in kept]),
            noise_BCHW=torch.stack([noise.draw(random, shape, self.diffusion) for random in randoms]),
            time_B=diffusion.times(torch.tensor(uniform, dtype=torch.float32), self.diffusion),
            captions=[self.caption(row, step=batch.step, place=place) for row, place in zip(rows, places, strict=True)],
            seed=int(self._random(DROPOUT, batch, index).integers(2**62)),
        )

    def caption(self, row: int, *, step: int, place: int) -> str:
        """The caption of `row` at one place of a run."""
        tags, groups = self.rows.tags.of(row)
        random = generator(self.part.seed, WORDS, step, place)
        return captions.caption(tags, groups, part=self.captions, random=random)

    def _random(self, purpose: int, batch: Batch, place: int) -> np.random.Generator:
        return generator(self.part.seed, purpose, batch.step, place)

    def _latents(self, rows: Sequence[int]) -> tuple[Tensor | None, Tensor | None]:
        """The latents that are learnt, and the encoder's that Stage B is shown; None where they are made of pixels."""
        of_c = self.inputs.store.read(self.rows.latents, rows) if self.rows.latents is not None else None
        if self.stage == "prior":
            return of_c, None
        return self.inputs.store.read(self.rows.vqgan, rows) if self.rows.vqgan is not None else None, of_c

    def _pixels(self, batch: Batch, rows: Sequence[int]) -> Tensor | None:
        source = self.inputs.pictures
        if source is None:
            return None
        width, height = _sides(batch.bucket)
        if self.stage == "prior":
            width, height = pictures.encoder_size(width, height, self.inputs.compression)
        return torch.from_numpy(np.stack([source.read(row, width=width, height=height) for row in rows]))

    def _shape(self, batch: Batch) -> tuple[int, int, int]:
        """Channels, height and width of the latents that the batch's pictures will become."""
        compression = self.inputs.compression if self.stage == "prior" else VQGAN_STRIDE
        width, height = (latent_cells(side, compression) for side in _sides(batch.bucket))
        return CHANNELS[self.stage], height, width


class Prefetch:
    """Iterates over (batch, micro-batches `indices` of it) of `steps`, reading ahead in threads.

    `waited` is the seconds that the last `next` had to wait. An error in reading is raised at its step, and ends the
    iteration. Nothing runs on after the last step, an error, or `close`.
    """

    def __init__(
        self,
        loader: Loader,
        order: Order,
        *,
        steps: range,
        epochs: int | None,
        indices: Sequence[int],
        part: DataPart,
    ) -> None:
        self.waited = 0.0
        self._loader, self._order, self._epochs, self._indices = loader, order, epochs, tuple(indices)
        self._steps, self._ahead = iter(steps), part.prefetch_steps
        self._pool = ThreadPoolExecutor(part.readers, thread_name_prefix="batches")
        self._coming: deque[tuple[Batch, list[Future[Micro]]]] = deque()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> tuple[Batch, list[Micro]]:
        began = time.monotonic()
        try:
            self._read_ahead()
            if not self._coming:
                raise StopIteration
            batch, coming = self._coming.popleft()
            found = batch, [future.result() for future in coming]
            self._read_ahead()
        except BaseException:
            self.close()
            raise
        self.waited = time.monotonic() - began
        return found

    def close(self) -> None:
        """End the threads; what they are reading is finished first, what they have not begun is not."""
        self._steps = iter(())
        self._coming.clear()
        self._pool.shutdown(wait=True, cancel_futures=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _read_ahead(self) -> None:
        """Begin to read what follows: `prefetch_steps` steps after the one that is handed out."""
        while len(self._coming) <= self._ahead and (step := next(self._steps, None)) is not None:
            batch = self._order.batch(step, epochs=self._epochs)
            self._coming.append((batch, [self._pool.submit(self._loader.micro, batch, at) for at in self._indices]))


def make_loader(recipe: TrainRecipe) -> Loader:
    """The rows of a recipe and how they are read. Raises SourceError for rows that cannot be trained on."""
    rule, part = pictures.rules(recipe.data.curated)
    rows = read_for(recipe, cut=pictures.cut(part))
    inputs = Inputs(
        store=Store(recipe.data.curated),
        pictures=Pictures(rows, rule) if rows.files is not None else None,
        compression=recipe.data.compression or part.compression,
    )
    return Loader(
        rows,
        inputs=inputs,
        stage=recipe.model.stage,
        batch=recipe.batch,
        captions=recipe.captions,
        diffusion=recipe.diffusion,
    )


def _sides(bucket: str) -> tuple[int, int]:
    """Width and height of a bucket in pixels."""
    width, height = bucket.split("x")
    return int(width), int(height)
