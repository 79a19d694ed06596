"""rtnetlink, the language in which `ip` talks to the kernel: links, addresses, routes.

A netlink message is a datagram to the kernel with three parts, one after the other:

    nlmsghdr    16 bytes: length, type (RTM_NEWLINK …), flags, sequence number, port
    body        a fixed struct the type asks for: ifinfomsg, ifaddrmsg or rtmsg
    attributes  any number of them: length, type, value, padded to four bytes; a value may be a
                list of attributes again ("nested")

The kernel answers with an NLMSG_ERROR datagram whose number is 0 for success ("ack"), and since
4.12 with a sentence that says what it disliked. A request for a list ("dump") is answered by many
messages and NLMSG_DONE. All of it acts in the network namespace the socket was opened in, for
the socket's whole life: so a namespace is entered only to open one.

Written here are the few messages a pod needs, since a complete netlink library takes longer to
import than the pod takes to make. netlink(7), rtnetlink(7); nftables has `nft.py`.
"""

from __future__ import annotations

import os
import struct
from _socket import AF_INET, AF_INET6, SOCK_CLOEXEC, SOCK_RAW, socket

from pyrun.errors import KernelError
from pyrun.kernel import const
from pyrun.kernel.process import setns

AF_NETLINK = 16
AF_UNSPEC = 0
SOL_NETLINK = 270

# linux/netlink.h
NETLINK_ROUTE = 0
NETLINK_NETFILTER = 12
NETLINK_CAP_ACK = 10
NETLINK_EXT_ACK = 11
NETLINK_GET_STRICT_CHK = 12
NLM_F_REQUEST = 0x1
NLM_F_MULTI = 0x2
NLM_F_ACK = 0x4
NLM_F_CAPPED = 0x100
NLM_F_ACK_TLVS = 0x200
NLM_F_EXCL = 0x200
NLM_F_CREATE = 0x400
NLM_F_DUMP = 0x300
NLMSG_ERROR = 2
NLMSG_DONE = 3
NLMSGERR_ATTR_MSG = 1
NLA_F_NESTED = 0x8000
NLA_TYPE_MASK = 0x3FFF

# linux/rtnetlink.h
RTM_NEWLINK, RTM_DELLINK, RTM_GETLINK = 16, 17, 18
RTM_NEWADDR, RTM_DELADDR, RTM_GETADDR = 20, 21, 22
RTM_NEWROUTE, RTM_DELROUTE, RTM_GETROUTE = 24, 25, 26
RTA_DST, RTA_OIF, RTA_GATEWAY = 1, 4, 5
RT_TABLE_MAIN = 254
RTPROT_BOOT = 3
RT_SCOPE_UNIVERSE = 0
RTN_UNICAST = 1

# linux/if_link.h, linux/veth.h, linux/if.h
IFLA_ADDRESS, IFLA_IFNAME, IFLA_MTU = 1, 3, 4
IFLA_MASTER, IFLA_LINKINFO, IFLA_AF_SPEC, IFLA_NET_NS_FD = 10, 18, 26, 28
IFLA_INFO_KIND, IFLA_INFO_DATA, IFLA_INFO_SLAVE_KIND, IFLA_INFO_SLAVE_DATA = 1, 2, 4, 5
IFLA_BRPORT_MODE = 4
IFLA_INET6_ADDR_GEN_MODE = 8
IN6_ADDR_GEN_MODE_NONE = 1
VETH_INFO_PEER = 1
IFF_UP = 1

# linux/if_addr.h
IFA_ADDRESS, IFA_LOCAL, IFA_FLAGS = 1, 2, 8
IFA_F_NODAD = 0x02

_header = struct.Struct("=IHHII")
_attribute = struct.Struct("=HH")
_ifinfomsg = struct.Struct("=BxHiII")  # family, device type, index, flags, which flags change
_ifaddrmsg = struct.Struct("=BBBBI")  # family, prefix length, flags, scope, index
_rtmsg = struct.Struct("=BBBBBBBBI")  # family, dst len, src len, tos, table, proto, scope, type

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator


def attribute(kind: int, value: bytes) -> bytes:
    """struct nlattr and its value, padded to four bytes. The length counts no padding."""
    length = 4 + len(value)
    return _attribute.pack(length, kind) + value + bytes(-length % 4)


def number(kind: int, value: int) -> bytes:
    return attribute(kind, value.to_bytes(4, "little" if _LITTLE else "big"))


def text(kind: int, value: str) -> bytes:
    return attribute(kind, value.encode() + b"\0")


def nested(kind: int, *attributes: bytes) -> bytes:
    return attribute(kind | NLA_F_NESTED, b"".join(attributes))


_LITTLE = struct.pack("=H", 1) == b"\1\0"


def parse(data: bytes) -> dict[int, bytes]:
    """The attributes in `data`, by type. Where a type comes twice the last one counts."""
    return dict(_walk(data))


