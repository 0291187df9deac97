"""What a drawn scene is, which tags are true of it, and how it is painted.

Places and sizes are shares of the picture, so that one scene can be painted at any scale. Everything is a polygon,
painted at twice the size and reduced, which gives smooth edges.

Kind: pure.
"""

import math
import random
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFilter, ImageFont

Point = tuple[float, float]
Colour = tuple[int, int, int]

# One palette for all scenes, chosen by eye so that any two colours go together.
COLOURS: dict[str, Colour] = {
    "red": (214, 72, 83),
    "orange": (240, 142, 70),
    "yellow": (246, 201, 88),
    "green": (92, 168, 120),
    "blue": (74, 118, 196),
    "purple": (138, 98, 178),
    "pink": (238, 140, 170),
    "white": (250, 247, 240),
    "black": (48, 50, 64),
}
BACKGROUND_COLOURS: dict[str, Colour] = {
    "orange": (252, 220, 190),
    "yellow": (252, 240, 200),
    "green": (206, 232, 212),
    "blue": (198, 220, 244),
    "purple": (222, 210, 240),
    "pink": (250, 214, 224),
    "grey": (214, 216, 222),
    "white": (255, 255, 255),
}
PATTERNS = ("simple", "gradient", "striped", "polka_dot", "checkered", "sunburst", "transparent")
KINDS = ("circle", "square", "triangle", "star", "heart", "diamond")
MOST_SHAPES = 5
STYLES = ("glossy", "flat", "outlined", "hollow", "striped")
FAINT = 0.10  # how much darker a background's pattern is
SUPERSAMPLING = 2


@dataclass(frozen=True)
class Look:
    """How a character looks: a body with a face, and what it wears."""

    name: str
    series: str
    body: str
    colour: str
    wears: str  # also the general tag
    wears_colour: str


LOOKS = (
    Look("square_knight_(shape_saga)", "shape_saga", "square", "blue", "helmet", "black"),
    Look("circle_witch_(shape_saga)", "shape_saga", "circle", "green", "witch_hat", "purple"),
    Look("diamond_king_(shape_saga)", "shape_saga", "diamond", "pink", "crown", "yellow"),
    Look("star_singer_(night_parade)", "night_parade", "star", "yellow", "bow", "red"),
    Look("heart_sailor_(night_parade)", "night_parade", "heart", "red", "sailor_hat", "white"),
    Look("lady_circle", "garden_of_forms", "circle", "pink", "crown", "blue"),
)
CHARACTERS = tuple(look.name for look in LOOKS)
LOOK_BY_NAME = {look.name: look for look in LOOKS}

GENERAL_TAGS = (
    "solo",
    "smile",
    "english_text",
    *(f"{pattern}_background" for pattern in PATTERNS),
    *(f"{colour}_background" for colour in BACKGROUND_COLOURS),
    *(f"{count}_shape{'s' if count > 1 else ''}" for count in range(1, MOST_SHAPES + 1)),
    *KINDS,
    *(f"{colour}_{kind}" for kind in KINDS for colour in COLOURS),
    *sorted({look.wears for look in LOOKS}),
    "monochrome",
)


@dataclass(frozen=True)
class Background:
    """`pattern` is one of PATTERNS, `colour` one of BACKGROUND_COLOURS; `turn` in degrees turns stripes and rays."""

    pattern: str
    colour: str
    turn: float = 0.0


@dataclass(frozen=True)
class Shape:
    """One coloured shape. `x`, `y` of its centre are shares of width and height; `radius` of the shorter side."""

    kind: str
    colour: str
    x: float
    y: float
    radius: float
    turn: float = 0.0  # degrees


@dataclass(frozen=True)
class Scene:
    """One picture before it is painted, and what is known of its post. `word_y` is a share of the height.

    `scribbles` lines are drawn across it, and `wear` (0 to 1) is how blurred and grainy it is: what scorers look for.
    """

    width: int
    height: int
    background: Background
    shapes: tuple[Shape, ...]
    character: str | None
    character_at: Shape | None  # where its body stands; kind and colour are the character's
    word: str | None
    word_y: float
    artist: str  # display name
    year: int
    style: str = "glossy"  # one of STYLES, of all its shapes
    depth: float = FAINT  # how much darker the background's pattern is
    scribbles: int = 0
    wear: float = 0.0
    chance: int = 0  # seed of scribbles and grain

    @property
    def series(self) -> str | None:
        """The copyright that the character belongs to."""
        return LOOK_BY_NAME[self.character].series if self.character else None

    @property
    def named(self) -> str | None:
        """The name that a post gives: of a character."""
        return self.character

    @property
    def tags(self) -> tuple[str, ...]:
        """The general tags that are true of the picture, in the order of GENERAL_TAGS."""
        found = {f"{self.background.pattern}_background", f"{self.background.colour}_background"}
        found |= {tag for shape in self.shapes for tag in (shape.kind, f"{shape.colour}_{shape.kind}")}
        if self.shapes:
            found.add(f"{len(self.shapes)}_shape{'s' if len(self.shapes) > 1 else ''}")
        if self.character:
            found |= {"solo", "smile", LOOK_BY_NAME[self.character].wears}
        if self.word:
            found.add("english_text")
        return tuple(tag for tag in GENERAL_TAGS if tag in found)


