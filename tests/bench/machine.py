"""The machine that figures are of: a name made of its hardware alone, and what is said of it beside them."""

import os
import re
from dataclasses import dataclass

from sote.cluster import devices

VENDORS = ("nvidia", "geforce", "tesla", "advanced", "micro", "devices", "corporation")
# What a processor's name says beside its family and model: trade marks, cores, clocks
CLUTTER = (r"\(.*?\)", r"\d+-core", r"\bprocessor\b", r"\bcpu\b", r"@.*", r"\bwith\b.*")


@dataclass(frozen=True)
class Machine:
    """`cores` are those that this process may use; `gpu` is None where there is none."""

    cpu: str
    cores: int
    gpu: str | None
    gpus: int = 0

    @property
    def name(self) -> str:
        """As `2cpu-amd-epyc`, `h200-16cpu` or `8xa100-sxm4-80gb-96cpu`: never the name of a host."""
        if self.gpu is None:
            return f"{self.cores}cpu-{slug(self.cpu)}"
        many = f"{self.gpus}x" if self.gpus > 1 else ""
        return f"{many}{slug(self.gpu)}-{self.cores}cpu"

    def said(self) -> str:
        """For people."""
        gpu = f"{self.gpus} x {self.gpu}, " if self.gpu else ""
        return f"{gpu}{self.cores} cores, {self.cpu}" + ("" if self.gpu else ", no GPU")


def here() -> Machine:
    """This one."""
    import torch

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    gpu = torch.cuda.get_device_name(0) if count else None
    return Machine(devices.cpu().name, cores, gpu, count)


def slug(name: str) -> str:
    """A piece of hardware's name as a part of a file's name, without vendors of GPUs, clocks and trade marks."""
    words = name.lower()
    for pattern in CLUTTER:
        words = re.sub(pattern, " ", words)
    found = [word for word in re.split(r"[^a-z0-9]+", words) if word and word not in VENDORS]
    return "-".join(found) or "unknown"
