"""Hours times nodes times prices."""

import pytest
from rich.console import Console

from sote.cluster import prices
from sote.cluster.cluster_profile import ClusterProfile, Group, Head, Price
from sote.cluster.errors import UserError
from sote.cluster.prices import Estimate, Pass

ARC = Group(
    name="arc",
    use=("caption",),
    accel="xpu",
    device="A770",
    devices=1,
    cpus=8,
    memory_gb=32,
    max_nodes=4,
    price=Price(on_demand=0.5),
)
A100 = Group(
    name="a100",
    use=("train", "serve"),
    accel="cuda",
    device="A100",
    devices=8,
    device_memory_gb=80,
    cpus=96,
    memory_gb=900,
    max_nodes=2,
    spot=True,
    price=Price(on_demand=16, spot=8),
)
CORES = Group(name="cores", use=("decode",), cpus=32, memory_gb=64, max_nodes=3)
CLUSTER = ClusterProfile(name="mixed", head=Head(price=Price(on_demand=0.25)), groups=(ARC, A100, CORES))


def shown(priced: Estimate) -> str:
    console = Console(width=100)
    with console.capture() as captured:
        console.print(prices.render(priced))
    return captured.get()


def test_a_run_costs_its_nodes_hours_and_the_heads() -> None:
    priced = prices.estimate(CLUSTER, [Pass("captions", 100, {"arc": 4}), Pass("training", 20, {"a100": 1})])
    assert [line.node_hours for line in priced.lines] == [400, 20, 120]
    assert priced.on_demand.amount == 400 * 0.5 + 20 * 16 + 120 * 0.25
    assert priced.spot.amount == 400 * 0.5 + 20 * 8 + 120 * 0.25  # where there is no spot price, that on demand
    assert priced.as_profile == priced.spot
    assert priced.hours == 120


def test_what_has_no_price_is_said_and_not_counted() -> None:
    priced = prices.estimate(CLUSTER, [Pass("captions", 10, {"arc": 1, "cores": 3})])
    assert priced.on_demand.amount == 10 * 0.5 + 10 * 0.25
    assert priced.on_demand.without == ("cores",)
    assert "no price" in shown(priced)
    assert "+ ?" in shown(priced)
    assert "No price, and so not in the total: cores." in shown(priced)


def test_hours_that_are_not_known_have_no_cost() -> None:
    priced = prices.estimate(CLUSTER, [Pass("training", None, {"a100": 1}, note="who knows")])
    assert priced.on_demand.amount == 0
    assert priced.on_demand.without == ("a100", "head")
    assert "not known" in shown(priced)
    assert "0.00" not in shown(priced)
    assert "training: who knows" in shown(priced)


def test_another_way_does_not_count() -> None:
    passes = [Pass("training", 20, {"a100": 1}), Pass("training", 10, {"a100": 2}, instead=True)]
    priced = prices.estimate(CLUSTER, passes)
    assert priced.on_demand.amount == 20 * 16 + 20 * 0.25
    assert " or " in shown(priced)


def test_two_equal_passes_both_count() -> None:
    same = Pass("captions", 10, {"arc": 1})
    assert prices.estimate(CLUSTER, [same, same]).on_demand.amount == 2 * 10 * 0.5 + 20 * 0.25


def test_a_fleet_is_all_nodes_of_a_use() -> None:
    assert prices.fleet(CLUSTER, "caption") == prices.Fleet(32, {"A770": 4}, {"arc": 4})
    assert prices.fleet(CLUSTER, "decode") == prices.Fleet(96, {}, {"cores": 3})
    alone = ClusterProfile(name="small", groups=(ARC,))
    with pytest.raises(UserError, match=r"cluster 'small': groups: none is of use 'train'.*there is caption"):
        prices.fleet(alone, "train")


def test_a_group_that_cannot_hold_the_work_is_named_with_what_it_lacks() -> None:
    assert prices.fitting(CLUSTER, "train", slots=16, gigabytes=70) == (A100,)
    with pytest.raises(UserError, match="needs 17 accelerators in one group of use 'train'; a100 has 16 at most"):
        prices.fitting(CLUSTER, "train", slots=17)
    with pytest.raises(UserError, match="one of a100 has 80 GB"):
        prices.fitting(CLUSTER, "train", slots=8, gigabytes=90)


def test_nodes_are_whole() -> None:
    assert [prices.nodes_for(A100, slots) for slots in (0.5, 8, 9)] == [1, 1, 2]
    with pytest.raises(UserError, match="there is no 'gone'; known: arc, a100, cores"):
        prices.estimate(CLUSTER, [Pass("captions", 1, {"gone": 1})])


def test_the_table_fits_a_page() -> None:
    passes = [Pass("decode, score, tag", 1234.5, {"arc": 4, "cores": 3}), Pass("training", 220, {"a100": 2})]
    assert all(len(line.rstrip()) <= 100 for line in shown(prices.estimate(CLUSTER, passes)).splitlines())
