"""`make bench`: every bench that this machine can run, one after the other, each in a process of its own.

    python tests/bench/run.py [--only NAME[,NAME]] [--quick | --long] [--list] [--out DIR]

Writes tests/bench/results/<machine>.json, BENCHMARKS.md and runs/bench/report.html; with `--quick`, whose figures are
no figures, the same three under runs/bench/quick; with `--out` under DIR. Exit code 1: a bench failed or was too slow.
"""

import argparse
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import machine as machines
import results
import rows
import tables
from benches import BENCHES, BY_NAME, LONG_ALONE, Bench, Size
from machine import Machine
from pages import report
from results import FOLDER, TOP

from sote.cluster.page import duration

HERE = Path(__file__).resolve().parent
SECONDS_TO_END = 10.0
PYTHON = ".venv/bin/python"  # in the commands that are kept: they are for people


@dataclass(frozen=True)
class Places:
    """Where a run writes to."""

    results: Path
    table: Path
    page: Path


def main() -> None:
    options = asked()
    size: Size = "tiny" if options.tiny else "quick" if options.quick else "long" if options.long else "usual"
    machine = machines.here()
    chosen = _chosen(options.only)
    if options.list:
        for bench in chosen:
            print(f"{bench.name:18} {bench.why_not(size, machine) or f'{bench.script} {_words(bench, size)}'.strip()}")
        return
    places = _places(options.out, size)
    print(f"{machine.name}: {machine.said()}", flush=True)
    failed = run(chosen, size, machine, places=places, commit=options.commit)
    tell(machine, places)
    if failed:
        sys.exit(1)


def asked() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", help=f"names, with commas: {', '.join(BY_NAME)}")
    sizes = parser.add_mutually_exclusive_group()
    sizes.add_argument("--quick", action="store_true", help="small sizes: does all run? Not for figures")
    sizes.add_argument("--long", action="store_true", help=f"an hour more: {', '.join(LONG_ALONE)} too")
    sizes.add_argument("--tiny", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--list", action="store_true", help="what would be run, and what not and why")
    parser.add_argument("--out", type=Path, metavar="DIR", help="write everything below DIR")
    parser.add_argument("--commit", help="where the tree has no .git: its commit")
    return parser.parse_args()


def _chosen(only: str | None) -> tuple[Bench, ...]:
    if only is None:
        return BENCHES
    names = [name.strip() for name in only.split(",")]
    if unknown := [name for name in names if name not in BY_NAME]:
        print(f"--only {', '.join(unknown)}: there is no such bench; there are {', '.join(BY_NAME)}", file=sys.stderr)
        sys.exit(2)
    return tuple(BY_NAME[name] for name in names)


def _places(out: Path | None, size: Size) -> Places:
    if out is None and size in ("usual", "long"):
        return Places(FOLDER, TOP / "BENCHMARKS.md", TOP / "runs" / "bench" / "report.html")
    folder = out or TOP / "runs" / "bench" / "quick"
    return Places(folder / "results", folder / "BENCHMARKS.md", folder / "report.html")


def run(chosen: Sequence[Bench], size: Size, machine: Machine, *, places: Places, commit: str | None) -> list[str]:
    """Run what can be run and keep its figures as they come; the names of those that failed."""
    path, failed, missing = results.path_of(machine, places.results), list[str](), dict[str, str]()
    where = results.origin(machine, command="", commit=commit)
    for bench in chosen:
        if why := bench.why_not(size, machine):
            missing[bench.name] = why
            print(f"\n== {bench.name}: not run: {why}", flush=True)
            continue
        command = f"{PYTHON} tests/bench/{bench.script} {_words(bench, size)}".strip()
        print(f"\n== {bench.name}: {command}", flush=True)
        began = results.origin(machine, command=command, commit=commit)
        began = replace(began, dirty=where.dirty)
        answer, seconds = one(bench, size)
        if isinstance(answer, str):
            failed.append(bench.name)
            missing[bench.name] = answer
            print(f"== {bench.name}: {answer}", flush=True)
            continue
        left_out = [*answer.not_measured, *(each for each in bench.left_out() if each not in answer.not_measured)]
        results.put_rows(path, machine, bench.name, replace(answer, not_measured=left_out), began)
        print(f"== {bench.name}: {len(answer.rows)} rows in {duration(seconds)}", flush=True)
    results.put_missing(path, machine, missing, where)
    return failed


def one(bench: Bench, size: Size) -> tuple[rows.Answer | str, float]:
    """A bench's answer, or why there is none; and how many seconds it took."""
    found = bench.at(size)
    if found is None:
        raise ValueError(f"{bench.name} is not run at size {size}")
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="sote-bench-") as folder:
        answer = Path(folder) / "answer.json"
        command = [sys.executable, str(HERE / bench.script), *shlex.split(found.arguments), "--json", str(answer)]
        with _started(command) as process:
            try:
                code = process.wait(found.limit_seconds)
            except subprocess.TimeoutExpired:
                return f"ended by the runner after {duration(found.limit_seconds)}", time.monotonic() - began
        if code or not answer.exists():
            return f"ended with exit code {code}", time.monotonic() - began
        return rows.read(answer), time.monotonic() - began


@contextmanager
def _started(command: Sequence[str]) -> Iterator["subprocess.Popen[bytes]"]:
    """A process, and what it starts, which all have ended at the end of the block."""
    path = os.pathsep.join([str(TOP), *filter(None, [os.environ.get("PYTHONPATH")])])
    process = subprocess.Popen(command, start_new_session=True, cwd=TOP, env=os.environ | {"PYTHONPATH": path})
    try:
        yield process
    finally:
        for sign in (signal.SIGTERM, signal.SIGKILL):
            if process.poll() is None:
                os.killpg(process.pid, sign)
                try:
                    process.wait(SECONDS_TO_END)
                except subprocess.TimeoutExpired:
                    continue


def tell(machine: Machine, places: Places) -> None:
    """Write the table of all machines and the page of this one."""
    kept = results.everything(places.results)
    rows.put(places.table, tables.markdown(kept))
    mine = next((each for each in kept if each["machine"] == machine.name), None)
    if mine is not None:
        rows.put(places.page, report(mine, [each for each in kept if each is not mine]))
    print(f"\nwritten: {', '.join(_shown(each) for each in (places.results, places.table, places.page))}")


def _shown(path: Path) -> str:
    return str(path.relative_to(TOP)) if path.is_relative_to(TOP) else str(path)


def _words(bench: Bench, size: Size) -> str:
    found = bench.at(size)
    return found.arguments if found is not None else ""


if __name__ == "__main__":
    main()
