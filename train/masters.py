"""The float32 weights that a worker updates, and how they and the optimizer's state leave and come by name.

Every worker has shards of its own, or all have the same whole tensors. What is saved is whole tensors by name, so it
does not tell how many workers there were.

Kind: actor.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from sote.cluster.errors import CheckpointError
from sote.train import shards
from sote.train.piecewise import Piecewise, views
from sote.train.shards import Piece, Shard

CHUNK = 2**24  # elements that each worker sends at a time: 64 MB, so that worker 0 holds little more than the result

Read = Callable[[str], Tensor]  # a whole tensor by name


@dataclass(frozen=True)
class Masters:
    """This worker's tensors and the pieces in each; `givers` has the shards that each worker adds to a whole."""

    tensors: list[Tensor]
    mine: list[Shard]
    givers: list[list[Shard]]
    rank: int
    optimizer: Piecewise

    def assemble(self, tensors: list[Tensor]) -> dict[str, Tensor]:
        """Whole tensors by name out of tensors that are cut as the masters are: on worker 0, as copies on the CPU.

        Nothing on the others. All of them have to call.
        """
        parts = [view for tensor, shard in zip(tensors, self.mine, strict=True) for view in views(tensor, shard)]
        return collect(parts, [_pieces(worker) for worker in self.givers], rank=self.rank)

    def fill(self, tensors: list[Tensor], read: Read) -> None:
        """Overwrite tensors that are cut as the masters are. Raises CheckpointError naming what does not fit."""
        for tensor, shard in zip(tensors, self.mine, strict=True):
            for piece, view in zip(shard, views(tensor, shard), strict=True):
                view.copy_(_elements(piece, read).view(view.shape))

    def state(self) -> dict[str, Tensor]:
        """The optimizer's moments as `<tensor's name>/<moment>`: whole ones on worker 0, nothing on the others."""
        tables = [self._saved(_pieces(worker)) for worker in self.givers]
        parts = [self.optimizer.moment(moment, like=self.tensors[0]) for moment in tables[self.rank]]
        return collect(parts, tables, rank=self.rank)

    def load_state(self, read: Read) -> None:
        """Take what `state` gave. Raises CheckpointError naming what does not fit."""
        self.optimizer.load(lambda moment: _elements(moment, read))

    def _saved(self, pieces: Sequence[Piece]) -> list[Piece]:
        # rows and columns of a cut tensor are the same with each that holds a piece: the first of them saves
        return [
            moment for piece in pieces for moment in self.optimizer.moments_of(piece) if moment.start == piece.start
        ]


def collect(parts: list[Tensor], tables: list[list[Piece]], *, rank: int) -> dict[str, Tensor]:
    """Put the workers' parts together on worker 0: whole float32 tensors on the CPU. Nothing on the others.

    `parts` are this worker's tensors for `tables[rank]`. Where only worker 0 has any, nothing is sent.
    """
    found = {piece.name: torch.empty(piece.shape) for table in tables for piece in table} if rank == 0 else {}
    if not any(tables[1:]):
        for piece, part in zip(tables[0], parts, strict=True) if rank == 0 else ():
            found[piece.name].copy_(part)
        return found
    flat = [part.reshape(-1) for part in parts]
    longest = max(sum(piece.length for piece in table) for table in tables)
    for first in range(0, longest, CHUNK):
        count = min(CHUNK, longest - first)
        sent = flat[0].new_empty(count) if flat else torch.empty(count, device=_device())
        for lap in shards.overlaps(tables[rank], first=first, count=count):
            sent[lap.in_window :][: lap.length] = flat[lap.index][lap.in_piece :][: lap.length]
        received = [torch.empty_like(sent) for _ in tables] if rank == 0 else None
        dist.gather(sent, received)
        for table, chunk in zip(tables, received or (), strict=False):
            _unpack(chunk.cpu(), table, first=first, found=found)
    return found


def _unpack(chunk: Tensor, table: list[Piece], *, first: int, found: dict[str, Tensor]) -> None:
    for lap in shards.overlaps(table, first=first, count=len(chunk)):
        piece = table[lap.index]
        whole = found[piece.name].view(-1)
        whole[piece.start + lap.in_piece :][: lap.length] = chunk[lap.in_window :][: lap.length]


def _device() -> torch.device:
    """Where a tensor has to be to be sent."""
    return torch.device("cuda", torch.cuda.current_device()) if dist.get_backend() == "nccl" else torch.device("cpu")


def _pieces(worker: list[Shard]) -> list[Piece]:
    return [piece for shard in worker for piece in shard]


def _elements(piece: Piece, read: Read) -> Tensor:
    whole = read(piece.name)
    if tuple(whole.shape) != piece.shape:
        raise CheckpointError(f"{piece.name}: of shape {tuple(whole.shape)}, should have shape {piece.shape}")
    return whole.reshape(-1)[piece.start :][: piece.length]
