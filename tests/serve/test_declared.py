"""Serve's own config brings the endpoint up, as a RayService does."""

import io
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import yaml
from PIL import Image
from ray import serve
from ray.serve import context
from ray.serve.schema import ServeDeploySchema

from sote.cluster import kube, kube_ray
from sote.cluster import recipe as recipes
from sote.cluster.errors import RecipeError, UserError
from sote.serve import declared, keys
from sote.serve.keys import Limits
from sote.serve.recipe import DefaultsPart, ModelPart, ServeRecipe

WAIT_SECONDS = 200.0  # on a busy machine


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def stopped(local_ray: None) -> Iterator[None]:
    """Serve is shut down afterwards."""
    yield
    serve.shutdown()  # type: ignore[no-untyped-call]


def status() -> tuple[str, str]:
    found = serve.status().applications["sote"]
    return found.status.value, found.message


@pytest.mark.timeout(400)
@pytest.mark.slow
def test_serves_own_config_brings_up_an_endpoint_with_keys_that_paints(
    stopped: None, part: ModelPart, small: DefaultsPart, tmp_path: Path
) -> None:
    key = keys.add(tmp_path / "keys.toml", "ada", Limits())
    recipe = ServeRecipe.model_validate(
        {
            "run": str(tmp_path / "run"),
            "host": "0.0.0.0",
            "model": part,
            "defaults": small,
            "access": {"keys": str(tmp_path / "keys.toml")},
            "about": {"licence": "Apache-2.0"},
            "prior_replicas": {"cpus": 0.1, "slots": 2},
            "decoder_replicas": {"cpus": 0.1, "slots": 2},
            "ingress_cpus": 0.1,
        }
    )
    port = free_port()
    config = kube_ray.ServeConfig(
        http_options=kube_ray.HttpOptions(host="127.0.0.1", port=port),
        applications=(kube_ray.Application(args=kube_ray.Arguments(recipe=recipes.dumps(recipe))),),
    )
    written = ServeDeploySchema.model_validate(yaml.safe_load(yaml.safe_dump(kube.manifest(config))))
    serve.start(proxy_location="EveryNode", http_options={"host": "127.0.0.1", "port": port})
    context._get_global_client().deploy_apps(written)
    deadline = time.monotonic() + WAIT_SECONDS
    while status()[0] == "DEPLOYING" and time.monotonic() < deadline:
        time.sleep(0.2)
    assert status()[0] == "RUNNING", status()
    asked = {"prompt": "a red circle", "seed": 3}
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=WAIT_SECONDS, trust_env=False) as client:
        assert client.get("/-/healthz").text == "success"
        assert client.post("/v1/generate", json=asked).status_code == 401
        painted = client.post(
            "/v1/generate", json=asked, headers={"Accept": "image/png", "Authorization": f"Bearer {key}"}
        )
    assert painted.status_code == 200, painted.text
    assert Image.open(io.BytesIO(painted.content)).size == (small.width, small.height)
    assert recipes.load(tmp_path / "run" / "recipe.toml", ServeRecipe) == recipe


def test_a_recipe_is_given_as_a_path_or_as_its_text(tmp_path: Path) -> None:
    text = 'run = "r"\nport = 9\n'
    (tmp_path / "serve.toml").write_text(text)
    assert declared.load(text) == declared.load(str(tmp_path / "serve.toml")) == ServeRecipe(run="r", port=9)
    with pytest.raises(RecipeError, match=r"^recipe: prot: unknown key, did you mean port$"):
        declared.load('run = "r"\nprot = 9\n')
    with pytest.raises(RecipeError, match=r"none\.toml: no such recipe file"):
        declared.load(str(tmp_path / "none.toml"))


@pytest.mark.parametrize("host", ["0.0.0.0", "10.1.2.3", "::", "example.org"])
def test_a_server_without_keys_is_not_put_where_others_reach_it(host: str) -> None:
    with pytest.raises(UserError, match=r"can be reached from other machines; set access\.keys"):
        declared.check_door(ServeRecipe(run="r"), host)
    declared.check_door(ServeRecipe.model_validate({"run": "r", "access": {"keys": "keys.toml"}}), host)


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost"])
def test_a_server_on_loopback_needs_no_keys(host: str) -> None:
    declared.check_door(ServeRecipe(run="r"), host)
