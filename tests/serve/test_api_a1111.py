"""AUTOMATIC1111's API over the stand-ins: its forms, progress, interrupt, lists."""

import asyncio
import base64
import io
import json
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from fastapi.testclient import TestClient
from PIL import Image
from pydantic import ValidationError

from sote.cluster.errors import Busy, RequestError
from sote.serve import api
from sote.serve.context import Context
from sote.serve.recipe import DefaultsPart
from sote.serve.schema_a1111 import ImageToImage, TextToImage
from sote.serve.service import Painting, Watch
from sote.serve.settings import Progress, Settings

TXT = "/sdapi/v1/txt2img"
HERE = "http://127.0.0.1:8000"


def opened(text: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(text)))


def made(client: TestClient, **fields: Any) -> tuple[list[str], dict[str, Any], dict[str, Any]]:
    """Pictures, parameters and info."""
    answer = client.post(TXT, json={"prompt": "a red circle", "seed": 5} | fields)
    assert answer.status_code == 200, answer.text
    body = answer.json()
    assert set(body) == {"images", "parameters", "info"}
    return body["images"], body["parameters"], json.loads(body["info"])


def refused(client: TestClient, url: str = TXT, **fields: Any) -> str:
    answer = client.post(url, json=fields)
    assert answer.status_code == 422
    body = answer.json()
    assert set(body) == {"error", "detail", "body", "errors"}
    return str(body["detail"])


def test_pictures_come_as_the_web_ui_answers_them(client: TestClient) -> None:
    images, echo, info = made(client, negative_prompt="blue", batch_size=2, width=384, height=256, cfg_scale=6.5)
    assert [opened(image).size for image in images] == [(384, 256)] * 2
    assert (echo["prompt"], echo["cfg_scale"], echo["width"], echo["batch_size"]) == ("a red circle", 6.5, 384, 2)
    assert (info["seed"], info["all_seeds"], info["width"], info["height"]) == (5, [5, 6], 384, 256)
    assert (info["sampler_name"], info["cfg_scale"], info["steps"]) == ("DPM++ 2M", 6.5, 4)
    assert info["all_prompts"] == ["a red circle"] * 2
    assert info["negative_prompt"] == "blue"
    assert info["sd_model_name"] == "stand-in"
    assert info["infotexts"][1] == opened(images[1]).info["parameters"]


def test_it_is_the_picture_of_the_native_api(client: TestClient) -> None:
    native = client.post("/v1/generate", json={"prompt": "a red circle", "seed": 5, "sync_mode": True}).json()
    assert made(client)[0][0] == native["images"][0]["url"].partition(",")[2]
    assert made(client, second_stage_steps=5)[0] != made(client)[0]


def test_what_the_web_ui_sends_beside_is_taken(client: TestClient) -> None:
    """A body as its clients send it, defaults and nulls of that program included."""
    _, _, info = made(
        client,
        styles=["x"],
        enable_hr=True,
        subseed=-1,
        tiling=None,
        save_images=True,
        script_args=[],
        alwayson_scripts={"ControlNet": {"args": []}},
        override_settings={"sd_model_checkpoint": "stand-in.safetensors [0123456789]", "CLIP_stop_at_last_layers": 2},
        sampler_index="Euler",
        steps=None,
        width=None,
        denoising_strength=0,
        hr_scale=2,
    )
    assert info["sampler_name"] == "Euler"
    said = " ".join(info["comments"])
    for name in ("styles", "enable_hr", "save_images", "alwayson_scripts"):
        assert f"{name}: " in said
    assert "tiling" not in said


def native(**fields: Any) -> Any:
    return TextToImage.model_validate(fields).native(DefaultsPart())


def test_samplers_are_known_by_their_names_here_and_there() -> None:
    both = native(sampler_name="DPM++ 2M Karras")
    assert (both.sampler, both.scheduler) == ("dpmpp_2m", "karras")
    apart = native(sampler_name="Euler a", scheduler="SGM Uniform")
    assert (apart.sampler, apart.scheduler) == ("euler_a", "sgm_uniform")
    own = native(sampler_name="Euler a", scheduler="Automatic")
    assert (own.sampler, own.scheduler) == ("euler_a", None)
    assert native(sampler_name="DPM++ 2M Karras", scheduler="Simple").scheduler == "simple"
    with pytest.raises(ValidationError, match="'Heun' is no sampler here; known: ddpm, euler"):
        native(sampler_name="Heun")


