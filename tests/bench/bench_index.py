"""Prints how fast sources are indexed: `python tests/bench/bench_index.py [--small]`.

100,000 small files with a JSON sidecar each (a Danbooru post of some 2 KB as gallery-dl writes it), and a tar of 20,000
pictures with such sidecars; `--small` takes a twentieth. Everything was written a moment before, so that it lies in the
page cache: what a disk or a server adds is not measured, nor is reading a picture.
"""

import argparse
import io
import json
import os
import platform
import tarfile
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from sote.data import index
from sote.data.recipe import Source

FILES, MEMBERS, IN_ONE_FOLDER = 100_000, 20_000, 4_000  # the author's folders held 4000 pictures
GENERAL = [f"some_general_tag_{number}" for number in range(40)]


def post(number: int) -> bytes:
    """A post with the fields of Danbooru that take most room."""
    tags = {"character": ["hatsune_miku"], "copyright": ["vocaloid"], "artist": ["someone"], "general": GENERAL}
    found = {"id": number, "category": "danbooru", "created_at": "2021-05-03T23:10:11.123-04:00", "rating": "g"}
    found |= {f"tags_{kind}": names for kind, names in tags.items()}
    found |= {f"tag_string_{kind}": " ".join(names) for kind, names in tags.items()}
    return json.dumps(found, indent=4).encode()


def write_folder(folder: Path, count: int) -> None:
    for number in range(count):
        inside = folder / f"{number // IN_ONE_FOLDER:04}"
        if number % IN_ONE_FOLDER == 0:
            inside.mkdir(parents=True)
        (inside / f"{number:08}.jpg").write_bytes(b"picture")
        (inside / f"{number:08}.jpg.json").write_bytes(post(number))


def write_tar(path: Path, count: int) -> None:
    with tarfile.open(path, "w") as file:
        for number in range(count):
            for suffix, data in (("jpg", b"p" * 20_000), ("json", post(number))):
                info = tarfile.TarInfo(f"{number:08}.{suffix}")
                info.size = len(data)
                file.addfile(info, io.BytesIO(data))


def timed(what: str, act: Callable[[], int]) -> None:
    wall, cpu = time.perf_counter(), time.process_time()
    rows = act()
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    print(f"{what:<44} {rows:>8,} rows {rows / wall:>9,.0f} a second ({rows / cpu:,.0f} a second of CPU)")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--small", action="store_true")
    scale = 20 if parser.parse_args().small else 1
    names = [
        line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line
    ]
    print(f"{os.cpu_count()} cores, {names[0] if names else platform.processor()}; one is used")
    print(f"a sidecar has {len(post(0)):,} bytes; files lie in the page cache")
    with tempfile.TemporaryDirectory() as made:
        folder, tar = Path(made) / "folder", Path(made) / "0.tar"
        write_folder(folder, FILES // scale)
        write_tar(tar, MEMBERS // scale)
        sources = (Source(name="folder", path=str(folder)), Source(name="tar", path=str(tar), form="webdataset"))
        for source in sources:
            timed(f"{source.name}: rows with sidecars, as tables", lambda one=source: rows(one))
            timed(f"{source.name}: count", lambda one=source: index.count(one))


def rows(source: Source) -> int:
    return sum(table.num_rows for table in index.tables([source], shard_rows=4_000))


if __name__ == "__main__":
    main()
