"""Prints captions and buckets for each second on one core: `python tests/bench/bench_caption.py`."""

import argparse
import random
import time

from rows import Answer, Row, add_option, write

from sote.data.buckets import bucket_for
from sote.data.caption import CaptionFacts, caption, load_profile
from sote.data.recipe import CaptionPart

ROWS = 5000
# As many as a picture has: about 30 general tags above 0.35 of about 80 above schema.TAG_FLOOR.
TAGS, PASSING = 80, 30


def rows(count: int) -> list[CaptionFacts]:
    """Made-up rows with ordinary numbers of tags out of 8,106 names, the size of the tagger's general list."""
    draw = random.Random(0)
    names = [f"tag_{number}_of_some_length" for number in range(8106)]
    made = []
    for _ in range(count):
        tags = [
            (name, draw.uniform(0.35, 1) if place < PASSING else draw.uniform(0.05, 0.35), "general")
            for place, name in enumerate(draw.sample(names, TAGS))
        ]
        tags.append(("someone_(some_series)", 0.9, "character"))
        made.append(
            CaptionFacts(
                source_kind="image board",
                aesthetic_score=draw.random(),
                quality_score=draw.random(),
                rating=(0.1, 0.2, 0.3, 0.4),
                tags=tags,
                year=2020,
            )
        )
    return made


def main() -> None:
    asked = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    asked.add_argument("--rows", type=int, default=ROWS)
    add_option(asked)
    options = asked.parse_args()
    count = options.rows
    profile, part, facts = load_profile("sote-v1"), CaptionPart(), rows(count)
    start = time.process_time()
    made = [caption(row, profile, part=part) for row in facts]
    seconds = time.process_time() - start
    tags = sum(len(one.tags) for one in made) / count
    captions = Row("captions", count / seconds, "captions/s of CPU", note=f"{tags:.1f} tags each")
    print(captions.line())

    draw = random.Random(1)
    sizes = [(draw.randrange(600, 4000), draw.randrange(600, 4000)) for _ in range(count)]
    start = time.process_time()
    for width, height in sizes:
        bucket_for(width, height, resolution=1024, step=64)
    buckets = Row("buckets", count / (time.process_time() - start), "buckets/s of CPU")
    print(buckets.line())
    write(options.json, Answer([captions, buckets]))


if __name__ == "__main__":
    main()
