"""/etc/hosts and /etc/resolv.conf of a pod."""

from __future__ import annotations

from pyrun.network.names import hosts_text, resolv_text

HOST = """\
# made by hand
domain old.example
search corp.example example
nameserver 127.0.0.53
nameserver 192.0.2.53
nameserver ::1
nameserver fe80::1%eth0
options ndots:2 edns0
"""


def test_hosts_names_the_pod_on_each_of_its_addresses() -> None:
    text = hosts_text(["10.66.0.2", "fd66::2"], "web", [("192.0.2.7", "registry")])
    assert text.splitlines() == [
        "127.0.0.1\tlocalhost",
        "::1\tlocalhost ip6-localhost ip6-loopback",
        "10.66.0.2\tweb",
        "fd66::2\tweb",
        "192.0.2.7\tregistry",
    ]


def test_a_pod_without_address_finds_its_name_on_loopback() -> None:
    assert "127.0.0.1\tweb\n" in hosts_text([], "web")


def test_loopback_resolvers_of_the_host_are_left_out() -> None:
    assert resolv_text(HOST).splitlines() == [
        "search corp.example example",
        "nameserver 192.0.2.53",
        "nameserver fe80::1%eth0",
        "options ndots:2 edns0",
    ]


def test_with_the_hosts_network_they_stay() -> None:
    text = resolv_text(HOST, own_network=False)
    assert "nameserver 127.0.0.53" in text
    assert "nameserver ::1" in text


def test_what_is_asked_for_replaces_the_hosts() -> None:
    text = resolv_text(HOST, ["127.0.0.1", "192.0.2.1"], ["pods.example"], ["timeout:1"])
    assert text.splitlines() == [
        "search pods.example",
        "nameserver 127.0.0.1",
        "nameserver 192.0.2.1",
        "options timeout:1",
    ]


def test_a_dot_means_no_search_list() -> None:
    assert "search" not in resolv_text(HOST, search=["."])


def test_no_usable_server_is_said_in_the_file() -> None:
    text = resolv_text("nameserver 127.0.0.1\n")
    assert text.startswith("# the host names no server")
    assert "nameserver" not in text
    assert resolv_text("") == text
