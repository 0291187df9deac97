"""Load on a served miniature: many clients at once for a while, valid requests and wrong ones; what they are answered.

    python tests/bench/serve_load.py [--clients 200] [--seconds 120]

Starts the server by itself on 127.0.0.1 and stops it at the end. Prints answers by status, latency, pictures a second,
and the memory of all processes of the server at the start, in the middle and at the end.
"""

import argparse
import asyncio
import itertools
import random
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil
from rows import Answer, Row, add_option, write

from sote.cluster import recipe as recipes
from sote.serve.recipe import DefaultsPart, LimitsPart, ModelPart, ReplicasPart, ServeRecipe
from sote.train import standins

TIMEOUT_SECONDS = 300.0
PAUSE_SECONDS = 1.0  # of a client that is told to come again, at most: it would else ask in a circle
SETTLE_SECONDS = 3.0
WRONG: tuple[dict[str, Any], ...] = (
    {},
    {"prompt": "a", "image_size": {"width": 1000, "height": 512}},
    {"prompt": "a", "sampler": "heun"},
    {"prompt": "a", "num_images": 99},
    {"prompt": "a", "nonsense": 1},
    {"prompt": "a", "image_url": "data:image/png;base64,AAAA"},
)


@dataclass
class Seen:
    """What came back."""

    statuses: Counter[str] = field(default_factory=Counter)
    seconds: list[float] = field(default_factory=list)  # of requests that were answered with pictures
    words: dict[str, str] = field(default_factory=dict)  # the first answer of each status that is an error
    images: int = 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=120.0)
    add_option(parser)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="sote-load-") as folder:
        process, url = start(Path(folder))
        try:
            made = asyncio.run(measure(url, process.pid, clients=asked.clients, seconds=asked.seconds))
        finally:
            begin = time.monotonic()
            process.send_signal(signal.SIGTERM)
            process.wait()
            print(f"stopped      exit code {process.returncode} after {time.monotonic() - begin:.1f} s")
    write(asked.json, Answer(made))


def start(folder: Path, *, replicas: int = 1, cpus: float = 0.5) -> tuple["subprocess.Popen[str]", str]:
    """The server in miniature with so many replicas of prior and decoder, of `cpus` each, and its URL."""
    standins.make(folder / "weights")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    recipe = ServeRecipe(
        run=str(folder / "run"),
        port=port,
        model=ModelPart(prior=str(folder / "weights" / "prior"), decoder=str(folder / "weights" / "decoder")),
        defaults=DefaultsPart(width=256, height=256, prior_steps=4, decoder_steps=4),
        limits=LimitsPart(max_pixels=512 * 512),
        prior_replicas=ReplicasPart(min_replicas=replicas, max_replicas=replicas, cpus=cpus),
        decoder_replicas=ReplicasPart(min_replicas=replicas, max_replicas=replicas, cpus=cpus),
    )
    path = folder / "serve.toml"
    path.write_text(recipes.dumps(recipe))
    begin = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, "-m", "sote.cluster.cli", "serve", str(path)], stdout=subprocess.PIPE, text=True
    )
    url = process.stdout.readline().strip()  # type: ignore[union-attr]
    if not url:
        raise SystemExit("the server did not start")
    print(f"started      {url} after {time.monotonic() - begin:.1f} s")
    return process, url


async def measure(url: str, pid: int, *, clients: int, seconds: float) -> list[Row]:
    limits = httpx.Limits(max_connections=clients)
    async with httpx.AsyncClient(base_url=url, timeout=TIMEOUT_SECONDS, limits=limits, trust_env=False) as client:
        overhead = [await lone(client, seed) for seed in range(20)]
        seen, end = Seen(), time.monotonic() + seconds
        memory = [megabytes(pid)]
        tasks = [asyncio.create_task(visit(client, seen, number=number, end=end)) for number in range(clients)]
        for _ in range(2):
            await asyncio.sleep(seconds / 2 - SETTLE_SECONDS / 2)
            memory.append(await asyncio.to_thread(megabytes, pid))
        begin = time.monotonic()
        await asyncio.gather(*tasks)
        late = time.monotonic() - begin
        await asyncio.sleep(SETTLE_SECONDS)
        memory.append(megabytes(pid))
        alive = (await client.get("/readyz")).status_code
    report(seen, overhead, memory, seconds=seconds + late)
    print(f"afterwards   /readyz {alive}")
    return figures(seen, overhead, memory, clients=clients, seconds=seconds + late)


