"""Prompts -> text embeddings, as the weights were trained or as a profile has it, with weights of words.

CLIP reads 77 tokens at a time, a window. Three layouts make one text embedding of N windows:
joined   start + 75 N + end (train/text.py), as trained: at least the windows of the training, more where words need it
stacked  77 N, each window with both its marks (ComfyUI): as many as the words need
cut      one window and no more; brackets are text (diffusers)

A weight w moves the states of its tokens away from those that the empty prompt has at their places, or towards them:
z = z_empty + w (z - z_empty). Marks, pads and pooled text have no weight.

Suffixes: N windows, T tokens of a window or of all, D width of the text embedding.
Source: ComfyUI a125cd8 (weights, windows of `stacked`; facts only), diffusers 0.42.1 StableCascadePriorPipeline
(`cut`).

Kind: actor.
"""

import math
from collections import OrderedDict
from dataclasses import dataclass, replace
from typing import Final

import torch
from torch import Tensor

from sote.serve import load
from sote.serve.profiles import PROFILES, Layout, Profile
from sote.serve.prompts import Segment, parse
from sote.train import text

# ComfyUI moves a segment of fewer tokens into the next window whole, where it does not fit the rest of one
MOVED_WHOLE: Final = 8
MAX_REPEATS: Final = 4  # ComfyUI: of the shorter of two prompts

Word = tuple[int, float]  # token and weight


@dataclass(frozen=True, eq=False)
class Read:
    """A prompt as the prior takes it: `states_1TD`, `pooled_11D`. `tokens` are all of the prompt's own, the last
    `lost` of which were not read."""

    states_1TD: Tensor
    pooled_11D: Tensor
    tokens: int
    lost: int


@dataclass(frozen=True)
class _Way:
    """All that decides how a prompt is read, besides the prompt. `least` and `most` are windows."""

    layout: Layout
    is_masked: bool
    is_weighted: bool
    least: int
    most: int


