"""Prints how long near-duplicates take, how much memory, and what others take: `python tests/bench/bench_dedup.py`.

1. Growth: random 256-bit hashes, 5 % of them near-copies (up to 8 bits) of others, radius 8; from the matrix of hashes
   to sorted pairs, by one process and as Ray tasks on all cores, each in a fresh process. Memory is the peak of the sum
   of proportional set sizes (a shared page counts once) of the driver, Ray's workers and Ray's own services, sampled
   five times a second; it includes the hashes. With `--alone` without Ray, and nothing of 3 to 5.
2. Peers, each exact and with one thread, in turn with ours: imagehash's way, a BK-tree in Python; faiss' flat indexes,
   of bits and of floats. They compare all with all, so that the ratio grows with the hashes. And exactness: of 30,000
   such hashes the pairs against comparing all with all by XOR and popcount.
3. Skewed hashes, half of whose bits are hardly ever set, as gradient hashes of plain backgrounds are.
4. The pass as a whole on a made-up run of N rows, 30 % of them copies, with thumbnails and inherited names.
5. Which re-encodings the two hashes find, on drawn scenes.

Not measured: several machines, real pictures' hashes.
"""

import argparse
import contextlib
import io
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
from numpy.typing import NDArray
from peers import near
from rows import Answer, Plot, Row, add_option, in_turn, write

from sote.data import bands

RADIUS = 8
SIZES, SMALL_SIZES = (100_000, 300_000, 1_000_000, 6_000_000), (30_000, 100_000)
PEERS, SMALL_PEERS = (3_000, 50_000, 20_000), (1_000, 10_000, 5_000)  # hashes: BK-tree, bits, floats
PLANTED = 0.05
SECONDS_BETWEEN_SAMPLES = 0.2
MIB = 1 << 20


