"""`python -m sote.cluster.detect`: the flags with which `ray start` tells what this machine has, on standard output.

Ray finds accelerators by itself, but not Intel's without dpctl, and it does not know their memory; so all is said
outright: `ray start --address=HEAD:6379 $(python -m sote.cluster.detect)`. `--slots N` lets a machine without an
accelerator take that many models at once on its cores. What was decided, and why, goes to standard error.

Kind: wiring.
"""

import sys
from collections.abc import Sequence

import typer

from sote.cluster import devices
from sote.cluster.devices import Device
from sote.cluster.errors import UserError

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)


def flags(found: Sequence[Device], *, slots: int = 0) -> tuple[list[str], str]:
    """The flags of `ray start` for a machine with these accelerators, and one line that says what was decided.

    A node is of one kind: where several are found it is the one with the most memory in all, for a processor's own
    small device is no reason to leave the card beside it idle. Raises UserError for slots where there is a device.
    """
    if not found:
        words = f"{slots} models at once on its cores" if slots else "no models, unless the whole cluster has no device"
        return _written(slots, devices.labels_of(())), f"no accelerator: a CPU node, it takes {words}"
    if slots:
        raise UserError(
            f"--slots {slots}: is for machines without an accelerator; here is {_said(found)}; leave it out"
        )
    kinds = sorted({each.kind for each in found}, key=lambda kind: (-_memory(of_kind(found, kind)), kind))
    taken = of_kind(found, kinds[0])
    why = f"{_said(taken)}"
    if len(kinds) > 1:
        left = ", ".join(_said(of_kind(found, kind)) for kind in kinds[1:])
        why += f"; not {left}: a node is of one kind, and {kinds[0]} has the most memory"
    sizes = {devices.tier(each.memory_bytes or 0) for each in taken}
    if len(sizes) > 1:
        why += "; they differ in size, and the label says the smallest"
    return _written(len(taken), devices.labels_of(taken)), why


def of_kind(found: Sequence[Device], kind: str) -> tuple[Device, ...]:
    """Those of one kind."""
    return tuple(each for each in found if each.kind == kind)


def _memory(found: Sequence[Device]) -> int:
    return sum(each.memory_bytes or 0 for each in found)


def _written(count: int, labels: dict[str, str]) -> list[str]:
    return [f"--num-gpus={count}", f"--labels={','.join(f'{name}={value}' for name, value in labels.items())}"]


def _said(found: Sequence[Device]) -> str:
    return f"{len(found)} x {found[0].name} ({found[0].kind})"


@app.command(epilog="Example: ray start --address=HEAD:6379 $(python -m sote.cluster.detect)")
def main(slots: int = typer.Option(0, min=0, help="models at once on the cores of a machine without device")) -> None:
    """Print the flags of `ray start` for this machine."""
    written, why = flags(devices.found(), slots=slots)
    print(" ".join(written))
    print(f"sote: {why}", file=sys.stderr)


if __name__ == "__main__":
    try:
        app()
    except UserError as error:
        print(f"sote: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
