"""The stand-in weights, made once for all tests of this folder."""

from pathlib import Path

import pytest

from sote.serve.recipe import DefaultsPart, ModelPart


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
