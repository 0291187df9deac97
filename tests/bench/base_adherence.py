"""What the small world's base models paint of the tags of random scenes: `python tests/bench/base_adherence.py`.

For choosing models and settings: its prompts are not those by which the demo judges. `--weights DIR` names other models
than the committed ones, as `make base` leaves them in runs/base/weights. Half of the prompts are painted on each of two
cores, some three pictures a second. The uncertainty of a share is that of a count, one standard deviation.

Not measured: what a finetuned model paints, the concept, pictures that people would judge.
"""

import argparse
import multiprocessing
import tempfile
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from rows import Answer, Row, add_option, write

from sote.data import world_prompts
from sote.serve import adherence, demo_world
from sote.train import world_files

NOT_MEASURED = ("finetuned models, the concept", "pictures that people would judge")
PROCESSES = 2


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("--weights", type=Path, help="the folder of other models: tagger, encoder, prior, decoder, ...")
    asked.add_argument("--count", type=int, default=400, help="of prompts")
    asked.add_argument("--seed", type=int, default=world_prompts.SCENES_SEED, help="of the scenes")
    asked.add_argument("--guidance", type=float, help="of Stage C, in place of the demo's")
    add_option(asked)
    given = asked.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        if given.weights is None:
            world_files.unpack(root / "weights")
        else:
            (root / "weights").symlink_to(given.weights.resolve(), target_is_directory=True)
        rows = measured(root, world_prompts.of_scenes(given.count, seed=given.seed), guidance=given.guidance)
    for row in rows:
        print(f"{row.line()}  ({row.note})")
    print("not measured: " + "; ".join(NOT_MEASURED))
    write(given.json, Answer(rows, (), NOT_MEASURED))


def measured(root: Path, asked: tuple[world_prompts.Asked, ...], *, guidance: float | None) -> list[Row]:
    """A row for each group of tags, of the models in `root`/weights."""
    part, defaults = demo_world.model(root, root / "weights" / "prior"), demo_world.defaults()
    if guidance is not None:
        defaults = defaults.model_copy(update={"prior_guidance": guidance})
    shares = [asked[at::PROCESSES] for at in range(PROCESSES)]
    with ProcessPoolExecutor(PROCESSES, mp_context=multiprocessing.get_context("spawn")) as pool:
        jobs = [
            pool.submit(adherence.paint_and_read, root / str(at), part, defaults, share)
            for at, share in enumerate(shares)
        ]
        found = [sorted(tags) for job in jobs for _, tags in job.result()]
    counted = adherence.scores([each for share in shares for each in share], found)
    return [_row(name, hits, of) for name, (hits, of) in counted.items()]


def _row(name: str, hits: int, of: int) -> Row:
    share = hits / of
    off = (share * (1 - share) / of) ** 0.5
    return Row(f"{name} as asked", 100 * share, "%", note=f"{hits} of {of}, +-{100 * off:.1f}")


if __name__ == "__main__":
    main()
