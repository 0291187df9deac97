"""The page in a real browser: headless Chromium, driven over its DevTools protocol, before a server of stand-ins."""

import contextlib
import itertools
import json
import re
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
from fastapi import FastAPI
from fastapi.testclient import TestClient
from websockets.sync.client import ClientConnection, connect

from sote.serve import api, keys, page
from sote.serve.cascade import Local
from sote.serve.ingress import context_of
from sote.serve.recipe import AccessPart, DefaultsPart, JobsPart, LimitsPart, ModelPart, ServeRecipe

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
CONTROL = 2  # DevTools' bit of the Ctrl key
CODES = {"Enter": 13, "Escape": 27, "Tab": 9, "ArrowRight": 39, "ArrowLeft": 37}
READY = "document.readyState === 'complete' && !!document.querySelector('#sizes input')"
PAINTED = "!!document.querySelector('a[download]')"
CLIPBOARD = (
    "Object.defineProperty(navigator, 'clipboard', {value: {writeText: async (text) => { window.kept = text; }}})"
)
REFUSED = "!document.getElementById('problem').hidden"
SLOW = "&first_stage_steps=50&second_stage_steps=24&image_size=512x512&num_images=3"  # seconds of work


class Tab:
    """One page of the browser, with a session of its own."""

    def __init__(self, socket: ClientConnection) -> None:
        self.socket = socket
        self.numbers = itertools.count(1)
        self.events: list[dict[str, Any]] = []
        for domain in ("Page", "Runtime", "Log"):
            self.do(f"{domain}.enable")

    def do(self, method: str, **params: Any) -> dict[str, Any]:
        number = next(self.numbers)
        self.socket.send(json.dumps({"id": number, "method": method, "params": params}))
        while True:
            said = json.loads(self.socket.recv(timeout=60))
            if said.get("id") == number:
                assert "error" not in said, said
                return dict(said["result"])
            self.events.append(said)

    def js(self, code: str) -> Any:
        """The value of an expression, awaited."""
        found = self.do("Runtime.evaluate", expression=code, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def until(self, code: str, *, seconds: float = 60) -> None:
        end = time.monotonic() + seconds
        while not self.js(code):
            assert time.monotonic() < end, f"not within {seconds} s: {code}"
            time.sleep(0.02)

    def go(self, address: str) -> None:
        self.do("Page.navigate", url=address)
        self.until(READY)

    def text(self, selector: str) -> str:
        return str(self.js(f"document.querySelector({selector!r})?.innerText ?? ''"))

    def value(self, name: str) -> str:
        return str(self.js(f"document.getElementById('form').elements[{name!r}].value"))

    def click(self, selector: str) -> None:
        self.js(f"document.querySelector({selector!r}).click()")

    def write(self, name: str, text: str) -> None:
        """Type into a field of the form."""
        self.js(f"(() => {{ const f = document.getElementById('form').elements[{name!r}]; f.focus(); f.select(); }})()")
        self.do("Input.insertText", text=text)

    def press(self, key: str, *, modifiers: int = 0) -> None:
        typed = {"text": "\r"} if key == "Enter" and not modifiers else {}
        for kind, more in (("keyDown", typed), ("keyUp", {})):
            code = CODES[key]
            self.do(
                "Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code, modifiers=modifiers,
                **more,
            )  # fmt: skip

    def width(self, pixels: int, height: int = 640) -> None:
        self.do("Emulation.setDeviceMetricsOverride", width=pixels, height=height, deviceScaleFactor=1, mobile=True)

    def complaints(self) -> list[dict[str, Any]]:
        """Exceptions, errors on the console, breaches of the content policy, files that did not come."""
        self.js("1")  # what was said before this is here now
        kinds = ("Runtime.exceptionThrown", "Log.entryAdded")
        return [
            event["params"]
            for event in self.events
            if event["method"] in kinds
            or (event["method"] == "Runtime.consoleAPICalled" and event["params"]["type"] in ("error", "warning"))
        ]


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """The port on which a headless browser listens."""
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None:
        pytest.skip(f"no browser on this machine; looked for {', '.join(BROWSERS)}")
    folder = tmp_path_factory.mktemp("browser")
    flags = ("--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-dev-shm-usage")
    command = [found, *flags, "--remote-debugging-port=0", f"--user-data-dir={folder}", "about:blank"]
    running = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        port_file = folder / "DevToolsActivePort"
        end = time.monotonic() + 60
        while not (port_file.is_file() and port_file.read_text().count("\n")):
            assert running.poll() is None, "the browser ended at its start"
            assert time.monotonic() < end, "the browser did not start"
            time.sleep(0.05)
        yield int(port_file.read_text().splitlines()[0])
    finally:
        running.terminate()
        running.wait(30)


@contextlib.contextmanager
def served(app: FastAPI) -> Iterator[str]:
    """The address of a server of `app`, in a thread of this process."""
    server = uvicorn.Server(uvicorn.Config(app, log_level="error", timeout_graceful_shutdown=2))
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}/"
        finally:
            server.should_exit = True
            thread.join(60)


