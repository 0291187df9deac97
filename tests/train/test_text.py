import json
from pathlib import Path

import pytest
import torch
from diffusers import StableCascadePriorPipeline
from torch import Tensor
from transformers import CLIPTextModelWithProjection, CLIPTokenizer

from sote.train import text

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "text.json").read_text())
CAPTIONS = ["a red circle, best quality", "", "word " * 75, "word " * 76, "tag, " * 60, "blue square, " * 120]
END = 49407


@pytest.fixture(scope="module")
def tokenizer(tiny: Path) -> CLIPTokenizer:
    return CLIPTokenizer.from_pretrained(tiny / "prior" / "tokenizer", local_files_only=True)


@pytest.fixture(scope="module")
def encoder(tiny: Path) -> CLIPTextModelWithProjection:
    return CLIPTextModelWithProjection.from_pretrained(tiny / "prior" / "text_encoder", local_files_only=True).eval()


def kohyas_tokens(tokenizer: CLIPTokenizer, caption: str, *, windows: int) -> Tensor:
    """kohya-ss/sd-scripts 235a1ea library/train_util.py get_input_ids, its branch for pads equal to the end mark."""
    longest = 75 * windows + 2
    ids = tokenizer(caption, padding="max_length", truncation=True, max_length=longest, return_tensors="pt").input_ids[
        0
    ]
    if windows == 1:
        return ids[None]
    cut = [torch.cat([ids[:1], ids[at : at + 75], ids[-1:]]) for at in range(1, longest - 77 + 2, 75)]
    return torch.stack(cut)


def kohyas_states(states_NTD: Tensor, *, windows: int) -> Tensor:
    """The same file's get_hidden_states for several windows: start, 75 states of each, the last end."""
    if windows == 1:
        return states_NTD[0]
    return torch.cat([states_NTD[0, :1], *(one[1:76] for one in states_NTD), states_NTD[-1, -1:]])


@pytest.mark.parametrize("windows", [1, 2, 3])
def test_tokens_and_states_are_kohyas_where_pads_are_read(
    tokenizer: CLIPTokenizer, encoder: CLIPTextModelWithProjection, windows: int
) -> None:
    tokens_BNT, _ = text.tokens(tokenizer, CAPTIONS, windows=windows)
    with torch.no_grad():
        text_BTD, pooled_B1D = text.embed(encoder, tokens_BNT, None)
    assert text_BTD.shape[:2] == (len(CAPTIONS), 2 + 75 * windows)
    for number, caption in enumerate(CAPTIONS):
        theirs = kohyas_tokens(tokenizer, caption, windows=windows)
        assert torch.equal(tokens_BNT[number], theirs)
        with torch.no_grad():
            found = encoder(theirs, output_hidden_states=True)
        torch.testing.assert_close(text_BTD[number], kohyas_states(found.hidden_states[-1], windows=windows))
        torch.testing.assert_close(pooled_B1D[number, 0], found.text_embeds[0])


def test_one_masked_window_is_what_diffusers_gives(
    tokenizer: CLIPTokenizer, encoder: CLIPTextModelWithProjection, tiny: Path
) -> None:
    pipeline = StableCascadePriorPipeline.from_pretrained(tiny / "prior")
    tokens_BNT, mask_BNT = text.tokens(tokenizer, CAPTIONS, windows=1)
    with torch.no_grad():
        found = text.embed(encoder, tokens_BNT, mask_BNT)
    theirs = tokenizer(CAPTIONS, padding="max_length", max_length=77, truncation=True, return_tensors="pt")
    assert torch.equal(tokens_BNT[:, 0], theirs.input_ids)
    assert torch.equal(mask_BNT[:, 0], theirs.attention_mask)
    for number, caption in enumerate(CAPTIONS):
        states, pooled, *_ = pipeline.encode_prompt("cpu", 1, 1, False, prompt=caption)
        torch.testing.assert_close(found[0][number], states[0])
        torch.testing.assert_close(found[1][number], pooled[0])


