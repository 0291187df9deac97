"""The fixed half of the stand-in tagger: an ONNX graph that looks for the drawn scenes' colours, shapes and patterns.

Each pixel is given to the nearest colour of the scenes' palette; each colour's map is compared with the outlines of the
six kinds of shapes at several sizes; random filters and units add what the fitted layers need beside that.
Shape suffixes: N scenes, C colours, K kinds, F features.

Kind: actor.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from sote.data import painting, scenes

SIDE = 128  # pixels; the published tagger's is 448
OPSET, IR_VERSION = 18, 9  # Resize with antialias needs opset 18, which came with IR version 8 and 9

# Radii, in pixels of the input, at which shapes are looked for: shapes of the scenes have 5 to 20, characters 15 to 33.
RADII = (6.1, 8.0, 10.5, 13.8, 18.2, 24.0, 31.0)
# Pixels, after each radius is scaled to that of the template. 4.0 and 11 took twice the time for 0.01 more of F1.
TEMPLATE_RADIUS, TEMPLATE_SIDE = 3.4, 9
TURNS = (-17.0, 0.0, 17.0)  # degrees; shapes are turned by up to 25
SHARPNESS = 300.0  # of the softmax over colours, on squared distances of RGB in 0..1: parts white from paper white
CONTRAST = 2.0  # how much a kind's response is lowered where another kind's is higher
HIDDEN = 400  # random ReLU units on what one colour's map answered
TILES = 8  # the picture is looked at in 8 x 8 tiles

Array = NDArray[Any]


class Graph:
    """An ONNX graph under construction. Each method returns the name of what it adds."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def add(self, operation: str, *inputs: str, **attributes: Any) -> str:
        name = f"{operation.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(operation, list(inputs), [name], **attributes))
        return name

    def constant(self, values: Any, kind: Any = np.float32) -> str:
        name = f"constant_{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.ascontiguousarray(values, dtype=kind), name))
        return name

    def linear(self, inputs: str, weight: Array, bias: Array) -> str:
        """inputs [..., F] times weight [F, T], plus bias [T]."""
        return self.add("Add", self.add("MatMul", inputs, self.constant(weight)), self.constant(bias))

    def reshape(self, inputs: str, *sizes: int) -> str:
        return self.add("Reshape", inputs, self.constant(sizes, np.int64))

    def model(self, outputs: dict[str, str], inputs: dict[str, tuple[int, ...]]) -> onnx.ModelProto:
        """The finished model. `outputs` maps published names to names here; `inputs` are given without the batch."""
        given = [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch_size", *sizes])
            for name, sizes in inputs.items()
        ]
        wanted = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs]
        ends = [helper.make_node("Identity", [inner], [name]) for name, inner in outputs.items()]
        graph = helper.make_graph([*self.nodes, *ends], "standin_tagger", given, wanted, self.constants)
        made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], producer_name="sote")
        made.ir_version = IR_VERSION
        made = onnx.shape_inference.infer_shapes(made)
        onnx.checker.check_model(made)
        return made


def run_graph(graph: Graph, outputs: tuple[str, ...], inputs: str, batches: Iterable[Array]) -> list[Array]:
    """Run an unfinished graph on batches of its one input, on one CPU thread; the named tensors of all rows."""
    session, found = None, []
    names = {f"wanted_{number}": inner for number, inner in enumerate(outputs)}
    for batch in batches:
        if session is None:
            options = ort.SessionOptions()
            options.intra_op_num_threads = 1
            model = graph.model(names, {inputs: batch.shape[1:]}).SerializeToString()
            session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        found.append(session.run(list(names), {inputs: batch.astype(np.float32)}))
    return [np.concatenate(parts) for parts in zip(*found, strict=True)]


@dataclass(frozen=True)
class Features:
    """Names of the two groups of features in the graph."""

    by_colour: str  # [N, C, F]: how each colour's map answers to each kind at each size
    whole: str  # [N, F]: colours, edges and patterns of the whole picture


def add_features(graph: Graph, *, seed: int) -> Features:
    """The fixed part of the net: `input` -> features."""
    pixels = graph.add("Mul", "input", graph.constant(1 / 255))
    colours = _add_colours(graph, pixels)
    count = len(painting.COLOURS)
    maps = graph.add("Slice", colours, *(graph.constant([n], np.int64) for n in (0, count, 3)))
    maps = graph.add("Transpose", maps, perm=[0, 3, 1, 2])
    answers = [_add_answers(graph, maps, radius) for radius in RADII]
    shares = graph.reshape(graph.add("Sqrt", graph.add("GlobalAveragePool", maps)), -1, count, 1)
    by_colour = _add_hidden(graph, graph.add("Concat", *answers, shares, axis=2), seed=seed)
    return Features(by_colour, _add_whole(graph, pixels, colours, seed=seed))


def _add_colours(graph: Graph, pixels: str) -> str:
    """Which colour each pixel is nearest to: [N, SIDE, SIDE, palette], sums to 1; the shapes' colours come first."""
    bgr = _palette()[:, ::-1]
    nearness = graph.linear(pixels, 2 * SHARPNESS * bgr.T, -SHARPNESS * (bgr**2).sum(axis=1))
    return graph.add("Softmax", nearness, axis=-1)


def _palette() -> Array:
    """RGB in 0..1 of the shapes' colours and of the backgrounds', which patterns and gradients mix with black."""
    shapes = list(painting.COLOURS.values())
    grounds = np.array(list(painting.BACKGROUND_COLOURS.values()), np.float64)
    dark = np.array(painting.COLOURS["black"], np.float64)
    return np.concatenate([shapes, *(grounds * (1 - share) + dark * share for share in (0, 0.1, 0.2, 0.3))]) / 255


