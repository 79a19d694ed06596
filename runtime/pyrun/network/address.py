"""Arithmetic on addresses and ranges: an address is a number, a range is a number and a length.

`10.66.0.0/24` is every address whose first 24 bits are those of 10.66.0.0. The same few lines
serve IPv4 (32 bits) and IPv6 (128 bits). Only arithmetic here: `ipam.py` hands addresses out.
"""

from __future__ import annotations

from _socket import AF_INET, AF_INET6, inet_ntop, inet_pton

from pyrun.errors import BadInput


class Range:
    """An address range in CIDR notation. Immutable; `str()` gives the text back."""

    __slots__ = ("base", "bits", "family", "prefix")

    def __init__(self, family: int, base: int, prefix: int) -> None:
        self.family = family
        self.bits = 32 if family == AF_INET else 128
        self.base = base
        self.prefix = prefix

    def __str__(self) -> str:
        return f"{self.address(0)}/{self.prefix}"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Range) and str(self) == str(other)

    def __hash__(self) -> int:
        return hash(str(self))

    @property
    def size(self) -> int:
        return int(1 << self.bits - self.prefix)

    def address(self, index: int) -> str:
        """The address at `index`: 0 is the range's own, 1 the first that a machine can have."""
        return to_text((self.base + index).to_bytes(self.bits // 8, "big"))

    def index(self, address: str) -> int:
        """The place of `address` in the range; negative or >= size where it is outside."""
        return int.from_bytes(to_bytes(address), "big") - self.base

    def contains(self, other: Range) -> bool:
        return (
            self.family == other.family
            and self.prefix <= other.prefix
            and self.base >> self.bits - self.prefix == other.base >> self.bits - self.prefix
        )

    def overlaps(self, other: Range) -> bool:
        """Two ranges are apart, or one lies inside the other; there is no third case."""
        return self.contains(other) or other.contains(self)


def to_bytes(address: str) -> bytes:
    """Four or sixteen bytes in network order. Raises BadInput."""
    try:
        return inet_pton(AF_INET6 if ":" in address else AF_INET, address)
    except OSError:
        raise BadInput(f"{address!r} is not an IP address") from None


def to_text(address: bytes) -> str:
    return inet_ntop(AF_INET if len(address) == 4 else AF_INET6, address)


def parse_range(text: str) -> Range:
    """`10.66.0.0/24` → Range. Raises BadInput, also where bits behind the prefix are set."""
    address, slash, length = text.partition("/")
    data = to_bytes(address)
    bits = len(data) * 8
    if not slash or not length.isdecimal() or int(length) > bits:
        raise BadInput(
            f"{text!r} is not an address range", hint=f"write it as ADDRESS/LENGTH, 0 to {bits}"
        )
    found = Range(AF_INET if bits == 32 else AF_INET6, int.from_bytes(data, "big"), int(length))
    base = found.base >> bits - found.prefix << bits - found.prefix
    if base != found.base:
        right = Range(found.family, base, found.prefix)
        raise BadInput(f"{text!r} is not the start of a range", hint=f"you may mean {right}")
    return found


def mac_for(ip4: str) -> bytes:
    """A locally administered MAC address made from an IPv4 address.

    Bit 0x02 of the first byte says "assigned by us". The next pod that gets this IP gets this MAC
    too, so what its neighbours remember of the old one stays true.
    """
    return b"\x02\x42" + to_bytes(ip4)
