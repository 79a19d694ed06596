"""What users write behind --publish, and what it becomes in nftables' words."""

from __future__ import annotations

import pytest

from pyrun.errors import BadInput, Unsupported
from pyrun.network import nat
from pyrun.network.node import NodeNetwork, decide
from pyrun.network.ports import Port, parse_publish, plan_publish, plan_unpublish
from pyrun.store.paths import Paths


@pytest.mark.parametrize(
    ("text", "ports"),
    [
        ("80", [Port("", 0, 80)]),
        ("8080:80", [Port("", 8080, 80)]),
        (":80", [Port("", 0, 80)]),
        ("8080:80/udp", [Port("", 8080, 80, "udp")]),
        ("8080:80/TCP", [Port("", 8080, 80)]),
        ("127.0.0.1:8080:80", [Port("127.0.0.1", 8080, 80)]),
        ("127.0.0.1::80", [Port("127.0.0.1", 0, 80)]),
        ("0.0.0.0:8080:80", [Port("0.0.0.0", 8080, 80)]),
        ("[::]:8080:80", [Port("::", 8080, 80)]),
        ("[FD00:0::2]:8080:80/udp", [Port("fd00::2", 8080, 80, "udp")]),
        ("[fd00::2]::80", [Port("fd00::2", 0, 80)]),
        ("8000-8002:80-82", [Port("", 8000 + n, 80 + n) for n in range(3)]),
        ("80-81", [Port("", 0, 80), Port("", 0, 81)]),
        ("127.0.0.1::80-81/udp", [Port("127.0.0.1", 0, n, "udp") for n in (80, 81)]),
    ],
)
def test_dockers_forms_are_understood(text: str, ports: list[Port]) -> None:
    assert parse_publish(text) == ports


@pytest.mark.parametrize(
    "text",
    [
        "", ":", "x", "80:", "8080:80:", "0", "8080:0", "65536", "8080:70000", "-1", "80-", "81-80",
        "8080-8082:80", "8080:80/", "8080:80/icmp", "fd00::2:8080:80", "[fd00::2]8080:80",
        "[fd00::2:8080:80", "[127.0.0.1]:8080:80", "localhost:8080:80", "256.0.0.1:8080:80",
        "1:2:3:4", "８０", "8080: 80", "+80",
    ],
)  # fmt: skip
def test_everything_else_is_refused(text: str) -> None:
    with pytest.raises(BadInput):
        parse_publish(text)


@pytest.mark.parametrize("text", ["8080:80/sctp", "[::1]:8080:80"])
def test_what_the_kernel_or_we_cannot_do_is_unsupported(text: str) -> None:
    with pytest.raises(Unsupported) as caught:
        parse_publish(text)
    assert caught.value.hint


def network(*, ipv6: bool = True) -> tuple[Paths, NodeNetwork]:
    paths = Paths("/nowhere/root", "/nowhere/run")
    return paths, NodeNetwork(paths, decide({}), kept=True, ipv6=ipv6, mtu=1500)


def commands(*texts: str, ipv6: bool = True) -> list[str]:
    paths, net = network(ipv6=ipv6)
    wanted = [port for text in texts for port in parse_publish(text)]
    ip6 = "fd66::2" if ipv6 else None
    (step,) = plan_publish(paths, net, "web", wanted, "10.66.0.2", ip6)
    lines = step.shell.splitlines()
    assert all(line.startswith("nft 'add element ") and line[-1] == "'" for line in lines)
    return [line[:-1].partition(f" {net.table} ")[2] for line in lines]


def test_a_port_on_every_address_is_in_the_maps_of_both_families() -> None:
    assert commands("8080:80") == [
        'publish4_any { tcp . 8080 comment "web" : 10.66.0.2 . 80 }',
        'publish6_any { tcp . 8080 comment "web" : fd66::2 . 80 }',
    ]
    assert commands("8080:80", ipv6=False) == commands("0.0.0.0:8080:80")
    assert commands("[::]:8080:80") == commands("8080:80")[1:]


def test_a_port_on_one_address_is_in_that_familys_map() -> None:
    assert commands("127.0.0.1:53:53/udp", "[fd00::2]:8080:80") == [
        'publish4 { udp . 127.0.0.1 . 53 comment "web" : 10.66.0.2 . 53 }',
        'publish6 { tcp . fd00::2 . 8080 comment "web" : fd66::2 . 80 }',
    ]


def test_publishing_on_ipv6_needs_a_pod_with_ipv6() -> None:
    paths, net = network(ipv6=False)
    with pytest.raises(Unsupported, match="no IPv6 address"):
        plan_publish(paths, net, "web", [Port("fd00::2", 80, 80)], "10.66.0.2", None)


def test_publishing_undoes_itself_by_unpublishing() -> None:
    paths, net = network()
    (step,) = plan_publish(paths, net, "web", [Port("", 80, 80)], "10.66.0.2", "fd66::2")
    (back,) = plan_unpublish(paths, net, "web", [Port("", 80, 80)], "10.66.0.2", "fd66::2")
    assert step.undo == (back.op, back.args)
    assert plan_publish(paths, net, "web", [], "10.66.0.2", None) == []


def test_the_marker_tells_rules_apart() -> None:
    _, both = network()
    _, four = network(ipv6=False)
    assert nat.marker("t", "br", both.layer3) != nat.marker("t", "br", four.layer3)
    assert nat.marker("t", "br", both.layer3) == nat.marker("t", "br", both.layer3)


def test_masquerade_spares_the_cluster_range() -> None:
    _, net = network()
    rules = nat.ruleset("inet", net.table, net.bridge, net.layer3)
    for node, cluster, l3 in (
        ("10.66.0.0/24", "10.66.0.0/16", "ip"), ("fd66::/64", "fd66::/48", "ip6"),
    ):  # fmt: skip
        assert f"{l3} saddr {node} {l3} daddr != {cluster} oifname" in rules
