import subprocess
import sys

import pytest

from sote.serve import routes


def test_the_ingress_needs_no_torch() -> None:
    code = "import sys, sote.serve.routes; print('torch' in sys.modules)"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stdout.strip() == "False"


@pytest.mark.parametrize(
    ("accept", "wanted"),
    [
        ("image/png", "png"),
        ("image/webp;q=0.9, */*", "webp"),
        ("IMAGE/*", "any"),
        ("application/json", None),
        ("*/*", None),
        ("image/tiff", None),
        ("text/html,image/png", None),
    ],
)
def test_the_first_entry_of_accept_decides(accept: str, wanted: str | None) -> None:
    assert routes._picture_wanted(accept) == wanted


def test_every_route_stands_in_the_document() -> None:
    document = routes.api.openapi()
    assert set(document["paths"]) == {"/healthz", "/readyz", "/v1/generate"}
    fields = document["components"]["schemas"]["GenerateRequest"]["properties"]
    assert {"prompt", "first_stage_steps", "image_size", "sampler", "compression"} <= set(fields)
    answers = document["paths"]["/v1/generate"]["post"]["responses"]
    assert {"image/png", "application/json"} <= set(answers["200"]["content"])
    assert {"422", "429", "500", "503"} <= set(answers)
