"""Ranges and addresses: arithmetic checked against the standard library's ipaddress."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyrun.errors import BadInput
from pyrun.network.address import mac_for, parse_range

networks = st.one_of(
    st.tuples(st.integers(0, 2**32 - 1), st.integers(0, 32)).map(
        lambda pair: ipaddress.ip_network(pair, strict=False)
    ),
    st.tuples(st.integers(0, 2**128 - 1), st.integers(0, 128)).map(
        lambda pair: ipaddress.ip_network(pair, strict=False)
    ),
)


@given(networks, networks)
def test_ranges_agree_with_the_standard_library(
    one: ipaddress.IPv4Network | ipaddress.IPv6Network,
    two: ipaddress.IPv4Network | ipaddress.IPv6Network,
) -> None:
    ours, other = parse_range(str(one)), parse_range(str(two))
    assert ours.size == one.num_addresses
    assert ours.prefix == one.prefixlen
    last = ours.address(ours.size - 1)
    assert ipaddress.ip_address(last) == one.broadcast_address
    assert ours.index(last) == ours.size - 1
    assert ours.overlaps(other) == (one.version == two.version and one.overlaps(two))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("10.66.0.0", "not an address range"),
        ("10.66.0.0/33", "not an address range"),
        ("10.66.0.0/-1", "not an address range"),
        ("10.66.0/24", "not an IP address"),
        ("fd66::/x", "not an address range"),
        ("10.66.0.1/24", "not the start of a range"),
        ("", "not an IP address"),
    ],
)
def test_what_is_no_range_is_refused(text: str, words: str) -> None:
    with pytest.raises(BadInput, match=words):
        parse_range(text)


def test_the_hint_gives_the_range_that_was_meant() -> None:
    with pytest.raises(BadInput) as caught:
        parse_range("10.66.3.77/20")
    assert "10.66.0.0/20" in caught.value.hint


def test_mac_is_locally_administered_and_follows_the_ip() -> None:
    assert mac_for("10.66.0.5").hex(":") == "02:42:0a:42:00:05"
