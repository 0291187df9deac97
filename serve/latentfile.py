"""Latents as text that a JSON field can hold: base64 of an .npy file, and back.

Only the plain form of the file is read, as numpy writes arrays of numbers: no pickles, no archives, and no more memory
than what was sent.

Source: numpy's "NPY format" specification, versions 1.0 to 3.0.

Kind: pure.
"""

import base64
import io
import math
import re

import numpy as np

from sote.cluster.errors import RequestError
from sote.serve.settings import Numbers
from sote.serve.sizes import MAX_SIDE

CHANNELS = 16  # of Stage C latents
MAX_CELLS = MAX_SIDE // 32  # along a side, at the least compression
MAX_HEADER = 1024  # bytes; numpy's own is 118 for such an array
HEADER = re.compile(
    rb"\{'descr': '<(f4|f2)', 'fortran_order': (True|False), 'shape': \((\d{1,9}(?:, \d{1,9})*),?\), \} *\n"
)
WHAT = "base64 of an .npy file of float32 or float16, [16, h, w] or [pictures, 16, h, w]"


def packed(latents: Numbers) -> str:
    """Base64 of the .npy file of an array."""
    file = io.BytesIO()
    np.save(file, latents, allow_pickle=False)
    return base64.b64encode(file.getvalue()).decode("ascii")


def unpacked(text: str) -> Numbers:
    """Latents [B, 16, h, w], float32 and finite. Raises RequestError naming `latents`."""
    try:
        data = base64.b64decode(text, validate=True)
    except ValueError:  # binascii.Error too, and a mark outside of ASCII
        raise RequestError(f"latents: not base64; wanted is {WHAT}") from None
    kind, is_fortran, shape, body = _opened(data)
    if not 3 <= len(shape) <= 4 or shape[-3] != CHANNELS:
        raise RequestError(f"latents: the shape is {list(shape)}; wanted is {WHAT}")
    if min(shape) < 1 or max(shape[-2:]) > MAX_CELLS:
        raise RequestError(f"latents: h and w are 1 to {MAX_CELLS} cells, the shape is {list(shape)}")
    numbers = np.frombuffer(body, np.dtype(kind))
    if len(numbers) != math.prod(shape):
        raise RequestError(f"latents: the file says {list(shape)} and has {len(numbers)} numbers")
    if not np.isfinite(numbers).all():
        raise RequestError("latents: some numbers are not finite")
    whole = numbers.reshape(shape, order="F" if is_fortran else "C").astype(np.float32, order="C")
    return whole if whole.ndim == 4 else whole[None]


def _opened(data: bytes) -> tuple[str, bool, tuple[int, ...], bytes]:
    """dtype, order, shape and the bytes of the numbers."""
    if data[:6] != b"\x93NUMPY" or len(data) < 12:
        raise RequestError(f"latents: no .npy file; wanted is {WHAT}")
    start = 10 if data[6] == 1 else 12
    end = start + int.from_bytes(data[8:start], "little")
    header = HEADER.fullmatch(data[start:end]) if end <= start + MAX_HEADER else None
    if header is None:
        raise RequestError(f"latents: this .npy file is none of float32 or float16; wanted is {WHAT}")
    kind, order, shape = header.groups()
    size = int(kind[1:])
    body = data[end:]
    return f"<{kind.decode()}", order == b"True", tuple(map(int, shape.split(b", "))), body[: len(body) // size * size]
