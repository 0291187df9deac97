"""The workers of the tests of DeepSpeed's engine: `python zero_worker.py FOLDER` runs every scenario with 2, 1, 4.

Worker 0 of each group leaves what it found in FOLDER/<workers>.pt. The model's shapes are chosen so that shards cut
tensors wherever they can be cut: within rows, over more than two workers, with one axis, three and four axes.

Kind: wiring.
"""

import importlib
import multiprocessing
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from sote.train.engine import Engine
from sote.train.recipe import BatchPart, OptimizerPart, WorkersPart
from sote.train.unet import CascadeUNet, Config

SHAPES = {"a": (7,), "table": (19, 11), "kernel": (6, 1, 3, 3), "stack": (4, 3, 5), "line": (1, 9), "one": (1,)}
RATES: dict[str, Any] = {"prior_learning_rate": 1e-2, "text_encoder_learning_rate": 3e-3, "warmup_steps": 2}
PART = OptimizerPart(gradient_clipping=0.5, weight_decay=0.01, **RATES)
ADAMW = PART.model_copy(update={"name": "adamw"})
# Heavy; DeepSpeed itself imports the second of these late
IMPORTED = ("sote.train.engine_deepspeed", "deepspeed.runtime.zero.muon.muon_optimizer")
WORKERS = (2, 1, 4)  # two workers first: the others take up their run
BATCH = BatchPart(effective_batch=12, micro_batch=2)  # 6 micro-batches: with 4 workers two are padding


class Odd(nn.Module):
    """Tensors of many shapes, each of which has a part in the result."""

    def __init__(self, shapes: dict[str, tuple[int, ...]]) -> None:
        super().__init__()
        for name, shape in shapes.items():
            self.register_parameter(name, nn.Parameter(torch.randn(shape)))

    def forward(self, inputs_BD: Tensor) -> Tensor:
        total_B = inputs_BD.new_zeros(len(inputs_BD))
        for number, tensor in enumerate(self.parameters()):
            places = torch.arange(tensor.numel(), device=tensor.device) % inputs_BD.shape[1]
            total_B = total_B + (tensor.flatten() * inputs_BD.roll(number, dims=1)[:, places]).tanh().sum(dim=1)
        return total_B


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.prior = Odd(SHAPES)
        self.text_encoder = nn.Sequential(nn.Linear(16, 3), nn.Linear(3, 1))
        self.frozen = nn.Linear(16, 16).to(torch.bfloat16).requires_grad_(False)

    def forward(self, inputs_BD: Tensor) -> Tensor:
        mixed_BD = inputs_BD + self.frozen(inputs_BD.to(torch.bfloat16)).float()
        out_B = self.prior(mixed_BD) + self.text_encoder(mixed_BD).squeeze(1)
        return (out_B - inputs_BD.sum(dim=1)).square().mean()


