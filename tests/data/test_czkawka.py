"""czkawka's hash, against what its crate states of its own test picture."""

import base64

import numpy as np
import pytest
from numpy.typing import NDArray

from sote.data import czkawka

WORD = (1 << 64) - 1


def small_rng(seed: int, count: int) -> bytes:
    """`count` bytes of Rust's rand 0.8 `SmallRng::seed_from_u64(seed)`: xoshiro256++, its state filled by PCG32."""
    words = []
    for _ in range(8):  # rand_core 0.6, SeedableRng::seed_from_u64
        seed = (seed * 6364136223846793005 + 11634580027462260723) & WORD
        mixed = (((seed >> 18) ^ seed) >> 27) & 0xFFFFFFFF
        turn = seed >> 59
        words.append((mixed >> turn | mixed << (-turn & 31)) & 0xFFFFFFFF)
    s = [words[2 * at] | words[2 * at + 1] << 32 for at in range(4)]

    def turned(value: int, by: int) -> int:
        return (value << by | value >> (64 - by)) & WORD

    drawn = []
    for _ in range(count // 8):
        drawn.append((turned((s[0] + s[3]) & WORD, 23) + s[0]) & WORD)
        moved = (s[1] << 17) & WORD
        s[2] ^= s[0]
        s[3] ^= s[1]
        s[1] ^= s[2]
        s[0] ^= s[3]
        s[2] ^= moved
        s[3] = turned(s[3], 45)
    return b"".join(value.to_bytes(8, "little") for value in drawn)


@pytest.fixture(scope="module")
def picture() -> NDArray[np.uint8]:
    """The picture of img_hash's src/lib.rs, gen_test_img: 256 x 256 RGBA noise; alpha is dropped."""
    noise = np.frombuffer(small_rng(0xC0FFEE, 256 * 256 * 4), np.uint8)
    return noise.reshape(256, 256, 4)[:, :, :3]


# img_hash 3.1.0 (github.com/qarmin/img_hash), src/lib.rs, test_hash_stability: Gradient, Nearest
@pytest.mark.parametrize(
    ("side", "expected"), [(8, "x1qyqjKLtiY"), (16, "rcZajVpURmrulRqyrZyiMqmopirWLlG3l9TjpmZSssk")]
)
def test_the_hash_is_that_of_the_crate(picture: NDArray[np.uint8], side: int, expected: str) -> None:
    found = czkawka.gradient_hash(picture, side=side)
    assert base64.b64encode(found).decode().rstrip("=") == expected


def test_a_bit_says_that_a_pixel_is_brighter_than_the_one_to_its_left() -> None:
    ramp = np.repeat(np.linspace(0, 255, 340).astype(np.uint8)[None, :, None], 3, axis=2).repeat(200, axis=0)
    assert czkawka.gradient_hash(ramp) == b"\xff" * 32
    assert czkawka.gradient_hash(ramp[:, ::-1]) == bytes(32)
    step = np.zeros((160, 170, 3), np.uint8)
    step[:, 10:] = 9  # brighter from the second of 17 places on
    assert czkawka.gradient_hash(step) == b"\x01\x00" * 16


def test_luma_is_truncated_and_not_rounded() -> None:
    """(2126 R + 7152 G + 722 B) // 10000 of (0, 1, 3) is 0, and so no brighter than black; rounded it would be 1."""
    pair = np.zeros((16, 17, 3), np.uint8)
    pair[:, 1] = (0, 1, 3)
    assert czkawka.gradient_hash(pair) == bytes(32)


@pytest.mark.parametrize(("width", "height"), [(1, 1), (3, 900), (900, 3), (33, 33)])
def test_a_picture_of_any_size_has_a_hash(width: int, height: int) -> None:
    assert len(czkawka.gradient_hash(np.zeros((height, width, 3), np.uint8))) == 32
