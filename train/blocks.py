"""The blocks of Stable Cascade's UNet, with the names and shapes of diffusers' parameters. [B,H,W,C] everywhere.

The state stays in one dtype, that of the arithmetic: bfloat16 weights, or what autocast makes of float32 ones. The
time embedding is float32, and so are the scale and shift that it becomes.

Attention drops probabilities, in training alone, as Stability-AI/StableCascade 7a7d341 modules/common.py does
(nn.MultiheadAttention); diffusers drops after the projection instead.

Shapes: B batch, H and W cells, C channels, N tokens (of a picture: H * W; of the conditions), D width of conditions.

Kind: actor.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from sote.train import norms


class Pointwise(nn.Conv2d):
    """A 1x1 convolution as a matrix product."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, kernel_size=1)

    def forward(self, x_BHWC: Tensor) -> Tensor:
        return functional.linear(x_BHWC, self.weight.flatten(1), self.bias)


class Convolution(nn.Conv2d):
    """A convolution of [B,H,W,C]: a view in, a view out, in torch's channels-last format."""

    def forward(self, x_BHWC: Tensor) -> Tensor:
        return super().forward(x_BHWC.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


class TransposedConvolution(nn.ConvTranspose2d):
    """A transposed convolution of [B,H,W,C]."""

    def forward(self, x_BHWC: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(x_BHWC.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


class LayerNorm(nn.Module):
    """Layer norm of the channels; has no weights."""

    def forward(self, x: Tensor) -> Tensor:
        return norms.layer_norm(x)


class ResponseNorm(nn.Module):
    """Global response norm with its two weights for each channel; starts as doing nothing."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.zeros(1, 1, 1, channels))
        self.beta = nn.Parameter(torch.zeros(1, 1, 1, channels))

    def forward(self, x_BHWC: Tensor) -> Tensor:
        return norms.response_norm(x_BHWC, gamma_111C=self.gamma, beta_111C=self.beta)


class ResBlock(nn.Module):
    """Depthwise convolution, layer norm, and a matrix product to four times the width and back, added to the input.

    Of the four-fold state only what comes out of the first product is kept for the backward pass; GELU, norm and
    dropout are computed again there, without any matrix product. torch.compile decides that by itself. All is kept
    without `keep_little`, which is quicker and gives the same (CascadeUNet.keep_all).
    """

    def __init__(self, channels: int, *, skip_channels: int = 0, kernel_size: int = 3, dropout: float = 0.0) -> None:
        super().__init__()
        self.depthwise = Convolution(channels, channels, kernel_size, padding=kernel_size // 2, groups=channels)
        self.channelwise = nn.Sequential(
            nn.Linear(channels + skip_channels, channels * 4),
            nn.GELU(),
            ResponseNorm(channels * 4),
            nn.Dropout(dropout),
            nn.Linear(channels * 4, channels),
        )
        self.keep_little = True

    def forward(self, x_BHWC: Tensor, skip_BHWC: Tensor | None = None) -> Tensor:
        state_BHWC = norms.layer_norm(self.depthwise(x_BHWC))
        if skip_BHWC is not None:
            state_BHWC = torch.cat([state_BHWC, skip_BHWC], dim=-1)
        state_BHWC = self.channelwise[0](state_BHWC)
        if self.keep_little and torch.is_grad_enabled() and not torch.compiler.is_compiling():
            return x_BHWC + cast(Tensor, checkpoint(self._narrow, state_BHWC, use_reentrant=False))
        return x_BHWC + self._narrow(state_BHWC)

    def _narrow(self, state_BHWC: Tensor) -> Tensor:
        return cast(Tensor, self.channelwise[1:](state_BHWC))


class TimestepBlock(nn.Module):
    """Scales and shifts each channel by the time, and by each further condition of the same form."""

    def __init__(self, channels: int, *, time_width: int, conditions: tuple[str, ...]) -> None:
        super().__init__()
        self.names = ("mapper", *(f"mapper_{name}" for name in conditions))
        for name in self.names:
            self.add_module(name, nn.Linear(time_width, channels * 2))

    def forward(self, x_BHWC: Tensor, times_BD: Tensor) -> Tensor:
        with norms.without_autocast(x_BHWC):
            both_BC = torch.zeros((), device=x_BHWC.device)
            for name, time_BD in zip(self.names, times_BD.chunk(len(self.names), dim=1), strict=True):
                mapper = cast(nn.Linear, getattr(self, name))
                both_BC = both_BC + mapper(time_BD.to(mapper.weight.dtype))
        scale_B11C, shift_B11C = both_BC.to(norms.wide(x_BHWC))[:, None, None].chunk(2, dim=-1)
        return norms.scale_shift(x_BHWC, scale_B11C=1 + scale_B11C, shift_B11C=shift_B11C)

    def mappers(self) -> list[nn.Module]:
        """Of the time and of each further condition."""
        return [cast(nn.Module, getattr(self, name)) for name in self.names]


class Attention(nn.Module):
    """The projections of an attention, named as diffusers names them."""

    def __init__(self, channels: int, *, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.to_q, self.to_k, self.to_v = (nn.Linear(channels, channels) for _ in range(3))
        self.to_out = nn.ModuleList([nn.Linear(channels, channels)])

    def forward(self, x_BNC: Tensor, tokens_BNC: Tensor) -> Tensor:
        """What each token of x finds among `tokens`."""
        return self.found(self.to_q(x_BNC), self.to_k(tokens_BNC), self.to_v(tokens_BNC))

    def found(self, query_BNC: Tensor, key_BNC: Tensor, value_BNC: Tensor) -> Tensor:
        """The same from queries, keys and values that are there already."""
        query_BHND, key_BHND, value_BHND = (
            part.view(*part.shape[:2], self.heads, -1).transpose(1, 2) for part in (query_BNC, key_BNC, value_BNC)
        )
        dropout = self.dropout if self.training else 0.0
        found = functional.scaled_dot_product_attention(query_BHND, key_BHND, value_BHND, dropout_p=dropout)
        return cast(Tensor, self.to_out[0](found.transpose(1, 2).flatten(2)))


class AttentionBlock(nn.Module):
    """Attention of the picture to itself and to the conditions, added to the input.

    Keys and values of both are one product each: the tokens are joined before it. Queries need the picture's alone.
    """

    def __init__(self, channels: int, *, width: int, heads: int, self_attention: bool, dropout: float) -> None:
        super().__init__()
        self.self_attention = self_attention
        self.attention = Attention(channels, heads=heads, dropout=dropout)
        # The SiLU of Stability's pair stands before all blocks, computed once
        self.kv_mapper = nn.Sequential(nn.Identity(), nn.Linear(width, channels))

    def forward(self, x_BHWC: Tensor, active_BND: Tensor) -> Tensor:
        """`active_BND` are the conditions after SiLU."""
        tokens_BNC = self.kv_mapper(active_BND)
        normed_BNC = norms.layer_norm(x_BHWC).flatten(1, 2)
        if self.self_attention:
            tokens_BNC = torch.cat([normed_BNC, tokens_BNC], dim=1)
        return x_BHWC + cast(Tensor, self.attention(normed_BNC, tokens_BNC)).view_as(x_BHWC)

    def keys_values(self, active_BND: Tensor) -> Tensor:
        """Keys and values of the conditions after SiLU, side by side, [B,N,2C]."""
        tokens_BNC = self.kv_mapper(active_BND)
        return torch.cat([self.attention.to_k(tokens_BNC), self.attention.to_v(tokens_BNC)], dim=-1)

    def with_kept(self, x_BHWC: Tensor, kept_BNC: Tensor) -> Tensor:
        """What `forward` gives, from the `keys_values` of the conditions."""
        normed_BNC = norms.layer_norm(x_BHWC).flatten(1, 2)
        key_BNC, value_BNC = kept_BNC.chunk(2, dim=-1)
        if self.self_attention:
            key_BNC = torch.cat([self.attention.to_k(normed_BNC), key_BNC], dim=1)
            value_BNC = torch.cat([self.attention.to_v(normed_BNC), value_BNC], dim=1)
        return x_BHWC + self.attention.found(self.attention.to_q(normed_BNC), key_BNC, value_BNC).view_as(x_BHWC)


class Hoisted(NamedTuple):
    """What a layer needs besides the picture, found for all layers at once: for each of its time blocks 1 + scale and
    shift [B,C], float32, and for each of its attention blocks the `keys_values` of the conditions."""

    scalings: tuple[tuple[Tensor, Tensor], ...]
    kept: tuple[Tensor, ...]


def run_layer(
    layer: list[nn.Module],
    x_BHWC: Tensor,
    times_BD: Tensor,
    conditions: Tensor | Hoisted,
    skip_BHWC: Tensor | None,
) -> Tensor:
    """The blocks of a layer, one after the other. The skip is for the first.

    `conditions` are the tokens after SiLU, or all that is found before; the times are not looked at then.
    """
    if isinstance(conditions, Hoisted):
        return _run_hoisted(layer, x_BHWC, conditions, skip_BHWC)
    for place, block in enumerate(layer):
        if isinstance(block, ResBlock):
            x_BHWC = block(x_BHWC, skip_BHWC if place == 0 else None)
        elif isinstance(block, TimestepBlock):
            x_BHWC = block(x_BHWC, times_BD)
        else:
            x_BHWC = block(x_BHWC, conditions)
    return x_BHWC


def _run_hoisted(layer: list[nn.Module], x_BHWC: Tensor, found: Hoisted, skip_BHWC: Tensor | None) -> Tensor:
    scalings, kept = list(found.scalings), list(found.kept)
    for place, block in enumerate(layer):
        if isinstance(block, ResBlock):
            x_BHWC = block(x_BHWC, skip_BHWC if place == 0 else None)
        elif isinstance(block, TimestepBlock):
            scale_BC, shift_BC = scalings.pop(0)
            x_BHWC = norms.scale_shift(x_BHWC, scale_B11C=scale_BC[:, None, None], shift_B11C=shift_BC[:, None, None])
        else:
            x_BHWC = cast(AttentionBlock, block).with_kept(x_BHWC, kept.pop(0))
    return x_BHWC


class Level(nn.ModuleList):
    """The blocks of all layers of a level in one list, as diffusers has them. `run` runs a layer, compiled or not.

    `times` and `attentions` say how many time and attention blocks each layer has.
    """

    def __init__(self, layers: Iterable[list[nn.Module]]) -> None:
        found = list(layers)
        super().__init__(block for layer in found for block in layer)
        size = len(found[0])
        self.layers = tuple(range(size * place, size * (place + 1)) for place in range(len(found)))
        self.times, self.attentions = (
            tuple(sum(isinstance(block, kind) for block in layer) for layer in found)
            for kind in (TimestepBlock, AttentionBlock)
        )
        self.recomputed = [False] * len(found)
        self.run: Callable[..., Tensor] = run_layer

    def recompute(self, place: int, is_recomputed: bool) -> None:
        """Whether that layer is computed again in the backward pass."""
        self.recomputed[place] = is_recomputed
        for number in self.layers[place]:
            if isinstance(block := self[number], ResBlock):
                block.keep_little = not is_recomputed

    def forward(
        self, x_BHWC: Tensor, times_BD: Tensor, conditions: Tensor | Sequence[Hoisted], skip_BHWC: Tensor | None = None
    ) -> Tensor:
        if skip_BHWC is not None and x_BHWC.shape[1:3] != skip_BHWC.shape[1:3]:  # an odd size, halved and doubled
            x_BHWC = resized(x_BHWC, height=skip_BHWC.shape[1], width=skip_BHWC.shape[2])
        for place, numbers in enumerate(self.layers):
            layer = [self[number] for number in numbers]
            told = conditions if isinstance(conditions, Tensor) else conditions[place]
            inputs = (layer, x_BHWC, times_BD, told, skip_BHWC if place == 0 else None)
            if self.recomputed[place] and torch.is_grad_enabled():
                x_BHWC = cast(Tensor, checkpoint(self.run, *inputs, use_reentrant=False))
            else:
                x_BHWC = self.run(*inputs)
        return x_BHWC


class Resample(nn.Module):
    """A 1x1 convolution between two levels, with bilinear resampling by two where the level switches."""

    def __init__(self, inputs: int, outputs: int, *, is_up: bool, is_switched: bool) -> None:
        super().__init__()
        change = Bilinear(2.0 if is_up else 0.5) if is_switched else nn.Identity()
        mapping = Pointwise(inputs, outputs)
        self.blocks = nn.ModuleList([change, mapping] if is_up else [mapping, change])

    def forward(self, x_BHWC: Tensor) -> Tensor:
        for block in self.blocks:
            x_BHWC = block(x_BHWC)
        return x_BHWC


class Bilinear(nn.Module):
    """Bilinear resampling by a factor, corners kept."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x_BHWC: Tensor) -> Tensor:
        height, width = (int(side * self.factor) for side in x_BHWC.shape[1:3])
        return resized(x_BHWC, height=height, width=width)


def resized(x_BHWC: Tensor, *, height: int, width: int) -> Tensor:
    """Bilinear resampling to a size, corners kept, computed in float32."""
    wide_BCHW = x_BHWC.permute(0, 3, 1, 2).to(norms.wide(x_BHWC))
    found_BCHW = functional.interpolate(wide_BCHW, (height, width), mode="bilinear", align_corners=True)
    return found_BCHW.permute(0, 2, 3, 1).to(x_BHWC.dtype)