def paint(scene: Scene, *, scale: float = 1.0) -> Image.Image:
    """The scene as an RGB picture of `scale` times its size. A transparent background is painted white."""
    return _paint(scene, scale, BACKGROUND_COLOURS[scene.background.colour])


def paint_cutout(scene: Scene) -> Image.Image:
    """The scene without its background as RGBA: shadows half transparent, and magenta hidden where nothing is.

    Whoever drops the alpha channel sees the magenta.
    """
    cut = replace(scene, background=Background("transparent", "white"))
    on_white = np.asarray(_paint(cut, 1.0, (255, 255, 255)), dtype=np.float32)
    on_black = np.asarray(_paint(cut, 1.0, (0, 0, 0)), dtype=np.float32)
    # what a pixel lets through of a white-to-black change is what it lacks in opacity
    alpha = np.clip(255 - (on_white - on_black).mean(axis=2, keepdims=True), 0, 255)
    colour = np.where(alpha > 0, on_black * 255 / np.maximum(alpha, 1), (255, 0, 255))
    pixels = np.concatenate([np.clip(colour, 0, 255), alpha], axis=2)
    return Image.fromarray(np.rint(pixels).astype(np.uint8), "RGBA")


def _paint(scene: Scene, scale: float, ground: Colour) -> Image.Image:
    size = (max(1, round(scene.width * scale)), max(1, round(scene.height * scale)))
    canvas = Image.new("RGB", (size[0] * SUPERSAMPLING, size[1] * SUPERSAMPLING), ground)
    _paint_background(canvas, scene.background, ground, scene.depth)
    brush = ImageDraw.Draw(canvas, "RGBA")
    for shape in scene.shapes:
        _paint_styled(canvas, shape, scene.style, ground)
    if scene.character and scene.character_at:
        _paint_character(brush, canvas.size, LOOK_BY_NAME[scene.character], scene.character_at)
    if scene.word:
        _paint_word(brush, canvas.size, scene.word, scene.word_y)
    if scene.scribbles:
        _scribble(brush, canvas.size, scene.scribbles, random.Random(scene.chance))
    reduced = canvas.reduce(SUPERSAMPLING)
    return worn(reduced, scene.wear, scene.chance) if scene.wear else reduced


def worn(image: Image.Image, wear: float, chance: int) -> Image.Image:
    """The RGB picture blurred and grainy: at 1, by a Gaussian of 1.4 % of the shorter side and noise of 28 of 255."""
    blurred = image.filter(ImageFilter.GaussianBlur(wear * 0.014 * min(image.size)))
    grain = np.random.default_rng(chance).normal(0, 28 * wear, (image.height, image.width, 1))
    return Image.fromarray(np.clip(np.asarray(blurred) + grain, 0, 255).astype(np.uint8))


def _scribble(brush: ImageDraw.ImageDraw, size: tuple[int, int], count: int, rng: random.Random) -> None:
    """Dark lines from edge to edge, each with a kink."""
    for _ in range(count):
        points = [(rng.uniform(0, size[0]), rng.uniform(0, size[1])) for _ in range(3)]
        brush.line(points, fill=(60, 50, 50, 220), width=max(1, round(0.018 * min(size))), joint="curve")


