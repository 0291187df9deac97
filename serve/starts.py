"""Pictures that a request carries: a data URI -> RGB pixels at the size that the models read.

Nothing is fetched: an address would let a stranger make this server ask others. What a picture shows is told as
curation tells it (data/decode.py): upright, on white, a bomb refused by its header.

Source: sizes of img2img as ComfyUI a125cd8 StageC_VAEEncode (facts only); of variations CLIP-L/14's 224 pixels.

Kind: pure, but for Pillow.
"""

import base64
import binascii
from typing import Final

import numpy as np
from PIL import Image, ImageOps

from sote.cluster.errors import RequestError
from sote.data.decode import Refused, open_picture
from sote.data.recipe import DecodePart
from sote.serve.settings import Pixels
from sote.serve.sizes import latent_side

ENCODER_CELL = 32  # pixels that the encoder makes one latent cell of
CLIP_SIDE = 224  # pixels of CLIP-L/14's input
RULE: Final = DecodePart(min_pixels=1, max_pixels=64 * 2**20)
# How files of the formats that are taken begin: no other reader sees a stranger's bytes
BEGINNINGS: Final[tuple[tuple[int, bytes], ...]] = (
    (0, b"\x89PNG\r\n\x1a\n"),
    (0, b"\xff\xd8\xff"),  # JPEG
    (8, b"WEBP"),
)


def start_of(data_uri: str, *, width: int, height: int, compression: float) -> Pixels:
    """The picture to start from, RGB [32 h, 32 w, 3] for latents of h x w cells; cropped to the shape asked for.

    Raises RequestError naming `image_url`.
    """
    image = _opened(data_uri, field="image_url")
    size = (
        ENCODER_CELL * latent_side(width, compression),
        ENCODER_CELL * latent_side(height, compression),
    )
    return np.array(ImageOps.fit(image, size, Image.Resampling.BICUBIC))


def variation_of(data_uri: str, *, field: str) -> Pixels:
    """The picture for CLIP, RGB [224, 224, 3]: short side resized, middle cropped. Raises RequestError."""
    image = _opened(data_uri, field=field)
    return np.array(ImageOps.fit(image, (CLIP_SIDE, CLIP_SIDE), Image.Resampling.BICUBIC))


def _opened(data_uri: str, *, field: str) -> Image.Image:
    data = _data(data_uri, field=field)
    if not any(data[at : at + len(beginning)] == beginning for at, beginning in BEGINNINGS):
        raise RequestError(f"{field}: no PNG, JPEG or WebP picture")
    try:
        return open_picture(data, RULE).image
    except Refused as error:
        raise RequestError(f"{field}: the picture cannot be used: {error.reason}") from None


def _data(data_uri: str, *, field: str) -> bytes:
    if data_uri.startswith(("http://", "https://")):
        raise RequestError(
            f"{field}: this server fetches nothing; send the picture itself as data:image/png;base64,..."
        )
    head, comma, body = data_uri.partition(",")
    if data_uri.startswith("data:") and not (comma and head.endswith(";base64")):
        raise RequestError(f"{field}: a data URI here is data:image/png;base64,...")
    try:
        return base64.b64decode("".join((body if comma else data_uri).split()), validate=True)
    except (binascii.Error, ValueError):  # ValueError: letters that are not of ASCII
        raise RequestError(f"{field}: not base64") from None