def _walk(data: bytes) -> Iterator[tuple[int, bytes]]:
    offset = 0
    while offset + 4 <= len(data):
        length, kind = _attribute.unpack_from(data, offset)
        if length < 4:
            return
        yield kind & NLA_TYPE_MASK, data[offset + 4 : offset + length]
        offset += length + 3 & ~3


class Netlink:
    """A netlink socket in the network namespace that is current when it is opened."""

    __slots__ = ("_sequence", "_socket")

    def __init__(self, protocol: int = NETLINK_ROUTE) -> None:
        self._socket = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, protocol)
        self._sequence = 0
        self._socket.setsockopt(SOL_NETLINK, NETLINK_EXT_ACK, 1)  # errors come with a sentence
        self._socket.setsockopt(SOL_NETLINK, NETLINK_CAP_ACK, 1)  # and without our own message
        self._socket.setsockopt(SOL_NETLINK, NETLINK_GET_STRICT_CHK, 1)  # dumps heed their filter

    def __enter__(self) -> Netlink:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def request(self, kind: int, flags: int, payload: bytes, call: str) -> list[bytes]:
        """Send one message, wait for the ack; return the bodies of what came before it.

        `call` is what an error shows. Raises KernelError.
        """
        self._sequence += 1
        flags |= NLM_F_REQUEST
        if flags & NLM_F_DUMP != NLM_F_DUMP:  # a dump ends in NLMSG_DONE, everything else in an ack
            flags |= NLM_F_ACK
        header = _header.pack(_header.size + len(payload), kind, flags, self._sequence, 0)
        self._socket.send(header + payload)
        bodies: list[bytes] = []
        while True:
            datagram = self._socket.recv(1 << 15)
            offset = 0
            while offset < len(datagram):
                length, what, answer_flags, sequence, _ = _header.unpack_from(datagram, offset)
                body = datagram[offset + _header.size : offset + length]
                offset += length + 3 & ~3
                if sequence != self._sequence:
                    continue
                if what == NLMSG_ERROR:
                    _check(body, answer_flags, call)
                    return bodies
                if what == NLMSG_DONE:
                    return bodies
                bodies.append(body)


def _check(body: bytes, flags: int, call: str) -> None:
    """struct nlmsgerr: a negative errno, the header of our request, then the kernel's words."""
    error = struct.unpack_from("=i", body)[0]
    if error == 0:
        return
    words = b""
    if flags & NLM_F_ACK_TLVS:
        words = parse(body[4 + _header.size :]).get(NLMSGERR_ATTR_MSG, b"").rstrip(b"\0")
    raise KernelError(-error, f"{call}, kernel says {words.decode()!r}" if words else call)


class Inside:
    """A `with` block in the network namespace pinned at `path`; the calling thread goes there.

    Nothing else of the process moves, and /proc/sys/net shows the sysctls of that namespace.
    """

    __slots__ = ("_home", "_path")

    def __init__(self, path: str) -> None:
        self._path = path
        self._home = -1

    def __enter__(self) -> None:
        there = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            self._home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
            try:
                setns(there, const.CLONE_NEWNET)
            except BaseException:
                os.close(self._home)
                raise
        finally:
            os.close(there)

    def __exit__(self, *_: object) -> None:
        setns(self._home, const.CLONE_NEWNET)
        os.close(self._home)


def open_in(netns: str) -> Netlink:
    """A socket that speaks to the namespace pinned at `netns`, used from where we are."""
    with Inside(netns):
        return Netlink()


class Link:
    """What RTM_GETLINK tells of a network interface. `kind` is `bridge`, `veth` …, or empty."""

    __slots__ = ("index", "kind", "mac", "master", "mtu", "name", "up")

    def __init__(self, body: bytes) -> None:
        _, _, self.index, flags, _ = _ifinfomsg.unpack_from(body)
        found = parse(body[_ifinfomsg.size :])
        info = parse(found.get(IFLA_LINKINFO, b""))
        self.name = _string(found.get(IFLA_IFNAME, b""))
        self.kind = _string(info.get(IFLA_INFO_KIND, b""))
        self.mtu = _integer(found.get(IFLA_MTU, b""))
        self.master = _integer(found.get(IFLA_MASTER, b""))
        self.mac = found.get(IFLA_ADDRESS, b"").hex(":")
        self.up = bool(flags & IFF_UP)


def _string(value: bytes) -> str:
    return value.rstrip(b"\0").decode()


def _integer(value: bytes) -> int:
    return int.from_bytes(value, "little" if _LITTLE else "big")


