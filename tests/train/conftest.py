from pathlib import Path

import pytest

from sote.train import standins


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the stand-in `prior` and `decoder`."""
    folder = tmp_path_factory.mktemp("tiny")
    standins.make(folder, seed=0)
    return folder
