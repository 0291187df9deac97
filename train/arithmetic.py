"""What training costs, from a model's config alone: weights, floating point operations, bytes of activations.

A config is what config.json says of a StableCascadeUNet (Stage C or B, any size) or a CLIPTextModelWithProjection.
Weights are exact. Operations are those that torch's FlopCounterMode counts: matrix products, convolutions, attention,
2 for each multiply-add. Activations are an ESTIMATE: the tensors that autograd keeps of train/unet.py, as `_kept` and
`text_activations` list them; what the allocator wastes and what a kernel needs for itself are not in it.

Sizes in letters: n cells of a level, c its channels, T tokens of conditioning, w width of the text encoder.

Kind: pure.
"""

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final, Literal

from sote.train import shapes

Values = Mapping[str, Any]
Cells = tuple[int, int]
Part = Literal["channelwise", "depthwise", "attention", "kv_mapper", "timestep", "rest"]

KINDS: Final = {"SDCascadeResBlock": "res", "SDCascadeTimestepBlock": "time", "SDCascadeAttnBlock": "attention"}
EXPANSION: Final = 4  # of the channelwise layers' hidden state (Stability modules/common.py)
MADE_AGAIN: Final = 5  # hidden states that are there at a time in the backward pass of a ResBlock
PIXEL_CELLS: Final = 8 * 8  # Stage B: zeros of this size stand for the pixels (Stability train/train_b.py)
WINDOW, WINDOW_WORDS, MARKS = 77, 75, 2  # tokens of a window of the text encoder: words between two marks
BACKWARD: Final = 2  # times the forward pass: gradients of the inputs, and of the weights
# What a config may leave out, with the defaults of diffusers 0.42.1 StableCascadeUNet.__init__
DEFAULTS: Final[dict[str, Any]] = {
    "timestep_ratio_embedding_dim": 64,
    "kernel_size": 3,
    "clip_seq": 4,
    "clip_text_in_channels": None,
    "clip_text_pooled_in_channels": 1280,
    "clip_image_in_channels": None,
    "effnet_in_channels": None,
    "pixel_mapper_in_channels": None,
    "self_attn": True,
    "timestep_conditioning_type": ("sca", "crp"),
    "switch_level": None,
}


@dataclass(frozen=True)
class Layer:
    """A matrix product or convolution: `wide` numbers make one of `high`, in so many `places` of one image."""

    name: str
    part: Part
    wide: int
    high: int
    places: int
    linear: bool = True  # nn.Linear: may have an adapter

    @property
    def weights(self) -> int:
        return (self.wide + 1) * self.high  # every one has a bias

    @property
    def flop(self) -> int:
        return 2 * self.wide * self.high * self.places


@dataclass(frozen=True)
class Block:
    """One block of a UNet, on n cells; `skip` channels come to its input besides; it is computed `uses` times."""

    name: str
    kind: str
    channels: int
    cells: int
    skip: int
    uses: int
    attends_itself: bool


@dataclass(frozen=True)
class Activations:
    """Bytes that autograd keeps for one image from the forward to the backward pass; an estimate.

    `residual` is what has the width of the residual stream, `hidden` the four times wider state of the channelwise
    layers, `attention` what attention keeps, `text` the text encoder; `again` is what the backward pass makes again of
    one layer at a time.
    """

    residual: float = 0.0
    hidden: float = 0.0
    attention: float = 0.0
    text: float = 0.0
    again: float = 0.0

    @property
    def total(self) -> float:
        return self.residual + self.hidden + self.attention + self.text + self.again

    def plus(self, other: "Activations", factor: float = 1.0) -> "Activations":
        return Activations(
            residual=self.residual + factor * other.residual,
            hidden=self.hidden + factor * other.hidden,
            attention=self.attention + factor * other.attention,
            text=self.text + factor * other.text,
            again=self.again + factor * other.again,
        )


