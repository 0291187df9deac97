"""The demo's pictures: small drawn scenes as real files, with sidecars as gallery-dl writes them, and the truth.

A scene is a pure function of (seed, index). Among the files are copies, a repainted variant and broken ones.

Kind: pure, but for the files that `draw` writes.
"""

import hashlib
import io
import json
import multiprocessing
import struct
import zlib
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from sote.cluster import storage
from sote.data.painting import BACKGROUND_COLOURS as BACKGROUND_COLOURS
from sote.data.painting import CHARACTERS as CHARACTERS
from sote.data.painting import COLOURS as COLOURS
from sote.data.painting import GENERAL_TAGS as GENERAL_TAGS
from sote.data.painting import KINDS, LOOK_BY_NAME, MOST_SHAPES, PATTERNS, Background, Shape, paint_cutout
from sote.data.painting import Scene as Scene
from sote.data.painting import paint as paint

# About one megapixel each, all above the 768,000 pixels that the recipe asks for by default.
SIZES = ((896, 1152), (1024, 1024), (1152, 896), (832, 1280), (1280, 832), (1344, 768))
ARTISTS = ("Aoi Kazan", "Papercut, Inc.", "mizu_no_e", "水絵 Mie", "Old {Fox}")  # comma and braces on purpose
WORDS = ("HELLO", "OPEN", "RIVER", "TEA", "STAR", "GOOD DAY", "No. 7")
FIRST_YEAR, LAST_YEAR = 2005, 2024  # what the seed's date words span

# How the drawn files are saved, in turn.
FORMS = ("jpeg", "png", "jpeg", "webp", "jpeg", "cutout", "jpeg", "palette", "lossless webp", "rgb 16", "grey 16")
# What is added to them: the n-th is made from the n-th drawn scene.
EXTRAS: tuple[str, ...] = ("copy jpeg", "truncated", "small", "copy png", "not a picture", "absurd size")
EXTRAS += ("resized down", "variant", "copy webp", "resized up")


def plan(seed: int, index: int) -> Scene:
    """The scene number `index` of `seed`, both >= 0."""
    rng = np.random.Generator(np.random.Philox(key=np.array([seed, index], dtype=np.uint64)))
    width, height = SIZES[int(rng.integers(len(SIZES)))]
    ground = list(BACKGROUND_COLOURS)[int(rng.integers(len(BACKGROUND_COLOURS)))]
    pattern = PATTERNS[int(rng.integers(len(PATTERNS) - 1))]  # not the last, transparent: that is the file's form
    word = WORDS[int(rng.integers(len(WORDS)))] if rng.random() < 0.35 else None
    scene = Scene(
        width=width,
        height=height,
        background=Background(pattern, ground, turn=float(rng.uniform(15, 75))),
        shapes=(),
        character=None,
        character_at=None,
        word=word,
        word_y=float(rng.choice([0.1, 0.9])),
        artist=ARTISTS[int(rng.integers(len(ARTISTS)))],
        year=FIRST_YEAR + (7 * index + seed) % (LAST_YEAR - FIRST_YEAR + 1),  # 7: spreads few scenes over all years
    )
    if rng.random() < 0.45:
        look = LOOK_BY_NAME[CHARACTERS[int(rng.integers(len(CHARACTERS)))]]
        at = Shape(look.body, look.colour, float(rng.uniform(0.4, 0.6)), 0.54, float(rng.uniform(0.2, 0.26)))
        scene = replace(scene, character=look.name, character_at=at)
    return _with_shapes(scene, int(rng.integers(1, MOST_SHAPES + 1)), rng)


@dataclass(frozen=True)
class Post:
    """One file to write. `index` is unique; the sources alternate."""

    scene: Scene
    index: int
    form: str
    data: bytes
    extension: str
    of: int | None = None  # index of the post that it was made from

    @property
    def tags(self) -> tuple[str, ...]:
        """The tags that are true of the file, where it can be opened."""
        if self.form != "grey 16":
            return self.scene.tags
        coloured = tuple(f"{colour}_" for colour in {**COLOURS, **BACKGROUND_COLOURS})
        return (*(tag for tag in self.scene.tags if not tag.startswith(coloured)), "monochrome")


