"""What decoding makes of a row: its columns, its inputs, its errors."""

import hashlib
import io
import os
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sote.data import czkawka, decode, hashes, inputs, places, scenes
from sote.data.inputs import InputShapes
from sote.data.recipe import DecodePart
from sote.data.schema import written_by

RULE = DecodePart(min_pixels=1000, max_pixels=1_000_000)
SHAPES = InputShapes(tagger_side=16, aesthetic_size=(20, 12), quality_side=8)


def saved(image: Image.Image, form: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def scene() -> Image.Image:
    return scenes.paint(scenes.plan(1, 3), scale=0.3)


@pytest.fixture(scope="module")
def large() -> Image.Image:
    return scenes.paint(scenes.plan(1, 4))


def row(path: Path, **more: Any) -> dict[str, Any]:
    return {"uri": str(path), "offset": None, "bytes": None, "index_skip": None, "index_error": None, **more}


def decoded(path: Path, rule: DecodePart = RULE, **more: Any) -> dict[str, Any]:
    return decode.decode_row(row(path, **more), rule=rule, shapes=SHAPES)


def test_a_sound_row_has_every_column_of_the_stage_and_its_inputs(scene: Image.Image, tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    data = saved(scene, "PNG")
    path.write_bytes(data)
    found = decoded(path)
    columns = set(written_by("decode").names) - {"row"}
    assert set(found) == columns | {"tagger_input", "aesthetic_input", "quality_input", "sound"}
    assert found["sound"]
    assert found["id"] == hashlib.sha256(data).hexdigest()
    assert (found["format"], found["mode"], found["frames"]) == ("png", "RGB", 1)
    assert (found["width"], found["height"]) == scene.size
    assert (found["phash"], found["thumb"]) == (hashes.phash(scene), hashes.thumb(scene))
    assert found["decode_error"] is found["decode_skip"] is None
    assert found["tagger_input"].any()


@pytest.mark.parametrize("orientation", [1, 2, 6, 7])
@pytest.mark.parametrize(("form", "mode"), [("JPEG", "RGB"), ("JPEG", "L"), ("WEBP", "RGB"), ("PNG", "RGB")])
def test_a_row_has_the_pixels_that_open_picture_gives_whichever_reader_made_them(
    scene: Image.Image, tmp_path: Path, form: str, mode: str, orientation: int
) -> None:
    exif = Image.Exif()
    exif[decode.ORIENTATION] = orientation
    path = tmp_path / "a"
    path.write_bytes(saved(scene.convert(mode), form, exif=exif))
    found = decoded(path)
    picture = decode.open_picture(path.read_bytes(), RULE)
    assert (found["width"], found["height"]) == picture.image.size
    assert (found["pixel_id"], found["phash"]) == (hashes.pixel_id(picture.image), hashes.phash(picture.image))
    assert found["czkawka"] == czkawka.gradient_hash(np.asarray(picture.image))
    assert (found["tagger_input"] == inputs.tagger_input(picture.image, side=16)).all()
    assert found["thumb_deviation"] == hashes.thumb_deviation(found["thumb"])


def test_of_a_transparent_picture_czkawka_sees_the_hidden_colours_and_the_others_white(tmp_path: Path) -> None:
    ramp = np.repeat(np.linspace(0, 250, 170).astype(np.uint8)[None, :], 160, axis=0)
    hidden = np.dstack([ramp, ramp, ramp, np.zeros_like(ramp)])
    exif = Image.Exif()
    exif[decode.ORIENTATION] = 2  # the other way round
    path = tmp_path / "a.png"
    path.write_bytes(saved(Image.fromarray(hidden), "PNG", exif=exif))
    found = decoded(path)
    assert found["czkawka"] == bytes(32)
    assert found["thumb"] == b"\xff" * 768
    path.write_bytes(saved(Image.fromarray(hidden), "PNG"))
    assert decoded(path)["czkawka"] == b"\xff" * 32


def test_a_picture_is_what_it_holds_and_not_what_it_is_called(scene: Image.Image, tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(saved(scene, "JPEG"))
    assert (decoded(path)["format"], decoded(path)["sound"]) == ("jpeg", True)


@pytest.mark.parametrize(("keep", "reason"), [(0.5, "truncated"), (0.98, "truncated"), (0, "empty file")])
@pytest.mark.parametrize("form", ["JPEG", "WEBP", "PNG"])
def test_a_row_that_is_cut_off_says_so_whichever_reader_met_it(
    large: Image.Image, tmp_path: Path, form: str, keep: float, reason: str
) -> None:
    path = tmp_path / "a"
    data = saved(large, form)
    path.write_bytes(data[: int(len(data) * keep)])
    assert decoded(path, DecodePart())["decode_error"] == f"decode: {reason}"


def test_a_bomb_is_refused_by_its_header(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    rows = bytes((1 + 20_000 // 8) * 20_000)  # each with its filter's number
    path.write_bytes(scenes._png(20_000, 20_000, bits=1, colour=0, rows=rows))  # 400 MP in 50 kB
    assert path.stat().st_size < 60_000
    found = decoded(path, DecodePart())
    assert (found["decode_error"], found["width"]) == ("decode: header says more than 100000000 pixels", 20_000)


def test_a_row_in_a_tar_is_read_where_it_lies(scene: Image.Image, tmp_path: Path) -> None:
    data = saved(scene, "PNG")
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        header = tarfile.TarInfo("deep/a.png")
        header.size = len(data)
        tar.addfile(header, io.BytesIO(data))
    inside = row(tmp_path) | {"uri": places.in_tar("deep/a.png", str(tmp_path / "a.tar"))}
    known = inside | {"offset": 512, "bytes": len(data)}  # a header is one block of 512 bytes
    found = [decode.decode_row(one, rule=RULE, shapes=InputShapes()) for one in (inside, known)]
    assert found[0] == found[1]
    assert (found[0]["id"], found[0]["sound"]) == (hashlib.sha256(data).hexdigest(), True)
    over = decode.decode_row(known, rule=replace_bytes(len(data) - 1), shapes=InputShapes())
    assert (over["id"], over["sound"]) == (found[0]["id"], False)
    assert decode.opens(inside)


def test_a_broken_row_keeps_its_id_and_header_and_its_inputs_are_zeros(large: Image.Image, tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(saved(large, "JPEG")[:-500])
    found = decoded(path, DecodePart())
    assert not found["sound"]
    assert found["id"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert found["decode_error"] == "decode: truncated"
    assert (found["format"], found["width"], found["phash"]) == ("jpeg", large.width, None)
    assert found["tagger_input"].shape == (16, 16, 3)
    assert found["aesthetic_input"].shape == (12, 20, 3)
    assert not found["quality_input"].any()


def test_a_row_skipped_by_rule_has_a_skip_and_no_error(scene: Image.Image, tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(saved(scene, "PNG"))
    found = decoded(path, DecodePart())
    assert (found["decode_skip"], found["decode_error"]) == ("decode: fewer than 768000 pixels", None)
    assert not found["sound"]


def test_a_file_that_is_gone_or_closed_is_an_error_of_its_row(tmp_path: Path) -> None:
    gone = decoded(tmp_path / "gone.png")
    assert (gone["decode_error"], gone["id"], gone["sound"]) == ("decode: file vanished", None, False)
    assert decoded(tmp_path)["decode_error"] == "decode: file could not be read (EISDIR)"
    loop = tmp_path / "loop.png"
    loop.symlink_to(loop)
    assert decoded(loop)["decode_error"] == "decode: file could not be read (ELOOP)"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_without_permission_is_an_error_of_its_row(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.touch(mode=0)
    assert decoded(path)["decode_error"] == "decode: no permission to read the file"


def test_a_file_of_too_many_bytes_is_skipped_with_its_id(scene: Image.Image, tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    data = saved(scene, "PNG")
    path.write_bytes(data)
    found = decoded(path, replace_bytes(len(data) - 1))
    assert found["decode_skip"] == f"decode: file of more than {len(data) - 1} bytes"
    assert found["id"] == hashlib.sha256(data).hexdigest()
    assert decoded(path, replace_bytes(len(data)))["sound"]


def replace_bytes(limit: int) -> DecodePart:
    return RULE.model_copy(update={"max_file_bytes": limit})


def test_what_the_index_skipped_gets_its_id_and_nothing_else(scene: Image.Image, tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    path.write_bytes(saved(scene, "PNG"))
    found = decoded(path, index_skip="index: not a picture file (.mp4)")
    assert found["id"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert {name: found[name] for name in ("format", "phash", "decode_skip", "decode_error", "sound")} == {
        "format": None,
        "phash": None,
        "decode_skip": None,
        "decode_error": None,
        "sound": False,
    }


def test_a_row_with_an_error_of_the_index_is_opened_but_not_sound(scene: Image.Image, tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(saved(scene, "PNG"))
    found = decoded(path, index_error="index: sidecar is not valid JSON")
    assert found["phash"] == hashes.phash(scene)
    assert not found["sound"]
    assert not found["tagger_input"].any()


def test_inputs_that_are_not_asked_for_are_absent(scene: Image.Image, tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(saved(scene, "PNG"))
    found = decode.decode_row(row(path), rule=RULE, shapes=InputShapes(quality_side=8))
    assert "quality_input" in found
    assert "tagger_input" not in found


def test_a_probe_opens_what_is_a_picture_by_its_header(scene: Image.Image, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(saved(scene, "PNG"))
    (tmp_path / "b.png").write_bytes(b"<html>no</html>" * 9)
    found = {name: decode.opens(row(tmp_path / name)) for name in ("a.png", "b.png", "gone.png")}
    assert found == {"a.png": True, "b.png": False, "gone.png": False}
