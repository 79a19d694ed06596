"""Published ports: a port of the host that leads to a port of a pod.

Three parts: reading what the user writes (`parse_publish`), holding the host's port so that
nobody else takes it (`reserve`), and telling nftables where it leads (`plan_publish`), in the maps
that `nat.py` has made; `publish.py` does it.

No packet ever reaches the held socket, since the address is changed before. It is bound all the
same: binding is how the kernel says "taken", to us now and to others as long as the pod lives.

Not possible this way: [::1]. A packet from ::1 cannot leave the host, and IPv6 has no
route_localnet; it would need a proxy process. Connections to it are refused, not left hanging.
"""

from __future__ import annotations

import os
from _socket import (
    AF_INET,
    AF_INET6,
    IPPROTO_IPV6,
    IPV6_V6ONLY,
    SHUT_RDWR,
    SO_RCVBUF,
    SO_REUSEADDR,
    SOCK_CLOEXEC,
    SOCK_DGRAM,
    SOCK_STREAM,
    SOL_SOCKET,
    socket,
)

from pyrun.errors import BadInput, Conflict, KernelError, Unsupported
from pyrun.explain.steps import Step
from pyrun.network import publish, sysctl
from pyrun.network.address import to_bytes, to_text

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from pyrun.network.node import NodeNetwork
    from pyrun.store.paths import Paths


class Port:
    """One published port. `host_ip` empty: every address of the host; `host_port` 0: any free."""

    __slots__ = ("container_port", "host_ip", "host_port", "protocol")

    def __init__(
        self, host_ip: str, host_port: int, container_port: int, protocol: str = "tcp"
    ) -> None:
        self.host_ip = host_ip
        self.host_port = host_port
        self.container_port = container_port
        self.protocol = protocol

    def as_list(self) -> list[str | int]:
        """host_ip, host_port, container_port, protocol: plain values for plans and records."""
        return [self.host_ip, self.host_port, self.container_port, self.protocol]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Port) and self.as_list() == other.as_list()

    def __hash__(self) -> int:
        return hash(tuple(self.as_list()))

    def __str__(self) -> str:
        """As `docker port` writes it: `0.0.0.0:8080->80/tcp`."""
        ip = f"[{self.host_ip}]" if ":" in self.host_ip else self.host_ip or "0.0.0.0"
        return f"{ip}:{self.host_port}->{self.container_port}/{self.protocol}"

    def __repr__(self) -> str:
        return f"Port{tuple(self.as_list())!r}"


def parse_publish(text: str) -> list[Port]:
    """`[[host_ip:][host_port]:]container_port[/protocol]`, where a port may be a range `a-b`.

    Raises BadInput, and Unsupported for sctp and [::1].
    """
    rest, slash, protocol = text.partition("/")
    protocol = protocol.lower() if slash else "tcp"
    if protocol == "sctp":
        raise Unsupported(f"cannot publish {text!r}: sctp is not supported", hint="tcp or udp")
    if protocol not in ("tcp", "udp"):
        raise BadInput(f"cannot publish {text!r}: {protocol!r} is not a protocol", hint="tcp, udp")
    rest, _, container = rest.rpartition(":")
    host_ip, host = "", ""
    if rest.startswith("["):
        host_ip, bracket, host = rest[1:].partition("]")
        if not bracket or ":" not in host_ip or host[:1] not in ("", ":"):
            raise BadInput(f"cannot publish {text!r}: a bracket is in the wrong place", hint=FORMS)
        host = host[1:]
    elif rest:
        host_ip, _, host = rest.rpartition(":")
        if ":" in host_ip:
            raise BadInput(
                f"cannot publish {text!r}: an IPv6 address goes into brackets", hint=FORMS
            )
    if host_ip:
        host_ip = to_text(to_bytes(host_ip))
    if host_ip == "::1":
        raise Unsupported(
            f"cannot publish {text!r}: the kernel lets no packet from ::1 out to a pod",
            hint="publish on 127.0.0.1 or on another IPv6 address of the host",
        )
    containers = _range(container, text)
    hosts = _range(host, text) if host else [0] * len(containers)
    if len(hosts) != len(containers):
        raise BadInput(
            f"cannot publish {text!r}: {len(hosts)} host ports for {len(containers)} pod ports",
            hint="both ranges must have the same length",
        )
    return [Port(host_ip, *pair, protocol) for pair in zip(hosts, containers, strict=True)]