def training_flop(config: Values, *, cells: Cells, tokens: int, text: Values | None, trains_text: bool) -> float:
    """Operations of one training step for one image, the UNet being trained: three times the forward pass of what is
    trained, once that of what is frozen. What is computed a second time to save memory is not counted.

    `cells` are height and width of the latents that the UNet makes; `text` is the text encoder's config.
    """
    unet = (1 + BACKWARD) * forward_flop(config, cells=cells, tokens=tokens)
    if text is None:
        return float(unet)
    return float(unet + (1 + BACKWARD if trains_text else 1) * text_flop(text, tokens=tokens))


def forward_flop(config: Values, *, cells: Cells, tokens: int) -> int:
    """Operations of a UNet's forward pass for one image."""
    total = sum(layer.flop for layer in layers(config, cells=cells, tokens=tokens))
    keys = conditioning_tokens(config, tokens)
    for block in blocks(config, cells=cells):
        if block.kind == "attention":  # scores, and the mean of values by them
            total += 4 * block.channels * block.cells * _keys(block, keys) * block.uses
    return total


def text_flop(config: Values, *, tokens: int) -> int:
    """Operations of a text encoder's forward pass for one caption of so many tokens (77, 152, 227)."""
    width, wide = config["hidden_size"], config["intermediate_size"]
    layer = 2 * WINDOW * (4 * width * width + 2 * width * wide) + 4 * WINDOW * WINDOW * width
    each = config["num_hidden_layers"] * layer + 2 * width * config["projection_dim"]
    return int(windows(tokens) * each)


def weights(config: Values) -> dict[str, int]:
    """The number of weights of a UNet by part: their sum is the model's. Exact."""
    found: Counter[str] = Counter()
    for layer in layers(config):
        found[layer.part] += layer.weights
    for block in blocks(config):
        if block.kind == "res":
            found["channelwise"] += 2 * EXPANSION * block.channels  # gamma and beta of the response norm
    return dict(found)


def text_weights(config: Values) -> int:
    """The number of weights of a text encoder with its projection. Exact."""
    return sum(math.prod(shape) for shape in shapes.text_shapes(config).values())


def adapted(config: Values, *, targets: tuple[str, ...]) -> list[Layer]:
    """The linear layers whose names end in one of `targets`: those that get an adapter."""
    return [layer for layer in layers(config) if layer.linear and _named(layer.name, targets)]


def activations(config: Values, *, cells: Cells, tokens: int, recomputed: float, bytes_each: int = 2) -> Activations:
    """What a UNet's forward pass keeps for one image, `recomputed` being the share of the layers (one block of each
    kind) that keep their input alone and are computed again; `bytes_each` is 2 in bfloat16. An estimate."""
    keys = conditioning_tokens(config, tokens)
    kept, layer, largest, hidden = Activations(residual=_kept_outside(config, cells, keys)), Activations(), 0.0, 0.0
    for block in blocks(config, cells=cells):
        whole, taken = _kept(block, keys), Activations()
        if block.kind == "res":  # a layer begins
            layer, taken = Activations(), Activations(residual=block.cells * (block.channels + block.skip))
            hidden = max(hidden, whole.hidden)
        layer = layer.plus(whole)
        largest = max(largest, layer.total)
        kept = kept.plus(whole, (1 - recomputed) * block.uses).plus(taken, recomputed * block.uses)
    # in the backward pass: what GELU, response norm and dropout made, and gradients before and after one of them
    again = Activations(again=MADE_AGAIN * hidden + (largest if recomputed else 0.0))
    return Activations().plus(kept.plus(again), bytes_each)


def text_activations(config: Values, *, tokens: int, recomputed: float, bytes_each: int = 2) -> Activations:
    """What a trained text encoder keeps for one caption, `recomputed` being the share of its layers. An estimate."""
    width, wide, count = config["hidden_size"], config["intermediate_size"], config["num_hidden_layers"]
    places = windows(tokens) * WINDOW
    # input and output of both norms; q, k, v and what the heads found; the hidden state before and after its activation
    layer = places * (4 * width + 4 * width + 2 * wide)
    kept = count * ((1 - recomputed) * layer + recomputed * places * width) + (layer if recomputed else 0)
    return Activations(text=float(bytes_each * kept))


