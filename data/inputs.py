"""What the models see: one decoded picture -> the uint8 arrays that the tagger, the scorers and the encoder take.

Everything stays uint8; the models' own normalisation happens where they run.

Kind: pure.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

WHITE = (255, 255, 255)


@dataclass(frozen=True)
class InputShapes:
    """Which inputs a picture is cut into, in pixels; None leaves that input out."""

    tagger_side: int | None = None
    aesthetic_size: tuple[int, int] | None = None  # width, height
    quality_side: int | None = None


def model_inputs(image: Image.Image, shapes: InputShapes) -> dict[str, NDArray[np.uint8]]:
    """The inputs that `shapes` asks for, by column name: tagger_input, aesthetic_input, quality_input."""
    inputs = {}
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


def tagger_input(image: Image.Image, *, side: int) -> NDArray[np.uint8]:
    """RGB picture -> [side, side, 3] BGR: padded to a square with white, centred, then bicubic (WD tagger's own demo).

    Where the padding is odd, the extra pixel lies right or below, as in kohya's tagger.
    """
    square = max(image.size)
    if image.width != image.height:
        padded = Image.new("RGB", (square, square), WHITE)
        padded.paste(image, ((square - image.width) // 2, (square - image.height) // 2))
        image = padded
    if square != side:
        image = image.resize((side, side), Image.Resampling.BICUBIC)
    return np.ascontiguousarray(_pixels(image)[:, :, ::-1])


def aesthetic_input(image: Image.Image, *, width: int, height: int) -> NDArray[np.uint8]:
    """RGB picture -> [height, width, 3] RGB: squashed without regard to its aspect, bilinear (ViTImageProcessor)."""
    return _pixels(image.resize((width, height), Image.Resampling.BILINEAR))


def quality_input(image: Image.Image, *, side: int) -> NDArray[np.uint8]:
    """RGB picture -> [side, side, 3] RGB: shortest side to `side`, bicubic, then the centre (CLIPImageProcessor).

    The longer side and the crop offset are rounded down, as in the reference's processor.
    """
    shortest = min(image.size)
    width, height = (max(side, side * length // shortest) for length in image.size)
    left, top = (width - side) // 2, (height - side) // 2
    resized = image.resize((width, height), Image.Resampling.BICUBIC)
    return _pixels(resized.crop((left, top, left + side, top + side)))


def encoder_input(image: Image.Image, *, box: tuple[int, int, int, int], width: int, height: int) -> NDArray[np.uint8]:
    """RGB picture -> [height, width, 3] RGB: cut to `box` (left, top, right, bottom in pixels), then Lanczos.

    Raises ValueError for a box that is empty or reaches outside of the picture.
    """
    left, top, right, bottom = box
    if not (0 <= left < right <= image.width and 0 <= top < bottom <= image.height):
        raise ValueError(f"box {box} does not lie within the picture of {image.width}x{image.height} pixels")
    return _pixels(image.crop(box).resize((width, height), Image.Resampling.LANCZOS))


def _pixels(image: Image.Image) -> NDArray[np.uint8]:
    """[height, width, 3], an own copy that may be written to."""
    return np.array(image, dtype=np.uint8)
