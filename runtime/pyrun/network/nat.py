"""The node's nftables rules: which packets change their address on the way, and why.

    prerouting, output   a packet to one of the host's own addresses whose port a pod publishes is
                         sent to the pod (DNAT). Which port goes where is a map, so a thousand
                         published ports cost one lookup, and a pod adds and removes only elements.
    postrouting          a packet that leaves the pod network takes the node's address
                         (masquerade), since nobody out there knows a way back to a pod. Between
                         pods nothing is touched: they see each other's real addresses.
    guard                nothing from a pod reaches the host's 127.0.0.0/8, although the bridge has
                         route_localnet, which publishing on 127.0.0.1 needs.

Two more cases need a masquerade, both because the answer would otherwise not come back through
the rule that changed the question: a pod that reaches a pod of the same bridge through a published
port (the answer would take the short way over the bridge), and a program on the host that speaks
to 127.0.0.1 (a pod cannot answer to that).

All is in one table of family inet; kernels without that family get one each for ip and ip6.
nft(8). Ports are put into the maps by `ports.py`.
"""

from __future__ import annotations

import zlib

from pyrun.errors import KernelError, Unsupported
from pyrun.kernel import nft
from pyrun.store.records import Lock

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    Layer3 = Sequence[Sequence[str]]  # ("ip", node range, cluster range), ("ip6", …)

ADDRESS_TYPE = {"ip": "ipv4_addr", "ip6": "ipv6_addr"}
MAP = {"ip": "publish4", "ip6": "publish6"}


def ruleset(family: str, table: str, bridge: str, layer3: Layer3) -> str:
    """The table as nft text. Loading it again replaces the rules and keeps the maps' elements."""
    maps, jumps, masquerades, guard = "", "", "", ""
    for l3, node, cluster in layer3:
        address, name = ADDRESS_TYPE[l3], MAP[l3]
        maps += f"""
    map {name} {{
        type inet_proto . {address} . inet_service : {address} . inet_service
    }}
    map {name}_any {{
        type inet_proto . inet_service : {address} . inet_service
    }}"""
        if l3 == "ip6":  # nothing can route ::1 off the host, there is no route_localnet for it
            jumps += "\n        ip6 daddr ::1 return"
        jumps += f"""
        dnat {l3} to meta l4proto . {l3} daddr . th dport map @{name}
        dnat {l3} to meta l4proto . th dport map @{name}_any"""
        if l3 == "ip":
            guard = f'\n        iifname "{bridge}" ip daddr 127.0.0.0/8 drop'
            masquerades += f'\n        oifname "{bridge}" ip saddr 127.0.0.0/8 masquerade'
        masquerades += f"""
        {l3} saddr {node} {l3} daddr {node} ct status dnat masquerade
        {l3} saddr {node} {l3} daddr != {cluster} oifname != "{bridge}" masquerade"""
    return f"""\
table {family} {table} {{{maps}
    chain guard {{
        type filter hook prerouting priority raw
    }}
    chain publish {{
    }}
    chain prerouting {{
        type nat hook prerouting priority dstnat
    }}
    chain output {{
        type nat hook output priority -100
    }}
    chain postrouting {{
        type nat hook postrouting priority srcnat
    }}
}}
flush table {family} {table}
table {family} {table} {{
    chain guard {{{guard}
    }}
    chain publish {{{jumps}
    }}
    chain prerouting {{
        fib daddr type local jump publish
    }}
    chain output {{
        fib daddr type local jump publish
    }}
    chain postrouting {{{masquerades}
    }}
}}
"""


def marker(table: str, bridge: str, layer3: Layer3) -> str:
    """Name of an empty chain that says which version of the rules is loaded.

    Asking for a chain by name is one small message; comparing the rules would take milliseconds.
    """
    return f"rules_{zlib.crc32(ruleset('inet', table, bridge, layer3).encode()):08x}"


def is_loaded(table: str, bridge: str, layer3: Layer3) -> bool:
    chain = marker(table, bridge, layer3)
    return nft.has_chain("inet", table, chain) or all(
        nft.has_chain(l3, table, chain) for l3, _, _ in layer3
    )


def load(lock: str, table: str, bridge: str, layer3: Layer3) -> None:
    """Bring the table into the kernel, unless it is there. Raises KernelError, Unsupported."""
    with Lock(lock):
        if is_loaded(table, bridge, layer3):
            return
        try:
            load_family("inet", table, bridge, layer3)
        except KernelError as inet_error:
            if inet_error.errno in (1, 22):  # EPERM, or nft disliked the text: not the family
                raise
            try:
                for one in layer3:
                    load_family(one[0], table, bridge, [one], layer3)
            except KernelError as error:
                raise Unsupported(
                    f"cannot load the nftables rules of the pod network: {error}",
                    hint="the kernel needs CONFIG_NF_TABLES_INET, NFT_NAT, NFT_MASQ and "
                    "NFT_FIB_INET; without them use --network none or host",
                ) from inet_error


def load_family(
    family: str, table: str, bridge: str, layer3: Layer3, marked: Layer3 | None = None
) -> None:
    """Load one table of `family`, with the marker of the whole (`marked`) rules."""
    chain = marker(table, bridge, marked or layer3)
    stale = "".join(
        f"delete chain {family} {table} {old}\n" for old in _markers(family, table) if old != chain
    )
    nft.run(
        stale + ruleset(family, table, bridge, layer3) + f"add chain {family} {table} {chain}\n"
    )


def _markers(family: str, table: str) -> list[str]:
    try:
        lines = nft.run(f"list table {family} {table}").splitlines()
    except KernelError:
        return []
    words = [line.split() for line in lines]
    return [w[1] for w in words if w[:1] == ["chain"] and w[1].startswith("rules_")]


def family_of(table: str, l3: str) -> str:
    """The family our table has on this kernel: inet, or where that is missing `l3` itself."""
    return "inet" if nft.has_chain("inet", table, "publish") else l3


def dropping_chains() -> list[str]:
    """`ip filter FORWARD` for every chain of others that drops forwarded packets by default.

    docker and some firewalls make one. An accept in our table does not help against it: a packet
    passes every table, and one drop is final. Raises KernelError, Unsupported.
    """
    found, table, chain = [], "", ""
    for line in nft.run("list chains").splitlines():
        words = line.split()
        if words[:1] == ["table"]:
            table = " ".join(words[1:3])
        elif words[:1] == ["chain"]:
            chain = words[1]
        elif "hook forward" in line and "policy drop" in line:
            found.append(f"{table} {chain}")
    return found


def remove(table: str) -> None:
    """Delete the table in every family; none there is fine."""
    for family in nft.FAMILIES:
        if nft.has_chain(family, table, "publish"):
            nft.run(f"delete table {family} {table}")