async def lone(client: httpx.AsyncClient, seed: int) -> float:
    """Seconds of a request that are not the stages' own, with nobody else there."""
    begin = time.perf_counter()
    answer = await client.post("/v1/generate", json={"prompt": "a", "seed": seed, "sync_mode": True})
    wall, timings = time.perf_counter() - begin, answer.json()["timings"]
    return wall - float(timings["prior"]) - float(timings["decoder"])


async def visit(client: httpx.AsyncClient, seen: Seen, *, number: int, end: float) -> None:
    """One client: every fifth of its requests is wrong, some are of another size or count."""
    chance = random.Random(number)
    for count in itertools.count():
        if time.monotonic() > end:
            return
        is_wrong = (number + count) % 5 == 0
        asked = chance.choice(WRONG) if is_wrong else right(chance)
        begin = time.perf_counter()
        try:
            answer = await client.post("/v1/generate", json=asked)
        except httpx.TransportError as error:
            seen.statuses[type(error).__name__] += 1
            continue
        status = str(answer.status_code)
        seen.statuses[status] += 1
        if answer.status_code == httpx.codes.OK:
            seen.seconds.append(time.perf_counter() - begin)
            seen.images += len(answer.json()["images"])
        else:
            seen.words.setdefault(status, answer.text[:160])
            await asyncio.sleep(chance.uniform(0.2, PAUSE_SECONDS))


def right(chance: random.Random) -> dict[str, Any]:
    asked: dict[str, Any] = {"prompt": f"a red circle, {chance.random()}", "seed": chance.randrange(2**32)}
    if chance.random() < 0.2:
        asked["image_size"] = {"width": 256, "height": 384}
    if chance.random() < 0.1:
        asked["num_images"] = 2
    if chance.random() < 0.3:
        asked["sync_mode"] = True
    return asked


def megabytes(pid: int) -> float:
    """Resident memory of a process and all that came from it; pages that they share count for each."""
    found = [psutil.Process(pid)]
    total = 0
    for process in [*found, *found[0].children(recursive=True)]:
        try:
            total += process.memory_info().rss
        except psutil.NoSuchProcess:
            continue
    return total / 1e6


def figures(seen: Seen, overhead: list[float], memory: list[float], *, clients: int, seconds: float) -> list[Row]:
    """What is kept: a server at its limit refuses (429), and must not fail."""
    said = ", ".join(f"{status}: {count}" for status, count in sorted(seen.statuses.items()))
    failed = sum(count for status, count in seen.statuses.items() if status not in ("200", "422", "429"))
    mib = ", ".join(f"{value:,.0f}" for value in memory)
    return [
        Row(f"{clients} clients: pictures", seen.images / seconds, "pictures/s", note=f"answers {said}"),
        Row(f"{clients} clients: answers that are none of 200, 422, 429", failed, "answers", "lower"),
        Row(f"{clients} clients: memory after, over that at the start", memory[-1] / memory[0], "times", "lower",
            note=f"MB: {mib}"),
        Row("beside both stages' work, a lone request, p50", 1000 * statistics.median(overhead), "ms", "lower"),
    ]  # fmt: skip


def report(seen: Seen, overhead: list[float], memory: list[float], *, seconds: float) -> None:
    print(f"overhead     p50 {statistics.median(overhead) * 1000:.0f} ms of a lone request, beside both stages' work")
    print(f"answers      {', '.join(f'{status}: {count}' for status, count in sorted(seen.statuses.items()))}")
    for status, words in sorted(seen.words.items()):
        print(f"  {status}        {words}")
    if len(seen.seconds) > 1:
        marks = statistics.quantiles(seen.seconds, n=20)
        print(f"latency      p50 {marks[9]:.2f} s, p95 {marks[18]:.2f} s of those that were painted")
    print(f"pictures     {seen.images} in {seconds:.0f} s: {seen.images / seconds:.2f} a second")
    names = ("start", "middle", "end", "after")
    print("memory       " + ", ".join(f"{name} {value:.0f} MB" for name, value in zip(names, memory, strict=True)))


if __name__ == "__main__":
    main()
