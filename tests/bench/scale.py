"""Says what six million and six hundred million images take, and what breaks first: `python tests/bench/scale.py`.

The real pipeline, pool, commits and markers with fake devices that sleep; each part in a process of its own. What was
measured is kept in runs/bench/scale.json, or else is that of the results; `--only feed,tail` measures some anew, and
`--only none` prints what is kept. "Measured" is of this machine at the size that is said; "computed" is that times
rows, shards or slices. Seconds are CPU seconds of the process where they are named so: a busy machine changes them less
than the clock.

Not measured: several machines, a network between them, object stores, real models.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import machine
import results
from rows import Answer, Row, add_option, put, write

from sote.data import costs, shards

HERE = Path(__file__).parent
KEPT = results.TOP / "runs" / "bench" / "scale.json"
BENCH = "scale"
SIZES = (6_000_000, 600_000_000)
SHARD_ROWS, SLICE_ROWS = 4000, 16  # as data/recipes/sote_6m.toml
STAGES = 9
HEAD_BYTES = 32e9  # cluster/cluster_profile.py's head
GIB = 1 << 30
WAITS = "ms a device waits between slices (median)"
WORKS = "share of its time that a device works"
# What BENCHMARKS.md shows; the rest is in the results
SHOWN = {
    ("pieces", "driver CPU ms a slice"),
    ("tail", "over ideal"),
    ("two ahead", "over ideal"),
    ("fast", WORKS),
    ("fast two ahead", WORKS),
    ("waves", "seconds between waves"),
    ("files", "status: us a shard"),
    ("bytes", "catalogue: bytes a row"),
    ("duplicates", "bytes a row"),
    ("rows", "bytes a row"),
}
Figures = dict[str, float]
Kept = dict[str, dict[str, Any]]

# What each part runs, in a process of its own
PARTS = {
    "feed": "scale_ray.feed((500, 1000, 2000, 4000))",
    "pieces": "scale_ray.pieces(4800, wave=None)",
    "waves": "scale_ray.pieces(4800, wave=1600)",
    "payload": "scale_ray.payload(24)",
    "tail": "scale_ray.tail(160, devices=8, seconds=1.6, slower=4, ahead=1)",
    "two ahead": "scale_ray.tail(160, devices=8, seconds=1.6, slower=4, ahead=2)",
    "fast": "scale_ray.tail(400, devices=2, seconds=0.033, slower=1, ahead=1)",
    "fast two ahead": "scale_ray.tail(400, devices=2, seconds=0.033, slower=1, ahead=2)",
    "files": "scale_files.files(2000)",
    "bytes": "scale_files.bytes_a_row()",
    "duplicates": "scale_files.duplicates(1_000_000)",
    "order": "scale_files.order(2_000_000)",
    "rows": "scale_files.training_rows(50_000)",
}


def main() -> None:
    say = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    say.add_argument("--only", help=f"parts to measure, with commas: {', '.join(PARTS)}; none")
    say.add_argument("--prices", type=Path, default=HERE / "scale_prices.toml")
    add_option(say)
    given = say.parse_args()
    kept = before()
    for part in [name for name in PARTS if given.only is None or name in given.only.split(",")]:
        print(f"measuring {part} ...", file=sys.stderr, flush=True)
        kept[part] = measured(PARTS[part])
        put(KEPT, json.dumps(kept, indent=1) + "\n")
    for part, facts in kept.items():
        print(f"\n{part}: measured {facts['date']}, load {facts['load']}, {facts['cpu']}, commit {facts['commit']}")
        print(f"  {facts['call']}")
        for name, value in facts["figures"].items():
            print(f"  {name:<52}{value:>14,.2f}")
    if missing := [name for name in PARTS if name not in kept and name != "fast two ahead"]:
        print(f"\nnot measured yet, so nothing is computed: {', '.join(missing)}")
        return
    found = {part: facts["figures"] for part, facts in kept.items()}
    write(given.json, Answer(list(rows(found))))
    limits(found)
    both(found)
    devices(found)
    prices(given.prices)


def before() -> Kept:
    """What an earlier call measured, else what the results of this machine hold."""
    if KEPT.exists():
        return dict(json.loads(KEPT.read_text()))
    kept: Kept = {}
    for row in results.load(results.path_of(machine.here()))["rows"]:
        if row["bench"] == BENCH:
            part, _, name = row["what"].partition(": ")
            facts = {"call": PARTS[part], "date": row["date"], "commit": row["commit"], "cpu": row["machine"]}
            kept.setdefault(part, facts | {"load": row["note"], "figures": {}})["figures"][name] = row["ours"]
    return kept


def rows(found: dict[str, Figures]) -> Iterator[Row]:
    """All figures as they are kept; their names say their units."""
    for part, figures in found.items():
        for name, value in figures.items():
            better: Any = "higher" if name == WORKS else "lower"
            yield Row(f"{part}: {name}", value, "", better, detail=(part, name) not in SHOWN)


def measured(call: str) -> dict[str, Any]:
    """Run one part in a fresh process; its figures with date, commit and machine."""
    module = call.split(".")[0]
    code = f"import json, {module}; found = {call}; print(json.dumps({{k: float(v) for k, v in found.items()}}))"
    where = os.environ | {"PYTHONPATH": os.pathsep.join([str(HERE), *os.environ.get("PYTHONPATH", "").split(":")])}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env=where)
    if done.returncode:
        raise SystemExit(f"{call} ended with {done.returncode}:\n{done.stderr[-4000:]}")
    head = ["git", "-C", str(HERE), "rev-parse", "--short", "HEAD"]
    return {
        "call": call,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": subprocess.run(head, capture_output=True, text=True, check=False).stdout.strip() or "unknown",
        "cpu": f"{os.cpu_count()} x {cpu()}",
        "load": round(os.getloadavg()[0], 1),
        "figures": json.loads(done.stdout.splitlines()[-1]),
    }


def limits(found: dict[str, Figures]) -> None:
    """What fills the memory of a head of 32 GB first, as rows."""
    least, most = records(found)
    held = {
        "Ray Data's records of slices in one dataset (as it was), least": least / SLICE_ROWS,
        "Ray Data's records of slices in one dataset (as it was), most": most / SLICE_ROWS,
        "a training's rows and order, in each worker": found["rows"]["bytes a row"] + found["order"]["bytes a row"],
        "near-duplicates: pairs and the pass's columns, in the driver": found["duplicates"]["bytes a row"]
        + found["bytes"]["duplicates: bytes a row of the reader"],
        "sote status: the lines of metrics.jsonl": found["files"]["metrics: bytes of memory a line"]
        * STAGES
        / SHARD_ROWS,
        "Ray Data's layout of shards, all in one dataset (as it was)": shard_bytes(found) / SHARD_ROWS,
    }
    print("\nWhat fills 32 GB first (computed from bytes a row that were measured)")
    print(f"  {'':<64}{'bytes a row':>12}{'million rows':>14}")
    for name, each in sorted(held.items(), key=lambda item: -item[1]):
        print(f"  {name:<64}{each:>12,.1f}{HEAD_BYTES / each / 1e6:>14,.0f}")
    wave = [shards.WAVE_PIECES * each / GIB for each in (least, most)]
    print(
        f"  In waves of {shards.WAVE_PIECES:,} slices those records are {wave[0]:.1f} to {wave[1]:.1f} GiB at any size."
    )


def records(found: dict[str, Figures]) -> tuple[float, float]:
    """Bytes that a slice leaves in the driver until its dataset ends: the slope once all is cut, which is the records
    of one operator; and what one dataset held more at its end than three waves of a third each, queues included."""
    one, three = found["pieces"], found["waves"]
    more = (one["driver MiB at the end"] - three["driver MiB at the end"]) * (1 << 20)
    return one["driver KiB a slice"] * 1024, more / (one["slices"] * 2 / 3)


def both(found: dict[str, Figures]) -> None:
    """The two runs side by side."""
    print(f"\nTwo runs in shards of {SHARD_ROWS:,} and slices of {SLICE_ROWS} (computed)")
    print(f"  {'':<64}" + "".join(f"{rows:>14,}" for rows in SIZES))
    for name, value in lines(found):
        print(f"  {name:<64}" + "".join(f"{value(rows):>14,.1f}" for rows in SIZES))


def lines(found: dict[str, Figures]) -> Iterator[tuple[str, Callable[[float], float]]]:
    """Each line of the table: what it is, and its value for so many rows."""
    files, held = found["files"], found["bytes"]
    (least, most), cpu_ms = records(found), found["pieces"]["driver CPU ms a slice"]
    layout = found["feed"]["4000 shards: CPU seconds"] / 4000
    yield "shards", lambda rows: rows / SHARD_ROWS
    yield "slices", lambda rows: rows / SLICE_ROWS
    yield "waves", lambda rows: -(-rows // SLICE_ROWS // shards.WAVE_PIECES)
    for word, each in (("least", least), ("most", most)):
        yield f"driver: records in one dataset (as it was), {word}, GiB", _records(each, sys.maxsize)
        yield f"driver: records in waves, {word}, GiB", _records(each, shards.WAVE_PIECES)
    yield "driver: laying shards out before the first, as it was, s", lambda rows: rows / SHARD_ROWS * layout
    yield (
        "driver: the same in waves, s",
        lambda rows: min(rows / SHARD_ROWS, shards.WAVE_PIECES * SLICE_ROWS / SHARD_ROWS) * layout,
    )
    yield "driver: CPU hours for handing slices on", lambda rows: rows / SLICE_ROWS * cpu_ms / 3.6e6
    yield (
        "driver: CPU hours for counting rows per slice, as it was",
        lambda rows: rows / SLICE_ROWS * files["rows_in as it was: us a call"] / 3.6e9,
    )
    yield (
        "driver: the same by arithmetic, CPU hours",
        lambda rows: rows / SLICE_ROWS * files["rows_in: us a call"] / 3.6e9,
    )
    yield (
        "driver: commits of three stages, CPU hours",
        lambda rows: rows / SHARD_ROWS * 3 * files["commit of a stage: ms a shard"] / 3.6e6,
    )
    yield "files and markers below rows/", lambda rows: rows / SHARD_ROWS * files["files a shard"]
    yield (
        "continuing a run: reading the markers of all stages, s",
        lambda rows: (
            rows
            / SHARD_ROWS
            * ((STAGES - 2) * files["pending, a stage: us a shard"] + files["pending of latents: us a shard"])
            / 1e6
        ),
    )
    yield "metrics.jsonl, GiB", lambda rows: rows / SHARD_ROWS * STAGES * files["metrics: bytes a line"] / GIB
    yield "sote status, CPU s", lambda rows: rows / SHARD_ROWS * files["status: us a shard"] / 1e6
    yield "rows of all stages, GiB", lambda rows: rows * held["rows: bytes a row"] / GIB
    yield "catalogue, GiB", lambda rows: rows * held["catalogue: bytes a row"] / GIB
    groups = 32_768  # data/catalogue.py, GROUP_ROWS
    yield (
        "catalogue: its footer, MiB",
        lambda rows: rows / groups * held["catalogue: footer bytes a row group"] / (1 << 20),
    )
    yield "captions, core hours (all workers)", lambda rows: rows * held["caption: core us a row"] / 3.6e9
    yield (
        "selection and catalogue, hours (one core)",
        lambda rows: rows * (held["select: core us a row"] + held["catalogue: core us a row"]) / 3.6e9,
    )
    duplicates = found["duplicates"]["bytes a row"] + held["duplicates: bytes a row of the reader"]
    yield "near-duplicates: the driver's memory, GiB", lambda rows: rows * duplicates / GIB
    training = found["rows"]["bytes a row"] + found["order"]["bytes a row"]
    yield "training: rows and order in each worker, GiB", lambda rows: rows * training / GIB


def _records(each: float, wave: int) -> Callable[[float], float]:
    return lambda rows: min(rows / SLICE_ROWS, wave) * each / GIB


def devices(found: dict[str, Figures]) -> None:
    """How many accelerators one driver keeps at work, and what they lose between slices."""
    rate = SLICE_ROWS / found["pieces"]["driver CPU ms a slice"] * 1e3
    print(f"\nOne driver hands on {rate:,.0f} images a second in slices of {SLICE_ROWS} (16 over its CPU time a slice)")
    wait = found["fast"][WAITS]
    for part, what in (("tail", "one"), ("two ahead", "two")):
        print(f"  slices of 1.6 s, {what} in flight: a device waits {found[part][WAITS]:.0f} ms for the next")
    for part, what in (("fast", "one"), *((("fast two ahead", "two"),) if "fast two ahead" in found else ())):
        print(f"  slices of 33 ms (an H200's), {what} in flight: it works {found[part][WORKS]:.0%} of its time")
    heads = f"{'images/s':>10}{'cards fed':>11}{'idle, one in flight':>21}{'two':>7}{'two, slices of 64':>19}"
    print(f"  {'':<8}{heads} (computed)")
    for name in ("A770", "L4", "A100", "H200"):
        each = images_a_second(name)
        slices = ((1, SLICE_ROWS), (2, SLICE_ROWS), (2, 4 * SLICE_ROWS))
        one, two, long = (lost(wait, ahead=ahead, slice_ms=1e3 * rows / each) for ahead, rows in slices)
        print(f"  {name:<8}{each:>10.1f}{rate / each:>11,.0f}{one:>21.0%}{two:>7.0%}{long:>19.0%}")
    print(
        "  images/s: data/costs.py's arithmetic for tagger and scorers, not measured; 4 x slice_rows is 4 x the cards"
    )


def lost(wait_ms: float, *, ahead: int, slice_ms: float) -> float:
    """The share of a device's time in which it has nothing to do: it gets `ahead` slices in each turn of the driver."""
    return max(0.0, 1 - ahead * slice_ms / (wait_ms + slice_ms))


