"""Prints how fast sources are indexed: `python tests/bench/bench_index.py [--files N,N] [--members N]`.

1,000 to 100,000 small files with a JSON sidecar each (a Danbooru post of some 2 KB as gallery-dl writes it), and a tar
of 20,000 pictures with such sidecars. Everything was written a moment before, so that it lies in the
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

from rows import Answer, Plot, Row, add_option, write

from sote.data import index
from sote.data.recipe import Source

FILES, MEMBERS, IN_ONE_FOLDER = "1000,10000,100000", 20_000, 4_000  # the author's folders held 4000 pictures
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


def timed(act: Callable[[], int]) -> tuple[float, float]:
    """Rows a second, and rows a second of CPU."""
    wall, cpu = time.perf_counter(), time.process_time()
    count = act()
    return count / (time.perf_counter() - wall), count / (time.process_time() - cpu)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--files", default=FILES, help="how many files, with commas")
    parser.add_argument("--members", type=int, default=MEMBERS, help="pictures in the tar")
    add_option(parser)
    options = parser.parse_args()
    names = [
        line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line
    ]
    print(f"{os.cpu_count()} cores, {names[0] if names else platform.processor()}; one is used")
    print(f"a sidecar has {len(post(0)):,} bytes; files lie in the page cache")
    found, points = list[Row](), list[tuple[float, float]]()
    with tempfile.TemporaryDirectory() as made:  # what is imported at the first row counts nowhere
        write_folder(Path(made) / "folder", 10)
        rows(Source(name="folder", path=f"{made}/folder"))
    for count in map(int, options.files.split(",")):
        with tempfile.TemporaryDirectory() as made:
            write_folder(Path(made) / "folder", count)
            folder = Source(name="folder", path=f"{made}/folder")
            found += figures("a folder", folder, count)
            points.append((count, found[-2].ours))
    with tempfile.TemporaryDirectory() as made:
        write_tar(Path(made) / "0.tar", options.members)
        tar = Source(name="tar", path=f"{made}/0.tar", form="webdataset")
        found += figures("a tar", tar, options.members)
    plot = Plot("Indexing files with sidecars", "files", "rows/s", {"a folder": points}, is_log=True)
    write(options.json, Answer(found, [plot]))


def figures(name: str, source: Source, count: int) -> list[Row]:
    """The rows of a source: as tables, and only counted."""
    made = []
    for what, act in (("rows with sidecars, as tables", rows), ("counted", index.count)):
        wall, cpu = timed(lambda act=act: act(source))  # type: ignore[misc]
        made.append(Row(f"{name} of {count:,}: {what}", wall, "rows/s", note=f"{cpu:,.0f} a second of CPU"))
        print(made[-1].line(), flush=True)
    return made


def rows(source: Source) -> int:
    return sum(table.num_rows for table in index.tables([source], shard_rows=4_000))


if __name__ == "__main__":
    main()
