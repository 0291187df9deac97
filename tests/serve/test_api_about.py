"""The routes about the server, before both models in miniature."""

import json
from dataclasses import dataclass, replace

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from prometheus_client.parser import text_string_to_metric_families

from sote.serve import api_about
from sote.serve.cascade import Local
from sote.serve.context import Context


@dataclass
class InState:
    """A service whose parts have these states; it is asked for nothing else here."""

    states: dict[str, str]

    async def deployments(self) -> dict[str, str]:
        return self.states


def ready(context: Context, states: dict[str, str]) -> tuple[int, dict[str, object]]:
    app = FastAPI()
    app.include_router(api_about.routes(replace(context, service=InState(states))))  # type: ignore[arg-type]
    answer = TestClient(app).get("/readyz")
    return answer.status_code, answer.json()


def test_the_server_says_what_it_is(client: TestClient, context: Context) -> None:
    client.get("/v1/about")  # begins to compute the hashes
    if context.about.hashes.thread is not None:
        context.about.hashes.thread.join(timeout=60)
    answer = client.get("/v1/about")
    assert answer.status_code == 200
    told = answer.json()
    assert told == json.loads(json.dumps(context.about.document()))
    assert told["model_hash"] is not None
    assert told["model"] == "stand-in"
    assert told["limits"]["max_pixels"] == 512 * 512
    assert answer.headers["Link"].startswith('</v1/about>; rel="license"')


def test_what_the_form_is_told_can_be_asked_for(client: TestClient) -> None:
    defaults = client.get("/v1/about").json()["defaults"]
    answer = client.post("/v1/generate", json={"prompt": "1girl", "seed": 7, "sync_mode": True} | defaults)
    assert answer.status_code == 200
    assert (answer.json()["images"][0]["width"], answer.json()["seed"]) == (256, 7)


def test_the_ingress_lives(client: TestClient) -> None:
    assert client.get("/healthz").json() == {"status": "ok"}


def test_the_server_is_ready_once_all_its_parts_are_up(context: Context, service: Local, client: TestClient) -> None:
    answer = client.get("/readyz")
    assert (answer.status_code, answer.json()["ready"]) == (200, True)
    up = {"Prior": "HEALTHY", "Decoder": "HEALTHY"}
    assert ready(context, up) == (200, {"ready": True, "deployments": up})
    for states in ({}, up | {"Decoder": "UPDATING"}, up | {"Prior": "UNHEALTHY"}):
        assert ready(context, states) == (503, {"ready": False, "deployments": states})


@pytest.fixture
def painted(client: TestClient) -> dict[tuple[str, tuple[str, ...]], float]:
    """The figures before and after one picture, as a difference."""

    def look() -> dict[tuple[str, tuple[str, ...]], float]:
        answer = client.get("/metrics")
        assert answer.headers["Content-Type"].startswith("text/plain; version=")
        families = text_string_to_metric_families(answer.text)
        return {(each.name, tuple(each.labels.values())): each.value for family in families for each in family.samples}

    before = look()
    body = {"prompt": "1girl", "first_stage_steps": 5, "second_stage_steps": 4, "seed": 3}
    assert client.post("/v1/generate", json=body).status_code == 200
    return {name: value - before.get(name, 0.0) for name, value in look().items()}


def test_a_picture_is_in_the_figures_with_exact_steps(painted: dict[tuple[str, tuple[str, ...]], float]) -> None:
    assert painted["sote_images_total", ("png",)] == 1
    assert painted["sote_batch_steps_total", ("1", "prior")] == 5
    assert painted["sote_batch_steps_total", ("1", "decoder")] == 4
    assert painted["sote_megapixel_steps_total", ("prior",)] == pytest.approx(256 * 384 / 1e6 * 5)
    assert painted["sote_stage_seconds_count", ("decoder",)] == 1
    assert painted["sote_requests_total", ("POST", "/v1/generate", "200")] == 1
    assert painted["sote_paintings_in_flight", ()] == 0


def test_the_document_of_the_api_tells_these_routes_with_examples(client: TestClient) -> None:
    paths = client.get("/openapi.json").json()["paths"]
    for path in ("/v1/about", "/healthz", "/readyz", "/metrics"):
        (operation,) = paths[path].values()
        assert operation["summary"]
        assert operation["responses"]["200"]["content"]
    ready_told = paths["/readyz"]["get"]["responses"]
    assert ready_told["503"]["content"]["application/json"]["example"]["ready"] is False
    assert "sote_images_total" in paths["/metrics"]["get"]["responses"]["200"]["content"]["text/plain"]["example"]
    about = paths["/v1/about"]["get"]["responses"]["200"]["content"]["application/json"]
    assert about["example"]["model"] == "stand-in"