def hashes_of(count: int, *, skewed: bool = False) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Hashes of which the last 5 % are near-copies of others, and of which: [count, 32], [5 % of count]."""
    rng = np.random.default_rng(count)
    hashes = rng.integers(0, 256, (count, 32), dtype=np.uint8)
    if skewed:  # half of the bits are set in 1 of 16 hashes only
        for _ in range(3):
            hashes[:, ::2] &= rng.integers(0, 256, (count, 16), dtype=np.uint8)
    copies = int(count * PLANTED)
    of = rng.integers(0, count - copies, copies)
    hashes[count - copies :] = hashes[of]
    for _ in range(RADIUS):  # a bit may be drawn twice: 0 to 8 bits differ
        bits = rng.integers(0, 256, copies)
        hashes[np.arange(count - copies, count), bits // 8] ^= (rng.integers(0, 2, copies) << (bits % 8)).astype(
            np.uint8
        )
    return hashes, of


def search(count: int, way: str) -> dict[str, Any]:
    """One measurement, in this process: `way` is alone or Ray."""
    from sote.cluster import session
    from sote.data import pass_duplicates

    pass_duplicates.RAY_ROWS = 0 if way == "Ray" else sys.maxsize
    with session.connect() if way == "Ray" else contextlib.nullcontext():
        hashes, of = hashes_of(count)
        started, used = time.monotonic(), time.process_time()
        first, number = bands.distinct(hashes)
        different = hashes if len(first) == count else hashes[first]
        del hashes
        handed = [different]
        del different
        pairs = pass_duplicates.near_pairs(handed.pop(), radius=RADIUS)
        seconds, used = time.monotonic() - started, time.process_time() - used
    copies = len(of)
    found = set((pairs[:, 0] * count + pairs[:, 1]).tolist())
    planted = zip(number[of].tolist(), number[count - copies :].tolist(), strict=True)
    there = sum(one == other or min(one, other) * count + max(one, other) in found for one, other in planted)
    return {"seconds": seconds, "driver_cpu": used, "pairs": len(pairs), "planted": copies, "planted_found": there}


def candidates_of(count: int, *, skewed: bool = False) -> tuple[int, float, NDArray[np.int64]]:
    """How many pairs are compared by XOR and popcount, CPU seconds of one process, and the pairs found."""
    compared = 0
    within = bands._within

    def counting(found: Any, one: Any, other: Any, **masks: Any) -> NDArray[np.int64]:
        nonlocal compared
        compared += len(one)
        return within(found, one, other, **masks)

    hashes, _ = hashes_of(count, skewed=skewed)
    hashes = hashes[bands.distinct(hashes)[0]]
    bands._within = counting
    started = time.process_time()
    pairs = bands.pairs(hashes, radius=RADIUS)
    bands._within = within
    return compared, time.process_time() - started, pairs


def measured(*words: str) -> dict[str, Any]:
    """Run this file in a fresh process and watch the memory of all that it starts."""
    command = [sys.executable, __file__, *words]
    peak: Counter[str] = Counter()
    with tempfile.TemporaryFile("w+") as said, tempfile.TemporaryFile("w+") as told:
        running = subprocess.Popen(command, stdout=said, stderr=told)
        while running.poll() is None:
            now = memory(running.pid)
            peak = max(peak, now, key=lambda each: each.total())
            time.sleep(SECONDS_BETWEEN_SAMPLES)
        said.seek(0)
        if running.returncode:
            told.seek(0)
            raise SystemExit(f"{' '.join(command)} ended with {running.returncode}:\n{told.read()}")
        return json.loads(said.readlines()[-1]) | {"peak": dict(peak)}


def memory(top: int) -> Counter[str]:
    """Proportional set sizes in bytes of a process and all below it: the driver, Ray's workers, Ray's services."""
    below, found = {top}, Counter[str]()
    parents = {int(path.name): parent(path) for path in Path("/proc").iterdir() if path.name.isdigit()}
    for _ in range(6):  # deep enough for driver -> raylet -> worker
        below |= {process for process, its in parents.items() if its in below}
    for process in below:
        try:
            words = Path(f"/proc/{process}/cmdline").read_bytes().decode(errors="replace")
            lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
        except OSError:  # it has ended
            continue
        kind = "driver" if process == top else "workers" if words.startswith("ray::") else "services"
        found[kind] += sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))
    return found


def parent(path: Path) -> int:
    try:
        return int((path / "stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return 0


def brute_force(hashes: NDArray[np.uint8]) -> NDArray[np.int64]:
    """All pairs within the radius by comparing all with all."""
    words, found, step = hashes.view(np.uint64), [np.empty((0, 3), np.int64)], 64
    columns = [np.ascontiguousarray(words[:, word]) for word in range(4)]
    for start in range(0, len(words), step):
        distance = np.zeros((min(step, len(words) - start), len(words) - start), np.uint8)
        for column in columns:  # at most 256 differ: it wraps to 0 for complements only, which random hashes are not
            distance += np.bitwise_count(column[start : start + step, None] ^ column[None, start:])
        one, other = np.nonzero(distance <= RADIUS)
        pair = np.stack([one + start, other + start, distance[one, other].astype(np.int64)], axis=1)
        found.append(pair[pair[:, 0] < pair[:, 1]])
    return np.concatenate(found)


def growth(sizes: tuple[int, ...], *, has_ray: bool) -> Answer:
    """Print and return rows and plot."""
    print(f"\n1. {PLANTED:.0%} planted near-copies, radius {RADIUS}; memory in MiB: driver + workers + Ray's services")
    rows, lines = list[Row](), {way: list[tuple[float, float]]() for way in ("alone", *(["Ray"] if has_ray else []))}
    for size in sizes:
        compared, _, pairs = candidates_of(size)
        found = {way: measured("--search", str(size), "--way", way) for way in lines}
        for way, each in found.items():
            if each["pairs"] != len(pairs):
                raise SystemExit(f"{size}, {way}: {each['pairs']} pairs, here {len(pairs)}")
            if each["planted_found"] != each["planted"]:
                raise SystemExit(
                    f"{size}, {way}: of {each['planted']} planted pairs {each['planted_found']} were found"
                )
            lines[way].append((size, size / float(each["seconds"])))
            how = "one process" if way == "alone" else f"Ray tasks on {os.cpu_count()} cores"
            note = f"{len(pairs):,} pairs, {compared:,} compared; peak MiB {mib(each['peak'])}"
            rows.append(Row(f"{size:,} hashes, {how}", each["seconds"], "s", "lower", note=note))
            print(f"{rows[-1].line()}; {note}", flush=True)
    names = {"alone": "one process", "Ray": "Ray tasks"}
    named = {names[way]: points for way, points in lines.items()}
    return Answer(rows, [Plot("Near-duplicates", "hashes", "hashes/s", named, is_log=True)])


def peers(counts: tuple[int, ...], *, rounds: int) -> list[Row]:
    """Ours and each peer in turn over the same hashes."""
    print(f"\n2. Peers, one thread, medians of {rounds} in turn")
    rows = []
    for (name, way), count in zip(near.installed().items(), counts, strict=False):
        hashes, pairs = hashes_of(count)[0], dict[str, int]()

        def ours(hashes: NDArray[np.uint8] = hashes, pairs: dict[str, int] = pairs) -> float:
            started = time.perf_counter()
            pairs["ours"] = len(bands.pairs(hashes, radius=RADIUS))
            return time.perf_counter() - started

        def theirs(hashes: NDArray[np.uint8] = hashes, pairs: dict[str, int] = pairs, way: Any = way) -> float:
            seconds, pairs["peer"] = way(hashes, RADIUS)
            return float(seconds)

        ours()  # imports and first touches
        medians = in_turn({"ours": ours, "peer": theirs}, rounds=rounds)
        if pairs["ours"] != pairs["peer"]:
            raise SystemExit(f"{name}: {pairs['peer']} pairs, ours {pairs['ours']}")
        rows.append(Row(f"{count:,} hashes beside {name}", medians["ours"], "s", "lower", medians["peer"], name))
        print(rows[-1].line(), flush=True)
    return rows


def mib(peak: dict[str, int]) -> str:
    parts = " + ".join(f"{peak.get(kind, 0) / MIB:,.0f}" for kind in ("driver", "workers", "services"))
    return f"{parts} = {sum(peak.values()) / MIB:,.0f}"


def exactness(count: int) -> None:
    hashes, _ = hashes_of(count)
    started = time.process_time()
    expected = brute_force(hashes)
    slow, started = time.process_time() - started, time.process_time()
    found = bands.pairs(hashes, radius=RADIUS)
    fast = time.process_time() - started
    same = np.array_equal(found, expected)
    print(
        f"{count:,} hashes: all with all {len(expected):,} pairs, {slow:.1f} s; by bands {len(found):,} pairs,",
        end=" ",
    )
    print(f"{fast:.2f} s; equal: {same}")
    if not same:
        raise SystemExit("the pairs differ")


def skew(count: int) -> None:
    for skewed in (False, True):
        compared, seconds, pairs = candidates_of(count, skewed=skewed)
        if not skewed:
            print(
                f"\n3. {count:,} hashes, even: {compared:,} compared, {len(pairs):,} found, {seconds:.1f} s;", end=" "
            )
        else:
            print(f"skewed: {compared:,} compared, {len(pairs):,} found, {seconds:.1f} s (CPU, one process)")


def the_pass(rows: int) -> Row:
    from dedup_run import SHARD_ROWS, make_run  # with Ray: in the searches' memory it would count

    with tempfile.TemporaryDirectory() as folder:
        make_run(rows, Path(folder))
        found = measured("--pass", str(rows), "--folder", folder)
    print(f"\n4. The pass on {rows:,} rows, {found['gone']:,} of them go: {found['seconds']:.1f} s", end=" ")
    print(f"in shards of {SHARD_ROWS:,}, peak MiB {mib(found['peak'])}")
    note = f"{found['gone']:,} of them go; peak MiB {mib(found['peak'])}"
    return Row(f"the whole pass on {rows:,} rows", found["seconds"], "s", "lower", note=note)


def encodings(scenes_drawn: int) -> None:
    from PIL import Image

    from sote.data import scenes
    from sote.data.czkawka import gradient_hash
    from sote.data.hashes import phash

    def distance(one: bytes, other: bytes) -> int:
        return (int.from_bytes(one) ^ int.from_bytes(other)).bit_count()

    def again(image: Image.Image, quality: int) -> Image.Image:
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=quality)
        return Image.open(buffer).convert("RGB")

    caught: Counter[tuple[str, str]] = Counter()
    for index in range(scenes_drawn):
        image = scenes.paint(scenes.plan(3, index), scale=0.5)
        half = image.resize((image.width // 2, image.height // 2), Image.Resampling.LANCZOS)
        for name, other in (("JPEG 90", again(image, 90)), ("JPEG 50", again(image, 50)), ("half size", half)):
            caught["phash r8", name] += distance(phash(image), phash(other)) <= RADIUS
            one, two = (gradient_hash(np.asarray(each)) for each in (image, other))
            caught["czkawka r5", name] += distance(one, two) <= 5
    print(f"\n5. Found of {scenes_drawn} drawn scenes after", end=" ")
    print(
        "; ".join(f"{name}, {hash_}: {count}" for (hash_, name), count in sorted(caught.items(), key=lambda i: i[0][1]))
    )


def machine() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    name = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())
    return f"{os.cpu_count()} cores, {name}, numpy {np.__version__}"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--sizes", help="of 1, with commas")
    parser.add_argument("--peers", help="how many hashes for the BK-tree, bits, floats, with commas")
    parser.add_argument("--rounds", type=int, default=3, help="of 2")
    parser.add_argument("--alone", action="store_true", help="without Ray: neither that of 1 nor 3, 4, 5")
    add_option(parser)
    parser.add_argument("--rows", type=int, help="of the made-up run of 4; 200,000 if not given")
    parser.add_argument("--search", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--way", help=argparse.SUPPRESS)
    parser.add_argument("--pass", type=int, dest="passed", help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.search:
        print(json.dumps(search(given.search, given.way)))
        return
    if given.passed:
        from dedup_run import whole_pass

        print(json.dumps(whole_pass(given.passed, given.folder)))
        return
    print(machine())
    found = growth(_counts(given.sizes) or (SMALL_SIZES if given.small else SIZES), has_ray=not given.alone)
    rows = [*found.rows, *peers(_counts(given.peers) or (SMALL_PEERS if given.small else PEERS), rounds=given.rounds)]
    if not given.alone:
        exactness(10_000 if given.small else 30_000)
        skew(30_000 if given.small else 1_000_000)
        rows.append(the_pass(given.rows or (20_000 if given.small else 200_000)))
        encodings(4 if given.small else 24)
    write(given.json, Answer(rows, found.plots))


def _counts(words: str | None) -> tuple[int, ...]:
    return tuple(map(int, words.split(","))) if words else ()


if __name__ == "__main__":
    main()
