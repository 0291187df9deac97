"""What many tests stand on: one local Ray, one set of stand-in models, one set of drawn pictures."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")


@pytest.fixture(scope="session")
def local_ray() -> Iterator[None]:
    """One local Ray for all tests that ask for it; verbs called inside use it."""
    from sote.cluster import session

    with session.connect():
        yield


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The stand-in models of curation and of training in one folder."""
    from sote.data import standins as data_standins
    from sote.train import standins as train_standins

    folder = tmp_path_factory.mktemp("models")
    data_standins.make(folder)
    train_standins.make(folder)
    return folder


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo's drawn pictures, fewer of them: folders board/ and pixiv/, and truth.jsonl."""
    from sote.data import scenes

    folder = tmp_path_factory.mktemp("pictures")
    scenes.draw(folder, count=20, seed=1)
    return folder
