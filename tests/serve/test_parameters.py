import re

from sote.serve import parameters
from sote.serve.recipe import DefaultsPart, LimitsPart
from sote.serve.schema import GenerateRequest, resolve

# how AUTOMATIC1111's web UI reads them back: modules/infotext_utils.py, re_param
PAIR = re.compile(r'\s*(\w[\w \-/]+):\s*("(?:\\.|[^\\"])+"|[^,]*)(?:,|$)')


def text(model: str = "stand-in", **fields: object) -> str:
    request = GenerateRequest.model_validate({"prompt": "1girl, solo"} | fields)
    settings = resolve(request, DefaultsPart(), limits=LimitsPart(), random_seed=1)
    return parameters.text(settings, index=1, model=model, version="0.1")


def test_parameters_read_back_as_the_web_ui_reads_them() -> None:
    lines = text(negative_prompt="worst quality", seed=8).split("\n")
    assert lines[0] == "1girl, solo"
    assert lines[1] == "Negative prompt: worst quality"
    found = dict(PAIR.findall(lines[2]))
    assert found["Steps"] == "30"
    assert found["Sampler"] == "DPM++ 2M"
    assert found["Schedule type"] == "SGM Uniform"
    assert found["CFG scale"] == "7"
    assert found["Seed"] == "9"
    assert found["Size"] == "1024x1536"
    assert found["Decoder sampler"] == "Euler a"
    assert found["Compression"] == "42"


def test_without_a_negative_prompt_there_is_no_line_for_it() -> None:
    assert len(text().split("\n")) == 2


def test_a_value_with_a_comma_is_quoted() -> None:
    assert dict(PAIR.findall(text(model="a, b: c").split("\n")[1]))["Model"] == '"a, b: c"'