def windows(tokens: int) -> int:
    """Windows of the text encoder that make so many tokens."""
    return (tokens - MARKS) // WINDOW_WORDS


def conditioning_tokens(config: Values, tokens: int) -> int:
    """Tokens that attention sees besides the cells: text (Stage C alone), pooled text, image."""
    values = DEFAULTS | dict(config)
    sees_text = values["clip_text_in_channels"] is not None
    return int(values["clip_seq"] + (tokens + values["clip_seq"] if sees_text else 0))


def blocks(config: Values, *, cells: Cells = (0, 0)) -> Iterator[Block]:
    """The blocks of a UNet in the order in which they are computed. `cells` are those of its input and output."""
    values = DEFAULTS | dict(config)
    sizes = _areas(values, cells)
    depth = len(sizes)
    for level in range(depth):
        yield from _stack(values, "down_blocks", level, place=level, cells=sizes[level])
    for place, level in enumerate(reversed(range(depth))):
        yield from _stack(values, "up_blocks", level, place=place, cells=sizes[level])


def layers(config: Values, *, cells: Cells = (0, 0), tokens: int = 0) -> Iterator[Layer]:
    """The matrix products and convolutions of a UNet under diffusers' names."""
    values = DEFAULTS | dict(config)
    yield from _ends(values, _areas(values, cells)[0], tokens)
    yield from _between(values, _areas(values, cells))
    keys, width = conditioning_tokens(values, tokens), values["timestep_ratio_embedding_dim"]
    for block in blocks(values, cells=cells):
        c, n, at = block.channels, block.cells * block.uses, block.name
        if block.kind == "res":
            yield Layer(f"{at}.depthwise", "depthwise", values["kernel_size"] ** 2, c, n, linear=False)
            yield Layer(f"{at}.channelwise.0", "channelwise", c + block.skip, EXPANSION * c, n)
            yield Layer(f"{at}.channelwise.4", "channelwise", EXPANSION * c, c, n)
        elif block.kind == "time":
            for ending in ("", *(f"_{name}" for name in values["timestep_conditioning_type"])):
                yield Layer(f"{at}.mapper{ending}", "timestep", width, 2 * c, block.uses)
        else:
            read = _keys(block, keys) * block.uses
            yield Layer(f"{at}.kv_mapper.1", "kv_mapper", values["conditioning_dim"], c, keys * block.uses)
            for name, places in (("to_q", n), ("to_k", read), ("to_v", read), ("to_out.0", n)):
                yield Layer(f"{at}.attention.{name}", "attention", c, c, places)


def _stack(values: Values, name: str, level: int, *, place: int, cells: int) -> Iterator[Block]:
    """The blocks of one level on the way down or up. Lists of the way up begin with the deepest level."""
    up = name == "up_blocks"
    way = "up" if up else "down"
    channels = values["block_out_channels"]
    kinds = values["block_types_per_layer"][level]
    uses = (values[f"{way}_blocks_repeat_mappers"] or [1] * len(channels))[place]
    for number in range(values[f"{way}_num_layers_per_block"][place] * len(kinds)):
        joins = up and number == 0 and level < len(channels) - 1  # what the way down left at this level
        yield Block(
            name=f"{name}.{place}.{number}",
            kind=KINDS[kinds[number % len(kinds)]],
            channels=channels[level],
            cells=cells,
            skip=channels[level] if joins else 0,
            uses=uses,
            attends_itself=_at(values["self_attn"], level),
        )


def _ends(values: Values, n: int, tokens: int) -> Iterator[Layer]:
    """The layers before the first block and after the last."""
    first, area, wide = values["block_out_channels"][0], values["patch_size"] ** 2, values["conditioning_dim"]
    seq = values["clip_seq"]
    yield Layer("clip_txt_pooled_mapper", "rest", values["clip_text_pooled_in_channels"], wide * seq, 1)
    if (text := values["clip_text_in_channels"]) is not None:
        yield Layer("clip_txt_mapper", "rest", text, wide, tokens)
    if (image := values["clip_image_in_channels"]) is not None:
        yield Layer("clip_img_mapper", "rest", image, wide * seq, 1)
    for name, inputs, places in (
        ("effnet_mapper", values["effnet_in_channels"], n),
        ("pixels_mapper", values["pixel_mapper_in_channels"], PIXEL_CELLS),
    ):
        if inputs is not None:
            yield Layer(f"{name}.0", "rest", inputs, EXPANSION * first, places, linear=False)
            yield Layer(f"{name}.2", "rest", EXPANSION * first, first, places, linear=False)
    yield Layer("embedding.1", "rest", values["in_channels"] * area, first, n, linear=False)
    yield Layer("clf.1", "rest", first, values["out_channels"] * area, n, linear=False)


