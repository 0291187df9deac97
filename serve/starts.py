"""Pictures that a request carries: a data URI -> RGB pixels at the size that the models read.

Nothing is fetched: an address would let a stranger make this server ask others.

Source: sizes of img2img as ComfyUI a125cd8 StageC_VAEEncode (facts only); of variations CLIP-L/14's 224 pixels.

Kind: pure, but for Pillow.
"""

import base64
import binascii
import io
import warnings

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from sote.cluster.errors import RequestError
from sote.serve.settings import Pixels
from sote.serve.sizes import latent_side

ENCODER_CELL = 32  # pixels that the encoder makes one latent cell of
CLIP_SIDE = 224  # pixels of CLIP-L/14's input
MAX_PIXELS = 64 * 2**20  # of a picture that is sent; refused before it is decoded


def start_of(data_uri: str, *, width: int, height: int, compression: float) -> Pixels:
    """The picture to start from, RGB [32 h, 32 w, 3] for latents of h x w cells; cropped to the shape asked for.

    Raises RequestError naming `image_url`.
    """
    image = _opened(data_uri, field="image_url")
    size = (
        ENCODER_CELL * latent_side(width, compression),
        ENCODER_CELL * latent_side(height, compression),
    )
    return np.asarray(ImageOps.fit(image, size, Image.Resampling.BICUBIC))


def variation_of(data_uri: str, *, field: str) -> Pixels:
    """The picture for CLIP, RGB [224, 224, 3]: short side resized, middle cropped. Raises RequestError."""
    image = _opened(data_uri, field=field)
    return np.asarray(ImageOps.fit(image, (CLIP_SIDE, CLIP_SIDE), Image.Resampling.BICUBIC))


def _opened(data_uri: str, *, field: str) -> Image.Image:
    if data_uri.startswith(("http://", "https://")):
        raise RequestError(
            f"{field}: this server fetches nothing; send the picture itself as data:image/png;base64,..."
        )
    head, comma, body = data_uri.partition(",")
    if data_uri.startswith("data:") and not (comma and head.endswith(";base64")):
        raise RequestError(f"{field}: a data URI here is data:image/png;base64,...")
    try:
        data = base64.b64decode(body if comma else data_uri, validate=True)
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(data), formats=("PNG", "JPEG", "WEBP"))
        if image.width * image.height > MAX_PIXELS:
            raise RequestError(f"{field}: {image.width}x{image.height} is too large; at most {MAX_PIXELS} pixels")
        return ImageOps.exif_transpose(image).convert("RGB")
    except binascii.Error:
        raise RequestError(f"{field}: not base64") from None
    except (UnidentifiedImageError, Image.DecompressionBombError, Image.DecompressionBombWarning, OSError, ValueError):
        raise RequestError(f"{field}: no PNG, JPEG or WebP picture that can be read") from None
