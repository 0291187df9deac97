"""Run folders at a URI, against a real S3 server."""

import json
import logging
from contextlib import AbstractContextManager
from pathlib import Path

import fsspec
import pyarrow as pa
import pytest

from sote.cluster import logs, remote, storage, store
from sote.cluster import recipe as recipes
from sote.cluster.errors import RecipeError, RunFolderError
from sote.cluster.recipe import Recipe
from tests.conftest import Command
from tests.stores import Store

SECRET = "dummy-secret-4711"


def open_run(run: str) -> AbstractContextManager[storage.RunFolder]:
    return storage.open_run(Recipe(run=run), verb="curate", command="sote curate r.toml")


def test_a_run_is_recorded_there_and_continued_on_another_node(
    s3: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, table = f"{s3.uri}/runs/x", pa.table({"row": [0]})
    with open_run(run) as folder:
        storage.write_table(folder.rows("index", 0), table)
        storage.commit(folder.rows("index", 0), digest="d")
        logs.Metrics(folder.metrics).write(kind="stage", stage="index")
    there = s3.files()
    assert {"runs/x/run.json", "runs/x/recipe.toml", "runs/x/metrics.jsonl", "runs/x/events.jsonl"} <= there.keys()
    assert json.loads(there["runs/x/run.json"])["verbs"]["curate"]["exit_code"] == 0
    assert not [name for name in there if name.endswith((".tmp", ".lock")) or ".lock/" in name]
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "other"))
    with open_run(run) as again:
        assert again.root.is_relative_to(tmp_path / "other")
        assert storage.committed(again.rows("index", 0)) == {"digest": "d"}
        assert storage.committed(again.rows("index", 1)) is None
        assert not again.rows("index", 0).exists()  # rows come when they are read
    assert json.loads(s3.files()["runs/x/run.json"])["verbs"]["curate"]["continued"] == 1
    kinds = [json.loads(line)["kind"] for line in s3.files()["runs/x/metrics.jsonl"].splitlines()]
    assert kinds == ["stage"]


def test_an_earlier_mirror_of_this_node_counts_for_nothing(s3: Store) -> None:
    with open_run(f"{s3.uri}/run") as folder:
        for shard in (0, 1):
            storage.write_bytes(folder.rows("index", shard), b"old")
            storage.commit(folder.rows("index", shard), digest="old")
    store.put(f"{s3.uri}/run/rows/index/00000.parquet.done", b'{"digest": "new"}')
    store.delete([f"{s3.uri}/run/rows/index/00001.parquet.done"])
    with open_run(f"{s3.uri}/run") as folder:
        assert storage.committed(folder.rows("index", 0)) == {"digest": "new"}
        assert storage.committed(folder.rows("index", 1)) is None


def test_a_commit_is_two_puts_and_what_is_known_is_not_asked(s3: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    with open_run(f"{s3.uri}/run") as folder:
        system = type(store.at(s3.uri)[0])
        real = system._call_s3

        async def counted(self: object, method: str, *given: object, **named: object) -> object:
            if "/rows/" in str(named.get("Key")):
                calls.append(method)
            return await real(self, method, *given, **named)

        monkeypatch.setattr(system, "_call_s3", counted)
        storage.write_bytes(folder.rows("index", 0), b"rows")
        storage.commit(folder.rows("index", 0), digest="d")
        assert calls == ["put_object", "put_object"]
        assert storage.committed(folder.rows("index", 0)) == {"digest": "d"}
        assert calls == ["put_object", "put_object"]


def test_a_write_that_cannot_be_put_is_not_here_either(s3: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    path = remote.place(f"{s3.uri}/run/a")
    storage.write_bytes(path, b"one")
    with pytest.raises(SystemExit), monkeypatch.context() as within:
        within.setattr(store, "put", _refuse)
        storage.write_bytes(path, b"two")
    assert path.read_bytes() == b"one"
    assert [each.name for each in path.parent.iterdir()] == ["a"]


def _refuse(*_: object) -> str:
    raise SystemExit(1)


def test_the_command_says_in_one_line_what_cannot_be_a_run_folder(
    s3: Store, sote: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for run, what in (
        ("s3://no-such-bucket/run", "bucket"),
        (f"{s3.uri}/nothing", "no such folder"),
        (f"s3://user:{SECRET}@bucket/run", "no credentials"),
    ):
        code, _, err = sote("status", run)
        assert (code, what in err, err.count("\n"), SECRET in err) == (2, True, 1, False), err
    store.put(f"{s3.uri}/other/file", b"")
    with (
        pytest.raises(RunFolderError, match=rf"^{s3.uri}/other: run: holds 'file' and no run.json"),
        open_run(f"{s3.uri}/other"),
    ):
        pytest.fail("a foreign folder")
    with pytest.raises(RunFolderError, match=r"no-such-bucket/run.*bucket"), open_run("s3://no-such-bucket/run"):
        pytest.fail("no bucket")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    with pytest.raises(RunFolderError, match="Unable to locate credentials"), open_run(f"{s3.uri}/run"):
        pytest.fail("no credentials")


def test_credentials_are_in_no_file_and_no_line(
    s3: Store, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    with caplog.at_level(logging.DEBUG, "sote"), open_run(f"{s3.uri}/run") as folder:
        storage.write_bytes(folder.rows("index", 0), b"rows")
        s3.fail_every(2)
        logging.getLogger("sote").warning("a warning")
        storage.commit(folder.rows("index", 0))
        s3.fail_every(0)
    everything = [*s3.files().values(), *(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())]
    assert len(everything) > 8
    assert not [data for data in everything if SECRET.encode() in data]
    assert SECRET not in caplog.text


@pytest.mark.parametrize("run", [f"s3://key:{SECRET}@bucket/x", f"s3://bucket/x?key=k&secret={SECRET}"])
def test_a_recipe_with_credentials_is_refused_without_saying_them(tmp_path: Path, run: str) -> None:
    path = tmp_path / "r.toml"
    path.write_text(f'run = "{run}"\n')
    with pytest.raises(RecipeError, match=r"run: the URI s3://\.\.\. has credentials in it") as told:
        recipes.load(path, Recipe)
    assert SECRET not in str(told.value)
