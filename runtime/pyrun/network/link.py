"""Plugging a pod in: a veth pair from the node's bridge into the pod's network namespace.

A new network namespace has nothing but a loopback interface that is down. It gets:

    sysctls     no router advertisements, ports below 1024 and ping for everybody
    veth pair   one end a port of the bridge, the other born inside the namespace as eth0
    lo, eth0    up
    addresses   the leased IPv4 and IPv6 address
    routes      everything that is not on the bridge goes to the gateway, which is the bridge

Deleting the host's end of the pair takes all of it away. veth(4), `kernel/netlink.py`.
"""

from __future__ import annotations

import os
import zlib

from pyrun.errors import Conflict, KernelError
from pyrun.explain.steps import Step
from pyrun.kernel import carrier, netlink
from pyrun.kernel.netlink import Inside
from pyrun.network.address import mac_for, to_bytes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pyrun.network.ipam import Lease
    from pyrun.network.node import NodeNetwork
    from pyrun.store.paths import Paths

EVERYBODY = [
    ("net/ipv4/ip_unprivileged_port_start", "0"),
    ("net/ipv4/ping_group_range", "0 2147483647"),
]
"""The namespace is the pod's own, so no port in it needs root, and neither does ping."""

NO_AUTOCONF = [
    ("net/ipv6/conf/default/accept_ra", "0"),
    ("net/ipv6/conf/default/accept_dad", "0"),
]
"""`default` is what eth0 is born with. accept_dad=0: its link-local address is usable at once."""


def host_name(paths: Paths, name: str) -> str:
    """Name of the host's end: a hash, since an interface name has only fifteen bytes."""
    return f"pyv{zlib.crc32(f'{paths.run_root}/{name}'.encode()):08x}"


def plan_attach(paths: Paths, net: NodeNetwork, lease: Lease, name: str, netns: str) -> list[Step]:
    """Plug the namespace pinned at `netns` into the node's bridge as sandbox `name`."""
    veth = host_name(paths, name)
    plan = [
        _sysctl_step(netns, EVERYBODY + NO_AUTOCONF),
        Step(
            "network.link.add_veth",
            veth,
            net.bridge,
            net.mtu,
            netns,
            lease.ip4,
            net.cidr6 is not None,
            why=f"lay a cable: {veth} is a port of {net.bridge}, its other end eth0 in the pod",
            undo=("network.link.delete", (veth,)),
            shell=f"ip link add {veth} mtu {net.mtu} master {net.bridge} "
            f"type veth peer name eth0 netns {netns}"
            f" && ip link set {veth} up addrgenmode none type bridge_slave hairpin on",
            man="veth(4)",
        ),
        _up_step(netns, "lo", "switch the loopback interface on, so that 127.0.0.1 works"),
    ]
    own = [(lease.ip4, lease.prefix4, net.gateway4)]
    if lease.ip6 is not None and net.gateway6 is not None:
        own.append((lease.ip6, lease.prefix6, net.gateway6))
    for address, prefix, _ in own:
        plan.append(
            Step(
                "network.link.add_address",
                netns,
                "eth0",
                address,
                prefix,
                why=f"give the pod its address {address}",
                shell=_typed(netns, f"ip address add {address}/{prefix} dev eth0")
                + (" nodad" if ":" in address else ""),
                man="ip-address(8)",
            )
        )
    plan.append(_up_step(netns, "eth0", "switch eth0 on; the bridge port starts to forward"))
    for _, _, gateway in own:
        plan.append(
            Step(
                "network.link.add_default_route",
                netns,
                "eth0",
                gateway,
                why=f"send everything that is not on the bridge to {gateway}, the node",
                shell=_typed(netns, f"ip route add default via {gateway} dev eth0"),
                man="ip-route(8)",
            )
        )
    plan.append(
        Step(
            "network.link.settle",
            netns,
            veth,
            net.bridge,
            lease.ip6,
            why="wait until the kernel has seen the new carrier, so that no first packet is lost",
            shell=f"ethtool {veth}",
            man="netdevice(7)",
        )
    )
    return plan


