"""The node's side of the pod network: address ranges, the bridge, what the kernel must allow.

A **bridge** is a switch inside the kernel. Every pod is plugged into this node's bridge, whose own
address is the pods' gateway. The node leases addresses from its **node range**, a part of the
**cluster range** that all nodes share; routes between nodes make it one flat network.

The ranges are decided once (PYRUN_POD_CIDR, PYRUN_CLUSTER_CIDR and the same with a 6 behind, or
the defaults here) and then kept in `network.json`. Everything happens in the current network
namespace: that is the node. Set-up is looked at before every pod and costs well under a
millisecond when all is in place. What comes next: `link.py` plugs a pod in.
"""

from __future__ import annotations

import os
from _socket import AF_INET, AF_INET6

from pyrun.errors import BadInput, Conflict
from pyrun.explain.steps import Step
from pyrun.kernel import netlink
from pyrun.network import ipam, nat, sysctl
from pyrun.network.address import Range, mac_for, parse_range, to_bytes
from pyrun.store import records

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pyrun.store.paths import Paths

CLUSTER4, NODE4 = "10.66.0.0/16", "10.66.0.0/24"
CLUSTER6, NODE6 = "fd66::/48", "fd66::/64"
DEFAULT_MTU = 1500
RTPROT_RA = 9


class NodeNetwork:
    """What this node's pod network is. `cidr6` and its kin are None where IPv6 is off.

    config  all ranges as kept in `network.json`, those of a family that is off today included
    kept    whether they have been written down already
    """

    __slots__ = (
        "bridge", "cidr4", "cidr6", "cluster4", "cluster6", "config", "gateway4", "gateway6",
        "kept", "mtu", "table",
    )  # fmt: skip

    def __init__(
        self, paths: Paths, config: dict[str, str], *, kept: bool, ipv6: bool, mtu: int
    ) -> None:
        self.bridge = paths.bridge
        self.table = paths.nft_table
        self.config = config
        self.cidr4 = config["pod_cidr"]
        self.cluster4 = config["cluster_cidr"]
        self.gateway4 = parse_range(self.cidr4).address(1)
        ipv6 = ipv6 and config["pod_cidr6"] != ""
        self.cidr6 = config["pod_cidr6"] if ipv6 else None
        self.cluster6 = config["cluster_cidr6"] if ipv6 else None
        self.gateway6 = parse_range(config["pod_cidr6"]).address(1) if ipv6 else None
        self.kept = kept
        self.mtu = mtu

    @property
    def layer3(self) -> list[list[str]]:
        """Per family: its name in nft, the node range, the cluster range."""
        found = [["ip", self.cidr4, self.cluster4]]
        if self.cidr6 is not None and self.cluster6 is not None:
            found.append(["ip6", self.cidr6, self.cluster6])
        return found

    @property
    def gateways(self) -> list[str]:
        """The bridge's own addresses, with prefix length."""
        ranges = [parse_range(node) for _, node, _ in self.layer3]
        return [f"{found.address(1)}/{found.prefix}" for found in ranges]


def node_network(paths: Paths) -> NodeNetwork:
    """The node's network as kept in `network.json`, or as it would be decided now.

    Changes nothing. Raises BadInput where the environment's ranges are wrong.
    """
    config = records.read(config_path(paths))
    kept = config is not None
    with netlink.Netlink() as rtnl:
        bridge = netlink.find_link(rtnl, paths.bridge)
        mtu = bridge.mtu if bridge else uplink_mtu(rtnl)
    return NodeNetwork(
        paths, config or decide(os.environ), kept=kept, ipv6=sysctl.ipv6_enabled(), mtu=mtu
    )


def config_path(paths: Paths) -> str:
    return f"{paths.root}/network.json"