class Reader:
    """Reads prompts one by one, so that none depends on another; keeps the last ones. Belongs to one thread."""

    def __init__(self, weights: load.PriorWeights, *, device: torch.device, kept: int = 256) -> None:
        self.weights, self.device = weights, device
        self._kept = kept
        self._read: OrderedDict[tuple[str, _Way], Read] = OrderedDict()
        self._empty: dict[bool, Tensor] = {}

    def read(self, prompt: str, *, profile: Profile | None, is_weighted: bool, max_tokens: int = 600) -> Read:
        """The prompt, or what of it `max_tokens` allow: whole windows of 75, never fewer than the training's."""
        return self._found(prompt, self._way(profile, is_weighted, max_tokens))

    def read_both(
        self, prompt: str, negative: str, *, profile: Profile | None, is_weighted: bool, max_tokens: int = 600
    ) -> tuple[Read, Read]:
        """A prompt and its negative with equal numbers of tokens, so that both passes of guidance are one batch.

        Joined: the shorter gets empty windows, as shorter captions did at training. Stacked: both are repeated to one
        length, as ComfyUI does; that changes what Stage C finds. It is left where it takes more than four times.
        """
        way = self._way(profile, is_weighted, max_tokens)
        reads = self._found(prompt, way), self._found(negative, way)
        lengths = [read.states_1TD.shape[1] for read in reads]
        if way.layout == "joined":
            wide = replace(way, least=text.windows_of(max(lengths)))
            return (
                reads[0] if lengths[0] == max(lengths) else self._found(prompt, wide),
                reads[1] if lengths[1] == max(lengths) else self._found(negative, wide),
            )
        common = math.lcm(*lengths)
        if common > MAX_REPEATS * min(lengths):
            return reads
        return _repeated(reads[0], common), _repeated(reads[1], common)

    def _way(self, profile: Profile | None, is_weighted: bool, max_tokens: int) -> _Way:
        fixed = PROFILES[profile] if profile is not None else None
        layout: Layout = fixed.layout if fixed is not None else "joined"
        least = self.weights.windows if layout == "joined" else 1
        return _Way(
            layout=layout,
            is_masked=fixed.mask_padding if fixed is not None else self.weights.mask_padding,
            is_weighted=is_weighted and layout != "cut",
            least=least,
            most=1 if layout == "cut" else max(least, max_tokens // text.WORDS),
        )

    def _found(self, prompt: str, way: _Way) -> Read:
        key = prompt, way
        if key in self._read:
            self._read.move_to_end(key)
        else:
            self._read[key] = self._encoded(prompt, way)
            if len(self._read) > self._kept:
                self._read.popitem(last=False)
        return self._read[key]

    @torch.inference_mode()
    def _encoded(self, prompt: str, way: _Way) -> Read:
        segments = self._segments(prompt, way)
        windows = _moved(segments) if way.layout == "stacked" else _cut(segments)
        read = windows[: way.most] + [[]] * (way.least - len(windows))
        states_NTD, pooled_11D = self._states([[token for token, _ in words] for words in read], way.is_masked)
        if any(weight != 1 for words in read for _, weight in words):
            states_NTD = _weighted(states_NTD, self._nothing(way.is_masked), _weights(read).to(self.device))
        states_1NTD = states_NTD[None]
        return Read(
            states_1TD=text.joined(states_1NTD) if way.layout == "joined" else states_1NTD.flatten(1, 2),
            pooled_11D=pooled_11D,
            tokens=sum(len(words) for words in windows),
            lost=sum(len(words) for words in windows[way.most :]),
        )

    def _segments(self, prompt: str, way: _Way) -> list[list[Word]]:
        """The tokens of each segment with its weight."""
        found = parse(prompt, as_comfy=way.layout == "stacked") if way.is_weighted else (Segment(prompt),)
        tokens = text.words(self.weights.tokenizer, [segment.text for segment in found] or [""])
        weights = [segment.weight for segment in found] or [1.0]
        return [[(token, weight) for token in each] for each, weight in zip(tokens, weights, strict=True)]

    def _states(self, words_N: list[list[int]], is_masked: bool) -> tuple[Tensor, Tensor]:
        """States [N,77,D], and pooled [1,1,D] of the first window."""
        tokens_1NT, mask_1NT = text.in_windows(self.weights.tokenizer, [words_N])
        states_1NTD, pooled_11D = text.states(
            self.weights.text_encoder, tokens_1NT.to(self.device), mask_1NT.to(self.device) if is_masked else None
        )
        return states_1NTD[0], pooled_11D

    def _nothing(self, is_masked: bool) -> Tensor:
        """The states of a window without words, [1,77,D]."""
        if is_masked not in self._empty:
            self._empty[is_masked] = self._states([[]], is_masked)[0]
        return self._empty[is_masked]


def _cut(segments: list[list[Word]]) -> list[list[Word]]:
    """Windows of 75, wherever that cuts."""
    words = [word for segment in segments for word in segment]
    return [words[start : start + text.WORDS] for start in range(0, len(words), text.WORDS)] or [[]]


def _moved(segments: list[list[Word]]) -> list[list[Word]]:
    """Windows of 75 in which no short segment is cut: it begins the next window."""
    windows: list[list[Word]] = [[]]
    for segment in segments:
        is_moved, rest = len(segment) < MOVED_WHOLE, segment
        while rest:
            room = text.WORDS - len(windows[-1])
            taken = 0 if is_moved and len(rest) > room else room
            windows[-1].extend(rest[:taken])
            rest = rest[taken:]
            if rest:
                windows.append([])
    return windows


def _weights(windows: list[list[Word]]) -> Tensor:
    """The weight of each token, [N,77,1]: 1 for marks and pads."""
    weights_NT1 = torch.ones(len(windows), text.WINDOW, 1)
    for window, words in enumerate(windows):
        weights_NT1[window, 1 : 1 + len(words), 0] = torch.tensor([weight for _, weight in words])
    return weights_NT1


def _weighted(states_NTD: Tensor, empty_1TD: Tensor, weights_NT1: Tensor) -> Tensor:
    """In float32, and back to the dtype of the states; what weighs 1 is not touched."""
    found_NTD = empty_1TD.float() + weights_NT1 * (states_NTD.float() - empty_1TD.float())
    return torch.where(weights_NT1 == 1, states_NTD, found_NTD.to(states_NTD.dtype))


def _repeated(read: Read, length: int) -> Read:
    times = length // read.states_1TD.shape[1]
    states_1TD = read.states_1TD.repeat(1, times, 1) if times > 1 else read.states_1TD
    return Read(states_1TD, read.pooled_11D, tokens=read.tokens, lost=read.lost)
