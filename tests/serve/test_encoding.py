from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import StableCascadePriorPipeline
from torch import Tensor

from sote.serve import load
from sote.serve.encoding import Read, Reader
from sote.serve.profiles import Profile
from sote.serve.recipe import ModelPart
from sote.train import text

CPU = torch.device("cpu")
START, END = 49406, 49407
LONG = "one two three four five six seven eight nine ten " * 16  # 160 tokens


@pytest.fixture(scope="module")
def loaded(part: ModelPart) -> load.PriorWeights:
    return load.load_prior(part, device=CPU)


@pytest.fixture(scope="module")
def reader(loaded: load.PriorWeights) -> Reader:
    return Reader(loaded, device=CPU)


def _read(reader: Reader, prompt: str, profile: Profile | None = None, *, is_weighted: bool = True) -> Read:
    return reader.read(prompt, profile=profile, is_weighted=is_weighted)


def _ids(loaded: load.PriorWeights, words: str) -> list[int]:
    return list(loaded.tokenizer(words, add_special_tokens=False).input_ids)


@torch.no_grad()
def _window(loaded: load.PriorWeights, ids: list[int], *, is_masked: bool = True) -> tuple[Tensor, Tensor]:
    """States [77,D] and pooled [D] of one window, from transformers' own model."""
    tokens = torch.tensor([[START, *ids, *[END] * (76 - len(ids))]])
    mask = (torch.arange(77) < len(ids) + 2).long()[None] if is_masked else None
    found = loaded.text_encoder(tokens, attention_mask=mask, output_hidden_states=True)
    return found.hidden_states[-1][0], found.text_embeds[0]


def _weighed(states: Tensor, empty: Tensor, weights: dict[int, float]) -> Tensor:
    """ComfyUI's rule, place by place."""
    found = states.clone()
    for place, weight in weights.items():
        found[place] = empty[place] + weight * (states[place] - empty[place])
    return found


@pytest.mark.parametrize("mask_padding", [True, False])
@pytest.mark.parametrize("windows", [1, 2, 3])
@pytest.mark.parametrize("prompt", ["1girl, (solo:1), a red circle", "", "()", LONG])
def test_without_weights_a_prompt_is_read_as_captions_were_at_training(
    loaded: load.PriorWeights, prompt: str, windows: int, mask_padding: bool
) -> None:
    reader = Reader(replace(loaded, windows=windows, mask_padding=mask_padding), device=CPU)
    needed = 3 if prompt == LONG else windows
    caption = prompt.replace("(solo:1)", "solo").replace("()", "")
    tokens, mask = text.tokens(loaded.tokenizer, [caption], windows=needed)
    with torch.inference_mode():
        states, pooled = text.embed(loaded.text_encoder, tokens, mask if mask_padding else None)
    for is_weighted, written in ((True, prompt), (False, caption)):
        found = _read(reader, written, is_weighted=is_weighted)
        assert torch.equal(found.states_1TD, states)
        assert torch.equal(found.pooled_11D, pooled)
        assert (found.tokens, found.lost) == (len(_ids(loaded, caption)), 0)


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_cut_is_what_diffusers_own_pipeline_gives(loaded: load.PriorWeights, reader: Reader, weights: Path) -> None:
    pipeline = StableCascadePriorPipeline.from_pretrained(weights / "prior", local_files_only=True)
    unmasked = Reader(replace(loaded, mask_padding=False, windows=3), device=CPU)  # the profile has its own
    for prompt in ("1girl, (solo:1.4), [a] red circle", "", LONG):
        states, pooled, *_ = pipeline.encode_prompt(CPU, 1, 1, False, prompt=prompt)
        for each in (reader, unmasked):
            found = _read(each, prompt, "diffusers")
            torch.testing.assert_close(found.states_1TD, states)
            torch.testing.assert_close(found.pooled_11D, pooled)
            assert found.lost == max(0, found.tokens - 75)


def test_a_weight_moves_the_states_of_its_tokens_alone(loaded: load.PriorWeights, reader: Reader) -> None:
    ids = [_ids(loaded, words) for words in ("a", "pink cat", "here", "sleeping")]
    states, pooled = _window(loaded, [token for each in ids for token in each])
    empty, _ = _window(loaded, [])
    wanted = _weighed(states, empty, {2: 1.3, 3: 1.3, 5: 1 / 1.1})
    for profile in (None, "comfy"):
        prompt = (
            "a (pink cat:1.3) here [sleeping]" if profile is None else "a (pink cat:1.3) here (sleeping:0.90909090)"
        )
        found = _read(reader, prompt, profile)
        torch.testing.assert_close(found.states_1TD[0], wanted)
        torch.testing.assert_close(found.pooled_11D[0, 0], pooled)
    assert (wanted - states).abs().max() > 1e-2
    kept = [place for place in range(77) if place not in (2, 3, 5)]
    assert torch.equal(found.states_1TD[0, kept], _read(reader, "a pink cat here sleeping").states_1TD[0, kept])


def test_a_weight_of_zero_leaves_nothing_of_the_words(loaded: load.PriorWeights, reader: Reader) -> None:
    found = _read(reader, "(pink cat:0)")
    torch.testing.assert_close(found.states_1TD[0, 1:3], _window(loaded, [])[0][1:3])


