import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import fsspec
import numpy as np
import pytest
import torch
from fsspec.implementations.memory import MemoryFileSystem
from safetensors.torch import load_file

from sote.cluster.errors import RunFailed, SourceError
from sote.data.latentfile import latent_file
from sote.train import latents
from sote.train.latents import Store
from sote.train.recipe import DataPart
from sote.train.rows import Needs, Rows, read_rows
from tests.train.conftest import write_curated

BOTH = Needs(latents=True, vqgan=True)
SHARD = "256x256/00000.safetensors"
ODD = "320x192/00000.safetensors"


class Flaky(MemoryFileSystem):
    """Files in memory whose server fails `failures` times, and says what was asked of it."""

    protocol = "flaky"
    store: ClassVar[dict[str, Any]] = {}
    failures: ClassVar[int] = 0
    asked: ClassVar[list[tuple[str, int | None, int | None]]] = []

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return str(super()._strip_protocol(path.removeprefix("flaky://")))

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **kwargs: Any) -> bytes:
        if Flaky.failures:
            Flaky.failures -= 1
            raise ConnectionResetError(104, "Connection reset by peer", path)
        Flaky.asked.append((path, start, end))
        return bytes(super().cat_file(path, start=start, end=end, **kwargs))


@pytest.fixture
def flaky(curated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The curate run on such a server."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    fsspec.register_implementation("flaky", Flaky, clobber=True)
    system = fsspec.filesystem("flaky")
    for path in curated.rglob("*"):
        if path.is_file():
            system.pipe(f"/run/{path.relative_to(curated)}", path.read_bytes())
    Flaky.failures = 0
    Flaky.asked.clear()
    yield "flaky://run"
    system.rm("/run", recursive=True)


def _of_bucket(rows: Rows, name: str) -> list[int]:
    return np.flatnonzero(rows.bucket == rows.buckets.index(name)).tolist()


def _check(folder: Path | str, needs: Needs = BOTH, **part: Any) -> latents.LatentFacts:
    return latents.check(read_rows(folder, needs=needs), Store(folder), DataPart(curated=str(folder), **part))


def _rewritten(folder: Path, shard: str, **says: str) -> None:
    """The file again, saying something else of itself."""
    path = folder / "latents" / shard
    data = path.read_bytes()
    length = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8 : 8 + length])
    kind = {"F16": "float16", "BF16": "bfloat16"}[header["latents"]["dtype"]]
    facts = header["__metadata__"] | says
    shape = header["latents"]["shape"]
    path.write_bytes(latent_file(data[8 + length :], dtype=says.get("dtype", kind), shape=shape, facts=facts))


@pytest.mark.parametrize("where", ["here", "there"])
def test_latents_are_those_that_the_catalogue_names(curated: Path, flaky: str, where: str) -> None:
    folder = str(curated) if where == "here" else flaky
    rows, store = read_rows(folder, needs=BOTH), Store(folder)
    for places in (rows.latents, rows.vqgan):
        assert places is not None
        mine = _of_bucket(rows, "320x192")[::-1]
        mine = [*mine, mine[2]]  # in any order, and twice
        found_NChw = store.read(places, mine)
        whole_NChw = load_file(curated / "latents" / places.shards[places.which[mine[0]]])["latents"]
        assert found_NChw.dtype == torch.float32
        assert torch.equal(found_NChw, whole_NChw[places.offset[mine]].float())


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_any_type_of_numbers_is_read(tmp_path: Path, dtype: str) -> None:
    write_curated(tmp_path)
    rows = read_rows(tmp_path)
    values_NChw = torch.randn(14, 16, 8, 8).to(getattr(torch, dtype))
    says = {"bucket": "256x256", "dtype": dtype, "compression": "32.0", "encoder_sha256": "ab" * 32}
    data = values_NChw.contiguous().view(torch.uint8).numpy().tobytes()
    (tmp_path / "latents" / SHARD).write_bytes(latent_file(data, dtype=dtype, shape=[14, 16, 8, 8], facts=says))
    mine = _of_bucket(rows, "256x256")[:3]
    assert rows.latents is not None
    assert torch.equal(Store(tmp_path).read(rows.latents, mine), values_NChw[rows.latents.offset[mine]].float())


def test_of_a_file_only_its_header_and_the_rows_are_read_and_near_rows_at_once(flaky: str) -> None:
    rows, store = read_rows(flaky), Store(flaky, free_share=1.0)
    mine = _of_bucket(rows, "256x256")
    assert rows.latents is not None
    Flaky.asked.clear()
    store.read(rows.latents, [mine[0], mine[1], mine[3]])
    store.read(rows.latents, [mine[5]])
    header, first, second = Flaky.asked
    shard, size = store.facts(SHARD), 2 * 16 * 8 * 8
    assert header[1:] == (0, latents.HEADER_BYTES)
    assert first[1:] == (shard.begin, shard.begin + 4 * size)  # with the row between them
    assert second[1:] == (shard.begin + 5 * size, shard.begin + 6 * size)