def find_link(netlink: Netlink, name: str) -> Link | None:
    """RTM_GETLINK for one name: `ip link show NAME`. None where there is none."""
    body = _ifinfomsg.pack(AF_UNSPEC, 0, 0, 0, 0) + text(IFLA_IFNAME, name)
    try:
        answers = netlink.request(RTM_GETLINK, 0, body, f"RTM_GETLINK {name}")
    except KernelError as error:
        if error.errno == 19:  # ENODEV
            return None
        raise
    return Link(answers[0])


def find_index(netlink: Netlink, index: int) -> Link | None:
    """RTM_GETLINK for one index."""
    body = _ifinfomsg.pack(AF_UNSPEC, 0, index, 0, 0)
    try:
        return Link(netlink.request(RTM_GETLINK, 0, body, f"RTM_GETLINK index {index}")[0])
    except KernelError as error:
        if error.errno == 19:  # ENODEV
            return None
        raise


def links(netlink: Netlink) -> list[Link]:
    """RTM_GETLINK with NLM_F_DUMP: `ip link show`."""
    body = _ifinfomsg.pack(AF_UNSPEC, 0, 0, 0, 0)
    return list(map(Link, netlink.request(RTM_GETLINK, NLM_F_DUMP, body, "RTM_GETLINK dump")))


def link(netlink: Netlink, name: str) -> Link:
    """As find_link; raises KernelError (ENODEV) where there is none."""
    found = find_link(netlink, name)
    if found is None:
        raise KernelError(19, f"RTM_GETLINK {name}")
    return found


def add_veth(
    netlink: Netlink, name: str, master: int, mtu: int, peer: str, peer_mac: bytes, netns_fd: int
) -> None:
    """`ip link add NAME mtu M master BRIDGE type veth peer name PEER netns FD` in one message.

    A veth pair is a patch cable: what enters one end leaves the other. The message nests one link
    in another:

        ifinfomsg           this end
        IFLA_IFNAME, IFLA_MTU
        IFLA_MASTER         index of the bridge it becomes a port of
        IFLA_LINKINFO
            IFLA_INFO_KIND  "veth"
            IFLA_INFO_DATA
                VETH_INFO_PEER
                    ifinfomsg   the other end
                    IFLA_IFNAME, IFLA_MTU, IFLA_ADDRESS
                    IFLA_NET_NS_FD  the namespace where the other end is born

    Because the peer is born inside the pod it never appears on the host under the name eth0.
    Raises KernelError (EEXIST: the name is taken).
    """
    peer_end = _ifinfomsg.pack(AF_UNSPEC, 0, 0, 0, 0) + b"".join(
        (
            text(IFLA_IFNAME, peer),
            number(IFLA_MTU, mtu),
            attribute(IFLA_ADDRESS, peer_mac),
            number(IFLA_NET_NS_FD, netns_fd),
        )
    )
    body = _ifinfomsg.pack(AF_UNSPEC, 0, 0, 0, 0) + b"".join(
        (
            text(IFLA_IFNAME, name),
            number(IFLA_MTU, mtu),
            number(IFLA_MASTER, master),
            nested(
                IFLA_LINKINFO,
                text(IFLA_INFO_KIND, "veth"),
                nested(IFLA_INFO_DATA, attribute(VETH_INFO_PEER | NLA_F_NESTED, peer_end)),
            ),
        )
    )
    netlink.request(
        RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, body, f"RTM_NEWLINK veth {name} peer {peer}"
    )


def set_up(netlink: Netlink, name: str) -> None:
    """`ip link set NAME up`: RTM_NEWLINK for a link that exists, with IFF_UP to be changed."""
    body = _ifinfomsg.pack(AF_UNSPEC, 0, 0, IFF_UP, IFF_UP) + text(IFLA_IFNAME, name)
    netlink.request(RTM_NEWLINK, 0, body, f"RTM_NEWLINK {name} up")


def set_port_up(netlink: Netlink, name: str, *, ipv6: bool) -> None:
    """`ip link set NAME up addrgenmode none type bridge_slave hairpin on`, for a bridge's port.

        ifinfomsg       IFF_UP
        IFLA_IFNAME
        IFLA_LINKINFO
            IFLA_INFO_SLAVE_KIND    "bridge": what follows is about its being a port of one
            IFLA_INFO_SLAVE_DATA
                IFLA_BRPORT_MODE 1  hairpin: frames may leave by the port they came in by
        IFLA_AF_SPEC
            AF_INET6
                IFLA_INET6_ADDR_GEN_MODE  none: a port needs no fe80:: address of its own

    A pod that reaches itself through a published port needs the hairpin: where br_netfilter shows
    bridged frames to nftables, such a frame is turned round inside the bridge. Neither can be said
    in the message that creates the link.
    """
    hairpin = nested(IFLA_INFO_SLAVE_DATA, attribute(IFLA_BRPORT_MODE, b"\1"))
    body = _ifinfomsg.pack(AF_UNSPEC, 0, 0, IFF_UP, IFF_UP) + b"".join(
        (
            text(IFLA_IFNAME, name),
            nested(IFLA_LINKINFO, text(IFLA_INFO_SLAVE_KIND, "bridge"), hairpin),
        )
    )
    if ipv6:
        mode = attribute(IFLA_INET6_ADDR_GEN_MODE, bytes([IN6_ADDR_GEN_MODE_NONE]))
        body += nested(IFLA_AF_SPEC, nested(AF_INET6, mode))
    netlink.request(RTM_NEWLINK, 0, body, f"RTM_NEWLINK {name} up, hairpin")