def _between(values: Values, sizes: list[int]) -> Iterator[Layer]:
    """The layers from level to level, and those between the turns of a level that is computed several times."""
    channels, last = values["block_out_channels"], len(sizes) - 1
    for level in range(1, last + 1):
        above, below = channels[level - 1], channels[level]
        down, up = f"down_downscalers.{level}.1", f"up_upscalers.{last - level}.1"
        if (switch := values["switch_level"]) is None:  # 2 x 2 with stride 2, there and back
            yield Layer(down, "rest", 4 * above, below, sizes[level], linear=False)
            yield Layer(up, "rest", 4 * below, above, sizes[level], linear=False)
        else:  # 1 x 1, on the larger side of a level that is switched
            enabled = switch[level - 1]
            yield Layer(f"{down}.blocks.0", "rest", above, below, sizes[level - 1], linear=False)
            yield Layer(f"{up}.blocks.1", "rest", below, above, sizes[level - 1 if enabled else level], linear=False)
    for way in ("down", "up"):
        for place, uses in enumerate(values[f"{way}_blocks_repeat_mappers"] or ()):
            level = place if way == "down" else last - place
            for turn in range(uses - 1):
                c = channels[level]
                yield Layer(f"{way}_repeat_mappers.{place}.{turn}", "rest", c, c, sizes[level], linear=False)


def _areas(values: Values, cells: Cells) -> list[int]:
    """The number of cells of each level, the highest first."""
    height, width = (side // values["patch_size"] for side in cells)
    found = [height * width]
    for level in range(1, len(values["block_out_channels"])):
        if values["switch_level"] is None or values["switch_level"][level - 1]:
            height, width = height // 2, width // 2
        found.append(height * width)
    return found


def _kept(block: Block, conditioning: int) -> Activations:
    """The numbers that one turn of a block keeps."""
    n, c = block.cells, block.channels
    if block.kind == "time":
        return Activations(residual=n * c)  # its input, which the scale is multiplied with
    if block.kind == "res":
        # the block's input, the norm's input and output; of the hidden state what comes out of the first product
        return Activations(residual=n * (3 * c + block.skip), hidden=n * EXPANSION * c)
    # the norm's input and output; q and what the heads found; keys and values, and what both are made of
    return Activations(residual=2 * n * c, attention=2 * n * c + 3 * _keys(block, conditioning) * c)


def _kept_outside(config: Values, cells: Cells, conditioning: int) -> int:
    """The numbers kept before, between and after the levels."""
    values = DEFAULTS | dict(config)
    sizes = [n * c for n, c in zip(_areas(values, cells), values["block_out_channels"], strict=True)]
    # input and output of the norm before each change of level, down and up; the norms of the first and last layer
    between = 2 * sum(above + below for above, below in pairwise(sizes))
    # Stage B: the mapper of the encoder's latents, its hidden state before and after GELU, and its norm
    mapper = (2 * EXPANSION + 3) * sizes[0] if values["effnet_in_channels"] is not None else 0
    return int(3 * sizes[0] + between + mapper + 4 * conditioning * values["conditioning_dim"])


def _keys(block: Block, conditioning: int) -> int:
    return conditioning + (block.cells if block.attends_itself else 0)


def _named(name: str, targets: tuple[str, ...]) -> bool:
    return any(name == target or name.endswith(f".{target}") for target in targets)


def _at(value: Any, level: int) -> Any:
    """The value of a level, where a config gives one for all or a list."""
    return value[level] if isinstance(value, list | tuple) else value