def plan_loopback(netns: str) -> list[Step]:
    """A pod without network: only lo, and that up."""
    return [
        _sysctl_step(netns, EVERYBODY),
        _up_step(netns, "lo", "switch the loopback interface on: the only one this pod has"),
    ]


def plan_detach(paths: Paths, net: NodeNetwork, name: str) -> list[Step]:
    """Pull the cable of sandbox `name`; none there is fine."""
    veth = host_name(paths, name)
    return [
        Step(
            "network.link.delete",
            veth,
            why=f"remove {veth} from {net.bridge}; eth0, its addresses and routes go with it",
            shell=f"ip link delete {veth}",
            man="veth(4)",
        )
    ]


def _sysctl_step(netns: str, values: list[tuple[str, str]]) -> Step:
    settings = " ".join(f"'{name.replace('/', '.')}={value}'" for name, value in values)
    return Step(
        "network.sysctl.write_in",
        netns,
        [list(pair) for pair in values],
        why="set what the pod's interfaces are born with, and who may open ports and ping",
        shell=_typed(netns, f"sysctl -w {settings}"),
        man="sysctl(8)",
    )


def _up_step(netns: str, name: str, why: str) -> Step:
    return Step(
        "network.link.set_up",
        netns,
        name,
        why=why,
        shell=_typed(netns, f"ip link set {name} up"),
        man="ip-link(8)",
    )


def _typed(netns: str, command: str) -> str:
    """How one types a command that acts in a namespace: iproute2 knows those in its directory."""
    directory, _, name = netns.rpartition("/")
    if directory != "/run/netns":
        return f"nsenter --net={netns} {command}"
    if command.startswith("ip "):
        return f"ip -n {name} {command[3:]}"
    return f"ip netns exec {name} {command}"


def add_veth(veth: str, bridge: str, mtu: int, netns: str, ip4: str, ipv6: bool) -> None:
    """Raises KernelError (ENODEV where the bridge is missing) and Conflict for a taken name."""
    fd = os.open(netns, os.O_RDONLY | os.O_CLOEXEC)
    try:
        with netlink.Netlink() as rtnl:
            master = netlink.link(rtnl, bridge).index
            try:
                netlink.add_veth(rtnl, veth, master, mtu, "eth0", mac_for(ip4), fd)
            except KernelError as error:
                if error.errno != 17:  # EEXIST
                    raise
                raise Conflict(
                    f"the interface {veth} is there already: {error}",
                    hint=f"left by a crash? `ip link delete {veth}`",
                ) from error
            netlink.set_port_up(rtnl, veth, ipv6=ipv6)
    finally:
        os.close(fd)


def delete(name: str) -> None:
    """Delete an interface of the node; none there is fine."""
    with netlink.Netlink() as rtnl:
        netlink.delete_link(rtnl, name)


def set_up(netns: str, name: str) -> None:
    with netlink.open_in(netns) as rtnl:
        netlink.set_up(rtnl, name)


def settle(netns: str, veth: str, bridge: str, ip6: str | None) -> None:
    """Return when both ends of the pair and the bridge pass packets: see `kernel/carrier.py`."""
    with Inside(netns):
        carrier.has_carrier("eth0")
    carrier.has_carrier(veth)
    carrier.has_carrier(bridge)
    if ip6 is not None:
        with Inside(netns):
            carrier.wait_solicitable("eth0", to_bytes(ip6))


def add_address(netns: str, name: str, address: str, prefix: int) -> None:
    with netlink.open_in(netns) as rtnl:
        netlink.add_address(rtnl, name, to_bytes(address), prefix)


def add_default_route(netns: str, name: str, gateway: str) -> None:
    with netlink.open_in(netns) as rtnl:
        netlink.add_default_route(rtnl, name, to_bytes(gateway))