def test_the_mask_of_each_window_ends_with_its_first_end_mark(tokenizer: CLIPTokenizer) -> None:
    tokens_BNT, mask_BNT = text.tokens(tokenizer, CAPTIONS, windows=3)
    for tokens, mask in zip(tokens_BNT.flatten(0, 1), mask_BNT.flatten(0, 1), strict=True):
        ends = int((tokens == END).nonzero()[0])
        assert mask.tolist() == [1] * (ends + 1) + [0] * (76 - ends)


def test_the_mask_changes_pads_alone(tokenizer: CLIPTokenizer, encoder: CLIPTextModelWithProjection) -> None:
    tokens_BNT, mask_BNT = text.tokens(tokenizer, ["a red circle"], windows=2)
    with torch.no_grad():
        (masked, pooled), (unmasked, pooled_too) = (text.embed(encoder, tokens_BNT, one) for one in (mask_BNT, None))
    real = int(mask_BNT[0, 0].sum())
    torch.testing.assert_close(masked[:, :real], unmasked[:, :real])
    torch.testing.assert_close(pooled, pooled_too)
    assert not torch.allclose(masked[:, real:76], unmasked[:, real:76])


def test_the_text_embedding_is_the_last_state_before_the_final_norm(
    tokenizer: CLIPTokenizer, encoder: CLIPTextModelWithProjection
) -> None:
    """A later transformers may put the normed state last into hidden_states, as it has for other models."""
    tokens_BNT, mask_BNT = text.tokens(tokenizer, ["a red circle"], windows=1)
    with torch.no_grad():
        text_BTD, _ = text.embed(encoder, tokens_BNT, mask_BNT)
        whole = encoder(tokens_BNT[0], attention_mask=mask_BNT[0]).last_hidden_state
        normed = encoder.text_model.final_layer_norm(text_BTD)
    torch.testing.assert_close(normed, whole)
    assert not torch.allclose(text_BTD, whole)


def test_pooled_comes_from_the_first_window_alone(
    tokenizer: CLIPTokenizer, encoder: CLIPTextModelWithProjection
) -> None:
    captions = ["word " * 75 + end for end in ("circle", "square")]
    tokens_BNT, mask_BNT = text.tokens(tokenizer, captions, windows=2)
    with torch.no_grad():
        text_BTD, pooled_B1D = text.embed(encoder, tokens_BNT, mask_BNT)
    torch.testing.assert_close(*pooled_B1D)
    torch.testing.assert_close(text_BTD[0, :76], text_BTD[1, :76])
    assert not torch.allclose(text_BTD[0, 76:], text_BTD[1, 76:])


def test_tokens_are_those_of_clips_own_tokenizer(tokenizer: CLIPTokenizer) -> None:
    for golden in GOLDEN["captions"]:
        tokens_BNT, _ = text.tokens(tokenizer, [golden["caption"]], windows=3)
        words = [token for window in tokens_BNT[0].tolist() for token in window[1:76] if token != END]
        assert words == golden["tokens"]


@pytest.mark.parametrize(("windows", "lost"), [(1, [0, 0, 1, 151]), (2, [0, 0, 0, 76]), (3, [0, 0, 0, 1])])
def test_what_does_not_fit_is_cut_and_counted(tokenizer: CLIPTokenizer, windows: int, lost: list[int]) -> None:
    captions = ["", "word " * 75, "word " * 76, "word " * 226]
    assert text.lost(tokenizer, captions, windows=windows) == lost
    tokens_BNT, _ = text.tokens(tokenizer, captions, windows=windows)
    assert tokens_BNT.shape == (4, windows, 77)
    assert tokens_BNT[:, :, -1].eq(END).all()


def test_windows_of_the_recipes_lengths() -> None:
    assert [text.windows_of(length) for length in (77, 152, 227)] == [1, 2, 3]


def test_a_batch_is_read_as_each_caption_by_itself(
    tokenizer: CLIPTokenizer, encoder: CLIPTextModelWithProjection
) -> None:
    with torch.no_grad():
        together = text.embed(encoder, *text.tokens(tokenizer, CAPTIONS, windows=3))
        alone = [text.embed(encoder, *text.tokens(tokenizer, [caption], windows=3)) for caption in CAPTIONS]
    for place in (0, 1):
        torch.testing.assert_close(together[place], torch.cat([one[place] for one in alone]))
