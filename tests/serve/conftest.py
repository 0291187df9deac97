"""The stand-in weights, and a server of them in one process, made once for all tests of this folder."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from sote.serve.recipe import DefaultsPart, LimitsPart, ModelPart, ServeRecipe

if TYPE_CHECKING:
    from fastapi.testclient import TestClient

    from sote.serve.cascade import Local
    from sote.serve.context import Context


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the stand-in `prior` and `decoder`."""
    from sote.train import standins

    folder = tmp_path_factory.mktemp("weights")
    standins.make(folder)
    return folder


@pytest.fixture(scope="session")
def part(weights: Path) -> ModelPart:
    return ModelPart(prior=str(weights / "prior"), decoder=str(weights / "decoder"), name="stand-in")


@pytest.fixture(scope="session")
def small() -> DefaultsPart:
    """Defaults that a core paints in a fraction of a second."""
    return DefaultsPart(width=256, height=384, prior_steps=4, decoder_steps=4)


@pytest.fixture(scope="session")
def service(part: ModelPart) -> "Iterator[Local]":
    """Both stand-ins in this process, with their lines."""
    from sote.serve.cascade import Local

    local = Local.load(part)
    yield local
    local.close()


@pytest.fixture(scope="session")
def context(
    service: "Local", part: ModelPart, small: DefaultsPart, tmp_path_factory: pytest.TempPathFactory
) -> "Context":
    """What the routes share, for a server without keys. Limits: 512x512 pixels and three pictures."""
    from sote.serve.ingress import context_of

    recipe = ServeRecipe(
        run=str(tmp_path_factory.mktemp("serve")),
        model=part,
        defaults=small,
        limits=LimitsPart(max_pixels=512 * 512, max_images=3),
    )
    return context_of(recipe, service)


@pytest.fixture(scope="module")
def client(context: "Context") -> "Iterator[TestClient]":
    """Asks the server of `context`, which started when it was made."""
    from fastapi.testclient import TestClient

    from sote.serve import api

    with TestClient(api.build(context), base_url="http://127.0.0.1:8000") as client:
        yield client
