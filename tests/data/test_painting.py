"""How scenes look, and which tags are true of them."""

from dataclasses import replace

import numpy as np
from PIL import Image

from sote.data import painting
from sote.data.painting import Background, Scene, Shape


def scene(*shapes: Shape) -> Scene:
    return Scene(
        width=200,
        height=100,
        background=Background("simple", "blue"),
        shapes=shapes,
        character=None,
        character_at=None,
        word=None,
        word_y=0.5,
        artist="somebody",
        year=2012,
    )


def test_a_shape_has_its_colour_at_its_place_and_the_background_is_around_it() -> None:
    picture = painting.paint(scene(Shape("circle", "green", 0.25, 0.5, 0.2)))
    assert picture.size == (200, 100)
    assert picture.getpixel((50, 50)) == painting.COLOURS["green"]
    assert picture.getpixel((150, 50)) == painting.BACKGROUND_COLOURS["blue"]


def test_every_kind_of_shape_covers_its_own_centre_and_keeps_inside_its_radius() -> None:
    for kind in painting.KINDS:
        pixels = np.asarray(painting.paint(scene(Shape(kind, "red", 0.5, 0.5, 0.3))))
        assert tuple(pixels[50, 100]) == painting.COLOURS["red"], kind
        assert (pixels[:, :60] == painting.BACKGROUND_COLOURS["blue"]).all(), kind


def test_every_pattern_but_simple_shows() -> None:
    plain = np.asarray(painting.paint(scene()))
    for pattern in painting.PATTERNS:
        drawn = np.asarray(painting.paint(replace(scene(), background=Background(pattern, "blue", 30))))
        assert (drawn != plain).any() == (pattern not in ("simple", "transparent")), pattern


def test_tags_say_what_is_in_the_picture() -> None:
    look = painting.LOOKS[0]
    at = Shape(look.body, look.colour, 0.5, 0.5, 0.2)
    full = replace(
        scene(Shape("star", "red", 0.1, 0.1, 0.1), Shape("star", "pink", 0.9, 0.9, 0.1)),
        character=look.name,
        character_at=at,
        word="TEA",
    )
    assert set(full.tags) == {
        "solo",
        "smile",
        "english_text",
        "simple_background",
        "blue_background",
        "2_shapes",
        "star",
        "red_star",
        "pink_star",
        look.wears,
    }
    assert full.series == look.series
    assert scene().series is None


def test_no_tag_is_listed_twice_and_every_true_tag_is_listed() -> None:
    assert len(set(painting.GENERAL_TAGS)) == len(painting.GENERAL_TAGS)
    for kind in painting.KINDS:
        for colour in painting.COLOURS:
            assert {f"{colour}_{kind}", kind, "1_shape"} <= set(scene(Shape(kind, colour, 0.5, 0.5, 0.1)).tags)


def test_a_word_is_written_in_dark_on_light() -> None:
    plain, written = painting.paint(scene()), painting.paint(replace(scene(), word="HELLO"))
    changed = (np.asarray(plain) != np.asarray(written)).any(axis=2)
    lit = np.asarray(written.convert("L"))[changed]
    assert changed[40:60].mean() > 0.2
    assert lit.min() < 80
    assert lit.max() > 240


def test_scale_changes_the_size_and_not_the_picture() -> None:
    drawn = scene(Shape("heart", "purple", 0.3, 0.4, 0.25))
    small = painting.paint(drawn, scale=0.5)
    assert small.size == (100, 50)
    large = np.asarray(painting.paint(drawn).resize((100, 50)), dtype=np.float32)
    assert np.abs(large - np.asarray(small)).mean() < 2


def test_a_cutout_on_white_is_the_picture_and_hides_magenta_where_nothing_is() -> None:
    drawn = replace(scene(Shape("star", "orange", 0.5, 0.5, 0.3)), background=Background("transparent", "white"))
    cutout = painting.paint_cutout(drawn)
    assert cutout.mode == "RGBA"
    assert cutout.getpixel((2, 2)) == (255, 0, 255, 0)
    alpha = np.asarray(cutout.getchannel("A"))
    assert ((alpha > 0) & (alpha < 255)).any()
    on_white = Image.new("RGBA", cutout.size, (255, 255, 255, 255))
    on_white.alpha_composite(cutout)
    painted = np.asarray(painting.paint(drawn), dtype=np.int16)
    assert np.abs(np.asarray(on_white.convert("RGB")) - painted).max() <= 3
