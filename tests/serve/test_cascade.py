import pytest

from sote.cluster.errors import RequestError
from sote.serve.cascade import Cascade
from sote.serve.recipe import DefaultsPart, LimitsPart, ModelPart
from sote.serve.schema import GenerateRequest


@pytest.fixture(scope="module")
def cascade(part: ModelPart, small: DefaultsPart) -> Cascade:
    return Cascade.load(part, defaults=small, limits=LimitsPart(max_pixels=512 * 512))


def test_the_same_request_gives_the_same_bytes(cascade: Cascade) -> None:
    request = GenerateRequest(prompt="a red circle", seed=1)
    one, other = cascade.generate(request)[0], cascade.generate(request)[0]
    assert one.data == other.data
    assert one.seed == 1
    assert one.latents.shape == (16, 9, 6)


def test_without_a_seed_each_picture_is_another_and_says_its_seed(cascade: Cascade) -> None:
    one, other = (cascade.generate(GenerateRequest(prompt="a"))[0] for _ in range(2))
    assert one.data != other.data
    again = cascade.generate(GenerateRequest(prompt="a", seed=one.seed))[0]
    assert again.data == one.data


def test_a_request_beyond_the_limits_is_refused(cascade: Cascade) -> None:
    with pytest.raises(RequestError, match="this server makes at most 262144"):
        cascade.generate(GenerateRequest(prompt="a", image_size="square_hd"))
