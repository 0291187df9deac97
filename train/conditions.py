"""What the UNet makes of its conditions and does not change over the steps: keys and values for every attention block.

Text, pooled text and pictures are the same at each step of a sampling, and so are the keys and values that attention
finds in them. They are computed once for a prompt; a step computes those of the picture's own cells alone. For
sampling: nothing here is trained.

Shapes: B rows, T tokens of all conditions, C channels of a block, S keys and values of all blocks side by side (the
sum of 2 C).

Kind: actor.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor

from sote.train import blocks


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
        return Conditions(torch.cat([block.keys_values(active_BND) for block in _attentions(levels)], dim=-1))

    def by_level(self, levels: Sequence[blocks.Level]) -> list[blocks.Kept]:
        """For each level, for each of its layers, what its attention blocks have; views, nothing is copied."""
        widths = [2 * block.attention.to_k.out_features for block in _attentions(levels)]
        parts = iter(torch.split(self.kept_BTS, widths, dim=-1))
        return [[tuple(islice(parts, count)) for count in level.attentions] for level in levels]


def _attentions(levels: Sequence[blocks.Level]) -> Iterator[blocks.AttentionBlock]:
    for level in levels:
        for block in level:
            if isinstance(block, blocks.AttentionBlock):
                yield block
