"""Keys in files: made, found, limited, removed, and seen by a server that runs."""

import os
import re
import stat
import threading
from pathlib import Path

import pytest
from typer.testing import CliRunner

from sote.cluster import cli
from sote.cluster.errors import UserError
from sote.serve import keys
from sote.serve.keys import Keys, Limits, Watched


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "keys.toml"


def test_a_key_is_found_by_what_was_printed_and_the_file_holds_only_its_hash(file: Path) -> None:
    made = keys.add(file, "ada", Limits(requests_per_minute=30, max_steps=40))
    assert re.fullmatch(r"sote_[\w-]{43}", made)  # 43 characters of base64 are 256 bits
    assert made not in file.read_text()
    assert made.removeprefix("sote_") not in file.read_text()
    found = keys.load(file).find(made)
    assert found is not None
    assert (found.name, found.limits) == ("ada", Limits(requests_per_minute=30, max_steps=40))


@pytest.mark.parametrize(
    "change", [lambda key: key[:-1], lambda key: key + "x", str.upper, lambda key: "", lambda _: "ä"]
)
def test_another_key_is_not_found(file: Path, change: object) -> None:
    made = keys.add(file, "ada", Limits())
    assert keys.load(file).find(change(made)) is None  # type: ignore[operator]


def test_the_hash_is_the_plain_sha256() -> None:
    # FIPS 180-4 as `printf abc | sha256sum` gives it
    assert keys.hash_of("abc") == "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_only_the_owner_may_read_the_file_whatever_the_umask(file: Path) -> None:
    before = os.umask(0)
    try:
        keys.add(file, "ada", Limits())
        keys.add(file, "grace", Limits())
    finally:
        os.umask(before)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_adding_keeps_what_stands_in_the_file(file: Path) -> None:
    first = keys.add(file, "ada", Limits())
    file.write_text(file.read_text() + "# by request of the office\n")
    second = keys.add(file, "grace", Limits(concurrency=2))
    assert "# by request of the office" in file.read_text()
    loaded = keys.load(file)
    assert [loaded.find(each).name for each in (first, second)] == ["ada", "grace"]  # type: ignore[union-attr]


def test_a_taken_name_is_refused_and_nothing_is_written(file: Path) -> None:
    keys.add(file, "ada", Limits())
    before = file.read_bytes()
    with pytest.raises(UserError, match="'ada' has a key already"):
        keys.add(file, "ada", Limits())
    assert file.read_bytes() == before


@pytest.mark.parametrize("name", ["", "a b", "a\nb", "x" * 65, 'a"'])
def test_a_name_that_cannot_be_used_is_refused(file: Path, name: str) -> None:
    with pytest.raises(UserError, match=r"must be 1 to 64 letters"):
        keys.add(file, name, Limits())
    assert not file.exists()


def test_a_removed_key_is_not_found_and_the_others_are(file: Path) -> None:
    first, second = (keys.add(file, name, Limits(max_images=2)) for name in ("ada", "grace"))
    keys.revoke(file, "ada")
    loaded = keys.load(file)
    assert loaded.find(first) is None
    assert loaded.find(second) == loaded.keys[0]
    assert loaded.keys[0].limits.max_images == 2
    with pytest.raises(UserError, match=r"no key is named 'ada'; there are grace"):
        keys.revoke(file, "ada")
    keys.revoke(file, "grace")
    assert keys.load(file) == Keys()


def test_keys_that_are_made_at_once_are_all_there(file: Path) -> None:
    threads = [threading.Thread(target=keys.add, args=(file, f"k{n}", Limits())) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(each.name for each in keys.load(file).keys) == [f"k{n}" for n in range(8)]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text.replace("sha256:", "md5:"), r"keys\.toml: key\.0\.hash: "),
        (lambda text: text.replace("name =", "nam ="), r"keys\.toml: key\.0\.name: Field required"),
        (lambda text: text + "concurency = 3\n", r"keys\.toml: key\.0\.limits\.concurency: "),
        (lambda text: text + "max_steps = 0\n", r"keys\.toml: key\.0\.limits\.max_steps: .*greater than or equal to 1"),
        (lambda text: text + text, r"not valid TOML|key\.name: 'ada' stands there twice"),
        (lambda text: text + "[", r"keys\.toml: not valid TOML"),
    ],
)
def test_a_broken_file_names_file_and_field(file: Path, change: object, message: str) -> None:
    keys.add(file, "ada", Limits(concurrency=1))
    file.write_text(change(file.read_text()))  # type: ignore[operator]
    with pytest.raises(UserError, match=message):
        keys.load(file)


def test_a_file_that_is_not_there_says_how_to_make_one(file: Path) -> None:
    with pytest.raises(UserError, match=r"no such file of keys; `sote key .*keys\.toml NAME` makes one"):
        keys.load(file)


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_running_server_sees_changes_once_a_second(file: Path) -> None:
    first, clock = keys.add(file, "ada", Limits()), Clock()
    watched = Watched(file, clock=clock)
    second = keys.add(file, "grace", Limits())
    assert watched.find(second) is None  # it has not looked again
    clock.now = 1.0
    assert watched.find(second) is not None
    keys.revoke(file, "ada")
    clock.now = 2.0
    assert watched.find(first) is None


def test_a_file_that_breaks_while_the_server_runs_leaves_the_keys_before(
    file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    made, clock = keys.add(file, "ada", Limits()), Clock()
    watched = Watched(file, clock=clock)
    file.write_text("[[key]]\nname =")
    for clock.now in (1.0, 2.0, 3.0):
        assert watched.find(made) is not None
    assert [record.message[:15] for record in caplog.records] == ["keys not read, "]  # said once


def test_a_file_that_is_gone_knows_no_key(file: Path) -> None:
    made, clock = keys.add(file, "ada", Limits()), Clock()
    watched = Watched(file, clock=clock)
    file.unlink()
    clock.now = 1.0
    assert watched.find(made) is None


def test_the_verb_prints_the_key_once_and_removes_it(file: Path) -> None:
    runner = CliRunner()
    made = runner.invoke(cli.app, ["key", str(file), "ada", "--requests-per-minute", "6", "--max-pixels", "1048576"])
    assert made.exit_code == 0
    found = keys.load(file).find(made.stdout.strip())
    assert found is not None
    assert found.limits == Limits(requests_per_minute=6, max_pixels=1048576)
    gone = runner.invoke(cli.app, ["key", str(file), "ada", "--revoke"])
    assert gone.exit_code == 0
    assert keys.load(file).keys == ()


def test_the_verb_refuses_limits_that_cannot_be(file: Path) -> None:
    for options in (["--concurrency", "0"], ["--revoke", "--max-steps", "4"]):
        ended = CliRunner().invoke(cli.app, ["key", str(file), "ada", *options])
        assert ended.exit_code != 0
        assert not file.exists()
