"""What is kept of a run while it goes on: checkpoints, and snapshots of the weights for sample pictures.

Every worker takes part in putting tensors together; the first one has them, and a thread that writes. What is frozen
is copied from where it came from, one tensor at a time.

Writes: checkpoints/, .snapshots/.
Kind: actor.
"""

import json
from collections.abc import Iterator, Mapping
from functools import partial
from types import TracebackType
from typing import Self

import torch
from torch import Tensor

from sote.cluster import parts, remote
from sote.cluster.storage import RunFolder
from sote.train import checkpoint, lora, tensorfile, writer
from sote.train.averages import Averages
from sote.train.board import Board
from sote.train.checkpoint import State
from sote.train.engine import Engine
from sote.train.recipe import TrainRecipe
from sote.train.task import Task
from sote.train.tensorfile import Planned
from sote.train.writer import SNAPSHOTS, File, Snapshot, Writer

# Of modelspec: how ComfyUI, kohya and CivitAI recognise the family
ARCHITECTURE = "stable-cascade"
IMPLEMENTATION = "https://github.com/Stability-AI/StableCascade"


class Saver:
    """Saves a run. `board` is None on all workers but the first."""

    def __init__(
        self, recipe: TrainRecipe, task: Task, engine: Engine, *, folder: RunFolder, board: Board | None
    ) -> None:
        self.recipe, self.task, self.engine = recipe, task, engine
        self.folder, self.board = folder, board
        self.has_lora = recipe.lora is not None
        # steps that are in a checkpoint are not made again, so their lines must be there before it
        lines = partial(parts.bring, folder.metrics)
        self.writer = Writer(recipe.checkpoint, before=lines) if board is not None else None
        if self.writer is not None:
            for place in (folder.checkpoints, folder.root / SNAPSHOTS):
                writer.sweep(place)

    def save(self, state: State, *, averages: Averages | None, keeps: bool, paints: bool) -> None:
        """Begin to write a checkpoint (`keeps`), a snapshot for painting (`paints`), or both. All workers have to call.

        Waits for what is still being written: there is never more than one copy of the weights.
        """
        if self.writer is not None:
            self.writer.wait()
        weights = self.engine.assemble(self.engine.pieces())
        moments = self.engine.state() if keeps else {}
        means = averages.assemble() if averages is not None and keeps else {}
        if self.writer is None:
            return
        if keeps:
            files = self._files(weights, state, is_whole=True) | self._files(means, state, prefix=checkpoint.AVERAGE)
            files[checkpoint.OPTIMIZER] = File([_planned(name, it) for name, it in moments.items()], {"format": "pt"})
            self.writer.save(Snapshot(self.folder.checkpoints / f"step-{state.step}", files, state))
        if paints:
            files = self._files(weights, state, dtype=torch.bfloat16)
            self.writer.save(Snapshot(self.folder.root / SNAPSHOTS / f"step-{state.step}", files))

    def look(self) -> None:
        """Write down what has come to disk. Raises RunFailed if something could not."""
        if self.writer is None or self.board is None:
            return
        for done in self.writer.finished():
            step = checkpoint.step_of(done.path)
            if done.path.parent.name == SNAPSHOTS:
                self.board.line("snapshot", step=step, folder=remote.named(done.path))
            else:
                self.board.line("checkpoint", step=step, seconds=round(done.seconds, 3), bytes=done.bytes)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self.writer is not None:
            self.writer.__exit__(kind, error, at)
            if error is None:
                self.look()

    def _files(
        self,
        tensors: Mapping[str, Tensor],
        state: State,
        *,
        prefix: str = "",
        dtype: torch.dtype = torch.float32,
        is_whole: bool = False,
    ) -> dict[str, File]:
        """The weight files that the trained `tensors` (by name of parameter) belong into; with `is_whole` those of
        what is frozen too."""
        if self.has_lora:
            made = [_planned(lora.plain(_inner(name)), tensor, dtype) for name, tensor in tensors.items()]
            return {prefix + checkpoint.LORA: File(made, self._metadata("prior", state))} if made else {}
        modules = [name for name in self.task.modules if is_whole or any(it.startswith(f"{name}.") for it in tensors)]
        return {
            prefix + checkpoint.weight_file(module): File(
                list(self._of_module(module, tensors, dtype, is_whole)), self._metadata(module, state)
            )
            for module in modules
        }

    def _of_module(
        self, module: str, tensors: Mapping[str, Tensor], dtype: torch.dtype, is_whole: bool
    ) -> Iterator[Planned]:
        source = self.task.sources[module]
        for name, shape in source.shapes.items():
            tensor = tensors.get(f"{module}.{name}")
            if tensor is not None:
                yield _planned(name, tensor, dtype)
            elif is_whole:
                yield Planned(name, source.stored(name).dtype, shape, partial(source.read, name))

    def _metadata(self, module: str, state: State) -> dict[str, str]:
        """What a weight file says of itself: all that serving and publishing need to know."""
        part = self.recipe.lora
        adapters = {}
        if part is not None:
            adapters = {
                "lora_rank": str(part.rank),
                "lora_alpha": str(part.alpha),
                "lora_targets": ",".join(part.targets),
            }
        return adapters | {
            "format": "pt",
            "config": json.dumps(self.task.sources[module].config),
            "text_mask": state.text_mask,
            "text_tokens": str(state.text_tokens),
            "compression": f"{state.compression:g}",
            "recipe": state.recipe,
            "base": state.base,
            "step": str(state.step),
            "images_seen": str(state.images_seen),
            "licence": self.recipe.export.licence,
            "modelspec.sai_model_spec": "1.0.0",
            "modelspec.architecture": ARCHITECTURE,
            "modelspec.implementation": IMPLEMENTATION,
            "modelspec.title": f"{self.recipe.export.name} {module} step {state.step}",
            "modelspec.license": self.recipe.export.licence,
        }


def _inner(name: str) -> str:
    """A parameter's name in its module."""
    return name.partition(".")[2]


def _planned(name: str, tensor: Tensor, dtype: torch.dtype | None = None) -> Planned:
    return Planned(name, tensorfile.NAMES[dtype or tensor.dtype], tuple(tensor.shape), lambda: tensor)
