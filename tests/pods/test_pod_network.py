"""One address for a pod, one port space in it, and what others see of both."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import threading
from collections.abc import Iterator

import pytest
from pod_lab import (
    SLEEPER,
    addresses,
    family_of,
    free_port,
    http_get,
    ip_json,
    make,
    member_pid,
    netns,
    peer_seen,
    pod_socket,
    server,
)

from pyrun.kernel.netlink import Inside
from support import DEADLINE, Node, read, running, wait_until

HTTPD = "web=busybox httpd -f -p 80"


def listens(node: Node, pod: str, member: str, port: int) -> bool:
    """Whether a TCP socket listens there, in the pod's own /proc/net."""
    tables = [read(f"/proc/{member_pid(node, pod, member)}/net/{t}") for t in ("tcp", "tcp6")]
    rows = [line.split() for table in tables for line in table.splitlines()[1:]]
    return any(row[3] == "0A" and int(row[1].rpartition(":")[2], 16) == port for row in rows)


def test_one_address_on_eth0_seen_by_all_members(pyrun: Node) -> None:
    make(pyrun, "web", f"a={SLEEPER}", f"b={SLEEPER}")
    assert [link["ifname"] for link in ip_json(pyrun, "web", "link")] == ["lo", "eth0"]
    four, six = addresses(pyrun, "web")
    for member in "ab":
        assert f"inet {four}/" in pyrun.out("exec", f"web-{member}", "ip", "addr", "show", "eth0")
        found = read(f"/proc/{member_pid(pyrun, 'web', member)}/net/if_inet6").replace("\n", " ")
        assert socket.inet_pton(socket.AF_INET6, six).hex() in found


