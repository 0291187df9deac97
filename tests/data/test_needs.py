"""What a pass asks of a device: the weights that it loads and room beside them."""

from pathlib import Path

from sote.cluster import devices
from sote.data import needs
from sote.data.recipe import CurateRecipe


def recipe(tmp_path: Path, **parts: object) -> CurateRecipe:
    source = {"name": "mine", "path": str(tmp_path)}
    return CurateRecipe.model_validate({"run": str(tmp_path / "run"), "sources": [source], **parts})


def test_a_reader_asks_for_its_weights_in_one_layout_and_room_beside_them(tmp_path: Path) -> None:
    folder = tmp_path / "llava"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    for name, size in (("a.safetensors", 700), ("b.safetensors", 800), ("pytorch_model.bin", 1400)):
        (folder / name).write_bytes(bytes(size))
    assert needs.text(recipe(tmp_path, text={"reader": str(folder)})) == 1500 + needs.TEXT


def test_what_is_left_out_or_done_by_a_server_asks_for_no_device(tmp_path: Path) -> None:
    assert needs.text(recipe(tmp_path)) == needs.latents(recipe(tmp_path)) == 0
    assert needs.text(recipe(tmp_path, text={"url": "http://127.0.0.1:1/v1"})) == 0


def test_the_cards_that_the_published_run_used_suffice_for_what_they_did() -> None:
    demands = {demand.name: demand for demand in needs.demands()}
    arc = {"accel": "xpu", "device-memory-gb": "16"}  # the author tagged and read with an Arc A770
    assert all(devices.suffices(arc, demand.device_bytes) for demand in demands.values())
    assert not devices.suffices({"device-memory-gb": "12"}, demands["text"].device_bytes)
    assert devices.suffices({"device-memory-gb": "4"}, demands["tag"].device_bytes)
