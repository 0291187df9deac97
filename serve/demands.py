"""What the whole river asks of a cluster with full-size models, for `sote doctor --address`.

Curation says its own (data/needs.py). Training is the published run: eight devices of 80 GB at once. Serving is one
replica of each model on a device of its own, in bfloat16, painting with the recipe's defaults.

Kind: pure.
"""

from typing import Final

from sote.cluster.fleet import Demand, Rate
from sote.data import costs, needs
from sote.serve.plan import DECODER_TFLOP, DECODER_VALUES, PRIOR_TFLOP, PRIOR_VALUES, VQGAN_TFLOP
from sote.serve.recipe import DefaultsPart
from sote.train.gpus import AUTHORS_SHARE

GB: Final = 1_000_000_000
HALF: Final = 2  # bytes of a number in bfloat16
WORKERS, WORKER_GB = 8, 80  # the published run: eight A100 of 80 GB
TRAINED: Final = 3.0  # forward once, backward as much as twice
TEXT_VALUES: Final = 695_000_000  # OpenCLIP ViT-bigG/14's text side
RESERVE: Final = int(1.5 * GB)  # what the libraries take (train/memory.py), with a picture's activations an estimate


def demands() -> tuple[Demand, ...]:
    """Each part of the river, in its order."""
    defaults = DefaultsPart()
    prior = defaults.prior_steps * PRIOR_TFLOP * (2 if defaults.prior_guidance > 1 else 1)
    decoder = defaults.decoder_steps * DECODER_TFLOP * (2 if defaults.decoder_guidance > 1 else 1) + VQGAN_TFLOP
    prior_bytes, decoder_bytes = ((values + TEXT_VALUES) * HALF + RESERVE for values in (PRIOR_VALUES, DECODER_VALUES))
    return (
        *needs.demands(),
        Demand("train", WORKER_GB * GB, workers=WORKERS, on_cpu=False, rate=_rate(TRAINED * PRIOR_TFLOP)),
        Demand("serve: prior", prior_bytes, on_cpu=False, rate=_rate(prior)),
        Demand("serve: decoder", decoder_bytes, on_cpu=False, rate=_rate(decoder)),
    )


def _rate(tflop: float) -> Rate:
    """Images a second on one device at the share of its peak that the author's training reached."""

    def rate(device: str) -> float | None:
        try:
            return costs.peak_of(device).bfloat16 * AUTHORS_SHARE / tflop
        except KeyError:
            return None

    return rate
