"""Published ports on real namespaces: from everywhere, in both families, and held for good."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from network_lab import DEADLINE, Lab, Node, source_seen

from pyrun.errors import BadInput, Conflict, KernelError
from pyrun.explain import steps
from pyrun.kernel import nft
from pyrun.kernel.netlink import Inside
from pyrun.network import nat, node, ports
from pyrun.network.ports import Port


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    with Lab(tmp_path) as made:
        yield made


def check_published_everywhere(lab: Lab, here: Node) -> None:
    """Publish 8080:80 on every address and come from every side."""
    world = lab.world(here)
    pod, other = here.pod("one", "8080:80"), here.pod("other")
    server = pod.listen(80)
    for client, address, seen in (
        (world, "198.51.100.2", "198.51.100.1"),
        (here, "198.51.100.2", "198.51.100.2"),
        (here, "10.66.0.1", "10.66.0.1"),
        (here, "127.0.0.1", "10.66.0.1"),
        (here, "127.0.0.2", "10.66.0.1"),
        (other, "198.51.100.2", "10.66.0.1"),
        (other, "10.66.0.1", "10.66.0.1"),
        (pod, "198.51.100.2", "10.66.0.1"),
        (pod, "10.66.0.1", "10.66.0.1"),
        (world, "2001:db8::2", "2001:db8::1"),
        (here, "2001:db8::2", "2001:db8::2"),
        (here, "fd66::1", "fd66::1"),
        (other, "2001:db8::2", "fd66::1"),
        (pod, "fd66::1", "fd66::1"),
    ):
        got = source_seen(server, client.connect(address, 8080))
        assert got == seen, f"{client.name} to {address}: the pod saw {got}"


@pytest.mark.parametrize("bridged_frames_are_filtered", [True, False])
def test_published_port_is_reached_from_everywhere(
    lab: Lab, bridged_frames_are_filtered: bool
) -> None:
    """With br_netfilter the rules see frames inside the bridge, and hairpins turn round there."""
    here = lab.node()
    for name in ("iptables", "ip6tables"):
        path = f"/proc/sys/net/bridge/bridge-nf-call-{name}"
        if os.path.exists(path):
            value = str(int(bridged_frames_are_filtered))
            here.run("sysctl", "-q", "-w", f"net.bridge.bridge-nf-call-{name}={value}")
    check_published_everywhere(lab, here)


def test_publishing_works_without_the_inet_family(lab: Lab) -> None:
    """Kernels without it get a table for ip and one for ip6: loaded here by hand."""
    here = lab.node()
    with Inside(here.path):
        net = node.node_network(here.paths)
        layer3 = net.layer3
        steps.run(step for step in node.plan_node(here.paths, net) if "nat" not in step.op)
        for one in layer3:
            nat.load_family(one[0], net.table, net.bridge, [one], layer3)
        assert node.plan_node(here.paths, node.node_network(here.paths)) == []
    check_published_everywhere(lab, here)
    assert "table inet" not in here.rules()


def test_the_nft_program_serves_where_the_library_is_missing(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nft, "_load", lambda: None)
    here = lab.node()
    pod = here.pod("one", "8080:80")
    assert source_seen(pod.listen(80), here.connect("127.0.0.1", 8080)) == "10.66.0.1"
    pod.remove()
    assert "comment" not in here.rules()
    with Inside(here.path), pytest.raises(KernelError, match=r"nft: .*EEXIST"):
        nft.run(f"create table inet {here.paths.nft_table}")


def test_ipv6_loopback_is_refused_at_once(lab: Lab) -> None:
    here = lab.node()
    here.pod("one", "8080:80").listen(80)
    with pytest.raises(ConnectionRefusedError):
        here.connect("::1", 8080)


def test_a_port_on_one_address_is_on_no_other(lab: Lab) -> None:
    here = lab.node()
    lab.world(here)
    pod = here.pod("one", "127.0.0.1:8080:80 [2001:db8::2]:8081:80")
    server = pod.listen(80)
    assert source_seen(server, here.connect("127.0.0.1", 8080)) == "10.66.0.1"
    assert source_seen(server, here.connect("2001:db8::2", 8081)) == "2001:db8::2"
    for address, port in (("198.51.100.2", 8080), ("198.51.100.2", 8081), ("fd66::1", 8081)):
        with pytest.raises(ConnectionRefusedError):
            here.connect(address, port)


def test_udp_is_published(lab: Lab) -> None:
    here = lab.node()
    world = lab.world(here)
    pod = here.pod("one", "5353:53/udp")
    server = pod.open_socket("::", socket.SOCK_DGRAM)
    server.bind(("::", 53))
    for client_side, address in (
        (world, "198.51.100.2"), (here, "127.0.0.1"), (pod, "10.66.0.1"), (world, "2001:db8::2"),
    ):  # fmt: skip
        client = client_side.open_socket(address, socket.SOCK_DGRAM)
        client.connect((address, 5353))  # answers from any other address would not be heard
        client.send(b"question")
        data, peer = server.recvfrom(64)
        server.sendto(b"answer to " + data, peer)
        assert client.recv(64) == b"answer to question"


@pytest.mark.parametrize("address", ["198.51.100.2", "2001:db8::2", "127.0.0.1"])
def test_udp_that_came_before_the_pod_reaches_it_afterwards(lab: Lab, address: str) -> None:
    here = lab.node()
    world = lab.world(here)
    here.set_up()
    client = (here if address == "127.0.0.1" else world).open_socket(address, socket.SOCK_DGRAM)
    client.connect((address, 5353))
    client.send(b"too early")
    with pytest.raises(ConnectionRefusedError):
        client.recv(64)
    pod = here.pod("one", "5353:53/udp")
    server = pod.open_socket("::", socket.SOCK_DGRAM)
    server.bind(("::", 53))
    client.send(b"now")
    assert server.recv(64) == b"now"


def test_a_range_is_published(lab: Lab) -> None:
    here = lab.node()
    pod = here.pod("one", "8000-8005:80-85")
    for offset in (0, 3, 5):
        server = pod.listen(80 + offset)
        assert source_seen(server, here.connect("127.0.0.1", 8000 + offset)) == "10.66.0.1"


def test_free_ports_are_chosen_and_differ(lab: Lab) -> None:
    here = lab.node()
    pods = [here.pod(name, "80 127.0.0.1::81") for name in ("one", "two")]
    numbers = [port.host_port for pod in pods for port in pod.ports]
    assert len(set(numbers)) == 4
    assert 0 not in numbers
    for pod in pods:
        server = pod.listen(80)
        assert source_seen(server, here.connect("127.0.0.1", pod.ports[0].host_port))
    for port in (port for pod in pods for port in pod.ports):
        with Inside(here.path), pytest.raises(Conflict):
            ports.reserve([port])
        with pytest.raises(OSError, match="Address already in use"):
            here.listen(port.host_port, "127.0.0.1")


@pytest.mark.parametrize("protocol", ["tcp", "udp"])
def test_a_port_another_pod_publishes_is_taken_and_its_name_told(lab: Lab, protocol: str) -> None:
    here = lab.node()
    here.pod("one", f"8080:80/{protocol}")
    with Inside(here.path):
        for text in ("8080:80", "127.0.0.1:8080:80", "[fd66::1]:8080:81", "8079-8080:1-2"):
            wanted = ports.parse_publish(f"{text}/{protocol}")
            open_fds = os.listdir("/proc/self/fd")
            with pytest.raises(Conflict, match=f"{protocol} port 8080 on .* taken by .*one"):
                ports.reserve(wanted, here.paths)
            assert os.listdir("/proc/self/fd") == open_fds


def test_a_port_a_program_listens_on_is_taken_and_its_pid_told(lab: Lab) -> None:
    here = lab.node()
    here.listen(8080, "127.0.0.1")
    with Inside(here.path), pytest.raises(Conflict, match=rf"8080.* \(pid {os.getpid()}\)"):
        ports.reserve([Port("", 8080, 80)])


def test_a_port_published_twice_by_one_pod_is_refused(lab: Lab) -> None:
    here = lab.node()
    with Inside(here.path), pytest.raises(Conflict, match="tcp port 8080"):
        ports.reserve([Port("", 8080, 80), Port("127.0.0.1", 8080, 81)])


def test_no_server_gets_a_reserved_port(lab: Lab) -> None:
    """Servers set SO_REUSEADDR, with which bind(2) alone would let them in beside us."""
    here = lab.node()
    pod = here.pod("one", "8080:80")
    with pytest.raises(OSError, match="Address already in use"):
        here.listen(8080, "0.0.0.0")
    pod.remove()
    here.listen(8080, "0.0.0.0")


def test_connections_in_time_wait_do_not_hold_a_port(lab: Lab) -> None:
    here = lab.node()
    server = here.listen(8080, "0.0.0.0")
    client = here.connect("127.0.0.1", 8080)
    accepted, _ = server.accept()
    accepted.close()  # closing first is what leaves TIME_WAIT on this side
    assert client.recv(1) == b""
    client.close()
    server.close()
    assert "TIME-WAIT" in here.run("ss", "-Htan", "sport", "=", "8080")
    pod = here.pod("one", "8080:80")
    assert source_seen(pod.listen(80), here.connect("127.0.0.1", 8080)) == "10.66.0.1"


def test_an_address_the_host_lacks_is_refused(lab: Lab) -> None:
    here = lab.node()
    with Inside(here.path), pytest.raises(BadInput, match=r"192\.0\.2\.77: the host has no such"):
        ports.reserve([Port("192.0.2.77", 8080, 80)])


def test_unpublishing_spares_a_port_that_leads_to_another_pod_by_now(lab: Lab) -> None:
    here = lab.node()
    gone = here.pod("gone", "8080:80 8081:81")
    gone.remove()
    heir = here.pod("heir", "8080:80")
    gone.remove()
    assert source_seen(heir.listen(80), here.connect("127.0.0.1", 8080)) == "10.66.0.1"
    assert "8081" not in here.rules()


def test_a_sweep_takes_all_ports_of_one_pod_and_no_others(lab: Lab) -> None:
    here = lab.node()
    here.set_up()
    here.pod("web", "8080:80 127.0.0.1:8081:81/udp [fd66::1]:8082:82 8083-8085:83-85")
    here.pod("web-2", "9090:80")
    for _ in range(2):
        with Inside(here.path):
            steps.run(ports.plan_sweep(node.node_network(here.paths), "web"))
        assert here.rules().count('comment "web-2"') == 2
        assert 'comment "web"' not in here.rules()


def test_publishing_on_another_pods_port_fails_as_a_whole(lab: Lab) -> None:
    here = lab.node()
    here.pod("one", "8080:80")
    before = here.rules()
    with Inside(here.path):
        net = node.node_network(here.paths)
        wanted = [Port("", 9000, 80), Port("", 8080, 80)]
        with pytest.raises(Conflict, match="8080: it is taken by pod one"):
            steps.run(ports.plan_publish(here.paths, net, "two", wanted, "10.66.0.9", "fd66::9"))
    assert here.rules() == before


def test_a_pod_cannot_reach_what_the_host_binds_to_loopback(lab: Lab) -> None:
    """route_localnet would let it (CVE-2020-8558); without our guard rule it does."""
    here = lab.node()
    pod = here.pod("evil")
    server = here.listen(631, "127.0.0.1")
    pod.run("sysctl", "-q", "-w", "net.ipv4.conf.all.route_localnet=1")
    pod.ip("address", "delete", "127.0.0.1/8", "dev", "lo")
    pod.ip("route", "add", "127.0.0.0/8", "via", "10.66.0.1", "src", pod.ip4)
    with pytest.raises(TimeoutError):
        pod.connect("127.0.0.1", 631, timeout=0.3)
    here.run("nft", "flush", "chain", "inet", here.paths.nft_table, "guard")
    assert source_seen(server, pod.connect("127.0.0.1", 631, timeout=DEADLINE)) == pod.ip4
