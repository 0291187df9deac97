"""The routes of jobs, through a real server: forms, statuses, events, pictures by address."""

import asyncio
import base64
import contextlib
import json
import re
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn

from sote.cluster.errors import RunFailed
from sote.serve import api, keys
from sote.serve.about import About
from sote.serve.access import Gate
from sote.serve.context import Context
from sote.serve.recipe import AccessPart, JobsPart, ModelPart, ServeRecipe
from tests.serve.brush import Brush, Clock, House, until

ASKED = {"prompt": "1girl, cat ears", "seed": 7}


@dataclass
class Run:
    """A run folder, and weights for what the server says about itself."""

    path: Path
    model: ModelPart


@dataclass
class Server:
    client: httpx.AsyncClient
    context: Context
    brush: Brush
    clock: Clock

    async def made(self, **fields: Any) -> dict[str, Any]:
        answer = await self.client.post("/v1/jobs", json=ASKED | fields)
        assert answer.status_code == 202, answer.text
        made: dict[str, Any] = answer.json()
        return made

    async def status(self, id: str) -> dict[str, Any]:
        found: dict[str, Any] = (await self.client.get(f"/v1/jobs/{id}")).json()
        return found

    async def ended(self, id: str) -> dict[str, Any]:
        async def is_ended() -> bool:
            return (await self.status(id))["status"] in ("COMPLETED", "FAILED", "CANCELLED")

        await until(is_ended)
        return await self.status(id)


@contextlib.asynccontextmanager
async def serving(run: Run, *, access: AccessPart | None = None) -> AsyncIterator[Server]:
    """The whole application behind a real HTTP server; what paints is a Brush."""
    clock, brush = Clock(), Brush()
    jobs_part = JobsPart(keep_seconds=100, running=1, max_waiting=2)
    recipe = ServeRecipe(run=str(run.path), model=run.model, jobs=jobs_part, access=access or AccessPart())
    house = House(run.path, clock, part=jobs_part, recipe=recipe)
    jobs = house.jobs(brush)
    context = Context(
        recipe=recipe,
        service=brush,
        gate=Gate.of(recipe),
        desk=jobs.desk,
        jobs=jobs,
        results=jobs.results,
        figures=jobs.desk.figures,
        about=About.of(recipe),
    )
    server = uvicorn.Server(uvicorn.Config(api.build(context), port=0, log_config=None, timeout_graceful_shutdown=2))
    running = asyncio.create_task(server.serve())
    await until(lambda: server.started)
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=20) as client:
            yield Server(client, context, brush, clock)
    finally:
        server.should_exit = True
        await running


async def events(client: httpx.AsyncClient, url: str, **headers: str) -> AsyncIterator[tuple[int, str, dict[str, Any]]]:
    """Each event as (id, name, data)."""
    async with client.stream("GET", url, headers=headers) as answer:
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith("text/event-stream")
        block: dict[str, str] = {}
        async for line in answer.aiter_lines():
            if line:
                name, _, value = line.partition(": ")
                block[name] = value
            elif "event" in block:
                yield int(block["id"]), block["event"], json.loads(block["data"])
                block = {}


@pytest.fixture
def run(tmp_path: Path, part: ModelPart) -> Run:
    return Run(tmp_path / "run", part)


def test_a_job_is_asked_for_followed_and_fetched(run: Run) -> None:
    async def main() -> None:
        async with serving(run) as server:
            made = await server.made(num_images=2)
            assert made["id"] == made["request_id"]
            assert made["status"] in ("IN_QUEUE", "IN_PROGRESS")
            await until(lambda: server.brush.begun == [7])
            early = await server.client.get(made["response_url"])
            assert (early.status_code, early.json()["status"]) == (202, "IN_PROGRESS")
            server.brush.gate.set()
            status = await server.ended(made["id"])
            assert status["status"] == "COMPLETED"
            assert status["progress"] == 1
            assert status["expires"] > status["finished"] >= status["started"] >= status["created"]
            result = (await server.client.get(made["response_url"])).json()
            assert result == status["result"]
            assert [image["seed"] for image in result["images"]] == [7, 8]
            for image in result["images"]:
                picture = await server.client.get(image["url"])
                assert picture.headers["content-type"] == image["content_type"] == "image/png"
                assert picture.content.startswith(b"\x89PNG")
                assert re.fullmatch(r"private, max-age=(9\d|100), immutable", picture.headers["cache-control"])

    asyncio.run(main())