def decide(environ: os._Environ[str] | dict[str, str]) -> dict[str, str]:
    """The ranges the environment asks for, completed with the defaults. Raises BadInput."""
    node4, cluster4 = _pair(environ, "", NODE4, CLUSTER4, 24)
    if node4.bits != 32 or node4.prefix > 30:
        raise BadInput(
            f"PYRUN_POD_CIDR={node4} cannot hold pods", hint="give an IPv4 range of /30 or shorter"
        )
    config = {"pod_cidr": str(node4), "cluster_cidr": str(cluster4)}
    if environ.get("PYRUN_POD_CIDR6") == "none":
        return {**config, "pod_cidr6": "", "cluster_cidr6": ""}
    node6, cluster6 = _pair(environ, "6", NODE6, CLUSTER6, 64)
    if node6.bits != 128 or node6.size < node4.size:
        raise BadInput(
            f"PYRUN_POD_CIDR6={node6} cannot hold as many pods as {node4}",
            hint="give an IPv6 range of /64, or `none` for IPv4 only",
        )
    return {**config, "pod_cidr6": str(node6), "cluster_cidr6": str(cluster6)}


def _pair(
    environ: os._Environ[str] | dict[str, str], suffix: str, node: str, cluster: str, length: int
) -> tuple[Range, Range]:
    """Node and cluster range of one family. Where one is given the other follows from it."""
    node_name, cluster_name = f"PYRUN_POD_CIDR{suffix}", f"PYRUN_CLUSTER_CIDR{suffix}"
    node_text, cluster_text = environ.get(node_name, ""), environ.get(cluster_name, "")
    cluster_range = parse_range(cluster_text or cluster)
    if node_text:
        node_range = parse_range(node_text)
        if not cluster_text and not cluster_range.contains(node_range):
            cluster_range = node_range
    elif cluster_text:
        longest = max(length, cluster_range.prefix)
        node_range = Range(cluster_range.family, cluster_range.base, longest)
    else:
        node_range = parse_range(node)
    if not cluster_range.contains(node_range):
        raise BadInput(
            f"{node_name}={node_range} is not a part of {cluster_name}={cluster_range}",
            hint="the node range is this node's part of the range all nodes share",
        )
    return node_range, cluster_range


def uplink_mtu(rtnl: netlink.Netlink) -> int:
    """MTU of the device the default route leaves by: a larger packet from a pod would not fit."""
    for family in (AF_INET, AF_INET6):
        for route in netlink.routes(rtnl, family):
            if route.prefix == 0 and route.oif and route.table == netlink.RT_TABLE_MAIN:
                device = netlink.find_index(rtnl, route.oif)
                if device is not None:
                    return device.mtu
    return DEFAULT_MTU


def plan_node(paths: Paths, net: NodeNetwork, name: str = "") -> list[Step]:
    """What is still missing for pods to be plugged in; empty when everything is in place.

    Take the lease first and plan then: `remove_unused`, the undo of these steps, spares a node on
    which anybody holds a lease, but for `name`, the sandbox that is being made.
    Raises Conflict where the node range overlaps a route the host has.
    """
    with netlink.Netlink() as rtnl:
        bridge = netlink.find_link(rtnl, net.bridge)
        present = []
        if bridge is None:
            refuse_overlap(rtnl, net)
        elif bridge.up:
            present = netlink.addresses(rtnl, bridge.index)
        via_ra = _links_with_ra_routes(rtnl) if net.cidr6 else []
    plan: list[Step] = []
    wanted = [(to_bytes(a), int(p)) for a, _, p in (g.partition("/") for g in net.gateways)]
    if any(address not in present for address in wanted):
        plan.append(_bridge_step(paths, net, name))
    for name, value, why in _sysctls(net, via_ra):
        if sysctl.read(name) != value:
            plan.append(
                Step(
                    "network.sysctl.write",
                    name,
                    value,
                    why=why,
                    shell=f"sysctl -w {name.replace('/', '.')}={value}",
                    man="sysctl(8)",
                )
            )
    if not nat.is_loaded(net.table, net.bridge, net.layer3):
        plan.append(
            Step(
                "network.nat.load",
                ipam.lock_path(paths),
                net.table,
                net.bridge,
                net.layer3,
                why="load the rules: publish ports, masquerade what leaves the pod network",
                undo=("network.node.remove_unused", _removal(paths, name)),
                shell=f"nft list table inet {net.table}",
                man="nft(8)",
            )
        )
    if not net.kept:  # last: ranges that turned out not to work are not kept
        plan.append(_keep_step(paths, net))
    return plan


