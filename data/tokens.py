"""How long captions are in tokens of CLIP's byte pair encoding, without torch.

The vocabulary is the one that open_clip ships as package data; the rules are those of transformers' CLIPTokenizer,
which training uses, and the counts are equal to its counts.
Reads: open_clip/bpe_simple_vocab_16e6.txt.gz.

Kind: pure, but for reading the vocabulary.
"""

import gzip
import importlib.util
from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Final

import numpy as np
import tokenizers
from numpy.typing import NDArray
from tokenizers import Regex, models, normalizers, pre_tokenizers

from sote.cluster.errors import WeightsError

VOCABULARY: Final = "bpe_simple_vocab_16e6.txt.gz"
# openai/CLIP clip/simple_tokenizer.py: of the file's merges, so many make the vocabulary of 49,408
MERGES: Final = 49_152 - 256 - 2
WORD_END: Final = "</w>"
START: Final = "<|startoftext|>"
END: Final = "<|endoftext|>"
# openai/CLIP clip/simple_tokenizer.py, its pattern of words
WORDS: Final = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
MARKS: Final = 2  # the start and the end of a text
# Text windows: CLIP's 77 tokens, and the two and three windows that trainers chain (75 more tokens each).
WINDOWS: Final = (77, 152, 227)


def lengths(captions: Sequence[str]) -> NDArray[np.int64]:
    """Tokens of each caption, the marks of its start and end counted.

    Raises WeightsError if open_clip's vocabulary is not installed.
    """
    encoded = _tokenizer().encode_batch_fast(list(captions), add_special_tokens=False)
    return np.array([len(each.ids) + MARKS for each in encoded], dtype=np.int64)


def histogram(counts: NDArray[np.int64], *, bin_tokens: int) -> list[int]:
    """How many captions are in each bin of `bin_tokens` tokens, from 0 on."""
    return [int(number) for number in np.bincount(counts // bin_tokens)] if len(counts) else []


def within(counts: NDArray[np.int64]) -> list[int]:
    """How many captions fit each of WINDOWS but no smaller one, and at last how many fit none."""
    bounds = [0, *WINDOWS, np.iinfo(np.int64).max]
    return [int(((counts > low) & (counts <= high)).sum()) for low, high in pairwise(bounds)]


def vocabulary() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """CLIP's vocabulary, the number of each word, and the merges that make words of letters.

    Raises WeightsError if open_clip's package data are not installed.
    """
    merges = [(one, other) for one, other in map(str.split, _merges())]
    letters = list(_letters().values())
    words = [*letters, *(letter + WORD_END for letter in letters), *map("".join, merges)]
    return {word: at for at, word in enumerate([*words, START, END])}, merges


@lru_cache(maxsize=1)
def _tokenizer() -> tokenizers.Tokenizer:
    numbers, merges = vocabulary()
    model = models.BPE(
        vocab=numbers, merges=merges, continuing_subword_prefix="", end_of_word_suffix=WORD_END, unk_token=END
    )
    made = tokenizers.Tokenizer(model)
    made.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORDS), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    made.add_special_tokens([START, END])
    return made


def _merges() -> list[str]:
    spec = importlib.util.find_spec("open_clip")  # found, not imported: that would take torch along
    folder = Path(spec.origin).parent if spec and spec.origin else Path()
    try:
        text = gzip.decompress((folder / VOCABULARY).read_bytes()).decode("utf-8")
    except FileNotFoundError:
        raise WeightsError(f"{VOCABULARY}: is not there; install open_clip_torch, which brings it") from None
    return text.split("\n")[1 : MERGES + 1]


def _letters() -> dict[int, str]:
    """A letter that can be seen for each byte, in the order of the vocabulary (GPT-2's table)."""
    seen = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    unseen = [byte for byte in range(256) if byte not in seen]
    return {byte: chr(byte) for byte in seen} | {byte: chr(256 + at) for at, byte in enumerate(unseen)}