def test_two_pods_bind_the_same_port_two_members_cannot(pyrun: Node) -> None:
    make(pyrun, "one", HTTPD)
    make(pyrun, "two", HTTPD)
    for pod in ("one", "two"):
        wait_until(lambda pod=pod: listens(pyrun, pod, "web", 80), "it listens")
    done = pyrun(
        "run", "--pod", "one", "--name", "one-second", "busybox", "httpd", "-f", "-p", "80",
        check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert "Address already in use" in done.stderr
    # They reach each other on 127.0.0.1, and that is the pod's own.
    assert "404" in pyrun.fails(
        1, "run", "--rm", "--pod", "one", "busybox", "wget", "-qO-", "http://127.0.0.1/"
    )
    make(pyrun, "three", SLEEPER)
    assert "refused" in pyrun.fails(1, "exec", "three-busybox", "wget", "-qO-", "http://127.0.0.1/")


def test_a_pod_sees_the_other_pods_real_address(pyrun: Node) -> None:
    make(pyrun, "one", SLEEPER)
    make(pyrun, "two", SLEEPER)
    for to, source in zip(addresses(pyrun, "one"), addresses(pyrun, "two"), strict=True):
        with server(pyrun, "one", to, 7000) as listener:
            client = pod_socket(pyrun, "two", family_of(to))
            assert peer_seen(listener, client, to, 7000) == source


def test_the_host_reaches_a_pod_and_is_reached(pyrun: Node) -> None:
    make(pyrun, "one", HTTPD)
    wait_until(lambda: listens(pyrun, "one", "web", 80), "it listens")
    for address in addresses(pyrun, "one"):
        status, _ = http_get(socket.socket(family_of(address)), address, 80)
        assert status == 404
    gateway = ip_json(pyrun, "one", "route", "show", "default")[0]["gateway"]
    with socket.create_server((gateway, 0)) as listener:
        client = pod_socket(pyrun, "one")
        port = listener.getsockname()[1]
        assert peer_seen(listener, client, gateway, port) == addresses(pyrun, "one")[0]


class World:
    """A host outside, on a cable of its own, that knows no way to the pods."""

    def __init__(self) -> None:
        tag = os.getpid() & 0xFFFF
        self.name = f"pyt-{os.getpid()}-world"
        self.cable = f"pyt{tag:x}"
        # From 198.18.0.0/15 and 2001:2::/48: addresses for such experiments.
        self.net4, self.net6 = f"198.18.{tag & 255}", f"2001:2:0:{tag:x}:"

    def __enter__(self) -> World:
        running("ip", "netns", "add", self.name)
        running("ip", "link", "add", self.cable, "type", "veth", "peer", "eth0", "netns", self.name)
        for inside, link, host in ((["-n", self.name], "eth0", 1), ([], self.cable, 2)):
            running("ip", *inside, "address", "add", f"{self.net4}.{host}/24", "dev", link)
            running("ip", *inside, "address", "add", f"{self.net6}:{host}/64", "dev", link, "nodad")
            running("ip", *inside, "link", "set", link, "up")
        return self

    def server(self, address: str) -> socket.socket:
        with Inside(f"/run/netns/{self.name}"):
            made = socket.socket(family_of(address))
        made.bind((address, 7000))
        made.listen()
        made.settimeout(DEADLINE)
        return made

    def socket(self, family: int = socket.AF_INET) -> socket.socket:
        with Inside(f"/run/netns/{self.name}"):
            return socket.socket(family)

    def __exit__(self, *_: object) -> None:
        subprocess.run(["ip", "link", "delete", self.cable], check=False)
        subprocess.run(["ip", "netns", "delete", self.name], check=False)


@pytest.fixture
def world() -> Iterator[World]:
    with World() as made:
        yield made


def test_egress_takes_the_nodes_address_and_only_outside_the_cluster(
    pyrun: Node, world: World
) -> None:
    make(pyrun, "one", SLEEPER)
    outside = ((f"{world.net4}.1", f"{world.net4}.2"), (f"{world.net6}:1", f"{world.net6}:2"))
    for address, nodes_own in outside:
        with world.server(address) as listener:
            client = pod_socket(pyrun, "one", family_of(address))
            assert peer_seen(listener, client, address, 7000) == nodes_own


@contextlib.contextmanager
def echo_udp(node: Node, pod: str, port: int) -> Iterator[None]:
    """A UDP service in the pod that answers with what it was told, once."""
    with Inside(netns(node, pod)):
        sock = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
    sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    sock.bind(("::", port))
    sock.settimeout(DEADLINE)

    def answer() -> None:
        data, peer = sock.recvfrom(100)
        sock.sendto(data.upper(), peer)

    thread = threading.Thread(target=answer)
    thread.start()
    try:
        yield
    finally:
        thread.join()
        sock.close()


def test_published_ports_lead_to_the_pod_from_everywhere(pyrun: Node, world: World) -> None:
    port = free_port()
    make(pyrun, "one", HTTPD, flags=("-p", f"{port}:80"))
    make(pyrun, "two", SLEEPER)
    wait_until(lambda: listens(pyrun, "one", "web", 80), "it listens")
    host = f"{world.net4}.2"
    ways = {
        "the host, 127.0.0.1": (socket.socket(), "127.0.0.1"),
        "the host, its address": (socket.socket(), host),
        "a machine outside": (world.socket(), host),
        "a machine outside, IPv6": (world.socket(socket.AF_INET6), f"{world.net6}:2"),
        "another pod": (pod_socket(pyrun, "two"), host),
        "the pod itself, hairpin": (pod_socket(pyrun, "one"), host),
    }
    for way, (sock, address) in ways.items():
        assert http_get(sock, address, port)[0] == 404, way
    pyrun("pod", "stop", "-t", "0", "one")
    with socket.socket() as refused, pytest.raises(ConnectionRefusedError):
        refused.connect((host, port))


def test_who_comes_through_a_published_port_keeps_its_address(pyrun: Node, world: World) -> None:
    port, host = free_port(), f"{world.net4}.2"
    make(pyrun, "one", SLEEPER, flags=("-p", f"{host}:{port}:7000"))
    with server(pyrun, "one", "0.0.0.0", 7000) as listener:
        assert peer_seen(listener, world.socket(), host, port) == f"{world.net4}.1"


def test_udp_is_published(pyrun: Node) -> None:
    port = free_port(socket.SOCK_DGRAM)
    make(pyrun, "one", SLEEPER, flags=("-p", f"{port}:5353/udp"))
    with echo_udp(pyrun, "one", 5353), socket.socket(type=socket.SOCK_DGRAM) as client:
        client.settimeout(DEADLINE)
        client.sendto(b"hello", ("127.0.0.1", port))
        assert client.recv(100) == b"HELLO"


def test_a_port_on_127_0_0_1_alone(pyrun: Node, world: World) -> None:
    port = free_port()
    make(pyrun, "one", HTTPD, flags=("-p", f"127.0.0.1:{port}:80"))
    wait_until(lambda: listens(pyrun, "one", "web", 80), "it listens")
    assert http_get(socket.socket(), "127.0.0.1", port)[0] == 404
    with world.socket() as outside, pytest.raises(ConnectionRefusedError):
        outside.settimeout(DEADLINE)
        outside.connect((f"{world.net4}.2", port))


def test_a_taken_port_is_refused_by_the_name_of_its_holder(pyrun: Node) -> None:
    before = pyrun.traces()
    with socket.create_server(("0.0.0.0", 0)) as holder:
        port = holder.getsockname()[1]
        said = pyrun.fails(
            125, "pod", "create", "--name", "one", "-p", f"{port}:80", "--container", SLEEPER
        )
        assert f"(pid {os.getpid()})" in said and str(port) in said
    assert pyrun.traces() == before
    make(pyrun, "one", SLEEPER, flags=("-p", f"{port}:80"))
    said = pyrun.fails(
        125, "pod", "create", "--name", "two", "-p", f"{port}:80", "--container", SLEEPER
    )
    assert "taken by pod one" in said
    assert len(os.listdir(pyrun.paths.leases)) == 1
    # Free again when its holder is gone.
    pyrun("pod", "rm", "-f", "one")
    make(pyrun, "two", SLEEPER, flags=("-p", f"{port}:80"))


def test_a_stopped_pod_gives_its_port_and_address_back(pyrun: Node) -> None:
    port = free_port()
    make(pyrun, "one", SLEEPER, flags=("-p", f"{port}:80"))
    pyrun("pod", "stop", "-t", "0", "one")
    assert os.listdir(pyrun.paths.leases) == []
    with socket.create_server(("0.0.0.0", port)):
        assert "taken" in pyrun.fails(125, "pod", "start", "one")
    pyrun("pod", "start", "one")
    assert addresses(pyrun, "one")
