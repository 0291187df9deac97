"""A tagger in miniature for the drawn scenes: a real model.onnx and selected_tags.csv, made from a seed in seconds.

Two linear layers on the features of `standin_features`, both fitted in closed form (ridge regression) on freshly
painted scenes: the first names the kinds of shapes that each colour has, the second makes tags of the whole picture.
Shape suffixes: N scenes, C colours, K kinds, F features, T tags.

Kind: actor.
"""

import csv
import io
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sote.cluster import storage
from sote.data import painting, scenes
from sote.data.inputs import tagger_input
from sote.data.schema import RATINGS
from sote.data.standin_features import SIDE, Graph, add_features, run_graph
from sote.data.tag import LABELS, MODEL, RATING

TAGS = (*painting.GENERAL_TAGS, *painting.CHARACTERS)
SCENES = 600  # painted to fit on; 1500 gave 0.03 more of F1 in twice the time
BATCH = 10  # scenes that run through the graph at a time
PAINTED_SIDE = 256  # pixels of the longer side; painting at full size takes ten times as long
FIT_SEED = 7_001  # added to the seed: other scenes than those that the seed draws
RIDGE_KINDS, RIDGE_TAGS = 10.0, 300.0  # chosen on scenes of a third seed
PLATT_PULL = 0.1  # weight of the prior (slope 3, offset 0) in the calibration of a tag
# Of each rating: its logit for the average picture, and how it changes with a deviation from it.
RATING_LOGITS = ((1.6, -1.2), (-1.0, 1.2), (-2.4, 0.8), (-4.0, 0.6))

Array = NDArray[Any]


@dataclass(frozen=True)
class Layer:
    """inputs [..., F] -> inputs @ weight + bias."""

    weight: Array
    bias: Array

    def __call__(self, inputs: Array) -> Array:
        return np.asarray(inputs @ self.weight + self.bias)


def make(folder: Path, *, seed: int) -> None:
    """Write folder/model.onnx and folder/selected_tags.csv."""
    examples = [example(seed + FIT_SEED, index) for index in range(SCENES)]
    truth_NT = np.array([[tag in tags for tag in TAGS] for _, tags in examples])
    graph = Graph()
    features = add_features(graph, seed=seed)
    batches = (np.array([pixels for pixels, _ in examples[at : at + BATCH]]) for at in range(0, SCENES, BATCH))
    by_colour_NCF, whole_NF = run_graph(graph, (features.by_colour, features.whole), "input", batches)

    kinds, guessed_NCK = _fit_kinds(by_colour_NCF, truth_NT)
    summary_NF = _summarised(guessed_NCK)
    tags = _fit_tags(np.concatenate([whole_NF, summary_NF], axis=1), truth_NT, whole_NF, seed=seed)

    named = graph.linear(features.by_colour, kinds.weight, kinds.bias)
    everything = graph.add("Concat", features.whole, _add_summary(graph, named), axis=1)
    probabilities = graph.add("Sigmoid", graph.linear(everything, tags.weight, tags.bias))
    model = graph.model({"output": probabilities}, {"input": (SIDE, SIDE, 3)})
    storage.write_bytes(folder / MODEL, model.SerializeToString(deterministic=True))
    storage.write_text(folder / LABELS, _csv(truth_NT))


def example(seed: int, index: int) -> tuple[NDArray[np.uint8], set[str]]:
    """One painted scene as the tagger sees it, and the tags that are true of it; some are cut out, some are grey."""
    scene = scenes.plan(seed, index)
    form = scenes.FORMS[index % len(scenes.FORMS)]
    if form == "cutout":
        scene = replace(scene, background=painting.Background("transparent", "white"))
    image = painting.paint(scene, scale=PAINTED_SIDE / max(scene.width, scene.height))
    tags = set(scene.tags) | ({scene.character} if scene.character else set())
    if form == "grey 16":
        image = image.convert("L").convert("RGB")
        coloured = tuple(f"{colour}_" for colour in (*painting.COLOURS, *painting.BACKGROUND_COLOURS))
        tags = {tag for tag in tags if not tag.startswith(coloured)} | {"monochrome"}
    return tagger_input(image, side=SIDE), tags


def ridge(inputs_NF: Array, targets_NT: Array, strength: float) -> tuple[Layer, Array]:
    """Least squares with a penalty on standardised inputs: the layer, and what it says of each row when fitted on the

    others (leave-one-out, in closed form). Solved over rows or over features, whichever are fewer.
    """
    inputs_NF = inputs_NF.astype(np.float64)
    middle, spread = inputs_NF.mean(axis=0), inputs_NF.std(axis=0) + 1e-2  # inputs are of the order of 0.1 to 1
    rows_NF = (inputs_NF - middle) / spread
    offset_T = targets_NT.mean(axis=0)
    if rows_NF.shape[0] < rows_NF.shape[1]:
        inverse_NN = np.linalg.inv(rows_NF @ rows_NF.T + strength * np.eye(len(rows_NF)))
        dual_NT = inverse_NN @ (targets_NT - offset_T)
        weight_FT = rows_NF.T @ dual_NT
        left_out_NT = targets_NT - dual_NT / np.diag(inverse_NN)[:, None]
    else:
        inverse_FF = np.linalg.inv(rows_NF.T @ rows_NF + strength * np.eye(rows_NF.shape[1]))
        weight_FT = inverse_FF @ (rows_NF.T @ (targets_NT - offset_T))
        leverage_N = np.einsum("nf,fg,ng->n", rows_NF, inverse_FF, rows_NF, optimize=True)
        residual_NT = targets_NT - offset_T - rows_NF @ weight_FT
        left_out_NT = targets_NT - residual_NT / (1 - leverage_N)[:, None]
    weight_FT = weight_FT / spread[:, None]
    return Layer(weight_FT, offset_T - middle @ weight_FT), left_out_NT


