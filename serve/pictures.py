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

from sote.serve.settings import CONTENT_TYPES, QUALITY, OutputFormat

EXIF_IFD, USER_COMMENT = 0x8769, 0x9286  # EXIF 2.3, tags of the Exif IFD and of UserComment in it
UNICODE = b"UNICODE\0"  # EXIF 2.3: how a UserComment says that UTF-16 follows
MAX_SEGMENT = 2**16 - 3  # bytes of one JPEG segment; EXIF has to fit into one


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


def encode(
    pixels_HWC: np.ndarray[Any, np.dtype[np.uint8]],
    output_format: OutputFormat,
    *,
    parameters: str | None,
    quality: int = QUALITY,
) -> bytes:
    """The file of an RGB picture with its `parameters` inside, or with none. Equal input gives equal bytes.

    `quality` [0, 100] is that of JPEG and WebP. Parameters of some 32,000 characters do not fit into a JPEG: it goes
    without them.
    """
    image, file = Image.fromarray(pixels_HWC), io.BytesIO()
    if output_format == "png":
        info = PngInfo()
        if parameters is not None:
            info.add_text("parameters", parameters)
        image.save(file, "PNG", pnginfo=info)
        return file.getvalue()
    exif = _exif(parameters) if parameters is not None else b""
    if output_format == "jpeg" and len(exif) > MAX_SEGMENT:
        exif = b""
    image.save(file, output_format.upper(), quality=quality, exif=exif)
    return file.getvalue()


def comment_of(image: Image.Image) -> str | None:
    """The parameters inside an opened file, or None: of PNG its text, of JPEG and WebP the comment."""
    found = image.info.get("parameters")
    if isinstance(found, str):
        return found
    comment = image.getexif().get_ifd(EXIF_IFD).get(USER_COMMENT)
    if not isinstance(comment, bytes) or not comment.startswith(UNICODE):
        return None
    return comment.removeprefix(UNICODE).decode("utf-16-be", errors="replace")


def _exif(parameters: str) -> bytes:
    """EXIF, big-endian throughout as the web UI's piexif writes it: readers take the comment's order from it."""
    exif = Image.Exif()
    exif.endian = ">"
    exif.get_ifd(EXIF_IFD)[USER_COMMENT] = UNICODE + parameters.encode("utf-16-be")
    return exif.tobytes()
