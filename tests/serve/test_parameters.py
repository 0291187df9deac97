import re

import pytest

from sote.serve import parameters
from sote.serve.recipe import DefaultsPart, LimitsPart
from sote.serve.schema import GenerateRequest, resolve
from sote.serve.settings import Settings

# how AUTOMATIC1111's web UI reads them back: modules/infotext_utils.py, re_param
PAIR = re.compile(r'\s*(\w[\w \-/]+):\s*("(?:\\.|[^\\"])+"|[^,]*)(?:,|$)')
# how stable-diffusion-prompt-reader does: sd_prompt_reader/format/a1111.py
READER_PAIR = re.compile(r"\s*([^:,]+):\s*([^,]+)")


def settings(**fields: object) -> Settings:
    request = GenerateRequest.model_validate({"prompt": "1girl, solo"} | fields)
    return resolve(request, DefaultsPart(), limits=LimitsPart(), random_seed=1)


def text(model: str = "stand-in", index: int = 1, model_hash: str | None = None, **fields: object) -> str:
    return parameters.text(settings(**fields), index=index, model=model, version="0.1", model_hash=model_hash)


def test_parameters_read_back_as_the_web_ui_reads_them() -> None:
    lines = text(negative_prompt="worst quality", seed=8, model_hash="0123456789").split("\n")
    assert lines[0] == "1girl, solo"
    assert lines[1] == "Negative prompt: worst quality"
    found = dict(PAIR.findall(lines[2]))
    assert found["Steps"] == "30"
    assert found["Sampler"] == "DPM++ 2M"
    assert found["Schedule type"] == "SGM Uniform"
    assert found["CFG scale"] == "7"
    assert found["Seed"] == "9"
    assert found["Size"] == "1024x1536"
    assert (found["Model hash"], found["Model"]) == ("0123456789", "stand-in")
    assert found["Decoder sampler"] == "Euler a"
    assert found["Compression"] == "42"
    assert list(found)[:5] == ["Steps", "Sampler", "Schedule type", "CFG scale", "Seed"]
    assert list(found)[-1] == "Version"


def test_parameters_read_back_as_the_prompt_reader_reads_them() -> None:
    raw = text(negative_prompt="worst quality, oldest", seed=8)
    steps, negative = raw.find("\nSteps:"), raw.find("\nNegative prompt:")
    assert raw[:negative] == "1girl, solo"
    assert raw[negative + len("\nNegative prompt:") : steps].strip() == "worst quality, oldest"
    found = dict(READER_PAIR.findall(raw[steps:].strip()))
    wanted = {"Model": "stand-in", "Sampler": "DPM++ 2M", "Seed": "9", "CFG scale": "7", "Steps": "30"}
    assert wanted.items() <= found.items()
    assert found["Size"] == "1024x1536"


def test_without_a_negative_prompt_there_is_no_line_for_it() -> None:
    assert len(text().split("\n")) == 2


def test_what_is_usual_or_unknown_is_not_said() -> None:
    usual = text()
    for name in ("Denoising strength", "Guidance rescale", "Emphasis", "Profile", "Variations", "Model hash"):
        assert f"{name}:" not in usual


def test_a_value_with_a_comma_is_quoted_and_read_again() -> None:
    words = text(model='a, "b": c')
    assert dict(PAIR.findall(words.split("\n")[1]))["Model"] == r'"a, \"b\": c"'
    assert parameters.read(words)["Model"] == 'a, "b": c'


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"prompt": "猫, (red:1.2)\nsecond line", "negative_prompt": "one,\ntwo", "seed": 2**32 - 1},
        {"guidance_rescale": 0.7, "compression": 42.666666, "weights": False, "guidance_scale": 0.1},
        {"profile": "comfy", "second_stage_guidance_scale": 1.75, "image_size": {"width": 2048, "height": 1152}},
        {"profile": "diffusers", "first_stage_steps": 50, "second_stage_steps": 24},
        {"sampler": "ddim", "scheduler": "exponential", "shift": 0.25, "decoder_sampler": "euler"},
        {"prompt": "", "negative_prompt": "only this"},
    ],
)
def test_settings_come_back_whole_from_their_text(fields: dict[str, object]) -> None:
    asked = settings(**fields)
    words = parameters.text(asked, index=0, model="m", version="0.1")
    again = GenerateRequest.model_validate(parameters.request_of(parameters.read(words)))
    others = DefaultsPart(width=256, prior_steps=4, decoder_shift=2, negative_prompt="not this", weights=True)
    found = resolve(again, others, limits=LimitsPart(), random_seed=0)
    assert parameters.text(found, index=0, model="m", version="0.1") == words


def test_a_text_of_another_program_gives_what_is_known() -> None:
    found = parameters.read("a cat\nSteps: 20, Sampler: UniPC, CFG scale: 7.5, Seed: 3, Size: 512x768, Clip skip: 2")
    assert found["Clip skip"] == "2"
    assert (found["Size-1"], found["Size-2"]) == ("512", "768")
    assert parameters.request_of(found) == {
        "prompt": "a cat",
        "negative_prompt": "",
        "first_stage_steps": 20,
        "guidance_scale": 7.5,
        "seed": 3,
        "image_size": {"width": 512, "height": 768},
    }


@pytest.mark.parametrize(
    "words",
    [
        "",
        "only words",
        "one: 1, two: 2",
        "\0\n\n",
        f"a: {'9' * 5000}x1, b: 1, Steps: {'9' * 5000}",
        'a: "b", c: "\\x", d: ",',
    ],
)
def test_any_text_can_be_read(words: str) -> None:
    assert "Prompt" in parameters.read(words)
    assert "prompt" in parameters.request_of(parameters.read(words))