def images_a_second(name: str) -> float:
    machine = costs.Machine(1, {name: 1})
    tagger = costs.TAGGER_GFLOP["wd-swinv2-tagger-v3"] * costs.GIGA / machine.flops("tag", "float16")
    scorers = (costs.AESTHETIC_GFLOP + costs.QUALITY_GFLOP) * costs.GIGA / machine.flops("score", "float16")
    return 1 / (tagger + scorers)


def prices(path: Path) -> None:
    """The seed's run: its own hours, and what they are on other machines by arithmetic, at the table's prices."""
    table = tomllib.loads(path.read_text(encoding="utf-8"))
    each, currency = table["nodes"], table["currency"]
    rows = 5_628_499  # the model card
    print(f"\nThe seed's run at example prices, to be replaced ({path.name}, {currency})")
    priced("captioning, the card's 350 hours of an A770", "A770", 350, each)
    for name in ("L4", "H200"):
        priced(
            f"captioning, tagger and scorers on one {name} (computed)", name, rows / images_a_second(name) / 3600, each
        )
    # train/recipes/base.toml: 220 hours of eight A100; at half of the peak 99 for the base stage, so 110 for both
    priced("training, the card's 220 hours of eight A100", "A100 x8", 220, each)
    priced("training at half of the peak, eight A100 (computed)", "A100 x8", 110, each)
    ratio = costs.DEVICES["A100"].bfloat16 / costs.DEVICES["H200"].bfloat16
    priced("training at half of the peak, eight H200 (computed)", "H200 x8", 110 * ratio, each)


def priced(what: str, node: str, hours: float, each: dict[str, float]) -> None:
    print(f"  {what:<60}{hours:>9,.1f} h x {each[node]:>6.2f} = {hours * each[node]:>9,.0f}")


def shard_bytes(found: dict[str, Figures]) -> float:
    return 1024 * found["feed"]["4000 shards: driver KiB a shard"]


def cpu() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


if __name__ == "__main__":
    main()
