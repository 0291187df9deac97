"""Adafactor with a factored second moment, exact also where ZeRO cuts a tensor in pieces.

Gives the numbers of transformers' Adafactor(scale_parameter=False, relative_step=False, warmup_init=False), whose
defaults are the constants below; the paper is Shazeer & Stern 2018, arXiv:1804.04235. Taken as they come, ZeRO's flat
shards have one axis, so a stock Adafactor keeps 4 bytes for each weight, clips over the whole shard, and trains
something else with each number of workers.

Tensors of two axes and more are factored over their last two, also a depthwise kernel of 3x3, as transformers does.
What is cut needs two small sums over the workers: rows and columns of the squared gradient, then the squared update.
Each worker that holds a piece of a tensor keeps the same rows and columns of the whole.

Kind: actor.
"""

import math
from typing import Any

import torch
from torch import Tensor

from sote.train.piecewise import Piecewise
from sote.train.shards import Piece

# transformers.optimization.Adafactor's defaults: eps[0], clip_threshold, decay_rate
SMALLEST_SQUARE = 1e-30
LARGEST_RMS = 1.0
DECAY = -0.8

ROW, COLUMN, ELEMENT = "exp_avg_sq_row", "exp_avg_sq_col", "exp_avg_sq"

Held = tuple[Piece, Tensor, Tensor]  # a piece, its weights, its gradient


def moments_of(piece: Piece) -> list[Piece]:
    """Rows and columns of the whole tensor where it has two axes or more; else as much of it as the piece is."""
    if len(piece.shape) < 2:
        return [Piece(f"{piece.name}/{ELEMENT}", piece.shape, start=piece.start, length=piece.length)]
    *ahead, _, columns = piece.shape
    return [Piece.of(f"{piece.name}/{ROW}", piece.shape[:-1]), Piece.of(f"{piece.name}/{COLUMN}", (*ahead, columns))]


class Adafactor(Piecewise):
    """See the module. Each group has its `lr` and `weight_decay`."""

    moments_of = staticmethod(moments_of)

    def step_group(self, group: dict[str, Any], held: list[Held]) -> None:
        """Whole tensors one by one, then all cut ones together."""
        for piece, weights, gradient in held:
            if piece.whole:
                update = self._direction(piece, gradient)
                rms = update.norm(2) / math.sqrt(piece.length)
                _apply(weights, update, rms=rms, group=group)
        if group["cut"]:
            self._step_cut(group, {piece.name: (piece, weights, grad) for piece, weights, grad in held})

    def _step_cut(self, group: dict[str, Any], held: dict[str, Held]) -> None:
        device = group["params"][0].device
        squares = {}  # of a tensor's rows and columns, summed over the workers
        for tensor in group["cut"]:
            if len(tensor.shape) >= 2:
                sums = _zeros(tensor, device=device)
                if tensor.name in held:
                    _add_squares(sums, *held[tensor.name][::2])
                squares[tensor.name] = sums
        self._exchange([part for sums in squares.values() for part in sums])
        updates, norms = {}, {}
        for tensor in group["cut"]:
            norms[tensor.name] = torch.zeros(1, device=device)
            if tensor.name in held:
                piece, _, gradient = held[tensor.name]
                update = self._direction(piece, gradient, sums=squares.get(tensor.name))
                updates[tensor.name] = update
                norms[tensor.name] = update.square().sum().view(1)
        self._exchange(list(norms.values()))
        for tensor in group["cut"]:
            if tensor.name in held:
                rms = norms[tensor.name].sqrt() / math.sqrt(tensor.length)
                _apply(held[tensor.name][1], updates[tensor.name], rms=rms, group=group)

    def _direction(self, piece: Piece, gradient: Tensor, *, sums: tuple[Tensor, Tensor] | None = None) -> Tensor:
        """Renew the moments; the gradient over the root of the second one. `sums` are those of a cut tensor."""
        kept = [self.moment(moment, like=gradient) for moment in moments_of(piece)]
        if len(piece.shape) < 2:
            self._renew(kept[0], gradient.square().add_(SMALLEST_SQUARE))
            return kept[0].rsqrt().mul_(gradient)
        rows, columns = kept
        if sums is None:
            square = gradient.square().add_(SMALLEST_SQUARE)
            self._renew(rows, square.mean(dim=-1))
            self._renew(columns, square.mean(dim=-2))
            return _root(rows, columns).mul_(gradient)
        self._renew(rows, sums[0] / piece.shape[-1])
        self._renew(columns, sums[1] / piece.shape[-2])
        first, last = _matrices(piece)
        root = _root(_stack(rows)[first:last], _stack(columns)[first:last])
        return root.view(-1).narrow(0, piece.start - first * _area(piece), piece.length).mul_(gradient)

    def _renew(self, moment: Tensor, square: Tensor) -> None:
        # equation in section 7.2 of the paper: the first update forgets what was before
        decay = 1.0 - math.pow(self.updates, DECAY)
        moment.mul_(decay).add_(square, alpha=1.0 - decay)

    def _exchange(self, parts: list[Tensor]) -> None:
        """Sum each of these over the workers in place, all at once."""
        if self.reduce is None or not parts:
            return
        flat = torch.cat([part.view(-1) for part in parts])
        self.reduce(flat)
        for part, summed in zip(parts, torch.split(flat, [part.numel() for part in parts]), strict=True):
            part.copy_(summed.view(part.shape))


def _apply(weights: Tensor, update: Tensor, *, rms: Tensor, group: dict[str, Any]) -> None:
    update.div_((rms / LARGEST_RMS).clamp(min=1.0)).mul_(group["lr"])
    if group["weight_decay"]:
        weights.add_(weights, alpha=-group["weight_decay"] * group["lr"])
    weights.sub_(update)


def _root(rows: Tensor, columns: Tensor) -> Tensor:
    """One over the root of the factored second moment."""
    of_rows = (rows / rows.mean(dim=-1, keepdim=True)).rsqrt_().unsqueeze(-1)
    return of_rows * columns.rsqrt().unsqueeze(-2)


def _stack(values: Tensor) -> Tensor:
    """Rows or columns of a tensor as [matrix, row or column]."""
    return values.view(-1, values.shape[-1])


def _area(piece: Piece) -> int:
    return piece.shape[-2] * piece.shape[-1]


def _matrices(piece: Piece) -> tuple[int, int]:
    """First and last (exclusive) of the matrices, which the last two axes are, that the piece touches."""
    return piece.start // _area(piece), -(-(piece.start + piece.length) // _area(piece))


def _zeros(tensor: Piece, *, device: torch.device) -> tuple[Tensor, Tensor]:
    rows, columns = (torch.zeros(moment.shape, device=device) for moment in moments_of(tensor))
    return rows, columns


def _add_squares(sums: tuple[Tensor, Tensor], piece: Piece, gradient: Tensor) -> None:
    """Add the squares of a piece to the sums over its tensor's rows and columns."""
    first, last = _matrices(piece)
    square = gradient.new_zeros((last - first) * _area(piece))
    square.narrow(0, piece.start - first * _area(piece), piece.length).copy_(gradient).square_().add_(SMALLEST_SQUARE)
    stacked = square.view(last - first, *piece.shape[-2:])
    _stack(sums[0])[first:last] += stacked.sum(dim=-1)
    _stack(sums[1])[first:last] += stacked.sum(dim=-2)
