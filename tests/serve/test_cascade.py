import asyncio
import weakref
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from sote.cluster.errors import RequestError
from sote.serve import cascade as cascades
from sote.serve.cascade import Cascade, Local
from sote.serve.line import LineLost
from sote.serve.recipe import DefaultsPart, LimitsPart, ModelPart
from sote.serve.schema import GenerateRequest, resolve
from sote.serve.service import Painting
from sote.serve.settings import Progress, Settings


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


def test_a_prompt_and_fields_by_name_are_a_request(cascade: Cascade) -> None:
    painted = cascade.generate("a red circle", seed=1, num_images=2, output_format="webp")
    assert [each.seed for each in painted] == [1, 2]
    assert painted[0].output_format == "webp"
    with pytest.raises(ValidationError, match="steps"):
        cascade.generate("a red circle", steps=4)


def test_one_model_after_the_other_paints_the_same_and_never_holds_both(
    cascade: Cascade, part: ModelPart, small: DefaultsPart, monkeypatch: pytest.MonkeyPatch
) -> None:
    alive: list[weakref.ref[Any]] = []
    beside: list[int] = []

    def counted(kind: Any) -> Any:
        def make(*given: Any, **named: Any) -> Any:
            beside.append(sum(each() is not None for each in alive))
            made = kind(*given, **named)
            alive.append(weakref.ref(made))
            return made

        return make

    monkeypatch.setattr(cascades, "PriorModel", counted(cascades.PriorModel))
    monkeypatch.setattr(cascades, "DecoderModel", counted(cascades.DecoderModel))
    one = Cascade.load(part, defaults=small, sequential=True)
    assert beside == []
    found = one.generate("a red circle", seed=1)
    assert beside == [0, 0]
    assert found[0].data == cascade.generate("a red circle", seed=1)[0].data


@pytest.fixture(scope="module")
def local(part: ModelPart) -> Iterator[Local]:
    made = Local.load(part, slots=8)
    yield made
    made.close()


def asked(small: DefaultsPart, **fields: Any) -> Settings:
    request = GenerateRequest.model_validate({"prompt": "a red circle", "seed": 1} | fields)
    return resolve(request, small, limits=LimitsPart(), random_seed=0)


def test_the_service_paints_what_the_cascade_does(local: Local, cascade: Cascade, small: DefaultsPart) -> None:
    seen: list[Progress] = []
    plain = asyncio.run(local.paint(asked(small)))
    watched = asyncio.run(local.paint(asked(small), watch=seen.append))
    alone = cascade.generate("a red circle", seed=1)[0]
    assert plain.images[0].data == watched.images[0].data == alone.data
    assert [(each.stage, each.step) for each in seen if each.step == each.steps] == [("prior", 4), ("decoder", 4)]
    assert [work.stage for work in plain.work] == ["prior", "decoder"]
    assert plain.prompt_tokens == 3
    assert plain.flagged is None
    assert plain.seconds >= sum(work.seconds for work in plain.work)
    assert any("blur" in line for line in plain.warnings)


def test_requests_at_once_share_their_steps(local: Local, small: DefaultsPart) -> None:
    async def work() -> list[Painting]:
        return await asyncio.gather(*(local.paint(asked(small, seed=seed)) for seed in range(6)))

    found = asyncio.run(work())
    assert [each.images[0].seed for each in found] == list(range(6))
    assert max(rows for each in found for rows in each.work[0].occupancy) > 1
    alone = asyncio.run(local.paint(asked(small, seed=3)))
    one, other = (np.asarray(each.images[0].image).astype(int) for each in (found[3], alone))
    assert np.abs(one - other).max() <= 1  # rounding to 8 bits


def test_latents_that_are_there_are_painted_as_they_were(local: Local, small: DefaultsPart) -> None:
    guided = asked(small, second_stage_guidance_scale=2)
    painted = asyncio.run(local.paint(guided))
    again = asyncio.run(local.decode(painted.images[0].latents[None], guided))
    assert again.images[0].data == painted.images[0].data


def test_a_local_service_is_healthy_until_it_is_closed(part: ModelPart, small: DefaultsPart) -> None:
    made = Local.load(part, slots=1)
    assert asyncio.run(made.deployments()) == {"Prior": "HEALTHY", "Decoder": "HEALTHY"}
    made.close()
    with pytest.raises(LineLost):
        asyncio.run(made.deployments())
    with pytest.raises(LineLost):
        asyncio.run(made.paint(asked(small)))