def recipe_of(run: Path, part: ModelPart, **parts: Any) -> ServeRecipe:
    defaults = DefaultsPart(width=256, height=384, prior_steps=8, decoder_steps=4, negative_prompt="oldest")
    limits = LimitsPart(max_pixels=512 * 512, max_images=3)
    return ServeRecipe(run=str(run), model=part, defaults=defaults, limits=limits, **parts)


@pytest.fixture(scope="module")
def address(service: Local, part: ModelPart, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    recipe = recipe_of(tmp_path_factory.mktemp("page"), part)
    with served(api.build(context_of(recipe, service))) as found:
        yield found


@pytest.fixture
def tab(browser: int) -> Iterator[Tab]:
    """A fresh tab; at its end the browser must have nothing to complain about but answers that are errors."""
    opened = httpx.put(f"http://127.0.0.1:{browser}/json/new?about:blank").json()
    with connect(opened["webSocketDebuggerUrl"], max_size=None) as socket:
        made = Tab(socket)
        yield made
        said = [each for each in made.complaints() if each.get("entry", {}).get("source") != "network"]
        made.do("Page.close")
    assert said == []


def test_the_files_have_types_a_policy_and_tags(client: TestClient) -> None:
    for file in page.files():
        answer = client.get(file.path)
        assert answer.status_code == 200
        assert answer.headers["content-type"] == file.content_type
        assert answer.headers["content-security-policy"].startswith("default-src 'self'; img-src 'self' data: blob:;")
        again = client.get(file.path, headers={"If-None-Match": f'"other", {answer.headers["etag"]}'})
        assert (again.status_code, again.content) == (304, b"")
        assert file.path not in client.get("/openapi.json").json()["paths"]


def test_every_file_that_the_page_names_is_there_and_nothing_is_inline() -> None:
    texts = {file.path: file.data.decode() for file in page.files()}
    named = {
        name for text in texts.values() for name in re.findall(r'(?:from|src=|href=) ?"(?:\./)?(page[\w.]+)"', text)
    }
    assert {f"/{name}" for name in named} == texts.keys() - {"/"}
    assert not re.search(r"<style|<script(?! type=\"module\" src=)| style=| on\w+=", texts["/"])


def test_it_loads_without_complaint_and_shows_the_servers_settings(tab: Tab, address: str) -> None:
    tab.go(address)
    assert tab.complaints() == []
    shown = {name: tab.value(name) for name in ("first_stage_steps", "sampler", "size", "negative_prompt")}
    assert shown == {
        "first_stage_steps": "8",
        "sampler": "dpmpp_2m",
        "size": "256x384",
        "negative_prompt": "oldest",
    }
    assert "2048" not in tab.text("#sizes")  # beyond the limits
    assert "Stability" in tab.text("#about")
    assert tab.js("[...document.querySelectorAll('#form input:not([type=range]), #form select, #form textarea')]"
                  ".filter((f) => !f.labels.length && !f.getAttribute('aria-labelledby')).length") == 0  # fmt: skip


def test_control_and_enter_paint_a_picture_that_shows_its_seed(tab: Tab, address: str) -> None:
    tab.go(address)
    tab.click("#use_default_tags")
    tab.write("seed", "7")
    tab.write("prompt", "1girl, <b>cat ears</b>")
    whole = "newest, extremely aesthetic, best quality, 1girl, <b>cat ears</b>"
    assert tab.text("#whole-positive") == whole
    tab.press("Enter", modifiers=CONTROL)
    tab.until(PAINTED)
    assert "seed 7" in tab.text("#caption")
    assert whole in tab.text("#caption")
    tab.until("document.querySelector('.frame img').naturalWidth === 256")
    tab.click(".frame")
    assert tab.js("document.getElementById('lightbox').open")
    tab.press("Escape")
    tab.until("!document.getElementById('lightbox').open")


def test_a_preview_is_seen_while_it_paints(tab: Tab, address: str) -> None:
    tab.go(f"{address}#prompt=1girl&first_stage_steps=30")
    tab.js(
        "window.seen = []; new MutationObserver(() => seen.push(document.querySelector('.is-painting img')?.src ?? ''))"
        ".observe(document.getElementById('easel'), {subtree: true, attributeFilter: ['src']})"
    )
    tab.click("#paint")
    tab.until(PAINTED)
    assert any(source.startswith("data:image/jpeg") for source in tab.js("seen"))


def test_what_the_server_says_of_a_field_stands_at_that_field(tab: Tab, address: str) -> None:
    tab.go(address)
    tab.write("prompt", "1girl")
    tab.click("#sizes input[value=own]")
    tab.write("width", "300")
    tab.write("first_stage_steps", "99")
    tab.press("Enter", modifiers=CONTROL)
    tab.until("!!document.querySelector('[data-field=first_stage_steps] .error')")
    assert "50" in tab.text("[data-field=first_stage_steps] .error")
    tab.write("first_stage_steps", "4")
    tab.press("Enter", modifiers=CONTROL)
    tab.until("!!document.querySelector('[data-field=image_size] .error')")
    assert tab.text("[data-field=image_size] .error") == "300 is not a multiple of 128 pixels; nearest: 256 and 384"
    assert tab.text("[data-field=first_stage_steps] .error") == ""


def test_a_link_with_settings_fills_the_form_and_is_made_again_from_a_picture(tab: Tab, address: str) -> None:
    settings = "prompt=a%26b%2C+c&seed=5&image_size=384x256&sampler=euler_a&weights=false&compression=32"
    tab.go(f"{address}#{settings}")
    shown = [tab.value(name) for name in ("prompt", "seed", "size", "sampler", "compression", "width")]
    assert shown == ["a&b, c", "5", "own", "euler_a", "32", "384"]
    assert tab.js("document.getElementById('weights').checked") is False
    tab.js(CLIPBOARD)
    tab.click("#paint")
    tab.until(PAINTED)
    tab.click("[data-action=link]")
    tab.until("!!window.kept")
    pairs = httpx.URL(str(tab.js("kept")).replace("#", "?")).params
    assert {name: pairs[name] for name in ("prompt", "seed", "image_size", "sampler", "weights")} == {
        "prompt": "a&b, c", "seed": "5", "image_size": "384x256", "sampler": "euler_a", "weights": "false",
    }  # fmt: skip


@pytest.mark.parametrize("kind", ["png", "webp"])
def test_a_picture_that_is_dropped_fills_the_form(tab: Tab, address: str, kind: str) -> None:
    asked = {"prompt": "1girl, 猫", "seed": 11, "sampler": "ddim", "second_stage_steps": 5, "use_default_tags": True}
    made = httpx.post(f"{address}v1/generate", json={**asked, "output_format": kind}, timeout=60).json()
    url = made["images"][0]["url"]
    tab.go(address)
    tab.js(
        f"fetch({url!r}).then((r) => r.blob()).then((blob) => {{ const carried = new DataTransfer(); "
        "carried.items.add(new File([blob], 'x', {type: blob.type})); "
        "document.body.dispatchEvent(new DragEvent('drop', {dataTransfer: carried, bubbles: true})); })"
    )
    tab.until("document.getElementById('form').elements.seed.value === '11'")
    assert tab.value("prompt") == "newest, extremely aesthetic, best quality, 1girl, 猫"
    assert [tab.value(name) for name in ("sampler", "second_stage_steps", "scheduler")] == ["ddim", "5", "sgm_uniform"]
    assert tab.js("document.getElementById('use_default_tags').checked") is False  # they are in the prompt already


def test_another_programs_parameters_are_read(tab: Tab, address: str) -> None:
    tab.go(address)
    text = "a, (b:1.2)\nNegative prompt: c\nSteps: 20, Sampler: DPM++ 2M Karras, CFG scale: 6.5, Seed: 3, Size: 512x768"
    found = tab.js(
        "Promise.all([import('./page_parameters.js'), fetch('v1/about').then((r) => r.json())])"
        f".then(([read, about]) => read.requestOf({json.dumps(text)}, about))"
    )
    assert found == {
        "prompt": "a, (b:1.2)", "negative_prompt": "c", "use_default_tags": False, "weights": True,
        "first_stage_steps": 20, "guidance_scale": 6.5, "seed": 3, "image_size": {"width": 512, "height": 768},
        "sampler": "dpmpp_2m", "scheduler": "karras",
    }  # fmt: skip


def test_a_picture_is_varied_and_its_settings_are_copied(tab: Tab, address: str) -> None:
    tab.go(f"{address}#prompt=1girl&seed=5")
    tab.js(CLIPBOARD)
    tab.click("#paint")
    tab.until(PAINTED)
    tab.click("[data-action=copy]")
    tab.until("!!window.kept")
    assert re.match(r"1girl\nNegative prompt: oldest\nSteps: 8, .*Seed: 5, ", str(tab.js("kept")))
    tab.click("[data-action=vary]")
    tab.until("document.querySelectorAll('#variations img').length === 1")
    tab.js("document.querySelector('a[download]').remove()")
    tab.click("#paint")
    tab.until(f"{PAINTED} && document.querySelectorAll('.tile').length === 2")
    tab.click("#variations .remove")
    assert tab.js("document.querySelectorAll('#variations img').length") == 0


def test_nothing_is_wider_than_a_phone(tab: Tab, address: str) -> None:
    tab.width(320)
    tab.go(f"{address}#prompt={'x' * 300}&use_default_tags=true")
    tab.js("document.querySelectorAll('details').forEach((fold) => (fold.open = true))")
    assert tab.js("document.documentElement.scrollWidth") == 320
    tab.click("#paint")
    tab.until(PAINTED)
    assert tab.js("document.documentElement.scrollWidth") == 320
    small = (
        "[...document.querySelectorAll('button, summary, select')].filter((e) => e.offsetHeight && e.offsetHeight < 36)"
    )
    assert tab.js(f"{small}.map((e) => e.outerHTML)") == []


def test_the_keyboard_alone_paints_walks_the_pictures_and_leaves(tab: Tab, address: str) -> None:
    tab.go(f"{address}#prompt=1girl&num_images=2")
    seen: list[str] = []
    while "paint" not in seen and len(seen) < 60:
        tab.press("Tab")
        seen.append(str(tab.js("document.activeElement.id || document.activeElement.name || ''")))
    assert "paint" in seen
    assert {"prompt", "negative_prompt", "sampler", "seed"} <= set(seen)
    tab.press("Enter")
    tab.until(f"{PAINTED} && document.querySelectorAll('.tile').length === 2")
    tab.js("document.querySelector('.tile[aria-current]').focus()")
    first = tab.text("#caption")
    tab.press("ArrowRight")
    assert tab.text("#caption") != first
    assert tab.js("document.activeElement.getAttribute('aria-current')") == "true"
    tab.press("Tab")
    assert not tab.js("document.activeElement.classList.contains('tile')")  # one stop, and no trap


def test_escape_cancels_the_job_on_the_server_too(tab: Tab, address: str) -> None:
    tab.go(f"{address}#prompt=1girl{SLOW}")
    tab.click("#paint")
    tab.until("!!document.querySelector('.frame.is-painting')")
    (job,) = tab.js("JSON.parse(sessionStorage.getItem('sote.items')).map((item) => item.id)")
    tab.press("Escape")
    tab.until("!document.querySelector('.tile')")
    tab.until(f"fetch('v1/jobs/{job}').then((r) => r.json()).then((found) => found.status === 'CANCELLED')")


def test_a_reload_follows_the_job_that_paints_and_keeps_the_pictures(tab: Tab, address: str) -> None:
    tab.go(f"{address}#prompt=1girl&seed=3&first_stage_steps=50")
    tab.click("#paint")
    tab.until("!!document.querySelector('.frame.is-painting')")
    for _ in range(2):  # while it paints, and with the picture there
        tab.do("Page.reload")
        tab.until(READY)
        tab.until(PAINTED)
        assert "seed 3" in tab.text("#caption")


def test_a_full_line_says_when_to_come_again(tab: Tab, service: Local, part: ModelPart, tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path, part, jobs=JobsPart(running=1, max_waiting=1))
    with served(api.build(context_of(recipe, service))) as address:
        tab.go(f"{address}#prompt=1girl{SLOW}")
        for count in range(1, 6):  # one paints, one waits, the next is refused
            tab.click("#paint")
            tab.until(f"document.querySelectorAll('.tile').length === {count} || {REFUSED}")
            if tab.js(REFUSED):
                break
        assert "Try again" in tab.text("#problem button")
        while tab.js("!!document.querySelector('.tile')"):
            tab.press("Escape")
        open_jobs = "found.jobs.filter((job) => job.status.startsWith('IN_')).length"
        tab.until(f"fetch('v1/jobs').then((r) => r.json()).then((found) => {open_jobs} === 0)")
        tab.click("#problem button")
        tab.until("!!document.querySelector('.tile')")
        assert tab.js("document.getElementById('problem').hidden")
        tab.press("Escape")


def test_a_server_that_is_away_is_said_to_be(tab: Tab, service: Local, part: ModelPart, tmp_path: Path) -> None:
    with served(api.build(context_of(recipe_of(tmp_path, part), service))) as address:
        tab.go(f"{address}#prompt=1girl{SLOW}")
        tab.click("#paint")
        tab.until("!!document.querySelector('.frame.is-painting')")
    tab.until("!document.getElementById('notice').hidden")
    tab.click("#paint")
    tab.until("!document.getElementById('problem').hidden")
    assert "cannot be reached" in tab.text("#problem p")
    assert tab.text("#problem button") == "Try again"


def test_a_server_with_keys_asks_for_one_and_keeps_it_out_of_addresses(
    tab: Tab, service: Local, part: ModelPart, tmp_path: Path
) -> None:
    key = keys.add(tmp_path / "keys.toml", "ada", keys.Limits())
    recipe = recipe_of(tmp_path, part, access=AccessPart(keys=str(tmp_path / "keys.toml")))
    with served(api.build(context_of(recipe, service))) as address:
        tab.go(f"{address}#prompt=1girl")
        tab.click("#paint")
        tab.until("document.getElementById('key-dialog').open")
        assert "asks for a key" in tab.text("#key-words")
        tab.js("document.getElementById('key').focus()")
        tab.do("Input.insertText", text=key)
        tab.press("Enter")
        tab.until(PAINTED)
        assert key not in tab.js("location.href + JSON.stringify(performance.getEntriesByType('resource'))")
