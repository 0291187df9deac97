"""Peers: the usual ways to find near-duplicates among 256-bit hashes, each with one thread.

`bk_tree` is what goes with imagehash: a Burkhard-Keller tree over the Hamming distance, asked with each hash before it
is put in. Hashes are Python's whole numbers, which is faster than imagehash's own objects. `binary` and `flat` are
faiss' exhaustive search by ranges, over the bits as they are and as float32, 256 to a hash, whose squared distance is
the number of bits that differ. All are exact and give the same pairs.
"""

import importlib.util
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

QUESTIONS = 4096  # that faiss is asked at once: the answers of all would not fit the memory
Hashes = NDArray[np.uint8]
Found = tuple[float, int]  # seconds, and how many pairs


class Node:
    """A hash of the tree, and the hashes below by their distance from it."""

    __slots__ = ("below", "value")

    def __init__(self, value: int) -> None:
        self.value = value
        self.below: dict[int, Node] = {}


def bk_tree(hashes: Hashes, radius: int) -> Found:
    """Every hash is looked for in the tree of those before it."""
    values = [int.from_bytes(each.tobytes()) for each in hashes]
    began, pairs = time.perf_counter(), 0
    top = Node(values[0])
    for value in values[1:]:
        waiting = [top]
        while waiting:
            node = waiting.pop()
            distance = (node.value ^ value).bit_count()
            pairs += distance <= radius
            waiting += [each for at, each in node.below.items() if abs(at - distance) <= radius]
        _put(top, value)
    return time.perf_counter() - began, pairs


def _put(node: Node, value: int) -> None:
    while (below := node.below.get(distance := (node.value ^ value).bit_count())) is not None:
        node = below
    node.below[distance] = Node(value)


def binary(hashes: Hashes, radius: int) -> Found:
    """faiss.IndexBinaryFlat. Its range is open: below radius + 1."""
    import faiss

    faiss.omp_set_num_threads(1)
    began = time.perf_counter()
    index = faiss.IndexBinaryFlat(8 * hashes.shape[1])
    index.add(hashes)
    return time.perf_counter() - began + (found := _ranges(index, hashes, radius + 1))[0], found[1]


def flat(hashes: Hashes, radius: int) -> Found:
    """faiss.IndexFlatL2 over the bits as numbers."""
    import faiss

    faiss.omp_set_num_threads(1)
    began = time.perf_counter()
    numbers = np.unpackbits(hashes, axis=1).astype(np.float32)
    index = faiss.IndexFlatL2(numbers.shape[1])
    index.add(numbers)
    return time.perf_counter() - began + (found := _ranges(index, numbers, radius + 0.5))[0], found[1]


def _ranges(index: Any, questions: NDArray[Any], limit: float) -> Found:
    """Seconds of all searches; each pair is found from both sides, and every hash finds itself."""
    began, answers = time.perf_counter(), 0
    for start in range(0, len(questions), QUESTIONS):
        bounds, _, _ = index.range_search(questions[start : start + QUESTIONS], limit)
        answers += int(bounds[-1])
    return time.perf_counter() - began, (answers - len(questions)) // 2


def installed() -> dict[str, Callable[[Hashes, int], Found]]:
    """The ways that can be measured here, by name."""
    ways: dict[str, Callable[[Hashes, int], Found]] = {"imagehash's way, a BK-tree in Python": bk_tree}
    if importlib.util.find_spec("faiss") is not None:
        ways |= {"faiss IndexBinaryFlat": binary, "faiss IndexFlatL2 of the bits": flat}
    return ways
