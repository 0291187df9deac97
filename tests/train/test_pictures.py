import hashlib
import io
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from sote.cluster import recipe as recipes
from sote.cluster.errors import SourceError
from sote.data import places
from sote.data.inputs import encoder_input
from sote.data.recipe import CurateRecipe, DecodePart, LatentsPart
from sote.train import pictures
from sote.train.pictures import Pictures
from sote.train.rows import Files, Needs, Rows, read_rows

RULE = DecodePart(min_pixels=1)


def _rows(uri: str, data: bytes, crop: list[int], *, offset: int | None = None, size: int | None = None) -> Rows:
    """One row whose picture is `data`."""
    id = pa.chunked_array([[hashlib.sha256(data).hexdigest()]])
    columns = (pa.chunked_array([pa.array([value])]) for value in (uri, offset, size))
    made = Files(*columns, crop=np.array([crop], np.int32))
    zero = np.zeros(1, np.int64)
    return Rows(id, None, zero + 1, zero, ("64x64",), files=made)  # type: ignore[arg-type]


def _png(width: int = 80, height: int = 60, mode: str = "RGB", **options: object) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    there = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(there, "png", **options)
    return there.getvalue()


def test_a_picture_is_cut_as_the_latents_pass_cuts_it(tmp_path: Path) -> None:
    path, data = tmp_path / "a.png", _png()
    path.write_bytes(data)
    found = Pictures(_rows(str(path), data, [10, 0, 70, 60]), RULE).read(0, width=32, height=32)
    expected = encoder_input(Image.open(path), box=(10, 0, 70, 60), width=32, height=32)
    assert found.dtype == np.uint8
    assert np.array_equal(found, expected)


def test_a_picture_is_shown_upright_and_on_white(tmp_path: Path) -> None:
    turned = Image.Exif()
    turned[0x0112] = 6
    data = _png(exif=turned.tobytes())
    (tmp_path / "a.png").write_bytes(data)
    found = Pictures(_rows(str(tmp_path / "a.png"), data, [0, 0, 60, 80]), RULE).read(0, width=60, height=80)
    assert np.array_equal(found, np.rot90(np.array(Image.open(tmp_path / "a.png")), k=-1))
    clear = io.BytesIO()
    Image.new("RGBA", (40, 40), (0, 0, 0, 0)).save(clear, "png")
    (tmp_path / "b.png").write_bytes(clear.getvalue())
    rows = _rows(str(tmp_path / "b.png"), clear.getvalue(), [0, 0, 40, 40])
    assert (Pictures(rows, RULE).read(0, width=20, height=20) == 255).all()


def test_the_encoders_input_has_32_pixels_for_each_cell() -> None:
    assert pictures.encoder_size(1024, 768, 32.0) == (1024, 768)
    assert pictures.encoder_size(1024, 1024, 42.67) == (768, 768)  # Stability's published pair


def test_every_picture_of_a_curate_run_is_found(pictured: Path) -> None:
    rows = read_rows(pictured, needs=Needs(pictures=True))
    source = Pictures(rows, RULE)
    for row in range(len(rows)):
        width, height = (int(side) for side in rows.buckets[rows.bucket[row]].split("x"))
        assert rows.files is not None
        whole = np.array(Image.open(rows.files.uri[row].as_py()))
        assert np.array_equal(source.read(row, width=width, height=height), whole)


@pytest.mark.parametrize("knows_offset", [True, False])
def test_a_picture_may_lie_in_a_tar(tmp_path: Path, knows_offset: bool) -> None:
    data = _png()
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        member = tarfile.TarInfo("x/1.png")
        member.size = len(data)
        tar.addfile(member, io.BytesIO(data))
        offset = member.offset + 512
    uri = places.in_tar("x/1.png", str(tmp_path / "a.tar"))
    place = {"offset": offset, "size": len(data)} if knows_offset else {}
    found = Pictures(_rows(uri, data, [0, 0, 80, 60], **place), RULE).read(0, width=80, height=60)
    assert found.shape == (60, 80, 3)


def test_a_picture_that_is_gone_broken_or_another_stops_the_training(tmp_path: Path) -> None:
    path, data = tmp_path / "a.png", _png()
    rows, name = _rows(str(path), data, [0, 0, 80, 60]), hashlib.sha256(data).hexdigest()

    def refused(made: Rows = rows) -> str:
        with pytest.raises(SourceError) as found:
            Pictures(made, RULE).read(0, width=32, height=32)
        assert "\n" not in str(found.value)
        return str(found.value)

    assert refused() == f"{path}: picture {name}: is gone; bring it back, or curate again"
    path.write_bytes(_png(81))
    assert f"{path}: picture {name}: has changed since it was curated" in refused()
    path.write_bytes(data[:-200])
    cut = _rows(str(path), data[:-200], [0, 0, 80, 60])
    assert "cannot be used any more (truncated" in refused(cut)
    path.write_bytes(data)
    assert "cannot be used any more (box" in refused(_rows(str(path), data, [0, 0, 81, 60]))
    path.unlink()
    path.mkdir()
    assert f"picture {name}: cannot be read (Is a directory)" in refused()


def test_rows_without_pictures_are_a_mistake(curated: Path) -> None:
    with pytest.raises(ValueError, match="not of pictures"):
        Pictures(read_rows(curated), RULE)


def test_a_curate_runs_own_rules_count(tmp_path: Path) -> None:
    assert pictures.rules(str(tmp_path)) == (RULE, LatentsPart())
    values = {"run": "r", "sources": [{"name": "a", "kind": "plain", "path": "p"}]}
    made = CurateRecipe.model_validate(values | {"decode": {"min_pixels": 5}, "latents": {"resolution": 512}})
    (tmp_path / "recipe.toml").write_text(recipes.dumps(made))
    rule, part = pictures.rules(str(tmp_path))
    assert (rule.min_pixels, part.resolution) == (5, 512)
    cut = pictures.cut(part)
    assert (cut.resolution, cut.step) == (512, 64)
    other = made.model_copy(update={"latents": LatentsPart(resolution=256)})
    (tmp_path / "recipe.curate.toml").write_text(recipes.dumps(other))
    assert pictures.rules(str(tmp_path))[1].resolution == 256
    (tmp_path / "recipe.curate.toml").write_text("run = 3")
    with pytest.raises(SourceError, match=r"recipe\.curate\.toml: data\.curated: cannot be read as the recipe"):
        pictures.rules(str(tmp_path))
