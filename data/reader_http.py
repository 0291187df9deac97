"""A reader that is served elsewhere: a vision-language model behind an OpenAI-compatible /v1/chat/completions.

A picture goes out as a JPEG of quality 92 without colour subsampling, at most 1024 pixels on its longer side, with the
author's question and the form of answer that is accepted; temperature 0. What the server fails on is told apart: a
picture that it refuses or breaks on is that row's error, a server that does not answer a test picture either ends the
run, and the same command continues it.

Kind: actor.
"""

import base64
import contextlib
import io
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Self

import httpx
from PIL import Image

from sote.cluster.errors import RecipeError, RunFailed
from sote.data.ahead import in_order
from sote.data.reading import QUESTION, Unread
from sote.data.recipe import TextPart

MOST_SIDE, JPEG_QUALITY = 1024, 92  # pixels; what the author sends to the models that he asks today
# LLaVA 1.5 answers the bare question in the accepted form; others are told of it. No example, which could be echoed.
ASKED = f"{QUESTION} Answer with one sentence that begins with The text says, then the text in double quotes."
TRIES = 7
FIRST_WAIT_SECONDS, MOST_WAIT_SECONDS = 1.0, 300.0  # doubled from try to try: about a minute in all
CONNECT_SECONDS = 10.0
AHEAD = 4  # pictures that are at hand for each request under way
AGAIN = frozenset({408, 425, 429, *range(500, 600)})  # HTTP: may be better the next time
BUSY = 429


@dataclass(frozen=True)
class Failure:
    """What came instead of an answer. `reason` is the row's, if it is the row's; `detail` is what the server said."""

    reason: str
    detail: str = ""
    status: int | None = None
    wait_seconds: float | None = None  # as the server asks for

    @property
    def passes(self) -> bool:
        """Whether the same request may be answered later."""
        return self.status is None or self.status in AGAIN

    def __str__(self) -> str:
        return self.reason + (f": {self.detail}" if self.detail else "")


class HttpReader:
    """One server, asked `requests_at_once` times at once. `read` as of data/text.py's Reader.

    A request that meets 429, 5xx, a broken connection or a time-out is made again, after the time that the server asks
    for (Retry-After) or a growing one. Raises RunFailed, which names text.url, if the server answers no more.
    """

    def __init__(
        self,
        url: str,
        model: str,
        *,
        api_key: str | None,
        timeout_seconds: float,
        max_new_tokens: int,
        requests_at_once: int,
    ) -> None:
        self.model, self.max_new_tokens, self.requests_at_once = model, max_new_tokens, requests_at_once
        self.shown = shown(url)
        self._client = httpx.Client(
            base_url=url.rstrip("/") + "/",
            headers={"Authorization": f"Bearer {api_key}"} if api_key else {},
            timeout=httpx.Timeout(timeout_seconds, connect=min(timeout_seconds, CONNECT_SECONDS)),
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=requests_at_once),
        )
        self.facts: dict[str, str | float] = {"stage": "text", "device": self.shown, "engine": "http", "model": model}

    @classmethod
    def of(cls, part: TextPart, *, api_key: str | None) -> Self:
        """The server that a recipe names; `api_key` is `key_of(part)`, read where the recipe is."""
        if part.url is None:
            raise ValueError("the recipe names no text.url")
        return cls(
            part.url,
            part.reader,
            api_key=api_key,
            timeout_seconds=part.timeout_seconds,
            max_new_tokens=part.max_new_tokens,
            requests_at_once=part.requests_at_once,
        )

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def prepare(self, image: Image.Image) -> str:
        """The picture as a data URL; may run in any thread."""
        small = image.convert("RGB")
        small.thumbnail((MOST_SIDE, MOST_SIDE), Image.Resampling.LANCZOS)
        buffer = io.BytesIO()
        small.save(buffer, "JPEG", quality=JPEG_QUALITY, subsampling=0)
        return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"

    def answers(self, pictures: Iterable[str | Unread]) -> Iterator[str | Unread]:
        """The answer for each prepared picture, in their order; what is Unread is passed on."""
        many = self.requests_at_once
        return in_order(self._answer, pictures, threads=many, ahead=AHEAD * many)

    def read(self, images: Sequence[Image.Image]) -> list[str | Unread]:
        """The answer for each picture (any size; made RGB), or why there is none."""
        return list(self.answers(map(self.prepare, images)))

    def _answer(self, picture: str | Unread) -> str | Unread:
        if isinstance(picture, Unread):
            return picture
        found = self._patiently(picture, tries=TRIES)
        return self._whose_fault(picture, found) if isinstance(found, Failure) else found

    def _whose_fault(self, picture: str, failure: Failure) -> str | Unread:
        """The picture's, if a test picture is answered and this one still is not. Else the server's: RunFailed."""
        if failure.status == BUSY:
            raise self._dead(failure)
        if isinstance(other := self.try_test_picture(), Failure):
            raise self._dead(other)
        again = self._once(picture) if failure.passes else failure
        return Unread(again.reason) if isinstance(again, Failure) else again

    def _dead(self, failure: Failure) -> RunFailed:
        return RunFailed(
            f"text.url: {self.shown} answers no more ({failure}); the same command continues the run once it does"
        )

    def try_test_picture(self) -> str | Failure:
        """Ask about a picture of our own that every model can take."""
        return self._patiently(self.prepare(Image.linear_gradient("L")), tries=2)

    def _patiently(self, picture: str, *, tries: int) -> str | Failure:
        wait = FIRST_WAIT_SECONDS
        for _ in range(tries - 1):
            found = self._once(picture)
            if isinstance(found, str) or not found.passes:
                return found
            time.sleep(min(wait if found.wait_seconds is None else found.wait_seconds, MOST_WAIT_SECONDS))
            wait *= 2
        return self._once(picture)

    def _once(self, picture: str) -> str | Failure:
        content = [{"type": "image_url", "image_url": {"url": picture}}, {"type": "text", "text": ASKED}]
        body = {
            "model": self.model,
            "messages": [{"role": "user", "content": content}],
            "temperature": 0,
            "max_tokens": self.max_new_tokens,
        }
        response = self._got("POST", "chat/completions", body)
        return response if isinstance(response, Failure) else _said(response)

    def _got(self, method: str, path: str, body: object = None) -> httpx.Response | Failure:
        try:
            response = self._client.request(method, path, json=body)
        except (httpx.ReadTimeout, httpx.WriteTimeout):
            return Failure(f"the reader took more than {self._client.timeout.read:g} s")
        except httpx.RequestError as error:
            return Failure("the reader broke the connection", _one_line(str(error) or type(error).__name__))
        if response.is_success:
            return response
        verb = "failed on it" if response.status_code >= 500 else "refused it"
        reason = f"the reader {verb} (HTTP {response.status_code})"
        return Failure(reason, _one_line(response.text), response.status_code, _retry_after(response))

    def served(self) -> list[str] | Failure:
        """The names of the models that the server lists; empty where it keeps no list."""
        response = self._got("GET", "models")
        if isinstance(response, Failure):
            return [] if response.status in (404, 405, 501) else response
        try:
            return [str(each["id"]) for each in response.json()["data"]]
        except (ValueError, KeyError, TypeError):
            return Failure("its list of models is not OpenAI's", _one_line(response.text))


