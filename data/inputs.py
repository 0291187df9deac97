"""What the models see: one decoded picture -> the uint8 arrays that the tagger, the scorers and the encoder take.

Everything stays uint8; the models' own normalisation happens where they run. A picture is a Pillow image in RGB or its
[height, width, 3] pixels. The three inputs are resized by torch, which takes a third of Pillow's time and differs from
it by one level at the most; torch is loaded with the first.

Kind: pure.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

WHITE = (255, 255, 255)
MOST_PADDED_PIXELS = 1 << 26  # 200 MB; a longer strip has its long side made short before it is padded

Picture = Image.Image | NDArray[np.uint8]


@dataclass(frozen=True)
class InputShapes:
    """Which inputs a picture is cut into, in pixels; None leaves that input out."""

    tagger_side: int | None = None
    aesthetic_size: tuple[int, int] | None = None  # width, height
    quality_side: int | None = None


def model_inputs(image: Picture, shapes: InputShapes) -> dict[str, NDArray[np.uint8]]:
    """The inputs that `shapes` asks for, by column name: tagger_input, aesthetic_input, quality_input."""
    inputs = {}
    image = np.array(image) if isinstance(image, Image.Image) else image
    if shapes.tagger_side is not None:
        inputs["tagger_input"] = tagger_input(image, side=shapes.tagger_side)
    if shapes.aesthetic_size is not None:
        width, height = shapes.aesthetic_size
        inputs["aesthetic_input"] = aesthetic_input(image, width=width, height=height)
    if shapes.quality_side is not None:
        inputs["quality_input"] = quality_input(image, side=shapes.quality_side)
    return inputs


def blank_inputs(shapes: InputShapes) -> dict[str, NDArray[np.uint8]]:
    """The same columns and shapes as `model_inputs`, all zeros: stands in for a picture that could not be opened."""
    blanks = {}
    if shapes.tagger_side is not None:
        blanks["tagger_input"] = np.zeros((shapes.tagger_side, shapes.tagger_side, 3), np.uint8)
    if shapes.aesthetic_size is not None:
        width, height = shapes.aesthetic_size
        blanks["aesthetic_input"] = np.zeros((height, width, 3), np.uint8)
    if shapes.quality_side is not None:
        blanks["quality_input"] = np.zeros((shapes.quality_side, shapes.quality_side, 3), np.uint8)
    return blanks


def tagger_input(image: Picture, *, side: int) -> NDArray[np.uint8]:
    """RGB picture -> [side, side, 3] BGR: padded to a square with white, centred, then bicubic (WD tagger's own demo).

    Where the padding is odd, the extra pixel lies right or below, as in kohya's tagger.
    """
    pixels = np.asarray(image)
    height, width = pixels.shape[:2]
    square = max(height, width)
    if square * square <= MOST_PADDED_PIXELS:
        pixels = _padded(pixels, width=square, height=square)
    elif width == square:
        pixels = _padded(_bicubic(pixels, width=side, height=height), width=side, height=square)
    else:
        pixels = _padded(_bicubic(pixels, width=width, height=side), width=square, height=side)
    return np.ascontiguousarray(_bicubic(pixels, width=side, height=side)[:, :, [2, 1, 0]])


def aesthetic_input(image: Picture, *, width: int, height: int) -> NDArray[np.uint8]:
    """RGB picture -> [height, width, 3] RGB: squashed without regard to its aspect, bilinear (ViTImageProcessor)."""
    from sote.data import pixels

    return pixels.resize(np.asarray(image), width=width, height=height, how="bilinear")


def quality_input(image: Picture, *, side: int) -> NDArray[np.uint8]:
    """RGB picture -> [side, side, 3] RGB: shortest side to `side`, bicubic, then the centre (CLIPImageProcessor).

    The longer side and the crop offset are rounded down, as in the reference's processor.
    """
    pixels = np.asarray(image)
    shortest = min(pixels.shape[:2])
    height, width = (max(side, side * length // shortest) for length in pixels.shape[:2])
    left, top = (width - side) // 2, (height - side) // 2
    resized = _bicubic(pixels, width=width, height=height)
    return np.ascontiguousarray(resized[top : top + side, left : left + side])


def encoder_input(image: Image.Image, *, box: tuple[int, int, int, int], width: int, height: int) -> NDArray[np.uint8]:
    """RGB picture -> [height, width, 3] RGB: cut to `box` (left, top, right, bottom in pixels), then Lanczos.

    Raises ValueError for a box that is empty or reaches outside of the picture.
    """
    left, top, right, bottom = box
    if not (0 <= left < right <= image.width and 0 <= top < bottom <= image.height):
        raise ValueError(f"box {box} does not lie within the picture of {image.width}x{image.height} pixels")
    return _pixels(image.crop(box).resize((width, height), Image.Resampling.LANCZOS))


def _padded(pixels: NDArray[np.uint8], *, width: int, height: int) -> NDArray[np.uint8]:
    """`pixels` in the middle of white."""
    there, across = pixels.shape[:2]
    if (there, across) == (height, width):
        return pixels
    top, left = (height - there) // 2, (width - across) // 2
    padded = np.full((height, width, 3), WHITE[0], np.uint8)
    padded[top : top + there, left : left + across] = pixels
    return padded


def _bicubic(pixels: NDArray[np.uint8], *, width: int, height: int) -> NDArray[np.uint8]:
    from sote.data import pixels as fast

    return fast.resize(pixels, width=width, height=height, how="bicubic")


def _pixels(image: Image.Image) -> NDArray[np.uint8]:
    """[height, width, 3], an own copy that may be written to."""
    return np.array(image, dtype=np.uint8)