def test_weights_are_of_each_window_in_a_long_prompt(loaded: load.PriorWeights) -> None:
    unmasked = Reader(replace(loaded, mask_padding=False), device=CPU)
    ids = _ids(loaded, LONG)[:74]
    cat = _ids(loaded, "pink cat")
    first, second = ([*ids, cat[0]], [cat[1]])
    empty, _ = _window(loaded, [], is_masked=False)
    wanted = [
        _weighed(_window(loaded, window, is_masked=False)[0], empty, {place: 1.5})
        for window, place in ((first, 75), (second, 1))
    ]
    found = _read(unmasked, loaded.tokenizer.decode(ids) + " (pink cat:1.5)")
    torch.testing.assert_close(found.states_1TD[0], torch.cat([wanted[0][:76], wanted[1][1:]]))


def test_stacked_windows_have_their_own_marks_and_cut_no_short_segment(
    loaded: load.PriorWeights, reader: Reader
) -> None:
    ids = _ids(loaded, LONG)[:74]
    cat, dog = _ids(loaded, "pink cat"), _ids(loaded, "dog")
    empty, _ = _window(loaded, [])
    # 74 words leave room for one: the two of the weight go to the next window together
    first, pooled = _window(loaded, ids)
    second = _weighed(_window(loaded, [*cat, *dog])[0], empty, {1: 1.5, 2: 1.5})
    prompt = loaded.tokenizer.decode(ids)
    found = _read(reader, f"{prompt} (pink cat:1.5) dog", "comfy")
    torch.testing.assert_close(found.states_1TD[0], torch.cat([first, second]))
    torch.testing.assert_close(found.pooled_11D[0, 0], pooled)
    assert (found.tokens, found.lost) == (77, 0)
    # A long segment is cut where the window ends
    eight = _ids(loaded, "pink cat " * 4)
    windows = [_window(loaded, part)[0] for part in ([*ids, eight[0]], eight[1:])]
    wanted = [
        _weighed(state, empty, dict.fromkeys(places, 2.0))
        for state, places in zip(windows, ([75], range(1, 8)), strict=True)
    ]
    found = _read(reader, f"{prompt} ({'pink cat ' * 4}:2)", "comfy")
    torch.testing.assert_close(found.states_1TD[0], torch.cat(wanted))


def test_stacked_reads_a_short_prompt_in_one_window_whatever_the_training_was(loaded: load.PriorWeights) -> None:
    trained = Reader(replace(loaded, windows=3), device=CPU)
    assert _read(trained, "a cat", "comfy").states_1TD.shape[1] == 77
    assert _read(trained, "a cat").states_1TD.shape[1] == 227


@pytest.mark.parametrize(
    ("profile", "max_tokens", "length", "lost"),
    [
        (None, 600, 227, 0),
        (None, 150, 152, 10),
        (None, 75, 77, 85),
        ("comfy", 160, 154, 10),
        ("diffusers", 600, 77, 85),
    ],
)
def test_what_was_not_read_is_counted(
    reader: Reader, profile: Profile | None, max_tokens: int, length: int, lost: int
) -> None:
    found = reader.read(LONG, profile=profile, is_weighted=True, max_tokens=max_tokens)
    assert (found.states_1TD.shape[1], found.tokens, found.lost) == (length, 160, lost)


def test_a_limit_below_the_trainings_windows_is_not_kept(loaded: load.PriorWeights) -> None:
    trained = Reader(replace(loaded, windows=3), device=CPU)
    found = trained.read(LONG, profile=None, is_weighted=True, max_tokens=75)
    assert (found.states_1TD.shape[1], found.lost) == (227, 0)


def test_a_prompt_and_its_negative_have_one_length(loaded: load.PriorWeights, reader: Reader) -> None:
    prompt, negative = reader.read_both(LONG, "a dog", profile=None, is_weighted=True)
    tokens, mask = text.tokens(loaded.tokenizer, ["a dog"], windows=3)
    with torch.inference_mode():
        states, _ = text.embed(loaded.text_encoder, tokens, mask)
    assert torch.equal(negative.states_1TD, states)
    assert prompt is _read(reader, LONG)
    short, other = reader.read_both("a cat", "a dog", profile=None, is_weighted=True)
    assert (short, other) == (_read(reader, "a cat"), _read(reader, "a dog"))


def test_comfyui_repeats_both_to_one_length(reader: Reader) -> None:
    long, short = LONG, "one two three four five six seven eight nine ten " * 9
    prompt, negative = reader.read_both(long, short, profile="comfy", is_weighted=True)
    assert torch.equal(prompt.states_1TD, _read(reader, long, "comfy").states_1TD.repeat(1, 2, 1))
    assert torch.equal(negative.states_1TD, _read(reader, short, "comfy").states_1TD.repeat(1, 3, 1))
    assert (negative.tokens, negative.lost) == (90, 0)
    # Not more than four times: five windows and one stay what they are
    lengths = [read.states_1TD.shape[1] for read in reader.read_both(long * 2, "", profile="comfy", is_weighted=True)]
    assert lengths == [5 * 77, 77]


def test_the_last_prompts_are_kept(loaded: load.PriorWeights) -> None:
    reader = Reader(loaded, device=CPU, kept=2)
    first = _read(reader, "a cat")
    assert _read(reader, "a cat") is first
    assert _read(reader, "a cat", "diffusers") is not first
    assert _read(reader, "a cat") is first  # used last, so it stays
    _read(reader, "a dog")
    assert _read(reader, "a cat") is first
    _read(reader, "a bird")
    _read(reader, "a fish")
    assert _read(reader, "a cat") is not first
    weighted, literal = (_read(reader, "(a cat:1.2)", is_weighted=each) for each in (True, False))
    assert not torch.equal(weighted.states_1TD, literal.states_1TD)