def test_events_come_in_order_with_previews_and_end_with_the_job(run: Run) -> None:
    async def main() -> None:
        async with serving(run) as server:
            await server.made(seed=1)
            made = await server.made(seed=2)
            seen: list[tuple[int, str, dict[str, Any]]] = []

            async def follow() -> None:
                async for event in events(server.client, made["events_url"]):
                    seen.append(event)

            following = asyncio.create_task(follow())
            await until(lambda: len(seen) == 1)
            assert (seen[0][1], seen[0][2]["status"], seen[0][2]["queue_position"]) == ("status", "IN_QUEUE", 0)
            server.brush.gate.set()
            await asyncio.wait_for(following, 10)
            assert [number for number, _, _ in seen] == list(range(1, len(seen) + 1))
            names = [name for _, name, _ in seen]
            assert set(names) == {"status", "progress", "completed"}
            assert names[-1] == "completed"
            assert seen[-1][2]["result"]["images"][0]["seed"] == 2
            parts = [data["progress"] for _, _, data in seen]
            assert parts == sorted(parts)
            preview = next(data["preview"] for _, name, data in seen if name == "progress")
            assert preview == "data:image/jpeg;base64," + base64.b64encode(b"a small jpeg").decode()
            late = [event async for event in events(server.client, made["events_url"], **{"Last-Event-ID": "41"})]
            assert [(number, name) for number, name, _ in late] == [(42, "completed")]

    asyncio.run(main())


@pytest.mark.parametrize("number", ["x", "9" * 5000, "-1", "1.5", "1 1"])
def test_a_last_event_id_that_is_no_number_is_passed_over(run: Run, number: str) -> None:
    async def main() -> None:
        async with serving(run) as server:
            server.brush.gate.set()
            made = await server.made()
            await server.ended(made["id"])
            seen = [event async for event in events(server.client, made["events_url"], **{"Last-Event-ID": number})]
            assert seen[0][0] == 1

    asyncio.run(main())


def test_who_leaves_the_events_cancels_nothing(run: Run) -> None:
    async def main() -> None:
        async with serving(run) as server:
            made = await server.made()
            async for _, name, _ in events(server.client, made["events_url"]):
                if name == "progress":
                    break
            server.brush.gate.set()
            assert (await server.ended(made["id"]))["status"] == "COMPLETED"
            assert server.brush.cancelled == []

    asyncio.run(main())


@pytest.mark.parametrize(("method", "path"), [("PUT", "/cancel"), ("POST", "/cancel"), ("DELETE", "")])
def test_a_job_is_cancelled_by_each_way_and_its_followers_are_told(run: Run, method: str, path: str) -> None:
    async def main() -> None:
        async with serving(run) as server:
            made = await server.made()
            names: list[str] = []

            async def follow() -> None:
                async for _, name, _ in events(server.client, made["events_url"]):
                    names.append(name)

            following = asyncio.create_task(follow())
            await until(lambda: "progress" in names)
            answer = await server.client.request(method, f"/v1/jobs/{made['id']}{path}")
            assert answer.status_code == (200 if method == "DELETE" else 202)
            assert answer.json()["status"] == ("CANCELLED" if method == "DELETE" else "CANCELLATION_REQUESTED")
            await asyncio.wait_for(following, 10)
            assert names[-1] == "cancelled"
            assert server.brush.cancelled == [7]
            result = await server.client.get(made["response_url"])
            assert (result.status_code, result.json()["message"]) == (409, "the job was cancelled")
            again = await server.client.put(f"/v1/jobs/{made['id']}/cancel")
            assert (again.status_code, again.json()["status"]) == (400, "ALREADY_COMPLETED")

    asyncio.run(main())


def test_a_job_that_is_over_is_removed_with_its_pictures(run: Run) -> None:
    async def main() -> None:
        async with serving(run) as server:
            server.brush.gate.set()
            made = await server.made()
            status = await server.ended(made["id"])
            (image,) = status["result"]["images"]
            assert (await server.client.delete(made["status_url"])).status_code == 200
            for url in (made["status_url"], made["response_url"], made["events_url"], image["url"]):
                assert (await server.client.get(url)).status_code == 404

    asyncio.run(main())


def test_the_result_of_a_failed_job_has_the_status_of_its_error(run: Run) -> None:
    async def main() -> None:
        async with serving(run) as server:
            server.brush.errors = [RunFailed("decoder: step 3 of 10: values are not finite")]
            made = await server.made()
            status = await server.ended(made["id"])
            assert status["error"] == {"status": 500, "message": "decoder: step 3 of 10: values are not finite"}
            result = await server.client.get(made["response_url"])
            assert result.status_code == 500
            assert result.json() == {"message": "decoder: step 3 of 10: values are not finite", "detail": []}
            seen = [event async for event in events(server.client, made["events_url"])]
            assert [name for _, name, _ in seen] == ["failed"]

    asyncio.run(main())


def test_a_full_line_is_429_with_retry_after(run: Run) -> None:
    async def main() -> None:
        async with serving(run) as server:
            for seed in (1, 2, 3):
                await server.made(seed=seed)
                await until(lambda: server.brush.begun == [1])
            answer = await server.client.post("/v1/jobs", json=ASKED)
            assert answer.status_code == 429
            assert int(answer.headers["retry-after"]) >= 1

    asyncio.run(main())


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"image_size": {"width": 1000, "height": 1024}}, "image_size.width"),
        ({"webhook_url": "ftp://example.com"}, "webhook_url: must be an http or https address"),
        ({"first_stage_steps": 1000}, "first_stage_steps"),
        ({"unknown": 1}, "unknown"),
    ],
)
def test_what_cannot_be_made_is_422_and_names_the_field(run: Run, fields: dict[str, Any], message: str) -> None:
    async def main() -> None:
        async with serving(run) as server:
            answer = await server.client.post("/v1/jobs", json=ASKED | fields)
            assert answer.status_code == 422
            assert message in answer.json()["message"]

    asyncio.run(main())