def _paint_background(canvas: Image.Image, background: Background, ground: Colour, depth: float) -> None:
    deep = _mix(ground, COLOURS["black"], depth)
    brush, (width, height) = ImageDraw.Draw(canvas), canvas.size
    reach, short = math.hypot(width, height), min(width, height)
    if background.pattern == "gradient":
        shade = Image.linear_gradient("L").resize(canvas.size, Image.Resampling.BILINEAR)
        canvas.paste(_mix(ground, COLOURS["black"], 3 * depth), mask=shade)
    elif background.pattern == "striped":
        step = short / 9
        for stripe in range(-math.ceil(reach / step), math.ceil(reach / step), 2):
            band = [(x, y) for x, y in ((-reach, 0), (reach, 0), (reach, step), (-reach, step))]
            moved = [(x, y + stripe * step) for x, y in band]
            brush.polygon(placed(moved, (width / 2, height / 2), 1.0, background.turn), fill=deep)
    elif background.pattern == "polka_dot":
        step = short / 8
        for row in range(math.ceil(height / step) + 1):
            for column in range(math.ceil(width / step) + 1):
                centre = ((column + 0.5 * (row % 2)) * step, row * step)
                brush.polygon(placed(outline_of("circle"), centre, step * 0.22, 0), fill=deep)
    elif background.pattern == "checkered":
        step = short / 8
        for row in range(math.ceil(height / step)):
            for column in range(row % 2, math.ceil(width / step), 2):
                brush.rectangle([column * step, row * step, (column + 1) * step, (row + 1) * step], fill=deep)
    elif background.pattern == "sunburst":
        for ray in range(12):
            wedge = [(0.0, 0.0), *(_at_angle(30 * ray + side, reach) for side in (-7.5, 7.5))]
            brush.polygon(placed(wedge, (width / 2, height * 0.55), 1.0, background.turn), fill=deep)


def _paint_styled(canvas: Image.Image, shape: Shape, style: str, ground: Colour) -> None:
    """A shape in one of STYLES. A hollow one shows the background's colour, without its pattern."""
    brush, size = ImageDraw.Draw(canvas, "RGBA"), canvas.size
    if style == "glossy":
        _paint_shape(brush, size, shape)
        return
    colour, radius = COLOURS[shape.colour], shape.radius * min(size)
    centre, outline = (shape.x * size[0], shape.y * size[1]), outline_of(shape.kind)
    rim = COLOURS["black" if shape.colour != "black" else "white"] if style == "outlined" else colour
    brush.polygon(placed(outline, centre, radius, shape.turn), fill=rim)
    if style != "flat":
        inner = {"outlined": colour, "hollow": ground, "striped": colour}[style]
        share = {"outlined": 0.78, "hollow": 0.58, "striped": 1.0}[style]
        brush.polygon(placed(outline, centre, radius * share, shape.turn), fill=inner)
    if style == "striped":
        _paint_stripes(canvas, placed(outline, centre, radius * 0.9, shape.turn), centre, radius)


def _paint_stripes(canvas: Image.Image, outline: list[Point], centre: Point, radius: float) -> None:
    """White bars across, within the outline."""
    mask = Image.new("L", canvas.size)
    ImageDraw.Draw(mask).polygon(outline, fill=255)
    bars = Image.new("L", canvas.size)
    brush = ImageDraw.Draw(bars)
    for bar in range(-2, 3):
        middle = centre[1] + bar * 0.46 * radius
        brush.rectangle([centre[0] - radius, middle - 0.11 * radius, centre[0] + radius, middle + 0.11 * radius], 255)
    canvas.paste(COLOURS["white"], mask=ImageChops.multiply(mask, bars))


def _paint_shape(brush: ImageDraw.ImageDraw, size: tuple[int, int], shape: Shape) -> None:
    """A shape with a soft-looking shadow, a darker rim and a highlight."""
    short, colour = min(size), COLOURS[shape.colour]
    radius, centre = shape.radius * short, (shape.x * size[0], shape.y * size[1])
    outline = outline_of(shape.kind)
    shadow = (centre[0] + 0.012 * short, centre[1] + 0.018 * short)
    brush.polygon(placed(outline, shadow, radius, shape.turn), fill=(30, 30, 60, 60))
    brush.polygon(placed(outline, centre, radius, shape.turn), fill=_mix(colour, (0, 0, 0), 0.22))
    brush.polygon(placed(outline, centre, radius * 0.88, shape.turn), fill=colour)
    light = (centre[0] - 0.25 * radius, centre[1] - 0.25 * radius)
    brush.polygon(placed(outline_of("circle"), light, radius * 0.13, 0), fill=(255, 255, 255, 110))


