"""Prints pictures a second and core, from file to model inputs: `python tests/bench/bench_decode.py [--small]`.

Side by side, for four formats of 1280x1700: Pillow's straightforward way to the three inputs; this project's way to
the same; the whole row (read, sha256 of file and pixels, hashes, thumbnail); and the row through a Decoder, whose time
is that of both processes. Then the perceptual hash of a decoded picture beside imagehash's, which has the same bits.
Times are CPU time, the best of several rounds (of the hash: medians). Not measured: disks and networks (files come from
the page cache), processes side by side, real pictures (these are painted, with grain like a photograph's).
"""

import argparse
import io
import os
import platform
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ |= dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")  # as a Decoder does

import numpy as np
import torch
from peers import hashing
from PIL import Image
from rows import Answer, Row, add_option, in_turn, write

from sote.data import decode, hashes, scenes
from sote.data.decoder import Decoder
from sote.data.inputs import InputShapes, model_inputs
from sote.data.recipe import DecodePart

WIDTH, HEIGHT = 1280, 1700
GRAIN = 4.0  # levels; makes files of the size that such pictures have
SHAPES = InputShapes(tagger_side=448, aesthetic_size=(1024, 1024), quality_side=224)
RULE = DecodePart()
FORMATS: dict[str, tuple[str, dict[str, Any]]] = {
    "JPEG q92": ("JPEG", {"quality": 92}),
    "JPEG progressive": ("JPEG", {"quality": 92, "progressive": True}),
    "PNG": ("PNG", {}),
    "WebP q85": ("WEBP", {"quality": 85}),
}


def picture(index: int) -> Image.Image:
    painted = np.asarray(scenes.paint(scenes.plan(1, index)).resize((WIDTH, HEIGHT), Image.Resampling.LANCZOS))
    grain = np.random.default_rng(index).normal(0, GRAIN, painted.shape)
    return Image.fromarray((painted + grain).clip(0, 255).astype(np.uint8))


def straightforward(path: Path) -> list[np.ndarray[Any, Any]]:
    """The three inputs as their models' own example code makes them with Pillow."""
    image = Image.open(path).convert("RGB")
    padded = Image.new("RGB", (HEIGHT, HEIGHT), "white")
    padded.paste(image, ((HEIGHT - WIDTH) // 2, 0))
    tagger = np.asarray(padded.resize((448, 448), Image.Resampling.BICUBIC))[:, :, ::-1]
    aesthetic = np.asarray(image.resize((1024, 1024), Image.Resampling.BILINEAR))
    shortest = image.resize((224, 224 * HEIGHT // WIDTH), Image.Resampling.BICUBIC)
    top = (shortest.height - 224) // 2
    return [tagger, aesthetic, np.asarray(shortest.crop((0, top, 224, top + 224)))]


def inputs_only(path: Path) -> dict[str, np.ndarray[Any, Any]]:
    data = path.read_bytes()
    with decode._opened(data, RULE) as (image, _):
        rgb = decode._seen(image, data)[1]
    return model_inputs(rgb, SHAPES)


def row(path: Path) -> dict[str, Any]:
    return {"uri": str(path), "offset": None, "bytes": None, "index_skip": None, "index_error": None}


def best(rounds: int, paths: list[Path], work: Callable[[Path], object]) -> float:
    """Pictures for each second of this process' CPU time."""
    found = 0.0
    for _ in range(rounds):
        start = time.process_time()
        for path in paths:
            work(path)
        found = max(found, len(paths) / (time.process_time() - start))
    return found


def spent(pid: int) -> float:
    """Seconds of CPU time that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def through_decoder(rounds: int, decoder: Decoder, paths: list[Path]) -> float:
    rows = [row(path) for path in paths]
    decoder.slice(rows)  # starts it
    found = 0.0
    for _ in range(rounds):
        start = time.process_time() + spent(decoder.worker or 0)
        for _ in range(4):  # the kernel counts a process' time in hundredths of a second
            decoder.slice(rows)
        found = max(found, 4 * len(rows) / (time.process_time() + spent(decoder.worker or 0) - start))
    return found


def main() -> None:
    ask = argparse.ArgumentParser(description=__doc__)
    ask.add_argument("--small", action="store_true", help="fewer pictures and rounds")
    add_option(ask)
    given = ask.parse_args()
    small = given.small
    count, rounds = (2, 2) if small else (8, 5)
    torch.set_num_threads(1)
    cpu = next(line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name"))
    print(f"{cpu.partition(': ')[2]}, {os.cpu_count()} cores, Python {platform.python_version()}")
    print(f"torch {torch.__version__}, Pillow {Image.__version__}; {WIDTH}x{HEIGHT}, {count} of each format")
    print(f"{'pictures/s a core':20}{'KiB':>7}{'Pillow':>9}{'inputs':>9}{'row':>9}{'Decoder':>9}")
    images, found = [picture(index) for index in range(count)], list[Row]()
    with tempfile.TemporaryDirectory() as folder, Decoder(RULE, SHAPES, slice_rows=count) as decoder:
        for name, (form, options) in FORMATS.items():
            paths = []
            for index, image in enumerate(images):
                buffer = io.BytesIO()
                image.save(buffer, form, **options)
                paths.append(Path(folder) / f"{name} {index}")
                paths[-1].write_bytes(buffer.getvalue())
            rates = (
                best(rounds, paths, straightforward),
                best(rounds, paths, inputs_only),
                best(rounds, paths, lambda path: decode.decode_row(row(path), rule=RULE, shapes=SHAPES)),
                through_decoder(rounds, decoder, paths),
            )
            size = sum(path.stat().st_size for path in paths) / count / 1024
            print(f"{name:20}{size:7.0f}" + "".join(f"{rate:9.1f}" for rate in rates), flush=True)
            found += figures(name, rates)
    found += hashed(images, rounds)
    write(given.json, Answer(found))


def figures(name: str, rates: tuple[float, ...]) -> Iterator[Row]:
    """The rows of one format."""
    unit, pillow = "pictures/s of CPU", {"peer": rates[0], "peer_is": "Pillow, the models' example code"}
    yield Row(f"{name} to three inputs", rates[1], unit, **pillow)
    yield Row(f"{name} to three inputs, ids, hashes, thumbnail", rates[2], unit, **pillow, note="ours does more")
    yield Row(f"{name}, the same in a process of its own", rates[3], unit, **pillow, note="ours does more", detail=True)


def hashed(images: list[Image.Image], rounds: int) -> Iterator[Row]:
    """Our perceptual hash beside imagehash's, whose bits must be the same."""
    ways = {"ours": lambda: rate(images, hashes.phash)}
    if (theirs := hashing.phash()) is not None:
        if any(hashes.phash(image) != theirs(image) for image in images):
            raise SystemExit("imagehash has other bits")
        ways["peer"] = lambda: rate(images, theirs)
    medians = in_turn(ways, rounds=rounds)
    made = Row(
        "perceptual hash of 256 bits of a decoded 1280x1700", medians["ours"], "pictures/s of CPU",
        peer=medians.get("peer"), peer_is="imagehash.phash(hash_size=16), same bits",
    )  # fmt: skip
    print(made.line())
    yield made


def rate(images: list[Image.Image], work: Callable[[Image.Image], object]) -> float:
    start = time.process_time()
    for image in images:
        work(image)
    return len(images) / (time.process_time() - start)


if __name__ == "__main__":
    main()
