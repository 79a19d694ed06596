"""A laboratory of network namespaces: nodes, pods, and a world outside, on one machine.

Every node is a namespace of its own, so nothing here touches the host's links, rules or sysctls.
A socket belongs to the namespace it is made in for its whole life: tests make sockets inside pods
and use them from outside, without helper processes.
"""

from __future__ import annotations

import json
import os
import select
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

from pyrun.explain import steps
from pyrun.kernel import carrier
from pyrun.kernel.netlink import Inside
from pyrun.network import ipam, link, node, ports
from pyrun.network.address import to_bytes
from pyrun.store.paths import Paths

DEADLINE = 5.0


def command(*words: str) -> str:
    return subprocess.run(words, check=True, capture_output=True, text=True).stdout


class Namespace:
    """A pinned network namespace."""

    def __init__(self, lab: Lab, name: str) -> None:
        self.lab = lab
        self.name = f"pyt-{os.getpid()}-{name}"
        self.path = f"/run/netns/{self.name}"
        command("ip", "netns", "add", self.name)
        lab.namespaces.append(self)

    def ip(self, *words: str) -> str:
        return command("ip", "-n", self.name, *words)

    def json(self, *words: str) -> Any:
        return json.loads(self.ip("-j", *words) or "[]")

    def run(self, *words: str) -> str:
        return command("ip", "netns", "exec", self.name, *words)

    def open_socket(self, address: str, kind: int = socket.SOCK_STREAM) -> socket.socket:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        with Inside(self.path):
            made = socket.socket(family, kind)
        made.settimeout(DEADLINE)
        self.lab.sockets.append(made)
        return made

    def listen(self, port: int, address: str = "::") -> socket.socket:
        """A TCP server, by default on every address of both families."""
        server = self.open_socket(address)
        if ":" in address:
            server.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        server.bind((address, port))
        server.listen(16)
        return server

    def connect(self, address: str, port: int, timeout: float = DEADLINE) -> socket.socket:
        client = self.open_socket(address)
        client.settimeout(timeout)
        client.connect((address, port))
        return client

    def delete(self) -> None:
        subprocess.run(["ip", "netns", "delete", self.name], check=False, capture_output=True)


def packets_sent_again(client: socket.socket) -> int:
    """How many segments the kernel had to send again: tcpi_total_retrans of tcp(7), TCP_INFO."""
    info = client.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 104)
    return int.from_bytes(info[100:104], sys.byteorder)


def source_seen(server: socket.socket, client: socket.socket) -> str:
    """Accept `client` on `server`, pass a byte each way; the address the server saw."""
    ready, _, _ = select.select([server], [], [], DEADLINE)
    assert ready, "the connection did not arrive here"
    accepted, peer = server.accept()
    with accepted:
        accepted.settimeout(DEADLINE)
        client.sendall(b"?")
        assert accepted.recv(1) == b"?"
        accepted.sendall(b"!")
        assert client.recv(1) == b"!"
    client.close()
    return str(peer[0]).removeprefix("::ffff:")


class Pod(Namespace):
    def __init__(self, owner: Node, name: str, publish: str = "") -> None:
        super().__init__(owner.lab, f"{owner.short}-{name}")
        self.node = owner
        self.pod_name = name
        self.fds: list[int] = []
        self.ports: list[ports.Port] = []
        with Inside(owner.path):
            net = node.node_network(owner.paths)
            self.lease = ipam.lease(owner.paths, net, name)
            wanted = [port for text in publish.split() for port in ports.parse_publish(text)]
            self.ports, self.fds = ports.reserve(wanted, owner.paths)
            owner.lab.fds += self.fds
            steps.run(
                node.plan_node(owner.paths, net)
                + ipam.plan_lease(owner.paths, self.lease, name)
                + link.plan_attach(owner.paths, net, self.lease, name, self.path)
                + ports.plan_publish(
                    owner.paths, net, name, self.ports, self.lease.ip4, self.lease.ip6
                )
            )

    @property
    def ip4(self) -> str:
        return self.lease.ip4

    @property
    def ip6(self) -> str:
        assert self.lease.ip6 is not None
        return self.lease.ip6

    def remove(self) -> None:
        paths, name = self.node.paths, self.pod_name
        with Inside(self.node.path):
            net = node.node_network(paths)
            steps.run(
                ports.plan_unpublish(paths, net, name, self.ports, self.ip4, self.lease.ip6)
                + link.plan_detach(paths, net, name)
                + ipam.plan_release(paths, name)
            )
        self.lab.close(self.fds)
        self.fds = []


