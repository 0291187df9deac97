"""Pictures a second of the served miniature against replicas: `python tests/bench/serve_replicas.py [--most N]`.

One server after the other, each with as many replicas of prior and of decoder, from 1 to as many as there are cores (at
most 8), and back: each number but the most is measured on the way up and on the way down. Clients that always have a
request open ask for pictures of 256x256, each with a prompt of its own; what came back in the first seconds is not
counted. A replica that is given less than two cores has one thread of Ray.

It does not show: a GPU for each replica, where the model is most of a picture (here it is a part: ingress, handles and
PNG files share the cores with it), and several machines.
"""

import argparse
import asyncio
import itertools
import os
import signal
import statistics
import tempfile
import time
from pathlib import Path

import httpx
from rows import Answer, Plot, Row, add_option, write
from serve_load import TIMEOUT_SECONDS, start

CLIENTS = 8  # of each replica: its slots
WARM_UP_SECONDS = 4.0
MOST = 8
SHARE = 0.8  # of all cores that Ray lends to replicas: the ingress takes 0.2 of one


def main() -> None:
    asked = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    cores = len(os.sched_getaffinity(0))
    asked.add_argument("--most", type=int, default=min(cores, MOST), help="replicas of each stage")
    asked.add_argument("--seconds", type=float, default=15.0, help="of each measurement")
    add_option(asked)
    given = asked.parse_args()
    up = list(range(1, given.most + 1)) if given.most <= 4 else [1, 2, 4, *range(8, given.most + 1, 8)]
    rates: dict[int, list[float]] = {}
    for replicas in [*up, *reversed(up[:-1])]:
        rates.setdefault(replicas, []).append(served(replicas, given.seconds, clients=CLIENTS * given.most))
    found = [
        Row(f"{count} replica{'s' * (count > 1)} of prior and decoder on {cores} cores", statistics.median(values),
            "pictures/s", note=f"{CLIENTS * given.most} clients")
        for count, values in rates.items()
    ]  # fmt: skip
    for row in found:
        print(row.line())
    points = [(float(count), row.ours) for count, row in zip(rates, found, strict=True)]
    plot = Plot("Serving in miniature", "replicas of prior and decoder", "pictures/s", {"the server": points})
    write(given.json, Answer(found, [plot], ["replicas with a GPU each"]))


def served(replicas: int, seconds: float, *, clients: int) -> float:
    """Pictures a second of a server of its own."""
    cpus = SHARE * len(os.sched_getaffinity(0)) / (2 * replicas)
    with tempfile.TemporaryDirectory(prefix="sote-replicas-") as folder:
        process, url = start(Path(folder), replicas=replicas, cpus=round(cpus, 2))
        try:
            rate = asyncio.run(asked_for(url, seconds, clients=clients))
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait()
    print(f"{replicas} replicas: {rate:.2f} pictures/s", flush=True)
    return rate


async def asked_for(url: str, seconds: float, *, clients: int) -> float:
    """Pictures a second while `clients` ask one after the other."""
    limits, done, numbers = httpx.Limits(max_connections=clients), list[float](), itertools.count()
    begin = time.monotonic() + WARM_UP_SECONDS
    end = begin + seconds

    async def client(http: httpx.AsyncClient) -> None:
        while time.monotonic() < end:
            number = next(numbers)
            asked = {"prompt": f"a red circle, {number}", "seed": number}
            answer = await http.post("/v1/generate", json=asked)
            if answer.status_code == httpx.codes.TOO_MANY_REQUESTS:
                await asyncio.sleep(0.2)
                continue
            answer.raise_for_status()
            done.append(time.monotonic())

    async with httpx.AsyncClient(base_url=url, timeout=TIMEOUT_SECONDS, limits=limits, trust_env=False) as http:
        await asyncio.gather(*(client(http) for _ in range(clients)))
    return sum(begin <= at < end for at in done) / seconds


if __name__ == "__main__":
    main()
