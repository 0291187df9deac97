"""Pictures side by side in a notebook."""

from PIL import Image

from sote.serve import grids


def plain(colour: str, side: int = 64) -> Image.Image:
    return Image.new("RGB", (side, side), colour)


def test_every_picture_stands_in_its_row_with_its_name_below() -> None:
    rows = {"seed 7": [("guidance 1", plain("red")), ("guidance 4", plain("blue"))], "seed 8": [("only", plain("red"))]}
    shown = grids.grid("Guidance", rows, lead="a <red> circle")._repr_html_()
    assert ">Guidance</h2>" in shown
    assert "a &lt;red&gt; circle" in shown
    assert [shown.count(f"<h3>{name}</h3>") for name in rows] == [1, 1]
    assert shown.count("<img") == 3
    assert [shown.count(f"<figcaption>{name}</figcaption>") for name in ("guidance 1", "guidance 4", "only")] == [1] * 3
    assert shown.index("<h3>seed 7") < shown.index("guidance 4</fig") < shown.index("<h3>seed 8") < shown.index("only<")


def test_columns_of_all_rows_stand_below_each_other() -> None:
    rows = {"three": [(str(at), plain("red")) for at in range(3)], "one": [("0", plain("blue"))]}
    assert grids.grid("Steps", rows).body.count("repeat(3,") == len(rows)


def test_a_row_without_a_name_has_nothing_above_it() -> None:
    assert "<h3" not in grids.grid("Seeds", {"": [("seed 7", plain("red"))]}).body


def test_a_large_picture_is_made_smaller() -> None:
    shown = grids.grid("Large", {"": [("one", Image.effect_noise((1024, 768), 80))]}).body
    assert 'width="1024"' not in shown
    assert len(shown) < 4 / 3 * grids.BYTES + 1000


def test_a_grid_of_nothing_is_its_title() -> None:
    shown = grids.grid("Nothing", {})._repr_html_()
    assert ">Nothing</h2>" in shown
    assert "<img" not in shown