FORMS = "80, 8080:80, 127.0.0.1:8080:80/udp, [fd00::2]:8080:80, 8000-8005:80-85, 127.0.0.1::80"


def _range(ports: str, whole: str) -> list[int]:
    first, dash, last = ports.partition("-")
    if not dash:
        last = first
    if not (first.isascii() and first.isdigit() and last.isascii() and last.isdigit()):
        raise BadInput(f"cannot publish {whole!r}: {ports!r} is not a port", hint=FORMS)
    if not 1 <= int(first) <= int(last) <= 65535:
        raise BadInput(
            f"cannot publish {whole!r}: {ports!r} is not a port or range", hint="1 to 65535"
        )
    return list(range(int(first), int(last) + 1))


# holding the host's ports


def reserve(ports: Sequence[Port], paths: Paths | None = None) -> tuple[list[Port], list[int]]:
    """Bind a socket for each port; returns the ports, with free ones chosen, and descriptors.

    The ports are taken until the descriptors are closed: hand them to the process that lives as
    long as the pod. Raises Conflict, which names the holder (for ports of other pods it needs
    `paths`), or BadInput where the host has no such address; nothing is held then.
    """
    chosen: list[Port] = []
    sockets: list[socket] = []
    try:
        for port in ports:
            sockets.append(_bind(port, paths))
            number = port.host_port or sockets[-1].getsockname()[1]
            chosen.append(Port(port.host_ip, number, port.container_port, port.protocol))
    except BaseException:
        for held in sockets:
            held.close()
        raise
    return chosen, [held.detach() for held in sockets]


def _bind(port: Port, paths: Paths | None) -> socket:
    every = port.host_ip == ""
    ipv6 = ":" in port.host_ip or (every and sysctl.ipv6_enabled())
    kind = SOCK_STREAM if port.protocol == "tcp" else SOCK_DGRAM
    found = socket(AF_INET6 if ipv6 else AF_INET, kind | SOCK_CLOEXEC)
    try:
        if ipv6:  # on :: without V6ONLY one socket takes the port in both families
            found.setsockopt(IPPROTO_IPV6, IPV6_V6ONLY, int(not every))
        if port.protocol == "udp":
            found.setsockopt(SOL_SOCKET, SO_RCVBUF, 0)
        where = port.host_ip or ("::" if ipv6 else "0.0.0.0"), port.host_port
        if port.protocol == "udp" or port.host_port == 0:
            found.bind(where)
            return found
        # SO_REUSEADDR lets us past connections in TIME_WAIT, but also past another socket that is
        # bound with it and does not listen, as ours are. listen(2) is the strict judge: it fails
        # unless nobody else has the port. shutdown(2) then ends the listening and keeps the port,
        # so that a connection that comes round the rules (to ::1) is refused and does not hang.
        # Switched off again, the option makes the next one's listen fail on us.
        # Not for a port the kernel chose: it has no connections, and shutdown would give it back.
        found.setsockopt(SOL_SOCKET, SO_REUSEADDR, 1)
        found.bind(where)
        found.listen(1)
        found.shutdown(SHUT_RDWR)
        found.setsockopt(SOL_SOCKET, SO_REUSEADDR, 0)
        return found
    except OSError as error:
        found.close()
        raise _refused(port, error, paths) from error