def _paint_character(brush: ImageDraw.ImageDraw, size: tuple[int, int], look: Look, at: Shape) -> None:
    _paint_shape(brush, size, at)
    radius, (x, y) = at.radius * min(size), (at.x * size[0], at.y * size[1])
    dark, blush = COLOURS["black"], (240, 110, 120, 130)
    for side in (-1, 1):
        eye = (x + side * 0.25 * radius, y - 0.02 * radius)
        brush.polygon(placed(outline_of("circle"), eye, radius * 0.10, 0), fill=dark)
        brush.polygon(placed(outline_of("circle"), (eye[0] + 3, eye[1] - 3), radius * 0.035, 0), fill=(255, 255, 255))
        cheek = (x + side * 0.38 * radius, y + 0.17 * radius)
        brush.polygon(placed(outline_of("circle"), cheek, radius * 0.08, 0), fill=blush)
    mouth = [x - 0.15 * radius, y + 0.02 * radius, x + 0.15 * radius, y + 0.24 * radius]
    brush.arc(mouth, 20, 160, fill=dark, width=max(2, round(0.05 * radius)))
    points = [(x + px * radius, y + py * radius) for px, py in _WORN[look.wears]]
    brush.polygon(points, fill=COLOURS[look.wears_colour], outline=dark, width=max(1, round(0.03 * radius)))


def _paint_word(brush: ImageDraw.ImageDraw, size: tuple[int, int], word: str, word_y: float) -> None:
    """The word in dark letters on a light band with round ends."""
    font = ImageFont.load_default(round(0.13 * min(size)))
    left, top, right, bottom = brush.textbbox((size[0] / 2, word_y * size[1]), word, font=font, anchor="mm")
    pad = 0.04 * min(size)
    box = [left - 2 * pad, top - pad, right + 2 * pad, bottom + pad]
    brush.rounded_rectangle(box, radius=2 * pad, fill=(255, 255, 255, 235), outline=COLOURS["black"], width=4)
    brush.text((size[0] / 2, word_y * size[1]), word, font=font, fill=COLOURS["black"], anchor="mm")


# What characters wear, in units of the body's radius from its centre, y down.
_WORN: dict[str, tuple[Point, ...]] = {
    "helmet": ((-0.8, -0.35), (-0.8, -0.6), (-0.5, -0.95), (0, -1.3), (0.5, -0.95), (0.8, -0.6), (0.8, -0.35)),
    "witch_hat": ((-1, -0.55), (-0.45, -0.7), (-0.05, -1.6), (0.2, -1.45), (0.45, -0.7), (1, -0.55), (0, -0.45)),
    "crown": ((-0.5, -0.5), (-0.6, -1.15), (-0.28, -0.85), (0, -1.25), (0.28, -0.85), (0.6, -1.15), (0.5, -0.5)),
    "bow": ((0, -0.75), (-0.55, -1.05), (-0.55, -0.45), (0, -0.75), (0.55, -1.05), (0.55, -0.45)),
    "sailor_hat": ((-0.7, -0.5), (-0.75, -0.75), (-0.4, -1.1), (0.4, -1.1), (0.75, -0.75), (0.7, -0.5)),
}


def outline_of(kind: str) -> list[Point]:
    """The corners of a shape that fits the unit circle, y down."""
    if kind == "circle":
        return [_at_angle(5 * step, 1.0) for step in range(72)]
    if kind == "square":
        return [_at_angle(45 + 90 * step, 1.0) for step in range(4)]
    if kind == "triangle":
        return [_at_angle(-90 + 120 * step, 1.0) for step in range(3)]
    if kind == "star":
        return [_at_angle(-90 + 36 * step, 0.5 if step % 2 else 1.0) for step in range(10)]
    if kind == "diamond":
        return [(0, -1), (0.7, 0), (0, 1), (-0.7, 0)]
    # the heart curve x = 16 sin^3 t, y = 13 cos t - 5 cos 2t - 2 cos 3t - cos 4t, scaled to the unit circle
    return [(math.sin(t) ** 3 * 0.94, -_heart_y(t) / 17) for t in (math.tau * step / 72 for step in range(72))]


def _heart_y(t: float) -> float:
    return 13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)


def _at_angle(degrees: float, distance: float) -> Point:
    return distance * math.cos(math.radians(degrees)), distance * math.sin(math.radians(degrees))


def placed(points: list[Point], centre: Point, radius: float, turn: float) -> list[Point]:
    cos, sin = math.cos(math.radians(turn)) * radius, math.sin(math.radians(turn)) * radius
    return [(centre[0] + x * cos - y * sin, centre[1] + x * sin + y * cos) for x, y in points]


def _mix(one: Colour, other: Colour, share: float) -> Colour:
    """`one` with `share` of `other` in it."""
    red, green, blue = (round(a + (b - a) * share) for a, b in zip(one, other, strict=True))
    return red, green, blue
