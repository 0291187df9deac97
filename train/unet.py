"""StableCascadeUNet in plain torch: Stage C and Stage B of any size, for training and for sampling.

Parameters have the names and shapes of diffusers 0.42.1's class, so its files load strictly; in float32 the output is
equal to its output. What is different: the time is embedded in float32 whatever the weights are, pooled text may be
[B,D], and the conditions sca and crp are zero, as in every trainer.

Source: Stability-AI/StableCascade 7a7d341 modules/stage_c.py and stage_b.py (MIT), diffusers 0.42.1
models/unets/unet_stable_cascade.py (Apache-2.0).

Shapes: B batch, C channels, H and W cells, T tokens of the text, N tokens of all conditions, D widths.

Kind: actor.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from sote.cluster.errors import CheckpointError
from sote.train import blocks, norms
from sote.train.conditions import Conditions
from sote.train.shapes import ATTENTION, RES, TIME

DIFFUSERS = {"_class_name": "StableCascadeUNet", "_diffusers_version": "0.42.1"}
MAX_POSITIONS = 10_000  # of the time embedding (stage_c.py, gen_r_embedding)
CONDITION_STD = 0.02  # initialisation, all numbers from stage_c.py
EMBEDDING_GAIN = 0.02
RECOMPILE_LIMIT = 64  # compiled forms of a layer: by level, skip, dtype, training or not; torch's own limit is 8


@dataclass(frozen=True)
class Config:
    """What shapes a UNet. Names and defaults are those of diffusers' config.json."""

    in_channels: int = 16
    out_channels: int = 16
    timestep_ratio_embedding_dim: int = 64
    patch_size: int = 1
    conditioning_dim: int = 2048
    block_out_channels: tuple[int, ...] = (2048, 2048)
    num_attention_heads: tuple[int, ...] = (32, 32)
    down_num_layers_per_block: tuple[int, ...] = (8, 24)
    up_num_layers_per_block: tuple[int, ...] = (24, 8)
    down_blocks_repeat_mappers: tuple[int, ...] = (1, 1)
    up_blocks_repeat_mappers: tuple[int, ...] = (1, 1)
    block_types_per_layer: tuple[tuple[str, ...], ...] = ((RES, TIME, ATTENTION), (RES, TIME, ATTENTION))
    clip_text_in_channels: int | None = None
    clip_text_pooled_in_channels: int = 1280
    clip_image_in_channels: int | None = None
    clip_seq: int = 4
    effnet_in_channels: int | None = None
    pixel_mapper_in_channels: int | None = None
    kernel_size: int = 3
    dropout: tuple[float, ...] = (0.1, 0.1)
    self_attn: tuple[bool, ...] = (True, True)
    timestep_conditioning_type: tuple[str, ...] = ("sca", "crp")
    switch_level: tuple[bool, ...] | None = None

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> "Config":
        """From a diffusers config.json; unknown keys are ignored. Raises CheckpointError if it is not of one piece."""
        known = {field.name: _tuples(values[field.name]) for field in fields(cls) if field.name in values}
        levels = len(known.get("block_out_channels", cls.block_out_channels))
        for name in ("dropout", "self_attn"):  # one value for all levels
            if not isinstance(known.get(name, True), tuple):
                known[name] = (known.get(name, True),) * levels
        for name in ("down_blocks_repeat_mappers", "up_blocks_repeat_mappers"):
            if known.get(name, ()) is None:
                known[name] = (1,) * levels
        config = cls(**known)
        config._check()
        return config

    def to_diffusers(self) -> dict[str, Any]:
        """The whole config.json of a StableCascadeUNet."""
        return DIFFUSERS | {field.name: _lists(getattr(self, field.name)) for field in fields(self)}

    def _check(self) -> None:
        for name in PER_LEVEL:
            if len(getattr(self, name)) != len(self.block_out_channels):
                raise CheckpointError(
                    f"config.json: {name}: {_lists(getattr(self, name))} is not one value for each of the "
                    f"{len(self.block_out_channels)} levels of block_out_channels"
                )
        unknown = {kind for level in self.block_types_per_layer for kind in level} - {RES, TIME, ATTENTION}
        if unknown:
            raise CheckpointError(
                f"config.json: block_types_per_layer: {sorted(unknown)[0]!r} is unknown; there are {RES}, {TIME} and "
                f"{ATTENTION}"
            )