def delete_link(netlink: Netlink, name: str) -> bool:
    """`ip link delete NAME`: RTM_DELLINK. A veth takes its other end along. False: none there."""
    body = _ifinfomsg.pack(AF_UNSPEC, 0, 0, 0, 0) + text(IFLA_IFNAME, name)
    try:
        netlink.request(RTM_DELLINK, 0, body, f"RTM_DELLINK {name}")
    except KernelError as error:
        if error.errno == 19:  # ENODEV
            return False
        raise
    return True


def add_address(netlink: Netlink, name: str, address: bytes, prefix: int) -> None:
    """`ip address add A/PREFIX dev NAME nodad`: RTM_NEWADDR. There already is fine.

    ifaddrmsg names family, prefix length and link; IFA_LOCAL and IFA_ADDRESS are the same address
    on anything but a point-to-point link. IFA_F_NODAD leaves duplicate address detection out,
    during which (about a second) an IPv6 address may not be used: we lease addresses ourselves.
    """
    family = AF_INET if len(address) == 4 else AF_INET6
    body = _ifaddrmsg.pack(family, prefix, 0, 0, link(netlink, name).index) + b"".join(
        (
            attribute(IFA_LOCAL, address),
            attribute(IFA_ADDRESS, address),
            number(IFA_FLAGS, IFA_F_NODAD) if family == AF_INET6 else b"",
        )
    )
    try:
        netlink.request(
            RTM_NEWADDR, NLM_F_CREATE | NLM_F_EXCL, body, f"RTM_NEWADDR /{prefix} dev {name}"
        )
    except KernelError as error:
        if error.errno != 17:  # EEXIST
            raise


def addresses(netlink: Netlink, index: int) -> list[tuple[bytes, int]]:
    """RTM_GETADDR with NLM_F_DUMP: (address, prefix length) of the link, or of all (index 0)."""
    body = _ifaddrmsg.pack(AF_UNSPEC, 0, 0, 0, index)
    found = []
    for answer in netlink.request(RTM_GETADDR, NLM_F_DUMP, body, "RTM_GETADDR dump"):
        _, prefix, _, _, owner = _ifaddrmsg.unpack_from(answer)
        if index in (0, owner):
            values = parse(answer[_ifaddrmsg.size :])
            found.append((values.get(IFA_LOCAL) or values[IFA_ADDRESS], prefix))
    return found


def add_default_route(netlink: Netlink, name: str, gateway: bytes) -> None:
    """`ip route add default via GATEWAY dev NAME`: RTM_NEWROUTE.

    A default route is a route to a destination of zero bits. The gateway must be on the link,
    so the address comes first. There already is fine.
    """
    family = AF_INET if len(gateway) == 4 else AF_INET6
    body = _rtmsg.pack(
        family, 0, 0, 0, RT_TABLE_MAIN, RTPROT_BOOT, RT_SCOPE_UNIVERSE, RTN_UNICAST, 0
    ) + b"".join((attribute(RTA_GATEWAY, gateway), number(RTA_OIF, link(netlink, name).index)))
    try:
        netlink.request(
            RTM_NEWROUTE, NLM_F_CREATE | NLM_F_EXCL, body, f"RTM_NEWROUTE default dev {name}"
        )
    except KernelError as error:
        if error.errno != 17:  # EEXIST
            raise


class Route:
    """What RTM_GETROUTE tells of a route. `dst` is empty for the default route."""

    __slots__ = ("dst", "gateway", "oif", "prefix", "protocol", "table")

    def __init__(self, body: bytes) -> None:
        _, self.prefix, _, _, self.table, self.protocol, _, _, _ = _rtmsg.unpack_from(body)
        found = parse(body[_rtmsg.size :])
        self.dst = found.get(RTA_DST, b"")
        self.gateway = found.get(RTA_GATEWAY, b"")
        self.oif = _integer(found.get(RTA_OIF, b""))


def routes(netlink: Netlink, family: int) -> list[Route]:
    """RTM_GETROUTE with NLM_F_DUMP: `ip route show table all`."""
    body = _rtmsg.pack(family, 0, 0, 0, 0, 0, 0, 0, 0)
    return list(map(Route, netlink.request(RTM_GETROUTE, NLM_F_DUMP, body, "RTM_GETROUTE dump")))
