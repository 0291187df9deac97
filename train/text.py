"""Captions -> text embedding, for training and for serving.

CLIP reads 77 tokens. A longer caption is cut into windows of 75, each with a start and an end mark, which are encoded
one by one; their states are joined to start + 75 N + end = 77, 152 or 227 tokens (kohya-ss/sd-scripts 235a1ea,
library/train_util.py). Pads are the end mark, 49407. The text embedding is the last hidden state before the final norm;
pooled is the projection of the final state at the end mark, of the first window alone.

Shapes: B captions, N windows, T tokens, D width of the text.

Kind: actor.
"""

from typing import Any

import torch
from torch import Tensor
from transformers import CLIPTextModelWithProjection, CLIPTokenizer

from sote.cluster.errors import WeightsError

WINDOW = 77  # CLIP's positions
WORDS = WINDOW - 2  # of a window, its marks left out


def windows_of(text_tokens: int) -> int:
    """How many windows a text embedding of 77, 152 or 227 tokens is made of."""
    return (text_tokens - 2) // WORDS


def tokens(tokenizer: CLIPTokenizer, captions: list[str], *, windows: int) -> tuple[Tensor, Tensor]:
    """Token numbers and attention masks [B,N,77]; what is longer than the windows is cut."""
    firsts = [WORDS * window for window in range(windows)]
    return in_windows(
        tokenizer, [[found[first : first + WORDS] for first in firsts] for found in words(tokenizer, captions)]
    )


def in_windows(tokenizer: CLIPTokenizer, words_BN: list[list[list[int]]]) -> tuple[Tensor, Tensor]:
    """Token numbers and attention masks [B,N,77] of words that are cut already, up to 75 for each window.

    The mask of a window ends with its first end mark: that of the caption in the last window with words, the second
    token in those after it.
    """
    start, end = _mark(tokenizer.bos_token_id), _mark(tokenizer.eos_token_id)
    tokens_BNT = torch.full((len(words_BN), len(words_BN[0]), WINDOW), end)
    tokens_BNT[:, :, 0] = start
    for caption, words_N in enumerate(words_BN):
        for window, part in enumerate(words_N):
            tokens_BNT[caption, window, 1 : 1 + len(part)] = torch.tensor(part, dtype=torch.int64)
    lengths_BN = torch.tensor([[len(part) for part in words_N] for words_N in words_BN])
    return tokens_BNT, (torch.arange(WINDOW) < lengths_BN[:, :, None] + 2).long()


def lost(tokenizer: CLIPTokenizer, captions: list[str], *, windows: int) -> list[int]:
    """How many tokens of each caption do not fit the windows."""
    return [max(0, len(found) - windows * WORDS) for found in words(tokenizer, captions)]


def embed(
    text_encoder: CLIPTextModelWithProjection, tokens_BNT: Tensor, mask_BNT: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Text embedding [B, 2 + 75 N, D] and pooled [B,1,D]. Without a mask pads are read as tokens, as kohya's did."""
    states_BNTD, pooled_B1D = states(text_encoder, tokens_BNT, mask_BNT)
    return joined(states_BNTD), pooled_B1D


def states(
    text_encoder: CLIPTextModelWithProjection, tokens_BNT: Tensor, mask_BNT: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The states of each window [B,N,77,D], and pooled [B,1,D], that of the first."""
    captions, windows, _ = tokens_BNT.shape
    mask_RT = mask_BNT.flatten(0, 1) if mask_BNT is not None else None
    found: Any = text_encoder(tokens_BNT.flatten(0, 1), attention_mask=mask_RT, output_hidden_states=True)
    states_BNTD = found.hidden_states[-1].unflatten(0, (captions, windows))
    return states_BNTD, found.text_embeds.unflatten(0, (captions, windows))[:, :1]


def joined(states_BNTD: Tensor) -> Tensor:
    """The first start mark, the words of all windows and the last end mark, [B, 2 + 75 N, D]."""
    words_BTD = states_BNTD[:, :, 1:-1].flatten(1, 2)
    return torch.cat([states_BNTD[:, 0, :1], words_BTD, states_BNTD[:, -1, -1:]], dim=1)


def words(tokenizer: CLIPTokenizer, captions: list[str]) -> list[list[int]]:
    """The token numbers of each caption without marks, uncut."""
    found: list[list[int]] = tokenizer(captions, add_special_tokens=False, verbose=False).input_ids
    return found


def _mark(number: int | None) -> int:
    if number is None:
        raise WeightsError("tokenizer: has no start or end mark; use CLIP's own")
    return number
