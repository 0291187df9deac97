"""What the two models are asked for and what they answer, in this project's words: no foreign names beyond this line.

Kind: pure.
"""

import hashlib
from dataclasses import dataclass, field
from typing import Any, Final, Literal

import numpy as np

from sote.serve.profiles import Profile
from sote.serve.schedules import Sampler, Scheduler

MAX_SEED = 2**32 - 1  # torch's CPU generator takes no more bits
QUALITY = 95  # of JPEG and WebP; Pillow's handbook: JPEG above 95 grows the file for hardly any gain
OutputFormat = Literal["png", "jpeg", "webp"]
StageName = Literal["prior", "decoder"]
CONTENT_TYPES: Final[dict[OutputFormat, str]] = {"png": "image/png", "jpeg": "image/jpeg", "webp": "image/webp"}

Pixels = np.ndarray[Any, np.dtype[np.uint8]]
Numbers = np.ndarray[Any, np.dtype[np.float32]]


@dataclass(frozen=True)
class Stage:
    """How one of the two diffusion stages samples."""

    steps: int
    guidance: float
    sampler: Sampler
    scheduler: Scheduler
    shift: float
    # Of the guided prediction's deviation towards the conditional's: 0 none, 0.7 Stability's own sampler (gdf cfg_rho)
    rescale: float = 0.0

    @property
    def is_guided(self) -> bool:
        """Whether the unconditional pass is run: guidance 1 is the conditional pass alone, less has no use."""
        return self.guidance > 1


@dataclass(frozen=True, eq=False)
class Settings:
    """Everything that decides the pictures of one request, complete.

    `prompt` and `negative_prompt` are whole, default tags included. `is_weighted`: "(word:1.2)" is read as a weight.
    `start` is the picture to start from, RGB [32 h, 32 w, 3] for latents of h x w cells; `strength` in (0, 1] is how
    much of it is painted anew. `variations` are pictures, RGB [224, 224, 3], whose content the prior is told.
    """

    prompt: str
    negative_prompt: str
    width: int
    height: int
    compression: float
    images: int
    seed: int
    output_format: OutputFormat
    prior: Stage
    decoder: Stage
    profile: Profile | None = None
    is_weighted: bool = True
    start: Pixels | None = None
    strength: float = 1.0
    variations: tuple[Pixels, ...] = ()
    has_parameters: bool = True  # whether they are written into the picture's file
    quality: int = QUALITY  # 0 to 100, of JPEG and WebP

    def image_seed(self, index: int) -> int:
        """The seed with which picture `index` of the request can be asked for alone."""
        return (self.seed + index) % (MAX_SEED + 1)

    def decoder_seed(self, index: int) -> int:
        """Seed of the decoder's own stream of noise, from the picture's by hash: the stages never share noise."""
        digest = hashlib.sha256(f"decoder:{self.image_seed(index)}".encode()).digest()
        return int.from_bytes(digest[:4], "big")


@dataclass(frozen=True)
class Work:
    """What a stage did for one request. `seconds` is from its arrival at the replica to its end, `waited_seconds` the
    part before its first step.

    `occupancy` counts steps of the batch by how many pictures stepped together; a step that several requests shared is
    counted for one of them only, so that sums over requests are exact. `megapixel_steps`: its own pictures' pixels
    times steps.
    """

    stage: StageName
    seconds: float
    waited_seconds: float
    megapixel_steps: float
    occupancy: dict[int, int] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Latents:
    """What the prior hands to the decoder: latents [B, 16, h, w] and pooled text [1 or 2, 1, D], float32.

    The second row of the pooled text is that of the negative prompt, where a stage is guided.
    """

    latents: Numbers
    pooled: Numbers
    work: Work
    warnings: tuple[str, ...]
    prompt_tokens: int = 0  # of the prompt, marks left out, whether they were read or not


@dataclass(frozen=True)
class Progress:
    """`step` steps of `steps` are done in `stage`. `preview`: a small JPEG of the first picture as it stands."""

    stage: StageName
    step: int
    steps: int
    preview: bytes | None = None