class Unet(nn.Module):
    """Stage C, very small, in the place of the prior."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        levels = {"block_out_channels": (16, 16), "num_attention_heads": (2, 2), "dropout": (0.0, 0.0)}
        layers = {"down_num_layers_per_block": (1, 1), "up_num_layers_per_block": (1, 1), "switch_level": (False,)}
        text = {"clip_text_in_channels": 8, "clip_text_pooled_in_channels": 8, "clip_image_in_channels": 8}
        sizes = {"in_channels": 4, "out_channels": 4, "conditioning_dim": 16}
        self.prior = CascadeUNet(Config.of(levels | layers | text | sizes))

    def forward(self, inputs_BD: Tensor) -> Tensor:
        noise_BCHW, text_BTD = inputs_BD.view(-1, 4, 2, 2), inputs_BD.view(-1, 2, 8)
        time_B = inputs_BD[:, 0].sigmoid()
        out_BCHW = self.prior(noise_BCHW, time_B=time_B, pooled_B1D=text_BTD[:, :1], text_BTD=text_BTD)
        return (out_BCHW - noise_BCHW.roll(1, dims=0)).square().mean()


@dataclass
class Run:
    """A training that can be interrupted. `norms` are those of the gradient of each step."""

    engine: Engine
    norms: list[float]

    def step(self, number: int, *, updates: int | None = None, skip: bool = False, broken: bool = False) -> None:
        """Update `number` of the run. With `skip` it is left out, with `broken` before all micro-batches are done."""
        engine, count = self.engine, BATCH.effective_batch // BATCH.micro_batch
        inputs_NBD = torch.randn(count, BATCH.micro_batch, 16, generator=torch.Generator().manual_seed(number))
        share = -(-count // engine.workers)
        for index in range(engine.rank * share, (engine.rank + 1) * share):
            real = index < count
            loss = engine(inputs_NBD[min(index, count - 1)]) * (1 / count if real else 0.0)
            engine.backward(loss)
            if broken:
                break
        if not broken:
            self.norms.append(engine.clip())
        if skip or broken:
            engine.skip()
        else:
            engine.update(step=number, updates=updates if updates is not None else number)

    def result(self) -> dict[str, Any]:
        engine = self.engine
        return {"weights": engine.assemble(engine.pieces()), "state": engine.state(), "norms": list(self.norms)}


def start(
    make: Callable[..., Engine],
    *,
    model: type[nn.Module] = Model,
    part: OptimizerPart = PART,
    stage: int = 0,
    precision: str = "float32",
) -> Run:
    work = WorkersPart.model_validate({"count": 1, "zero_stage": stage, "precision": precision})
    return Run(make(model(), part=part, batch=BATCH, work=work), [])


def train(run: Run, *, first: int = 1, last: int = 3) -> dict[str, Any]:
    for number in range(first, last + 1):
        run.step(number)
    return run.result()


def interrupted(run: Run) -> dict[str, Any]:
    """Three updates with two steps between them that leave no trace."""
    run.step(1, updates=1)
    run.step(7, skip=True)
    run.step(8, broken=True)
    run.step(2, updates=2)
    run.step(3, updates=3)
    return run.result()


def resumed(run: Run, saved: dict[str, Any]) -> dict[str, Any]:
    """Updates 4 to 6 after what another run saved after 3."""
    run.engine.load(saved["weights"].__getitem__, saved["state"].__getitem__, updates=3)
    return train(run, first=4, last=6)


def scenarios(folder: Path) -> dict[str, Any]:
    from sote.train.engine_deepspeed import DeepSpeed

    found: dict[str, Any] = {}
    for stage in (0, 1, 2):
        found[f"adafactor {stage}"] = train(start(DeepSpeed, stage=stage))
        found[f"adamw {stage}"] = train(start(DeepSpeed, stage=stage, part=ADAMW))
        found[f"interrupted {stage}"] = interrupted(start(DeepSpeed, stage=stage))
        found[f"bfloat16 {stage}"] = bfloat16(start(DeepSpeed, stage=stage, precision="bfloat16"))
    found["unet 2"] = train(start(DeepSpeed, model=Unet, stage=2))
    found["unet in bfloat16 2"] = train(start(DeepSpeed, model=Unet, stage=2, precision="bfloat16"))
    saved = folder / "saved.pt"
    if dist.get_world_size() != WORKERS[0]:
        before = torch.load(saved)
        for stage in (0, 1, 2):
            found[f"resumed {stage}"] = resumed(start(DeepSpeed, stage=stage), before)
    elif dist.get_rank() == 0:
        torch.save(found["adafactor 1"], saved)
    return found


def bfloat16(run: Run) -> dict[str, Any]:
    """Masters and the weights that the model computes with: at the start, after three updates, and after a load."""
    engine = run.engine
    started = {name: tensor.detach() for name, tensor in Model().named_parameters()}
    found = {"before": engine.assemble(engine.pieces()), "before_inner": inner(engine)} | train(run)
    found |= {"after": found["weights"], "after_inner": inner(engine)}
    engine.load(started.__getitem__, None, updates=3)
    copies = [torch.zeros_like(piece) for piece in engine.pieces()]
    engine.fill(copies, started.__getitem__)
    return found | {"loaded": engine.assemble(copies), "loaded_inner": inner(engine)}


def inner(engine: Engine) -> dict[str, list[Tensor]]:
    """The trained weights that the model computes with, of every worker."""
    found = {}
    for name, tensor in engine.engine.module.model.named_parameters():  # type: ignore[attr-defined]
        if tensor.requires_grad:
            found[name] = [torch.empty_like(tensor.data) for _ in range(engine.workers)]
            dist.all_gather(found[name], tensor.data)
    return found


def work(rank: int, workers: int, folder: Path) -> None:
    from sote.train import engine_deepspeed, masters

    masters.CHUNK, engine_deepspeed.PART = 1000, 50  # elements at a time: small, so that there are many times
    os.environ["LOCAL_RANK"] = str(rank)  # Ray Train sets it; DeepSpeed asks for it
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet-{workers}", rank=rank, world_size=workers)
    found = scenarios(folder)
    if rank == 0:
        torch.save(found, folder / f"{workers}.pt")
    dist.destroy_process_group()


def main(folder: Path) -> None:
    """Groups of 2, 1 and 4 workers, one after the other. All are forks of this process, which has imported for them."""
    for name in IMPORTED:
        importlib.import_module(name)
    context = multiprocessing.get_context("fork")
    for workers in WORKERS:
        group = [context.Process(target=work, args=(rank, workers, folder)) for rank in range(workers)]
        for process in group:
            process.start()
        for process in group:
            process.join()
        if any(process.exitcode for process in group):
            sys.exit(f"a worker of {workers} failed")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