def _add_answers(graph: Graph, maps: str, radius: float) -> str:
    """The strongest answer of each colour's map to each kind of about this radius: [N, C, 2 * kinds]."""
    kinds, side = len(painting.KINDS), round(SIDE * TEMPLATE_RADIUS / radius)
    scale = graph.constant([1, 1, side / SIDE, side / SIDE])
    small = graph.add("Resize", maps, "", scale, mode="linear", antialias=1)
    each = graph.reshape(small, -1, 1, side, side)
    pad = TEMPLATE_SIDE // 2
    found = graph.add("Conv", each, graph.constant(_templates()), pads=[pad] * 4)
    circle, others = (
        graph.add("Slice", found, *(graph.constant([n], np.int64) for n in span))
        for span in ((0, 1, 1), (1, 1 + (kinds - 1) * len(TURNS), 1))
    )
    turned = graph.reshape(others, -1, kinds - 1, len(TURNS), side, side)
    best = graph.add("ReduceMax", turned, graph.constant([2], np.int64), keepdims=0)
    best = graph.add("Concat", circle, best, axis=1)
    rival = graph.add("ReduceMax", best, graph.constant([1], np.int64), keepdims=1)
    clear = graph.add(
        "Sub",
        graph.add("Mul", best, graph.constant(1 + CONTRAST)),
        graph.add("Mul", rival, graph.constant(CONTRAST)),
    )
    both = graph.add("GlobalMaxPool", graph.add("Concat", best, clear, axis=1))
    return graph.reshape(both, -1, len(painting.COLOURS), 2 * kinds)


def _add_hidden(graph: Graph, answers: str, *, seed: int) -> str:
    """What each colour's map answered, and random ReLU units of it: [N, C, F + HIDDEN]."""
    rng = np.random.default_rng([seed, 0])
    width = len(RADII) * 2 * len(painting.KINDS) + 1
    hidden = graph.linear(answers, rng.normal(size=(width, HIDDEN)) / np.sqrt(width), 0.5 * rng.normal(size=HIDDEN))
    return graph.add("Concat", answers, graph.add("Relu", hidden), axis=2)


def _templates() -> Array:
    """A filter for the circle, then one for each other kind and turn: positive inside; sum 0, norm 1."""
    fine = 8  # painted this much larger, then averaged
    filters = []
    for kind in painting.KINDS:
        for turn in TURNS[:1] if kind == painting.KINDS[0] else TURNS:
            shape = painting.Shape(kind, "black", 0.5, 0.5, TEMPLATE_RADIUS / TEMPLATE_SIDE, turn)
            painted = painting.paint(_empty_scene(TEMPLATE_SIDE * fine, shape)).convert("L")
            inside = np.asarray(painted) < 128
            coarse = inside.reshape(TEMPLATE_SIDE, fine, TEMPLATE_SIDE, fine).mean(axis=(1, 3))
            coarse -= coarse.mean()
            filters.append(coarse / np.linalg.norm(coarse))
    return np.array(filters)[:, None]


def _empty_scene(side: int, shape: painting.Shape) -> painting.Scene:
    return painting.Scene(
        width=side,
        height=side,
        background=painting.Background("simple", "white"),
        shapes=(shape,),
        character=None,
        character_at=None,
        word=None,
        word_y=0.0,
        artist="",
        year=scenes.FIRST_YEAR,
    )


def _add_whole(graph: Graph, pixels: str, colours: str, *, seed: int) -> str:
    """Of the whole picture: where which colour is, how busy each part is, and which patterns the light makes."""
    rng = np.random.default_rng([seed, 1])
    tile = SIDE // TILES
    tiles = graph.reshape(colours, -1, TILES, tile, TILES, tile, len(_palette()))
    where = graph.add("ReduceMean", tiles, graph.constant([2, 4], np.int64), keepdims=0)
    share = graph.add("ReduceMean", where, graph.constant([1, 2], np.int64), keepdims=0)
    parts = [graph.add("Sqrt", share), graph.add("Flatten", graph.add("Sqrt", where))]
    light = graph.add("ReduceMean", pixels, graph.constant([3], np.int64), keepdims=0)
    light = graph.reshape(light, -1, 1, SIDE, SIDE)
    slopes = np.array([[[[-1, 0, 1]] * 3], [[[-1] * 3, [0] * 3, [1] * 3]]]) / 3
    edges = graph.add("Abs", graph.add("Conv", light, graph.constant(slopes), pads=[1] * 4))
    busy = graph.add("AveragePool", edges, kernel_shape=[tile // 2, tile], strides=[tile // 2, tile])
    parts.append(graph.add("Flatten", graph.add("Sqrt", busy)))
    # how dark the ground is, from 0 to 3; 0 where shapes lie
    count, grounds = len(painting.COLOURS), len(painting.BACKGROUND_COLOURS)
    shades = np.concatenate([np.zeros(count), np.repeat(np.arange(4), grounds)])
    shade = graph.reshape(graph.add("MatMul", colours, graph.constant(shades[:, None])), -1, 1, SIDE, SIDE)
    half = graph.add("AveragePool", shade, kernel_shape=[2, 2], strides=[2, 2])
    filters = rng.normal(size=(24, 1, 9, 9))
    filters -= filters.mean(axis=(2, 3), keepdims=True)
    patterns = graph.add("Abs", graph.add("Conv", half, graph.constant(filters / 9)))
    parts += [graph.add("Flatten", graph.add(pool, patterns)) for pool in ("GlobalAveragePool", "GlobalMaxPool")]
    return graph.add("Concat", *parts, axis=1)