def check(part: TextPart) -> None:
    """Raise RecipeError in one line if the server of `part.url` cannot be used: no answer, a wrong key, another model,

    or one that takes no pictures. It is asked for its models and about one small picture; without a url this does
    nothing.
    """
    if part.url is None:
        return
    key = key_of(part)
    try:
        reader = HttpReader.of(part, api_key=key)
    except httpx.InvalidURL as error:
        raise RecipeError(f"text.url: {part.url!r} is no URL ({error})") from None
    with contextlib.closing(reader):
        models = reader.served()
        if isinstance(models, Failure):
            raise _unusable(reader, models, key)
        if models and part.reader not in models:
            raise RecipeError(f"text.reader: {reader.shown} serves no {part.reader!r}; it serves {', '.join(models)}")
        if isinstance(found := reader.try_test_picture(), Failure):
            raise _unusable(reader, found, key)


def key_of(part: TextPart) -> str | None:
    """The key in `part.api_key_file`, None without one; RecipeError if the file cannot be read or holds none."""
    if part.api_key_file is None:
        return None
    path = Path(part.api_key_file).expanduser()
    try:
        key = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "is no text"
        raise RecipeError(f"text.api_key_file: {path}: cannot be read ({why})") from None
    if not key or not key.isascii() or not key.isprintable():
        raise RecipeError(f"text.api_key_file: {path}: should hold the key of the server on one line, nothing else")
    return key


def shown(url: str) -> str:
    """The URL as it may be said: without a password."""
    return str(httpx.URL(url).copy_with(userinfo=b""))


def _unusable(reader: HttpReader, failure: Failure, key: str | None) -> RecipeError:
    if failure.status in (401, 403):
        mend = "refuses the key in text.api_key_file" if key else "wants a key: name a file with it in api_key_file"
        return RecipeError(f"text.url: {reader.shown} {mend} ({failure})")
    if failure.status is None:
        return RecipeError(f"text.url: {reader.shown} cannot be asked ({failure}); start the server, or mend the url")
    if failure.status == 404:
        return RecipeError(
            f"text.url: {reader.shown} has no chat/completions or no {reader.model!r} ({failure}); it should end in /v1"
        )
    return RecipeError(f"text.url: {reader.shown} does not answer as it should ({failure})")


def _said(response: httpx.Response) -> str | Failure:
    """The text of a chat completion. A model that says nothing gives none: it is an answer that is not accepted."""
    try:
        content = response.json()["choices"][0]["message"]["content"]
    except (ValueError, KeyError, IndexError, TypeError):
        return Failure("the reader's answer is no chat completion", _one_line(response.text))
    if content is not None and not isinstance(content, str):
        return Failure("the reader's answer is no chat completion", f"content is a {type(content).__name__}")
    return content or ""


def _retry_after(response: httpx.Response) -> float | None:
    """Seconds of the Retry-After header, which holds a number or a date (RFC 9110, 10.2.3)."""
    value = response.headers.get("retry-after", "").strip()
    if value.isdigit():
        return float(value)
    try:
        moment = parsedate_to_datetime(value)
    except ValueError:
        return None
    moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return max((moment - datetime.now(UTC)).total_seconds(), 0.0)


def _one_line(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= 200 else text[:197] + "..."
