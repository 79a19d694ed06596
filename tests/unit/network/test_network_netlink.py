"""The netlink writer: the layout of attributes, and what the hot path must not import."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

import pyrun
from pyrun.kernel import netlink

attributes = st.dictionaries(st.integers(1, netlink.NLA_TYPE_MASK), st.binary(max_size=40))


@given(attributes)
def test_attributes_are_read_as_they_were_written(values: dict[int, bytes]) -> None:
    data = b"".join(netlink.attribute(kind, value) for kind, value in values.items())
    assert len(data) % 4 == 0
    assert netlink.parse(data) == values


@given(attributes)
def test_a_nested_list_is_read_under_its_plain_type(values: dict[int, bytes]) -> None:
    inner = [netlink.attribute(kind, value) for kind, value in values.items()]
    outer = netlink.parse(netlink.nested(18, *inner))
    assert netlink.parse(outer[18]) == values


@given(st.binary(max_size=64))
def test_broken_data_ends_the_reading(data: bytes) -> None:
    netlink.parse(data)


def test_known_bytes() -> None:
    """`eth0` as IFLA_IFNAME, as linux/netlink.h lays it out: length 9, type 3, three of padding."""
    assert (
        netlink.text(netlink.IFLA_IFNAME, "eth0")[2:]
        == (3).to_bytes(2, sys.byteorder) + b"eth0\0\0\0\0"
    )
    assert netlink.text(netlink.IFLA_IFNAME, "eth0")[:2] == (9).to_bytes(2, sys.byteorder)


def test_the_hot_path_loads_nothing_heavy() -> None:
    heavy = ("pyroute2", "typing", "json", "re", "enum", "socket", "subprocess", "logging",
             "dataclasses", "pathlib", "ipaddress", "contextlib")  # fmt: skip
    source = Path(pyrun.__file__).parent.parent
    code = (
        f"import sys; sys.path.insert(0, {str(source)!r})\n"
        "from pyrun.network import ipam, link, names, nat, node, ports, publish, sysctl\n"
        f"print(*[name for name in {heavy!r} if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == []
