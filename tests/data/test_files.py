"""Listing and reading, here and through fsspec."""

import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from sote.data import files


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    """Python's own server over the test's folder, which sends whole files whatever part is asked for."""

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            """Nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(tmp_path))) as served:
        thread = threading.Thread(target=served.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield f"http://127.0.0.1:{served.server_port}"
        served.shutdown()
        thread.join()


def test_an_absolute_path_has_no_tilde_no_end_slash_and_no_file_protocol(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert files.absolute("~/a/") == files.absolute("a") == files.absolute(f"file://{tmp_path}/a") == f"{tmp_path}/a"
    assert files.absolute("s3://bucket/a/") == "s3://bucket/a"
    assert files.absolute("~no-such-user-here/a").endswith("/~no-such-user-here/a")


def test_every_spelling_of_a_place_is_really_the_same(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "a")
    spelled = {files.real(f"{tmp_path}/{name}") for name in ("a", "link", "a/../a", "./link/.")}
    assert spelled == {f"{tmp_path}/a"}
    assert files.real("memory://a") == files.real("memory:///a/")


def test_a_folder_on_a_server_is_listed_and_read(tmp_path: Path, server: str) -> None:
    for name in ("a b.jpg", "c.jpg", ".hidden"):
        (tmp_path / name).write_bytes(b"0123456789")
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "d.jpg").touch()  # a folder on a server is what has links
    found = files.listing(server)
    assert (found.folders, sorted(found.files)) == ({"deep"}, ["a%20b.jpg", "c.jpg"])
    assert files.read_each([f"{server}/c.jpg", f"{server}/a%20b.jpg"]) == [b"0123456789"] * 2
    assert files.kind(f"{server}/deep") == "folder"
    assert files.kind(f"{server}/no") is None


def test_a_part_is_that_part_even_where_a_server_sends_all(tmp_path: Path, server: str) -> None:
    (tmp_path / "c.jpg").write_bytes(b"0123456789")
    assert files.read(f"{server}/c.jpg", start=2, length=3) == b"234"
    assert files.read(f"{server}/c.jpg", length=4) == b"0123"


def test_what_a_server_lacks_is_an_error_for_that_file_only(tmp_path: Path, server: str) -> None:
    (tmp_path / "c.jpg").write_bytes(b"x")
    lost, found = files.read_each([f"{server}/no.jpg", f"{server}/c.jpg"])
    assert isinstance(lost, FileNotFoundError)
    assert found == b"x"
    lost, found = files.read_each([str(tmp_path / "no.jpg"), str(tmp_path / "c.jpg")])
    assert isinstance(lost, FileNotFoundError)
    assert found == b"x"


def test_an_error_in_the_midst_of_a_remote_file_is_an_os_error(tmp_path: Path, server: str) -> None:
    (tmp_path / "large").write_bytes(b"x" * 12_000_000)  # fsspec reads ahead 5 MiB
    with pytest.raises(OSError, match="range requests"), files.opened(f"{server}/large") as file:
        file.seek(11_000_000)
        file.read(1)


def test_a_glob_names_files_only(tmp_path: Path) -> None:
    for name in ("b.tar", "a.tar", "c.txt"):
        (tmp_path / name).touch()
    (tmp_path / "d.tar").mkdir()
    assert files.matching(f"{tmp_path}/*.tar") == [f"{tmp_path}/a.tar", f"{tmp_path}/b.tar"]
