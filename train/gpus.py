"""The GPUs that `sote check` plans for: memory, peak, price; and the share of the peak that hours are stated for.

Kind: pure.
"""

from dataclasses import dataclass
from typing import Final

from sote.data import costs
from sote.train.recipe import GpuName

GB: Final = 1e9
# facts, measured by the seed's author: 3.24 images/s of 24.0 TFLOP each on one A100 of 312 TFLOP/s
AUTHORS_SHARE: Final = 0.25
# what this project aims at on an H200; not measured
GOAL_SHARE: Final = 0.50
PRICES_OF: Final = "2026-05"


@dataclass(frozen=True)
class Gpu:
    """One GPU. `memory_gb` is what its name says (1e9 bytes): the few percent more that it has are left to fragments.

    `tflops` is its dense bfloat16 matrix peak, `dollars` a rented hour.
    """

    name: GpuName
    memory_gb: float
    tflops: float
    dollars: float

    def hours(self, flop: float, *, share: float) -> float:
        """Hours of one GPU for so many operations at that share of its peak."""
        return flop / (self.tflops * 1e12 * share) / 3600


# Peaks: NVIDIA's data sheets (sote/data/costs.py). Prices are ASSUMPTIONS, on-demand, one GPU, of PRICES_OF: the
# specialised hosts in mercatus-ai.com/blog/cloud-gpu-pricing for A100 (1.10 to 1.50; the middle of all there is 2.00,
# which is also what MosaicML's published costs are reckoned with), H100 (2.50 to 3.50) and H200 (3.50 to 4.50); the
# L40S is about a third below the A100 (cudocompute.com/blog/real-world-gpu-benchmarks), the 4090 is a round figure.
GPUS: Final[tuple[Gpu, ...]] = (
    Gpu("A100-80GB", 80, costs.DEVICES["A100"].bfloat16, 2.00),
    Gpu("H100-80GB", 80, costs.DEVICES["H100"].bfloat16, 3.00),
    Gpu("H200-141GB", 141, costs.DEVICES["H200"].bfloat16, 4.00),
    Gpu("L40S-48GB", 48, costs.DEVICES["L40S"].bfloat16, 1.30),
    Gpu("RTX4090-24GB", 24, costs.DEVICES["RTX 4090"].bfloat16, 0.50),
)
BY_NAME: Final[dict[str, Gpu]] = {gpu.name: gpu for gpu in GPUS}