class Node(Namespace):
    def __init__(self, lab: Lab, name: str = "node") -> None:
        super().__init__(lab, name)
        self.short = name
        self.paths = Paths(str(lab.directory / name / "root"), str(lab.directory / name / "run"))
        self.ip("link", "set", "lo", "up")

    def set_up(self) -> node.NodeNetwork:
        with Inside(self.path):
            steps.run(node.plan_node(self.paths, node.node_network(self.paths)))
            return node.node_network(self.paths)

    def pod(self, name: str, publish: str = "") -> Pod:
        return Pod(self, name, publish)

    def tear_down(self) -> None:
        with Inside(self.path):
            steps.run(node.plan_node_remove(self.paths, node.node_network(self.paths)))

    def links(self) -> list[str]:
        return [str(row["ifname"]) for row in self.json("link", "show")]

    def rules(self) -> str:
        return self.run("nft", "list", "ruleset")


class Lab:
    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.namespaces: list[Namespace] = []
        self.sockets: list[socket.socket] = []
        self.fds: list[int] = []

    def node(self, name: str = "node") -> Node:
        return Node(self, name)

    def world(self, of: Node, mtu: int = 1500) -> Namespace:
        """A host outside: 198.51.100.1 and 2001:db8::1; the node is .2 and has its default route.

        It knows no way back to the pod network.
        """
        world = Namespace(self, "world")
        join(world, "node", of, "uplink", mtu)
        world.ip("address", "add", "198.51.100.1/24", "dev", "node")
        world.ip("address", "add", "2001:db8::1/64", "dev", "node", "nodad")
        of.ip("address", "add", "198.51.100.2/24", "dev", "uplink")
        of.ip("address", "add", "2001:db8::2/64", "dev", "uplink", "nodad")
        settle(world, "node", "2001:db8::1")
        settle(of, "uplink", "2001:db8::2")
        of.ip("route", "add", "default", "via", "198.51.100.1")
        of.ip("-6", "route", "add", "default", "via", "2001:db8::1")
        return world

    def close(self, fds: list[int]) -> None:
        for fd in fds:
            os.close(fd)
            self.fds.remove(fd)

    def __enter__(self) -> Lab:
        return self

    def __exit__(self, *_: object) -> None:
        for made in self.sockets:
            made.close()
        self.close(list(self.fds))
        for namespace in reversed(self.namespaces):
            namespace.delete()
        # Nothing may have happened in the namespace the tests themselves run in.
        ours = [n.paths.bridge for n in self.namespaces if isinstance(n, Node)]
        assert not [name for name in ours if name in command("ip", "-o", "link", "show")]
        assert f"pyt-{os.getpid()}-" not in command("ip", "netns", "list")


def join(one: Namespace, its_link: str, other: Namespace, other_link: str, mtu: int = 1500) -> None:
    """A cable between two namespaces."""
    one.ip(
        "link", "add", its_link, "mtu", str(mtu), "type", "veth",
        "peer", "name", other_link, "mtu", str(mtu), "netns", other.name,
    )  # fmt: skip
    for end, name in ((one, its_link), (other, other_link)):
        # Otherwise the cable can forward no IPv6 for two seconds.
        end.run("sysctl", "-q", "-w", f"net.ipv6.conf.{name}.accept_dad=0")
        end.ip("link", "set", name, "up")
    for end, name in ((one, its_link), (other, other_link)):
        with Inside(end.path):
            carrier.has_carrier(name)


def settle(namespace: Namespace, name: str, ip6: str) -> None:
    """Wait until neighbours can find `ip6`: otherwise the first connection takes a second."""
    with Inside(namespace.path):
        assert carrier.wait_solicitable(name, to_bytes(ip6), DEADLINE)
