"""The native API over the stand-ins, in one process."""

import base64
import io
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient
from PIL import Image

from sote.serve import latentfile, parameters
from sote.serve.api_native import picture_wanted

URL = "/v1/generate"


def opened(uri: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2])))


def made(client: TestClient, **fields: Any) -> dict[str, Any]:
    answer = client.post(URL, json={"prompt": "a red circle", "seed": 5, "sync_mode": True} | fields)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def refused(client: TestClient, url: str = URL, **fields: Any) -> str:
    answer = client.post(url, json={"prompt": "a"} | fields)
    assert answer.status_code == 422
    body = answer.json()
    assert body["detail"][0]["loc"][0] == "body"
    return str(body["message"])


def test_a_prompt_gives_a_picture_and_all_that_it_was_made_with(client: TestClient) -> None:
    found = made(client, num_images=2, negative_prompt="blue")
    assert [image["seed"] for image in found["images"]] == [5, 6]
    assert (found["seed"], found["prompt"], found["negative_prompt"]) == (5, "a red circle", "blue")
    assert found["prompt_tokens"] == 3
    assert {"prior", "decoder", "prior_waited", "decoder_waited", "inference"} == set(found["timings"])
    assert "has_nsfw_concepts" not in found
    image = opened(found["images"][0]["url"])
    assert (image.format, image.size) == ("PNG", (256, 384))
    assert (found["images"][0]["width"], found["images"][0]["height"]) == (256, 384)
    assert parameters.read(image.info["parameters"])["Seed"] == "5"


def pixels(uri: str) -> np.ndarray:
    return np.asarray(opened(uri)).astype(int)


def test_the_same_request_gives_the_same_bytes_and_each_of_several_pictures_is_that_of_its_seed(
    client: TestClient,
) -> None:
    one, two = (image["url"] for image in made(client, num_images=2)["images"])
    lone = made(client)["images"][0]["url"]
    assert made(client)["images"][0]["url"] == lone
    assert np.abs(pixels(lone) - pixels(one)).max() <= 1  # another shape of the batch rounds in another way
    assert np.abs(pixels(made(client, seed=6)["images"][0]["url"]) - pixels(two)).max() <= 1
    assert np.abs(pixels(one) - pixels(two)).max() > 50


def test_what_the_parameters_in_a_file_say_makes_that_picture_again(client: TestClient) -> None:
    image = opened(made(client, second_stage_steps=5, sampler="ddim")["images"][0]["url"])
    again = parameters.request_of(parameters.read(image.info["parameters"]))
    assert np.array_equal(np.asarray(opened(made(client, **again)["images"][0]["url"])), np.asarray(image))


def test_without_sync_mode_a_picture_is_at_an_address_as_who_asked_reaches_it(client: TestClient) -> None:
    url = made(client, sync_mode=False)["images"][0]["url"]
    assert url.startswith("http://127.0.0.1:8000/v1/results/")
    fetched = client.get(url)
    assert fetched.headers["content-type"] == "image/png"
    assert Image.open(io.BytesIO(fetched.content)).size == (256, 384)
    headers = {"X-Forwarded-Proto": "https", "Host": "localhost:99"}
    answer = client.post(URL, json={"prompt": "a"}, headers=headers).json()
    assert answer["images"][0]["url"].startswith("https://localhost:99/v1/results/")


@pytest.mark.parametrize("accept", ["image/png", "image/webp", "image/jpeg", "image/*"])
def test_the_picture_itself_is_the_answer_where_accept_says_so(client: TestClient, accept: str) -> None:
    answer = client.post(URL, json={"prompt": "a", "seed": 9}, headers={"Accept": accept})
    assert answer.headers["content-type"] == accept.replace("*", "png")
    assert (answer.headers["X-Sote-Seed"], answer.headers["X-Sote-Size"]) == ("9", "256x384")
    assert answer.headers["X-Sote-Prompt-Tokens"] == "1"
    assert "blur" in answer.headers["X-Sote-Warning"]
    assert Image.open(io.BytesIO(answer.content)).size == (256, 384)


