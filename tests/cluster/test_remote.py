"""A node's mirror of what lies at a URI, against a real S3 server."""

import pickle
from pathlib import Path

import pytest

from sote.cluster import remote, store
from sote.cluster.errors import UserError
from sote.cluster.storage import RunFolder
from tests.stores import Store


def put(place: str, text: str) -> None:
    store.put(place, text.encode())


def test_a_uri_and_its_place_here_say_the_same(s3: Store, tmp_path: Path) -> None:
    for uri in ("s3://bucket", "s3://bucket/runs/a b", "memory://x/y.json", "s3://bucket/ü/%20"):
        assert remote.uri(remote.place(uri)) == uri
    assert remote.place("s3://bucket/runs/a/") == remote.place("s3://bucket/runs/a")
    assert remote.place("s3://bucket/runs/a").is_relative_to(tmp_path / "cache")
    assert remote.place("runs/a") == Path("runs/a")
    assert remote.place("file:///runs/a") == Path("/runs/a")
    assert (remote.uri(Path("runs/a")), remote.named(Path("runs/a"))) == (None, "runs/a")


@pytest.mark.parametrize(
    ("uri", "what"),
    [
        ("s3://user:hunter2@bucket/x", "no credentials"),
        ("s3://bucket/x?secret=hunter2", "no credentials"),
        ("nonsense://bucket/x", "Protocol not known"),
        ("gs://bucket/x", "pip install 'gcsfs'"),
        ("s3://", "say s3://bucket/folder"),
        ("s3://bucket/a/../b", "say s3://bucket/folder"),
        ("s3://bucket//b", "say s3://bucket/folder"),
        ("https://host/x", "cannot be a folder that is written to"),
    ],
)
def test_what_can_be_no_place_is_told_in_one_line_without_its_secret(s3: Store, uri: str, what: str) -> None:
    with pytest.raises(UserError) as told:
        remote.place(uri)
    assert what in str(told.value)
    assert "hunter2" not in str(told.value)
    assert "\n" not in str(told.value)


def test_a_file_is_brought_when_it_is_another_there_or_here_and_not_else(s3: Store) -> None:
    path = remote.place(f"{s3.uri}/a/b.txt")
    put(f"{s3.uri}/a/b.txt", "one")
    assert remote.fetch(path).read_text() == "one"
    inode = path.stat().st_ino
    assert remote.fetch(path).stat().st_ino == inode
    put(f"{s3.uri}/a/b.txt", "two")
    assert remote.fetch(path).read_text() == "two"
    path.write_text("own")  # as long as it was
    assert remote.fetch(path).read_text() == "two"
    store.delete([f"{s3.uri}/a/b.txt"])
    with pytest.raises(FileNotFoundError):
        remote.fetch(path)
    assert not path.exists()


def test_what_was_pushed_is_not_brought_again(s3: Store) -> None:
    path = remote.place(f"{s3.uri}/a.txt")
    path.parent.mkdir(parents=True)
    path.write_text("one")
    remote.push(path)
    inode = path.stat().st_ino
    assert s3.files() == {"a.txt": b"one"}
    assert remote.fetch(path).stat().st_ino == inode


def test_another_node_has_a_mirror_of_its_own(s3: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = RunFolder(remote.place(f"{s3.uri}/run"))
    put(f"{s3.uri}/run/run.json", "{}")
    packed = pickle.dumps(folder)
    assert str(tmp_path).encode() not in packed
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "other"))
    arrived = pickle.loads(packed)
    assert arrived.root.is_relative_to(tmp_path / "other")
    assert remote.fetch(arrived.record).read_text() == "{}"
    assert pickle.loads(pickle.dumps(RunFolder(tmp_path))) == RunFolder(tmp_path)


def test_a_tree_is_brought_by_pattern_and_what_is_gone_there_goes_here(s3: Store) -> None:
    root = remote.place(f"{s3.uri}/run")
    for name in ("rows/a/0.done", "rows/a/0.parquet", "rows/b/0.done", "top.done"):
        put(f"{s3.uri}/run/{name}", name)
    found = remote.fetch_tree(root / "rows", "*/*.done")
    assert found == [root / "rows/a/0.done", root / "rows/b/0.done"]
    assert [path.read_text() for path in found] == ["rows/a/0.done", "rows/b/0.done"]
    assert not (root / "rows/a/0.parquet").exists()
    store.delete([f"{s3.uri}/run/rows/a/0.done"])
    assert remote.fetch_tree(root / "rows", "*/*.done") == [root / "rows/b/0.done"]
    assert not (root / "rows/a/0.done").exists()
    assert remote.paths(root, "**/*.done") == [root / "rows/b/0.done", root / "top.done"]
    assert remote.names(root) == ["rows", "top.done"]
    assert remote.exists(root / "rows")
    assert not remote.exists(root / "nothing")
    remote.remove(root / "rows", root / "top.done", root / "never")
    assert s3.files() == {}
    assert not (root / "rows").exists()


def test_a_local_folder_is_used_in_place(tmp_path: Path) -> None:
    for name in ("a/0.done", "b.done"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    remote.push(tmp_path / "b.done")
    assert remote.fetch(tmp_path / "b.done") == tmp_path / "b.done"
    assert remote.fetch_tree(tmp_path, "**/*.done") == [tmp_path / "a/0.done", tmp_path / "b.done"]
    assert remote.names(tmp_path) == ["a", "b.done"]
    remote.remove(tmp_path / "a", tmp_path / "b.done")
    assert not list(tmp_path.iterdir())


def test_who_holds_a_folder_knows_it_without_asking(s3: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    root = remote.place(f"{s3.uri}/run")
    put(f"{s3.uri}/run/rows/0.done", "{}")
    asked: list[str] = []
    with remote.holding(root, lambda: asked.append("a write")):
        assert remote.known(root / "rows/0.done").read_text() == "{}"
        monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")  # nobody is there
        store.at(s3.uri)[0].clear_instance_cache()
        assert remote.known(root / "rows/0.done").read_text() == "{}"
        assert remote.is_known(root / "rows")
        assert not remote.is_known(root / "rows/1.done")
        with pytest.raises(FileNotFoundError):
            remote.known(root / "rows/1.done")
        monkeypatch.setenv("AWS_ENDPOINT_URL", s3.endpoint)
        store.at(s3.uri)[0].clear_instance_cache()
        assert asked == []
        remote.put(root / "rows/1.done", b"{}")
        assert asked == ["a write"]
        assert remote.is_known(root / "rows/1.done")
