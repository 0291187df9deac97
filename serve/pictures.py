"""A painted picture as an encoded file that carries its parameters.

PNG has them as text chunk `parameters`, JPEG and WebP as EXIF UserComment: where AUTOMATIC1111 and SD.Next put them.

Kind: pure, but for Pillow.
"""

import base64
import io
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from sote.serve.settings import CONTENT_TYPES, OutputFormat

QUALITY = 95  # of JPEG and WebP; Pillow's handbook: JPEG above 95 grows the file for hardly any gain
EXIF_IFD, USER_COMMENT = 0x8769, 0x9286  # EXIF 2.3, tags of the Exif IFD and of UserComment in it


@dataclass(frozen=True)
class Painted:
    """One picture: the encoded file `data` and what it was made with.

    `latents` are its Stage C latents [16, h, w], float32, so that it can be decoded again.
    """

    data: bytes
    output_format: OutputFormat
    width: int
    height: int
    seed: int
    parameters: str
    latents: np.ndarray[Any, np.dtype[np.float32]]

    @property
    def content_type(self) -> str:
        return CONTENT_TYPES[self.output_format]

    @property
    def data_uri(self) -> str:
        return f"data:{self.content_type};base64,{base64.b64encode(self.data).decode('ascii')}"

    @property
    def image(self) -> Image.Image:
        """The picture, decoded."""
        return Image.open(io.BytesIO(self.data))


def encode(pixels_HWC: np.ndarray[Any, np.dtype[np.uint8]], output_format: OutputFormat, *, parameters: str) -> bytes:
    """The file of an RGB picture with its `parameters` inside. Equal input gives equal bytes."""
    image, file = Image.fromarray(pixels_HWC), io.BytesIO()
    if output_format == "png":
        info = PngInfo()
        info.add_text("parameters", parameters)
        image.save(file, "PNG", pnginfo=info)
    else:
        exif = Image.Exif()
        exif.get_ifd(EXIF_IFD)[USER_COMMENT] = b"UNICODE\0" + parameters.encode("utf-16-be")
        image.save(file, output_format.upper(), quality=QUALITY, exif=exif)
    return file.getvalue()
