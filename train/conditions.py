"""What is the same for every cell of a picture, found before the UNet's layers run: for sampling, nothing is trained.

Text, pooled text and pictures are the same at each step of a sampling, and so are the keys and values that attention
finds in them. They are computed once for a prompt; a step computes those of the picture's own cells alone. What the
time makes of each layer is computed at each step, for all layers at once.

Shapes: B rows, T tokens of all conditions, C channels of a block, S what all blocks have side by side (of keys and
values the sum of 2 C).

Kind: actor.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TypeVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from sote.train import blocks, norms

Block = TypeVar("Block", bound=nn.Module)


@dataclass(frozen=True, eq=False)
class Conditions:
    """Keys and values of the conditions of `rows` rows, each with `tokens` tokens, in one tensor."""

    kept_BTS: Tensor

    @property
    def rows(self) -> int:
        return len(self.kept_BTS)

    @property
    def tokens(self) -> int:
        """Of the text and of the pictures together. Rows of one batch have the same number."""
        return self.kept_BTS.shape[1]

    @staticmethod
    def joined(parts: Sequence["Conditions"]) -> "Conditions":
        """The rows of all parts, copied one after the other. Raises ValueError where their tokens differ in number."""
        if len({part.tokens for part in parts}) != 1:
            raise ValueError(f"tokens: {[part.tokens for part in parts]} cannot be one batch; join rows of one number")
        return parts[0] if len(parts) == 1 else Conditions(torch.cat([part.kept_BTS for part in parts]))

    @staticmethod
    def of(levels: Sequence[blocks.Level], active_BND: Tensor) -> "Conditions":
        """For all attention blocks of the levels, from the conditions after SiLU."""
        return Conditions(
            torch.cat([block.keys_values(active_BND) for block in _all(levels, blocks.AttentionBlock)], dim=-1)
        )

    def by_level(self, levels: Sequence[blocks.Level], times_BD: Tensor) -> list[list[blocks.Hoisted]]:
        """For each level, what each of its layers needs at those times; of what is kept these are views."""
        widths = [2 * block.attention.to_k.out_features for block in _all(levels, blocks.AttentionBlock)]
        kept = iter(torch.split(self.kept_BTS, widths, dim=-1))
        scalings = iter(_scalings(_all(levels, blocks.TimestepBlock), times_BD))
        return [
            [
                blocks.Hoisted(tuple(islice(scalings, times)), tuple(islice(kept, attentions)))
                for times, attentions in zip(level.times, level.attentions, strict=True)
            ]
            for level in levels
        ]


def _scalings(found: list[blocks.TimestepBlock], times_BD: Tensor) -> list[tuple[Tensor, Tensor]]:
    """1 + scale and shift of each block, [B,C] in float32: one product for all of them in place of many small ones."""
    mappers = [block.mappers() for block in found]
    if not all(type(mapper) is nn.Linear for each in mappers for mapper in each):  # adapters are around some
        return [_scaling(each, times_BD) for each in mappers]
    both_BS: Tensor | None = None  # two halves: the scales of all, then the shifts of all
    with norms.without_autocast(times_BD):
        for alike, time_BD in zip(zip(*mappers, strict=True), times_BD.chunk(len(mappers[0]), dim=1), strict=True):
            weights = [cast(nn.Linear, mapper).weight.chunk(2) for mapper in alike]
            biases = [cast(nn.Linear, mapper).bias.chunk(2) for mapper in alike]
            weight = torch.cat([halves[place] for place in (0, 1) for halves in weights])
            bias = torch.cat([halves[place] for place in (0, 1) for halves in biases])
            part_BS = functional.linear(time_BD.to(weight.dtype), weight, bias).to(norms.wide(weight))
            both_BS = part_BS if both_BS is None else both_BS + part_BS
    scale_BS, shift_BS = cast(Tensor, both_BS).chunk(2, dim=-1)
    widths = [cast(nn.Linear, each[0]).out_features // 2 for each in mappers]
    return list(zip(torch.split(1 + scale_BS, widths, -1), torch.split(shift_BS, widths, -1), strict=True))


def _scaling(mappers: list[nn.Module], times_BD: Tensor) -> tuple[Tensor, Tensor]:
    with norms.without_autocast(times_BD):
        parts = times_BD.chunk(len(mappers), dim=1)
        dtype = next(mappers[0].parameters()).dtype
        found = [mapper(part.to(dtype)) for mapper, part in zip(mappers, parts, strict=True)]
    scale_BC, shift_BC = torch.stack([each.to(norms.wide(each)) for each in found]).sum(dim=0).chunk(2, dim=-1)
    return 1 + scale_BC, shift_BC


def _all(levels: Sequence[blocks.Level], kind: type[Block]) -> list[Block]:
    return [block for level in levels for block in level if isinstance(block, kind)]
