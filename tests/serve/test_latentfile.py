import base64
import io

import numpy as np
import pytest

from sote.cluster.errors import RequestError
from sote.serve import latentfile

LATENTS = np.random.default_rng(0).normal(size=(16, 9, 6)).astype(np.float32)


def npy(array: np.ndarray, **how: object) -> str:
    file = io.BytesIO()
    np.save(file, array, **how)  # type: ignore[arg-type]
    return base64.b64encode(file.getvalue()).decode()


def message(text: str) -> str:
    with pytest.raises(RequestError, match=r"^latents: ") as caught:
        latentfile.unpacked(text)
    return str(caught.value)


def test_latents_come_back_as_they_went() -> None:
    assert np.array_equal(latentfile.unpacked(latentfile.packed(LATENTS)), LATENTS[None])
    assert np.array_equal(np.load(io.BytesIO(base64.b64decode(latentfile.packed(LATENTS)))), LATENTS)


def test_half_precision_several_pictures_and_either_order_are_read() -> None:
    half = LATENTS.astype(np.float16)
    assert np.array_equal(latentfile.unpacked(npy(half)), half.astype(np.float32)[None])
    many = np.stack([LATENTS, LATENTS * 2])
    assert np.array_equal(latentfile.unpacked(npy(many)), many)
    turned = np.asfortranarray(LATENTS)
    assert b"'fortran_order': True" in base64.b64decode(npy(turned))
    found = latentfile.unpacked(npy(turned))
    assert np.array_equal(found, LATENTS[None])
    assert found.flags.c_contiguous
    assert found.dtype == np.float32


def test_what_is_no_such_file_is_refused_in_words() -> None:
    assert "not base64" in message("%%")
    assert "not base64" in message("ä")
    assert "no .npy file" in message("")
    assert "no .npy file" in message(base64.b64encode(b"PK\x03\x04" + bytes(100)).decode())
    assert "none of float32" in message(npy(LATENTS.astype(np.float64)))
    assert "none of float32" in message(npy(np.array([{"a": 1}], dtype=object), allow_pickle=True))
    assert "the shape is [4, 9, 6]" in message(npy(LATENTS[:4]))
    assert "the shape is [16]" in message(npy(np.zeros(16, np.float32)))
    assert "1 to 80 cells" in message(npy(np.zeros((16, 0, 4), np.float32)))
    assert "1 to 80 cells" in message(npy(np.zeros((16, 81, 4), np.float32)))
    assert "not finite" in message(npy(np.full((16, 2, 2), np.nan, np.float32)))


def test_a_file_that_says_more_than_it_has_takes_no_memory() -> None:
    data = base64.b64decode(npy(LATENTS))
    for body in (data[:-3], data[:200], data + b"0000", data.replace(b"(16, 9, 6), } ", b"(16, 9, 80), }")):
        assert "the file says" in message(base64.b64encode(body).decode())
    for many in (b"(999999999, 16, 80, 80)", b"(16, 99999, 999999)"):
        assert "latents: " in message(base64.b64encode(data.replace(b"(16, 9, 6)", many)).decode())


@pytest.mark.parametrize("length", [0, 6, 9, 10, 11, 12, 60])
def test_a_file_cut_anywhere_is_refused(length: int) -> None:
    message(base64.b64encode(base64.b64decode(npy(LATENTS))[:length]).decode())