def draw(
    folder: Path, *, count: int = 64, seed: int = 0, of: Callable[[int, int], Scene] = plan, processes: int = 1
) -> None:
    """Write `count` files with sidecars under folder/board and folder/pixiv, and the truth to folder/truth.jsonl.

    `of` plans the scene number n of the seed; above one process it must be a function of a module. At most a quarter of
    the files are EXTRAS. The same count and seed give the same bytes, however many processes draw.
    """
    extras = EXTRAS[: min(len(EXTRAS), count // 4)]
    drawn = count - len(extras)
    one = partial(_draw_one, folder, of, seed)
    if processes == 1:
        made = [one(index) for index in range(drawn)]
    else:
        with ProcessPoolExecutor(processes, mp_context=multiprocessing.get_context("spawn")) as pool:
            made = list(pool.map(one, range(drawn), chunksize=32))
    for number, extra in enumerate(extras):
        made.append(_written(folder, _extra(extra, _drawn(of(seed, number), number), len(made))))
    names = [path for path, _ in made]
    lines = [line | {"file": path, "made_from": _name(names, line["made_from"])} for path, line in made]
    storage.write_text(folder / "truth.jsonl", "".join(json.dumps(line) + "\n" for line in lines))


def _draw_one(folder: Path, of: Callable[[int, int], Scene], seed: int, index: int) -> tuple[str, dict[str, Any]]:
    return _written(folder, _drawn(of(seed, index), index))


def _written(folder: Path, post: Post) -> tuple[str, dict[str, Any]]:
    """Write the post; its path, and its truth with the number of the post that it was made from."""
    return _write(folder, post), _truth(post)


def _name(names: list[str], index: int | None) -> str | None:
    return None if index is None else names[index]


def _with_shapes(scene: Scene, count: int, rng: np.random.Generator) -> Scene:
    """Up to `count` shapes more, each where there is room for it; the first always finds some."""
    colours = [colour for colour in COLOURS if colour != scene.background.colour]
    shapes: list[Shape] = []
    for _ in range(60):  # tries; a picture that is full by then stays as it is
        kind, colour = KINDS[int(rng.integers(len(KINDS)))], colours[int(rng.integers(len(colours)))]
        x, y, radius = float(rng.uniform(0.1, 0.9)), float(rng.uniform(0.1, 0.9)), float(rng.uniform(0.07, 0.16))
        shape = Shape(kind, colour, x, y, radius, turn=float(rng.uniform(-25, 25)))
        if len(shapes) < count and _has_room(scene, shapes, shape):
            shapes.append(shape)
    return replace(scene, shapes=(*scene.shapes, *shapes))


def _has_room(scene: Scene, shapes: list[Shape], new: Shape) -> bool:
    short = min(scene.width, scene.height)
    if scene.word and abs(new.y - scene.word_y) * scene.height / short < new.radius + 0.14:
        return False
    # a character's hat reaches 1.6 radii up
    taken = [(shape, 1.1) for shape in (*scene.shapes, *shapes)] + ([(at, 1.5)] if (at := scene.character_at) else [])
    for other, reach in taken:
        apart = np.hypot((new.x - other.x) * scene.width, (new.y - other.y) * scene.height) / short
        if apart < new.radius * 1.1 + other.radius * reach:
            return False
    return True


def _drawn(scene: Scene, index: int) -> Post:
    form = FORMS[index % len(FORMS)]
    if form == "cutout":
        scene = replace(scene, background=Background("transparent", "white"))
        return Post(scene, index, form, _saved(paint_cutout(scene), "PNG"), "png")
    data, extension = _ENCODERS[form](paint(scene))
    return Post(scene, index, form, data, extension)


def _extra(extra: str, origin: Post, index: int) -> Post:
    """A file made from `origin`: a copy, a variant, or something broken."""
    scene, size = origin.scene, (origin.scene.width, origin.scene.height)
    made = replace(origin, index=index, form=extra, of=origin.index)
    if extra == "truncated":
        whole = _saved(paint(scene), "JPEG", quality=92)
        return replace(made, data=whole[: max(len(whole) - 20_000, len(whole) // 2)], extension="jpg")
    if extra == "not a picture":
        return replace(made, data=b"<html><body>404: this picture is gone</body></html>\n", extension="jpg")
    if extra == "absurd size":
        return replace(made, data=_png(60_000, 60_000, bits=8, colour=2, rows=b""), extension="png")
    if extra == "small":
        return replace(made, data=_saved(paint(scene, scale=0.5), "PNG"), extension="png")
    if extra == "variant":
        other = _variant(scene)
        return replace(made, scene=other, data=_saved(paint(other), "JPEG", quality=92), extension="jpg")
    with Image.open(io.BytesIO(origin.data)) as picture:
        image = picture.convert("RGB")
    if extra.startswith("resized"):
        factor = 0.9 if extra == "resized down" else 1.25  # 0.9: still above 768,000 pixels
        image = image.resize((round(size[0] * factor), round(size[1] * factor)), Image.Resampling.LANCZOS)
        return replace(made, data=_saved(image, "JPEG", quality=88), extension="jpg")
    if extra == "copy jpeg":
        return replace(made, data=_saved(image, "JPEG", quality=70), extension="jpg")
    data, extension = _ENCODERS[extra.removeprefix("copy ")](image)
    return replace(made, data=data, extension=extension)


def _variant(scene: Scene) -> Scene:
    """The scene repainted: its first shape, and those that look alike, in another colour; else the ground."""
    if not scene.shapes or scene.named:
        ground = next(colour for colour in ("green", "blue") if colour != scene.background.colour)
        return replace(scene, background=replace(scene.background, colour=ground))
    first = scene.shapes[0]
    colour = next(colour for colour in ("green", "red") if colour != first.colour)
    alike = (first.kind, first.colour)
    shapes = tuple(replace(each, colour=colour) if (each.kind, each.colour) == alike else each for each in scene.shapes)
    return replace(scene, shapes=shapes)


def _write(folder: Path, post: Post) -> str:
    """Write the file and its sidecar; its path relative to `folder`."""
    path, sidecar = _board(post) if post.index % 2 == 0 else _pixiv(post)
    text = json.dumps(sidecar, ensure_ascii=False, sort_keys=True, indent=4)  # as gallery-dl writes it
    (folder / path).parent.mkdir(parents=True, exist_ok=True)
    (folder / path).write_bytes(post.data)  # not forced to the disk, which takes longer than to draw it
    (folder / (path + ".json")).write_text(text + "\n", encoding="utf-8")
    return path


def _truth(post: Post) -> dict[str, Any]:
    return {
        "file": "",
        "tags": post.tags,
        "character": post.scene.named,
        "word": post.scene.word,
        "year": post.scene.year,
        "form": post.form,
        "made_from": post.of,
    }


def _board(post: Post) -> tuple[str, dict[str, Any]]:
    """Path and sidecar as gallery-dl gives them for Danbooru."""
    scene, made = post.scene, _made(post)
    md5, number = hashlib.md5(post.data, usedforsecurity=False).hexdigest(), 300_000 * (scene.year - 2004) + post.index
    kinds = {
        "general": post.tags,
        "character": (scene.named,) if scene.named else (),
        "copyright": (scene.series,) if scene.series else (),
        "artist": (scene.artist.lower().replace(" ", "_"),),
        "meta": ("highres",),
    }
    sidecar: dict[str, Any] = {
        "category": "danbooru",
        "subcategory": "tag",
        "id": number,
        "md5": md5,
        "filename": md5,
        "extension": post.extension,
        "file_ext": post.extension,
        "file_size": len(post.data),
        "image_width": scene.width,
        "image_height": scene.height,
        "rating": "g",
        "created_at": (made - timedelta(hours=5)).strftime("%Y-%m-%dT%H:%M:%S.000-05:00"),
        "date": made.strftime("%Y-%m-%d %H:%M:%S"),
        "tags": sorted(tag for tags in kinds.values() for tag in tags),
    }
    for kind, tags in kinds.items():
        sidecar |= {f"tags_{kind}": list(tags), f"tag_string_{kind}": " ".join(tags)}
    return f"board/danbooru_{number}_{md5}.{post.extension}", sidecar


def _pixiv(post: Post) -> tuple[str, dict[str, Any]]:
    """Path and sidecar as gallery-dl gives them for pixiv."""
    scene, made, number = post.scene, _made(post), 5_000_000 * (post.scene.year - 2004) + post.index
    user = 1000 + ARTISTS.index(scene.artist)
    sidecar = {
        "category": "pixiv",
        "subcategory": "artworks",
        "id": number,
        "num": 0,
        "title": f"{scene.background.colour} day",
        "type": "illust",
        "user": {"id": user, "name": scene.artist, "account": f"artist{user}"},
        "tags": [tag.replace("_", " ") for tag in (*post.tags, *((scene.named,) if scene.named else ()))],
        "create_date": (made + timedelta(hours=9)).strftime("%Y-%m-%dT%H:%M:%S+09:00"),
        "date": made.strftime("%Y-%m-%d %H:%M:%S"),
        "rating": "General",
        "x_restrict": 0,
        "page_count": 1,
        "width": scene.width,
        "height": scene.height,
        "extension": post.extension,
    }
    return f"pixiv/{user} artist{user}/{number}_p0.{post.extension}", sidecar


def _made(post: Post) -> datetime:
    """When it was posted (UTC), within the scene's year in any zone."""
    return datetime(post.scene.year, 1 + post.index % 12, 2 + post.index % 26, post.index % 24, 7)


def _saved(image: Image.Image, form: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def _grey_16(image: Image.Image) -> bytes:
    return _saved(Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257), "PNG")


def _rgb_16(image: Image.Image) -> bytes:
    """PNG with 16 bits a colour, which Pillow reads but does not write."""
    pixels = (np.asarray(image).astype(">u2") * 257).astype(">u2").reshape(image.height, -1)
    rows = b"".join(b"\0" + row.tobytes() for row in pixels)  # each row begins with filter type 0
    return _png(image.width, image.height, bits=16, colour=2, rows=rows)


def _png(width: int, height: int, *, bits: int, colour: int, rows: bytes) -> bytes:
    """PNG of these filtered `rows`, as the PNG specification lays it out; the size is taken on trust."""
    chunks = (
        (b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)),
        (b"IDAT", zlib.compress(rows, 6)),
        (b"IEND", b""),
    )
    parts = [struct.pack(">I", len(d)) + t + d + struct.pack(">I", zlib.crc32(t + d)) for t, d in chunks]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


_ENCODERS: dict[str, Callable[[Image.Image], tuple[bytes, str]]] = {
    "jpeg": lambda image: (_saved(image, "JPEG", quality=92), "jpg"),
    "png": lambda image: (_saved(image, "PNG"), "png"),
    "webp": lambda image: (_saved(image, "WEBP", quality=85, method=2), "webp"),
    "lossless webp": lambda image: (_saved(image, "WEBP", lossless=True, quality=50, method=0), "webp"),
    "palette": lambda image: (_saved(image.quantize(128, dither=Image.Dither.NONE), "PNG"), "png"),
    "grey 16": lambda image: (_grey_16(image), "png"),
    "rgb 16": lambda image: (_rgb_16(image), "png"),
}
