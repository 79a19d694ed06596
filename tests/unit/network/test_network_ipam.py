"""Leases: one file an address, handed out round the range, safe between processes."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pyrun.errors import BadInput, Conflict
from pyrun.explain import steps
from pyrun.network import ipam
from pyrun.network.ipam import Lease
from pyrun.network.node import NodeNetwork, decide
from pyrun.store.paths import Paths


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    return Paths(str(tmp_path / "root"), str(tmp_path / "run"))


def network(paths: Paths, *, ipv6: bool = True, **environ: str) -> NodeNetwork:
    return NodeNetwork(paths, decide(environ), kept=True, ipv6=ipv6, mtu=1500)


def test_leases_are_twins_in_both_families(paths: Paths) -> None:
    net = network(paths)
    assert ipam.lease(paths, net, "web") == Lease("10.66.0.2", 24, "fd66::2", 64)
    ten = [ipam.lease(paths, net, f"p{number}") for number in range(10)][-1]
    assert ten == Lease("10.66.0.12", 24, "fd66::c", 64)


def test_without_ipv6_there_is_no_twin(paths: Paths) -> None:
    lease = ipam.lease(paths, network(paths, ipv6=False), "web")
    assert lease == Lease("10.66.0.2", 24, None, 0)
    assert lease.ips == ["10.66.0.2"]


def test_a_released_address_is_not_the_next_one(paths: Paths) -> None:
    net = network(paths)
    first = ipam.lease(paths, net, "one")
    ipam.release(paths, "one")
    assert ipam.lease(paths, net, "two").ip4 != first.ip4


def test_a_full_range_is_a_conflict_and_every_address_comes_round(paths: Paths) -> None:
    net = network(paths, PYRUN_POD_CIDR="10.66.0.0/29")
    given = [ipam.lease(paths, net, f"p{number}").ip4 for number in range(5)]
    assert given == [f"10.66.0.{number}" for number in range(2, 7)]
    assert ipam.next_lease(paths, net) is None
    with pytest.raises(Conflict, match="no free address for 'late'") as caught:
        ipam.lease(paths, net, "late")
    assert "pyrun network ls" in caught.value.hint
    ipam.release(paths, "p1")
    assert ipam.lease(paths, net, "late").ip4 == "10.66.0.3"


def test_release_gives_back_all_of_one_owner_only(paths: Paths) -> None:
    net = network(paths)
    for name in ("web", "db", "web"):
        ipam.lease(paths, net, name)
    ipam.release(paths, "web")
    ipam.release(paths, "web")
    assert ipam.leases(paths) == {"10.66.0.3": "db"}


def test_leases_are_listed_in_the_order_of_addresses(paths: Paths) -> None:
    net = network(paths)
    for number in range(12):
        ipam.lease(paths, net, f"p{number}")
    assert list(ipam.leases(paths)) == [f"10.66.0.{number}" for number in range(2, 14)]


def test_next_lease_tells_and_takes_nothing(paths: Paths) -> None:
    net = network(paths)
    expected = ipam.next_lease(paths, net)
    assert not os.path.exists(paths.run_root)
    assert ipam.lease(paths, net, "web") == expected


def test_the_step_holds_an_address_and_its_undo_gives_it_back(paths: Paths) -> None:
    net = network(paths)
    lease = ipam.next_lease(paths, net)
    assert lease is not None
    plan = ipam.plan_lease(paths, lease, "web")
    steps.run(plan)
    steps.run(plan)  # holding what one holds is fine
    with pytest.raises(Conflict, match="is leased to 'web'"):
        steps.run(ipam.plan_lease(paths, lease, "db"))
    assert ipam.leases(paths) == {lease.ip4: "web"}
    steps.undo(plan)
    assert ipam.leases(paths) == {}


def test_a_kept_range_that_became_smaller_starts_over(paths: Paths) -> None:
    ipam.lease(paths, network(paths, PYRUN_POD_CIDR="10.70.0.0/24"), "old")
    assert ipam.lease(paths, network(paths), "new").ip4 == "10.66.0.2"


def test_ranges_follow_from_each_other() -> None:
    assert decide({}) == {
        "pod_cidr": "10.66.0.0/24", "cluster_cidr": "10.66.0.0/16",
        "pod_cidr6": "fd66::/64", "cluster_cidr6": "fd66::/48",
    }  # fmt: skip
    alone = decide({"PYRUN_POD_CIDR": "10.77.0.0/20"})
    assert (alone["pod_cidr"], alone["cluster_cidr"]) == ("10.77.0.0/20", "10.77.0.0/20")
    part = decide({"PYRUN_POD_CIDR": "10.66.7.0/24"})
    assert part["cluster_cidr"] == "10.66.0.0/16"
    first = decide({"PYRUN_CLUSTER_CIDR": "172.20.0.0/14"})
    assert first["pod_cidr"] == "172.20.0.0/24"
    assert decide({"PYRUN_POD_CIDR6": "none"})["pod_cidr6"] == ""


@pytest.mark.parametrize(
    ("environ", "words"),
    [
        ({"PYRUN_POD_CIDR": "10.66.0.0/31"}, "cannot hold pods"),
        ({"PYRUN_POD_CIDR": "fd77::/64"}, "cannot hold pods"),
        ({"PYRUN_POD_CIDR": "10.66.0.7/24"}, "not the start of a range"),
        ({"PYRUN_POD_CIDR": "some"}, "not an IP address"),
        ({"PYRUN_POD_CIDR6": "fd66::/126"}, "cannot hold as many pods"),
        (
            {"PYRUN_POD_CIDR": "10.1.0.0/24", "PYRUN_CLUSTER_CIDR": "10.2.0.0/16"},
            "not a part of PYRUN_CLUSTER_CIDR",
        ),
    ],
)
def test_wrong_ranges_are_refused(environ: dict[str, str], words: str) -> None:
    with pytest.raises(BadInput, match=words):
        decide(environ)