def test_several_pictures_do_not_go_into_one(client: TestClient) -> None:
    answer = client.post(URL, json={"prompt": "a", "num_images": 2}, headers={"Accept": "image/png"})
    assert answer.status_code == 422
    assert answer.json()["message"].startswith("num_images: 2 pictures do not go into one image answer")


@pytest.mark.parametrize(
    ("accept", "wanted"),
    [
        ("image/png", "png"),
        ("image/webp;q=0.9, */*", "webp"),
        ("IMAGE/*", "any"),
        ("application/json", None),
        ("*/*", None),
        ("image/tiff", None),
        ("text/html,image/png", None),
    ],
)
def test_the_first_entry_of_accept_decides(accept: str, wanted: str | None) -> None:
    assert picture_wanted(accept) == wanted


def test_parameters_stay_out_of_the_file_and_less_quality_is_smaller(client: TestClient) -> None:
    plain = opened(made(client, embed_parameters=False)["images"][0]["url"])
    assert "parameters" not in plain.info
    few, many = (made(client, output_format="webp", output_quality=q)["images"][0]["url"] for q in (10, 90))
    assert len(few) < len(many)


def test_sides_are_refused_with_the_nearest_or_rounded(client: TestClient) -> None:
    size = {"width": 300, "height": 256}
    assert refused(client, image_size=size) == (
        "image_size.width: 300 is not a multiple of 128 pixels; nearest: 256 and 384"
    )
    image = made(client, image_size=size, size_policy="round")["images"][0]
    assert (image["width"], image["height"]) == (256, 256)
    assert "this server makes at most 262144" in refused(client, image_size="square_hd")
    assert "this server makes at most 3" in refused(client, num_images=4)


def test_refusals_name_the_field_and_what_would_be_right(client: TestClient) -> None:
    assert "sampler: 'heun' is no sampler here; known: ddpm, euler" in refused(client, sampler="heun")
    assert "first_stage_steps: Input should be greater than or equal to 4" in refused(client, first_stage_steps=1)
    assert "hint: Extra inputs are not permitted" in refused(client, hint=1)
    assert "image_url: this server fetches nothing" in refused(client, image_url="https://example.org/a.png")


def test_a_long_prompt_says_how_many_tokens_it_has_and_what_was_not_read(client: TestClient) -> None:
    found = made(client, prompt="cat, " * 700)
    assert found["prompt_tokens"] == 1400
    assert any("1400" in warning or "800" in warning for warning in found["warnings"]), found["warnings"]


def test_latents_that_were_answered_are_decoded_to_the_same_picture(client: TestClient) -> None:
    found = made(client, return_latents=True)
    latents = found["images"][0]["latents"]
    assert latentfile.unpacked(latents).shape == (1, 16, 9, 6)
    again = {"latents": latents, "prompt": "a red circle", "seed": 5, "sync_mode": True}
    answer = client.post("/v1/decode", json=again)
    assert answer.status_code == 200, answer.text
    assert np.array_equal(
        np.asarray(opened(answer.json()["images"][0]["url"])), np.asarray(opened(found["images"][0]["url"]))
    )
    other = client.post("/v1/decode", json=again | {"second_stage_steps": 9}, headers={"Accept": "image/webp"})
    assert other.headers["content-type"] == "image/webp"


def test_latents_of_several_pictures_are_decoded_together(client: TestClient) -> None:
    latents = latentfile.packed(np.zeros((2, 16, 6, 6), np.float32))
    images = client.post("/v1/decode", json={"latents": latents, "second_stage_guidance_scale": 2}).json()["images"]
    assert [(image["width"], image["height"]) for image in images] == [(256, 256)] * 2
    many = latentfile.packed(np.zeros((4, 16, 6, 6), np.float32))
    assert "this server makes at most 3" in refused(client, "/v1/decode", latents=many)


def test_latents_that_cannot_be_are_refused(client: TestClient) -> None:
    assert "latents: not base64" in refused(client, "/v1/decode", latents="%")
    seven = latentfile.packed(np.zeros((16, 7, 6), np.float32))
    assert "no side of a picture has 7 cells" in refused(client, "/v1/decode", latents=seven)
    nan = latentfile.packed(np.full((16, 6, 6), np.nan, np.float32))
    assert "not finite" in refused(client, "/v1/decode", latents=nan)
