import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
from PIL import Image

from sote.cluster import store
from sote.cluster.errors import Unreachable
from sote.data import brought, decode
from sote.data.decoder import Decoder
from sote.data.inputs import InputShapes
from sote.data.recipe import DecodePart

RULE = DecodePart(min_pixels=1, max_file_bytes=50_000)
FILES = ("a.png", "broken.png", "empty.png", "large.png", "film.mp4")


@pytest.fixture(scope="module")
def decoder() -> Iterator[Decoder]:
    with Decoder(RULE, InputShapes(), slice_rows=8) as made:
        yield made


def rows(place: str) -> list[dict[str, Any]]:
    skip = {"film.mp4": "index: not a picture"}
    names = (*FILES, "gone.png")
    return [
        {"uri": f"{place}/{name}", "offset": None, "bytes": None, "index_skip": skip.get(name), "index_error": None}
        for name in names
    ]


def test_pictures_of_a_store_are_decoded_as_local_ones_though_the_decoder_cannot_reach_it(
    decoder: Decoder, tmp_path: Path
) -> None:
    drawn = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)).save(drawn, "PNG")
    contents = (drawn.getvalue(), b"no picture", b"", bytes(60_000), b"film")
    system = fsspec.filesystem("memory")  # of this process alone
    for name, data in zip(FILES, contents, strict=True):
        (tmp_path / name).write_bytes(data)
        system.pipe_file(f"/brought/{name}", data)
    here, inputs_here = decoder.slice(rows(str(tmp_path)))
    there, inputs_there = brought.decoded(decoder, rows("memory://brought"), rule=RULE)
    assert here == there
    assert [row["sound"] for row in there] == [True, False, False, False, False, False]
    assert there[-1]["decode_error"] == "decode: file vanished"
    assert all(np.array_equal(inputs_here[name], inputs_there[name]) for name in inputs_here)


def test_a_store_that_stays_away_ends_the_run(decoder: Decoder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "FIRST_WAIT_SECONDS", 0.0)

    def down(*_: object, **__: object) -> bytes:
        raise TimeoutError("no answer")

    monkeypatch.setattr(type(fsspec.filesystem("memory")), "cat_file", down)
    with pytest.raises(Unreachable, match=r"^memory://brought/a\.png: no answer"):
        brought.decoded(decoder, rows("memory://brought")[:1], rule=RULE)


def test_only_what_lies_in_an_object_store_is_brought() -> None:
    afar = ("s3://b/a.png", "tar://a.png::gs://b/a.tar", "parquet://3::s3://b/a.parquet")
    near = ("/a.png", "tar://a.png::/b/a.tar", "http://b/a.png", "/s3:/a.png")
    assert all(map(brought.is_afar, afar))
    assert not any(map(brought.is_afar, near))
    assert decode.UNKNOWN["id"] is None