def test_a_body_becomes_a_native_request() -> None:
    asked = native(seed=-1, batch_size=2, n_iter=3, steps=9, cfg_scale=2, width=512)
    assert (asked.seed, asked.num_images, asked.first_stage_steps, asked.guidance_scale) == (None, 6, 9, 2)
    assert (asked.image_size.width, asked.image_size.height) == (512, 1536)
    assert native().image_size is None
    assert native().num_images == 1
    assert native(override_settings={"samples_format": "jpg"}).output_format == "jpeg"
    with pytest.raises(RequestError, match="batch_size x n_iter: 100 asked for"):
        native(batch_size=10, n_iter=10)


def test_img2img_becomes_a_native_request() -> None:
    asked = ImageToImage(init_images=["data:x"], denoising_strength=0.4).native(DefaultsPart())
    assert (asked.image_url, asked.strength) == ("data:x", 0.4)
    with pytest.raises(RequestError, match="mask: this server paints whole pictures"):
        ImageToImage(init_images=["x"], mask="x").native(DefaultsPart())


def test_refusals_name_the_web_uis_fields(client: TestClient) -> None:
    assert refused(client, width=300) == "width: 300 is not a multiple of 128 pixels; nearest: 256 and 384"
    assert made(client, width=300, size_policy="round")[2]["width"] == 256
    assert refused(client, steps=0).startswith("steps: ")
    assert refused(client, n_iter=4) == "batch_size x n_iter: 4 asked for, this server makes at most 3"
    assert "known: ddpm, euler" in refused(client, sampler_name="UniPC")
    assert "this server has 'stand-in'" in refused(client, override_settings={"sd_model_checkpoint": "sd15"})
    assert refused(client, "/sdapi/v1/img2img", init_images=["%%"]).startswith("init_images: ")
    assert refused(client, "/sdapi/v1/img2img", init_images=[]).startswith("init_images: ")


def test_pictures_can_stay_away(client: TestClient) -> None:
    images, _, info = made(client, send_images=False)
    assert images == []
    assert len(info["infotexts"]) == 1


def test_a_picture_without_an_encoder_is_refused_in_words(client: TestClient) -> None:
    image = base64.b64encode(picture()).decode()
    assert "init_images: this server has no encoder for" in refused(client, "/sdapi/v1/img2img", init_images=[image])


def picture() -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.zeros((64, 64, 3), np.uint8)).save(file, "PNG")
    return file.getvalue()


def test_a_picture_to_start_from_reaches_the_models_at_their_size(context: Context) -> None:
    seen: list[Settings] = []

    class Recorder:
        async def paint(self, settings: Settings, *, watch: Watch | None = None) -> Painting:
            seen.append(settings)
            raise Busy("full", retry_after_seconds=1)

    desk = replace(context.desk, service=Recorder())  # type: ignore[arg-type]
    client = TestClient(api.build(replace(context, desk=desk)), base_url=HERE)
    image = base64.b64encode(picture()).decode()
    for text, fields in ((image, {}), (f"data:image/png;base64,{image}", {"denoising_strength": 0.3, "mask": ""})):
        body = {"prompt": "a", "init_images": [text], "resize_mode": 1, "inpainting_fill": 1} | fields
        assert client.post("/sdapi/v1/img2img", json=body).status_code == 429
    assert [settings.strength for settings in seen] == [0.75, 0.3]
    for settings in seen:
        assert settings.start is not None
        assert settings.start.shape == (32 * 9, 32 * 6, 3)


