"""Tokens of captions: equal to the tokenizer that training uses, with the same vocabulary."""

import json

import numpy as np
from transformers import CLIPTokenizer

from sote.data import tokens

CAPTIONS = (
    "extremely aesthetic, best quality, newest, sensitive, hatsune miku, vocaloid, 1girl, solo, long hair, twintails",
    "",
    "a  b\n\tc",
    "it's \"The text says\" — 東方 ^_^ :3 ½ １２３ e\u0301 ﬁ İstanbul 💖💖👨\u200d👩\u200d👧 don't we'll",
    "&amp; &lt;b&gt;",
    "ÀÉ\u00a0x\u2028y Ω≈ç√∫ ß ſ",
    "a" * 300,
    "<|endoftext|> <|startoftext|> <start_of_text>",
    "\x00\x07 >_< (o)_(o) _____",
)


def test_lengths_are_those_of_the_tokenizer_that_training_uses() -> None:
    model = json.loads(tokens._tokenizer().to_str())["model"]
    clip = CLIPTokenizer(vocab=model["vocab"], merges=[tuple(pair) for pair in model["merges"]])
    assert tokens.lengths(CAPTIONS).tolist() == [len(ids) for ids in clip(list(CAPTIONS))["input_ids"]]
    assert len(model["vocab"]) == 49_408


def test_known_numbers_come_out() -> None:
    # openai/CLIP, notebooks/Interacting_with_CLIP.ipynb: clip.tokenize("Hello World!") is 49406 3306 1002 256 49407
    assert tokens._tokenizer().encode("Hello World!", add_special_tokens=False).ids == [3306, 1002, 256]
    assert tokens.lengths(["Hello World!"]).tolist() == [5]


def test_captions_on_a_bound_fit_its_window() -> None:
    counts = np.array([2, 77, 78, 152, 153, 227, 228, 500])
    assert tokens.within(counts) == [2, 2, 2, 2]
    assert tokens.histogram(np.array([0, 7, 8, 15, 16]), bin_tokens=8) == [2, 2, 1]
    assert tokens.histogram(np.array([], np.int64), bin_tokens=8) == []
