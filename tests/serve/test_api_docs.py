"""The page of the document, and that it asks nobody else."""

import re

import pytest
from fastapi.testclient import TestClient

from sote.serve.api_docs import FILES


def test_the_page_of_the_document_names_only_this_server(client: TestClient) -> None:
    page = client.get("/docs")
    assert page.status_code == 200
    named = re.findall(r'(?:src|href)="([^"]+)"', page.text)
    assert named
    assert all(name.startswith("/docs/") for name in named)
    assert {name.removeprefix("/docs/") for name in named} == set(FILES)


@pytest.mark.parametrize("name", FILES)
def test_its_files_come_from_this_server(client: TestClient, name: str) -> None:
    file = client.get(f"/docs/{name}")
    assert file.status_code == 200
    assert file.headers["content-type"] == FILES[name]
    assert file.content


def test_another_file_is_not_there(client: TestClient) -> None:
    assert client.get("/docs/api.py").status_code == 404
