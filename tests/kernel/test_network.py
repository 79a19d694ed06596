"""The pod network on real namespaces: one node, its pods, a world outside. `ip` is the oracle."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator
from pathlib import Path

import pytest
from network_lab import Lab, Namespace, Node, join, packets_sent_again, settle, source_seen

from pyrun.errors import Conflict, StepFailed
from pyrun.explain import steps
from pyrun.kernel.netlink import Inside
from pyrun.network import ipam, link, node


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    with Lab(tmp_path) as made:
        yield made


@pytest.mark.parametrize("family", ["ip4", "ip6"])
def test_pods_reach_each_other_and_see_the_real_source(lab: Lab, family: str) -> None:
    here = lab.node()
    one, two = here.pod("one"), here.pod("two")
    server = two.listen(80)
    client = one.connect(getattr(two, family), 80)
    assert source_seen(server, client) == getattr(one, family)


def test_a_pod_is_reachable_the_moment_it_is_attached(lab: Lab) -> None:
    """A first SYN that is lost costs a second: the port must forward and ND must work at once."""
    here = lab.node()
    one = here.pod("one")
    for family in ("ip4", "ip6"):
        two = here.pod(f"two-{family}")
        server, client = two.listen(80), one.connect(getattr(two, family), 80)
        assert packets_sent_again(client) == 0
        source_seen(server, client)


def test_the_first_pod_is_reachable_from_outside_at_once(lab: Lab) -> None:
    here = lab.node()
    world = lab.world(here)
    world.ip("route", "add", "fd66::/64", "via", "2001:db8::2")
    pod = here.pod("one")
    server, client = pod.listen(80), world.connect(pod.ip6, 80)
    assert packets_sent_again(client) == 0
    assert source_seen(server, client) == "2001:db8::1"


def test_two_pods_bind_the_same_port(lab: Lab) -> None:
    here = lab.node()
    one, two = here.pod("one"), here.pod("two")
    servers = one.listen(80), two.listen(80)
    for pod, server in zip((one, two), servers, strict=True):
        assert source_seen(server, here.connect(pod.ip4, 80)) == "10.66.0.1"


@pytest.mark.parametrize(
    ("outside", "masked"), [("198.51.100.1", "198.51.100.2"), ("2001:db8::1", "2001:db8::2")]
)
def test_egress_takes_the_node_address(lab: Lab, outside: str, masked: str) -> None:
    here = lab.node()
    world = lab.world(here)
    pod = here.pod("one")
    assert source_seen(world.listen(80), pod.connect(outside, 80)) == masked


def test_egress_into_the_cluster_range_keeps_the_source(lab: Lab) -> None:
    here = lab.node()
    world = lab.world(here)
    pod = here.pod("one")
    for address, back, via, prefix in (
        ("10.66.9.9", "10.66.0.0/24", "198.51.100.2", 32),
        ("fd66:0:0:9::9", "fd66::/64", "2001:db8::2", 128),
    ):
        world.ip("address", "add", f"{address}/{prefix}", "dev", "lo", *["nodad"][: ":" in address])
        world.ip("route", "add", back, "via", via)
    world.ip("link", "set", "lo", "up")
    server = world.listen(80)
    assert source_seen(server, pod.connect("10.66.9.9", 80)) == pod.ip4
    assert source_seen(server, pod.connect("fd66:0:0:9::9", 80)) == pod.ip6


def test_inside_a_pod_is_what_ip_shows(lab: Lab) -> None:
    here = lab.node()
    pod = here.pod("one")
    loopback, eth0 = pod.json("address", "show")
    assert {"UP", "LOWER_UP"} <= set(loopback["flags"]) & set(eth0["flags"])
    assert eth0["ifname"] == "eth0"
    assert eth0["address"] == "02:42:0a:42:00:02"
    found = {a["local"]: a for a in eth0["addr_info"] if a["scope"] == "global"}
    assert {(a, i["prefixlen"]) for a, i in found.items()} == {(pod.ip4, 24), (pod.ip6, 64)}
    assert "tentative" not in found[pod.ip6]
    assert pod.json("route", "show", "default")[0]["gateway"] == "10.66.0.1"
    assert pod.json("-6", "route", "show", "default")[0]["gateway"] == "fd66::1"
    assert pod.run("sysctl", "-n", "net.ipv4.ip_unprivileged_port_start").strip() == "0"
    port = here.json("-d", "link", "show", link.host_name(here.paths, "one"))[0]
    assert port["master"] == here.paths.bridge
    assert port["linkinfo"]["info_kind"] == "veth"
    assert port["inet6_addr_gen_mode"] == "none"


def test_node_set_up_is_idempotent(lab: Lab) -> None:
    here = lab.node()
    here.set_up()
    # The bridge's link-local address is "tentative" for a second; that is no change of ours.
    here.ip("address", "flush", "dev", here.paths.bridge, "scope", "link")
    rules, links = here.rules(), here.ip("address", "show", here.paths.bridge)
    with Inside(here.path):
        assert node.plan_node(here.paths, node.node_network(here.paths)) == []
    assert (here.rules(), here.ip("address", "show", here.paths.bridge)) == (rules, links)


def test_what_is_lost_of_the_node_is_set_up_again(lab: Lab) -> None:
    here = lab.node()
    here.set_up()
    here.run("nft", "delete", "table", "inet", here.paths.nft_table)
    here.ip("address", "flush", "dev", here.paths.bridge)
    here.run("sysctl", "-q", "-w", "net.ipv4.ip_forward=0")
    with Inside(here.path):
        plan = node.plan_node(here.paths, node.node_network(here.paths))
    assert [step.op for step in plan] == [
        "network.node.add_bridge", "network.sysctl.write", "network.nat.load",
    ]  # fmt: skip
    here.set_up()
    one, two = here.pod("one"), here.pod("two")
    assert source_seen(two.listen(80), one.connect(two.ip6, 80)) == one.ip6


def test_loading_the_rules_again_keeps_published_ports(lab: Lab) -> None:
    here = lab.node()
    here.pod("one", "8080:80")
    marker = next(w for w in here.rules().split() if w.startswith("rules_"))
    here.run("nft", "delete", "chain", "inet", here.paths.nft_table, marker)
    before = here.rules()
    here.set_up()
    assert 'tcp . 8080 comment "one" : 10.66.0.2 . 80' in before
    assert here.rules().count("masquerade") == before.count("masquerade")
    assert 'tcp . 8080 comment "one" : 10.66.0.2 . 80' in here.rules()


def test_removal_leaves_nothing(lab: Lab) -> None:
    here = lab.node()
    links, rules = here.links(), here.rules()
    pods = [here.pod(f"p{number}", "80 53/udp") for number in range(3)]
    with Inside(here.path), pytest.raises(Conflict, match="in use by 3 sandboxes: p0, p1, p2"):
        node.plan_node_remove(here.paths, node.node_network(here.paths))
    for pod in pods:
        pod.remove()
        pod.remove()  # a second time finds nothing, and says nothing
    assert [line for line in here.rules().splitlines() if "comment" in line] == []
    assert here.links() == [*links, here.paths.bridge]
    here.tear_down()
    here.tear_down()
    assert (here.links(), here.rules()) == (links, rules)
    assert os.listdir(here.paths.root) == []
    assert os.listdir(here.paths.run_root) == ["leases"]
    assert os.listdir(here.paths.leases) == []


def test_a_failing_first_pod_takes_everything_back(lab: Lab) -> None:
    here = lab.node()
    links, rules = here.links(), here.rules()
    with Inside(here.path):
        net = node.node_network(here.paths)
        lease = ipam.lease(here.paths, net, "web")
        plan = (
            node.plan_node(here.paths, net)
            + ipam.plan_lease(here.paths, lease, "web")
            + link.plan_attach(here.paths, net, lease, "web", here.path + "-gone")
        )
        with pytest.raises(StepFailed, match="ENOENT"):
            steps.run(plan)
        assert ipam.leases(here.paths) == {}
    assert (here.links(), here.rules()) == (links, rules)


def test_a_failing_pod_spares_the_node_others_use(lab: Lab) -> None:
    here = lab.node()
    with Inside(here.path):
        net = node.node_network(here.paths)
        lease = ipam.lease(here.paths, net, "bad")
        plan = node.plan_node(here.paths, net)
        plan += ipam.plan_lease(here.paths, lease, "bad")
        plan += link.plan_attach(here.paths, net, lease, "bad", here.path + "-gone")
    one, two = here.pod("one"), here.pod("two")
    with Inside(here.path), pytest.raises(StepFailed):
        steps.run(plan)
    assert source_seen(two.listen(80), one.connect(two.ip4, 80)) == one.ip4


def test_a_taken_link_name_is_a_conflict_and_the_link_stays(lab: Lab) -> None:
    here = lab.node()
    pod = here.pod("one")
    with Inside(here.path):
        net = node.node_network(here.paths)
        plan = link.plan_attach(here.paths, net, pod.lease, "one", here.path)[1:2]
        with pytest.raises(Conflict, match=r"pyv\w+.* RTM_NEWLINK veth .*EEXIST"):
            steps.run(plan)
    assert link.host_name(here.paths, "one") in here.links()


def test_mtu_is_the_uplinks_and_stays(lab: Lab) -> None:
    here = lab.node()
    lab.world(here, mtu=1400)
    pod = here.pod("one")
    assert pod.json("link", "show", "eth0")[0]["mtu"] == 1400
    pod.remove()
    assert here.json("link", "show", here.paths.bridge)[0]["mtu"] == 1400


def test_a_range_the_host_routes_elsewhere_is_refused(lab: Lab) -> None:
    here = lab.node()
    lab.world(here)
    here.ip("address", "add", "10.66.0.77/28", "dev", "uplink")
    with Inside(here.path):
        net = node.node_network(here.paths)
        with pytest.raises(Conflict, match=r"10\.66\.0\.0/24 overlaps the route .*uplink"):
            node.plan_node(here.paths, net)


def test_a_route_for_the_rest_of_the_cluster_is_no_overlap(lab: Lab) -> None:
    here = lab.node()
    lab.world(here)
    here.ip("route", "add", "10.66.0.0/16", "via", "198.51.100.1")
    assert here.set_up().cidr4 == "10.66.0.0/24"


def test_without_ipv6_pods_get_ipv4_only(lab: Lab) -> None:
    here = lab.node()
    for name in ("all", "default"):
        here.run("sysctl", "-q", "-w", f"net.ipv6.conf.{name}.disable_ipv6=1")
    one, two = here.pod("one", "8080:80"), here.pod("two")
    assert one.lease.ip6 is None
    assert source_seen(two.listen(80), one.connect(two.ip4, 80)) == one.ip4
    assert one.json("-6", "route", "show", "default") == []
    assert "ip6" not in here.rules()


def test_router_advertisements_are_still_heard_once_forwarding_is_on(lab: Lab) -> None:
    here = lab.node()
    lab.world(here)
    here.ip("-6", "route", "replace", "default", "via", "2001:db8::1", "proto", "ra")
    here.set_up()
    assert here.run("sysctl", "-n", "net.ipv6.conf.uplink.accept_ra").strip() == "2"
    assert here.run("sysctl", "-n", "net.ipv6.conf.all.forwarding").strip() == "1"
    bridge = here.paths.bridge
    assert here.run("sysctl", "-n", f"net.ipv6.conf.{bridge}.accept_ra").strip() == "0"


def test_loopback_only(lab: Lab) -> None:
    alone = lab.node("alone")
    alone.ip("link", "set", "lo", "down")
    steps.run(link.plan_loopback(alone.path))
    assert source_seen(alone.listen(80), alone.connect("127.0.0.1", 80)) == "127.0.0.1"


def test_fifty_processes_attach_fifty_pods_at_once(lab: Lab) -> None:
    here = lab.node()
    pods = {f"p{number}": Namespace(lab, f"p{number}") for number in range(50)}
    _fork_each(pods, lambda name: _attach(here, name, pods[name].path))
    with Inside(here.path):
        held = {owner: address for address, owner in ipam.leases(here.paths).items()}
        assert node.plan_node(here.paths, node.node_network(here.paths)) == []
    assert sorted(held) == sorted(pods)
    assert len(here.json("link", "show", "master", here.paths.bridge)) == 50
    for name, pod in pods.items():
        assert source_seen(pod.listen(80), here.connect(held[name], 80)) == "10.66.0.1"
    _fork_each(pods, lambda name: _detach(here, name))
    assert here.links() == ["lo", here.paths.bridge]
    assert os.listdir(here.paths.leases) == []


def _attach(here: Node, name: str, netns: str) -> None:
    with Inside(here.path):
        net = node.node_network(here.paths)
        lease = ipam.lease(here.paths, net, name)
        steps.run(
            node.plan_node(here.paths, net)
            + ipam.plan_lease(here.paths, lease, name)
            + link.plan_attach(here.paths, net, lease, name, netns)
        )


def _detach(here: Node, name: str) -> None:
    with Inside(here.path):
        net = node.node_network(here.paths)
        steps.run(link.plan_detach(here.paths, net, name) + ipam.plan_release(here.paths, name))


def _fork_each(names: Collection[str], work: Callable[[str], None]) -> None:
    """Call `work` in a process for each name, all at the same time."""
    children = []
    for name in names:
        pid = os.fork()
        if pid == 0:
            try:
                work(name)
                os._exit(0)
            except BaseException as error:
                os.write(2, f"{name}: {error!r}\n".encode())
                os._exit(1)
        children.append(pid)
    codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children]
    assert codes == [0] * len(names)


@pytest.mark.parametrize("family", ["ip4", "ip6"])
def test_two_nodes_with_routes_keep_source_addresses(
    lab: Lab, family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = lab.node("one"), lab.node("two")
    join(one, "wire", two, "wire")
    for this, other, number in ((one, two, 1), (two, one, 2)):
        this.ip("address", "add", f"192.0.2.{number}/24", "dev", "wire")
        this.ip("address", "add", f"2001:db8::{number}/64", "dev", "wire", "nodad")
        settle(this, "wire", f"2001:db8::{number}")
        back = 2 if other is two else 1
        this.ip("route", "add", f"10.66.{back}.0/24", "via", f"192.0.2.{back}")
        this.ip("route", "add", f"fd66:0:0:{back}::/64", "via", f"2001:db8::{back}")
        monkeypatch.setenv("PYRUN_POD_CIDR", f"10.66.{number}.0/24")
        monkeypatch.setenv("PYRUN_POD_CIDR6", f"fd66:0:0:{number}::/64")
        this.set_up()
    monkeypatch.delenv("PYRUN_POD_CIDR")
    monkeypatch.delenv("PYRUN_POD_CIDR6")
    here, there = one.pod("web"), two.pod("db", "8080:80")
    assert (here.ip4, there.ip6) == ("10.66.1.2", "fd66:0:0:2::2")  # kept, without environment
    server = there.listen(80)
    assert source_seen(server, here.connect(getattr(there, family), 80)) == getattr(here, family)
    # The other node's own address is outside the pod network: there the node speaks for its pod.
    published, masked = {
        "ip4": ("192.0.2.2", "192.0.2.1"), "ip6": ("2001:db8::2", "2001:db8::1"),
    }[family]  # fmt: skip
    assert source_seen(server, here.connect(published, 8080)) == masked