def test_a_header_of_any_length_is_read(tmp_path: Path) -> None:
    write_curated(tmp_path)
    _rewritten(tmp_path, SHARD, ids=json.dumps(["ab" * 32] * 500))
    assert Store(tmp_path).facts(SHARD).begin > latents.HEADER_BYTES
    assert _check(tmp_path).compression == 32


def test_a_network_that_gets_well_is_borne_with(flaky: str) -> None:
    rows = read_rows(flaky)
    Flaky.failures = 2
    assert rows.latents is not None
    assert len(Store(flaky, waits=(0.0, 0.0)).read(rows.latents, _of_bucket(rows, "256x256"))) == 14


def test_a_network_that_does_not_get_well_is_one_clear_error(flaky: str) -> None:
    rows = read_rows(flaky)
    Flaky.failures = 99
    assert rows.latents is not None
    with pytest.raises(RunFailed, match=r"flaky://run/latents/256x256.* tried 3 times .*Connection reset") as found:
        Store(flaky, waits=(0.0, 0.0), free_share=1.0).read(rows.latents, _of_bucket(rows, "256x256"))
    assert "\n" not in str(found.value)
    Flaky.failures = 0


def test_a_check_says_what_all_files_have_in_common(curated: Path, flaky: str) -> None:
    for folder in (curated, flaky):
        assert _check(folder) == latents.LatentFacts(32.0, "ab" * 32, "float16", 16)
        assert _check(folder, Needs(vqgan=True)) == latents.LatentFacts(4.0, "cd" * 32, "float16", 4)
    assert _check(curated, compression=32.0).compression == 32


def test_a_file_that_is_gone_from_a_server_is_named(flaky: str) -> None:
    rows = read_rows(flaky)
    fsspec.filesystem("flaky").rm(f"/run/latents/{ODD}")
    with pytest.raises(SourceError, match=rf"flaky://run/latents/{ODD}: data\.curated: no such latent file"):
        latents.check(rows, Store(flaky), DataPart(curated=flaky))


def _missing(folder: Path) -> None:
    (folder / "latents" / ODD).unlink()


def _cut(folder: Path) -> None:
    path = folder / "latents" / ODD
    path.write_bytes(path.read_bytes()[:-100])


def _broken(folder: Path) -> None:
    (folder / "latents" / ODD).write_bytes(b"not safetensors at all")


def _swapped(folder: Path) -> None:
    path = folder / "latents" / ODD
    path.write_bytes((folder / "latents" / SHARD).read_bytes())


def _shorter(folder: Path) -> None:
    header = {"bucket": "320x192", "dtype": "float16", "compression": "32.0", "encoder_sha256": "ab" * 32}
    data = latent_file(b"\0" * (2 * 16 * 60), dtype="float16", shape=[1, 16, 6, 10], facts=header)
    (folder / "latents" / ODD).write_bytes(data)


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (_missing, r"320x192/00000\.safetensors: data\.curated: no such latent file; run `sote curate`"),
        (_cut, r"320x192/00000\.safetensors: data\.curated: is cut off, \d+ bytes of \d+"),
        (_broken, r"320x192/00000\.safetensors: data\.curated: is no latent file"),
        (_swapped, r"320x192/00000\.safetensors: data\.curated: is of bucket 256x256, the catalogue says 320x192"),
        (_shorter, r"320x192/00000\.safetensors: data\.curated: holds 1 latents, the catalogue names number 7"),
        (lambda folder: _rewritten(folder, ODD, encoder_sha256="ef" * 32), "two kinds: this is .*encoder efefefefef"),
        (lambda folder: _rewritten(folder, ODD, compression="42.67"), "has latents of 10x6 cells, .* 42.67 has 7x4"),
        (lambda folder: _rewritten(folder, ODD, dtype="bfloat16"), "two kinds: this is .*bfloat16"),
        (lambda folder: _rewritten(folder, f"vqgan/{ODD}", vqgan_sha256="ef" * 32), "two kinds: this is .*efefefefef"),
    ],
)
def test_a_file_that_is_not_as_the_others_is_named(tmp_path: Path, spoil: Any, says: str) -> None:
    write_curated(tmp_path)
    spoil(tmp_path)
    with pytest.raises(SourceError, match=says) as found:
        _check(tmp_path)
    assert "\n" not in str(found.value)


def test_latents_of_another_compression_than_asked_for_are_refused(curated: Path) -> None:
    with pytest.raises(SourceError, match=r"data\.compression: is 42\.67, but these latents are of 32 pixels a cell"):
        _check(curated, compression=42.67)


def test_a_file_that_is_cut_while_training_is_named(tmp_path: Path) -> None:
    write_curated(tmp_path)
    rows = read_rows(tmp_path)
    path = tmp_path / "latents" / SHARD
    path.write_bytes(path.read_bytes()[:-100])
    assert rows.latents is not None
    with pytest.raises(SourceError, match=r"256x256/00000\.safetensors: data\.curated: ends before its row 13"):
        Store(tmp_path).read(rows.latents, _of_bucket(rows, "256x256"))
