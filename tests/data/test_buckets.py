"""Buckets over many sizes of pictures."""

import math
import random

import pytest

from sote.data.buckets import Bucket, bucket_for

SEED_MIN_PIXELS = 768_000  # the seed's smallest picture, 1280x600
SETTINGS = [(1024, 64), (1024, 128), (512, 64), (256, 32), (768, 96), (128, 128)]


def _sizes(count: int) -> list[tuple[int, int]]:
    """Ordinary shapes, panoramas, and sizes around the steps, from a few pixels to 100 megapixels."""
    draw = random.Random(0)
    sizes = []
    for _ in range(count):
        pixels, shape = math.exp(draw.uniform(5, 18)), math.exp(draw.choice([0.3, 1.0, 2.5]) * draw.gauss(0, 1))
        sizes.append((max(1, round(math.sqrt(pixels * shape))), max(1, round(math.sqrt(pixels / shape)))))
    sizes += [
        (step * n + off, step * m - off) for step in (64, 128) for n in (1, 8, 17) for m in (1, 8, 17) for off in (0, 1)
    ]
    return sizes


@pytest.mark.parametrize(("resolution", "step"), SETTINGS)
def test_a_bucket_keeps_every_promise(resolution: int, step: int) -> None:
    made = 0
    for width, height in _sizes(1500):
        bucket = bucket_for(width, height, resolution=resolution, step=step)
        assert (bucket is None) == (min(width, height) < step)
        if bucket is None:
            continue
        made += 1
        left, top, right, bottom = bucket.crop
        assert bucket.width % step == 0 < bucket.width
        assert bucket.height % step == 0 < bucket.height
        assert bucket.width * bucket.height <= resolution**2
        assert 0 <= left < right <= width
        assert 0 <= top < bottom <= height
        assert bucket.width <= right - left, "nothing is scaled up"
        assert bucket.height <= bottom - top, "nothing is scaled up"
        assert abs(left - (width - right)) <= 1, "the crop is in the middle"
        assert abs(top - (height - bottom)) <= 1, "the crop is in the middle"
        assert right - left == width or bottom - top == height, "the crop is the largest"
        off = (right - left) / bucket.width * bucket.height - (bottom - top)
        assert abs(off) <= max(0.5, 0.5 * bucket.height / bucket.width) + 1e-6, "the crop has the bucket's shape"
    assert made > 500


@pytest.mark.parametrize(("resolution", "step"), SETTINGS)
def test_a_picture_on_its_side_gets_its_bucket_on_its_side(resolution: int, step: int) -> None:
    for width, height in _sizes(1500):
        upright = bucket_for(width, height, resolution=resolution, step=step)
        turned = bucket_for(height, width, resolution=resolution, step=step)
        if upright is None:
            assert turned is None
            continue
        left, top, right, bottom = upright.crop
        assert turned == Bucket(upright.height, upright.width, crop=(top, left, bottom, right))


@pytest.mark.parametrize("step", [64, 128])
def test_little_is_cut_off_and_little_of_the_area_is_left_unused(step: int) -> None:
    draw = random.Random(1)
    kept_shares, area_shares = [], []
    for _ in range(4000):
        shape = math.exp(draw.uniform(-math.log(2.5), math.log(2.5)))
        pixels = math.exp(draw.uniform(math.log(SEED_MIN_PIXELS + 5000), math.log(1e7)))
        width, height = round(math.sqrt(pixels * shape)), round(math.sqrt(pixels / shape))
        bucket = bucket_for(width, height, resolution=1024, step=step)
        assert bucket is not None
        left, top, right, bottom = bucket.crop
        kept_shares.append((right - left) * (bottom - top) / (width * height))
        area_shares.append(bucket.width * bucket.height / min(width * height, 1024**2))
    assert min(kept_shares) > (0.94 if step == 64 else 0.86)
    assert sum(area_shares) / len(area_shares) > (0.92 if step == 64 else 0.84)


def test_no_other_size_nearby_fits_the_shape_better() -> None:
    draw = random.Random(2)
    for _ in range(300):
        width, height = draw.randrange(600, 4000), draw.randrange(600, 4000)
        bucket = bucket_for(width, height, resolution=1024, step=64)
        assert bucket is not None
        scale = min(1.0, 1024 / math.sqrt(width * height))
        misfit = abs(math.log(bucket.width * height / (bucket.height * width)))
        for wide in (math.floor(width * scale / 64) * 64, math.ceil(width * scale / 64) * 64):
            for high in (math.floor(height * scale / 64) * 64, math.ceil(height * scale / 64) * 64):
                if wide <= width and high <= height and wide * high <= 1024**2:
                    assert misfit <= abs(math.log(wide * height / (high * width))) + 1e-9


@pytest.mark.parametrize(
    ("size", "bucket"),
    [
        ((1024, 1024), Bucket(1024, 1024, crop=(0, 0, 1024, 1024))),
        ((2048, 2048), Bucket(1024, 1024, crop=(0, 0, 2048, 2048))),
        ((1023, 1023), Bucket(960, 960, crop=(0, 0, 1023, 1023))),
        ((1280, 600), Bucket(1216, 576, crop=(6, 0, 1273, 600))),  # the seed's smallest
        ((1024, 1536), Bucket(832, 1216, crop=(0, 19, 1024, 1516))),
        ((10_000, 100), Bucket(6400, 64, crop=(0, 0, 10_000, 100))),
        ((100_000, 100), Bucket(16_384, 64, crop=(37_200, 0, 62_800, 100))),
        ((64, 64), Bucket(64, 64, crop=(0, 0, 64, 64))),
    ],
)
def test_sizes_worked_out_by_hand(size: tuple[int, int], bucket: Bucket) -> None:
    assert bucket_for(*size, resolution=1024, step=64) == bucket


def test_buckets_of_128_have_whole_latents_at_a_compression_of_42_67() -> None:
    # 42.67 is 128/3: a side of n*128 pixels is 3n latents; at 32, a side of n*64 is 2n.
    for width, height in _sizes(500):
        wide = bucket_for(width, height, resolution=1024, step=128)
        if wide is not None:
            assert wide.width * 3 % 128 == 0
            assert wide.height * 3 % 128 == 0
    small = bucket_for(1280, 600, resolution=1024, step=128)
    assert small is not None
    assert (small.width, small.height) == (1152, 512)


def test_a_bucket_is_named_by_its_size() -> None:
    assert Bucket(832, 1216, crop=(0, 0, 1, 1)).name == "832x1216"


@pytest.mark.parametrize(("resolution", "step"), [(64, 128), (1024, 0)])
def test_a_setting_that_allows_no_bucket_is_refused(resolution: int, step: int) -> None:
    with pytest.raises(ValueError, match="bucket step"):
        bucket_for(1000, 1000, resolution=resolution, step=step)