PER_LEVEL = (
    "num_attention_heads",
    "down_num_layers_per_block",
    "up_num_layers_per_block",
    "down_blocks_repeat_mappers",
    "up_blocks_repeat_mappers",
    "block_types_per_layer",
    "dropout",
    "self_attn",
)


class CascadeUNet(nn.Module):
    """Finds the noise in noised latents. Stage C is conditioned on text, Stage B on the encoder's latents.

    Blocks are held in one list for each level, as diffusers does; a layer is one block of each kind of the level.
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        width, channels = config.conditioning_dim, config.block_out_channels
        if config.effnet_in_channels is not None:
            self.effnet_mapper = _mapper(config.effnet_in_channels, channels[0])
        if config.pixel_mapper_in_channels is not None:
            self.pixels_mapper = _mapper(config.pixel_mapper_in_channels, channels[0])
        self.clip_txt_pooled_mapper = nn.Linear(config.clip_text_pooled_in_channels, width * config.clip_seq)
        if config.clip_text_in_channels is not None:
            self.clip_txt_mapper = nn.Linear(config.clip_text_in_channels, width)
        if config.clip_image_in_channels is not None:
            self.clip_img_mapper = nn.Linear(config.clip_image_in_channels, width * config.clip_seq)
        patch = config.patch_size**2
        self.embedding = nn.Sequential(
            nn.Identity(), blocks.Pointwise(config.in_channels * patch, channels[0]), blocks.LayerNorm()
        )
        levels = range(len(channels))
        self.down_blocks = nn.ModuleList(_level(config, level, is_up=False) for level in levels)
        self.down_downscalers = nn.ModuleList(_scaler(config, level, is_up=False) for level in levels)
        self.down_repeat_mappers = nn.ModuleList(
            _repeat_mappers(channels[level], config.down_blocks_repeat_mappers[level]) for level in levels
        )
        # Upwards the deepest level comes first, and so do its numbers of layers and repeats; channels do not
        self.up_blocks = nn.ModuleList(_level(config, level, is_up=True) for level in reversed(levels))
        self.up_upscalers = nn.ModuleList(_scaler(config, level, is_up=True) for level in reversed(levels))
        self.up_repeat_mappers = nn.ModuleList(
            _repeat_mappers(channels[level], config.up_blocks_repeat_mappers[-1 - level]) for level in reversed(levels)
        )
        self.clf = nn.Sequential(blocks.LayerNorm(), blocks.Pointwise(channels[0], config.out_channels * patch))

    def forward(
        self,
        noised_BCHW: Tensor,
        *,
        time_B: Tensor,
        pooled_B1D: Tensor,
        text_BTD: Tensor | None = None,
        image_B1D: Tensor | None = None,
        latents_BCHW: Tensor | None = None,
    ) -> Tensor:
        """The noise found in `noised_BCHW`, [B,C,H,W] in the dtype of the arithmetic.

        `text_BTD` is for Stage C, `latents_BCHW` (the encoder's, of any size; None leaves them out) for Stage B.
        `image_B1D` None is zeros. Raises ValueError where Stage C gets no text.
        """
        times_BD = self._times(time_B)
        x_BHWC = self._embedded(noised_BCHW)
        guide_BHWC = None
        if self.config.effnet_in_channels is not None and latents_BCHW is not None:
            guide_BHWC = self._guide(latents_BCHW, height=x_BHWC.shape[1], width=x_BHWC.shape[2])
        active_BND = self._conditions(pooled_B1D, text_BTD, image_B1D)
        return self._noise_in(x_BHWC, times_BD, [active_BND] * len(self._levels), guide_BHWC)

    def conditions(
        self, pooled_B1D: Tensor, *, text_BTD: Tensor | None = None, image_BKD: Tensor | None = None
    ) -> Conditions:
        """What `denoise` needs of the conditions, once for all steps. `image_BKD`: K pictures, None is one of zeros."""
        return Conditions.of(self._levels, self._conditions(pooled_B1D, text_BTD, image_BKD))

    def guide(self, latents_BCHW: Tensor, *, height: int, width: int) -> Tensor:
        """What the encoder's latents add in Stage B to noised ones of height x width, [B,h,w,C], once for all steps."""
        patch = self.config.patch_size
        return self._guide(latents_BCHW, height=height // patch, width=width // patch)

    def denoise(
        self, noised_BCHW: Tensor, *, time_B: Tensor, conditions: Conditions, guide_BHWC: Tensor | None = None
    ) -> Tensor:
        """What `forward` gives, to rounding, from what `conditions` and `guide` gave. For sampling, in eval mode."""
        times_BD = self._times(time_B)
        hoisted = conditions.by_level(self._levels, times_BD)
        return self._noise_in(self._embedded(noised_BCHW), times_BD, hoisted, guide_BHWC)

    def checkpoint_blocks(self, share: float) -> None:
        """Compute that share of the layers twice, evenly spread, instead of keeping what they compute in between."""
        number = 0
        for level in self._levels:
            for place in range(len(level.recomputed)):
                level.recompute(place, int((number + 1) * share) > int(number * share))
                number += 1

    def keep_all(self) -> None:
        """Keep what eager layers otherwise compute twice to save memory (`blocks.ResBlock`). Results are the same."""
        for module in self.modules():
            if isinstance(module, blocks.ResBlock):
                module.keep_little = False

    def compile_blocks(self, backend: str | Callable[..., Any] = "inductor") -> None:
        """Compile each layer with torch.compile: one code for all layers of a form, and for all sizes from the second.

        The first steps take minutes. What is computed stays the same to rounding; dropout draws other numbers.
        """
        limits = torch._dynamo.config
        limits.recompile_limit = max(limits.recompile_limit, RECOMPILE_LIMIT)
        run = torch.compile(blocks.run_layer, backend=backend)
        for level in self._levels:
            level.run = run

    @torch.no_grad()
    def initialise(self, seed: int) -> None:
        """Stability's initialisation, for training from nothing (stage_c.py and stage_b.py, WEIGHT INIT)."""
        random = torch.Generator(self._last.weight.device).manual_seed(seed)
        for module in self.modules():
            _initialise(module, random)
        for name, mapper in self.named_children():
            for layer in mapper.modules() if name.endswith("_mapper") else ():
                if isinstance(layer, nn.Conv2d | nn.Linear):
                    nn.init.normal_(layer.weight, std=CONDITION_STD, generator=random)
        nn.init.xavier_uniform_(cast(nn.Conv2d, self.embedding[1]).weight, EMBEDDING_GAIN, generator=random)
        nn.init.zeros_(self._last.weight)
        for level in self._levels:
            for block in level:
                if isinstance(block, blocks.ResBlock):
                    block.channelwise[4].weight *= (1 / sum(self.config.down_num_layers_per_block)) ** 0.5
                elif isinstance(block, blocks.TimestepBlock):
                    for layer in block.children():
                        nn.init.zeros_(cast(nn.Linear, layer).weight)
                else:  # nn.MultiheadAttention starts its three as one matrix
                    attention = cast(blocks.AttentionBlock, block).attention
                    bound = math.sqrt(6 / (4 * attention.to_q.in_features))
                    for projection in (attention.to_q, attention.to_k, attention.to_v):
                        nn.init.uniform_(projection.weight, -bound, bound, generator=random)

    @property
    def _last(self) -> nn.Conv2d:
        return cast(nn.Conv2d, self.clf[1])

    @property
    def _levels(self) -> list[blocks.Level]:
        return [cast(blocks.Level, level) for level in (*self.down_blocks, *self.up_blocks)]

    def _times(self, time_B: Tensor) -> Tensor:
        """Sines and cosines of the time and of the conditions of its kind, in float32."""
        times_BK = torch.zeros(len(time_B), 1 + len(self.config.timestep_conditioning_type), device=time_B.device)
        times_BK[:, 0] = time_B
        half = self.config.timestep_ratio_embedding_dim // 2
        step = math.log(MAX_POSITIONS) / (half - 1)
        frequencies_D = torch.arange(half, device=time_B.device).float().mul(-step).exp()
        angles_BKD = (times_BK * MAX_POSITIONS)[:, :, None] * frequencies_D
        embedded_BKD = torch.cat([angles_BKD.sin(), angles_BKD.cos()], dim=-1)
        return functional.pad(embedded_BKD, (0, self.config.timestep_ratio_embedding_dim % 2)).flatten(1)

    def _conditions(self, pooled_B1D: Tensor, text_BTD: Tensor | None, image_B1D: Tensor | None) -> Tensor:
        """All conditions as tokens, normed, after the SiLU with which every attention block begins."""
        dtype = self.clip_txt_pooled_mapper.weight.dtype
        if pooled_B1D.ndim == 2:
            pooled_B1D = pooled_B1D.unsqueeze(1)
        tokens_BND = [self._split(self.clip_txt_pooled_mapper(pooled_B1D.to(dtype)))]
        if self.config.clip_text_in_channels is not None:
            if text_BTD is None:
                raise ValueError("text_BTD: missing; this UNet is conditioned on the text's tokens")
            tokens_BND.insert(0, self.clip_txt_mapper(text_BTD.to(dtype)))
        if self.config.clip_image_in_channels is not None:
            if image_B1D is None:
                image_B1D = pooled_B1D.new_zeros(len(pooled_B1D), 1, self.config.clip_image_in_channels)
            tokens_BND.append(self._split(self.clip_img_mapper(image_B1D.to(dtype))))
        return functional.silu(norms.layer_norm(torch.cat(tokens_BND, dim=1)))

    def _split(self, mapped_BKD: Tensor) -> Tensor:
        """[B,K,clip_seq * D] -> [B,K * clip_seq,D]."""
        return mapped_BKD.reshape(len(mapped_BKD), -1, self.config.conditioning_dim)

    def _embedded(self, noised_BCHW: Tensor) -> Tensor:
        """What the blocks start from, without pictures, [B,H,W,C]."""
        patches_BCHW = functional.pixel_unshuffle(noised_BCHW.to(self._last.weight.dtype), self.config.patch_size)
        return cast(Tensor, self.embedding(patches_BCHW.permute(0, 2, 3, 1)))

    def _guide(self, latents_BCHW: Tensor, *, height: int, width: int) -> Tensor:
        latents_BHWC = blocks.resized(latents_BCHW.permute(0, 2, 3, 1), height=height, width=width)
        return cast(Tensor, self.effnet_mapper(latents_BHWC.to(self._last.weight.dtype)))

    def _noise_in(
        self,
        x_BHWC: Tensor,
        times_BD: Tensor,
        conditions: Sequence[Tensor | Sequence[blocks.Hoisted]],
        guide_BHWC: Tensor | None,
    ) -> Tensor:
        """`conditions` are those of each level, down and then up."""
        if guide_BHWC is not None:
            x_BHWC = x_BHWC + guide_BHWC
        if self.config.pixel_mapper_in_channels is not None:
            # The condition of pixels is zeros in every trainer: one vector, wherever it is put
            x_BHWC = x_BHWC + self.pixels_mapper(x_BHWC.new_zeros(1, 1, 1, self.config.pixel_mapper_in_channels))
        found_BCHW = self.clf(self._down_and_up(x_BHWC, times_BD, conditions)).permute(0, 3, 1, 2)
        return functional.pixel_shuffle(found_BCHW, self.config.patch_size).contiguous()

    def _down_and_up(
        self, x_BHWC: Tensor, times_BD: Tensor, conditions: Sequence[Tensor | Sequence[blocks.Hoisted]]
    ) -> Tensor:
        told = iter(conditions)
        skips_BHWC: list[Tensor | None] = []
        for level, scaler, mappers in zip(
            self.down_blocks, self.down_downscalers, self.down_repeat_mappers, strict=True
        ):
            x_BHWC, level_conditions = scaler(x_BHWC), next(told)
            for mapper in (*cast(nn.ModuleList, mappers), nn.Identity()):
                x_BHWC = mapper(level(x_BHWC, times_BD, level_conditions))
            skips_BHWC.append(x_BHWC)
        skips_BHWC[-1] = None  # the deepest level goes on with its own output
        for level, scaler, mappers in zip(self.up_blocks, self.up_upscalers, self.up_repeat_mappers, strict=True):
            skip_BHWC, level_conditions = skips_BHWC.pop(), next(told)
            for mapper in (*cast(nn.ModuleList, mappers), nn.Identity()):
                x_BHWC = mapper(level(x_BHWC, times_BD, level_conditions, skip_BHWC))
            x_BHWC = scaler(x_BHWC)
        return x_BHWC


def _level(config: Config, level: int, *, is_up: bool) -> blocks.Level:
    """The layers of a level; upwards the first block of all but the deepest level also gets the skip."""
    channels = config.block_out_channels[level]
    count = (config.up_num_layers_per_block[::-1] if is_up else config.down_num_layers_per_block)[level]

    def block(kind: str, *, has_skip: bool) -> nn.Module:
        if kind == RES:
            skip, dropout = channels if has_skip else 0, config.dropout[level]
            return blocks.ResBlock(channels, skip_channels=skip, kernel_size=config.kernel_size, dropout=dropout)
        if kind == TIME:
            conditions = config.timestep_conditioning_type
            return blocks.TimestepBlock(channels, time_width=config.timestep_ratio_embedding_dim, conditions=conditions)
        return blocks.AttentionBlock(
            channels,
            width=config.conditioning_dim,
            heads=config.num_attention_heads[level],
            self_attention=config.self_attn[level],
            dropout=config.dropout[level],
        )

    kinds = config.block_types_per_layer[level]
    has_skip = is_up and level < len(config.block_out_channels) - 1
    return blocks.Level(
        [block(kind, has_skip=has_skip and layer == place == 0) for place, kind in enumerate(kinds)]
        for layer in range(count)
    )


def _scaler(config: Config, level: int, *, is_up: bool) -> nn.Module:
    """From the level above into this one, or back."""
    if level == 0:
        return nn.Identity()
    inputs, outputs = config.block_out_channels[level - 1], config.block_out_channels[level]
    if is_up:
        inputs, outputs = outputs, inputs
    change: nn.Module
    if config.switch_level is not None:
        change = blocks.Resample(inputs, outputs, is_up=is_up, is_switched=config.switch_level[level - 1])
    elif is_up:
        change = blocks.TransposedConvolution(inputs, outputs, kernel_size=2, stride=2)
    else:
        change = blocks.Convolution(inputs, outputs, kernel_size=2, stride=2)
    return nn.Sequential(blocks.LayerNorm(), change)


def _initialise(module: nn.Module, random: torch.Generator) -> None:
    """The weights of one layer, or of a block whose layers Stability starts otherwise, by its general rules."""
    if isinstance(module, nn.ConvTranspose2d):  # torch's own, which Stability leaves in place
        nn.init.kaiming_uniform_(module.weight, a=math.sqrt(5), generator=random)
        bound = 1 / math.sqrt(module.weight[0].numel())
        nn.init.uniform_(cast(Tensor, module.bias), -bound, bound, generator=random)
    elif isinstance(module, nn.Conv2d | nn.Linear):
        nn.init.xavier_uniform_(module.weight, generator=random)
        nn.init.zeros_(cast(Tensor, module.bias))
    elif isinstance(module, blocks.ResponseNorm):
        nn.init.zeros_(module.gamma)
        nn.init.zeros_(module.beta)


def _mapper(inputs: int, outputs: int) -> nn.Sequential:
    """Of a condition that is a picture."""
    return nn.Sequential(
        blocks.Pointwise(inputs, outputs * 4), nn.GELU(), blocks.Pointwise(outputs * 4, outputs), blocks.LayerNorm()
    )


def _repeat_mappers(channels: int, repeats: int) -> nn.ModuleList:
    """Between the times that a level's blocks are gone through."""
    return nn.ModuleList(blocks.Pointwise(channels, channels) for _ in range(repeats - 1))


def _tuples(value: Any) -> Any:
    return tuple(_tuples(item) for item in value) if isinstance(value, list | tuple) else value


def _lists(value: Any) -> Any:
    return [_lists(item) for item in value] if isinstance(value, tuple) else value