def _refused(port: Port, error: OSError, paths: Paths | None) -> Exception:
    where = f"{port.protocol} port {port.host_port} on {port.host_ip or 'every address'}"
    if error.errno == 98:  # EADDRINUSE
        holder = (_holder_in_table(port, paths) if paths else "") or _holder_in_proc(port)
        return Conflict(
            f"cannot publish {where}: it is taken" + (f" by {holder}" if holder else ""),
            hint="choose another host port, or none (`-p 80`) to get a free one",
        )
    if error.errno == 99:  # EADDRNOTAVAIL
        return BadInput(
            f"cannot publish {where}: the host has no such address", hint="`ip address` lists them"
        )
    return KernelError(error.errno or 0, f"bind({where})")


def _holder_in_proc(port: Port) -> str:
    """`nginx (pid 12)`, found by the socket's inode in /proc/net and in /proc/PID/fd. proc(5)."""
    inodes = set()
    for version in ("", "6"):
        try:
            with open(f"/proc/thread-self/net/{port.protocol}{version}", encoding="ascii") as file:
                rows = [line.split() for line in file][1:]
        except FileNotFoundError:
            continue
        for row in rows:
            listening = port.protocol == "udp" or row[3] == "0A"
            if listening and int(row[1].rpartition(":")[2], 16) == port.host_port:
                inodes.add(f"socket:[{row[9]}]")
    for pid in filter(str.isdigit, os.listdir("/proc") if inodes else ()):
        try:
            for fd in os.listdir(f"/proc/{pid}/fd"):
                if os.readlink(f"/proc/{pid}/fd/{fd}") in inodes:
                    with open(f"/proc/{pid}/comm", encoding="utf-8") as file:
                        return f"{file.read().strip()} (pid {pid})"
        except OSError:
            continue  # the process or the descriptor is gone
    return ""


def _holder_in_table(port: Port, paths: Paths) -> str:
    """`pod web`, from the comments in our own maps. proc(5) would name its supervisor for udp, and
    for tcp nothing, since it lists no socket that is bound and does not listen.
    """
    for _, key, name in publish.elements(paths.nft_table):
        if key[0] == port.protocol and int(key[-1]) == port.host_port:
            return f"pod {name}"
    return ""


# telling nftables


def plan_publish(
    paths: Paths, net: NodeNetwork, name: str, ports: Sequence[Port], ip4: str, ip6: str | None
) -> list[Step]:
    """Lead the reserved host ports to the pod. Raises Unsupported where it has no IPv6 address."""
    if not ports:
        return []
    for port in ports:
        if ":" in port.host_ip and ip6 is None:
            raise Unsupported(
                f"cannot publish {port}: this node gives its pods no IPv6 address",
                hint="publish on an IPv4 address, or switch IPv6 on",
            )
    arguments = (net.table, name, [port.as_list() for port in ports], ip4, ip6)
    return [
        Step(
            "network.publish.add",
            *arguments,
            why="lead " + ", ".join(map(str, ports)) + f" to {ip4}",
            undo=("network.publish.delete", arguments),
            shell=_typed("add", arguments),
            man="nft(8)",
        )
    ]


def plan_unpublish(
    paths: Paths, net: NodeNetwork, name: str, ports: Sequence[Port], ip4: str, ip6: str | None
) -> list[Step]:
    """Take the ports of `name` out of the maps; those that are not there are fine."""
    if not ports:
        return []
    arguments = (net.table, name, [port.as_list() for port in ports], ip4, ip6)
    return [
        Step(
            "network.publish.delete",
            *arguments,
            why="no longer lead " + ", ".join(map(str, ports)) + f" to {ip4}",
            shell=_typed("delete", arguments),
            man="nft(8)",
        )
    ]


def _typed(verb: str, arguments: tuple[str, str, list[list[str | int]], str, str | None]) -> str:
    lines = publish.commands(verb, "inet", "inet", *arguments)
    return "\n".join(f"nft '{line}'" for line in lines)


def plan_sweep(net: NodeNetwork, name: str) -> list[Step]:
    """Take out whatever leads to `name`, for when nobody knows what that is: after a crash."""
    return [
        Step(
            "network.publish.sweep",
            net.table,
            name,
            why=f"take every port out of the maps that is marked as {name}'s",
            shell=f"nft list table inet {net.table} | grep {name}",
            man="nft(8)",
        )
    ]