def _keep_step(paths: Paths, net: NodeNetwork) -> Step:
    return Step(
        "network.node.keep_config",
        config_path(paths),
        net.config,
        why="write down which addresses this node's pods get, so that it never changes by itself",
        shell=f"cat {config_path(paths)}",
    )


def _bridge_step(paths: Paths, net: NodeNetwork, name: str) -> Step:
    addresses = " && ".join(f"ip address add {a} dev {net.bridge}" for a in net.gateways)
    return Step(
        "network.node.add_bridge",
        ipam.lock_path(paths),
        net.bridge,
        net.mtu,
        net.gateways,
        why=f"make the switch {net.bridge} that pods plug into; its address is their gateway",
        undo=("network.node.remove_unused", _removal(paths, name)),
        shell=f"ip link add {net.bridge} mtu {net.mtu} type bridge && {addresses}"
        f" && ip link set {net.bridge} up",
        man="ip-link(8)",
    )


def _sysctls(net: NodeNetwork, via_ra: list[str]) -> list[tuple[str, str, str]]:
    v4, v6, bridge = "net/ipv4", "net/ipv6", net.bridge
    wanted = [
        (f"{v4}/ip_forward", "1", "let the kernel pass packets on between its interfaces"),
        (
            f"{v4}/conf/{bridge}/route_localnet",
            "1",
            "let packets from 127.0.0.1 out to pods, for ports published there",
        ),
    ]
    if net.cidr6 is None:
        return wanted
    # An interface that forwards ignores router advertisements unless accept_ra is 2: without
    # this the host would lose its own default route a while after we switch forwarding on.
    wanted += [
        (f"{v6}/conf/{name}/accept_ra", "2", f"keep hearing routers on {name} while forwarding")
        for name in via_ra
        if name != bridge
    ]
    wanted += [
        (f"{v6}/conf/{bridge}/accept_ra", "0", "take no routes from a pod that plays router"),
        # With it the bridge's fe80:: address, by which it asks where a pod is, would be of no use
        # for two seconds after the first pod has come, and packets from outside would wait.
        (f"{v6}/conf/{bridge}/accept_dad", "0", "look for pods at once, nobody has our address"),
        (f"{v6}/conf/all/forwarding", "1", "let the kernel pass IPv6 packets on"),
    ]
    return wanted


def _links_with_ra_routes(rtnl: netlink.Netlink) -> list[str]:
    """Interfaces with a default route that a router advertised."""
    if sysctl.read("net/ipv6/conf/all/forwarding") == "1":
        return []
    indexes = {
        route.oif
        for route in netlink.routes(rtnl, AF_INET6)
        if route.prefix == 0 and route.protocol == RTPROT_RA
    }
    found = (netlink.find_index(rtnl, index) for index in sorted(indexes))
    return [link.name for link in found if link is not None]


def refuse_overlap(rtnl: netlink.Netlink, net: NodeNetwork) -> None:
    """Raise Conflict where a route of the host leads to a part of the node range.

    A default route is everybody's, and a route for exactly the cluster range is how other nodes'
    pods are reached.
    """
    for family, node, cluster in (
        (AF_INET, net.cidr4, net.cluster4),
        (AF_INET6, net.cidr6, net.cluster6),
    ):
        if node is None or cluster is None:
            continue
        wanted = parse_range(node)
        for route in netlink.routes(rtnl, family):
            if route.prefix == 0 or not route.dst:
                continue
            there = Range(family, int.from_bytes(route.dst, "big"), route.prefix)
            if not there.overlaps(wanted) or str(there) == cluster:
                continue
            device = netlink.find_index(rtnl, route.oif)
            name = device.name if device is not None else "an interface that is gone"
            if name == net.bridge:  # another process made the bridge meanwhile
                continue
            digit = "6" if family == AF_INET6 else ""
            raise Conflict(
                f"the pod range {node} overlaps the route {there} of this host (dev {name})",
                hint=f"choose a free range: PYRUN_POD_CIDR{digit}=… (and PYRUN_CLUSTER_CIDR{digit},"
                " the range all nodes share) before the first pod",
            )


