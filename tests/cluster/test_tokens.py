import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

from sote.cluster import tokens
from sote.cluster.errors import UserError

TOP = Path(__file__).resolve().parent.parent.parent
SECRET = "5ec4e7" * 8


@pytest.fixture(autouse=True)
def no_token(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A home without a token, and none of Ray's variables."""
    for name in (tokens.MODE, tokens.TOKEN, tokens.PLACE):
        monkeypatch.setenv(name, "")  # so that what a test sets is taken back at its end
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))


def put(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(SECRET + "\n")
    return path


def test_the_token_is_found_where_ray_finds_it_and_in_its_order(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert tokens.find() is None
    put(tmp_path / "home" / ".ray" / "auth_token")
    assert tokens.find() == SECRET
    (tmp_path / "other").write_text("other")
    monkeypatch.setenv(tokens.PLACE, str(tmp_path / "other"))
    assert tokens.find() == "other"
    monkeypatch.setenv(tokens.TOKEN, "said")
    assert tokens.find() == "said"


def test_ray_finds_the_same_token(tmp_path: Path) -> None:
    words = (
        "from ray._raylet import AuthenticationTokenLoader as loader; from sote.cluster import tokens; "
        "print([loader.instance().get_token_for_http_header(), {'Authorization': 'Bearer ' + tokens.find()}])"
    )
    named = str(put(tmp_path / "token"))
    environment = {"HOME": str(tmp_path), tokens.PLACE: named, tokens.MODE: "token"}
    ended = subprocess.run([sys.executable, "-c", words], env=environment, cwd=TOP, capture_output=True, text=True)
    rays, ours = ast.literal_eval(ended.stdout)
    assert {name.lower(): value for name, value in rays.items()} == {
        name.lower(): value for name, value in ours.items()
    }


def test_a_file_that_is_named_and_cannot_be_read_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(tokens.PLACE, str(tmp_path / "none"))
    with pytest.raises(UserError, match=r"RAY_AUTH_TOKEN_PATH: .*none: cannot be read \(No such file or directory\)"):
        tokens.find()


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST", "127.0.0.1", "127.8.9.1", "::1", "[::1]"])
def test_loopback_needs_no_token(host: str) -> None:
    assert tokens.use(host) is None
    assert tokens.MODE not in os.environ


@pytest.mark.parametrize(
    "host", ["head", "10.0.0.1", "192.168.1.9", "0.0.0.0", "localhost.example.org", "127.0.0.1.example.org", "::2", ""]
)
def test_beyond_loopback_nothing_is_talked_to_without_a_token(host: str) -> None:
    with pytest.raises(UserError, match="ray get-auth-token --generate"):
        tokens.use(host)
    for scheme in ("http", "https"):
        with pytest.raises(UserError, match="no token"):
            tokens.headers(f"{scheme}://head.example.org:8265")


def test_with_a_token_authentication_is_on_whatever_the_environment_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(tokens.TOKEN, SECRET)
    monkeypatch.setenv(tokens.MODE, "disabled")
    assert tokens.use("127.0.0.1") == SECRET
    assert os.environ[tokens.MODE] == "disabled"  # on loopback the user may have it so
    assert tokens.headers("https://head:8265") == {"Authorization": f"Bearer {SECRET}"}
    assert os.environ[tokens.MODE] == "token"


def test_no_error_shows_the_token(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    binary = tmp_path / "token"
    binary.write_bytes(b"\xff" + SECRET.encode())
    monkeypatch.setenv(tokens.PLACE, str(binary))
    with pytest.raises(UserError) as refused:
        tokens.find()
    assert SECRET not in str(refused.value)
