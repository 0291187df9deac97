import io

import numpy as np
import pytest
from PIL import Image

from sote.serve import preview
from sote.serve.settings import StageName


@pytest.mark.parametrize(
    ("stage", "shape", "size"),
    [("prior", (16, 36, 24), (168, 252)), ("decoder", (4, 96, 64), (192, 288)), ("decoder", (4, 192, 256), (256, 192))],
)
def test_a_preview_is_a_small_jpeg_in_the_picture_s_shape(
    stage: StageName, shape: tuple[int, int, int], size: tuple[int, int]
) -> None:
    latents = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    image = Image.open(io.BytesIO(preview.jpeg(latents, stage)))
    assert image.format == "JPEG"
    assert image.size == size
    assert np.asarray(image).std() > 5


@pytest.mark.parametrize(("stage", "channels"), [("prior", 16), ("decoder", 4)])
def test_a_channel_s_color_is_its_row_of_the_published_table(stage: StageName, channels: int) -> None:
    for channel in range(channels):
        latents = np.zeros((channels, 8, 8), np.float32)
        latents[channel] = 2.0
        color = np.asarray(Image.open(io.BytesIO(preview.jpeg(latents, stage))))[0, 0]
        expected = ((2 * preview.FACTORS[stage][channel] + 1) / 2).clip(0, 1) * 255
        assert np.abs(color - expected).max() <= 4  # JPEG


def test_values_that_are_not_finite_are_drawn_as_none() -> None:
    latents = np.full((16, 8, 8), np.nan, np.float32)
    latents[0] = np.inf
    image = Image.open(io.BytesIO(preview.jpeg(latents, "prior")))
    assert abs(int(np.asarray(image).mean()) - 128) <= 1
