"""What a picture costs in each stage, and how long a machine takes: arithmetic, not measurement.

FLOP are torch's FlopCounter's (2 for each multiply-add) on the full-size models. A device's time is FLOP by its peak
and the share of the peak that such a model reaches; stages that overlap take as long as the resource that binds.

Kind: pure.
"""

from collections.abc import Mapping
from dataclasses import dataclass

GIGA, TERA = 1e9, 1e12
SECONDS_AN_HOUR = 3600

# GFLOP a picture at 448 px
TAGGER_GFLOP = {
    "wd-swinv2-tagger-v3": 131.1,
    "wd-vit-tagger-v3": 157.0,
    "wd-convnext-tagger-v3": 122.9,
    "wd-vit-large-tagger-v3": 536.0,
    "wd-eva02-large-tagger-v3": 723.5,
}
AESTHETIC_GFLOP = 579.7  # aesthetic-shadow-v2 at 1024 px
QUALITY_GFLOP = 8.8  # CLIP ViT-B/32 at 224 px
READER_GFLOP = 9000.0  # LLaVA 1.5 7B: 592 tokens in, 48 out
READ_SHARE = 176_369 / 7_220_105  # posts tagged english_text among all ids of Danbooru up to 2024-02-28
ENCODER_GFLOP = 118.9  # EfficientNet-V2-S features at 1024 x 1024 px
ENCODER_SIDE = 1024

# Of one core: decode a 1280x1700 JPEG with three model inputs and hashes (tests/bench/bench_decode.py, 2-core Xeon)
DECODE_SECONDS = 0.040
OPEN_SECONDS = 0.035  # the same for one input alone (latents)
PAIRS_SECONDS = 7.5e-6  # find near-duplicates (tests/bench/bench_dedup.py: 6 M)
CAPTION_SECONDS = 1 / 5_000  # caption, select, catalogue, report (tests/bench/bench_catalogue.py)

# Share of the peak that the models reach; estimates from timm's published tables for their twins
REACHED = {"tag": 0.20, "score": 0.45, "text": 0.30, "latents": 0.20}


@dataclass(frozen=True)
class Peak:
    """Dense matrix peak of a device in TFLOP/s, from its vendor's data sheet."""

    bfloat16: float
    float32: float

    def of(self, dtype: str) -> float:
        """TFLOP/s in that dtype; anything but float32 counts as a 16-bit one."""
        return self.float32 if dtype == "float32" else self.bfloat16


DEVICES: dict[str, Peak] = {
    "H200": Peak(989, 67),
    "H100": Peak(989, 67),
    "A100": Peak(312, 19.5),
    "L40S": Peak(362, 91.6),
    "L4": Peak(121, 30.3),
    "T4": Peak(65, 8.1),
    "V100": Peak(125, 15.7),
    "RTX 5090": Peak(209, 105),
    "RTX 4090": Peak(165, 82.6),
    "RTX 3090": Peak(71, 35.6),
    "A770": Peak(138, 19.7),
    "MI300X": Peak(1307, 163),
    "RX 7900 XTX": Peak(123, 61),
}
# Of one core, fp32: two thirds of the 71 GFLOP/s that a 1024 x 1024 matrix product took on a 2-core Xeon with AVX-512
CORE_GFLOPS = 45.0


@dataclass(frozen=True)
class Machine:
    """What work is reckoned for: CPU cores, and accelerators by name with their number. Without any, cores do all."""

    cores: int
    devices: Mapping[str, int]

    def flops(self, stage: str, dtype: str) -> float:
        """FLOP/s that the stage's models reach on all devices together."""
        if not self.devices:
            return self.cores * CORE_GFLOPS * GIGA
        peaks = (peak_of(name).of(dtype) * count for name, count in self.devices.items())
        return sum(peaks) * TERA * REACHED[stage]


@dataclass(frozen=True)
class Hours:
    """Hours of one pass. They overlap: the larger one is how long it takes, and that resource binds."""

    what: str
    cores: float
    devices: float

    @property
    def hours(self) -> float:
        return max(self.cores, self.devices)

    @property
    def binds(self) -> str:
        return "CPU cores" if self.cores >= self.devices else "accelerators"


def peak_of(name: str) -> Peak:
    """The peak of a device by its name in DEVICES or one that holds it ("NVIDIA H200"). Raises KeyError."""
    folded = name.casefold().replace(" ", "")
    known = [key for key in DEVICES if key.casefold().replace(" ", "") in folded]
    return DEVICES[max(known, key=len)] if known else DEVICES[name]


def overlapped(what: str, machine: Machine, *, core_seconds: float, flop: Mapping[str, tuple[float, str]]) -> Hours:
    """The hours of one pass: `flop` is by stage the FLOP of its models and their dtype.

    Without accelerators the cores do both, one after the other.
    """
    cores = core_seconds / machine.cores / SECONDS_AN_HOUR
    models = sum(count / machine.flops(stage, dtype) for stage, (count, dtype) in flop.items()) / SECONDS_AN_HOUR
    return Hours(what, cores, models) if machine.devices else Hours(what, cores + models, 0.0)
