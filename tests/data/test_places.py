"""What a row's uri names."""

import io
import tarfile
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sote.cluster.errors import SourceError
from sote.data import places

DATA = b"0123456789"


def tar(path: Path, **members: bytes) -> Path:
    with tarfile.open(path, "w") as file:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            file.addfile(info, io.BytesIO(data))
    return path


@pytest.fixture
def memory() -> Iterator[fsspec.AbstractFileSystem]:
    filesystem = fsspec.filesystem("memory")
    yield filesystem
    for name in filesystem.ls("/", detail=False):
        filesystem.rm(name, recursive=True)


def read(uri: str, *, offset: int | None = None, bytes: int | None = None, limit: int | None = None) -> bytes:
    return places.read(uri, offset=offset, bytes=bytes, limit=limit)


def test_a_local_file_is_named_by_its_path_or_a_file_uri(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(DATA)
    assert read(f"{tmp_path}/a.jpg") == read(f"file://{tmp_path}/a.jpg", bytes=10) == DATA


def test_a_file_of_another_file_system_is_read(memory: fsspec.AbstractFileSystem) -> None:
    memory.pipe("/deep/a.jpg", DATA)
    assert read("memory://deep/a.jpg") == DATA
    assert read("memory://deep/a.jpg", limit=3) == DATA[:4]


@pytest.mark.parametrize(("limit", "length"), [(None, 10), (3, 4), (9, 10), (10, 10), (99, 10)])
def test_at_most_one_byte_more_than_the_limit_is_read(tmp_path: Path, limit: int | None, length: int) -> None:
    (tmp_path / "a.jpg").write_bytes(DATA)
    tar(tmp_path / "a.tar", **{"a.jpg": DATA, "b.jpg": b"x" * 20})
    pq.write_table(pa.table({"image": [DATA]}), tmp_path / "a.parquet")
    for uri in ("{}/a.jpg", "tar://a.jpg::{}/a.tar", "parquet://0::{}/a.parquet"):
        assert read(uri.format(tmp_path), limit=limit) == DATA[:length]
    assert read(f"tar://a.jpg::{tmp_path}/a.tar", offset=512, bytes=10, limit=limit) == DATA[:length]


def test_a_tars_member_is_found_without_its_place_too(tmp_path: Path, memory: fsspec.AbstractFileSystem) -> None:
    tar(tmp_path / "a.tar", **{"deep/a.jpg": b"x" * 700, "b.jpg": DATA})
    memory.pipe("/a.tar", (tmp_path / "a.tar").read_bytes())
    for where in (f"{tmp_path}/a.tar", "memory://a.tar"):
        assert read(f"tar://b.jpg::{where}") == DATA
        assert read(f"tar://b.jpg::{where}", offset=2048, bytes=10) == DATA
        assert read(f"tar://deep/a.jpg::{where}") == b"x" * 700


@pytest.mark.parametrize("name", ["a.jpg", "./a.jpg", "100%.jpg", "a::b.jpg", "a:", "%3A::%25.jpg", "ü/ä b.jpg"])
def test_any_name_of_a_member_comes_back_from_its_uri(tmp_path: Path, name: str) -> None:
    where = tar(tmp_path / "odd::name.tar", **{name: DATA})
    uri = places.in_tar(name, str(where))
    assert read(uri) == DATA
    assert places.name(uri) == name.rpartition("/")[2]


def test_a_row_of_parquet_is_read_by_its_number_over_row_groups(tmp_path: Path) -> None:
    cells = [{"bytes": bytes([number]), "path": None} for number in range(5)]
    pq.write_table(pa.table({"image": cells}), tmp_path / "a.parquet", row_group_size=2)
    uri = f"::{tmp_path}/a.parquet"
    assert [read(f"parquet://{number}{uri}") for number in (4, 0, 3)] == [b"\4", b"\0", b"\3"]
    assert read(f"parquet://1{uri}", offset=1) == b"\1"


@pytest.mark.parametrize(
    "uri",
    [
        "{}/no.jpg",
        "tar://no.jpg::{}/a.tar",
        "tar://a.jpg::{}/no.tar",
        "parquet://9::{}/a.parquet",
        "parquet://x::{}/a.parquet",
        "parquet://0::{}/no.parquet",
        "memory://no/such/file.jpg",
    ],
)
def test_what_is_gone_is_not_found(tmp_path: Path, uri: str) -> None:
    tar(tmp_path / "a.tar", **{"a.jpg": DATA})
    pq.write_table(pa.table({"image": [DATA]}), tmp_path / "a.parquet")
    with pytest.raises(FileNotFoundError):
        read(uri.format(tmp_path))


@pytest.mark.parametrize("uri", ["{}", "parquet://1::{}/a.parquet", "parquet://0::{}/text", "tar://a.jpg::{}/cut.tar"])
def test_what_cannot_be_read_is_an_os_error(tmp_path: Path, uri: str) -> None:
    pq.write_table(pa.table({"image": [DATA, None]}), tmp_path / "a.parquet")
    (tmp_path / "text").write_text("not Parquet")
    (tmp_path / "cut.tar").write_bytes(tar(tmp_path / "a.tar", **{"a.jpg": DATA}).read_bytes()[:515])
    with pytest.raises(OSError, match=r"."):
        read(uri.format(tmp_path), offset=512 if "tar:" in uri else None, bytes=10)


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        (
            "gs://bucket/a.jpg",
            "gs://bucket/a.jpg cannot be read: Please install gcsfs to access Google Storage (on every node)",
        ),
        (
            "nonsense://a.jpg",
            "nonsense://a.jpg cannot be read: the protocol nonsense is not known; "
            "name a path, or a URI that fsspec reads (s3, gs, http, ...)",
        ),
    ],
)
def test_a_protocol_that_cannot_be_had_is_the_users_matter(uri: str, message: str) -> None:
    with pytest.raises(SourceError) as caught:
        read(uri)
    assert str(caught.value) == message


def test_names() -> None:
    assert places.name("/a/b.c/d.jpg") == "d.jpg"
    assert places.name("s3://bucket/d.jpg") == "d.jpg"
    assert places.name("https://host/a%20b.jpg") == "a b.jpg"
    assert places.name("/a/a%20b.jpg") == "a%20b.jpg"
    assert places.name("tar://deep/d.jpg::/x/y.tar") == "d.jpg"
    assert places.name("parquet://17::/x/train-00000.parquet") == "train-00000-17"
