"""Buckets: the width and height that a picture is trained at, and the part of it that is shown.

After sd-scripts' bucketing without upscaling (kohya-ss/sd-scripts, branch stable-cascade 235a1ea2,
library/train_util.py, BucketManager.select_bucket): scaled down to the area, one side rounded to the step, the other
following the picture's shape. Here both roundings of either side are tried, in whole numbers, so that a picture on its
side gets the same bucket on its side.

Kind: pure.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from math import isqrt

Size = tuple[int, int]  # width, height in pixels


@dataclass(frozen=True)
class Bucket:
    """`width` x `height` in pixels to resize to; `crop` is (left, top, right, bottom) in pixels of the picture."""

    width: int
    height: int
    crop: tuple[int, int, int, int]

    @property
    def name(self) -> str:
        return f"{self.width}x{self.height}"


def bucket_for(width: int, height: int, *, resolution: int, step: int) -> Bucket | None:
    """The bucket of a picture of `width` x `height` pixels; None if a side is shorter than one step.

    Both sides are multiples of `step` and not above the picture's, the area is at most resolution^2, and the crop is
    in the middle and never smaller than the bucket. Of the sizes next to the picture's own (scaled down to the area),
    the one whose shape is nearest to the picture's is taken, then the larger. Raises ValueError if no bucket can exist
    at all: step < 1 or resolution < step.
    """
    if not 1 <= step <= resolution:
        raise ValueError(f"bucket step {step} must be from 1 to the resolution, {resolution}")
    if min(width, height) < step:
        return None
    picture, area = (width, height), resolution * resolution
    near = [size for size in _near(picture, area=area, step=step) if _fits(size, picture, area=area)]
    best = min(near or [_longest(picture, area=area, step=step)], key=lambda size: _misfit(size, picture))
    return Bucket(*best, crop=_middle(best, picture))


def _near(picture: Size, *, area: int, step: int) -> Iterator[Size]:
    """Sizes around the picture's, scaled down to `area`: one side rounded down or up, the other to follow likewise."""
    width, height = picture
    scaled_width, scaled_height = picture
    if width * height > area:
        scaled_width, scaled_height = isqrt(area * width // height), isqrt(area * height // width)
    for wide in (scaled_width // step * step, scaled_width // step * step + step):
        follows = wide * height // width // step * step
        yield from ((wide, follows), (wide, follows + step))
    for high in (scaled_height // step * step, scaled_height // step * step + step):
        follows = high * width // height // step * step
        yield from ((follows, high), (follows + step, high))


def _fits(size: Size, picture: Size, *, area: int) -> bool:
    return 0 < size[0] <= picture[0] and 0 < size[1] <= picture[1] and size[0] * size[1] <= area


def _longest(picture: Size, *, area: int, step: int) -> Size:
    """For a picture whose short side, scaled down to the area, is below one step: one step by all the area allows."""
    width, height = picture
    if width > height:
        return min(width, area // step) // step * step, step
    return step, min(height, area // step) // step * step


def _misfit(size: Size, picture: Size) -> tuple[Fraction, int]:
    """How far the shape is from the picture's (1 is the same), then less area."""
    across, down = size[0] * picture[1], size[1] * picture[0]
    return Fraction(max(across, down), min(across, down)), -size[0] * size[1]


def _middle(size: Size, picture: Size) -> tuple[int, int, int, int]:
    """The largest box of the shape of `size` in the middle of the picture, rounded to whole pixels."""
    (wide, high), (width, height) = size, picture
    box_width, box_height = width, height
    if wide * height < high * width:  # the picture is wider than the bucket
        box_width = (2 * wide * height + high) // (2 * high)
    else:
        box_height = (2 * high * width + wide) // (2 * wide)
    left, top = (width - box_width) // 2, (height - box_height) // 2
    return left, top, left + box_width, top + box_height
