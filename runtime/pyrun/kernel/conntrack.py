"""Connection tracking: the kernel's memory of every flow, and how to make it forget some.

NAT rules are asked once, by the first packet of a flow; the rest follows what was decided then.
TCP flows end, but to UDP a flow is whatever keeps coming from one address and port to another: a
client that sent to a port before a pod published it would never reach the pod, as long as it goes
on sending. So such flows are forgotten when a UDP port is published.

ctnetlink speaks netlink's NETLINK_NETFILTER with the messages below. conntrack(8).
"""

from __future__ import annotations

import struct

from pyrun.errors import KernelError
from pyrun.kernel import netlink

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Container

# linux/netfilter/nfnetlink_conntrack.h
NFNL_SUBSYS_CTNETLINK = 1
IPCTNL_MSG_CT_GET = 1
IPCTNL_MSG_CT_DELETE = 2
CTA_TUPLE_ORIG = 1
CTA_TUPLE_IP = 1
CTA_TUPLE_PROTO = 2
CTA_IP_V4_DST = 2
CTA_IP_V6_DST = 4
CTA_PROTO_NUM = 1
CTA_PROTO_DST_PORT = 3
IPPROTO_UDP = 17

_nfgenmsg = struct.Struct("=BBH")


def forget_udp(targets: Container[tuple[bytes, int]]) -> int:
    """Forget the UDP flows that were first sent to one of `targets` (address, port); how many.

    `conntrack -D -p udp --orig-dst ADDRESS --orig-port-dst PORT`. Raises KernelError.
    """
    forgotten = 0
    with netlink.Netlink(netlink.NETLINK_NETFILTER) as connection:
        for answer in _dump(connection):
            found = netlink.parse(answer[_nfgenmsg.size :])
            tuple_ = netlink.parse(found.get(CTA_TUPLE_ORIG, b""))
            ip = netlink.parse(tuple_.get(CTA_TUPLE_IP, b""))
            proto = netlink.parse(tuple_.get(CTA_TUPLE_PROTO, b""))
            address = ip.get(CTA_IP_V4_DST) or ip.get(CTA_IP_V6_DST, b"")
            port = int.from_bytes(proto.get(CTA_PROTO_DST_PORT, b""), "big")
            if proto.get(CTA_PROTO_NUM) != bytes([IPPROTO_UDP]) or (address, port) not in targets:
                continue
            # The flow to delete is named by its own tuple, sent back as it came.
            same = netlink.nested(CTA_TUPLE_ORIG, found[CTA_TUPLE_ORIG])
            if _delete(connection, answer[: _nfgenmsg.size] + same):
                forgotten += 1
    return forgotten


def _dump(connection: netlink.Netlink) -> list[bytes]:
    kind = NFNL_SUBSYS_CTNETLINK << 8 | IPCTNL_MSG_CT_GET
    body = _nfgenmsg.pack(netlink.AF_UNSPEC, 0, 0)
    try:
        return connection.request(kind, netlink.NLM_F_DUMP, body, "IPCTNL_MSG_CT_GET dump")
    except KernelError as error:
        if error.errno == 22:  # EINVAL: the kernel has no ctnetlink, so there is no way to forget
            return []
        raise


def _delete(connection: netlink.Netlink, body: bytes) -> bool:
    kind = NFNL_SUBSYS_CTNETLINK << 8 | IPCTNL_MSG_CT_DELETE
    try:
        connection.request(kind, 0, body, "IPCTNL_MSG_CT_DELETE")
    except KernelError as error:
        if error.errno == 2:  # ENOENT: it ended meanwhile
            return False
        raise
    return True