def keep_config(path: str, config: dict[str, str]) -> None:
    os.makedirs(os.path.dirname(path), 0o711, exist_ok=True)
    records.write(path, config)


def add_bridge(lock: str, name: str, mtu: int, gateways: list[str]) -> None:
    """Make the bridge, give it the gateway addresses, set it up. What is there already is kept.

    Raises KernelError.
    """
    with records.Lock(lock), netlink.Netlink() as rtnl:
        if netlink.find_link(rtnl, name) is None:
            _create_bridge(name, mtu, gateways[0].partition("/")[0])
        netlink.set_up(rtnl, name)
        for gateway in gateways:
            address, _, prefix = gateway.partition("/")
            netlink.add_address(rtnl, name, to_bytes(address), int(prefix))


def _create_bridge(name: str, mtu: int, gateway: str) -> None:
    # Once per boot, so it may cost what importing pyroute2 costs (130 ms).
    from pyroute2 import IPRoute
    from pyroute2.netlink.exceptions import NetlinkError

    try:
        with IPRoute() as ip:
            # With an address of its own the bridge keeps it. Otherwise it takes the lowest of its
            # ports', and each pod that comes or goes may change the gateway's MAC under the rest.
            # Without snooping no IPv6 neighbour discovery is lost while there is no querier.
            mac = mac_for(gateway).hex(":")
            ip.link("add", ifname=name, kind="bridge", address=mac, br_mcast_snooping=0)
            # Set apart from "add": only then does the kernel stop adjusting it to the ports'.
            ip.link("set", index=ip.link_lookup(ifname=name)[0], mtu=mtu)
    except NetlinkError as error:
        from pyrun.errors import KernelError

        raise KernelError(error.code, f"RTM_NEWLINK bridge {name}") from error


def plan_node_remove(paths: Paths, net: NodeNetwork) -> list[Step]:
    """Take bridge, rules and the kept ranges away. Raises Conflict while pods hold addresses.

    The forwarding sysctls stay: others may have come to rely on them.
    """
    held = ipam.leases(paths)
    if held:
        some = ", ".join(sorted(set(held.values()))[:5])
        raise Conflict(
            f"the pod network {net.cidr4} is in use by {len(held)} sandboxes: {some}",
            hint="remove the pods and containers first",
        )
    return [
        Step(
            "network.node.remove_unused",
            *_removal(paths),
            why="remove the bridge and the nftables table",
            shell=f"ip link delete {net.bridge}; nft delete table inet {net.table}",
            man="ip-link(8)",
        ),
        Step(
            "kernel.files.unlink",
            config_path(paths),
            why="forget the ranges, so that the next first pod decides again",
            shell=f"rm {config_path(paths)}",
        ),
        Step(
            "kernel.files.unlink",
            ipam.lock_path(paths),
            why="remove the lock file that remembered the last address given out",
            shell=f"rm {ipam.lock_path(paths)}",
        ),
    ]


def _removal(paths: Paths, name: str = "") -> tuple[str, str, str, str, str]:
    return ipam.lock_path(paths), paths.leases, paths.bridge, paths.nft_table, name


def remove_unused(lock: str, leases: str, bridge: str, table: str, name: str = "") -> None:
    """Delete bridge and table, unless somebody holds a port, or a lease that is not `name`'s; not
    there is fine."""
    with records.Lock(lock), netlink.Netlink() as rtnl:
        link = netlink.find_link(rtnl, bridge)
        ports = [port for port in netlink.links(rtnl) if link and port.master == link.index]
        held = set(ipam.holders(leases)) - {name}
        if not held and not ports:
            netlink.delete_link(rtnl, bridge)
            nat.remove(table)
