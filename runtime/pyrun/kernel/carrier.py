"""Carrier: whether a network interface has found its other end, and when the kernel acts on it.

Some facts about carrier. When the second end of a veth pair is set up, both get carrier in the same
instant. What follows from it (the queue starts to send, the bridge port starts to forward) is left
to a background worker, linkwatch, which may come a millisecond later or, being rate-limited, a
whole second. A packet sent in between is dropped, and TCP tries again after a second.
But who asks an interface for its link state gets an up-to-date answer: `ethtool_op_get_link` makes
linkwatch do that interface's work first. So asking is how to make it happen now.

IPv6 has one more thing for later: another worker joins the multicast group in which neighbours ask
for an address's MAC. A question that comes before that is lost, and is asked again a second later.
"""

from __future__ import annotations

import fcntl
import time
from _socket import AF_INET, SOCK_CLOEXEC, SOCK_DGRAM, socket

from pyrun.errors import KernelError
from pyrun.kernel.libc import ctypes

SIOCETHTOOL = 0x8946
ETHTOOL_GLINK = 0x0000000A


class ethtool_value(ctypes.Structure):
    """struct ethtool_value of linux/ethtool.h."""

    _fields_ = [("cmd", ctypes.c_uint32), ("data", ctypes.c_uint32)]


class ifreq(ctypes.Structure):
    """struct ifreq of linux/if.h (40 bytes) with a pointer as its data. netdevice(7)."""

    _fields_ = [
        ("ifr_name", ctypes.c_char * 16),
        ("ifr_data", ctypes.c_void_p),
        ("padding", ctypes.c_char * 16),
    ]


def has_carrier(name: str) -> bool:
    """`ethtool NAME`, "Link detected", in the current network namespace. Raises KernelError."""
    value = ethtool_value(ETHTOOL_GLINK, 0)
    request = ifreq(name.encode(), ctypes.addressof(value))
    any_socket = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC)
    try:
        fcntl.ioctl(any_socket.fileno(), SIOCETHTOOL, request)
    except OSError as error:
        raise KernelError(error.errno or 0, f"ioctl(SIOCETHTOOL GLINK {name})") from error
    finally:
        any_socket.close()
    return bool(value.data)


def wait_solicitable(name: str, address: bytes, deadline: float = 0.5) -> bool:
    """Wait until neighbours can find IPv6 `address` on this link; False after `deadline` seconds.

    Its "solicited-node" group is ff02::1:ff and the last three bytes; /proc/net/igmp6 lists the
    groups a link has joined.
    """
    group = (b"\xff\x02" + bytes(9) + b"\1\xff" + address[-3:]).hex()
    end = time.monotonic() + deadline
    while True:
        with open("/proc/thread-self/net/igmp6", encoding="ascii") as file:
            if any(row.split()[1:3] == [name, group] for row in file):
                return True
        if time.monotonic() > end:
            return False
        time.sleep(0.0002)  # there is no event to wait for, and it is a matter of microseconds