def _fit_kinds(by_colour_NCF: Array, truth_NT: Array) -> tuple[Layer, Array]:
    """The layer that says for each colour which kinds have it (about -1 or 1), and what it says of unseen scenes."""
    places = [TAGS.index(f"{colour}_{kind}") for colour in painting.COLOURS for kind in painting.KINDS]
    shape = (len(truth_NT), len(painting.COLOURS), len(painting.KINDS))
    targets = truth_NT[:, places].reshape(-1, shape[2]) * 2.0 - 1
    layer, left_out = ridge(by_colour_NCF.reshape(len(targets), -1), targets, RIDGE_KINDS)
    return layer, left_out.reshape(shape)


def _add_summary(graph: Graph, kinds: str) -> str:
    """[N, C, K] of the first layer -> [N, F]: each kind in each colour, each kind in any colour, how many in all."""
    count = len(painting.COLOURS) * len(painting.KINDS)
    sharp = graph.add(
        "Sigmoid", graph.linear(kinds, 6 * np.eye(len(painting.KINDS)), np.full(len(painting.KINDS), 2.4))
    )
    flat = [graph.reshape(values, -1, count) for values in (kinds, sharp)]
    best = [graph.add("ReduceMax", values, graph.constant([1], np.int64), keepdims=0) for values in (kinds, sharp)]
    total = graph.add("ReduceSum", flat[1], graph.constant([1], np.int64), keepdims=1)
    numbers = np.arange(painting.MOST_SHAPES + 2)
    apart = graph.add("Abs", graph.add("Sub", total, graph.constant(numbers)))
    near = graph.add("Relu", graph.add("Sub", graph.constant([1.0]), apart))
    return graph.add("Concat", *flat, *best, near, total, axis=1)


def _summarised(kinds_NCK: Array) -> Array:
    graph = Graph()
    (summary_NF,) = run_graph(graph, (_add_summary(graph, "kinds"),), "kinds", [kinds_NCK])
    return summary_NF


def _fit_tags(inputs_NF: Array, truth_NT: Array, whole_NF: Array, *, seed: int) -> Layer:
    """The layer before the sigmoid: the ratings, then TAGS with the probabilities that left-out scenes bear out."""
    layer, left_out_NT = ridge(inputs_NF, truth_NT * 2.0 - 1, RIDGE_TAGS)
    slope_T, offset_T = np.array([_platt(x, y) for x, y in zip(left_out_NT.T, truth_NT.T, strict=True)]).T
    ratings = _rating_layer(whole_NF, inputs_NF.shape[1], seed=seed)
    weight = np.concatenate([ratings.weight, layer.weight * slope_T], axis=1)
    return Layer(weight, np.concatenate([ratings.bias, layer.bias * slope_T + offset_T]))


def _platt(scores_N: Array, truth_N: Array) -> Array:
    """Slope and offset with which sigmoid(slope * score + offset) is the probability (logistic regression, Newton)."""
    inputs_N2 = np.stack([scores_N, np.ones_like(scores_N)], axis=1)
    prior = np.array([3.0, 0.0])
    found = prior
    for _ in range(20):  # converges in under ten
        probability_N = 1 / (1 + np.exp(-np.clip(inputs_N2 @ found, -30, 30)))
        slope = inputs_N2.T @ (probability_N - truth_N) + PLATT_PULL * (found - prior)
        curve = (inputs_N2.T * (probability_N * (1 - probability_N) + 1e-6)) @ inputs_N2 + PLATT_PULL * np.eye(2)
        found = found - np.linalg.solve(curve, slope)
    return found


def _rating_layer(whole_NF: Array, width: int, *, seed: int) -> Layer:
    """Ratings mean nothing for scenes: they follow one direction, random but smooth, through a picture's colours."""
    colours = 3 * len(painting.COLOURS)  # the first features of `whole`: shares of colours in the picture
    direction = np.zeros(width)
    direction[:colours] = np.random.default_rng([seed, 2]).normal(size=colours)
    along_N = whole_NF[:, :colours] @ direction[:colours]
    unit = direction / along_N.std()
    middle, change = np.array(RATING_LOGITS).T
    return Layer(unit[:, None] * change, middle - change * (along_N.mean() / along_N.std()))


def _csv(truth_NT: Array) -> str:
    """selected_tags.csv. The published ids of the ratings count down from 9999999; generals and characters follow."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("tag_id", "name", "category", "count"))
    writer.writerows((9_999_999 - at, name, RATING, 0) for at, name in enumerate(RATINGS))
    counts = truth_NT.sum(axis=0)
    for at, tag in enumerate(TAGS):
        writer.writerow((at + 1, tag, 4 if tag in painting.CHARACTERS else 0, int(counts[at])))
    return text.getvalue()