def test_a_webhooks_secret_is_told_once(run: Run) -> None:
    async def main() -> None:
        async with serving(run) as server:
            made = await server.made(webhook_url="http://127.0.0.1:9/")
            assert len(made["webhook_secret"]) == 64
            assert made["webhook_secret"] not in (await server.client.get(made["status_url"])).text
            answer = await server.client.post("/v1/jobs", params={"fal_webhook": "http://127.0.0.1:9/"}, json=ASKED)
            assert "webhook_secret" in answer.json()

    asyncio.run(main())


def test_the_list_shows_own_jobs_the_newest_first_and_no_prompts(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "keys.toml"
    ada, eve = (keys.add(path, name, keys.Limits()) for name in ("ada", "eve"))

    async def main() -> None:
        async with serving(run, access=AccessPart(keys=str(path))) as server:
            server.client.headers["Authorization"] = f"Bearer {ada}"
            server.brush.gate.set()
            ids = []
            for seed in (1, 2, 3):
                ids.append((await server.made(seed=seed))["id"])
                await server.ended(ids[-1])
            listed = await server.client.get("/v1/jobs", params={"limit": 2})
            assert [job["id"] for job in listed.json()["jobs"]] == [ids[2], ids[1]]
            assert listed.json()["total"] == 3
            assert "cat ears" not in listed.text
            (image,) = (await server.status(ids[0]))["result"]["images"]
            server.client.headers["Authorization"] = f"Bearer {eve}"
            assert (await server.client.get("/v1/jobs")).json() == {"jobs": [], "total": 0}
            for method, end in (
                ("GET", ""),
                ("GET", "/result"),
                ("GET", "/events"),
                ("DELETE", ""),
                ("PUT", "/cancel"),
            ):
                assert (await server.client.request(method, f"/v1/jobs/{ids[0]}{end}")).status_code == 404
            del server.client.headers["Authorization"]
            assert (await server.client.get("/v1/jobs")).status_code == 401
            assert (await server.client.get(image["url"])).status_code == 200  # its name is the key to it

    asyncio.run(main())


@pytest.mark.parametrize(
    "name",
    [
        "..%2fjobs",
        "%2e%2e%2f%2e%2e%2fetc%2fpasswd",
        "x.png",
        "0" * 32 + ".png",
        "0" * 32 + ".png%00",
        "0" * 32 + ".txt",
    ],
)
def test_a_picture_that_is_none_is_404_in_words(run: Run, name: str) -> None:
    async def main() -> None:
        async with serving(run) as server:
            answer = await server.client.get(f"/v1/results/{name}")
            assert answer.status_code == 404
            if "%2f" not in name:
                assert answer.json()["message"] == "there is no such picture, or its time is over"

    asyncio.run(main())


def test_a_picture_is_gone_when_its_time_is_over(run: Run) -> None:
    async def main() -> None:
        async with serving(run) as server:
            server.brush.gate.set()
            made = await server.made()
            (image,) = (await server.ended(made["id"]))["result"]["images"]
            server.clock.time += 101
            assert (await server.client.get(image["url"])).status_code == 404
            assert (await server.client.get(made["status_url"])).status_code == 404

    asyncio.run(main())


def test_the_document_says_all_that_the_routes_answer(run: Run) -> None:
    async def main() -> None:
        async with serving(run) as server:
            document = (await server.client.get("/openapi.json")).json()
            jobs = {path: item for path, item in document["paths"].items() if path.startswith("/v1/jobs")}
            assert {path: set(item) for path, item in jobs.items()} == {
                "/v1/jobs": {"get", "post"},
                "/v1/jobs/{id}": {"get", "delete"},
                "/v1/jobs/{id}/result": {"get"},
                "/v1/jobs/{id}/events": {"get"},
                "/v1/jobs/{id}/cancel": {"put", "post"},
            }
            for path, item in jobs.items():
                for operation in item.values():
                    assert operation["tags"] == ["jobs"]
                    assert operation["summary"]
                    assert "{id}" not in path or "404" in operation["responses"]
            post = jobs["/v1/jobs"]["post"]
            assert {"202", "422", "429", "503"} <= set(post["responses"])
            assert {"200", "202", "404", "409", "422", "500", "503"} <= set(
                jobs["/v1/jobs/{id}/result"]["get"]["responses"]
            )
            assert document["components"]["schemas"]["JobRequest"]["examples"]
            assert "/v1/results/{name}" in document["paths"]

    asyncio.run(main())


def test_a_silent_stream_is_kept_open_by_comments(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sote.serve.jobs.STILL_SECONDS", 0.05)

    async def main() -> None:
        async with serving(run) as server:
            await server.made(seed=1)
            made = await server.made(seed=2)
            async with server.client.stream("GET", made["events_url"]) as answer:
                async for line in answer.aiter_lines():
                    if line.startswith(":"):
                        break
                else:
                    pytest.fail("no comment came")

    asyncio.run(main())