class Slow:
    """A service whose paintings take until they are ended."""

    async def paint(self, settings: Settings, *, watch: Watch | None = None) -> Painting:
        assert watch is not None
        watch(Progress("prior", settings.prior.steps // 2, settings.prior.steps, b"a preview"))
        await asyncio.sleep(60)
        raise AssertionError


def slow(context: Context) -> httpx.AsyncClient:
    desk = replace(context.desk, service=Slow())  # type: ignore[arg-type]
    app = api.build(replace(context, desk=desk))
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url=HERE)


@pytest.mark.parametrize("way", ["interrupt", "skip"])
def test_progress_tells_of_ones_own_work_and_an_interrupt_ends_it(context: Context, way: str) -> None:
    async def run() -> None:
        async with slow(context) as client:
            idle = (await client.get("/sdapi/v1/progress")).json()
            assert (idle["progress"], idle["state"]["job_count"], idle["current_image"]) == (0, 0, None)
            asked = asyncio.create_task(client.post(TXT, json={"prompt": "a", "steps": 4, "second_stage_steps": 4}))
            await asyncio.sleep(0.3)
            seen = (await client.get("/sdapi/v1/progress")).json()
            assert seen["progress"] == 0.25
            assert (seen["state"]["job"], seen["state"]["job_count"]) == ("txt2img", 1)
            assert (seen["state"]["sampling_step"], seen["state"]["sampling_steps"]) == (2, 8)
            assert seen["eta_relative"] > 0
            assert base64.b64decode(seen["current_image"]) == b"a preview"
            bare = (await client.get("/sdapi/v1/progress", params={"skip_current_image": True})).json()
            assert bare["current_image"] is None
            start = time.monotonic()
            assert (await client.post(f"/sdapi/v1/{way}")).json() == {}
            answer = await asked
            assert time.monotonic() - start < 10
            info = json.loads(answer.json()["info"])
            assert (answer.status_code, answer.json()["images"], info["interrupted"]) == (200, [], True)
            assert "interrupted" in info["comments"][0]
            assert (await client.get("/sdapi/v1/progress")).json()["state"]["job_count"] == 0

    asyncio.run(run())


def test_lists_are_what_user_interfaces_ask_for(client: TestClient) -> None:
    def got(name: str) -> Any:
        answer = client.get(f"/sdapi/v1/{name}")
        assert answer.status_code == 200
        return answer.json()

    samplers = {item["name"]: item["aliases"] for item in got("samplers")}
    assert "k_dpmpp_2m" in samplers["DPM++ 2M"]
    assert {"name": "karras", "label": "Karras", "default_rho": 7.0}.items() <= got("schedulers")[2].items()
    model = got("sd-models")[0]
    assert (model["model_name"], model["config"]) == ("stand-in", None)
    assert model["title"].startswith("stand-in")
    for name in ("upscalers", "sd-vae", "loras", "hypernetworks", "prompt-styles", "latent-upscale-modes"):
        assert got(name) == []
    assert got("cmd-flags") == {}
    assert got("embeddings") == {"loaded": {}, "skipped": {}}
    assert got("memory")["ram"]["total"] > 0
    assert client.post("/sdapi/v1/refresh-checkpoints").status_code == 200


@pytest.fixture
def options(client: TestClient) -> Iterator[str]:
    yield "/sdapi/v1/options"
    client.post("/sdapi/v1/options", json={"samples_format": "png"})


def test_options_that_have_a_meaning_are_kept_and_others_ignored(client: TestClient, options: str) -> None:
    title = client.get(options).json()["sd_model_checkpoint"]
    assert title.startswith("stand-in")
    answer = client.post(options, json={"sd_model_checkpoint": title, "samples_format": "webp", "eta_noise": 3})
    assert answer.status_code == 200
    assert client.get(options).json()["samples_format"] == "webp"
    assert opened(made(client)[0][0]).format == "WEBP"
    assert opened(made(client, output_format="png")[0][0]).format == "PNG"
    assert "this server has 'stand-in'" in refused(client, options, sd_model_checkpoint="sd15")
    assert "samples_format" in refused(client, options, samples_format="avif")


def test_the_parameters_of_a_file_are_read(client: TestClient) -> None:
    for form in ("png", "jpeg", "webp"):
        images, _, info = made(client, output_format=form, negative_prompt="blue")
        for text in (images[0], f"data:image/{form};base64,{images[0]}"):
            found = client.post("/sdapi/v1/png-info", json={"image": text}).json()
            assert found["info"] == info["infotexts"][0]
            assert (found["parameters"]["Prompt"], found["parameters"]["Seed"]) == ("a red circle", "5")
            assert found["request"]["negative_prompt"] == "blue"


def test_broken_files_have_no_parameters(client: TestClient) -> None:
    whole = picture()
    for data in (b"", b"\x89PNG\r\n\x1a\n", whole[:20], whole[:40] + b"\xff" * 40, Path(__file__).read_bytes()):
        text = base64.b64encode(data).decode()
        answer = client.post("/sdapi/v1/png-info", json={"image": text})
        assert answer.status_code in (200, 422)
    assert "image: no PNG" in refused(client, "/sdapi/v1/png-info", image="")
