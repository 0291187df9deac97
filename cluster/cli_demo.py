"""`sote demo`: the whole river, small and offline, or only pictures of the small world.

Kind: wiring.
"""

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from sote.cluster.errors import UserError

DEFAULT_OUT = Path("runs/demo")
DEFAULT_WORLD = Path("runs/world")


def register(app: typer.Typer, address: Callable[[], str | None]) -> None:
    """Add the verb to the command; `address` is what the global option said."""

    @app.command(epilog="Example: sote demo --out runs/demo")
    def demo(
        images: Annotated[
            Path | None, typer.Option(help="a folder of your own pictures instead of the drawn ones; implies --quick")
        ] = None,
        out: Annotated[
            Path | None,
            typer.Option(help=f"the run folder to make or to continue: {DEFAULT_OUT}; with --world {DEFAULT_WORLD}"),
        ] = None,
        quick: Annotated[bool, typer.Option("--quick", help="64 pictures, stand-in models, no measure")] = False,
        world: Annotated[
            int | None,
            typer.Option(metavar="N", min=1, help="only draw N pictures of the small world, into a new folder"),
        ] = None,
        weights: Annotated[
            Path | None,
            typer.Option(help="the small world's models to begin with: what `make base SIZE=large` made"),
        ] = None,
    ) -> None:
        """Run the whole river, small and offline: pictures to a served image, with a report that measures it."""
        if world is not None:
            _draw(world, out or DEFAULT_WORLD, others=images is not None or quick or weights is not None)
            return
        if weights is not None and (images is not None or quick):
            raise UserError("--weights: goes with the whole demo alone; leave out --images and --quick")
        out = out or DEFAULT_OUT
        minutes = "three to four" if quick or images else "eight to ten"
        told = f"{minutes} minutes on two cores" if weights is None else "longer than small models take"
        print(f"The whole river in {out}: {told}.", flush=True)
        from sote.serve import demo as whole

        whole.run(out, images=images, quick=quick, weights=weights, address=address())


def _draw(count: int, out: Path, *, others: bool) -> None:
    """Pictures of the small world with sidecars and truth.jsonl, drawn on all cores into a new folder."""
    if others:
        raise UserError("--world: only draws pictures; leave out --images, --quick and --weights")
    if out.exists() and any(out.iterdir()):
        raise UserError(f"--out {out}: is not empty; name a new folder for the pictures")
    from sote.data import scenes, world

    began = time.monotonic()
    scenes.draw(out, count=count, of=world.plan, processes=os.cpu_count() or 1)
    seconds = time.monotonic() - began
    print(
        f"{count} pictures in {out}, what is true of them in {out / 'truth.jsonl'}; "
        f"{seconds:.1f} s, {count / seconds:.0f} pictures/s"
    )
